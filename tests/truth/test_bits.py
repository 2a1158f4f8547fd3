"""Bits per dimension against probabilities in closed form: Gaussian data, whose mass in a bin SciPy knows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffjax as dj
from diffjax import likelihood
from diffjax.likelihood import (
    LogLikelihood,
    Quantisation,
    UniformDequantisation,
    VariationalDequantisation,
    bits_per_dim,
    dequantisation_loss,
    dequantise,
)

KEY = jax.random.key
MEAN, VARIANCE = np.array([0.3, -0.2]), np.array([0.4, 0.02])
LEVELS = Quantisation(5, -1.0, 1.0)
WIDTH = 0.5  # of a bin
DATA = np.array([[0, 1], [2, 2], [3, 1], [4, 2]], np.uint8)


def density(x):
    return jnp.sum(-0.5 * ((x - MEAN) ** 2 / VARIANCE + np.log(2 * np.pi * VARIANCE)), axis=-1)


def unused(xt, t):
    raise AssertionError("the density is known")


def exact(key, process, denoiser, x, *, index):
    return LogLikelihood(density(x), jnp.zeros(x.shape[0]), jnp.asarray(1))


def probabilities():
    """log P(data), each feature's mass between the edges of its bin."""
    centre = -1 + WIDTH * DATA.astype(float)
    normal = stats.norm(MEAN, np.sqrt(VARIANCE))
    return np.log(normal.cdf(centre + WIDTH / 2) - normal.cdf(centre - WIDTH / 2)).sum(1)


def average_at_uniform():
    """E_u[log p] + d log width: the bin adds width^2/12 to the squared distance."""
    square = (-1 + WIDTH * DATA - MEAN) ** 2 + WIDTH**2 / 12
    return (-0.5 * (square / VARIANCE + np.log(2 * np.pi * VARIANCE)) + np.log(WIDTH)).sum(1)


def skewed(params, x):
    return params["shift"] + 0.3 * x, jnp.full_like(x, 0.6)


def noises():
    return UniformDequantisation(), VariationalDequantisation({"shift": jnp.asarray(-0.3)}, skewed)


def test_importance_weights_reach_the_probability_and_the_average_stays_below():
    """Copies of each datum draw on their own; their mean weight is the probability without a bias."""
    many, draws = np.repeat(DATA, 1000, axis=0), 20
    for noise in noises():
        seen = []
        keep = lambda log_weights, seen=seen: seen.append(log_weights) or likelihood.average_bound(log_weights)
        choices = {"quantisation": LEVELS, "dequantisation": noise, "draws": draws, "likelihood": exact}
        average = bits_per_dim(KEY(0), dj.Rectified(), unused, many, bound=keep, **choices)
        weighted = likelihood.importance_weighted_bound(seen[0])[0]
        weights = np.exp(np.asarray(weighted)).reshape(len(DATA), -1)
        error = weights.std(1, ddof=1) / weights.shape[1] ** 0.5
        assert np.all(np.abs(weights.mean(1) - np.exp(probabilities())) < 4.5 * error)
        assert np.all(error < 0.03 * np.exp(probabilities()))
        means = np.asarray(average.nats).reshape(len(DATA), -1)
        assert np.all(means.mean(1) < probabilities())
        assert np.all(average.nats < weighted)
        np.testing.assert_allclose(average.bits, -np.asarray(average.nats) / (2 * np.log(2)))
        square, spread = np.asarray(average.standard_error) ** 2, means.std(1, ddof=1) / (2 * np.log(2))
        np.testing.assert_allclose(np.sqrt(square.reshape(len(DATA), -1).mean(1)), spread, rtol=0.15)
        assert int(average.nfe) == draws
        if isinstance(noise, UniformDequantisation):
            off = means.mean(1) - average_at_uniform()
            assert np.all(np.abs(off) < 4.5 * means.std(1) / means.shape[1] ** 0.5)


def test_errors_of_the_bounds():
    log_weights = jnp.asarray(np.random.default_rng(0).normal(-900.0, 0.3, (50, 3)))  # whose exponential is zero
    nats, error = likelihood.importance_weighted_bound(log_weights)
    shifted = np.exp(np.asarray(log_weights) + 900)
    np.testing.assert_allclose(nats, np.log(shifted.mean(0)) - 900)
    np.testing.assert_allclose(error, shifted.std(0, ddof=1) / shifted.mean(0) / 50**0.5)
    assert np.all(np.isnan(likelihood.average_bound(log_weights[:1])[1]))


@pytest.mark.slow
def test_a_trained_noise_closes_most_of_the_gap():
    """From near the uniform bound towards log P, below which every bound stays."""
    params = likelihood.init_dequantiser(KEY(0), (2,), 16)
    loss = partial(dequantisation_loss, apply=likelihood.apply_dequantiser, quantisation=LEVELS)
    loss = partial(loss, log_density=lambda key, x, index: density(x))

    @jax.jit
    def trained(params, data):
        def step(params, i):
            grads = jax.grad(loss, has_aux=True)(params, jax.random.fold_in(KEY(1), i), data)[0]
            rate = 0.05 * (1 - i.astype(jnp.float64) / 300)
            return jax.tree.map(lambda p, g: p - rate * jnp.clip(g, -1.0, 1.0), params, grads), None

        return jax.lax.scan(step, params, jnp.arange(300))[0]

    data = jnp.asarray(np.repeat(DATA, 16, axis=0))
    many = jnp.asarray(np.repeat(DATA, 1000, axis=0))
    mean = jax.jit(lambda params: -loss(params, KEY(2), many)[0])
    truth = probabilities().mean()
    gap = {"uniform": truth - average_at_uniform().mean(), "fresh": truth - mean(params)}
    gap["trained"] = truth - mean(trained(params, data))
    print(gap)
    assert abs(gap["uniform"] - gap["fresh"]) < 0.2 * gap["uniform"]
    assert 0 < gap["trained"] < 0.4 * gap["uniform"]


@pytest.mark.slow
def test_bits_of_the_flow():
    """By the solver, the density at each dequantised point, to 1e-3 nats; images too."""
    process = dj.VariancePreserving()
    model = dj.Gaussian(jnp.asarray(MEAN).reshape(2, 1, 1), jnp.asarray(VARIANCE).reshape(2, 1, 1))
    low, top = process.interval()
    data = DATA.reshape(-1, 2, 1, 1)
    flow = partial(dj.log_likelihood, terminal=lambda x: model.log_prob(process, x, top))
    got = bits_per_dim(KEY(3), process, dj.exact_denoiser(model, process), data, quantisation=LEVELS, likelihood=flow)
    x, correction = dequantise(
        jax.random.split(jax.random.fold_in(KEY(3), 0))[0], UniformDequantisation(), LEVELS, data
    )
    assert np.all(np.abs(x - (-1 + WIDTH * data)) <= WIDTH / 2)
    np.testing.assert_allclose(correction, 2 * np.log(WIDTH))
    np.testing.assert_allclose(got.nats, model.log_prob(process, x, low) + correction, atol=1e-3)
    assert np.all(np.isnan(got.standard_error))
    parts = [dequantise(KEY(3), noises()[1], LEVELS, data[i : i + 2], jnp.arange(i, i + 2)) for i in (0, 2)]
    whole = dequantise(KEY(3), noises()[1], LEVELS, data)
    for part, both in zip(zip(*parts, strict=True), whole, strict=True):
        np.testing.assert_allclose(jnp.concatenate(part), both, rtol=1e-12)


def test_quantisation():
    grey = Quantisation(256)
    data = np.arange(256, dtype=np.uint8).reshape(1, -1)
    np.testing.assert_allclose(grey.values(data)[0], np.linspace(-1, 1, 256), atol=1e-15)
    np.testing.assert_array_equal(grey.whole(grey.values(data)), data)
    with pytest.raises(ValueError, match=r"data: whole numbers 0 .. 4 are needed, got \[7\]"):
        LEVELS.values(np.array([[0, 7]]))
    with pytest.raises(ValueError, match=r"data: whole numbers 0 .. 4 are needed, got \[-1\]"):
        bits_per_dim(KEY(0), dj.Rectified(), unused, np.array([[-1, 3]]), quantisation=LEVELS)
    with pytest.raises(ValueError, match=r"data: whole numbers 0 .. 4 are needed, got dtype float64"):
        LEVELS.values(jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="x0: must lie on 5 levels"):
        LEVELS.whole(jnp.array([[0.1]]))
    with pytest.raises(ValueError, match="levels: a whole number, at least two, is needed, got 1"):
        Quantisation(1)
    with pytest.raises(ValueError, match=r"high: must be more than low = -1.0, got inf"):
        Quantisation(4, -1.0, float("inf"))
    with pytest.raises(ValueError, match="draws: at least one is needed, got 0"):
        bits_per_dim(KEY(0), dj.Rectified(), unused, DATA, quantisation=LEVELS, draws=0)
