"""Guidance where the guided density is known, and against the papers' formulas written anew in NumPy."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import guidance, samplers

KEY = jax.random.key
PROCESS = dj.VariancePreserving


def network_denoiser(cond, calls=None):
    """A "network" that answers exactly for Gaussian data: mean `cond`, unit variance; variance 2 where cond is nan."""

    def apply(params, x, c_noise, cond, *, key=None):
        if calls is not None:
            calls.append(x.shape[0])
        # With data_std 1 and a VP process the network sees xt itself, and logsnr = -8 c_noise gives alpha and sigma.
        alpha2 = jax.nn.sigmoid(-8 * c_noise)[:, None]
        null = jnp.isnan(cond)
        mean, variance = jnp.where(null, 0.0, cond), jnp.where(null, 2.0, 1.0)
        gain = jnp.sqrt(alpha2) * variance / (alpha2 * variance + 1 - alpha2)
        return params * (mean + gain * (x - jnp.sqrt(alpha2) * mean))

    network = dj.Network(init=lambda *args: jnp.ones(()), apply=apply)
    return dj.make_denoiser(dj.Diffusion(network, PROCESS(), dj.X0Prediction()), jnp.ones(()), cond)


def component(k):
    means = jnp.array([[1.0, 0.3, -0.2], [-0.8, 0.4, 0.6]])
    return dj.Gaussian(means[k], jnp.array([0.3, 0.5])[k])


def whole():
    """The mixture of both components, in three features."""
    parts = [component(k) for k in (0, 1)]
    return dj.GaussianMixture(jnp.stack([p.mean for p in parts]), jnp.array([0.3, 0.5]), jnp.array([0.4, 0.6]))


def exact(data):
    return dj.exact_denoiser(data, PROCESS())


@eqx.filter_jit
def call(denoiser, xt, t):
    return denoiser(xt, t)


def points(n=5):
    return 1.5 * jax.random.normal(KEY(0), (n, 3)), jnp.asarray(0.35)


RULES = {
    "linear": guidance.Linear,
    "rescaled": guidance.Rescaled,
    "projected": lambda: guidance.Projected(0.3, 0.7),
    "optimal scale": guidance.OptimalScale,
    "rescaled, projected": lambda: guidance.Rescaled(0.4, guidance.Projected()),
    "cfg-zero*": lambda: guidance.OnPrediction(PROCESS(), dj.VelocityPrediction(), guidance.OptimalScale()),
    "rescaled on v": lambda: guidance.OnPrediction(PROCESS(), dj.VPrediction(), guidance.Rescaled()),
}


# --- none is none ---


@pytest.mark.parametrize("name", RULES)
def test_scale_one_is_the_conditional_denoiser_bit_for_bit(name):
    """Seen or traced, for all or one a sample, plain or compiled: and scale 2 is something else."""
    plain, null = network_denoiser(jnp.array([[0.5], [-1.0], [2.0]])), jnp.nan
    xt, t, rule = jax.random.normal(KEY(0), (3, 4)), jnp.asarray(0.4), RULES[name]()
    assert dj.classifier_free(plain, null, 1, rule=rule) is plain
    assert dj.classifier_free(plain, null, jnp.ones(3), rule=rule) is plain
    assert guidance.extrapolate(plain, exact(whole()), 1.0, rule=rule) is plain

    @jax.jit
    def both(scale):
        guided = dj.classifier_free(plain, null, scale, rule=rule)
        return guided(xt, t), guidance.OnePass(plain, null)(xt, t)[0]

    for scale in (jnp.asarray(1.0), jnp.array([1.0, 1.0, 1.0])):
        np.testing.assert_array_equal(*both(scale))
    guided, conditional = both(jnp.array([1.0, 2.0, 2.0]))
    np.testing.assert_array_equal(guided[0], conditional[0])
    assert np.all(np.any(np.abs(guided - conditional)[1:] > 1e-3, axis=1))


def test_other_guidance_that_does_nothing_is_the_denoiser_bit_for_bit():
    plain, other, (xt, t) = exact(component(0)), exact(component(1)), points()
    process = PROCESS()
    level = float(process.logsnr(t))
    log_prob = lambda x, t: -jnp.sum(x**2, axis=1)
    cases = {
        "classifier": guidance.classifier_guidance(process, plain, log_prob, jnp.asarray(0.0)),
        "negation": guidance.negation(process, plain, other, 0.0),
        "product": guidance.product(process, [plain], [1.0]),
        "mixture": guidance.density_mixture([plain], [log_prob]),
        "static": guidance.static_threshold(plain, -50.0, 50.0),
        "dynamic": guidance.dynamic_threshold(plain, 0.9, 50.0),
        "interval": guidance.within_interval(process, other, plain, level + 0.1, level + 2.0),
        "zero-init": guidance.zero_init(process, plain, level - 0.1),
    }
    found, truth = eqx.filter_jit(lambda cases, plain: ({k: d(xt, t) for k, d in cases.items()}, plain(xt, t)))(
        cases, plain
    )
    for name, answer in found.items():
        np.testing.assert_array_equal(answer, truth, err_msg=name)


# --- classifier-free, two denoisers, a classifier ---


@pytest.mark.parametrize("t", [0.3, "each"])
def test_the_guided_score_is_the_combination(t):
    """score = w score(x|c) + (1 - w) score(x), in closed form for Gaussians; one pass on a batch of 2b."""
    calls = []
    cond = jnp.array([[0.5], [-1.0], [2.0]])
    process = PROCESS()
    guided = dj.classifier_free(network_denoiser(cond, calls), jnp.nan, 3.0)
    xt = jax.random.normal(KEY(0), (3, 1))
    t = jnp.array([0.2, 0.5, 0.8]) if t == "each" else jnp.asarray(t)
    got = dj.score(process, guided, xt, t)
    alpha, sigma = (jnp.reshape(c, (-1, 1)) for c in (process.alpha(t), process.sigma(t)))
    with_condition = -(xt - alpha * cond) / (alpha**2 + sigma**2)
    without = -xt / (2 * alpha**2 + sigma**2)
    np.testing.assert_allclose(got, 3.0 * with_condition - 2.0 * without, rtol=1e-9)
    assert calls == [6]


def test_scales_may_differ_by_sample_and_be_traced():
    cond = jnp.array([[0.5], [-1.0], [2.0]])
    plain, xt, t = network_denoiser(cond), jax.random.normal(KEY(0), (3, 1)), jnp.asarray(0.4)
    scales = jnp.array([1.0, 2.0, 0.0])
    together = jax.jit(lambda w: dj.classifier_free(plain, jnp.nan, w)(xt, t))(scales)
    alone = [dj.classifier_free(plain, jnp.nan, float(w))(xt, t)[i] for i, w in enumerate(scales)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-12)


def test_a_negative_scale_goes_the_other_way():
    """Asked for: at scale -1 it is D(null) - (D(c) - D(null))."""
    plain, xt, t = network_denoiser(jnp.full((3, 1), 2.0)), jax.random.normal(KEY(0), (3, 1)), jnp.asarray(0.4)
    guided = dj.classifier_free(plain, jnp.nan, -1.0, negative=True)
    good, bad = guidance.OnePass(plain, jnp.nan)(xt, t)
    np.testing.assert_allclose(guided(xt, t), bad - (good - bad), rtol=1e-12)


class ComponentClassifier(eqx.Module):
    """log p(k | xt) of the mixture's components, by Bayes' rule from their exact densities."""

    k: jax.Array

    def __call__(self, xt, t):
        logs = [component(j).log_prob(PROCESS(), xt, t) + np.log(w) for j, w in enumerate((0.4, 0.6))]
        return jax.nn.log_softmax(jnp.stack(logs), axis=0)[self.k, jnp.arange(xt.shape[0])]


@pytest.mark.parametrize("t", [0.35, "each"])
def test_classifier_free_is_classifier_guidance_with_the_exact_classifier(t):
    """Scale w on the mixture's denoiser, or w - 1 on the component's: one a sample, and other components."""
    (xt, _), process, scale = points(), PROCESS(), jnp.array([0.0, 0.5, 1.0, 3.0, 7.0])
    t = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9]) if t == "each" else jnp.asarray(t)
    for k in (0, 1) if t.ndim else (1,):
        classifier = ComponentClassifier(jnp.full(5, k))
        free = guidance.extrapolate(exact(component(k)), exact(whole()), scale)
        by_gradient = guidance.classifier_guidance(process, exact(whole()), classifier, scale)
        from_there = guidance.classifier_guidance(process, exact(component(k)), classifier, scale - 1, negative=True)
        every = [free, by_gradient, from_there, exact(whole())]
        truth, *others, unguided = eqx.filter_jit(lambda every, t: [d(xt, t) for d in every])(every, t)
        for other in others:
            np.testing.assert_allclose(other, truth, rtol=1e-8, atol=1e-9)
        assert np.std(truth - unguided) > 0.1


@pytest.mark.slow
def test_guided_samples_of_gaussians():
    """p^w q^(1-w) of N(m, v) and N(0, v) at every level is N(w m, v) at every level: a guided denoiser that is exact
    for it, so its samples are known."""
    process, n, w = PROCESS(), 2000, jnp.asarray(2.5)
    m = jnp.array([0.6, -0.4])
    p, q = (dj.exact_denoiser(dj.Gaussian(mean, 0.3), process) for mean in (m, 0 * m))
    guided, truth = guidance.extrapolate(p, q, w), dj.Gaussian(w * m, 0.3)
    xt = dj.prior(KEY(1), process, (n, 2))
    ts = np.asarray(dj.logsnr_grid(process, 30))
    x0 = dj.sample(KEY(2), process, guided, xt, ts, dj.DPMpp2M(), final_denoise=False)
    np.testing.assert_allclose(x0, dj.exact_flow_map(truth, process).move(xt, ts[0], ts[-1]), atol=5e-2)


@pytest.mark.slow
def test_likelihood_of_a_guided_gaussian():
    """As above, along the flow of a guided denoiser that is exact for N(w m, v)."""
    process, w, m = PROCESS(), jnp.asarray(2.5), jnp.array([0.6, -0.4])
    p, q = (dj.exact_denoiser(dj.Gaussian(mean, 0.3), process) for mean in (m, 0 * m))
    guided, truth = guidance.extrapolate(p, q, w), dj.Gaussian(w * m, 0.3)
    x, (t0, end) = truth.sample(KEY(3), 8), process.interval()
    terminal = lambda x1: truth.log_prob(process, x1, end)
    nats = dj.log_likelihood(KEY(0), process, guided, x, t0=t0, terminal=terminal).nats
    np.testing.assert_allclose(nats, truth.log_prob(process, x, t0), atol=1e-3)


# --- an interval of noise levels ---


def test_an_interval_holds_its_edges_and_skips_the_work_outside():
    """For t one a sample, and one for all: then a callback in each branch shows that the other is not run."""
    process, (xt, t) = PROCESS(), points()
    calls, ts = [], jnp.array([0.2, 0.3, 0.4, 0.5, 0.6])
    counted = lambda name, gain: lambda xt, t: (jax.debug.callback(lambda: calls.append(name)), gain * xt)[1]
    levels, far = np.asarray(process.logsnr(ts)), 1e-9
    for move, inside in ((far, [1, 2, 3]), (-far, [2])):
        interval = guidance.within_interval(
            process, counted("in", 2.0), counted("out", 3.0), levels[3] - move, levels[1] + move
        )
        factors = np.array([2.0 if i in inside else 3.0 for i in range(5)])[:, None]
        np.testing.assert_allclose(call(interval, xt, ts), factors * xt, rtol=1e-12)
        jax.effects_barrier()
        calls.clear()
        for i, t in enumerate(ts):
            np.testing.assert_allclose(call(interval, xt, t), factors[i] * xt, rtol=1e-12)
            jax.effects_barrier()
        assert calls == ["in" if i in inside else "out" for i in range(5)]
    level = process.logsnr(t)
    for low, high in ((level, jnp.inf), (-jnp.inf, level)):  # the ends belong to it
        closed = guidance.within_interval(process, lambda x, t: 2 * x, lambda x, t: 3 * x, low, high)
        np.testing.assert_array_equal(closed(xt, t), 2 * xt)


def test_an_interval_may_differ_by_sample_and_be_open():
    process, (xt, t) = PROCESS(), points()
    guided, plain = (lambda xt, t: 2 * xt), (lambda xt, t: 3 * xt)
    level = float(process.logsnr(t))
    low = level + jnp.array([-1.0, 1.0, -1.0, 1.0, -jnp.inf])
    got = guidance.within_interval(process, guided, plain, low, jnp.inf)(xt, t)
    inside = np.array([True, False, True, False, True])[:, None]
    np.testing.assert_allclose(got, np.where(inside, guided(xt, t), plain(xt, t)), rtol=1e-12)


@pytest.mark.parametrize("process", [dj.Rectified, pytest.param(dj.EDM, marks=pytest.mark.slow)])
def test_zero_init_stands_still(process):
    """Above the level's noise DDIM does not move where alpha' x0 + sigma' eps = 0; below it is the denoiser's step."""
    process = process()
    denoiser, xt = dj.exact_denoiser(component(0), process), points()[0]
    ts = np.asarray(dj.uniform_grid(process, 10))
    start = 0.5 * float(sum(process.logsnr(jnp.asarray(t)) for t in ts[3:5]))
    waiting = guidance.zero_init(process, denoiser, start)
    x0, saved = dj.sample(KEY(0), process, waiting, xt, ts, dj.DDIM(), save=[0, 4, 5])
    np.testing.assert_allclose(saved[1], xt, rtol=1e-10)
    np.testing.assert_allclose(
        saved[2], dj.sample(KEY(0), process, denoiser, xt, ts[4:6], dj.DDIM(), final_denoise=False)
    )
    np.testing.assert_allclose(x0, dj.sample(KEY(0), process, denoiser, xt, ts[4:], dj.DDIM()), rtol=1e-9)
    velocity = samplers.velocity(process, waiting, xt, jnp.asarray(0.9))
    np.testing.assert_allclose(velocity, 0, atol=1e-9)


# --- the papers' formulas, in NumPy ---


def papers_rescale(good, bad, w, phi):
    cfg = bad + w * (good - bad)
    return phi * cfg * good.std() / cfg.std() + (1 - phi) * cfg


def papers_apg(good, bad, w, eta, r):
    diff = good - bad
    diff = diff * min(1.0, r / np.linalg.norm(diff))
    unit = good / np.linalg.norm(good)
    parallel = (diff * unit).sum() * unit
    return good + (w - 1) * (diff - parallel + eta * parallel)


def papers_cfg_zero(good, bad, w):
    s = (good * bad).sum() / (bad**2).sum()
    return (1 - w) * s * bad + w * good


W, PHI, ETA = (np.array(v) for v in ([0.5, 3.0, 7.5], [0.0, 0.7, 1.0], [0.0, 0.5, -0.3]))


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 4, 2)])
def test_rules_are_the_papers_formulas(shape):
    """On x0_hat, with every number one a sample, and by default; limits of APG above and below 1, on both sides of the
    update's norm."""
    good, bad = (np.asarray(jax.random.normal(KEY(k), shape)) for k in (0, 1))
    limit, length = np.array([0.7, 2.9, 3.2]), np.array([0.8, 3.0, 3.0])
    update = np.reshape(bad, (3, -1))
    bad = good - (length[:, None] * update / np.linalg.norm(update, axis=1, keepdims=True)).reshape(shape)
    loop = lambda f, *numbers: np.stack([f(good[i], bad[i], W[i], *(v[i] for v in numbers)) for i in range(3)])
    papers = [
        (guidance.Rescaled(jnp.asarray(PHI)), loop(papers_rescale, PHI)),
        (guidance.Rescaled(), loop(papers_rescale, [0.7] * 3)),
        (guidance.Projected(jnp.asarray(ETA), jnp.asarray(limit)), loop(papers_apg, ETA, limit)),
        (guidance.Projected(), loop(papers_apg, [0.0] * 3, [np.inf] * 3)),
        (guidance.Projected(1.0), loop(lambda g, b, w: b + w * (g - b))),
        (guidance.OptimalScale(), loop(papers_cfg_zero)),
    ]
    pair = lambda xt, t: (jnp.asarray(good), jnp.asarray(bad))
    every = [guidance.Guided(pair, jnp.asarray(W), rule) for rule, _ in papers]
    found = eqx.filter_jit(lambda every: [d(jnp.zeros(shape), jnp.asarray(0.5)) for d in every])(every)
    for got, (rule, truth) in zip(found, papers, strict=True):
        np.testing.assert_allclose(got, truth, rtol=1e-10, atol=1e-12, err_msg=type(rule).__name__)


@pytest.mark.parametrize("name", ["velocity", "v", "eps"])
def test_rules_on_other_predictions(name):
    """y = a x0 + b eps of both, the paper's rule on y, and x0 back from y: by NumPy's 2x2 solve."""
    process, t, xt = dj.Rectified(), 0.3, np.asarray(jax.random.normal(KEY(2), (3, 4)))
    alpha, sigma = 0.7, 0.3
    a, b = {"velocity": (-1.0, 1.0), "v": (-sigma, alpha), "eps": (0.0, 1.0)}[name]
    prediction = {"velocity": dj.VelocityPrediction, "v": dj.VPrediction, "eps": dj.EpsPrediction}[name]()
    good, bad = (np.asarray(jax.random.normal(KEY(k), (3, 4))) for k in (0, 1))
    pair = lambda xt, t: (jnp.asarray(good), jnp.asarray(bad))
    for rule, paper in ((guidance.OptimalScale(), papers_cfg_zero), (guidance.Rescaled(0.7), papers_rescale)):
        on = guidance.OnPrediction(process, prediction, rule)
        got = call(guidance.Guided(pair, jnp.asarray(W), on), jnp.asarray(xt), jnp.asarray(t))
        y = [a * x0 + b * (xt - alpha * x0) / sigma for x0 in (good, bad)]
        more = () if paper is papers_cfg_zero else (0.7,)
        y = np.stack([paper(y[0][i], y[1][i], W[i], *more) for i in range(3)])
        truth = np.linalg.solve([[alpha, sigma], [a, b]], np.stack([xt.ravel(), y.ravel()]))[0].reshape(3, 4)
        np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-10)


def test_rules_bear_zero_and_have_finite_slopes():
    """Both answers equal, or zero (a network's zero initialisation): no NaN, neither in values nor in gradients; equal
    ones are the guided one too."""
    xt, t = jnp.ones((2, 3)), jnp.asarray(0.4)

    def total(answers, rule):
        return jnp.sum(guidance.Guided(lambda xt, t: answers, jnp.asarray(3.0), rule)(xt, t))

    rules = {name: make() for name, make in RULES.items()}
    every = jax.jit(lambda pair: {name: jax.value_and_grad(total)(pair, rule) for name, rule in rules.items()})
    for pair in ((xt, xt), (0 * xt, 0 * xt), (0 * xt, xt), (xt, 0 * xt)):
        for name, found in every(pair).items():
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found)), name
            if not np.any(pair[0] - pair[1]):
                np.testing.assert_allclose(found[0], np.sum(pair[0]), rtol=1e-12, err_msg=name)


def test_thresholds_are_imagens():
    x0 = np.asarray(2 * jax.random.normal(KEY(0), (3, 4, 4, 2))) * np.array([0.1, 1.0, 3.0])[:, None, None, None]
    denoiser, (xt, t) = lambda xt, t: jnp.asarray(x0), (jnp.zeros(x0.shape), jnp.asarray(0.5))
    np.testing.assert_array_equal(guidance.static_threshold(denoiser)(xt, t), np.clip(x0, -1, 1))
    np.testing.assert_array_equal(guidance.static_threshold(denoiser, 0.0, 2.0)(xt, t), np.clip(x0, 0, 2))
    bounds = np.array([1.0, 1.0, 2.0])
    got = guidance.dynamic_threshold(denoiser, 0.9, jnp.asarray(bounds))(xt, t)
    for i, bound in enumerate(bounds):
        s = max(np.percentile(np.abs(x0[i]), 90.0), bound)
        np.testing.assert_allclose(got[i], np.clip(x0[i], -s, s) / s * bound, rtol=1e-12)
    assert np.max(np.abs(got)) <= 2.0
    np.testing.assert_array_equal(got[0], x0[0])
    got = guidance.dynamic_threshold(denoiser, 0.9, largest=5.0)(xt, t)
    largest = np.minimum(np.maximum(np.percentile(np.abs(x0).reshape(3, -1), 90.0, axis=1), 1.0), 5.0)
    assert 1 < largest[1] < largest[2] == 5.0
    for i, s in enumerate(largest):
        np.testing.assert_allclose(got[i], np.clip(x0[i], -s, s) / s, rtol=1e-12)


def test_a_dynamic_threshold_at_its_ends_is_a_maximum_or_a_clip_and_looks_at_one_sample():
    """quantile 1 divides by the largest value; largest = bound is the static clip; others in the batch do not count."""
    x0 = jnp.asarray(
        2 * np.random.default_rng(0).normal(size=(4, 5, 3)) * np.array([0.1, 1.0, 3.0, 9.0])[:, None, None]
    )
    t, here = jnp.asarray(0.5), lambda xt, t: xt
    largest = np.abs(x0).max(axis=(1, 2), keepdims=True)
    got = guidance.dynamic_threshold(here, 1.0)(x0, t)
    np.testing.assert_allclose(got, x0 / np.maximum(largest, 1), rtol=1e-12)
    static = guidance.dynamic_threshold(here, 0.7, 1.5, largest=1.5)(x0, t)
    np.testing.assert_array_equal(static, guidance.static_threshold(here, -1.5, 1.5)(x0, t))
    threshold = guidance.dynamic_threshold(here, 0.7)
    together = threshold(x0, t)
    for i in (0, 2):
        np.testing.assert_allclose(threshold(x0[i : i + 1], t)[0], together[i], rtol=1e-12)
        # No other sample has a part in the answer, or in its slope.
        slope = jax.grad(lambda x, i=i: jnp.sum(jnp.sin(threshold(x, t)[i])))(x0)
        assert np.isfinite(slope).all()
        np.testing.assert_array_equal(np.delete(slope, i, axis=0), 0)
        step = np.zeros(x0.shape)
        step[i] = 1e-6 * np.random.default_rng(1).normal(size=(5, 3))
        value = lambda x, i=i: jnp.sum(jnp.sin(threshold(x, t)[i]))
        np.testing.assert_allclose(value(x0 + step) - value(x0 - step), 2 * np.sum(slope * step), rtol=1e-5)


def test_a_dynamic_threshold_keeps_a_picture_that_guidance_scales_and_moves_a_background():
    """Two Gaussian classes base + A pattern, A around 0.2 or 0.6: at t = 1 the guided answer is base + A_w pattern,
    with A_w = 0.4 + 0.2 scale. Without a base the threshold's answer is the pattern at full contrast, whatever the
    scale, where a clip flattens it; with one the background, on which the classes agree, becomes base/s."""
    process, wave, square = dj.Rectified(), np.cos(2 * np.pi * np.arange(8) / 8), np.repeat([0.0, 1.0], 4)

    def answers(base, pattern, scale):
        means = jnp.asarray([base + a * pattern for a in (0.2, 0.6)])
        laws = dj.Gaussian(means[1], 0.01), dj.GaussianMixture(means, 0.01)
        guided = guidance.extrapolate(*(dj.exact_denoiser(law, process) for law in laws), scale)
        every = guided, guidance.static_threshold(guided), guidance.dynamic_threshold(guided, 1.0)
        return [denoiser(jax.random.normal(KEY(0), (3, 8)), jnp.asarray(1.0)) for denoiser in every]

    for scale in (10.0, 20.0):
        strength = 0.4 + 0.2 * scale
        for base, pattern, kept in (
            (0.0, wave, wave),
            (-0.9, square, np.where(square > 0, 1.0, -0.9 / (strength - 0.9))),
        ):
            overshot = base + strength * pattern
            for got, want in zip(
                answers(base, pattern, scale), (overshot, np.clip(overshot, -1, 1), kept), strict=True
            ):
                np.testing.assert_allclose(got, np.tile(want, (3, 1)), rtol=1e-9, atol=1e-9)


def test_a_dynamic_threshold_of_half_precision_is_that_of_its_numbers():
    """The place of the quantile among 3000 numbers is not rounded to eight bits, and the answer stays in range."""
    x0 = (2 * np.random.default_rng(0).normal(size=(2, 3000))).astype(jnp.bfloat16)
    got = jax.jit(lambda x: guidance.dynamic_threshold(lambda xt, t: xt)(x, jnp.asarray(0.5)))(jnp.asarray(x0))
    assert got.dtype == jnp.bfloat16
    s = np.percentile(np.abs(x0.astype(float)), 99.5, axis=1, keepdims=True)
    want = np.clip(x0.astype(float), -s, s) / s
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=2**-6)
    assert np.abs(got.astype(float)).max() <= 1


@pytest.mark.slow
def test_cfgpp_is_algorithm_2():
    """DDIM in eps: denoised with guidance, renoised with the null's eps; by NumPy, several steps."""
    process, scale = PROCESS(), jnp.array([0.2, 0.6, 1.0])
    guided = dj.classifier_free(network_denoiser(jnp.array([[0.5], [-1.0], [2.0]])), jnp.nan, scale)
    ts, xt = np.array([0.9, 0.6, 0.3, 0.1]), np.asarray(jax.random.normal(KEY(0), (3, 2)))
    got = dj.sample(KEY(0), process, guided, jnp.asarray(xt), ts, samplers.CFGpp(), final_denoise=False)
    x = xt
    for t, s in itertools.pairwise(ts):
        (a, b), (a_s, b_s) = ((float(process.alpha(u)), float(process.sigma(u))) for u in (t, s))
        good, bad = (np.asarray(d) for d in call(guided.pair, jnp.asarray(x), jnp.asarray(t)))
        eps_good, eps_bad = (x - a * good) / b, (x - a * bad) / b
        eps = eps_bad + np.asarray(scale)[:, None] * (eps_good - eps_bad)
        x = a_s * (x - b * eps) / a + b_s * eps_bad
    np.testing.assert_allclose(got, x, rtol=1e-9)
    # Scale 0 is DDIM of the null; a step is DDIM guided by the scale that the module's docstring gives.
    bad = dj.classifier_free(network_denoiser(jnp.full((3, 1), 2.0)), jnp.nan, 0.0)
    both = [dj.sample(KEY(0), process, bad, jnp.asarray(xt), ts, by) for by in (samplers.CFGpp(), dj.DDIM())]
    np.testing.assert_allclose(*both, rtol=1e-9)
    ratio = float(process.sigma(0.6) * process.alpha(0.9) / process.sigma(0.9) / process.alpha(0.6))
    as_ddim = eqx.tree_at(lambda d: d.scale, guided, scale / (1 - ratio))
    step = lambda d, by: dj.sample(KEY(0), process, d, jnp.asarray(xt), ts[:2], by, final_denoise=False)
    np.testing.assert_allclose(step(guided, samplers.CFGpp()), step(as_ddim, dj.DDIM()), rtol=1e-9)
    with pytest.raises(ValueError, match=r"needs a guidance\.Guided"):
        step(exact(component(0)), samplers.CFGpp())


# --- all at once ---


def nested(scale, cond, calls=None):
    """Guidance of guidance: rescaled classifier-free in an interval, inside a threshold."""
    process, plain = PROCESS(), network_denoiser(cond, calls)
    free = dj.classifier_free(plain, jnp.nan, scale, rule=guidance.Rescaled(0.5))
    return guidance.dynamic_threshold(guidance.within_interval(process, free, plain, -3.0, 3.0), 0.9, 3.0)


@pytest.mark.slow
def test_guidance_composes_and_new_numbers_compile_nothing():
    """With a traced scale; a sampler's step by step truth; one a sample in chunks of `sample_n` too."""
    process, calls, n = PROCESS(), [], 6
    cond, xt = jnp.linspace(-1.0, 2.0, n)[:, None], dj.prior(KEY(1), PROCESS(), (n, 4))
    ts = np.asarray(dj.logsnr_grid(process, 5))
    denoiser = nested(jnp.linspace(1.5, 4.0, n), cond, calls)
    x0 = dj.sample(KEY(0), process, denoiser, xt, ts, dj.DDIM())
    traced = len(calls)
    again = eqx.tree_at(lambda d: d.denoiser.inside.scale, denoiser, jnp.linspace(2.0, 3.0, n))
    again = eqx.tree_at(
        lambda d: (d.denoiser.low, d.denoiser.inside.rule.phi), again, (jnp.asarray(-2.0), jnp.asarray(0.1))
    )
    assert not np.allclose(dj.sample(KEY(0), process, again, xt, ts, dj.DDIM()), x0)
    assert traced > 0
    assert len(calls) == traced

    x = np.asarray(xt)
    free = dj.classifier_free(network_denoiser(cond), jnp.nan, jnp.linspace(1.5, 4.0, n))
    for t, s in zip(ts, [*ts[1:], None], strict=True):
        good, bad = (np.asarray(d) for d in call(free.pair, jnp.asarray(x), jnp.asarray(t)))
        d = good
        if -3 <= float(process.logsnr(t)) <= 3:
            w = np.linspace(1.5, 4.0, n)
            d = np.stack([papers_rescale(good[i], bad[i], w[i], 0.5) for i in range(n)])
        q = np.maximum(np.quantile(np.abs(d), 0.9, axis=1, keepdims=True), 3.0)
        d = np.clip(d, -q, q) / q * 3.0
        if s is not None:
            keep = float(process.sigma(s) / process.sigma(t))
            x = keep * x + (float(process.alpha(s)) - keep * float(process.alpha(t))) * d
    np.testing.assert_allclose(x0, d, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_composed_guidance_in_chunks():
    """Scales one a sample, deep inside: `sample_n` gives each sample its own, whatever the chunk."""
    process, n = PROCESS(), 6
    ts = np.asarray(dj.logsnr_grid(process, 5))
    denoiser = nested(jnp.linspace(1.5, 4.0, n), jnp.linspace(-1.0, 2.0, n)[:, None])
    prior_key, key = jax.random.split(KEY(7))
    rows = dj.sample_n(KEY(7), process, denoiser, (4,), n, ts=ts, stepper=dj.DDIM(), chunk=4)
    whole = dj.sample(key, process, denoiser, dj.prior(prior_key, process, (n, 4)), ts, dj.DDIM())
    np.testing.assert_allclose(rows, whole, rtol=1e-9, atol=1e-12)


def test_negative_conditions_in_chunks():
    """Another one for each sample: in `sample_n` each has its own, whatever the chunk."""
    process, n = PROCESS(), 6
    cond = jnp.linspace(-1.0, 2.0, n)[:, None]
    denoiser, ts = dj.classifier_free(network_denoiser(cond), 0.5 - cond, 2.0), np.array([0.9, 0.5, 0.2])
    rows = [dj.sample_n(KEY(7), process, denoiser, (4,), n, ts=ts, stepper=dj.DDIM(), chunk=chunk) for chunk in (6, 4)]
    np.testing.assert_allclose(*rows, rtol=1e-9)


def test_which_numbers_are_one_a_sample():
    pair = lambda xt, t: (xt, xt)
    both = guidance.Guided(pair, jnp.ones(3), guidance.Projected(jnp.ones(3), 2.0))
    assert both.per_sample_fields() == ("scale",)
    assert both.rule.per_sample_fields() == ("parallel",)
    for null, names in ((jnp.nan, ()), (jnp.zeros((1, 1)), ()), (jnp.zeros((3, 1)), ("null",))):
        assert guidance.OnePass(network_denoiser(jnp.ones((3, 1))), null).per_sample_fields() == names
    weights = guidance.product(PROCESS(), [exact(whole())] * 2, [jnp.ones(3), 2.0])
    assert weights.per_sample_fields() == ("weights",)
    assert [w.shape for w in weights.weights] == [(3,), (3,)]


def test_lower_precision_answers_leave_the_state_alone():
    """A denoiser that answers in bfloat16 under a float32 state, and float64 numbers of guidance."""
    low = lambda xt, t: (0.3 * xt).astype(jnp.bfloat16)
    xt, t, process = jnp.ones((2, 3), jnp.float32), jnp.asarray(0.4, jnp.float32), dj.Rectified()
    scale, log_prob = jnp.asarray(2.0, jnp.float64), lambda xt, t: jnp.sum(xt, axis=1)
    cases = [guidance.extrapolate(low, low, scale, rule=make()) for name, make in RULES.items() if "-" not in name]
    cases = [case for case in cases if not isinstance(case.rule, guidance.OnPrediction)]
    on_velocity = guidance.OnPrediction(process, dj.VelocityPrediction(), guidance.OptimalScale())
    cases += [guidance.extrapolate(low, low, scale, rule=on_velocity)]
    cases += [guidance.within_interval(process, low, low, scale, scale + 1.0)]
    cases += [guidance.zero_init(process, low, 0.0), guidance.classifier_guidance(process, low, log_prob, scale)]
    cases += [guidance.static_threshold(low), guidance.dynamic_threshold(low)]
    cases += [guidance.product(process, [low, low]), guidance.density_mixture([low, low], [log_prob, log_prob])]
    for case in cases:
        assert eqx.filter_eval_shape(case, xt, t).dtype == jnp.float32


# --- what is refused ---

PLAIN = lambda xt, t: xt

BAD = {
    r"scale: below 0 .* negative=True if that is meant, got -1.5": lambda: guidance.extrapolate(PLAIN, PLAIN, -1.5),
    r"scale: below 0 .* got \[ 1. -2.\]": lambda: dj.classifier_free(
        network_denoiser(jnp.ones((2, 1))), jnp.nan, jnp.array([1.0, -2.0])
    ),
    r"scale: must be finite, got nan": lambda: guidance.extrapolate(PLAIN, PLAIN, float("nan")),
    r"scale: a scalar or one number a sample, .* got shape \(2, 1\)": lambda: guidance.extrapolate(
        PLAIN, PLAIN, jnp.ones((2, 1))
    ),
    r"scale: below 0": lambda: guidance.classifier_guidance(PROCESS(), PLAIN, PLAIN, -1),
    r"low < high, got the empty \[2.0, -1.0\]": lambda: guidance.within_interval(PROCESS(), PLAIN, PLAIN, 2.0, -1),
    r"low < high, got the empty \[1.0, 1.0\]": lambda: guidance.within_interval(PROCESS(), PLAIN, PLAIN, 1.0, 1.0),
    r"phi: must lie in \[0, 1\], got 1.5": lambda: guidance.Rescaled(1.5),
    r"norm: must be positive, got 0.0": lambda: guidance.Projected(0.0, 0.0),
    r"parallel: must be finite, got inf": lambda: guidance.Projected(float("inf")),
    r"quantile: must lie in \(0, 1\], got 99.5": lambda: guidance.dynamic_threshold(PLAIN, 99.5),
    r"bound: must be positive, got -1.0": lambda: guidance.dynamic_threshold(PLAIN, 0.9, -1.0),
    r"largest: at least bound = 2.0 is needed, got 1.0": lambda: guidance.dynamic_threshold(PLAIN, bound=2, largest=1),
    r"low < high is needed, got 1.0 and -1.0": lambda: guidance.static_threshold(PLAIN, 1.0, -1.0),
    r"weights: below 0 .* got -1.0": lambda: guidance.product(PROCESS(), [PLAIN, PLAIN], [2.0, -1.0]),
    r"weights: a positive sum is needed, .* got -1.0": lambda: guidance.product(
        PROCESS(), [PLAIN, PLAIN], [1.0, -2.0], negative=True
    ),
    r"weights: one for each .* got 1 for 2": lambda: guidance.product(PROCESS(), [PLAIN, PLAIN], [2.0]),
    r"weights: one for each .* got 0 for 0": lambda: guidance.product(PROCESS(), []),
    r"weight: must lie in \[0, 1\), got 1.0": lambda: guidance.negation(PROCESS(), PLAIN, PLAIN, 1.0),
    r"weights: must be positive, got 0.0": lambda: guidance.density_mixture([PLAIN], [PLAIN], [0.0]),
    r"as many of each, one or more, got \(2, 1, 2\)": lambda: guidance.density_mixture([PLAIN, PLAIN], [PLAIN]),
    r"denoiser: a NetworkDenoiser with a condition": lambda: dj.classifier_free(network_denoiser(None), jnp.nan, 2.0),
    r"null: the condition's tree PyTreeDef\(\*\) is needed, got a NetworkDenoiser": lambda: dj.classifier_free(
        network_denoiser(jnp.zeros((2, 1))), network_denoiser(None), 2.0
    ),
    r"null: the condition's tree": lambda: dj.classifier_free(network_denoiser(jnp.zeros((2, 1))), {"a": 0}, 2.0),
    r"log_prob: must answer shape \(2,\) .* got \(2, 3\)": lambda: guidance.classifier_guidance(
        PROCESS(), PLAIN, PLAIN, 1.0
    )(jnp.ones((2, 3)), jnp.asarray(0.5)),
    r"step_size: must lie in \(0, 2\), got 2.0": lambda: samplers.LangevinCorrected(dj.DDIM(), 4, 2.0),
    r"corrections: must be a positive integer, got 0": lambda: samplers.LangevinCorrected(dj.DDIM(), 0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused_with_their_value(message):
    with pytest.raises(ValueError, match=message) as caught:
        BAD[message]()
    assert "\n" not in str(caught.value)
