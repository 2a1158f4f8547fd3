"""Weights in float32: finite, with their gradients, over all of `process.interval()`, and near their float64 values."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PARAMETERISATIONS, ALL_PROCESSES, ALL_WEIGHTINGS, each_process

import diffjax as dj
from diffjax import losses
from diffjax.parameterisation import eps_error_scale


def weights(process, t):
    """Each weight on the eps-loss, and each prediction type's native weight and its inverse, [n] each."""
    w = {name: make()(process, dj.EpsPrediction(), t) for name, make in ALL_WEIGHTINGS.items()}
    native = {name: losses.native(process, make(), t) for name, make in ALL_PARAMETERISATIONS.items()}
    scale = {name: eps_error_scale(make(), process, t) for name, make in ALL_PARAMETERISATIONS.items()}
    return {"weight": w, "native": native, "scale": scale}


@eqx.filter_jit
def with_gradients(process, t):
    """The weights, their rates in t, and the gradient of their sum in the numbers of the process."""
    values, rates = jax.jvp(lambda t: weights(process, t), (t,), (jnp.ones_like(t),))
    total = lambda process: sum(jnp.sum(value) for value in jax.tree.leaves(weights(process, t)))
    return values, rates, eqx.filter_grad(total)(process)


@pytest.mark.parametrize("name", each_process(quick=("vp", "rectified")))
def test_weights_are_finite_and_keep_their_digits(name):
    process = ALL_PROCESSES[name]()
    low, high = (float(np.float32(end)) for end in process.interval())
    near = np.geomspace(1e-7, 0.1, 40) * (high - low)
    t = np.float32(np.concatenate([[low, high], np.linspace(low, high, 80), low + near, high - near]))
    t = np.clip(t, np.float32(low), np.float32(high))
    everything = with_gradients(process, jnp.asarray(t))
    for leaf in jax.tree.leaves(everything):
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf))
    values = jax.tree.map(np.asarray, everything[0])
    for weight in [*values["weight"].values(), *values["native"].values()]:
        for scale in values["scale"].values():
            assert np.all(np.isfinite(weight * scale))
            assert np.all(weight * scale > 0)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), process)
        reference = jax.tree.map(np.asarray, eqx.filter_jit(weights)(exact, jnp.asarray(np.float64(t))))
    # logsnr is exact to 1e-5 |logsnr|, so a power of the signal-to-noise ratio to 4e-4 at the ends.
    jax.tree.map(lambda mine, exact: np.testing.assert_allclose(mine, exact, rtol=5e-4), values, reference)


def test_a_weight_is_its_limit_where_both_numbers_of_the_answer_are_zero():
    """With alpha = (1 - t)^2 the velocity is 0 at t = 1; its weight, (1 - t)^2/4 for |eps - eps_hat|^2, too."""
    ones = jnp.ones((1, 2))
    network = dj.Network(lambda *_: {}, lambda params, x, *_, **__: x)
    diffusion = dj.Diffusion(network, dj.process.Polynomial(2.0), dj.VelocityPrediction())
    loss = losses.per_sample_loss(diffusion, {}, ones, ones, jnp.ones(1), weighting=losses.constant)
    np.testing.assert_allclose(loss, 0.0, atol=1e-12)
