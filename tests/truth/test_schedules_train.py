"""A process is an argument: new numbers compile nothing, and gradients pass through every one of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, each_process

import diffjax as dj

QUICK = ["vp", "learned-linear"]


@pytest.mark.parametrize("name", each_process(QUICK))
def test_three_values_compile_once_and_gradients_are_differences(name):
    """Of noisy samples, kernels and logsnr, in each array of the process along a random direction."""
    process, traces = ALL_PROCESSES[name](), []
    leaves, structure = jax.tree.flatten(process)
    t = np.array([0.21, 0.4, 0.63, 0.81])
    x0, eps = np.random.default_rng(0).normal(size=(2, 4, 3))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def total(process, t, x0, eps):
        traces.append(1)
        spread = process.conditional(t, 0.7 * t)[1]
        xt = dj.perturb(process, x0, eps, t)
        return jnp.sum(jnp.cos(xt)) + jnp.sum(spread / process.sigma(t)) + 0.1 * jnp.sum(process.logsnr(t))

    def at(leaves):
        process = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])
        return total(process, *(jnp.asarray(a) for a in (t, x0, eps)))

    value, slope = at(leaves)
    assert np.isfinite(value)
    for i, (leaf, by_leaf) in enumerate(zip(leaves, jax.tree.leaves(slope), strict=True)):
        if isinstance(process, dj.process.DiscreteChain) and leaf is not process.betas:
            continue  # sums, which are not to be learned
        size = 1e-6 * np.maximum(np.abs(leaf), 1e-3) * np.where(np.asarray(leaf) == 1, 0, 1)  # a last beta of 1 stays
        size = size if np.any(size) else np.full_like(leaf, 1e-6)
        direction = np.random.default_rng(i).choice([-1.0, 1.0], np.shape(leaf)) * size
        direction = float(direction) if leaf.ndim == 0 else jnp.asarray(direction)  # a number stays weakly typed
        after, before = (at([*leaves[:i], leaf + sign * direction, *leaves[i + 1 :]])[0] for sign in (1, -1))
        np.testing.assert_allclose((after - before) / 2, np.sum(by_leaf * direction), rtol=1e-4, atol=2e-13)
    assert len(traces) == 1
