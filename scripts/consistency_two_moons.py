"""Consistency training on two moons: a target average that the loss reads, and a grid that is refined by the step.

    python scripts/consistency_two_moons.py [--out runs/consistency] [--steps 8000] [--pmap]

f(x, t), a denoiser with EDM's boundary, learns to be constant along x0 + sigma(t) eps: its answer at one point of a
grid is that of its average at the point before. The grid has 10 intervals at first and twice as many after each eighth
of the run, up to 1280. Prints the sliced Wasserstein distance of samples of one evaluation to data: 0.055, after 40 s
of computing. The same command resumes a run.

Sources: Song et al. 2023 (Consistency models), algorithm 3; Song & Dhariwal 2024, section 3 (grid and penalty).
"""

import argparse

import jax
import jax.numpy as jnp
import optax

import diffjax as dj
from diffjax import data, metrics, networks, training
from diffjax.process import normal_like, sample_keys

NETWORK = dj.from_linen(networks.MLP(width=64, depth=3))
DIFFUSION = dj.Diffusion(NETWORK, dj.EDM(0.002, 20.0), dj.parameterisation.EDMPrediction(1.0))


def make_loss(steps):
    def loss(params, batch, context):
        x0, sigma = batch[0], DIFFUSION.process.sigma
        intervals = 10 * 2 ** jnp.minimum(8 * context.step // steps, 7)
        draw = lambda key: jax.random.randint(key, (), 0, intervals)
        n = jax.vmap(draw)(sample_keys(jax.random.fold_in(context.key, 0), context.index))
        s, t = n / intervals, (n + 1) / intervals
        eps = normal_like(sample_keys(jax.random.fold_in(context.key, 1), context.index), x0)
        answer = lambda params, t: dj.make_denoiser(DIFFUSION, params)(x0 + jnp.expand_dims(sigma(t), 1) * eps, t)
        error = jnp.sum((answer(params, t) - answer(context.ema["target"], s)) ** 2, axis=-1)
        return jnp.mean((jnp.sqrt(error + 1e-4) - 1e-2) / (sigma(t) - sigma(s))), {"intervals": intervals}

    return loss


def make(steps, *, pmap=False):
    """The layout of the train step, and a state at its beginning."""
    objective = training.Objective(make_loss(steps), optax.adam(1e-3))
    averages = {"sampling": training.make_ema(0.999), "target": training.make_ema(0.9)}
    step = training.make_train_step(objective, ema=averages, axis_name="data" if pmap else None)
    x0, names = jnp.zeros((1, 2)), tuple(averages)
    state = training.init_state(jax.random.key(0), NETWORK, objective, x0, averages=names)
    return (training.pmap_layout if pmap else training.jit_layout)(step), state


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/consistency")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--pmap", action="store_true")
    options = parser.parse_args(arguments)
    source, (layout, state) = data.two_moons(), make(options.steps, pmap=options.pmap)
    with training.Checkpoints(f"{options.out}/checkpoints") as kept:
        state = state if kept.latest() is None else kept.restore(state)
        state = training.train(state, layout, source, steps=options.steps, batch_size=256, seed=0, checkpoints=kept)
    denoiser = dj.make_denoiser(DIFFUSION, training.averaged_params(state, "sampling"))
    held_out = jnp.asarray(source(1, 0, 4000)[0])
    drawn = denoiser(dj.prior(jax.random.key(3), DIFFUSION.process, held_out.shape), 1.0)
    distance = metrics.sliced_wasserstein(jax.random.key(4), drawn, held_out)
    print(f"distance to data: {distance:.3f}")
    return distance


if __name__ == "__main__":
    main()
