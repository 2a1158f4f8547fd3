"""What float32 reaches: schedules against a float64 reference at the very same float32 times.

Given an exact t, wherever |logsnr| <= 30: alpha, sigma and alpha_{t|s} within 1e-6 relative, logsnr within
1e-5 max(1, |lambda|), and sigma_{t|s} within 2e-6 for gaps of 1e-4 and more. `WIDER` says which processes cannot.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, ALL_STEPPERS, KINDS, each_process, each_stepper

import diffjax as dj
from diffjax.samplers import step_weights

processes = pytest.mark.parametrize("name", each_process(KINDS))


@eqx.filter_jit
def values(process, t, s):
    a, spread = process.conditional(t, s)
    return {
        "alpha": process.alpha(t),
        "sigma": process.sigma(t),
        "logsnr": process.logsnr(t),
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


def interior(process, largest=20.0, n=3000):
    """Float32 times with |logsnr| <= largest: uniform, and dense towards both of their ends."""
    ends = process.time_from_logsnr(jnp.array([largest, -largest]))
    low, high = (float(end) for end in np.clip(np.asarray(ends, np.float32), 0, 1 - 2.0**-24))
    rng = np.random.default_rng(0)
    near = 10 ** rng.uniform(-7, -1, (2, n // 4)) * (high - low)
    t = np.concatenate([rng.uniform(low, high, n // 2), low + near[0], low * (1 + near[0]), high - near[1]])
    return np.clip(np.float32(t), np.nextafter(np.float32(low), 1), np.nextafter(np.float32(high), 0))


BOUNDS = {"alpha": 1e-6, "sigma": 1e-6, "alpha_ts": 1e-6, "sigma_ts": 2e-6, "logsnr": 1e-5}
WIDER = {
    # By differences of logsnr, each of which is rounded: 1e-6 over the gap.
    "own": {"sigma_ts": 1e-2},
    # alpha and sigma come from lambda, whose rounding counts half.
    "learned-monotone": {"alpha": 3e-6, "sigma": 3e-6, "alpha_ts": 3e-6},
    # The knots are k/K as float32 has it, so that its times are the chain's: a cell is that much wider.
    "ddpm": {"sigma_ts": 4e-6},
    "ddpm-zero-snr": {"sigma_ts": 4e-6},
    # The inner process's time is rounded once more: 6e-8 over the gap, and near its end 6e-8 of the time left.
    "clipped": {"alpha": 3e-6, "alpha_ts": 3e-6, "sigma_ts": 6e-4},
}


@processes
def test_schedules_and_kernels_keep_their_digits(name):
    process = ALL_PROCESSES[name]()
    t = np.sort(interior(process, 30.0))
    gap = 10 ** np.random.default_rng(1).uniform(-4, 0, len(t)) * 1.01
    s = np.float32(np.maximum(t - gap, t[0]))
    mine, reference = both(process, t, s)
    worst = {what: np.max(np.abs(mine[what] / reference[what] - 1)) for what in ("alpha", "sigma", "alpha_ts")}
    wide = t.astype(np.float64) - s >= 1e-4
    worst["sigma_ts"] = np.max(np.abs(mine["sigma_ts"][wide] / reference["sigma_ts"][wide] - 1))
    scale = np.maximum(1, np.abs(reference["logsnr"]))
    worst["logsnr"] = np.max(np.abs(mine["logsnr"] - reference["logsnr"]) / scale)
    bounds = BOUNDS | WIDER.get(name, {})
    assert all(worst[what] <= bound for what, bound in bounds.items()), {k: f"{v:.2g}" for k, v in worst.items()}


@processes
def test_logsnr_falls_over_float32_times(name):
    """It never rises between neighbouring floats by more than its rounding, and clearly falls over 1e-4."""
    process = ALL_PROCESSES[name]()
    t = np.unique(interior(process))
    logsnr = np.asarray(eqx.filter_jit(process.logsnr)(jnp.asarray(t)), np.float64)
    assert np.all(np.diff(logsnr) <= 2e-6 * np.maximum(1, np.abs(logsnr[1:])))
    apart = logsnr[np.searchsorted(t, t + 1e-4).clip(max=len(t) - 1)] - logsnr
    assert np.all(apart[t + 1e-4 < t[-1]] < 0)


@processes
def test_inverting_logsnr_in_the_middle(name):
    """Through t and back moves logsnr by no more than 1e-4 for |lambda| <= 10: half an ulp of t times lambda'."""
    process = ALL_PROCESSES[name]()
    ends = [float(process.logsnr(end)) for end in process.interval()]
    values = jnp.linspace(max(-10.0, ends[1] + 0.01), min(10.0, ends[0] - 0.01), 501)
    there = jax.jit(lambda p, v: p.logsnr(p.time_from_logsnr(v)))(process, values)
    assert there.dtype == jnp.float32
    assert np.max(np.abs(there - values)) < 1e-4


@processes
def test_ends_are_finite_and_exact(name):
    process = ALL_PROCESSES[name]()
    (first, _), (last, noise) = ((float(p.alpha(t)), float(p.sigma(t))) for p, t in ((process, 0.0), (process, 1.0)))
    begins = {"learned-linear": 13.3, "learned-monotone": 13.3, "clipped": 8.0}.get(name, np.inf)  # logsnr
    assert abs(first - np.sqrt(1 / (1 + np.exp(-begins)))) <= 1.2e-7
    assert np.isfinite([last, noise, float(process.sigma(0.0))]).all()
    if name.startswith(("cosine", "rectified", "polynomial", "offset", "own", "ddpm-zero", "shifted")):
        assert last == 0
        assert abs(noise - 1) <= 1.2e-7


@pytest.mark.parametrize("name", each_process(("vp", "edm")))
def test_values_and_gradients_are_finite_on_the_float32_interval(name):
    """The gradient in each time and in each number of the process; one value that is not finite shows in the sum."""
    process = ALL_PROCESSES[name]()

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(process, t):
        ones = jnp.ones((len(t), 1))
        each = (
            process.alpha(t),
            process.sigma(t),
            process.logsnr(t),
            dj.process.logsnr_rate(process, t),
            *dj.process.schedule_derivatives(process, t),
            process.drift(ones, t)[:, 0],
            process.diffusion(ones, t),
            *process.conditional(t[1:], t[:-1]),
        )
        return sum(jnp.sum(value) for value in each)

    low, high = (float(end) for end in process.interval())
    t = jnp.asarray(np.concatenate([[low], np.linspace(low, high, 9)[1:-1], [high]]), jnp.float32)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(total(process, t)))


# An intermediate time is rounded, and near the noise alpha there by 3e-4 of itself; the weight is that of this alpha.
WIDER_WEIGHTS = {"dpm-solver-3": 2e-3}


@pytest.mark.parametrize("name", each_stepper(("ddim", "heun")))
def test_weights_computed_in_float32_inside_jit_are_those_of_the_host(name):
    """Where process and grid are traced, weights are float32: within 3e-5 of the host's float64 ones, and finite."""
    for make in (ALL_PROCESSES[which] for which in ("vp", "cosine-shifted", "edm", "rectified")):
        process, stepper = make(), ALL_STEPPERS[name]()
        for n in (1, 6):
            ts = dj.edm_grid(process, n)
            host = step_weights(stepper, process, np.asarray(ts, np.float64))
            traced = jax.jit(lambda process, ts, stepper=stepper: step_weights(stepper, process, ts))(process, ts)
            for exact, got in zip(jax.tree.leaves(host), jax.tree.leaves(traced), strict=True):
                atol = 3e-6 * np.max(np.abs(exact)) + 1e-7
                np.testing.assert_allclose(got, exact, rtol=WIDER_WEIGHTS.get(name, 3e-5), atol=atol)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_a_schedule_that_float32_breaks_is_named_and_its_interval_finite(power):
    """sqrt(1 - alpha^2) is 0 near the data in float32: said where it can be seen, and no NaN anywhere."""
    alpha = lambda t: (1 - t) ** power
    make = lambda: dj.process.Schedule(alpha, lambda t: jnp.sqrt(1 - alpha(t) ** 2))
    with pytest.warns(UserWarning, match=r"Schedule: sigma loses its digits in float32, got 0.0 at t = .* -expm1\("):
        broken = make()
    with jax.enable_x64(True):
        assert np.all(np.isfinite(make().interval()))
    ends = broken.interval()
    assert np.all(np.isfinite([*ends, *broken.logsnr(jnp.stack(ends)), *dj.logsnr_grid(broken, 4)]))

    @jax.jit
    def values(scale):  # inside jit nothing is looked at
        made = dj.process.Schedule(lambda t: scale * alpha(t), lambda t: jnp.sqrt(1 - alpha(t) ** 2))
        low, high = made.interval()
        return low, high, made.logsnr(low), dj.uniform_grid(made, 3), dj.edm_grid(made, 3)

    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(values(1.0)))
    sound = dj.process.Schedule(alpha, lambda t: jnp.sqrt(-jnp.expm1(2 * power * jnp.log1p(-t))))
    assert float(sound.logsnr(sound.interval()[0])) == pytest.approx(20, abs=1e-3)


@pytest.mark.slow
def test_both_clocks_have_finite_derivatives_on_all_of_the_time():
    """Also at t = 0 and 1, where logsnr or the derivatives of alpha and sigma may be infinite, and next to them: in t,
    and in the numbers of the process."""
    t = jnp.array([0.0, 1e-40, 1e-30, 1e-15, 1e-7, 0.5, 1 - 1e-6, 1 - 2.0**-24, 1.0])
    for name, make in ALL_PROCESSES.items():
        process = make()
        for clock in ("logsnr", "angle"):
            member = dj.VPrediction(0.5, clock=clock)
            level = lambda process, t, member=member: member.noise_level(process, t)
            value, slope = jax.jvp(lambda t, process=process, level=level: level(process, t), (t,), (jnp.ones_like(t),))
            assert np.all(np.isfinite(value)), (name, clock)
            assert np.all(np.isfinite(slope)), (name, clock, slope)
            assert np.all(np.diff(value) >= 0), (name, clock)
            by_number = eqx.filter_grad(lambda process, t, level=level: jnp.sum(level(process, t)))(process, t)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(by_number)), (name, clock)
