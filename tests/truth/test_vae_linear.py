"""The linear VAE against probabilistic PCA: optimum, rates, thresholds of collapse; and training, which reaches it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from diffjax import vae

N, LATENTS = 6, 3
EIGENVALUES = np.array([4.0, 2.0, 1.0, 0.5, 0.3, 0.2])


@functools.cache
def sample():
    """(mean, covariance, a rotation of the latents) of 4000 points, as NumPy has them."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(N, N)))[0]
    x = rng.normal(size=(4000, N)) * np.sqrt(EIGENVALUES) @ axes.T
    mean = x.mean(0)
    rotation = np.linalg.qr(rng.normal(size=(LATENTS, LATENTS)))[0]
    return mean, (x - mean).T @ (x - mean) / len(x), rotation


@functools.cache
def data():
    mean, covariance, rotation = sample()
    return jnp.asarray(mean), jnp.asarray(covariance), jnp.asarray(rotation)


def eigenvalues():
    return np.linalg.eigvalsh(sample()[1])[::-1]


def with_decoder(weight, variance, beta=1.0):
    """A linear VAE with the best encoder for its decoder."""
    encoder, latent_variances = vae.best_encoder(weight, variance, beta=beta)
    return vae.LinearVAE(weight, data()[0], jnp.asarray(variance), encoder, latent_variances)


@jax.jit
def slopes(model, beta):
    """Derivatives of the beta-ELBO by W, mu, V and d."""
    mean, covariance, _ = data()
    slope = jax.grad(lambda model: model.elbo(mean, covariance, beta=beta))(model)
    return slope.weight, slope.mean, slope.encoder, slope.latent_variances, slope.variance


def test_at_the_optimum_the_bound_is_the_likelihood_and_its_slopes_vanish():
    """A learned variance is the mean of the discarded eigenvalues."""
    mean, covariance, _ = data()
    model = vae.optimal_linear_vae(mean, covariance, LATENTS)
    np.testing.assert_allclose(model.variance, eigenvalues()[LATENTS:].mean(), rtol=1e-12)
    elbo, exact = model.elbo(mean, covariance), model.log_likelihood(mean, covariance)
    np.testing.assert_allclose([elbo, exact], -7.853030553151, rtol=0, atol=1e-12)
    assert max(np.abs(slope).max() for slope in slopes(model, 1.0)) < 5e-14
    np.testing.assert_allclose(model.rates(mean, covariance), 0.5 * np.log(eigenvalues()[:3] / model.variance))


def test_the_likelihood_is_that_of_points():
    """log N(x; mu, W W' + sigma^2 I) of two points, by SciPy, is that of their mean and covariance."""
    from scipy import stats

    mean, covariance, _ = data()
    model = vae.optimal_linear_vae(mean, covariance, LATENTS)
    x = np.random.default_rng(0).normal(size=(2, N))
    exact = stats.multivariate_normal(mean, model.weight @ model.weight.T + model.variance * np.eye(N)).logpdf(x)
    moments = jnp.asarray(x.mean(0)), jnp.asarray(np.cov(x.T, bias=True))
    np.testing.assert_allclose(model.log_likelihood(*moments), exact.mean(), rtol=1e-12)


def test_a_rotated_decoder_has_the_same_likelihood_and_a_lower_bound():
    mean, covariance, rotation = data()
    model = vae.optimal_linear_vae(mean, covariance, LATENTS)
    rotated = with_decoder(model.weight @ rotation, model.variance)
    np.testing.assert_allclose(rotated.log_likelihood(mean, covariance), -7.853030553151, rtol=0, atol=1e-12)
    np.testing.assert_allclose(rotated.elbo(mean, covariance), -7.995, atol=5e-4)


def test_a_latent_collapses_where_its_eigenvalue_falls_below_the_noise():
    """Rates are max(0, log(lambda/sigma^2)/2), and 3, 3, 2, 1, 0 of the latents are active."""
    mean, covariance, _ = data()
    active = []
    for variance in (0.1, 0.8, 1.5, 3.0, 5.0):
        model = vae.optimal_linear_vae(mean, covariance, LATENTS, variance=variance)
        rates = np.asarray(model.rates(mean, covariance))
        by_hand = 0.5 * np.log(np.maximum(eigenvalues()[:LATENTS] / variance, 1))
        np.testing.assert_allclose(rates, by_hand, atol=1e-13)
        np.testing.assert_allclose(
            vae.rates_at_optimum(jnp.asarray(eigenvalues()[:LATENTS].copy()), variance), by_hand, atol=1e-13
        )
        assert np.array_equal(rates > 1e-12, np.any(np.asarray(model.weight) != 0, axis=0))
        active.append(int(np.sum(rates > 1e-12)))
        assert max(np.abs(slope).max() for slope in slopes(model, 1.0)[:4]) < 1e-13
    assert active == [3, 3, 2, 1, 0]


def test_a_model_without_latents_is_unstable_exactly_below_the_first_eigenvalue():
    """A step of 1e-3 away from W = 0 along the first axis changes the bound by +2.3e-8 and -1.1e-8."""
    mean, covariance, _ = data()
    first = jnp.zeros((N, LATENTS)).at[:, 0].set(jnp.linalg.eigh(covariance)[1][:, -1])
    change = {}
    for variance in (3.5, 4.5):
        bounds = [with_decoder(step * first, variance).elbo(mean, covariance) for step in (1e-3, 0.0)]
        change[variance] = float(bounds[0] - bounds[1])
    np.testing.assert_allclose(eigenvalues()[0], 4.055, atol=5e-4)
    np.testing.assert_allclose(list(change.values()), [2.3e-8, -1.1e-8], atol=5e-10)
    # By hand: the second derivative of the bound by w at 0 is (lambda - sigma^2)/sigma^4.
    by_hand = [0.5e-6 * (eigenvalues()[0] - v) / v**2 for v in change]
    np.testing.assert_allclose(list(change.values()), by_hand, rtol=1e-4)


def test_beta_multiplies_the_noise():
    """w_i^2 = (lambda_i - beta sigma^2)_+; the ELBO is the likelihood at beta = 1 alone."""
    mean, covariance, _ = data()
    for beta in (0.5, 1.0, 2.0, 4.0):
        model = vae.optimal_linear_vae(mean, covariance, LATENTS, variance=0.7, beta=beta)
        squares = np.sum(np.asarray(model.weight) ** 2, axis=0)
        np.testing.assert_allclose(squares, np.maximum(eigenvalues()[:LATENTS] - beta * 0.7, 0), atol=1e-12)
        assert max(np.abs(slope).max() for slope in slopes(model, beta)[:4]) < 1e-13
        rates = vae.rates_at_optimum(jnp.asarray(eigenvalues()[:LATENTS].copy()), 0.7, beta=beta)
        np.testing.assert_allclose(model.rates(mean, covariance), rates, atol=1e-13)
        gap = model.log_likelihood(mean, covariance) - model.elbo(mean, covariance)
        assert abs(gap) < 1e-13 if beta == 1 else gap > 1e-3


def test_a_variance_learned_with_beta_is_the_best_of_all():
    """Its slope vanishes, and no other variance on a grid, each with its optimum, has a higher beta-ELBO."""
    mean, covariance, _ = data()
    for beta in (0.5, 1.0, 1.7, 6.0):
        model = vae.optimal_linear_vae(mean, covariance, LATENTS, beta=beta)
        best = model.elbo(mean, covariance, beta=beta)
        assert abs(slopes(model, beta)[4]) < 1e-12
        for factor in (0.1, 0.5, 0.9, 1.1, 2.0, 10.0):
            other = vae.optimal_linear_vae(mean, covariance, LATENTS, variance=factor * model.variance, beta=beta)
            assert other.elbo(mean, covariance, beta=beta) < best


def test_a_variance_learned_with_any_beta_is_that_of_a_search():
    """By minimisation over sigma^2 alone, of spectra from flat to steep, with none to all of the latents active."""
    rng = np.random.default_rng(5)
    active = set()
    learn = jax.jit(lambda values, beta: vae.optimal_linear_vae(jnp.zeros(5), jnp.diag(values), 4, beta=beta))

    def loss(log_variance, values, beta):
        """The negative beta-ELBO of the optimum for a variance, but for constants."""
        variance, kept = np.exp(log_variance), values[:4]
        noise = beta * variance
        rates = 0.5 * np.log(np.maximum(kept / noise, 1))
        square = np.sum(np.minimum(kept, noise)) + values[4]
        return 2.5 * log_variance + 0.5 * square / variance + beta * np.sum(rates)

    for scale in (0.2, 1.0, 2.0):
        for beta in (0.3, 1.0, 2.0, 6.0):
            values = np.sort(np.exp(scale * rng.normal(size=5)))[::-1]
            grid = np.linspace(-12, 6, 4001)
            start = grid[np.argmin([loss(point, values, beta) for point in grid])]
            bracket = {"bounds": (start - 0.01, start + 0.01), "method": "bounded", "options": {"xatol": 1e-10}}
            best = np.exp(optimize.minimize_scalar(loss, args=(values, beta), **bracket).x)
            found = learn(jnp.asarray(values.copy()), beta)
            np.testing.assert_allclose(found.variance, best, rtol=1e-6)
            active.add(int(np.sum(values[:4] > beta * best)))
    assert {0, 4} < active


def test_the_aggregate_posterior_at_the_optimum_is_the_prior():
    """V S V' + diag d = I, whatever beta."""
    mean, covariance, _ = data()
    for beta in (1.0, 2.5):
        model = vae.optimal_linear_vae(mean, covariance, LATENTS, variance=0.5, beta=beta)
        aggregate = model.encoder @ covariance @ model.encoder.T + jnp.diag(model.latent_variances)
        np.testing.assert_allclose(aggregate, np.eye(LATENTS), atol=1e-12)


def test_training_reaches_the_optimum():
    """Gradient ascent from random weights, all of W, mu, V, d and sigma^2: no other maximum holds it."""
    mean, covariance, _ = data()
    rng = np.random.default_rng(3)
    start = [0.3 * rng.normal(size=(N, LATENTS)), 0.3 * rng.normal(size=(LATENTS, N)), np.zeros(LATENTS + 1)]
    params = tuple(map(jnp.asarray, (*start, np.zeros(N))))

    def model(params):
        weight, encoder, logs, centre = params
        return vae.LinearVAE(weight, centre, jnp.exp(logs[-1]), encoder, jnp.exp(logs[:-1]))

    tx = optax.adam(optax.exponential_decay(0.05, 1500, 1e-3))

    @jax.jit
    @jax.numpy_dtype_promotion("standard")  # as optax needs
    def train(params):
        def step(carry, _):
            params, state = carry
            loss, slope = jax.value_and_grad(lambda p: -model(p).elbo(mean, covariance))(params)
            updates, state = tx.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, tx.init(params)), None, 1500)

    (params, _), losses = train(params)
    trained, exact = model(params), vae.optimal_linear_vae(mean, covariance, LATENTS)
    assert losses[0] > losses[-1] + 0.1
    np.testing.assert_allclose(-losses[-1], -7.853030553151, atol=1e-6)
    np.testing.assert_allclose(trained.variance, exact.variance, rtol=1e-3)
    order = np.argsort(-np.sum(np.asarray(trained.weight) ** 2, axis=0))
    rates = np.asarray(trained.rates(mean, covariance))[order]
    np.testing.assert_allclose(rates, exact.rates(mean, covariance), rtol=1e-3)
    overlap = np.abs(np.asarray(trained.weight[:, order].T @ exact.weight))
    np.testing.assert_allclose(overlap, np.asarray(exact.weight.T @ exact.weight), atol=0.02)  # the principal axes


def test_bad_input_is_refused_by_name():
    mean, covariance, _ = data()
    for latents in (0, 7):
        with pytest.raises(ValueError, match=rf"latents: 1 to 6 are needed, .* got {latents}"):
            vae.optimal_linear_vae(mean, covariance, latents)
    with pytest.raises(ValueError, match="latents: fewer than the 6 features are needed to learn a variance, got 6"):
        vae.optimal_linear_vae(mean, covariance, 6)
    for variance in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"variance: must be positive, got {variance}"):
            vae.optimal_linear_vae(mean, covariance, 2, variance=variance)
        with pytest.raises(ValueError, match="variance: beta times the variance must be positive"):
            vae.rates_at_optimum(jnp.ones(2), variance)
    with pytest.raises(ValueError, match=r"covariance: 2 latents hold all of it, .*; take fewer latents"):
        vae.optimal_linear_vae(jnp.zeros(3), jnp.diag(jnp.array([2.0, 1.0, 0.0])), 2)
    with pytest.raises(ValueError, match="beta: must be positive, got 0"):
        vae.optimal_linear_vae(mean, covariance, 2, beta=0.0)
    for variance in (None, 1.0):
        with pytest.raises(ValueError, match="covariance: must have no negative eigenvalue, got -0"):
            vae.optimal_linear_vae(jnp.zeros(3), jnp.diag(jnp.array([3.0, 1.0, -0.5])), 1, variance=variance)
    with pytest.raises(ValueError, match="covariance: must be symmetric"):
        vae.optimal_linear_vae(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.0, 1.0]]), 1)
    good = vae.optimal_linear_vae(mean, covariance, 2)
    with pytest.raises(ValueError, match=r"latent_variances: must be positive, got \[0"):
        vae.LinearVAE(good.weight, good.mean, good.variance, good.encoder, jnp.zeros(2))
