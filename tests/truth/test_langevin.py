"""Langevin methods against laws known in closed form, a posterior known by importance sampling, a mixture's weights."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import samplers

KEY = 11
SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "langevin.py"
VARIANCE = 0.49
CHAINS = 4000


def gaussian_log_density(x):
    return -0.5 * jnp.sum(x**2, axis=-1) / VARIANCE


def gaussian_score(x):
    return -x / VARIANCE


def weak_score(x):
    """Not the gradient of the density above: what Metropolis must put right."""
    return -0.6 * x / VARIANCE


def start(scale=1.0, n=CHAINS, d=2):
    return scale * jax.random.normal(jax.random.key(1), (n, d))


def assert_variance(x, expected, errors=5):
    """Of independent numbers of mean 0: the sample variance is chi-squared, with relative error sqrt(2/n)."""
    x = np.asarray(x)
    assert abs(x.mean()) < errors * np.sqrt(expected / x.size)
    np.testing.assert_allclose((x**2).mean(), expected, rtol=errors * np.sqrt(2 / x.size))


# --- unadjusted ---


def square(x):
    return {"square": x**2, "positive": x > 0, "whole": jnp.round(3 * x).astype(int)}


def test_unadjusted_langevin_has_exactly_its_known_bias_on_a_gaussian():
    """x' = (1 - tau/s^2) x + sqrt(2 tau) z: closed form after k steps, s^2/(1 - tau/(2 s^2)) at last."""
    tau, steps, burn_in, key, x = 0.3, 20, 5, jax.random.key(KEY), start(3.0, d=50)
    run = {"steps": steps, "save": range(steps + 1), "average": square, "burn_in": burn_in}
    chains = samplers.langevin(key, gaussian_score, x, step_size=tau, **run)
    assert chains.acceptance is None
    stationary = VARIANCE / (1 - tau / (2 * VARIANCE))
    assert_variance(chains.x, stationary)
    for k, state in enumerate(chains.saved):
        assert_variance(state, stationary + (1 - tau / VARIANCE) ** (2 * k) * (9.0 - stationary))
    np.testing.assert_array_equal(chains.saved[-1], chains.x)

    # Steps of several sizes: they weigh the average. A chain is a function of the key and its global index alone.
    taus, order = np.linspace(0.3, 0.02, steps), jnp.arange(CHAINS)[::-1]
    chains = samplers.langevin(key, gaussian_score, x, step_size=taus, **run)
    states = np.asarray(chains.saved[1 + burn_in :])
    for name, value in (("square", states**2), ("positive", states > 0), ("whole", np.round(3 * states))):
        expected = np.average(value, axis=0, weights=taus[burn_in:])
        np.testing.assert_allclose(chains.average[name], expected, rtol=1e-12, atol=1e-13)
    moved = samplers.langevin(key, gaussian_score, x[order], step_size=taus, index=order, **run)
    np.testing.assert_allclose(moved.x, chains.x[order], rtol=1e-12, atol=1e-13)


# --- adjusted ---


def acceptance_of_mala(tau, n=100_000):
    """E min(1, p(y) q(y -> x) / p(x) q(x -> y)) over x ~ p and y ~ q(x -> .) = N(x + tau score, 2 tau), in NumPy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2)) * np.sqrt(VARIANCE)
    y = x - tau * 0.6 * x / VARIANCE + np.sqrt(2 * tau) * rng.normal(size=(n, 2))
    back = ((x - y + tau * 0.6 * y / VARIANCE) ** 2 - (y - x + tau * 0.6 * x / VARIANCE) ** 2).sum(1) / (4 * tau)
    return np.minimum(1, np.exp(-((y**2 - x**2).sum(1) / (2 * VARIANCE) + back))).mean()


def acceptance_of_hmc(e, leaps, inverse_mass, n=100_000):
    """The same of leapfrog from p ~ N(0, M): E min(1, exp(H(x, p) - H(y, q)))."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2)) * np.sqrt(VARIANCE)
    p = rng.normal(size=(n, 2)) @ np.linalg.cholesky(np.linalg.inv(inverse_mass)).T

    def energy(x, p):
        return (x**2).sum(1) / (2 * VARIANCE) + 0.5 * np.einsum("ni,ij,nj->n", p, inverse_mass, p)

    y, q = x, p
    for _ in range(leaps):
        q = q - 0.5 * e * 0.6 * y / VARIANCE
        y = y + e * q @ inverse_mass
        q = q - 0.5 * e * 0.6 * y / VARIANCE
    return np.minimum(1, np.exp(energy(x, p) - energy(y, q))).mean()


@pytest.mark.slow
def test_metropolis_reaches_the_density_with_any_score_at_the_published_acceptance():
    """A score that is 40 % too weak, and steps so long that the unadjusted chain would be far off; started from the
    density itself, so that it must be kept and the mean acceptance is that of the stationary chain."""
    key, x, steps = jax.random.key(KEY), start(np.sqrt(VARIANCE)), 12
    run = {"steps": steps, "score": weak_score, "save": range(1, steps + 1), "average": square}
    tau, e, leaps, inverse_mass = 0.5, 0.7, 3, np.array([[0.8, 0.3], [0.3, 0.5]])
    leapfrog = {"step_size": e, "integration_steps": leaps, "inverse_mass": jnp.asarray(inverse_mass)}
    mala = samplers.mala(key, gaussian_log_density, x, step_size=tau, **run)
    hmc = samplers.hmc(key, gaussian_log_density, x, **leapfrog, **run)
    for chains, acceptance in (
        (mala, acceptance_of_mala(tau)),
        (hmc, acceptance_of_hmc(e, leaps, inverse_mass)),
    ):
        assert_variance(chains.x, VARIANCE)
        assert 0.3 < acceptance < 0.95, "a number that says something"
        error = np.std(chains.acceptance) / np.sqrt(CHAINS) + 0.5 / np.sqrt(100_000)
        assert abs(np.mean(chains.acceptance) - acceptance) < 5 * error
        np.testing.assert_allclose(
            chains.average["square"], (np.asarray(chains.saved) ** 2).mean(0), rtol=1e-12, atol=1e-13
        )

    order = jnp.arange(CHAINS)[::-1]
    moved = samplers.mala(key, gaussian_log_density, x[order], step_size=tau, index=order, **run)
    np.testing.assert_allclose(moved.x, mala.x[order], rtol=1e-12, atol=1e-13)


# --- mini-batches ---


@pytest.mark.slow
def test_mini_batches_inflate_the_variance_as_known_and_decaying_steps_undo_it():
    """The mean theta of y_i ~ N(theta, v), prior N(0, w): the posterior has curvature A = 1/w + N/v, and the stochastic
    gradient the variance V = N^2 var(y)/(n v^2) everywhere, so a step's law is linear and closed:
    S' = (1 - tau A)^2 S + 2 tau + tau^2 V."""
    n, v, w, total, steps = 4, 0.8, 5.0, 60, 200
    y = np.random.default_rng(2).normal(1.0, 1.0, total)
    curvature, extra = 1 / w + total / v, total**2 * y.var() / (n * v**2)
    mean = y.sum() / v / curvature
    score = samplers.minibatch_score(lambda x: -0.5 * jnp.sum(x**2) / w, lambda x, y: -0.5 * (y - x[0]) ** 2 / v, total)

    def run(taus, batch_size=n):
        x = start(np.sqrt(1 / curvature), d=1) + mean
        key = jax.random.key(KEY)
        return samplers.sgld(key, score, x, jnp.asarray(y), batch_size=batch_size, steps=steps, step_size=taus).x - mean

    tau = 0.2 / curvature
    inflated = (2 + tau * extra) / (curvature * (2 - tau * curvature))
    assert inflated > 1.4 / curvature
    assert_variance(run(np.full(steps, tau)), inflated)

    decaying, variance = samplers.polynomial_decay(steps, a=tau, gamma=0.6), 1 / curvature
    np.testing.assert_allclose(decaying, tau * np.arange(1.0, steps + 1) ** -0.6)
    for step in np.asarray(decaying):
        variance = (1 - step * curvature) ** 2 * variance + 2 * step + step**2 * extra
    assert variance < 1.12 / curvature
    assert_variance(run(decaying), variance)

    # The whole batch: unadjusted Langevin, whose variance is that without V.
    assert_variance(run(np.full(steps, tau), total), 1 / (curvature * (1 - tau * curvature / 2)))


# --- annealed ---


def test_annealed_langevin_follows_its_recursion_on_a_gaussian():
    """A level: x' = (1 - tau/v)(x - alpha m) + alpha m + sqrt(2 tau) z, v = alpha^2 s^2 + sigma^2, tau = r sigma^2:
    mean and variance in closed form, from t = 1 of a rectified flow, where alpha is 0."""
    mean, variance, T, ts = 0.8, 0.25, 3, np.linspace(1, 0.1, 10)
    process, r = dj.Rectified(), np.linspace(0.5, 0.2, 10)
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.full(50, mean), jnp.asarray(variance)), process)
    m, v = 0.0, 1.0
    for t, share in zip(ts, r, strict=True):
        spread, tau = (1 - t) ** 2 * variance + t**2, share * t**2
        for _ in range(T):
            m = (1 - t) * mean + (1 - tau / spread) * (m - (1 - t) * mean)
            v = (1 - tau / spread) ** 2 * v + 2 * tau
    run = {"steps_per_level": T, "step_size": r}
    key, xt = jax.random.key(KEY), start(d=50)
    x = samplers.annealed_langevin(key, process, denoiser, xt, ts, final_denoise=False, **run)
    assert_variance(x - m, v)
    x0 = samplers.annealed_langevin(key, process, denoiser, xt, ts, **run)
    np.testing.assert_allclose(x0, denoiser(x, jnp.asarray(ts[-1])), rtol=1e-12, atol=1e-13)
    order = jnp.arange(CHAINS)[::-1]
    moved = samplers.annealed_langevin(key, process, denoiser, xt[order], ts, index=order, **run)
    np.testing.assert_allclose(moved, x0[order], rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_annealed_langevin_finds_far_modes_and_their_weights_and_plain_langevin_does_not():
    """At the same cost. From little noise plain Langevin misses modes, from much it shares them out by their basins.
    Annealing's own bias (tau = 0.1 sigma^2) is below 0.03 here."""
    script = runpy.run_path(str(SCRIPT))
    narrow, wide, annealed = map(script["shares"], script["sample_all"](1000, levels=30, steps_per_level=8).values())
    weights = np.array([0.15, 0.6, 0.25])
    assert narrow.min() < 0.02
    assert np.abs(wide - weights).max() > 0.2
    assert np.abs(annealed - weights).max() < 0.03 + 4 * np.sqrt(0.25 / 1000)


# --- a posterior ---


def check_posterior(*arguments):
    table = runpy.run_path(str(SCRIPT))["posterior_table"](*arguments)
    for name, (shift, shift_error, ratio, ratio_error, theory) in table.items():
        adjusted = name in ("MALA", "HMC")
        # The prediction is the Gaussian approximation's; the posterior is 4 % wider, and skew moves a biased mean.
        assert abs(ratio - theory) < 5 * ratio_error + (0 if adjusted else 0.015), (name, ratio, theory)
        assert shift < 5 * shift_error + (0 if adjusted else 0.15), (name, shift)
    return table


@pytest.mark.slow
def test_logistic_regression_posterior():
    """By MALA, whose score is the density's gradient here; `-m slow` takes every method."""
    check_posterior(400, 50, 30_000, ("MALA",))


@pytest.mark.slow
def test_logistic_regression_posterior_with_the_bias_that_each_method_is_known_for():
    table = check_posterior(500, 240)
    assert len(table) == 5
    assert table["ULA"][2] > 1.1
    assert table["SGLD"][2] > 1.2 > 1.1 > table["SGLD, decaying"][2]


# --- bad input ---


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("steps: at least 1", lambda key, x: samplers.langevin(key, gaussian_score, x, steps=0, step_size=0.1)),
        ("step_size: must be", lambda key, x: samplers.langevin(key, gaussian_score, x, steps=3, step_size=0.0)),
        ("step_size: must be", lambda key, x: samplers.mala(key, gaussian_log_density, x, steps=3, step_size=-1.0)),
        (
            r"step_size: .*shape \(3,\)",
            lambda key, x: samplers.langevin(key, gaussian_score, x, steps=3, step_size=np.ones(2)),
        ),
        (
            "burn_in: 0 .. 2",
            lambda key, x: samplers.langevin(key, gaussian_score, x, steps=3, step_size=0.1, burn_in=3),
        ),
        ("save", lambda key, x: samplers.langevin(key, gaussian_score, x, steps=3, step_size=0.1, save=[4])),
        ("log_density: must answer", lambda key, x: samplers.mala(key, gaussian_score, x, steps=3, step_size=0.1)),
        (
            "integration_steps: at least 1",
            lambda key, x: samplers.hmc(key, gaussian_log_density, x, steps=3, step_size=0.1, integration_steps=0),
        ),
        (
            "inverse_mass: shape",
            lambda key, x: samplers.hmc(
                key, gaussian_log_density, x, steps=3, step_size=0.1, integration_steps=2, inverse_mass=jnp.ones(3)
            ),
        ),
        (
            "inverse_mass: must be positive",
            lambda key, x: samplers.hmc(
                key, gaussian_log_density, x, steps=3, step_size=0.1, integration_steps=2, inverse_mass=-jnp.ones(2)
            ),
        ),
        (
            "batch_size: 1 .. 5",
            lambda key, x: samplers.sgld(key, lambda x, y: x, x, jnp.ones(5), batch_size=6, steps=3, step_size=0.1),
        ),
        (
            "data: arrays of one length",
            lambda key, x: samplers.sgld(
                key, lambda x, y: x, x, (jnp.ones(5), jnp.ones(4)), batch_size=2, steps=3, step_size=0.1
            ),
        ),
        ("gamma", lambda key, x: samplers.polynomial_decay(3, a=1.0, gamma=1.5)),
        ("a: must be positive", lambda key, x: samplers.polynomial_decay(3, a=0.0)),
        (
            "step_size: from 2 on",
            lambda key, x: samplers.annealed_langevin(
                key, dj.EDM(), lambda x, t: x, x, [1.0, 0.5], steps_per_level=1, step_size=2.0
            ),
        ),
        (
            "steps_per_level",
            lambda key, x: samplers.annealed_langevin(
                key, dj.EDM(), lambda x, t: x, x, [1.0, 0.5], steps_per_level=0, step_size=0.1
            ),
        ),
    ],
)
def test_bad_input_is_refused_with_words(message, call):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0), jnp.ones((2, 2)))
