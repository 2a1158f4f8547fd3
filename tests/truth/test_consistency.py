"""Consistency losses on levels: their exact optima, and the papers' settings worked out by hand."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, each_process

import diffjax as dj
from diffjax import flow_maps, losses
from diffjax.process import ImportanceTimes, LogsnrTimes

STD, LEVELS = 0.5, 1281
EDM = functools.partial(dj.EDM, 0.002, 80.0)


# --- the optimum on Gaussian data ---


def table_network(clock):
    """x0_hat = gain_i x at level i, which is that of the nearest of the clock's values."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        return params[jnp.argmin(jnp.abs(clock - c_noise[:, None]), axis=1)][:, None] * x

    return dj.Network(lambda *_: None, apply)


@functools.partial(jax.jit, static_argnums=1)
def best_gain(n, solver):
    """The gain of X(., 1, 0) with N levels, each level's set to the minimum of the loss, from the lowest up.

    The expectation over x0 and eps is exact by a cubature of degree 3, for the loss is quadratic in them.
    """
    process = EDM()
    levels = flow_maps.EDMLevels(process, n)
    parameterisation = dj.X0Prediction(STD)
    clock = parameterisation.noise_level(process, levels.time(jnp.arange(LEVELS)))
    diffusion = dj.Diffusion(table_network(clock), process, parameterisation)
    teacher = None if solver is None else dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), STD**2), process)
    x0 = jnp.sqrt(2.0) * jnp.array([[STD], [-STD], [0.0], [0.0]])
    eps = jnp.sqrt(2.0) * jnp.array([[0.0], [0.0], [1.0], [-1.0]])

    def settle(i, gains):
        def loss(gain):
            each = flow_maps.per_sample_consistency(
                diffusion,
                gains.at[i].set(gain),
                x0,
                eps,
                levels.time(i),
                levels.time(i - 1),
                teacher=teacher,
                solver=solver or "euler",
                target_params=gains,
                weighting=flow_maps.OverGap(),
            )
            return jnp.mean(each)

        slope = jax.vmap(jax.grad(loss))(jnp.array([0.0, 1.0]))
        return gains.at[i].set(-slope[0] / (slope[1] - slope[0]))

    gains = jax.lax.fori_loop(1, n, settle, jnp.zeros(LEVELS))
    return dj.make_flow_map(diffusion, gains, knows="zero").move(jnp.ones((1, 1)), 1.0, 0.0)[0, 0]


COUNTS = [11, 21, 41, 81, 161, 321, 641, 1281]
EULER = [0.753, 0.868, 0.931, 0.965, 0.982, 0.991, 0.9956, 0.9978]


@pytest.mark.parametrize("solver", [None, "euler", "heun"], ids=["training", "euler", "heun"])
def test_the_optimum_is_the_solvers_map_on_the_levels(solver):
    """Training and Euler distillation: Euler's N - 1 steps; Heun distillation: Heun's, of the second order."""
    counts = COUNTS if solver is None else COUNTS[:4] + COUNTS[-1:]
    true = math.sqrt((STD**2 + 0.002**2) / (STD**2 + 80.0**2))
    ratios = np.array([best_gain(n, solver) for n in counts]) / true
    for n, ratio in zip(counts, ratios, strict=True):
        sigma = (np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), n)) ** 7
        slope = lambda s: s / (STD**2 + s**2)  # d log xt/d sigma along the flow
        h = np.diff(sigma)
        gains = 1 - h * slope(sigma[1:])
        if solver == "heun":
            gains = 1 - h / 2 * (slope(sigma[1:]) + slope(sigma[:-1]) * gains)
        np.testing.assert_allclose(ratio, np.prod(gains) / true, rtol=1e-9)
    if solver == "heun":
        np.testing.assert_allclose(ratios[:3], [1.175, 1.039, 1.0093], atol=6e-4)
        np.testing.assert_allclose(ratios[-1] - 1, 8.6e-6, rtol=0.01)
    else:
        np.testing.assert_allclose(ratios, [EULER[COUNTS.index(n)] for n in counts], atol=6e-4)


# --- the exact map ---

DATA = (np.array([0.4, -0.7]), np.array([0.3, 1.4]))


def exact_network(distribution, process):
    """The exact map to t = 0 plus params times a smooth wave of (z, phi), for EDMPrediction(1.0, clock="angle").

    That network is told z = xt/sqrt(alpha^2 + sigma^2) and phi: the cosine schedule's state and time.
    """
    first = dj.process.angle(process, jnp.zeros(()))
    exact = dj.exact_flow_map(distribution, dj.Cosine())

    def apply(params, z, phi, cond=None, *, key=None):
        phi = jnp.clip(phi, first + 1e-12)  # where a pair ends at t = 0 nothing is looked at
        z0 = exact.move(z, 2 / jnp.pi * phi, jnp.broadcast_to(2 / jnp.pi * first, phi.shape))
        gap = (phi - first)[:, None]
        wave = jnp.sin(params["a"] * z[:, ::-1] + params["b"] * phi[:, None] + params["c"])
        return -(jnp.cos(gap) * z - z0) / jnp.sin(gap) + params["size"] * wave

    return dj.Network(lambda *_: None, apply)


def exact_student(name, distribution=None):
    process = ALL_PROCESSES[name]()
    distribution = dj.Gaussian(*map(jnp.asarray, DATA)) if distribution is None else distribution
    network = exact_network(distribution, process)
    return distribution, dj.Diffusion(network, process, dj.parameterisation.EDMPrediction(1.0, clock="angle"))


def waves(seed, n):
    a, b, c = np.random.default_rng(seed).normal(size=(3, n, 2))
    return [{"a": jnp.asarray(x), "b": jnp.asarray(y), "c": jnp.asarray(z)} for x, y, z in zip(a, b, c, strict=True)]


PAIRS = jnp.array([1.0, 0.8, 0.3, 0.02]), jnp.array([0.7, 0.4, 0.02, 0.0])


@pytest.mark.parametrize("name", each_process(("cosine", "edm")))
def test_distillation_of_the_exact_flow_has_its_optimum_at_the_exact_map(name):
    """Loss and gradient, along random smooth directions of the map, are zero; those of an Euler step are not."""
    distribution, diffusion = exact_student(name)
    process = diffusion.process
    x0, eps = np.random.default_rng(1).normal(size=(2, 4, 2))

    @eqx.filter_jit
    def slopes(process, directions):
        def loss(size, direction, teacher, solver):
            params = direction | {"size": size}
            return jnp.mean(
                flow_maps.per_sample_consistency(
                    dj.Diffusion(diffusion.network, process, diffusion.parameterisation),
                    params,
                    jnp.asarray(x0),
                    jnp.asarray(eps),
                    *(time.astype(float) for time in PAIRS),
                    teacher=teacher,
                    solver=solver,
                    weighting=flow_maps.unweighted,
                )
            )

        of = lambda *teacher: jax.vmap(lambda d: jnp.stack(jax.value_and_grad(loss)(0.0, d, *teacher)))(directions)
        exact = dj.exact_flow_map(distribution, process)
        return of(exact, "map"), of(dj.exact_denoiser(distribution, process), "euler")

    directions = jax.tree.map(lambda *each: jnp.stack(each), *waves(2, 3))
    at_map, at_step = slopes(process, directions)
    assert np.all(np.abs(at_map) < 1e-11)
    assert np.all(np.abs(at_step) > 1e-5)


def test_the_target_is_stopped_and_may_have_parameters_of_its_own():
    _, diffusion = exact_student("edm")
    (one, other), (x0, eps) = waves(3, 2), np.random.default_rng(4).normal(size=(2, 4, 2))

    @jax.jit
    def slopes(one, other):
        def loss(params, target):
            pairs = [time.astype(float) for time in PAIRS]
            each = flow_maps.per_sample_consistency(
                diffusion,
                params,
                jnp.asarray(x0),
                jnp.asarray(eps),
                *pairs,
                target_params=target,
                weighting=flow_maps.unweighted,
            )
            return jnp.mean(each)

        same = jax.value_and_grad(loss)(one, None), jax.value_and_grad(loss)(one, one)
        return same, jax.value_and_grad(loss, argnums=(0, 1))(one, other)

    one, other = one | {"size": jnp.asarray(0.3)}, other | {"size": jnp.asarray(-0.2)}
    (default, given), (value, (of_params, of_target)) = slopes(one, other)
    jax.tree.map(np.testing.assert_array_equal, default, given)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(of_target))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(of_params))
    assert abs(value - default[0]) > 1e-3
    # by hand, from the map that samplers use: the difference of two points of the same x0 and eps
    process, t, s = diffusion.process, *(time.astype(float) for time in PAIRS)
    map_of = lambda params: dj.make_flow_map(diffusion, params, knows="zero")
    xt, xs = (dj.perturb(process, jnp.asarray(x0), jnp.asarray(eps), time) for time in (t, s))
    ahead = map_of(one).move(xt, t, jnp.zeros(4))
    behind = jnp.where(s[:, None] > 0, map_of(other).move(xs, jnp.where(s > 0, s, 0.5), jnp.zeros(4)), xs)
    np.testing.assert_allclose(value, np.mean((ahead - behind) ** 2), rtol=1e-10)


def test_the_boundary_needs_no_answer_of_the_network():
    """The velocity of a variance preserving process is infinite at t = 0: there X(x, 0, 0) is x all the same."""
    network = dj.Network(lambda *_: None, lambda params, x, c, cond=None, *, key=None: params * x)
    diffusion = dj.Diffusion(network, dj.VariancePreserving(), dj.VelocityPrediction())
    loss = lambda params: jnp.sum(
        flow_maps.per_sample_consistency(
            diffusion, params, jnp.ones((2, 1)), jnp.ones((2, 1)), 0.5, 0.0, weighting=flow_maps.unweighted
        )
    )
    value, slope = jax.jit(jax.value_and_grad(loss))(0.1)
    assert np.isfinite(value)
    assert np.isfinite(slope)


# --- penalties that are no squares have no mean as their optimum ---


def test_adaptive_weights_move_the_optimum_on_skewed_data():
    """From pure noise to data of mean .6 and median .035: square, norm (p = 1/2) and logarithm (p = 1)."""
    normal = lambda n: 0.062 * jax.scipy.special.ndtri((jnp.arange(float(n)) + 0.5) / n)[:, None]
    x0 = jnp.concatenate([normal(700), 2 + normal(300)])
    network = dj.Network(lambda *_: None, lambda params, x, c, cond=None, *, key=None: params + 0 * x)
    diffusion = dj.Diffusion(network, dj.Cosine(), dj.X0Prediction())
    answers = jnp.linspace(-0.1, 0.7, 801)

    def best(penalty):
        loss = lambda answer: jnp.mean(
            flow_maps.per_sample_consistency(
                diffusion, answer, x0, 0 * x0, 1.0, 0.0, penalty=penalty, weighting=flow_maps.unweighted
            )
        )
        return answers[jnp.argmin(jax.jit(jax.vmap(loss))(answers))]

    np.testing.assert_allclose(best(losses.mean_square), 0.6, atol=2e-3)
    np.testing.assert_allclose(best(flow_maps.root_mean_square), 0.035, atol=2e-3)
    np.testing.assert_allclose(best(losses.PseudoHuber(0.00054)), 0.035, atol=2e-3)
    logarithm = lambda error: jnp.log(losses.mean_square(error) + 0.01**2)
    np.testing.assert_allclose(best(logarithm), 0.0, atol=2e-3)


def test_the_plain_norm_and_its_gradient_at_zero():
    errors = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(flow_maps.root_mean_square(errors), [5 / np.sqrt(2), 0.0])
    slope = jax.grad(lambda e: jnp.sum(flow_maps.root_mean_square(e)))(errors)
    np.testing.assert_allclose(slope, [[0.6 / np.sqrt(2), 0.8 / np.sqrt(2)], [0.0, 0.0]])


# --- levels ---


def edm_sigma(i, n, low=0.002, high=80.0):
    return (low ** (1 / 7) + np.asarray(i) / (n - 1) * (high ** (1 / 7) - low ** (1 / 7))) ** 7


@pytest.mark.parametrize("name", each_process(("cosine", "edm", "own", "ddpm")))
def test_levels_are_edms_between_data_and_noise(name):
    process, n = ALL_PROCESSES[name](), 18
    ratio = lambda t: np.asarray(process.sigma(t) / process.alpha(t))
    t = flow_maps.EDMLevels(process, n).time(jnp.arange(n))
    low, high = (float(ratio(jnp.asarray(end))) for end in (0.0, 1.0))
    assert t[0] == 0
    assert t[-1] == 1
    assert np.all(np.diff(t) > 0)
    said = edm_sigma(np.arange(n), n, max(low, 0.002), min(high, 80.0))
    np.testing.assert_allclose(ratio(t[1:-1]), said[1:-1], rtol=1e-6)
    weight = flow_maps.OverGap()(process, dj.X0Prediction(), t[1:], t[:-1])
    assert np.all(np.isfinite(weight) & (weight > 0))
    gaps = np.diff(ratio(t))
    np.testing.assert_allclose(weight[:-1], 1 / gaps[:-1], rtol=1e-6)
    if high <= 80.001:
        np.testing.assert_allclose(weight[-1], 1 / gaps[-1], rtol=1e-6)


def counted(levels, n, draws=200_000):
    """The share of the draws of each pair, from evenly spread numbers; each must be one of neighbours."""
    grid = np.asarray(levels.time(jnp.arange(n)))
    t, s = (np.asarray(time) for time in levels.quantile((jnp.arange(float(draws)) + 0.5) / draws))
    i = np.argmin(np.abs(grid[:, None] - s[:1000]), axis=0)
    np.testing.assert_array_equal(grid[i], s[:1000])
    place = np.searchsorted(grid, s)
    np.testing.assert_array_equal(grid[place], s)
    np.testing.assert_array_equal(grid[place + 1], t)
    return np.bincount(place, minlength=n - 1) / draws


@pytest.mark.parametrize("n", [2, 11, 41])
def test_levels_are_drawn_as_the_papers_say(n):
    uniform = counted(flow_maps.EDMLevels(EDM(), n), n)
    np.testing.assert_allclose(uniform, 1 / (n - 1), atol=2e-5)
    sigma = edm_sigma(np.arange(n), n)
    erf = np.array([math.erf((math.log(s) + 1.1) / (math.sqrt(2) * 2.0)) for s in sigma])
    said = np.diff(erf) / (erf[-1] - erf[0])
    drawn = counted(flow_maps.EDMLevels(EDM(), n, lognormal=(-1.1, 2.0)), n)
    np.testing.assert_allclose(drawn, said, atol=2e-5)


def test_pairs_of_a_grid_are_neighbours_each_as_likely():
    ts = jnp.array([1.0, 0.6, 0.2, 0.0])
    t, s = flow_maps.GridLevels(ts)(jax.random.key(0), 3000)
    place = np.searchsorted(-np.asarray(ts), -np.asarray(t))
    np.testing.assert_array_equal(ts[place + 1], s)
    assert np.all(np.abs(np.bincount(place, minlength=3) - 1000) < 4.5 * np.sqrt(3000 * 2 / 9))


def test_curricula_are_the_papers():
    steps = 8000
    for k in (0, 1, 700, 4000, 7999, 8000):
        n = math.ceil(math.sqrt(k / steps * (151**2 - 2**2) + 2**2) - 1) + 1
        assert flow_maps.ct_levels(k, steps) == n
        np.testing.assert_allclose(flow_maps.ct_decay(n), math.exp(2 * math.log(0.9) / n))
        n = min(10 * 2 ** math.floor(k / math.floor(steps / (math.log2(1280 / 10) + 1))), 1280) + 1
        assert flow_maps.ict_levels(k, steps) == n
    assert [int(flow_maps.ict_levels(k, 90, s0=3, s1=20)) for k in (0, 24, 48, 72, 90)] == [4, 7, 13, 21, 21]
    assert flow_maps.ct_levels(30, 60, s0=4, s1=9) == math.ceil(math.sqrt(0.5 * (100 - 16) + 16) - 1) + 1
    np.testing.assert_allclose(flow_maps.ct_decay(7, s0=3.0, mu0=0.8), 0.8 ** (3 / 7))


def test_ect_closes_the_gap_by_stages():
    times = dj.process.LognormalTimes(EDM(), -1.1, 2.0)
    sigma = times.process.sigma
    for stage, q in ((0, 2.0), (3, 2.0), (2, 4.0)):
        levels = flow_maps.ECTLevels(times, stage, q=q)
        t, s = levels(jax.random.key(0), 64)
        rho = np.asarray(sigma(t))
        said = np.maximum(rho * (1 - (1 + 8 / (1 + np.exp(rho))) / q ** (stage + 1)), 0.002)
        np.testing.assert_allclose(sigma(s), said, rtol=1e-8)
        assert np.all(s < t)
        assert np.any(s == 0) == np.any(said == 0.002)
    np.testing.assert_array_equal(t, times(jax.random.key(0), 64)[0])
    narrow = flow_maps.ECTLevels(times, 5, q=3.0, k=2.0, b=0.5).second(t)
    np.testing.assert_allclose(sigma(narrow), rho * (1 - (1 + 2 / (1 + np.exp(0.5 * rho))) / 3**6), rtol=1e-8)
    member = dj.parameterisation.EDMPrediction(0.5)
    np.testing.assert_allclose(flow_maps.edm_weighting(times.process, member, t, s), 1 / rho**2 + 4)
    np.testing.assert_array_equal(flow_maps.unweighted(times.process, member, t, s), np.ones(64))
    cosine = flow_maps.ECTLevels(dj.process.LognormalTimes(dj.Cosine(), -1.1, 2.0), 4)
    t, s = cosine(jax.random.key(1), 64)
    assert np.all((s < t) & (s >= 0))


# --- what is refused ---


def refused(words, call, *args, **kwargs):
    with pytest.raises(ValueError, match=words):
        call(*args, **kwargs)


def test_what_no_consistency_model_can_be_is_refused_with_a_remedy():
    network = dj.Network(lambda *_: None, lambda params, x, c, cond=None, *, key=None: x)
    process, x = dj.Cosine(), jnp.ones((2, 3))
    of = lambda prediction: dj.Diffusion(network, process, prediction)
    pair = functools.partial(flow_maps.per_sample_consistency, weighting=flow_maps.unweighted)
    for prediction in (dj.EpsPrediction(), dj.parameterisation.ScorePrediction()):
        refused(
            "parameterisation: .* says nothing of x0 at t = 1.*EDMPrediction",
            pair,
            of(prediction),
            {},
            x,
            x,
            0.5,
            0.1,
        )
    student = of(dj.VPrediction())
    refused("s: a consistency model goes from t to s <= t", pair, student, {}, x, x, jnp.array([0.5, 0.2]), 0.3)
    data = dj.Gaussian(jnp.zeros(3), 1.0)
    for other in (dj.VariancePreserving(), dj.Cosine(shift=1.0)):
        teacher = dj.exact_denoiser(data, other)
        refused("teacher: .*retime", pair, student, {}, x, x, 0.5, 0.1, teacher=teacher)
    own = dj.make_denoiser(dj.Diffusion(network, dj.Cosine(shift=1.0), dj.VPrediction()), {})
    refused("teacher: .*retime", pair, student, {}, x, x, 0.5, 0.1, teacher=own)
    same = dj.exact_denoiser(data, dj.Cosine())
    assert np.all(np.isfinite(pair(student, {}, x, x, 0.5, 0.1, teacher=same)))
    refused("solver: one of euler, heun, map", pair, student, {}, x, x, 0.5, 0.1, teacher=same, solver="rk4")
    refused("teacher: solver='map' needs a flow map", pair, student, {}, x, x, 0.5, 0.1, teacher=same, solver="map")
    refused("ts: must descend", flow_maps.GridLevels, jnp.array([0.0, 1.0]))
    refused("ts: must end at 0", flow_maps.GridLevels, jnp.array([1.0, 0.1]))
    refused("n: at least 2", flow_maps.EDMLevels, process, 1)
    refused("rho: must be positive", flow_maps.EDMLevels, process, 4, rho=0.0)
    refused("sigma_min: ", flow_maps.EDMLevels, process, 4, sigma_min=0.0)
    refused("sigma_min: ", flow_maps.EDMLevels, process, 4, sigma_max=0.002)
    refused("lognormal: ", flow_maps.EDMLevels, process, 4, lognormal=(1.0,))
    refused("lognormal: ", flow_maps.EDMLevels, process, 4, lognormal=(0.0, 0.0))
    times = dj.process.LognormalTimes(process)
    refused("stage: ", flow_maps.ECTLevels, times, -1)
    refused("q: ", flow_maps.ECTLevels, times, q=1.0)
    refused("k: ", flow_maps.ECTLevels, times, k=-1.0)
    refused("b: ", flow_maps.ECTLevels, times, b=-1.0)
    refused("times: ", flow_maps.ECTLevels, ImportanceTimes(LogsnrTimes(process)))
    refused("sigma_max: ", flow_maps.OverGap, 0.0)
    refused("steps: a positive", flow_maps.ct_levels, 0, 0)
    refused("steps: at least 8", flow_maps.ict_levels, 0, 7)
    assert flow_maps.ict_levels(7, 8) == 1281
    refused("s0: ", flow_maps.ct_levels, 0, 10, s0=1)
    refused("s0: ", flow_maps.ict_levels, 0, 10, s0=30, s1=20)
    refused("mu0: ", flow_maps.ct_decay, 5, mu0=1.0)
