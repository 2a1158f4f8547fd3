"""Progressive distillation by `train`, from an exact teacher of four steps to a student of one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax import flow_maps, networks, training

MEAN, STD = np.array([0.5, -0.5], np.float32), np.array([0.5, 1.0], np.float32)
STEPS = 250


def source(seed, step, size):
    """Points [size, 2] of a Gaussian."""
    return MEAN + STD * np.random.default_rng((seed, step)).normal(size=(size, 2)).astype(np.float32)


@pytest.mark.slow
def test_two_stages_end_at_the_first_teachers_ddim():
    """Each stage starts from the weights of the one before, which are its teacher too: no average of them is."""
    process = dj.Cosine()
    network = dj.from_linen(networks.PlainMLP(width=16, depth=1))
    diffusion = dj.Diffusion(network, process, dj.VPrediction())
    exact = dj.exact_denoiser(dj.Gaussian(jnp.asarray(MEAN), jnp.asarray(STD) ** 2), process)
    xT = jax.random.normal(jax.random.key(1), (256, 2))

    grid = np.linspace(1.0, 0.0, 5)
    right = dj.sample(None, process, exact, xT, grid, dj.DDIM())
    params, teacher = network.init(jax.random.key(0), xT, jnp.zeros(256)), exact
    tx = optax.adam(optax.linear_schedule(3e-2, 0.0, STEPS))
    while len(grid) > 2:
        grid = flow_maps.halve_grid(grid)

        def loss_fn(params, batch, context, teacher=teacher, grid=grid):
            choices = {"teacher": teacher, "grid": grid, "index": context.index, "total": context.total}
            return flow_maps.progressive_loss(diffusion, params, context.key, batch, **choices)

        step = training.make_train_step(training.Objective(loss_fn, tx), ema=training.make_ema(0.99))
        state = training.state_from_params(jax.random.key(2), params, tx)
        layout = training.jit_layout(step, training.data_mesh(jax.devices()[:1]))
        params = training.train(state, layout, source, steps=STEPS, batch_size=128, seed=3, progress=False).params
        teacher = dj.make_flow_map(diffusion, params, knows=grid)
        found = dj.sample(None, process, teacher, xT, grid, dj.Jump())
        error = jnp.sqrt(jnp.mean((found - right) ** 2))
        assert error < 0.02, (len(grid) - 1, error)  # 0.003 of two steps, 0.007 of one
    plain = dj.sample(None, process, exact, xT, grid, dj.DDIM())
    assert jnp.sqrt(jnp.mean((plain - right) ** 2)) > 0.5  # the teacher's own single step
