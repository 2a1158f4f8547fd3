"""What goes along a residual stream is computed once on a CPU, however many blocks there are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import from_linen
from diffjax.networks import DiT

X, C_NOISE = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32), np.zeros(2, np.float32)


def gradient(depth):
    """The jitted gradient of a small DiT by its parameters, and parameters of which none is zero."""
    network = from_linen(DiT(width=16, depth=depth, heads=2, patch=2))
    params = jax.tree.map(lambda leaf: leaf + 0.1, network.init(jax.random.key(0), X, C_NOISE))
    return jax.jit(jax.grad(lambda params: jnp.sum(network.apply(params, X, C_NOISE) ** 2))), params


def widest(depth):
    """The most arrays that one fused loop of the compiled gradient reads."""
    f, params = gradient(depth)
    lines = f.lower(params).compile().as_text().splitlines()
    return max(len(re.findall(r"param_\d", line)) for line in lines if line.startswith("%"))


@pytest.mark.slow
def test_no_loop_reads_more_in_a_deeper_network(monkeypatch):
    assert widest(4) <= (two := widest(2))
    monkeypatch.setattr("diffjax.networks._repeat.materialise", lambda h, module: h)
    assert widest(2) > two  # what this guards against is still there


@pytest.mark.slow
def test_whatever_the_bits_of_a_parameter_it_changes_nothing(monkeypatch):
    values = 0.0, -0.5, np.inf, np.nan
    f, params = gradient(2)
    set_first = lambda value: jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(value), params)
    found = [f(set_first(value)) for value in values]
    monkeypatch.setattr("diffjax.networks._repeat.materialise", lambda h, module: h)
    f, _ = gradient(2)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    for value, grads in zip(values, found, strict=True):
        known = flat(f(set_first(value)))
        largest = np.max(np.abs(known), where=np.isfinite(known), initial=0)
        np.testing.assert_allclose(flat(grads), known, rtol=0, atol=1e-4 * largest)
