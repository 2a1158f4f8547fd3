"""What float32 reaches: schedules against a float64 reference at the very same float32 times.

Given an exact t: alpha, sigma and alpha_{t|s} within 1e-6 relative, logsnr within 1e-5 max(1, |lambda|), and
sigma_{t|s} within 2e-6 for gaps of 1e-4 and more.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, ALL_STEPPERS, CORE_PROCESSES

import diffjax as dj

processes = pytest.mark.parametrize("name", ALL_PROCESSES)


@eqx.filter_jit
def values(process, t, s):
    a, spread = dj.conditional(process, t, s)
    return {
        "alpha": process.alpha(t),
        "sigma": process.sigma(t),
        "logsnr": dj.logsnr(process, t),
        "alpha_ts": a,
        "sigma_ts": spread,
    }


def both(process, t, s):
    """`values` in float32, and in float64 at the same times and the same numbers of the process."""
    t, s = np.float32(t), np.float32(s)
    mine = jax.tree.map(np.asarray, values(process, jnp.asarray(t), jnp.asarray(s)))
    assert all(value.dtype == np.float32 for value in mine.values())
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), process)
        reference = values(exact, jnp.asarray(np.float64(t)), jnp.asarray(np.float64(s)))
        reference = jax.tree.map(np.asarray, reference)
    assert all(value.dtype == np.float64 for value in reference.values())
    return mine, reference


def interior(process, n=3000):
    """Float32 times of the interval: uniform, and dense towards both of its ends."""
    low, high = (float(np.float32(end)) for end in dj.interval(process))
    rng = np.random.default_rng(0)
    near = 10 ** rng.uniform(-7, -1, (2, n // 4)) * (high - low)
    t = np.concatenate([rng.uniform(low, high, n // 2), low + near[0], high - near[1]])
    return np.clip(np.float32(t), np.nextafter(np.float32(low), 1), np.nextafter(np.float32(high), 0))


@processes
def test_schedules_and_kernels_keep_their_digits(name):
    process = ALL_PROCESSES[name]()
    low = float(dj.interval(process)[0])
    t = np.sort(interior(process))
    gap = 10 ** np.random.default_rng(1).uniform(-4, 0, len(t)) * 1.01
    s = np.float32(np.maximum(t - gap, low))
    mine, reference = both(process, t, s)
    worst = {what: np.max(np.abs(mine[what] / reference[what] - 1)) for what in ("alpha", "sigma", "alpha_ts")}
    wide = t.astype(np.float64) - s >= 1e-4
    worst["sigma_ts"] = np.max(np.abs(mine["sigma_ts"] / reference["sigma_ts"] - 1)[wide])
    scale = np.maximum(1, np.abs(reference["logsnr"]))
    worst["logsnr"] = np.max(np.abs(mine["logsnr"] - reference["logsnr"]) / scale)
    bounds = {"alpha": 1e-6, "sigma": 1e-6, "alpha_ts": 1e-6, "sigma_ts": 2e-6, "logsnr": 1e-5}
    assert all(worst[what] <= bound for what, bound in bounds.items()), worst


@processes
def test_logsnr_falls_over_float32_times(name):
    """It never rises between neighbouring floats by more than its rounding, and clearly falls over 1e-4."""
    process = ALL_PROCESSES[name]()
    t = np.unique(interior(process))
    logsnr = np.asarray(jax.jit(dj.logsnr)(process, jnp.asarray(t)), np.float64)
    assert np.all(np.diff(logsnr) <= 2e-6 * np.maximum(1, np.abs(logsnr[1:])))
    apart = logsnr[np.searchsorted(t, t + 1e-4).clip(max=len(t) - 1)] - logsnr
    assert np.all(apart[t + 1e-4 < t[-1]] < 0)


@processes
def test_inverting_logsnr_in_the_middle(name):
    """Through t and back moves logsnr by no more than 1e-4 for |lambda| <= 10: half an ulp of t times lambda'."""
    process = ALL_PROCESSES[name]()
    ends = [float(dj.logsnr(process, end)) for end in dj.interval(process)]
    values = jnp.linspace(max(-10.0, ends[1] + 0.01), min(10.0, ends[0] - 0.01), 501)
    there = jax.jit(lambda p, v: dj.logsnr(p, dj.time_from_logsnr(p, v)))(process, values)
    assert there.dtype == jnp.float32
    assert np.max(np.abs(there - values)) < 1e-4


@processes
def test_ends_are_finite_and_exact(name):
    process = ALL_PROCESSES[name]()
    for t, mine in ((0.0, (1.0, None)), (1.0, (None, None))):
        alpha, sigma = (np.asarray(value) for value in (process.alpha(t), process.sigma(t)))
        assert np.isfinite(alpha)
        assert np.isfinite(sigma)
        assert mine[0] is None or alpha == mine[0]
    if name.startswith(("cosine", "rectified")):
        assert float(process.alpha(1.0)) == 0
        assert float(process.sigma(1.0)) == 1


@processes
def test_values_and_derivatives_are_finite_on_the_float32_interval(name):
    process = ALL_PROCESSES[name]()

    @jax.jit
    def jet(process, t):
        function = lambda p, t: (
            dj.rates(p, t),
            dj.logsnr_rate(p, t),
            p.drift(jnp.ones((len(t), 1)), t),
            p.diffusion(t, t),
        )
        return jax.jvp(function, (process, t), jax.tree.map(jnp.ones_like, (process, t)))

    t = jnp.asarray([*dj.interval(process)], jnp.float32)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jet(process, t)))


@pytest.mark.parametrize("name", ALL_STEPPERS)
def test_weights_computed_in_float32_inside_jit_are_those_of_the_host(name):
    """Where process and grid are traced, weights are float32: within 3e-5 of the host's float64 ones, and finite."""
    for make in CORE_PROCESSES.values():
        process, stepper = make(), ALL_STEPPERS[name]()
        for n in (1, 6):
            ts = dj.karras_grid(process, n)
            host = stepper.prepare(process, np.asarray(ts, np.float64))
            traced = jax.jit(lambda process, ts, stepper=stepper: stepper.prepare(process, ts))(process, ts)
            for exact, got in zip(jax.tree.leaves(host), jax.tree.leaves(traced), strict=True):
                np.testing.assert_allclose(got, exact, rtol=3e-5, atol=3e-6 * np.max(np.abs(exact)) + 1e-7)
