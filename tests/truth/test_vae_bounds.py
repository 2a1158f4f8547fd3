"""Bounds of VAEs against closed forms and quadrature: ELBO, IWAE, delta-VAE, free bits, and decoders' likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize, stats

import diffjax as dj
from diffjax import vae

KEY = jax.random.key(0)


def linear_network(matrix, offset):
    """x -> [matrix x, offset]: an encoder's means and log standard deviations, or a decoder's mean without offset."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        y = x @ params["matrix"].T
        given = params["offset"]
        return jnp.concatenate([y, jnp.broadcast_to(given, (x.shape[0], *given.shape))], axis=-1)

    params = {"matrix": jnp.asarray(matrix), "offset": jnp.asarray(offset)}
    return dj.Network(lambda key, x, c_noise, cond=None: params, apply)


def linear_vae(model, prior=None):
    """(a `VAE`, its parameters) that computes what a `LinearVAE` of mean 0 does."""
    encoder = linear_network(model.encoder, 0.5 * jnp.log(model.latent_variances))
    decoder = linear_network(model.weight, jnp.zeros(0))
    made = vae.VAE(encoder, decoder, vae.GaussianLikelihood(), model.weight.shape[1], prior or vae.StandardNormal())
    params = made.init(KEY, jnp.zeros((1, model.weight.shape[0])))
    return made, params | {"likelihood": {"log_std": 0.5 * jnp.log(model.variance)}}


COVARIANCE = np.array([[3.0, 0.8, 0.2], [0.8, 1.5, -0.3], [0.2, -0.3, 0.5]])


def drawn(n):
    return jnp.asarray(np.random.default_rng(0).multivariate_normal(np.zeros(3), COVARIANCE, n))


def near(values, exact):
    """The mean of the values [n] within 4.5 standard errors of the exact one."""
    values = np.asarray(values)
    return abs(values.mean() - exact) < 4.5 * values.std() / np.sqrt(len(values))


def test_the_loss_of_a_linear_vae_is_its_closed_form():
    """Rates exactly, for they are closed; the reconstruction within its noise; beta on the rate alone."""
    oracle = vae.optimal_linear_vae(jnp.zeros(3), jnp.asarray(COVARIANCE), 2, variance=0.4, beta=1.5)
    made, params = linear_vae(oracle)
    x0 = drawn(4000)
    mean, covariance = jnp.mean(x0, axis=0), jnp.cov(x0.T, bias=True)
    loss, aux = jax.jit(lambda p, x: vae.negative_elbo(made, p, KEY, x, beta=1.5))(params, x0)
    rate = oracle.rates(mean, covariance).sum()
    np.testing.assert_allclose(jnp.mean(aux["rate"]), rate, rtol=1e-12)
    assert near(aux["reconstruction"], oracle.reconstruction(mean, covariance))
    np.testing.assert_allclose(loss, jnp.mean(aux["reconstruction"]) + 1.5 * rate, rtol=1e-12)
    np.testing.assert_allclose(aux["per_sample"], aux["reconstruction"] + aux["rate"], rtol=1e-12)
    np.testing.assert_allclose(aux["rates"][:, 0], aux["rate"])
    np.testing.assert_allclose(aux["negative_elbo"], jnp.mean(aux["per_sample"]))
    np.testing.assert_allclose(aux["standard_error"], np.std(aux["per_sample"], ddof=1) / np.sqrt(4000))


def test_the_slope_of_the_loss_is_that_of_the_closed_form():
    """Reparameterised draws differentiate the bound: by W, V, d and sigma^2, within noise."""
    oracle = vae.optimal_linear_vae(jnp.zeros(3), jnp.asarray(COVARIANCE), 2, variance=0.4)
    oracle = vae.LinearVAE(1.2 * oracle.weight, oracle.mean, oracle.variance, oracle.encoder, oracle.latent_variances)
    made, params = linear_vae(oracle)
    x0 = drawn(200)
    mean, covariance = jnp.mean(x0, axis=0), jnp.cov(x0.T, bias=True)
    slope = jax.grad(lambda p, key: vae.negative_elbo(made, p, key, x0)[0])
    got = jax.jit(jax.vmap(slope, (None, 0)))(params, jax.random.split(KEY, 400))
    by_model = jax.grad(lambda m: -m.elbo(mean, covariance))(oracle)
    pairs = [
        (got["decoder"]["matrix"], by_model.weight),
        (got["encoder"]["matrix"], by_model.encoder),
        (got["encoder"]["offset"], 2 * oracle.latent_variances * by_model.latent_variances),
        (got["likelihood"]["log_std"], 2 * oracle.variance * by_model.variance),
    ]
    for drawn_slopes, exact in pairs:
        error = np.std(drawn_slopes, axis=0) / np.sqrt(400)
        assert np.all(np.abs(np.mean(drawn_slopes, axis=0) - exact) < 4.5 * error + 1e-12)
        assert np.max(np.abs(exact)) > 4.5 * np.max(error)


# --- IWAE ---

W, VARIANCE, X = 1.2, 0.5, 1.7
EXACT = stats.norm.logpdf(X, 0, np.sqrt(W**2 + VARIANCE))


def line():
    """The 1-D linear model with the wrong q = N(0.4, 0.9^2), whatever x."""
    encoder = dj.Network(
        lambda key, x, c_noise, cond=None: {},
        lambda params, x, c_noise, cond=None, *, key=None: jnp.tile(jnp.array([0.4, np.log(0.9)]), (x.shape[0], 1)),
    )
    made = vae.VAE(encoder, linear_network([[W]], np.zeros(0)), vae.GaussianLikelihood(np.sqrt(VARIANCE)), 1)
    return made, made.init(KEY, jnp.zeros((1, 1)))


def test_iwae_is_exact_at_one_and_two_draws():
    """By Gauss-Hermite quadrature over z of the log weights at given latents."""
    made, params = line()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    z = jnp.asarray(0.4 + 0.9 * nodes)[:, None]
    inference = jax.jit(lambda z: vae.infer_at(made, params, (z,), jnp.full_like(z, X)).log_weight)
    log_weight = np.asarray(inference(z))
    assert f"{np.sum(weights * log_weight):.5f}" == "-3.31753"
    pairs = np.logaddexp(log_weight[:, None], log_weight) - np.log(2)
    assert f"{weights @ pairs @ weights:.5f}" == "-2.44423"
    np.testing.assert_allclose(np.sum(weights * np.exp(log_weight)), np.exp(EXACT), rtol=1e-6)
    assert f"{EXACT:.5f}" == "-1.99513"


def test_iwae_rises_with_the_number_of_draws_to_the_likelihood():
    """2000 items that are equal and draw by their own indices, each a bound; 1 and 2 draws are those of quadrature."""
    made, params = line()
    x0 = jnp.full((2000, 1), X)
    means, errors = [], []
    for draws in (1, 2, 5, 20, 100):
        nats, error = vae.iwae_bound(made, params, jax.random.key(draws), x0, draws=draws)
        means.append(float(nats.mean()))
        errors.append(float(nats.std()) / np.sqrt(2000))
        assert np.all(np.isnan(error)) == (draws == 1)
    tolerance = 4.5 * np.array(errors) + 5e-4
    assert np.all(np.abs(np.array(means) - [-3.31753, -2.44423, -2.108, -2.020, -2.000]) < tolerance)
    assert np.all(np.diff(means) > 0)
    assert means[-1] < EXACT
    # The error by the delta method is the scatter of the estimates.
    np.testing.assert_allclose(np.mean(error), np.std(nats), rtol=0.1)


def test_with_the_exact_posterior_every_weight_is_the_likelihood():
    """One draw is enough, wherever it falls: here of a plain VAE with two latents."""
    oracle = vae.optimal_linear_vae(jnp.zeros(3), jnp.asarray(COVARIANCE), 2)
    made, params = linear_vae(oracle)
    x0 = drawn(5)
    covariance = np.asarray(oracle.weight @ oracle.weight.T + oracle.variance * np.eye(3))
    exact = stats.multivariate_normal(np.zeros(3), covariance).logpdf(np.asarray(x0))
    nats, error = vae.iwae_bound(made, params, KEY, x0, draws=3)
    np.testing.assert_allclose(nats, exact, rtol=1e-10)
    assert np.all(np.asarray(error) < 1e-10)
    np.testing.assert_allclose(vae.infer(made, params, KEY, x0).log_weight, exact, rtol=1e-10)


# --- delta-VAE ---


def test_the_least_rate_of_the_autoregressive_prior_is_its_closed_form():
    """1.036 nats of 10 latents at 0.5, and 9.730 of 32 at 0.9; minimisation over every mean and scale ends there."""
    for n, a, printed in ((10, 0.5, "1.036"), (32, 0.9, "9.730")):
        least = float(vae.least_rate(n, a))
        assert f"{least:.3f}" == printed
        prior = vae.AutoregressivePrior(a)

        @jax.jit
        @jax.value_and_grad
        def rate(flat, prior=prior, n=n):
            posterior = vae.DiagonalGaussian(flat[None, :n], flat[None, n:])
            return jnp.sum(prior.divergence(posterior))

        start = np.random.default_rng(n).normal(size=2 * n)
        found = optimize.minimize(lambda x: tuple(map(np.asarray, rate(x))), start, jac=True, method="L-BFGS-B")
        np.testing.assert_allclose(found.fun, least, rtol=1e-6)
        assert rate(start)[0] > least


def test_the_rate_against_the_autoregressive_prior_is_that_of_full_gaussians():
    """By covariance matrices; densities too, and draws have the covariance a^|i - j|."""
    n, a = 4, 0.7
    prior, rng = vae.AutoregressivePrior(a), np.random.default_rng(5)
    mean, log_std = rng.normal(size=(2, 1, n))
    covariance = a ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    precision, scales = np.linalg.inv(covariance), np.exp(2 * log_std[0])
    log_ratio = np.linalg.slogdet(covariance)[1] - np.sum(2 * log_std)
    by_hand = 0.5 * (np.trace(precision @ np.diag(scales)) + mean[0] @ precision @ mean[0] - n + log_ratio)
    posterior = vae.DiagonalGaussian(jnp.asarray(mean), jnp.asarray(log_std))
    np.testing.assert_allclose(prior.divergence(posterior).sum(), by_hand, rtol=1e-12)
    z = jnp.asarray(rng.normal(size=(3, n)))
    exact = stats.multivariate_normal(np.zeros(n), covariance).logpdf(np.asarray(z))
    np.testing.assert_allclose(prior.log_prob(z).sum(1), exact, rtol=1e-12)
    keys = jax.random.split(KEY, 20_000)
    np.testing.assert_allclose(jnp.cov(prior.sample(keys, (20_000, n)).T), covariance, atol=0.04)
    cold = prior.sample(keys[:2], (2, n), 0.5)
    np.testing.assert_allclose(cold, 0.5 * prior.sample(keys[:2], (2, n)), rtol=1e-12)
    assert float(vae.least_rate(1, a)) == 0


def test_divergences_are_those_of_gaussians_by_quadrature():
    """By latent: against a standard normal, and between two; log densities by SciPy; 0 where the two are one."""
    q = vae.DiagonalGaussian(jnp.array([[0.3, -1.0]]), jnp.log(jnp.array([[0.5, 2.0]])))
    p = vae.DiagonalGaussian(jnp.array([[0.1, 0.7]]), jnp.log(jnp.array([[0.9, 0.4]])))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    for prior, mean, std in ((vae.StandardNormal(), [0.0, 0.0], [1.0, 1.0]), (p, [0.1, 0.7], [0.9, 0.4])):
        for i, (m, s) in enumerate(((0.3, 0.5), (-1.0, 2.0))):
            z = m + s * nodes
            ratio = stats.norm.logpdf(z, m, s) - stats.norm.logpdf(z, mean[i], std[i])
            exact = np.sum(weights * ratio) / weights.sum()
            np.testing.assert_allclose(prior.divergence(q)[0, i], exact, rtol=1e-10)
        z = jnp.array([[0.2, -0.4]])
        np.testing.assert_allclose(prior.log_prob(z)[0], stats.norm.logpdf([0.2, -0.4], mean, std), rtol=1e-12)
    assert np.all(np.asarray(q.divergence(q)) == 0)
    nothing = vae.residual_gaussian(p, jnp.zeros((1, 4)))
    assert np.all(np.asarray(p.divergence(nothing)) == 0)
    moved = vae.residual_gaussian(p, jnp.array([[0.5, 0.0, 0.0, jnp.log(2.0)]]))
    np.testing.assert_allclose(moved.mean, [[0.6, 0.7]], rtol=1e-12)
    np.testing.assert_allclose(p.divergence(moved)[0, 0], 0.5 * (0.5 / 0.9) ** 2, rtol=1e-12)
    np.testing.assert_allclose(p.divergence(moved)[0, 1], 0.5 * (4 - 1 - np.log(4)), rtol=1e-12)


# --- free bits and warm-up ---


def test_free_bits_charge_each_group_at_least_so_much_and_leave_it_without_a_gradient_below():
    """Latents of an image [b, 2, 2, 3]: by latent, by channel, by level; above and below the free nats."""
    rates = np.abs(np.random.default_rng(2).normal(size=(4, 2, 2, 3))) * np.array([0.1, 1.0, 10.0])
    means = np.sqrt(2 * rates)  # KL = mean^2/2 at unit variance
    encoder = dj.Network(
        lambda key, x, c_noise, cond=None: jnp.asarray(means),
        lambda params, x, c_noise, cond=None, *, key=None: jnp.concatenate([params, jnp.zeros_like(params)], axis=-1),
    )
    decoder = dj.Network(
        lambda key, x, c_noise, cond=None: {},
        lambda params, x, c_noise, cond=None, *, key=None: jnp.zeros((4, 1)),
    )
    made = vae.VAE(encoder, decoder, vae.GaussianLikelihood(1.0), (2, 2, 3))
    x0 = jnp.zeros((4, 1))
    params = made.init(KEY, x0)
    batch = rates.mean(0)
    groups = {"latent": batch, "channel": batch.sum((0, 1)), "level": batch.sum()}
    reconstruction = 0.5 * np.log(2 * np.pi)

    def charged(params, free, group):
        loss, aux = vae.negative_elbo(made, params, KEY, x0, beta=2.0, free_bits=free, group=group)
        return loss, aux["negative_elbo"]

    for group, nats in groups.items():
        for free in (0.0, 3.0, 1000.0):
            value = jax.jit(jax.value_and_grad(charged, has_aux=True), static_argnums=2)
            (loss, bound), slope = value(params, free, group)
            np.testing.assert_allclose(loss, reconstruction + 2 * np.sum(np.maximum(free, nats)), rtol=1e-12)
            np.testing.assert_allclose(bound, reconstruction + batch.sum(), rtol=1e-12)
            expected = 2 * np.broadcast_to(nats > free, means.shape) * means / 4
            np.testing.assert_allclose(slope["encoder"], expected, rtol=1e-12)


def test_warm_ups_follow_their_formulas():
    steps = np.arange(0, 40)
    linear = [float(vae.linear_warm_up(int(k), steps=10, start=0.2, stop=0.8)) for k in steps]
    np.testing.assert_allclose(linear, 0.2 + 0.6 * np.minimum(steps / 10, 1), rtol=1e-6)
    cyclic = [float(vae.cyclic_warm_up(int(k), period=10, ramp=0.25)) for k in steps]
    np.testing.assert_allclose(cyclic, np.minimum((steps % 10) / 10 / 0.25, 1), rtol=1e-6)
    traced = jax.jit(lambda k: vae.linear_warm_up(k, steps=10))(jnp.asarray(5, jnp.int32))
    assert traced == 0.5
    assert [float(vae.linear_warm_up(step, steps=1)) for step in (0, 1)] == [0, 1]
    assert [float(vae.cyclic_warm_up(step, period=1)) for step in (0, 1)] == [0, 0]  # each step begins a period


# --- likelihoods ---


def test_the_discretised_logistic_sums_to_one_over_all_256_values():
    """Wherever the location and scale are; each probability is a difference of two sigmoids."""
    likelihood = vae.DiscretisedLogistic()
    levels = jnp.asarray(np.linspace(-1, 1, 256))[:, None]
    log_prob = jax.jit(lambda y: likelihood.log_prob({}, jnp.broadcast_to(y, (256, 2)), levels))
    for location in (-3.0, -1.0, 0.1234, 0.999, 20.0):
        for log_scale in (-14.0, -5.0, -1.0, 2.0):
            nats = np.asarray(log_prob(jnp.array([location, log_scale])))
            assert np.all(np.isfinite(nats))
            np.testing.assert_allclose(np.exp(nats).sum(), 1, atol=1e-9)
    edges = np.concatenate([[-np.inf], np.linspace(-1, 1, 256)[:-1] + 1 / 255, [np.inf]])
    by_hand = np.diff(stats.logistic.cdf(edges, 0.1234, np.exp(-1.0)))
    np.testing.assert_allclose(np.exp(log_prob(jnp.array([0.1234, -1.0]))), by_hand, rtol=1e-9)


def test_draws_of_the_discretised_logistic_have_its_probabilities():
    likelihood, n = vae.DiscretisedLogistic(5), 20_000
    y = jnp.broadcast_to(jnp.array([0.2, -1.0]), (n, 2))
    x0 = np.asarray(likelihood.sample({}, jax.random.split(KEY, n), y))
    levels = np.linspace(-1, 1, 5)
    counts = np.array([np.sum(np.isclose(x0, level)) for level in levels])
    assert counts.sum() == n
    shares = np.exp(likelihood.log_prob({}, y[:5], jnp.asarray(levels)[:, None]))
    assert stats.chisquare(counts, n * shares).pvalue > 1e-4


def test_the_learned_scale_has_its_optimum_at_the_mean_squared_error():
    likelihood = vae.GaussianLikelihood()
    rng = np.random.default_rng(7)
    y, x0 = jnp.asarray(rng.normal(size=(50, 3))), jnp.asarray(rng.normal(size=(50, 3)))
    error = np.mean((y - x0) ** 2)
    nats = lambda log_std: jnp.mean(likelihood.log_prob({"log_std": log_std}, y, x0))
    best = jnp.asarray(0.5 * np.log(error))
    assert abs(jax.grad(nats)(best)) < 1e-12
    exact = stats.norm.logpdf(np.asarray(x0), np.asarray(y), np.sqrt(error)).sum(1).mean()
    np.testing.assert_allclose(nats(best), exact, rtol=1e-12)
    fixed = vae.GaussianLikelihood(float(np.sqrt(error)))
    np.testing.assert_allclose(jnp.mean(fixed.log_prob({}, y, x0)), exact, rtol=1e-12)
    assert fixed.init(KEY, y, x0) == {}


def test_the_levels_of_a_likelihood_are_static():
    """Nothing of them is traced, so that a model passes `jax.jit` with its checks on, and none is trained."""
    for likelihood in (vae.Bernoulli(), vae.Bernoulli(-1.0, 1.0), vae.DiscretisedLogistic(4, low=0.0)):
        assert jax.tree.leaves(likelihood) == []


def test_bernoulli_is_a_distribution_over_binary_data_and_refuses_grey():
    """Of two pixels all four images sum to 1; with values -1 and 1 as well. Under jit a grey image is NaN."""
    logits = jnp.broadcast_to(jnp.array([0.7, -2.0]), (4, 2))
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        likelihood = vae.Bernoulli(low, high)
        x0 = jnp.array([[low, low], [low, high], [high, low], [high, high]])
        shares = np.exp(likelihood.log_prob({}, logits, x0))
        p = 1 / (1 + np.exp(-np.array([0.7, -2.0])))
        np.testing.assert_allclose(shares, [(1 - p[0]) * (1 - p[1]), (1 - p[0]) * p[1], p[0] * (1 - p[1]), p[0] * p[1]])
        np.testing.assert_allclose(shares.sum(), 1)
        np.testing.assert_allclose(likelihood.mean({}, logits)[0], low + (high - low) * p)
        draws = np.asarray(likelihood.sample({}, jax.random.split(KEY, 4000), jnp.broadcast_to(logits[0], (4000, 2))))
        assert set(np.unique(draws)) == {low, high}
        np.testing.assert_allclose((draws == high).mean(0), p, atol=0.04)
    grey = jnp.array([[0.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"x0: a Bernoulli likelihood needs data that are 0 or 1, got 0\.5; binarise"):
        vae.Bernoulli().log_prob({}, logits[:2], grey)
    nats = jax.jit(lambda x: vae.Bernoulli().log_prob({}, logits[:2], x))(grey)
    assert np.array_equal(np.isnan(nats), [True, False])


@jax.numpy_dtype_promotion("standard")  # as a network's float32 masks need
def test_an_autoregressive_decoder_is_a_distribution():
    """Over all 16 binary images of 2 x 2 its probabilities sum to 1, with a network of random weights."""
    network = dj.from_linen(dj.networks.MaskedDecoder(width=4, depth=1, dtype=jnp.float64))
    likelihood = vae.Autoregressive(network, vae.Bernoulli(), (2, 2, 1))
    images = ((np.arange(16)[:, None] >> np.arange(4)) & 1).astype(float).reshape(16, 2, 2, 1)
    y = jnp.broadcast_to(jnp.array([0.3, -1.0]), (16, 2))
    params = likelihood.init(KEY, y, jnp.asarray(images))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    log_prob = jax.jit(lambda params, y: likelihood.log_prob(params, y, jnp.asarray(images)))
    shares = np.exp(log_prob(params, y))
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
    assert np.abs(shares - np.exp(log_prob(params, 2 * y))).max() > 1e-4, "it sees z"
    n = 4000
    draw = jax.jit(lambda keys: likelihood.sample(params, keys, jnp.broadcast_to(y[0], (n, 2))))
    x0 = np.asarray(draw(jax.random.split(KEY, n))).reshape(n, 4)
    counts = np.bincount((x0 @ (1 << np.arange(4))).astype(int), minlength=16)
    assert stats.chisquare(counts, n * shares / shares.sum()).pvalue > 1e-4


# --- generation ---


def test_generated_data_have_the_models_covariance():
    oracle = vae.optimal_linear_vae(jnp.zeros(3), jnp.asarray(COVARIANCE), 2)
    made, params = linear_vae(oracle)
    draw = jax.jit(
        lambda params, index, temperature, noise: vae.generate(
            made, params, KEY, index, temperature=temperature, noise=noise
        ),
        static_argnums=3,
    )
    index = jnp.arange(20_000)
    model = np.asarray(oracle.weight @ oracle.weight.T)
    noise = float(oracle.variance) * np.eye(3)
    np.testing.assert_allclose(jnp.cov(draw(params, index, 1.0, True).T), model + noise, atol=0.12)
    np.testing.assert_allclose(jnp.cov(draw(params, index, 0.5, False).T), 0.25 * model, atol=0.04)
    few = draw(params, index[7:9], 1.0, True)
    np.testing.assert_allclose(few, draw(params, index, 1.0, True)[7:9], rtol=1e-12)
    x0 = drawn(4)
    z = tuple(level.z for level in vae.infer(made, params, KEY, x0).levels)
    np.testing.assert_allclose(vae.decode(made, params, z), z[0] @ oracle.weight.T, rtol=1e-12)


def test_training_with_drawn_latents_collapses_the_latent_whose_eigenvalue_is_below_the_noise():
    """Eigenvalues 3, 1 and sigma^2 = 2: one latent is used, one is not; at sigma^2 = 0.5 both are."""
    x0 = drawn_with(jnp.array([3.0, 1.0]), 512)
    for variance, used in ((2.0, 1), (0.5, 2)):
        rng = np.random.default_rng(1)
        encoder = linear_network(0.3 * rng.normal(size=(2, 2)), np.zeros(2))
        decoder = linear_network(0.3 * rng.normal(size=(2, 2)), np.zeros(0))
        made = vae.VAE(encoder, decoder, vae.GaussianLikelihood(np.sqrt(variance)), 2)
        params = made.init(KEY, x0)
        tx = optax.adam(0.02)

        @jax.jit
        @jax.numpy_dtype_promotion("standard")  # as optax needs
        def train(params, made=made, tx=tx):
            def step(carry, key):
                params, state = carry
                slope = jax.grad(lambda p: vae.negative_elbo(made, p, key, x0)[0])(params)
                updates, state = tx.update(slope, state)
                return (optax.apply_updates(params, updates), state), None

            keys = jax.random.split(jax.random.key(3), 500)
            return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

        level = vae.infer(made, train(params), KEY, x0).levels[0]
        rates = np.sort(np.asarray(vae.rate_by_latent(level)))[::-1]
        expected = 0.5 * np.log(np.maximum(np.array([3.0, 1.0]) / variance, 1))
        np.testing.assert_allclose(rates, expected, atol=0.05)
        assert int(vae.active_units(level.posterior).sum()) == used


def drawn_with(variances, n):
    """n points whose covariance is diag variances exactly."""
    x = np.random.default_rng(0).normal(size=(n, 2))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True)).T)
    return jnp.asarray(x) * jnp.sqrt(variances)


def test_bad_input_is_refused_by_name():
    made, params = line()
    x0 = jnp.ones((2, 1))
    for name, wrong in (("beta", {"beta": -1.0}), ("free_bits", {"free_bits": -0.1})):
        with pytest.raises(ValueError, match=f"{name}: at least 0 is needed, got -"):
            vae.negative_elbo(made, params, KEY, x0, **wrong)
    with pytest.raises(ValueError, match="draws: at least one is needed, got 0"):
        vae.iwae_bound(made, params, KEY, x0, draws=0)
    for std in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="std: must be positive, got"):
            vae.GaussianLikelihood(std)
    with pytest.raises(ValueError, match="log_std: must be finite"):
        vae.DiagonalGaussian(jnp.zeros((1, 2)), jnp.full((1, 2), -jnp.inf))
    for correlation in (1.0, -1.5):
        with pytest.raises(ValueError, match=r"correlation: must lie in \(-1, 1\), where the prior is not singular"):
            vae.AutoregressivePrior(correlation)
    with pytest.raises(ValueError, match="latents: at least one latent is needed, got 0"):
        vae.VAE(made.encoder, made.decoder, made.likelihood, 0)
    with pytest.raises(ValueError, match="encoder: must answer shape"):
        vae.negative_elbo(vae.VAE(made.encoder, made.decoder, made.likelihood, 2), params, KEY, x0)
    with pytest.raises(ValueError, match=r"x0: must lie on 256 levels spread evenly from -1 to 1, got 0\.1"):
        vae.DiscretisedLogistic().log_prob({}, jnp.zeros((1, 2)), jnp.full((1, 1), 0.101))
    with pytest.raises(ValueError, match="temperature: one number, or one a level"):
        vae.generate(made, params, KEY, jnp.arange(2), temperature=(1.0, 1.0))
    for temperature, got in ((-1.0, "-1"), (float("nan"), "nan"), ((1.0, -0.5), "-0")):
        with pytest.raises(ValueError, match=f"temperature: a finite number, not below 0, got {got}"):
            vae.generate(made, params, KEY, jnp.arange(2), temperature=temperature)
    with pytest.raises(ValueError, match="z: latents of every level are needed, got those of 0"):
        vae.infer_at(made, params, (), x0)
    for call in (lambda z: vae.infer_at(made, params, z, x0), lambda z: vae.decode(made, params, z)):
        with pytest.raises(ValueError, match="z: the latents of 1 level are needed, got 2"):
            call((x0, x0))
    with pytest.raises(ValueError, match="group: one of latent, channel, level is needed, got 'pixel'"):
        vae.negative_elbo(made, params, KEY, x0, group="pixel")
    for each in (dj.networks.MaskedDecoder, vae.Autoregressive(made.encoder, vae.Bernoulli(), (2, 2, 1))):
        with pytest.raises(ValueError, match="each: the likelihood of one pixel is needed, got"):
            vae.Autoregressive(made.encoder, each, (2, 2, 1))
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"steps: at least one is needed, got {steps}"):
            vae.linear_warm_up(1, steps=steps)
        with pytest.raises(ValueError, match=f"period: at least one step is needed, got {steps}"):
            vae.cyclic_warm_up(1, period=steps)
    with pytest.raises(ValueError, match=r"ramp: a share in \(0, 1\] is needed, got 0"):
        vae.cyclic_warm_up(1, period=3, ramp=0.0)
