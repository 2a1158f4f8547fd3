"""Diagnostics of latents against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import vae

KEY = jax.random.key(0)
MEANS, STD = np.array([-1.0, 0.2, 1.5]), np.array([0.5, 1.2, 0.3])


def mixture(repeats):
    """q(z | x_i) of three items, each so often, of one latent."""
    tile = lambda values: jnp.asarray(np.tile(values, repeats)[:, None])
    return vae.DiagonalGaussian(tile(MEANS), tile(np.log(STD)))


def grid():
    z = np.linspace(-12, 12, 20_001)
    density = stats.norm.pdf(z[:, None], MEANS, STD)
    return z, density, density.mean(1)


def integral(values, z):
    return np.sum(values) * (z[1] - z[0])


def test_information_and_divergence_of_the_aggregate_are_integrals_and_sum_to_the_rate():
    """Three different items, 4000 times each: by quadrature over z of the mixture of three."""
    z, each, mixed = grid()
    safe = lambda x: np.log(np.maximum(x, 1e-300))
    information = np.mean([integral(q * (safe(q) - safe(mixed)), z) for q in each.T])
    divergence = integral(mixed * (safe(mixed) - stats.norm.logpdf(z)), z)
    posterior, prior = mixture(1), vae.StandardNormal()
    rate = float(jnp.mean(prior.divergence(posterior)))
    np.testing.assert_allclose(information + divergence, rate, rtol=1e-6)
    np.testing.assert_allclose(
        vae.aggregate_log_prob(posterior, jnp.array([[0.3], [-2.0]])),
        np.log(stats.norm.pdf(np.array([[0.3], [-2.0]]), MEANS, STD).mean(1)),
        rtol=1e-12,
    )
    many = mixture(400)
    for got, exact in (
        (jax.jit(vae.mutual_information)(KEY, many), information),
        (jax.jit(lambda k, q: vae.aggregate_divergence(k, q, prior))(KEY, many), divergence),
    ):
        nats, error = map(float, got)
        assert abs(nats - exact) < 4.5 * error
        assert 0 < error < 0.05


def test_information_is_nothing_of_equal_posteriors_and_log_n_of_posteriors_apart():
    same = vae.DiagonalGaussian(jnp.full((8, 2), 0.7), jnp.zeros((8, 2)))
    np.testing.assert_allclose(vae.mutual_information(KEY, same), [0, 0], atol=1e-12)
    apart = vae.DiagonalGaussian(100.0 * jnp.arange(8.0)[:, None], jnp.zeros((8, 1)))
    np.testing.assert_allclose(vae.mutual_information(KEY, apart), [np.log(8), 0], atol=1e-12)


def test_moments_of_the_aggregate_are_those_of_the_mixture():
    z, _, mixed = grid()
    mean, covariance = vae.aggregate_moments(mixture(1))
    np.testing.assert_allclose(mean, [integral(mixed * z, z)], rtol=1e-9)
    np.testing.assert_allclose(covariance, [[integral(mixed * z**2, z) - mean[0] ** 2]], rtol=1e-9)
    rng = np.random.default_rng(0)
    means, logs = rng.normal(size=(2, 50, 2, 3))
    mean, covariance = vae.aggregate_moments(vae.DiagonalGaussian(jnp.asarray(means), jnp.asarray(logs)))
    by_hand = np.cov(means.reshape(50, 6).T, bias=True) + np.diag(np.exp(2 * logs).reshape(50, 6).mean(0))
    np.testing.assert_allclose(covariance, by_hand, rtol=1e-12)
    np.testing.assert_allclose(mean, means.reshape(50, 6).mean(0), rtol=1e-12)


def test_active_units_are_those_whose_mean_moves():
    """Variances 0.0099 and 0.0101 stand on the two sides of 0.01; a latent that only narrows is not active."""
    signs = np.array([1.0, -1.0])[:, None]
    posterior = vae.DiagonalGaussian(
        jnp.asarray(signs * np.sqrt([0.0099, 0.0101, 0.0])), jnp.asarray(np.array([[0.0, 0.0, -3.0]] * 2))
    )
    assert vae.active_units(posterior).tolist() == [False, True, False]
    assert vae.active_units(posterior, threshold=0.02).tolist() == [False, False, False]


def test_rates_by_latent_are_means_over_the_batch():
    posterior = mixture(1)
    level = vae.Level(posterior.mean, vae.StandardNormal(), posterior)
    by_hand = np.mean(0.5 * (STD**2 + MEANS**2 - 1) - np.log(STD))
    np.testing.assert_allclose(vae.rate_by_latent(level), [by_hand], rtol=1e-12)
    np.testing.assert_allclose(vae.rate_by_level([level, level]), [by_hand, by_hand], rtol=1e-12)
    with pytest.raises(ValueError, match="levels: at least one level is needed, got none"):
        vae.rate_by_level([])
    with pytest.raises(ValueError, match=r"z: shape \[m, \*\(1,\)\] is needed, got \(2, 3\)"):
        vae.aggregate_log_prob(posterior, jnp.ones((2, 3)))
