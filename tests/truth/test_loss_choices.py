"""What a denoising loss can be made of: noise levels, integrals over logsnr, learned weights, penalties, couplings."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import CORE_PROCESSES
from scipy import optimize, stats

import diffjax as dj
from diffjax import losses

# --- noise levels ---


def test_noise_conditional_sum_in_closed_form():
    """s = -g c_in xt/sigma under VE on data N(0, v I): each level's term is d/2 [ (g c)^2 v + (g c sigma - 1)^2 ]."""
    n, d, gain, variance = 20000, 3, 0.8, 0.4
    process, ts = dj.VarianceExploding(0.1, 5.0), np.linspace(1, 0, 4)
    apply = lambda params, x, c_noise, cond=None, *, key=None: -params * x / jnp.exp(4 * c_noise)[:, None]
    diffusion = dj.Diffusion(dj.Network(lambda *_: None, apply), process, dj.parameterisation.ScorePrediction())
    x0 = jnp.asarray(np.sqrt(variance) * np.random.default_rng(0).normal(size=(n, d)))

    @jax.jit
    def everything(key, gain):
        times = losses.LevelTimes(jnp.asarray(ts))
        plain = dj.denoising_loss(diffusion, gain, key, x0, times=times, weighting=losses.constant)
        return (
            losses.noise_conditional_sum(diffusion, gain, key, x0, ts=ts),
            losses.noise_conditional_loss(diffusion, gain, key, x0, ts=ts),
            plain,
        )

    (whole, parts), (drawn, each), (plain, _) = jax.tree.map(np.asarray, everything(jax.random.key(0), gain))
    sigma = 0.1 * 50**ts
    c = gain / np.sqrt(1 + sigma**2)
    terms = d / 2 * (c**2 * variance + (c * sigma - 1) ** 2)
    np.testing.assert_allclose(parts["per_level"], terms, rtol=0.03)
    np.testing.assert_allclose(whole, parts["per_level"].sum(), rtol=1e-12)
    assert abs(whole - terms.sum()) < 4.5 * parts["per_sample"].std() / np.sqrt(n)
    assert abs(drawn - terms.sum()) < 4.5 * each["per_sample"].std() / np.sqrt(n)
    assert abs(drawn / terms.sum() - 1) < 0.05
    np.testing.assert_allclose(drawn, 4 * d / 2 * plain, rtol=1e-12)
    np.testing.assert_allclose(drawn, each["per_sample"].mean(), rtol=1e-12)


def test_levels_are_drawn_alike_and_by_index():
    ts, n = jnp.array([0.9, 0.2, 0.5]), 3000
    times = losses.LevelTimes(ts)
    t, correction = times(jax.random.key(1), n)
    counts = np.array([np.sum(np.asarray(t) == level) for level in np.asarray(ts)])
    assert counts.sum() == n
    assert np.all(np.abs(counts - n / 3) < 4.5 * np.sqrt(n * 2 / 9))
    assert np.all(np.asarray(correction) == 1)
    index = jnp.array([5, 2999, 0])
    np.testing.assert_array_equal(times(jax.random.key(1), 3, index=index)[0], t[index])
    for bad, message in ((jnp.array([0.5, 1.5]), "times lie in"), (jnp.zeros(0), "at least one time")):
        with pytest.raises(ValueError, match=f"ts: {message}"):
            losses.LevelTimes(bad)


# --- weights ---


@pytest.mark.parametrize("name", CORE_PROCESSES)
def test_over_logsnr_integrates_alike_on_every_schedule(name):
    """int -lambda' sigmoid(b - lambda) dt = softplus(b - lambda_min) - softplus(b - lambda_max)."""
    process, bias = CORE_PROCESSES[name](), 1.5
    low, high = (float(end) for end in process.interval())
    u = np.linspace(-14, 14, 4001)
    t = low + (high - low) / (1 + np.exp(-u))
    weighting = losses.OverLogsnr(losses.Sigmoid(bias))
    w, ends = eqx.filter_jit(lambda t: (weighting(process, dj.EpsPrediction(), t), process.logsnr(t)))(jnp.asarray(t))
    integral = np.trapezoid(np.asarray(w) * (t - low) * (high - t) / (high - low), u)
    exact = np.logaddexp(0, bias - float(ends[-1])) - np.logaddexp(0, bias - float(ends[0]))
    np.testing.assert_allclose(integral, exact, rtol=1e-5)


def test_soft_min_snr_is_a_sigmoid():
    process, t = dj.Cosine(), jnp.linspace(0.01, 0.99, 50)
    one, other = losses.SoftMinSNR(7.0), losses.Sigmoid(float(np.log(7.0)))
    np.testing.assert_allclose(*(w(process, dj.EpsPrediction(), t) for w in (one, other)), rtol=1e-12)
    over = losses.OverLogsnr(losses.constant)(process, dj.EpsPrediction(), t)
    np.testing.assert_allclose(over, losses.likelihood_weighting(process, dj.EpsPrediction(), t), rtol=1e-14)


def test_learned_uncertainty_is_the_log_of_the_expected_loss():
    """Each level is seen twice, at L(1 +- 0.6): the unique minimum is at u = log L, where the loss is E[1 + log L]."""
    process, member, u = dj.VariancePreserving(), dj.VPrediction(), losses.Uncertainty()
    low, high = (float(end) for end in process.interval())
    t = np.repeat(np.linspace(low, high, 400), 2)
    logsnr = np.asarray(process.logsnr(jnp.asarray(t)))
    level = np.exp(-3 + 2 * np.tanh(logsnr / 6) + 0.5 * np.cos(logsnr / 5))
    aux = {"t": jnp.asarray(t), "per_sample": jnp.asarray(level * np.tile([1.6, 0.4], 400))}
    start, diffusion = u.init(), dj.Diffusion(dj.Network(None, None), process, member)  # no network is called
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(start))
    first, after = losses.uncertainty_loss(diffusion, start, aux, uncertainty=u)
    np.testing.assert_allclose(first, level.mean(), rtol=1e-6)
    np.testing.assert_array_equal(after["t"], t)

    unravel = lambda theta: {"bias": theta[0], "weights": theta[1:]}

    @jax.jit
    def loss(theta):
        value, out = losses.uncertainty_loss(diffusion, unravel(theta), aux, uncertainty=u)
        return value, out["uncertainty"]

    gradient = jax.jit(jax.value_and_grad(lambda theta: loss(theta)[0]))
    found = optimize.minimize(gradient, np.zeros(1 + 2 * u.waves), jac=True, method="BFGS", options={"gtol": 1e-7})
    value, learned = jax.tree.map(np.asarray, loss(jnp.asarray(found.x)))
    np.testing.assert_allclose(learned, np.log(level), atol=0.02)
    np.testing.assert_allclose(value, np.mean(1 + np.log(level)), atol=1e-4)
    with pytest.raises(ValueError, match="waves: at least 1 is needed, got 0"):
        losses.Uncertainty(0)


# --- penalties ---


def test_pseudo_huber():
    """sqrt(m + c^2) - c by hand; m/(2c) for small errors, also in float32, sqrt(m) - c for large; smooth at 0."""
    c, rng = 0.03, np.random.default_rng(1)
    error = rng.normal(size=(5, 2, 3, 1)) * 10.0 ** np.arange(-2, 3)[:, None, None, None]
    m = np.mean(error**2, axis=(1, 2, 3))
    run = eqx.filter_jit(lambda penalty, e: (penalty(e), jax.grad(lambda e: jnp.sum(penalty(e)))(e)))
    value, gradient = run(losses.PseudoHuber(c), jnp.asarray(error))
    np.testing.assert_allclose(value, np.sqrt(m + c**2) - c, rtol=1e-10)
    slope = error / np.sqrt(m + c**2)[:, None, None, None] / 6
    np.testing.assert_allclose(gradient, slope, rtol=1e-10)
    norm = np.sqrt(6 * m + 6 * c**2) - c * np.sqrt(6)  # Song & Dhariwal's, with C = c sqrt(d)
    np.testing.assert_allclose(np.asarray(value) * np.sqrt(6), norm, rtol=1e-10)
    small = np.float32(error * 1e-8 / np.sqrt(m)[:, None, None, None])  # c + 1e-16/2c is c in float32
    value, gradient = run(losses.PseudoHuber(c), jnp.asarray(small))
    assert value.dtype == gradient.dtype == jnp.float32
    np.testing.assert_allclose(value, 1e-16 / (2 * c), rtol=1e-5)
    value, gradient = run(losses.PseudoHuber(c), jnp.zeros_like(small))
    assert np.all(np.asarray(value) == 0)
    assert np.all(np.asarray(gradient) == 0)
    value, _ = run(losses.PseudoHuber(1e-6), jnp.asarray(error))
    np.testing.assert_allclose(value, np.sqrt(m), rtol=1e-3)


# --- couplings ---

BATCH, BATCHES = 32, 150
CENTRES = np.array([[2.0, 0.0], [-2.0, 1.0]])


def batches(seed):
    """x0 [BATCHES, BATCH, 2] about a centre for each class, eps of the same shape, labels [BATCHES, BATCH]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (BATCHES, BATCH))
    x0 = CENTRES[labels] + 0.5 * rng.normal(size=(BATCHES, BATCH, 2))
    return jnp.asarray(x0), jnp.asarray(rng.normal(size=x0.shape)), jnp.asarray(labels)


def is_standard_normal(batched, of_class):
    """Whether the noise of one class has mean 0 and covariance I within 4.5 standard errors, over batches [n, b, 2]
    of which each may hold dependent draws."""
    moments = np.concatenate([batched, batched**2 - 1, np.prod(batched, axis=-1, keepdims=True)], axis=-1)
    each = np.sum(moments * of_class[..., None], axis=1)  # its mean is 0 for independent batches
    score = each.mean(0) / (each.std(0) / np.sqrt(len(each)))
    return bool(np.all(np.abs(score) < 4.5))


def respects_conditions(pair):
    """pair(keys, x0, eps, labels) on a batch of batches: respecting the labels keeps N(0, I) given the class, lowers
    the cost, and ignoring them does not keep it."""
    x0, eps, labels = batches(2)
    keys = jax.random.split(jax.random.key(3), BATCHES)
    aware, naive = (np.asarray(pair(keys, x0, eps, cond)) for cond in (labels, jnp.zeros_like(labels)))
    x0, eps, labels = (np.asarray(v) for v in (x0, eps, labels))
    for k in range(2):
        assert is_standard_normal(eps, labels == k)
        assert is_standard_normal(aware, labels == k)
        assert not is_standard_normal(naive, labels == k)
    cost = lambda e: np.mean(np.sum((x0 - e) ** 2, axis=-1))
    assert cost(naive) < cost(aware) < 0.9 * cost(eps)
    for row, before, which in zip(aware, eps, labels, strict=True):  # noise comes from samples of the same class
        for k in range(2):
            assert {tuple(e) for e in row[which == k]} <= {tuple(e) for e in before[which == k]}
    return aware


def test_assignment_is_the_best_permutation_within_each_condition():
    pair = jax.jit(jax.vmap(losses.Assignment()))
    paired = respects_conditions(pair)
    x0, eps, labels = (np.asarray(v) for v in batches(2))
    for x, e, mine, which in zip(x0[:20], eps, paired, labels, strict=False):
        for k in range(2):
            x_k, e_k = x[which == k], e[which == k]
            cost = np.sum((x_k[:, None] - e_k) ** 2, axis=-1)
            best = cost[optimize.linear_sum_assignment(cost)].sum()
            np.testing.assert_allclose(np.sum((x_k - mine[which == k]) ** 2), best, rtol=1e-9)
            assert sorted(map(tuple, mine[which == k])) == sorted(map(tuple, e_k))


def test_conditions_that_differ_exchange_nothing_and_paths_in_one_dimension_do_not_cross():
    rng = np.random.default_rng(4)
    x0, eps = jnp.asarray(3 + rng.normal(size=(16, 1, 1))), jnp.asarray(rng.normal(size=(16, 1, 1)))
    text = {"text": jnp.asarray(rng.normal(size=(16, 4))), "label": jnp.zeros(16, jnp.int32)}
    run = jax.jit(losses.Assignment())
    np.testing.assert_array_equal(run(jax.random.key(0), x0, eps, text), eps)
    paired = np.asarray(run(jax.random.key(0), x0, eps, None))
    assert stats.kendalltau(x0.ravel(), paired.ravel()).statistic == 1
    same = np.asarray(run(jax.random.key(0), jnp.zeros_like(x0), eps, None))
    np.testing.assert_array_equal(np.sort(same.ravel()), np.sort(np.asarray(eps).ravel()))


def test_optimal_transport_gives_each_sample_its_own_noise():
    """Noise in a cyclic order of the data that it is nearest to: at a small epsilon the plan is that order, which is
    not its own inverse."""
    pytest.importorskip("ott", reason="the extra `metrics` is not installed")
    x0 = jnp.asarray([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0], [5.0, 5.0]])
    eps = 0.5 * jnp.roll(x0, 1, axis=0)
    np.testing.assert_array_equal(losses.OptimalTransport(0.05)(jax.random.key(0), x0, eps), 0.5 * x0)


@pytest.mark.slow
def test_optimal_transport_respects_conditions():
    pytest.importorskip("ott", reason="the extra `metrics` is not installed")
    run = eqx.filter_jit(lambda coupling, keys, *data: jax.vmap(coupling)(keys, *data))
    paired = respects_conditions(functools.partial(run, losses.OptimalTransport()))
    x0, eps, labels = batches(2)
    keys = jax.random.split(jax.random.key(3), BATCHES)
    x0, eps, labels = (np.asarray(v) for v in (x0, eps, labels))
    cost = lambda e: np.mean(np.sum((x0 - e) ** 2, axis=-1))
    best = cost(np.asarray(jax.jit(jax.vmap(losses.Assignment()))(keys, *batches(2))))
    assert abs(cost(paired) / best - 1) < 0.1
    equal = np.asarray(
        losses.OptimalTransport()(keys[0], jnp.zeros((6, 2)), jnp.eye(6)[:, :2] + jnp.arange(6.0)[:, None])
    )
    assert len(np.unique(equal[:, 0])) > 1, "data that are all alike may be paired in any way, but not all with one"
    # A large epsilon is the independent coupling: any noise of the same class, all alike.
    anyone = np.asarray(run(losses.OptimalTransport(1e4), keys, *batches(2)))
    class_means = np.stack([[e[w == w[i]].mean(0) for i in range(BATCH)] for e, w in zip(eps, labels, strict=True)])
    gap = np.mean(np.sum((x0 - CENTRES[labels]) * (anyone - class_means), axis=-1), axis=1)
    assert abs(gap.mean()) < 4.5 * gap.std() / np.sqrt(BATCHES)
    assert np.mean(np.sum((x0 - CENTRES[labels]) * (paired - class_means), axis=-1)) > 0.3


def test_a_loss_pairs_as_its_coupling_says():
    """The loss of the exact permutation is that of the permuted noise; the coupling sees data, noise and condition."""
    process, member = dj.Rectified(), dj.VelocityPrediction()
    apply = lambda params, x, c_noise, cond=None, *, key=None: params * x + cond[:, None]
    diffusion = dj.Diffusion(dj.Network(lambda *_: None, apply), process, member)
    x0, cond, seen = jnp.asarray(np.random.default_rng(5).normal(size=(6, 2))), jnp.array([0.0, 1, 0, 1, 0, 1]), []

    def reverse(key, x0, eps, cond):
        seen.append((x0, eps, cond))
        return eps[::-1]

    given = {"times": dj.UniformTimes(process), "weighting": losses.native, "coupling": reverse}
    _, aux = dj.denoising_loss(diffusion, jnp.asarray(0.3), jax.random.key(6), x0, cond, **given)
    ((saw_x0, eps, saw_cond),) = seen
    np.testing.assert_array_equal(saw_x0, x0)
    np.testing.assert_array_equal(saw_cond, cond)
    t, x0, eps, cond = (np.asarray(v) for v in (aux["t"], x0, eps[::-1], cond))
    xt = (1 - t)[:, None] * x0 + t[:, None] * eps
    error = 0.3 * xt / np.hypot(1 - t, t)[:, None] + cond[:, None] - (eps - x0)
    np.testing.assert_allclose(aux["per_sample"], np.mean(error**2, axis=1), rtol=1e-9)
