"""Training times against their own densities by quadrature, and sampling grids against what they promise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_GRIDS, ALL_PROCESSES, ALL_TIMES, each_process
from scipy import optimize, stats

import diffjax as dj
from diffjax.process import (
    SDE,
    CriticallyDamped,
    ImportanceTimes,
    LogsnrTimes,
    LowDiscrepancyTimes,
    ModeTimes,
    shifted_grid,
    snr_grid,
)

PAIRS = [(times, process) for times in ALL_TIMES for process in ("vp", "rectified")] + [("lognormal", "edm")]
TOGETHER = ("stratified", "low-discrepancy")
INDEPENDENT = [times for times in ALL_TIMES if times not in TOGETHER]


@eqx.filter_jit
def quantile(times, u):
    return times.quantile(u)


@eqx.filter_jit
def density(times, t):
    return times.density(t)


@eqx.filter_jit
def _draw(times, key, index, n, total):
    return times(key, n, index=index, total=total)


def draw(times, key, n, index=None, total=None):
    t, correction = _draw(times, key, None if index is None else jnp.asarray(index), n, total)
    assert t.shape == correction.shape == (n,)
    if not isinstance(times, ImportanceTimes):
        np.testing.assert_array_equal(correction, 1)
    return np.asarray(t)


# --- densities and quantiles ---


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_quantile_inverts_the_integral_of_the_density(name, process):
    """Between quantiles u and u' lies the mass u' - u, by Gauss-Legendre; so the whole density holds 1."""
    process = ALL_PROCESSES[process]()
    times = ALL_TIMES[name](process)
    low, high = (float(end) for end in process.interval())
    u = np.linspace(0, 1, 201)
    cuts = np.asarray(quantile(times, jnp.asarray(u)))
    assert np.all(np.diff(cuts) > 0)
    np.testing.assert_allclose(cuts[[0, -1]], [low, high], rtol=1e-6, atol=1e-12)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    # Between the outermost quantiles the tails run over many scales: equal pieces of logit(t) there.
    edges = [cuts]
    if low > 0:
        edges += [np.geomspace(low, cuts[1], 60), 1 - np.geomspace(max(1 - high, 1e-12), 1 - cuts[-2], 60)]
    edges = np.unique(np.clip(np.concatenate(edges), low, high))
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    mass = np.sum(
        half * weights * np.asarray(density(times, jnp.asarray(middle + half * nodes).ravel())).reshape(-1, 16), 1
    )
    cumulative = np.interp(cuts, edges, np.concatenate([[0], np.cumsum(mass)]))
    np.testing.assert_allclose(cumulative[-1], 1, rtol=1e-6)
    np.testing.assert_allclose(cumulative, u, atol=1e-6)


@pytest.mark.parametrize(
    "process", ["vp", "rectified", *(pytest.param(n, marks=pytest.mark.slow) for n in ("edm", "cosine-shifted"))]
)
def test_densities_are_the_named_ones(process):
    process = ALL_PROCESSES[process]()
    low, high = (float(end) for end in process.interval())
    u = np.linspace(0.01, 0.99, 50)
    uniform = quantile(dj.UniformTimes(process), jnp.asarray(u))
    np.testing.assert_allclose(uniform, low + u * (high - low), rtol=1e-12)
    noise = lambda t: -0.5 * np.asarray(process.logsnr(jnp.asarray(t)))  # log(sigma/alpha)
    a, b = ((noise(np.full(50, end))[0] + 1.0) / 0.8 for end in (low, high))
    lognormal = np.asarray(quantile(dj.process.LognormalTimes(process, -1.0, 0.8), jnp.asarray(u)))
    np.testing.assert_allclose(noise(lognormal), stats.truncnorm(a, b, -1.0, 0.8).ppf(u), rtol=1e-6, atol=1e-8)
    t = np.asarray(quantile(dj.process.LogitNormalTimes(process, 0.3, 1.2), jnp.asarray(u)))
    with np.errstate(divide="ignore"):
        a, b = ((np.log(end) - np.log1p(-end) - 0.3) / 1.2 for end in (low, high))
    np.testing.assert_allclose(np.log(t / (1 - t)), stats.truncnorm(a, b, 0.3, 1.2).ppf(u), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [-1.0, -0.6, 0.0, 0.8, 1.29, 1.75])
def test_mode_times_are_the_papers(scale):
    """t = 1 - u' - s (cos^2(pi u'/2) - 1 + u') of Esser et al. 2024, eq. 20, at u' = 1 - u; slope by differences."""
    times, u = ModeTimes(dj.EDM(), scale), np.linspace(0.05, 0.95, 19)  # whose interval is all of [0, 1]
    paper = lambda v: 1 - v - scale * (np.cos(np.pi * v / 2) ** 2 - 1 + v)
    t = np.asarray(quantile(times, jnp.asarray(u)))
    np.testing.assert_allclose(t, paper(1 - u), atol=1e-14)
    slope = (paper(1 - u - 1e-6) - paper(1 - u + 1e-6)) / 2e-6
    np.testing.assert_allclose(density(times, jnp.asarray(t)), 1 / slope, rtol=1e-6)


def test_uniform_in_logsnr_is():
    process, u = dj.VariancePreserving(), np.linspace(0, 1, 9)
    found = process.logsnr(quantile(LogsnrTimes(process), jnp.asarray(u)))
    np.testing.assert_allclose(np.diff(found, 2), 0, atol=1e-8)
    np.testing.assert_allclose(found[0], 20, rtol=1e-8)


@pytest.mark.parametrize("name", ALL_TIMES)
def test_density_is_zero_outside_the_interval(name):
    process = dj.Rectified()
    low, high = (float(end) for end in process.interval())
    outside = density(ALL_TIMES[name](process), jnp.array([low / 2, (1 + high) / 2]))
    np.testing.assert_array_equal(outside, 0)


def test_draws_follow_the_density():
    grid = np.linspace(0, 1, 2001)

    @jax.jit
    def drawn(key):
        members = {name: ALL_TIMES[name](dj.EDM()) for name in INDEPENDENT}
        middles = jnp.asarray((grid[1:] + grid[:-1]) / 2)
        return {name: (times(key, 4000)[0], times.density(middles)) for name, times in members.items()}

    for t, density in drawn(jax.random.key(0)).values():
        assert stats.kstest(t, stats.rv_histogram((np.asarray(density), grid)).cdf).pvalue > 1e-3


# --- what leaves the uniform objective as it is ---

UNIFORM = {
    "uniform": dj.UniformTimes,
    "stratified": dj.StratifiedTimes,
    "low-discrepancy": LowDiscrepancyTimes,
    "importance": ALL_TIMES["importance"],
    "importance-mode": lambda process: ImportanceTimes(ModeTimes(process, -0.5)),
}


@pytest.mark.parametrize("name", UNIFORM)
def test_a_mean_over_draws_is_the_integral(name):
    """E[correction f(t)] is the mean of f over the interval; evenly spread draws are far closer."""
    times, n = UNIFORM[name](dj.Rectified()), 4000
    low, high = (float(end) for end in dj.Rectified().interval())
    exact = (np.exp(high) - np.exp(low)) / (high - low)
    t, correction = map(np.asarray, _draw(times, jax.random.key(2), None, n, None))
    values = correction * np.exp(t)
    if name in TOGETHER:
        assert abs(values.mean() - exact) < (2 if name == "stratified" else 6) / n
    else:
        assert abs(values.mean() - exact) < 4.5 * values.std() / np.sqrt(n)
    if name.startswith("importance"):
        q = np.asarray(density(times, jnp.asarray(t)))
        np.testing.assert_allclose(correction, 1 / ((high - low) * q), rtol=1e-9)


def test_importance_takes_the_variance_out_of_the_likelihood_weighting():
    """-lambda' h(t), h the loss (1 - t)^2, under rectified flow: int_a^b 2 (1 - t)/t dt/(b - a) in closed form."""
    process, n = dj.Rectified(), 20_000
    low, high = (float(end) for end in process.interval())
    exact = 2 * (np.log(high / low) - (high - low)) / (high - low)
    weighted = {}
    for name, times in {
        "importance": ImportanceTimes(LogsnrTimes(process)),
        "uniform": dj.UniformTimes(process),
    }.items():
        t, correction = map(np.asarray, _draw(times, jax.random.key(0), None, n, None))
        weighted[name] = correction * 2 / (t * (1 - t)) * (1 - t) ** 2
    assert abs(weighted["importance"].mean() - exact) < 4.5 * weighted["importance"].std() / np.sqrt(n)
    assert weighted["importance"].std() < 1.1 * exact
    # Of the uniform times': int 4 (1 - t)^2/t^2 dt, about 4/a.
    assert weighted["importance"].std() < 0.1 * np.sqrt(4 / low)


@pytest.mark.parametrize("name", TOGETHER)
def test_each_time_of_those_drawn_together_is_uniform_over_keys(name):
    times = ALL_TIMES[name](dj.EDM())
    keys = jax.random.split(jax.random.key(4), 2000)
    t = np.asarray(jax.jit(jax.vmap(lambda key: times(key, 3, index=jnp.array([0, 4, 7]), total=8)[0]))(keys))
    for column in t.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3


# --- batches, devices ---


def in_eights(times, key, index):
    """The times of a global batch, drawn eight at a time as three devices would."""
    return np.concatenate([draw(times, key, 8, index[i : i + 8], len(index)) for i in range(0, len(index), 8)])


def test_stratified_has_one_draw_a_stratum_however_the_batch_is_split():
    process = dj.VariancePreserving()
    times, total = dj.StratifiedTimes(process), 24
    low, high = (float(end) for end in process.interval())
    rng = np.random.default_rng(0)
    for seed in range(3):
        key = jax.random.key(seed)
        index = rng.permutation(total)
        whole = in_eights(times, key, np.arange(total))
        parts = in_eights(times, key, index)
        np.testing.assert_allclose(parts, whole[index], rtol=1e-12)
        strata = np.floor((np.sort(whole) - low) / (high - low) * total)
        np.testing.assert_array_equal(strata, np.arange(total))


def test_any_run_of_low_discrepancy_times_is_evenly_spread():
    """Gaps of at most (1 + golden ratio)/m for any m indices in a row, wherever they start; i/golden mod 1."""
    times, golden = LowDiscrepancyTimes(dj.EDM()), (np.sqrt(5) - 1) / 2
    for first in (0, 100_003, 2_000_000_000):
        t = draw(times, jax.random.key(1), 64, first + np.arange(64), 7)
        steps = np.arange(64) * golden
        np.testing.assert_allclose((t - t[0] - steps + 0.5) % 1, 0.5, atol=1e-7)
        for m in (3, 8, 21, 50):
            part = np.sort(t[5 : 5 + m])
            gaps = np.diff(np.append(part, part[0] + 1))
            assert gaps.max() * m < 2.62
            assert gaps.min() * m > 0.38


@pytest.mark.parametrize("name", ALL_TIMES)
def test_a_time_depends_on_its_global_index_alone(name):
    times, key = ALL_TIMES[name](dj.VariancePreserving()), jax.random.key(9)
    whole = in_eights(times, key, np.arange(24))
    assert len(np.unique(whole)) == 24
    low, high = dj.VariancePreserving().interval()
    assert np.all((whole >= low) & (whole <= high))
    index = np.array([17, 3, 4, 5, 23, 0, 9, 11])
    np.testing.assert_allclose(draw(times, key, 8, index, 24), whole[index], rtol=1e-12)
    assert not np.allclose(draw(times, jax.random.key(10), 8, index, 24), whole[index])


def test_times_refuse_a_spread_that_is_not_positive():
    for make in (dj.process.LognormalTimes, dj.process.LogitNormalTimes):
        for std in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=rf"std: .*got {std}"):
                make(dj.EDM(), 0.0, std)


def test_mode_and_importance_refuse_what_has_no_density_or_no_variance():
    for scale in (-1.01, 1.76, float("nan")):
        with pytest.raises(ValueError, match=rf"scale: must lie in \[-1, 1\.751938\].*got {scale}"):
            ModeTimes(dj.EDM(), scale)
    for thin in (dj.process.LogitNormalTimes, dj.process.LognormalTimes):
        with pytest.raises(ValueError, match=rf"q: under {thin.__name__} the correction"):
            ImportanceTimes(thin(dj.EDM()))

    with pytest.raises(ValueError, match=r"q: ImportanceTimes are corrected already"):
        ImportanceTimes(ImportanceTimes(LogsnrTimes(dj.EDM())))

    class Steep(LogsnrTimes):
        def density(self, t):
            return 20 * jnp.exp(-20 * t)

    with pytest.raises(ValueError, match=r"q: uniform over q must be at most 1000, got .* at t = 1"):
        ImportanceTimes(Steep(dj.EDM()))


def test_logit_normal_is_zero_and_differentiable_at_the_ends_of_the_clock():
    """EDM's interval is all of [0, 1]; the slope in between is the closed form's."""
    t = jnp.array([0.0, 0.3, 1.0])
    evaluate = jax.jit(lambda t, mean, std: dj.process.LogitNormalTimes(dj.EDM(), mean, std).density(t))
    values, numbers = evaluate(t, 0.2, 1.5), jax.jacrev(evaluate, (1, 2))(t, 0.2, 1.5)
    exact = lambda t, mean, std: stats.norm.pdf(np.log(t / (1 - t)), mean, std) / (t * (1 - t))
    np.testing.assert_allclose(values, [0, exact(0.3, 0.2, 1.5), 0], rtol=1e-12)
    difference = (exact(0.3 + 1e-6, 0.2, 1.5) - exact(0.3 - 1e-6, 0.2, 1.5)) / 2e-6
    slope = jnp.diagonal(jax.jacrev(evaluate)(t, 0.2, 1.5))
    np.testing.assert_allclose(slope, [0, difference, 0], rtol=1e-8)
    differences = [exact(0.3, 0.2 + 1e-6, 1.5) - exact(0.3, 0.2 - 1e-6, 1.5)]
    differences += [exact(0.3, 0.2, 1.5 + 1e-6) - exact(0.3, 0.2, 1.5 - 1e-6)]
    for found, change in zip(numbers, differences, strict=True):
        np.testing.assert_allclose(found, [0, change / 2e-6, 0], rtol=1e-8)


# --- processes without a logsnr ---


def test_times_of_a_process_without_a_logsnr():
    """Uniform on all of [0, 1]; times that need a logsnr say so. A class may register another interval."""
    process = SDE(lambda x, t: -x, lambda x, t: 0.3)
    assert process.interval() == (0.0, 1.0)
    for times in (dj.UniformTimes(process), dj.StratifiedTimes(process), LowDiscrepancyTimes(process)):
        t = draw(times, jax.random.key(0), 2000)
        assert stats.kstest(t, "uniform").pvalue > 1e-3
        np.testing.assert_array_equal(density(times, jnp.array([-0.1, 0.4, 1.1])), [0, 1, 0])
    for make in (dj.process.LognormalTimes, LogsnrTimes):
        with pytest.raises(ValueError, match=r"process: these times need a logsnr.* got SDE"):
            make(process)
    low, high = dj.UniformTimes(CriticallyDamped()).quantile(jnp.array([0.0, 1.0]))
    assert 0 < low < 0.01
    assert high == 1


# --- grids ---

CLOCKS = {
    "uniform": lambda t, logsnr: t,
    "logsnr": lambda t, logsnr: logsnr,
    "edm": lambda t, logsnr: np.exp(-0.5 * logsnr / 7),
    "quadratic": lambda t, logsnr: np.sqrt(t),
    "snr": lambda t, logsnr: np.arcsinh((-0.5 * logsnr - np.log(0.5)) / 1.2),
    "angle": lambda t, logsnr: np.arctan(np.exp(-0.5 * logsnr)),
    "line": lambda t, logsnr: 1 / (1 + np.exp(0.5 * logsnr)),
}


@eqx.filter_jit
def _grids(process):
    """Each grid of n steps, and logsnr on it, under one jit."""
    grids = {(name, n): make(process, n) for name, make in ALL_GRIDS.items() for n in (1, 2, 1000)}
    return {which: (ts, process.logsnr(ts)) for which, ts in grids.items()}


@pytest.mark.parametrize("process", each_process(("vp", "ve", "rectified")))
def test_grids_descend_from_end_to_end_in_equal_steps(process):
    process = ALL_PROCESSES[process]()
    ends = [float(end) for end in process.interval()]
    for (name, n), (ts, logsnr) in jax.tree.map(np.asarray, _grids(process)).items():
        low, high = (0.0, 1.0) if name in ("angle", "line") else ends  # of flow maps, which end at the data
        assert ts.shape == (n + 1,)
        np.testing.assert_allclose(ts[[0, -1]], [high, low], rtol=1e-14)
        assert np.all(np.diff(ts) < 0)
        if name in CLOCKS:
            value = CLOCKS[name](ts, logsnr)
            np.testing.assert_allclose(value, np.linspace(value[0], value[-1], n + 1), rtol=1e-8, atol=1e-8)


def test_edm_grid_is_the_papers():
    """sigma_i of Karras et al. 2022, eq. 5, for i < N; on this clock it is both uniform and `edm_grid`."""
    process, n, rho = dj.EDM(), 18, 7.0
    i = np.arange(n)
    low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
    sigma = (high + i / (n - 1) * (low - high)) ** rho
    for grid in (dj.uniform_grid(process, n - 1), dj.edm_grid(process, n - 1)):
        np.testing.assert_allclose(process.sigma(grid), sigma, rtol=1e-9)
    coarse = process.sigma(dj.edm_grid(process, 10, rho=3.0)) ** (1 / 3)
    np.testing.assert_allclose(np.diff(coarse, 2), 0, atol=1e-9)


@pytest.mark.parametrize("shift", [3.0, 0.4])
def test_shifted_grid_is_stable_diffusion_threes(shift):
    """t -> shift t/(1 + (shift - 1) t) on a rectified clock from 1 to 0; elsewhere equal steps, sigma/alpha shifted."""
    tau = np.linspace(1, 0, 29)
    ts = shifted_grid(dj.Rectified(), 28, shift, ends=(1.0, 0.0))
    np.testing.assert_allclose(ts, shift * tau / (1 + (shift - 1) * tau), rtol=1e-12, atol=1e-15)
    process = dj.VariancePreserving()
    ts = np.asarray(shifted_grid(process, 20, shift, ends=(0.8, 0.2)))
    b = lambda t: 0.1 * t + 19.9 * t**2 / 2
    ratio = lambda t: np.sqrt(np.expm1(b(t)))  # sigma/alpha
    before = [optimize.brentq(lambda u, t=t: ratio(u) * shift - ratio(t), 1e-6, 1, xtol=1e-13) for t in ts]
    np.testing.assert_allclose(np.diff(before), (before[-1] - before[0]) / 20, rtol=1e-8)


@pytest.mark.parametrize("name", ALL_GRIDS)
def test_grids_have_the_ends_they_are_given(name):
    """sigma from 40 to 0.01 on EDM's clock, where nothing else changes; and ends that have no logsnr are refused."""
    process = dj.EDM()
    ends = tuple(process.time_from_logsnr(-2 * jnp.log(sigma)) for sigma in (40.0, 0.01))
    ts = ALL_GRIDS[name](process, 12, ends=ends)
    np.testing.assert_allclose(process.sigma(ts[jnp.array([0, -1])]), [40.0, 0.01], rtol=1e-12)
    assert np.all(np.diff(ts) < 0)
    for bad in ((0.2, 0.8), (0.5, 0.5), (1.2, 0.1), (0.5, -0.1), (float("nan"), 0.1)):
        with pytest.raises(ValueError, match=r"ends: must be 1 >= t_max > t_min >= 0"):
            ALL_GRIDS[name](process, 4, ends=bad)
    for bad in ((1.0, 0.1), (0.9, 0.0)):
        if name in ("logsnr", "snr") or (name == "edm" and bad[0] == 1):
            with pytest.raises(ValueError, match=r"ends: logsnr is infinite at t = .*inside process.interval"):
                ALL_GRIDS[name](dj.Rectified(), 4, ends=bad)
        else:
            ts = ALL_GRIDS[name](dj.Rectified(), 4, ends=bad)
            np.testing.assert_array_equal(ts[jnp.array([0, -1])], bad)
            assert np.all(np.diff(ts) < 0)


@pytest.mark.parametrize("name", ALL_GRIDS)
def test_grids_refuse_bad_numbers(name):
    for n in (0, -3):
        with pytest.raises(ValueError, match=rf"n: .*got {n}"):
            ALL_GRIDS[name](dj.Rectified(), n)
    for rho in (0.0, -1.0):
        with pytest.raises(ValueError, match=rf"rho: .*got {rho}"):
            dj.edm_grid(dj.Rectified(), 5, rho)
    for bad in (0.0, -1.0):
        for what, make in (("shift", shifted_grid), ("data_std", snr_grid)):
            with pytest.raises(ValueError, match=rf"{what}: .*got {bad}"):
                make(dj.Rectified(), 5, bad)
        with pytest.raises(ValueError, match=rf"width: .*got {bad}"):
            snr_grid(dj.Rectified(), 5, width=bad)
