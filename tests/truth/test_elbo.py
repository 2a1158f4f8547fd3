"""Lower bounds against closed forms: mutual information for the continuous one, DDPM's own formulas for the chain."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PARAMETERISATIONS
from scipy import integrate, stats

import diffjax as dj
from diffjax import losses

MEAN, VARIANCE = 0.3, 0.6
HIGH, LOW = 8.0, -6.0


def knowing_network():
    """E[eps | xt] for data N(MEAN, VARIANCE), from logsnr and the input scaled to a variance-preserving one alone."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        logsnr = -8 * c_noise[:, None]
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
        return (1 + params) * sigma / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)

    return dj.Network(lambda *_: None, apply)


def information(high=HIGH, low=LOW):
    """I(x0; x at logsnr high) - I(x0; x at logsnr low), nats a feature: what the diffusion term is at the truth."""
    return 0.5 * (np.log1p(VARIANCE * np.exp(high)) - np.log1p(VARIANCE * np.exp(low)))


SCHEDULES = {
    "learned-linear": lambda: dj.process.LearnedLogsnr(HIGH, LOW),
    "learned-monotone": lambda: dj.process.MonotoneLogsnr(jax.random.key(3), HIGH, LOW),
    "vp": lambda: dj.process.Clipped(dj.VariancePreserving(), HIGH, LOW),
    "cosine": lambda: dj.process.Clipped(dj.Cosine(), HIGH, LOW),
    "edm": lambda: dj.process.Clipped(dj.EDM(), HIGH, LOW),
    "rectified": lambda: dj.process.Clipped(dj.Rectified(), HIGH, LOW),
    "shifted": lambda: dj.process.Clipped(dj.process.Shifted(dj.process.SubVP(), 1.0), HIGH, LOW),
}


def diffusion(process, member=None, network=None):
    return dj.Diffusion(network or knowing_network(), process, member or dj.EpsPrediction())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("learned-linear", "edm", "shifted") else pytest.mark.slow)
        for name in SCHEDULES
    ],
)
def test_the_continuous_term_depends_on_the_end_points_alone(name):
    """By quadrature over t, x0 and eps, on each schedule's own clock: the mutual information to 1e-6, whichever."""
    process = SCHEDULES[name]()
    nodes, weights = np.polynomial.legendre.leggauss(12)
    # Panels that are even in logsnr; within them the rule is in t.
    edges = np.array(eqx.filter_jit(process.time_from_logsnr)(jnp.linspace(HIGH, LOW, 60)))
    edges[[0, -1]] = [float(end) for end in process.interval()]
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    t, dt = (middle + half * nodes).ravel(), (half * weights).ravel()
    z, w = np.polynomial.hermite_e.hermegauss(3)  # exact, for the error is quadratic in x0 and eps
    w = w / w.sum()
    x0, eps, at = (a.ravel() for a in np.meshgrid(MEAN + np.sqrt(VARIANCE) * z, z, t, indexing="ij"))
    measure = (w[:, None, None] * w[:, None] * dt).ravel()

    @eqx.filter_jit
    def integrand(process, x0, eps, t):
        given = (diffusion(process), jnp.asarray(0.0), x0[:, None], eps[:, None], t)
        return 0.5 * losses.per_sample_loss(*given, weighting=losses.likelihood_weighting)

    got = np.sum(measure * np.asarray(integrand(process, jnp.asarray(x0), jnp.asarray(eps), jnp.asarray(at))))
    np.testing.assert_allclose(got, information(), atol=1e-6)


N = 20_000


@eqx.filter_jit
def _bound(which, process, params, key, x0, **keywords):
    return which(diffusion(process), params, key, x0, **keywords)


def data(n=N, d=2):
    return jnp.asarray(MEAN + np.sqrt(VARIANCE) * np.random.default_rng(0).normal(size=(n, d)))


def near(parts, exact):
    """The mean of the parts [n] within 4.5 standard errors of the exact value."""
    parts = np.asarray(parts)
    return abs(parts.mean() - exact) < 4.5 * parts.std() / np.sqrt(len(parts)) + 1e-9


def test_a_network_that_answers_one_number_has_its_bounds_in_closed_form():
    """x0_hat = c makes the error snr ||c - x0||^2 whatever the noise, so that each sample's terms follow from its time.
    Cosine: logsnr = -2 log tan(pi t/2), with slope -2 pi/sin(pi t). Of K steps each is drawn as often as the others."""
    process, x0, c = dj.Cosine(), data(8), 0.4
    network = dj.Network(lambda *_: None, lambda params, x, c_noise, cond=None, *, key=None: params + 0 * x)
    model = diffusion(process, dj.X0Prediction(), network)
    reconstruction = lambda x0, eps, std: std * jnp.arange(8.0)
    low, high = map(float, process.interval())
    ts = np.array([high, 0.8, 0.5, 0.3, low])

    @jax.jit
    def bounds(key):
        times = dj.StratifiedTimes(process)
        given = (model, jnp.asarray(c), key, x0)
        continuous = losses.negative_continuous_elbo(*given, times=times, reconstruction=reconstruction)
        return continuous, losses.negative_discrete_elbo(*given, ts=ts, reconstruction=reconstruction)

    snr = lambda t: np.tan(np.pi * t / 2) ** -2.0
    square = np.sum((c - np.asarray(x0)) ** 2, axis=1)
    steps = dict(zip(ts[:-1], 4 * np.expm1(np.log(snr(ts[1:]) / snr(ts[:-1]))), strict=True))
    for (nats, parts), drawn in zip(bounds(jax.random.key(1)), ("any", "steps"), strict=True):
        t = np.asarray(parts["t"])
        if drawn == "steps":
            np.testing.assert_array_equal(np.sort(t), np.sort(np.repeat(ts[:-1], 2)))
            weight = np.array([steps[time] for time in t])
        else:
            assert np.all((t > low) & (t < high))
            weight = (high - low) * 2 * np.pi / np.sin(np.pi * t)
        by_hand = {
            "prior": 0.5 * snr(high) * np.sum(np.asarray(x0) ** 2, axis=1),
            "reconstruction": np.arange(8.0) / np.sqrt(snr(low)),
            "diffusion": 0.5 * weight * snr(t) * square,
        }
        for name, truth in by_hand.items():
            np.testing.assert_allclose(parts[name], truth, rtol=1e-9, err_msg=f"{drawn} {name}")
        total = sum(by_hand.values())
        np.testing.assert_allclose(parts["per_sample"], total, rtol=1e-9)
        np.testing.assert_allclose(nats, np.mean(total), rtol=1e-9)
        np.testing.assert_allclose(parts["standard_error"], np.std(total, ddof=1) / np.sqrt(8), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_parts_of_the_continuous_bound(name):
    """Two features: diffusion is the information, prior the quadratic, reconstruction the decoder's entropy; with
    importance-sampled times the same, and closer."""
    process, x0 = SCHEDULES[name](), data()
    spread = []
    for times in (dj.StratifiedTimes(process), dj.process.ImportanceTimes(dj.process.LogsnrTimes(process))):
        nats, parts = _bound(
            losses.negative_continuous_elbo, process, jnp.asarray(0.0), jax.random.key(1), x0, times=times
        )
        assert near(parts["diffusion"], 2 * information())
        np.testing.assert_allclose(parts["prior"], 0.5 * np.exp(LOW) * np.sum(x0**2, 1), rtol=1e-9)
        assert near(parts["reconstruction"], 0.5 * 2 * (1 + np.log(2 * np.pi) - HIGH))
        np.testing.assert_allclose(nats, np.mean(parts["prior"] + parts["reconstruction"] + parts["diffusion"]))
        expected = np.std(parts["per_sample"], ddof=1) / np.sqrt(N)
        np.testing.assert_allclose(parts["standard_error"], expected)
        spread.append(np.std(parts["diffusion"]))
        entropy = 0.5 * 2 * np.log(2 * np.pi * np.e * VARIANCE)
        assert abs(nats - entropy) < 1e-3 + 4.5 * expected, "at the truth the bound is 8e-4 above the entropy"
    assert spread[1] < spread[0] * 1.001
    wrong = _bound(losses.negative_continuous_elbo, process, jnp.asarray(0.3), jax.random.key(1), x0, times=times)[0]
    assert wrong > nats + 0.1


@pytest.mark.slow
def test_the_bound_of_k_steps_falls_to_the_continuous_one():
    """Closed form: 1/2 sum expm1(lambda_s - lambda_t) v e^lambda_t/(1 + v e^lambda_t), v the data's variance."""
    process, x0 = SCHEDULES["cosine"](), data()
    before = np.inf
    gaps = []
    for steps in (1, 2, 8, 32, 1024, 8192):
        ts = np.linspace(1.0, 0.0, steps + 1)
        levels = np.asarray(eqx.filter_jit(process.logsnr)(jnp.asarray(ts)))
        mmse = VARIANCE * np.exp(levels[:-1]) / (1 + VARIANCE * np.exp(levels[:-1]))
        exact = np.sum(0.5 * np.expm1(levels[1:] - levels[:-1]) * mmse)
        assert information() < exact < before
        before = exact
        gaps.append(exact - information())
        if steps in (1, 8, 32):
            nats, parts = _bound(losses.negative_discrete_elbo, process, jnp.asarray(0.0), jax.random.key(2), x0, ts=ts)
            assert near(parts["diffusion"], 2 * exact)
            assert set(np.unique(parts["t"])) == set(ts[:-1]), "each step is drawn"
            np.testing.assert_allclose(nats, np.mean(parts["per_sample"]))
    np.testing.assert_allclose(gaps[-2] / gaps[-1], 8, rtol=0.05)  # of first order in the step


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_level_decoder_is_a_distribution_over_levels(levels):
    """By hand in NumPy: softmax over the levels of -(z - value)^2/(2 std^2), for small and large std, images too."""
    rng = np.random.default_rng(1)
    values = np.linspace(-1, 1, levels)
    x0, eps = rng.choice(values, (5, 2, 2, 1)), rng.normal(size=(5, 2, 2, 1))
    for std in (1e-4, 0.02, 1.0):
        z = x0 + std * eps
        log_weight = -((z[..., None] - values) ** 2) / (2 * std**2)
        normaliser = np.logaddexp.reduce(log_weight, axis=-1)
        by_hand = -(-((z - x0) ** 2) / (2 * std**2) - normaliser).sum(axis=(1, 2, 3))
        got = losses.LevelDecoder(levels)(jnp.asarray(x0), jnp.asarray(eps), jnp.asarray(std))
        np.testing.assert_allclose(got, by_hand, rtol=1e-6, atol=1e-9)


def test_a_learned_schedule_trains_through_the_bound():
    """Its end points have the gradient of the closed form; a network that errs has one as well."""
    process, x0 = dj.process.LearnedLogsnr(4.0, -2.0), data()

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(process):
        times = dj.StratifiedTimes(process)
        return losses.negative_continuous_elbo(
            diffusion(process), jnp.asarray(0.0), jax.random.key(4), x0, times=times
        )[0]

    got = slope(process)
    for end, sign, reconstruction, prior in (("logsnr_max", 1, -1.0, 0.0), ("logsnr_min", -1, 0.0, 1.0)):
        level = float(getattr(process, end))
        mmse = VARIANCE * np.exp(level) / (1 + VARIANCE * np.exp(level))
        expected = sign * mmse + reconstruction + prior * 0.5 * np.exp(level) * np.mean(np.sum(x0**2, 1))
        np.testing.assert_allclose(getattr(got, end), expected, atol=0.05)


# --- DDPM's chain ---


def chain_by_hand(x0, xt, k, y_hat, log_share, betas, last):
    """Nats of step k = 1 .. K by Ho et al.'s formulas: KL of two Gaussians, or the last step's bins of 17 levels."""
    alpha_bar = np.cumprod(1 - betas)
    beta, bar = betas[k - 1][:, None], alpha_bar[k - 1][:, None]
    bar_before = np.where(k > 1, alpha_bar[np.maximum(k - 2, 0)], 1.0)[:, None]
    tilde = (1 - bar_before) / (1 - bar) * beta
    mean = np.sqrt(bar_before) * beta / (1 - bar) * x0 + np.sqrt(1 - beta) * (1 - bar_before) / (1 - bar) * xt
    mean_hat = (xt - beta / np.sqrt(1 - bar) * y_hat) / np.sqrt(1 - beta)
    floor = (1 - alpha_bar[0]) / (1 - alpha_bar[1]) * betas[1]
    variance = np.exp(log_share * np.log(beta) + (1 - log_share) * np.log(np.where(k[:, None] == 1, floor, tilde)))
    with np.errstate(divide="ignore"):
        kl = 0.5 * (np.log(variance / tilde) + tilde / variance - 1 + (mean - mean_hat) ** 2 / variance)
    normal, half = stats.norm(mean_hat, np.sqrt(variance)), 1 / 16
    mass = np.where(x0 > 1 - half, 1.0, normal.cdf(x0 + half)) - np.where(x0 < half - 1, 0.0, normal.cdf(x0 - half))
    return np.where(k == 1, -np.log(mass).sum(1) if last else np.nan, kl.sum(1))


VARIANCES = {
    "large": (losses.large_variance, lambda answer: 1.0),
    "small": (losses.small_variance, lambda answer: 0.0),
    "learned": (losses.learned_variance, lambda answer: (answer + 1) / 2),
}


def two_halves(seen=None):
    """A prediction times params[0], and what it says of the variance times params[1]."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        y, answer = params[0] * (0.8 * x + 0.1 * c_noise[:, None]), params[1] * jnp.sin(x)
        if seen is not None:
            seen.append((x, y, answer))
        return jnp.concatenate([y, answer], axis=-1)

    return dj.Network(lambda *_: None, apply)


@eqx.filter_jit
def _chain(params, chain, x0, ts):
    key, keywords = jax.random.key(5), {"ts": ts, "reconstruction": losses.BinDecoder(17)}
    out = {}
    for name, (variance, _) in VARIANCES.items():
        seen = []
        model = diffusion(chain, network=two_halves(seen))
        bound = losses.negative_ddpm_elbo(model, params, key, x0, variance=variance, **keywords)
        out[name] = bound, seen[0]
    model = diffusion(chain, network=two_halves())
    hybrid = lambda params: losses.learned_variance_loss(model, params, key, x0, **keywords)
    return out, jax.grad(hybrid, has_aux=True)(params)


@pytest.mark.slow
def test_every_step_of_the_chain_is_ddpms():
    """And the hybrid loss moves the prediction by the simple loss alone, the variance by a thousandth of the bound."""
    betas = np.linspace(0.02, 0.3, 7)
    chain, ts = dj.process.DiscreteChain(jnp.asarray(betas)), np.arange(7, -1, -1) / 7
    x0 = np.random.default_rng(2).choice(np.linspace(-1, 1, 17), (210, 3))
    alpha_bar, params = np.cumprod(1 - betas), np.array([1.1, 0.9])
    found, (slope, simple) = _chain(jnp.asarray(params), chain, jnp.asarray(x0), ts)
    for name, ((nats, parts), (xt, y_hat, answer)) in found.items():
        k = np.rint(np.asarray(parts["t"]) * 7).astype(int)
        np.testing.assert_array_equal(np.bincount(k)[1:], 30)
        share = VARIANCES[name][1](np.asarray(answer))
        by_hand = 7 * chain_by_hand(x0, np.asarray(xt), k, np.asarray(y_hat), share, betas, last=True)
        np.testing.assert_allclose(parts["diffusion"], by_hand, rtol=1e-7, atol=1e-9, err_msg=name)
        # The prior is the sampler's, N(0, 1 - alpha_bar_K), which fits the noise exactly.
        np.testing.assert_allclose(parts["prior"], 0.5 * alpha_bar[-1] / (1 - alpha_bar[-1]) * np.sum(x0**2, 1))
        np.testing.assert_allclose(nats, np.mean(parts["prior"] + by_hand))
        each = np.asarray(parts["prior"]) + by_hand
        np.testing.assert_allclose(parts["standard_error"], each.std(ddof=1) / np.sqrt(len(each)), rtol=1e-7)
    # The hybrid loss has the learned variance's network and draws.
    _, (xt, y_hat, answer) = jax.tree.map(np.asarray, found["learned"])
    nats_at = lambda p: 7 / 3 * chain_by_hand(x0, xt, k, y_hat, (p / params[1] * answer + 1) / 2, betas, last=True)
    eps = (xt - np.sqrt(alpha_bar[k - 1])[:, None] * x0) / np.sqrt(1 - alpha_bar[k - 1])[:, None]
    np.testing.assert_allclose(simple["simple"], np.mean((eps - y_hat) ** 2, 1), rtol=1e-9)
    np.testing.assert_allclose(simple["bound"], nats_at(params[1]), rtol=1e-7)
    np.testing.assert_allclose(simple["per_sample"], simple["simple"] + 1e-3 * simple["bound"], rtol=1e-12)
    np.testing.assert_allclose(slope[0], np.mean(2 * (y_hat - eps) * y_hat / params[0]), rtol=1e-9)
    by_difference = np.mean(nats_at(params[1] + 1e-5) - nats_at(params[1] - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope[1], 1e-3 * by_difference, rtol=1e-6)
    only = losses.prediction_only(two_halves()).apply(jnp.asarray(params), jnp.asarray(xt), jnp.zeros(len(x0)))
    np.testing.assert_allclose(only, params[0] * 0.8 * xt, rtol=1e-12)


@pytest.mark.slow
def test_small_variance_is_the_k_step_bound():
    """With the posterior's variance a step's divergence is 1/2 expm1(lambda_s - lambda_t) ||eps - eps_hat||^2."""
    chain, ts = dj.process.DiscreteChain(jnp.linspace(0.02, 0.3, 6)), np.arange(6, -1, -1) / 6
    x0 = data(300)
    keywords = {"ts": ts, "variance": losses.small_variance}
    parts = _bound(losses.negative_ddpm_elbo, chain, jnp.asarray(0.2), jax.random.key(7), x0, **keywords)[1]
    other = _bound(losses.negative_discrete_elbo, chain, jnp.asarray(0.2), jax.random.key(8), x0, ts=ts[:-1])[1]
    for step in ts[:-2]:
        mine, theirs = (np.asarray(p["diffusion"])[np.asarray(p["t"]) == step] for p in (parts, other))
        error = np.hypot(mine.std() / len(mine) ** 0.5, theirs.std() / len(theirs) ** 0.5 * 6 / 5)
        assert abs(mine.mean() - theirs.mean() * 6 / 5) < 4.5 * error


@pytest.mark.slow
def test_bins_are_a_distribution_and_keep_their_digits():
    values = np.linspace(-1, 1, 17)
    decoder = losses.BinDecoder(17)
    for mean, log_variance in ((0.1, -3.0), (-1.4, -6.0), (0.97, 1.0)):
        at = (jnp.asarray(values)[:, None], jnp.full((17, 1), mean), jnp.asarray(log_variance))
        np.testing.assert_allclose(np.exp(-decoder(*at)).sum(), 1, rtol=1e-12)
    far = decoder(jnp.full((1, 1), 0.5), jnp.full((1, 1), -0.9), jnp.asarray(np.log(0.01)))  # thirteen deviations off
    exact = integrate.quad(lambda x: np.exp(-0.5 * ((x + 0.9) / 0.1) ** 2), 0.5 - 1 / 16, 0.5 + 1 / 16, epsabs=0)[0]
    np.testing.assert_allclose(far[0], -np.log(exact / (0.1 * np.sqrt(2 * np.pi))), rtol=1e-9)


@pytest.mark.slow
def test_finite_in_float32_with_a_gradient_in_everything():
    """Both bounds, images; the gradient also with respect to the schedule's end points."""
    with jax.enable_x64(False):
        process = dj.process.LearnedLogsnr(13.3, -5.0)
        members = [ALL_PARAMETERISATIONS[name]() for name in ("eps", "v", "edm")]
        x0 = jnp.linspace(-1, 1, 32, dtype=jnp.float32).reshape(8, 2, 2, 1)
        network = dj.Network(lambda *_: None, lambda params, x, c_noise, cond=None, *, key=None: params * x)

        def value(everything):
            params, process, member = everything
            given = (dj.Diffusion(network, process, member), params, jax.random.key(9), x0)
            decoder = losses.LevelDecoder(32)
            times, ts = dj.StratifiedTimes(process), jnp.linspace(1.0, 0.0, 5)
            one = losses.negative_continuous_elbo(*given, times=times, reconstruction=decoder)[0]
            return one + losses.negative_discrete_elbo(*given, ts=ts, reconstruction=decoder)[0]

        @eqx.filter_jit
        def values(params, process, members):
            return [eqx.filter_value_and_grad(value)((params, process, member)) for member in members]

        for nats, slope in values(jnp.asarray(0.5, jnp.float32), process, members):
            assert nats.dtype == jnp.float32
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((nats, slope)))


@pytest.mark.slow
def test_the_chains_bound_has_a_gradient_in_its_betas_and_in_any_schedule():
    """Finite, and for the betas that of central differences: with the chain built inside the loss."""
    betas, x0 = jnp.linspace(0.02, 0.3, 4), data(64)
    keywords = {"ts": np.arange(4, -1, -1) / 4, "variance": losses.small_variance}

    @jax.jit
    def of_betas(betas):
        chain = dj.process.DiscreteChain(betas)
        return losses.negative_ddpm_elbo(diffusion(chain), jnp.asarray(0.2), jax.random.key(7), x0, **keywords)[0]

    @eqx.filter_jit
    @eqx.filter_grad
    def of_process(process):
        return losses.negative_ddpm_elbo(diffusion(process), jnp.asarray(0.2), jax.random.key(7), x0, **keywords)[0]

    slope = jax.grad(of_betas)(betas)
    for i, move in enumerate(1e-6 * np.eye(4)):
        expected = (of_betas(betas + move) - of_betas(betas - move)) / 2e-6
        np.testing.assert_allclose(slope[i], expected, rtol=1e-5)
    assert all(np.isfinite(leaf) and leaf != 0 for leaf in jax.tree.leaves(of_process(dj.VariancePreserving())))


def test_bad_input_is_refused_by_name_and_value():
    chain, x0 = dj.process.DiscreteChain(jnp.full(3, 0.1)), data(4)
    given = (diffusion(chain), jnp.asarray(0.0), jax.random.key(0), x0)
    with pytest.raises(ValueError, match=r"ts: must descend"):
        losses.negative_discrete_elbo(*given, ts=np.array([0.2, 0.5]))
    with pytest.raises(ValueError, match=r"ts: the last time must be one without noise, got sigma = 0\.\d"):
        losses.negative_ddpm_elbo(*given, ts=np.array([1.0, 1 / 3]))
    with pytest.raises(ValueError, match=r"network: a learned variance needs twice"):
        losses.negative_ddpm_elbo(*given, ts=np.array([1.0, 1 / 3, 0.0]))
    with pytest.raises(ValueError, match=r"ts: at least two steps are needed.* got 2 times"):
        losses.negative_ddpm_elbo(*given, ts=np.array([1.0, 0.0]), variance=losses.small_variance)
    with pytest.raises(ValueError, match=r"ts: logsnr must be finite on the grid, got inf at t = 0\.0"):
        losses.negative_discrete_elbo(*given, ts=np.array([1.0, 0.5, 0.0]))
    for times in (dj.process.LognormalTimes(chain), dj.process.LogsnrTimes(chain)):
        with pytest.raises(ValueError, match=rf"times: .*uniform times, got {type(times).__name__}"):
            losses.negative_continuous_elbo(*given, times=times)
    off = jnp.array([[-1.0, 0.03]])
    with pytest.raises(ValueError, match=r"x0: must lie on 17 levels spread evenly from -1 to 1, got 0\.03"):
        losses.LevelDecoder(17)(off, off, jnp.asarray(0.1))
    with pytest.raises(ValueError, match=r"x0: must lie on 17 levels spread evenly from -1 to 1, got 0\.03"):
        losses.BinDecoder(17)(off, off, jnp.asarray(0.1))
    for make in (losses.LevelDecoder, losses.BinDecoder):
        with pytest.raises(ValueError, match=r"levels: .*got 1"):
            make(1)
    with pytest.raises(ValueError, match=r"high: .*got -2"):
        losses.LevelDecoder(4, -1.0, -2.0)
