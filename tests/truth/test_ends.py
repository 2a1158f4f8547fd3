"""Slopes at the ends of the clock, where sigma or alpha is 0: in a process's numbers, and in the time where finite."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import quick_jit
from registry import ALL_PROCESSES

import diffjax as dj
from diffjax import process

QUICK = ("vp", "ou", "ve-from-zero", "offset-cosine", "polynomial", "own", "ddpm-zero-snr")
processes = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow], id=n) for n in ALL_PROCESSES]
STEP = 1e-6


def half(x, t):
    return 0.5 * x


def at_the_ends(made, start, stop):
    """alpha, sigma and the kernel to and from the middle at t = 0 and t = 1, and a sample at the end of a grid to 0."""
    middle = jnp.asarray(0.51)
    xt, ts = jnp.ones((1, 1)), jnp.stack([0.9 * stop, middle, start])
    xs = dj.sample(jax.random.key(0), made, half, xt, ts, dj.DDIM(), final_denoise=False)
    ends = [f(t) for t in (start, stop) for f in (made.alpha, made.sigma)]
    kernels = (*made.conditional(middle, start), *made.conditional(stop, middle))
    return jnp.stack([*ends, *kernels, xs[0, 0]])


def numbers_of(made):
    """A process's numbers, and a direction to move them in; of a chain only its betas count, and a last 1 stays."""
    numbers, rest = eqx.partition(made, eqx.is_inexact_array)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: jnp.asarray(0.01 * rng.normal(size=leaf.shape)), numbers)
    if isinstance(made, process.DiscreteChain):
        direction = jax.tree.map(jnp.zeros_like, numbers)
        betas = 0.01 * jnp.where(made.betas < 1, made.betas, 0.0)
        direction = eqx.tree_at(lambda chain: chain.betas, direction, betas)
    return numbers, rest, direction


@pytest.mark.parametrize("name", processes)
def test_slopes_at_the_ends_are_those_of_differences(name):
    """In the numbers at the end itself, where every value is finite; in t towards the inside.

    Or infinite there: a wrapper then has the slope of a time next to the end, which is large and of the same sign.
    """
    numbers, rest, direction = numbers_of(ALL_PROCESSES[name]())
    values = lambda numbers, *ends: at_the_ends(eqx.combine(numbers, rest), *ends)
    ends = (jnp.asarray(0.0), jnp.asarray(1.0))

    @quick_jit
    def look(numbers):
        by = jnp.array([0.0, STEP, -STEP, 0.0, 0.0])
        moved = jax.vmap(lambda by: jax.tree.map(lambda leaf, v: leaf + by * v, numbers, direction))(by)
        starts, stops = jnp.array([0.0, 0.0, 0.0, STEP, 0.0]), jnp.array([1.0, 1.0, 1.0, 1.0, 1 - STEP])
        here, more, less, after, before = jax.vmap(values)(moved, starts, stops)
        slopes = jax.jacrev(values)(numbers, *ends) if jax.tree.leaves(numbers) else numbers  # a few have none
        along = [jnp.tensordot(s, v, v.ndim) for s, v in zip(*map(jax.tree.leaves, (slopes, direction)), strict=True)]
        one = jnp.ones(())
        in_start = jax.jvp(lambda t: values(numbers, t, ends[1]), (ends[0],), (one,))[1]
        in_stop = jax.jvp(lambda t: values(numbers, ends[0], t), (ends[1],), (one,))[1]
        return (
            sum(along, jnp.zeros_like(here)),
            (more - less) / (2 * STEP),
            [in_start, in_stop],
            [(after - here) / STEP, (here - before) / STEP],
        )

    along, difference, in_time, differences = look(numbers)
    np.testing.assert_allclose(along, difference, rtol=1e-5, atol=1e-7)
    for slope, quotient in zip(in_time, differences, strict=True):
        slope = np.asarray(slope)[:-1]  # a sample has a square of its own to be the root of
        quotient, finite = np.asarray(quotient)[:-1], np.abs(slope) < 1e5
        np.testing.assert_allclose(slope[finite], quotient[finite], rtol=1e-3, atol=1e-3)
        assert np.all(np.abs(quotient[~finite]) > 10)
        assert np.all(np.sign(quotient[~finite]) == np.sign(slope[~finite]))


def test_without_an_offset_the_cosine_begins_along_a_line():
    sigma = lambda t: process.OffsetCosine(0.0).sigma(t)
    np.testing.assert_allclose([jax.grad(sigma)(0.0), sigma(1e-7) / 1e-7], np.pi / 2, rtol=1e-6)
