"""Training times against their own densities by quadrature, and sampling grids against what they promise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_GRIDS, ALL_PROCESSES, ALL_TIMES, each_process
from scipy import stats

import diffjax as dj

PAIRS = [(times, process) for times in ALL_TIMES for process in ("vp", "rectified")] + [("lognormal", "karras")]
INDEPENDENT = [times for times in ALL_TIMES if times != "stratified"]


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
    np.testing.assert_array_equal(correction, 1)
    return np.asarray(t)


# --- densities and quantiles ---


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_quantile_inverts_the_integral_of_the_density(name, process):
    """Between quantiles u and u' lies the mass u' - u, by Gauss-Legendre; so the whole density holds 1."""
    process = ALL_PROCESSES[process]()
    times = ALL_TIMES[name](process)
    low, high = (float(end) for end in dj.interval(process))
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


@pytest.mark.parametrize("process", ["vp", "rectified", "karras", "cosine-shifted"])
def test_densities_are_the_named_ones(process):
    process = ALL_PROCESSES[process]()
    low, high = (float(end) for end in dj.interval(process))
    u = np.linspace(0.01, 0.99, 50)
    uniform = quantile(dj.UniformTimes(process), jnp.asarray(u))
    np.testing.assert_allclose(uniform, low + u * (high - low), rtol=1e-12)
    noise = lambda t: -0.5 * np.asarray(dj.logsnr(process, jnp.asarray(t)))  # log(sigma/alpha)
    a, b = ((noise(np.full(50, end))[0] + 1.0) / 0.8 for end in (low, high))
    lognormal = np.asarray(quantile(dj.LognormalTimes(process, -1.0, 0.8), jnp.asarray(u)))
    np.testing.assert_allclose(noise(lognormal), stats.truncnorm(a, b, -1.0, 0.8).ppf(u), rtol=1e-6, atol=1e-8)
    t = np.asarray(quantile(dj.LogitNormalTimes(process, 0.3, 1.2), jnp.asarray(u)))
    with np.errstate(divide="ignore"):
        a, b = ((np.log(end) - np.log1p(-end) - 0.3) / 1.2 for end in (low, high))
    np.testing.assert_allclose(np.log(t / (1 - t)), stats.truncnorm(a, b, 0.3, 1.2).ppf(u), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ALL_TIMES)
def test_density_is_zero_outside_the_interval(name):
    process = dj.Rectified()
    low, high = (float(end) for end in dj.interval(process))
    outside = density(ALL_TIMES[name](process), jnp.array([low / 2, (1 + high) / 2]))
    np.testing.assert_array_equal(outside, 0)


def test_draws_follow_the_density():
    grid = np.linspace(0, 1, 2001)

    @jax.jit
    def drawn(key):
        members = {name: ALL_TIMES[name](dj.Karras()) for name in INDEPENDENT}
        middles = jnp.asarray((grid[1:] + grid[:-1]) / 2)
        return {name: (times(key, 4000)[0], times.density(middles)) for name, times in members.items()}

    for t, density in drawn(jax.random.key(0)).values():
        assert stats.kstest(t, stats.rv_histogram((np.asarray(density), grid)).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["uniform", "stratified"])
def test_a_mean_over_draws_is_the_integral(name):
    """E[f(t)] is the mean of f over the interval; stratified draws are far closer to it than independent ones."""
    times, n = ALL_TIMES[name](dj.Rectified()), 4000
    low, high = (float(end) for end in dj.interval(dj.Rectified()))
    exact = (np.exp(high) - np.exp(low)) / (high - low)
    t = draw(times, jax.random.key(2), n)
    error = abs(np.mean(np.exp(t)) - exact)
    deviation = np.exp(np.linspace(low, high, 1001)).std()
    assert error < (4.5 * deviation / np.sqrt(n) if name == "uniform" else 2 / n)


def test_each_stratified_time_is_uniform_over_keys():
    times = dj.StratifiedTimes(dj.Karras())
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
    low, high = (float(end) for end in dj.interval(process))
    rng = np.random.default_rng(0)
    for seed in range(3):
        key = jax.random.key(seed)
        index = rng.permutation(total)
        whole = in_eights(times, key, np.arange(total))
        parts = in_eights(times, key, index)
        np.testing.assert_allclose(parts, whole[index], rtol=1e-12)
        strata = np.floor((np.sort(whole) - low) / (high - low) * total)
        np.testing.assert_array_equal(strata, np.arange(total))


@pytest.mark.parametrize("name", ALL_TIMES)
def test_a_time_depends_on_its_global_index_alone(name):
    times, key = ALL_TIMES[name](dj.VariancePreserving()), jax.random.key(9)
    whole = in_eights(times, key, np.arange(24))
    assert len(np.unique(whole)) == 24
    low, high = dj.interval(dj.VariancePreserving())
    assert np.all((whole >= low) & (whole <= high))
    index = np.array([17, 3, 4, 5, 23, 0, 9, 11])
    np.testing.assert_allclose(draw(times, key, 8, index, 24), whole[index], rtol=1e-12)
    assert not np.allclose(draw(times, jax.random.key(10), 8, index, 24), whole[index])


def test_times_refuse_a_spread_that_is_not_positive():
    for make in (dj.LognormalTimes, dj.LogitNormalTimes):
        for std in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=rf"std: .*got {std}"):
                make(dj.Karras(), 0.0, std)


# --- grids ---

CLOCKS = {
    "uniform": lambda t, logsnr: t,
    "logsnr": lambda t, logsnr: logsnr,
    "karras": lambda t, logsnr: np.exp(-0.5 * logsnr / 7),
}


@eqx.filter_jit
def _grids(process):
    """Each grid of n steps, and logsnr on it, under one jit."""
    grids = {(name, n): make(process, n) for name, make in ALL_GRIDS.items() for n in (1, 2, 1000)}
    return {which: (ts, dj.logsnr(process, ts)) for which, ts in grids.items()}


@pytest.mark.parametrize("process", each_process())
def test_grids_descend_from_end_to_end_in_equal_steps(process):
    process = ALL_PROCESSES[process]()
    low, high = (float(end) for end in dj.interval(process))
    for (name, n), (ts, logsnr) in jax.tree.map(np.asarray, _grids(process)).items():
        assert ts.shape == (n + 1,)
        np.testing.assert_allclose(ts[[0, -1]], [high, low], rtol=1e-14)
        assert np.all(np.diff(ts) < 0)
        value = CLOCKS[name](ts, logsnr)
        np.testing.assert_allclose(value, np.linspace(value[0], value[-1], n + 1), rtol=1e-8, atol=1e-8)


def test_edm_grid_is_the_papers():
    """sigma_i of Karras et al. 2022, eq. 5, for i < N; on this clock it is both uniform and `karras_grid`."""
    process, n, rho = dj.Karras(), 18, 7.0
    i = np.arange(n)
    low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
    sigma = (high + i / (n - 1) * (low - high)) ** rho
    for grid in (dj.uniform_grid(process, n - 1), dj.karras_grid(process, n - 1)):
        np.testing.assert_allclose(process.sigma(grid), sigma, rtol=1e-9)
    coarse = process.sigma(dj.karras_grid(process, 10, rho=3.0)) ** (1 / 3)
    np.testing.assert_allclose(np.diff(coarse, 2), 0, atol=1e-9)


@pytest.mark.parametrize("name", ALL_GRIDS)
def test_grids_refuse_bad_numbers(name):
    for n in (0, -3):
        with pytest.raises(ValueError, match=rf"n: .*got {n}"):
            ALL_GRIDS[name](dj.Rectified(), n)
    for rho in (0.0, -1.0):
        with pytest.raises(ValueError, match=rf"rho: .*got {rho}"):
            dj.karras_grid(dj.Rectified(), 5, rho)
