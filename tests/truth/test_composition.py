"""Products, quotients and mixtures of densities: by Langevin-corrected steps the composed density, without them not.

Products of Gaussian mixtures are Gaussian mixtures, and so are their quotients by a power of a Gaussian: known here in
closed form, written anew in NumPy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import guidance, samplers
from diffjax.metrics import sliced_wasserstein

KEY = jax.random.key
# (weight, mean, covariance) of each component.
P = [(0.6, [0.9, 0.2], [[0.2, 0.0], [0.0, 0.3]]), (0.4, [-0.7, 0.5], [[0.3, 0.05], [0.05, 0.2]])]
OTHER = [(0.4, [0.6, 0.0], [[0.4, 0.1], [0.1, 0.5]]), (0.6, [-0.6, -0.3], [[0.35, 0.0], [0.0, 0.4]])]
UNWANTED = [(1.0, [0.5, 0.3], [[0.8, 0.1], [0.1, 0.7]])]


def distribution(components):
    weights, means, covariances = (jnp.asarray(np.array(part)) for part in zip(*components, strict=True))
    return dj.GaussianMixture(means, covariances, weights)


def composed(first, second, power):
    """first * second^power; power must be 1 unless `second` is one Gaussian."""
    logs, parts = [], []
    for w1, m1, s1 in first:
        for w2, m2, s2 in second:
            (m1, l1), (m2, l2) = ((np.array(m), np.linalg.inv(s)) for m, s in ((m1, s1), (m2, s2)))
            precision = l1 + power * l2
            covariance = np.linalg.inv(precision)
            mean = covariance @ (l1 @ m1 + power * l2 @ m2)
            normal = lambda x, m, l: 0.5 * np.linalg.slogdet(l / (2 * np.pi))[1] - 0.5 * (x - m) @ l @ (x - m)
            # At any x the unnormalised product is its constant times the normal density; x = mean.
            log = np.log(w1) + power * np.log(w2) + normal(mean, m1, l1) + power * normal(mean, m2, l2)
            logs.append(log - normal(mean, mean, precision))
            parts.append((mean, covariance))
    weights = np.exp(np.array(logs) - max(logs))
    return distribution([(w, *part) for w, part in zip(weights / weights.sum(), parts, strict=True)])


def plane_grid(process, steps):
    high, low = (process.time_from_logsnr(jnp.asarray(level)) for level in (-6.0, 6.0))
    return np.asarray(dj.logsnr_grid(process, steps, ends=(high, low)))


@pytest.mark.parametrize("name", ["product", "negation"])
def test_corrected_steps_reach_composed_gaussians_and_plain_ones_do_not(name):
    """Mean and covariance in closed form; the flow of the scores' mean has another covariance."""
    process, n, power = dj.VariancePreserving(), 4000, {"product": 1.0, "negation": -0.6}[name]
    parts = [([0.8, 0.0], [[0.3, 0.1], [0.1, 0.5]]), ([-0.4, 0.3], [[0.8, 0.1], [0.1, 0.7]])]
    p, q = (dj.exact_denoiser(dj.Gaussian(*(jnp.asarray(a) for a in part)), process) for part in parts)
    denoiser = guidance.product(process, [p, q]) if power == 1 else guidance.negation(process, p, q, -power)
    (m1, l1), (m2, l2) = ((np.array(m), np.linalg.inv(s)) for m, s in parts)
    covariance = np.linalg.inv(l1 + power * l2)
    mean = covariance @ (l1 @ m1 + power * l2 @ m2)
    xt, ts = dj.prior(KEY(1), process, (n, 2)), plane_grid(process, 40)
    corrected = samplers.LangevinCorrected(dj.DDIM(), 10, 0.4)
    x = np.asarray(dj.sample(KEY(2), process, denoiser, xt, ts, corrected))
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((x.mean(0) - mean) / spread, 0, atol=0.08)  # 5 standard errors: 0.079
    np.testing.assert_allclose((np.cov(x.T) - covariance) / np.outer(spread, spread), 0, atol=0.12)  # 0.112
    alone = np.asarray(dj.sample(KEY(2), process, denoiser.normalised(), xt, ts, dj.DDIM()))
    assert np.max(np.abs((np.cov(alone.T) - covariance) / np.outer(spread, spread))) > 0.3


@pytest.mark.slow
def test_corrected_steps_reach_the_composed_density_and_plain_ones_do_not():
    """Sliced Wasserstein to many exact draws, beside that of as many exact draws as there are samples."""
    process, n = dj.VariancePreserving(), 2000
    twice = [(0.5, *UNWANTED[0][1:])] * 2  # of the other's shape: nothing is compiled twice
    p, other, unwanted = (dj.exact_denoiser(distribution(parts), process) for parts in (P, OTHER, twice))
    cases = [
        (guidance.product(process, [p, other]), composed(P, OTHER, 1.0)),
        (guidance.negation(process, p, unwanted, 0.6), composed(P, UNWANTED, -0.6)),
    ]
    xt = dj.prior(KEY(1), process, (n, 2))
    ts = plane_grid(process, 60)
    corrected = samplers.LangevinCorrected(dj.DDIM(), 12, 0.4)
    for denoiser, truth in cases:
        exact = truth.sample(KEY(5), 20_000)
        distance = lambda x, exact=exact: float(sliced_wasserstein(KEY(9), x, exact))
        floor = max(distance(truth.sample(KEY(k), n)) for k in (6, 7, 8))
        assert distance(dj.sample(KEY(2), process, denoiser, xt, ts, corrected)) < 1.3 * floor
        # The bias without corrections, of the sum of scores and of their mean.
        assert distance(dj.sample(KEY(2), process, denoiser, xt, ts, dj.DDIM())) > 10 * floor
        assert distance(dj.sample(KEY(2), process, denoiser.normalised(), xt, ts, dj.DDIM())) > 4 * floor


TIMES = {"one": 0.3, "each": [0.1, 0.4, 0.7, 0.9]}


@pytest.mark.parametrize("t", TIMES)
def test_scores_add(t):
    """With weights for all and one a sample, and whatever they sum to."""
    x, t, process = jax.random.normal(KEY(0), (4, 2)), jnp.asarray(TIMES[t]), dj.Rectified()
    first, second = distribution(P), distribution(OTHER)
    p, q = (dj.exact_denoiser(data, process) for data in (first, second))
    weights = [(1.0, 1.0), (0.3, 0.7), (2.0, -0.5), (jnp.linspace(0.0, 3.0, 4), 1.0)]

    @jax.jit
    def scores(x, t):
        products = [guidance.product(process, [p, q], w, negative=True) for w in weights]
        denoisers = [*products, guidance.negation(process, p, q, 0.4), guidance.extrapolate(p, q, 2.5)]
        return [dj.score(process, d, x, t) for d in denoisers], [d.score(process, x, t) for d in (first, second)]

    found, (one, other) = scores(x, t)
    for got, w in zip(found, [*weights, (1.0, -0.4), (2.5, -1.5)], strict=True):
        w = [np.reshape(part, (-1, 1)) for part in w]
        np.testing.assert_allclose(got, w[0] * np.asarray(one) + w[1] * np.asarray(other), rtol=1e-9, atol=1e-9)


def test_weights_that_sum_to_one_need_no_alpha():
    """At t = 1 of `Rectified`, where alpha = 0: finite, values and gradients."""
    process, x, t = dj.Rectified(), jax.random.normal(KEY(0), (4, 2)), jnp.asarray(1.0)
    p, q = (dj.exact_denoiser(dj.Gaussian(jnp.full(2, mean), 0.5), process) for mean in (1.0, -2.0))
    both = guidance.product(process, [p, q], [0.25, 0.75])
    total = lambda x, t: (jnp.sum(both(x, t)), both(x, t))
    slopes, answer = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(x, t)
    np.testing.assert_allclose(answer, np.full((4, 2), 0.25 * 1.0 - 0.75 * 2.0), rtol=1e-12)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


@pytest.mark.parametrize("t", TIMES)
def test_a_mixture_is_the_mixtures_denoiser(t):
    """Exactly: that of all components under one roof. Weights need not sum to one, and may differ by sample."""
    process, x, t = dj.Cosine(), jax.random.normal(KEY(0), (4, 2)), jnp.asarray(TIMES[t])
    data = [distribution(P), distribution(OTHER)]
    denoisers = [dj.exact_denoiser(d, process) for d in data]
    logs = [eqx.Partial(d.log_prob, process) for d in data]
    roof = lambda w: distribution([(w * v, *part) for v, *part in P] + [((1 - w) * v, *part) for v, *part in OTHER])
    shares, others = jnp.array([0.25, 0.5, 0.75, 0.9]), jnp.array([0.75, 0.5, 0.25, 0.1])
    mixed = [guidance.density_mixture(denoisers, logs, w) for w in ([2.0, 6.0], [shares, others])]
    truths = [dj.exact_denoiser(roof(w), process) for w in (0.25, 0.75, 0.9)]
    (one, each), (quarter, three, most) = jax.jit(lambda x, t: [[d(x, t) for d in of] for of in (mixed, truths)])(x, t)
    np.testing.assert_allclose(one, quarter, rtol=1e-9)
    np.testing.assert_allclose(each[2:], np.stack([three[2], most[3]]), rtol=1e-9)


def test_the_corrections_law_on_a_gaussian():
    """One step and its corrections are affine for Gaussian data: the mean and variance follow in closed form."""
    process, data, n = dj.VariancePreserving(), dj.Gaussian(jnp.array([0.8]), 0.3), 40_000
    denoiser, (t, s) = dj.exact_denoiser(data, process), (0.5, 0.4)
    start = 0.5 + 1.5 * jax.random.normal(KEY(0), (n, 1))
    stepper = samplers.LangevinCorrected(dj.DDIM(eta=1.0), 3, jnp.asarray(0.2))
    x = dj.sample(KEY(1), process, denoiser, start, np.array([t, s]), stepper, final_denoise=False)
    (a_t, b_t), (a, b) = ((float(process.alpha(u)), float(process.sigma(u))) for u in (t, s))
    gain = a_t * 0.3 / (a_t**2 * 0.3 + b_t**2)
    added = b**2 / b_t**2 * (b_t**2 - (a_t / a) ** 2 * b**2)  # DDPM's, independent of the corrections' noise
    keep = np.sqrt(b**2 - added) / b_t
    pull = keep + (a - keep * a_t) * gain
    mean = pull * 0.5 + (a - keep * a_t) * (0.8 - gain * a_t * 0.8)
    variance = pull**2 * 1.5**2 + added
    marginal, r = a**2 * 0.3 + b**2, 0.2
    for _ in range(3):  # x + tau score + sqrt(2 tau) z, tau = r sigma^2, score = -(x - alpha m)/marginal
        tau = r * b**2
        mean = mean - tau * (mean - a * 0.8) / marginal
        variance = (1 - tau / marginal) ** 2 * variance + 2 * tau
    assert abs(float(x.mean()) - mean) < 4.5 * np.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 4.5 * variance * np.sqrt(2 / n)
    assert stepper.evaluations_per_step == 4
    usual = samplers.LangevinCorrected(dj.DDIM())
    assert (usual.corrections, float(usual.step_size)) == (4, 0.1)
    assert stepper.stochastic


def test_the_predictor_follows_the_normalised_product():
    """For one Gaussian of marginal variance m_t, whose product is N(0, m_t/W) at every level: the flow carries x as
    sqrt(m_t) does, for any weights, and corrections of step size 1e-14 change nothing."""
    process, variance = dj.VariancePreserving(), 0.3
    p = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), variance), process)
    denoiser = guidance.product(process, [p, p], [2.0, jnp.array([0.5, 1.0, 4.0])])
    ts, xt = np.linspace(1.0, 0.05, 60), jnp.array([[0.3], [-1.0], [2.0]])
    stepper = samplers.LangevinCorrected(dj.DDIM(), 1, 1e-14)
    x = dj.sample(KEY(0), process, denoiser, xt, ts, stepper, final_denoise=False)
    start, end = (float(process.alpha(t) ** 2 * variance + process.sigma(t) ** 2) for t in (ts[0], ts[-1]))
    np.testing.assert_allclose(x, xt * np.sqrt(end / start), rtol=0.05)  # DDIM's own error is 3 %


@pytest.mark.parametrize("corrected", [samplers.LangevinCorrected, samplers.PredictorCorrector])
def test_no_correction_at_zero_noise(corrected):
    """The last step to sigma = 0 is the predictor's, and the denoiser is not asked there."""
    process, asked = dj.Rectified(), []

    def denoiser(xt, t):
        jax.debug.callback(lambda t: asked.append(float(t)), t)
        return 0.5 * xt

    xt, ts = jnp.ones((3, 2)), np.array([0.8, 0.4, 0.0])
    stepper = corrected(dj.DDIM(), 2, 0.1)
    x, saved = dj.sample(KEY(0), process, denoiser, xt, ts, stepper, final_denoise=False, save=[1])
    jax.block_until_ready(x)
    jax.effects_barrier()
    np.testing.assert_allclose(x, 0.5 * saved[0], rtol=1e-12)
    assert min(asked) == pytest.approx(0.4)
