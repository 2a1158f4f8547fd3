"""Restart sampling: what a round does to an error and to the variance, in closed form for Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.samplers import Restart, sample_with_restarts

KEY = jax.random.key
VARIANCE = 0.25


def exact(process):
    """The denoiser of N(0, VARIANCE) data, by Gaussian conditioning."""
    return lambda x, t: VARIANCE * process.alpha(t) / (VARIANCE * process.alpha(t) ** 2 + process.sigma(t) ** 2) * x


@pytest.mark.slow
def test_a_round_shrinks_an_error_and_carries_the_variance():
    """With the forward kernel xt = a xs + v z from s up to t, and the exact flow down: for N(0, c) data, of standard
    deviations d_t, d_s, a round multiplies a difference by a d_s/d_t and keeps the marginal; so after K rounds the
    first is to the K, and a variance V' at s becomes d_s^2 + (V' - d_s^2)(a d_s/d_t)^2K."""
    process, n, times, traced = dj.VariancePreserving(), 40_000, 3, []
    known, ts = exact(process), np.linspace(0.5, 0.02, 41)
    lower, upper = ts[20], 0.4

    def denoiser(x, t):
        traced.append(1)
        return known(x, t)

    def run(x, times=times, **keywords):
        restarts = [Restart(lower + 0.003, upper, 20, times)]  # `lower` is the nearest point
        keywords |= {"restarts": restarts, "final_denoise": False}
        return sample_with_restarts(KEY(1), process, denoiser, x, ts, dj.Heun(), **keywords)

    b = lambda t: 0.1 * t + 19.9 * t**2 / 2
    deviation = lambda t: np.sqrt(VARIANCE * np.exp(-b(t)) - np.expm1(-b(t)))
    factor = np.exp((b(lower) - b(upper)) / 2) * deviation(lower) / deviation(upper)
    wrong = 1.5 * deviation(0.5) * jax.random.normal(KEY(0), (n, 1))
    x, moved = run(wrong), run(wrong + 0.7)
    down = deviation(0.02) / deviation(0.5)
    np.testing.assert_allclose(moved - x, 0.7 * down * factor**times, rtol=0.01)
    variance = deviation(0.02) ** 2 * (1 + (1.5**2 - 1) * factor ** (2 * times))
    assert abs(float(jnp.var(x)) / variance - 1) < 4.5 * np.sqrt(2 / n)
    # The noise belongs to the sample's global index.
    order = np.random.default_rng(0).permutation(n)
    np.testing.assert_allclose(run(wrong[order], index=jnp.asarray(order)), x[order], rtol=1e-10)
    # More rounds do not make more to compile: Heun's two evaluations, traced once.
    traced.clear()
    run(wrong, times=30)
    assert len(traced) <= 4


def test_rounds_and_restarts_draw_noise_of_their_own():
    """From 0, where D = 0: a step of DDIM is x sigma_s/sigma_t, so that a round makes c x + r z, r = sigma_t|s s/t and
    c = alpha_t|s s/t; after two restarts of two rounds the variance is r^2 (1 + c^2 + c^4 + c^6), and x is uncorrelated
    with what one noise for all rounds would give more of."""
    process, n = dj.Rectified(), 4000
    lower, upper = 0.5, 0.6  # sigma = t, alpha = 1 - t
    x = sample_with_restarts(
        *(KEY(1), process, lambda x, t: 0 * x, jnp.zeros((n, 1)), np.array([0.7, lower]), dj.DDIM()),
        restarts=[Restart(lower, upper, 1, 2)] * 2,
        final_denoise=False,
    )
    again = (1 - upper) / (1 - lower)
    c, r = again * lower / upper, np.sqrt(upper**2 - again**2 * lower**2) * lower / upper
    variance = r**2 * np.sum(c ** (2 * np.arange(4)))
    assert abs(float(jnp.mean(x**2)) / variance - 1) < 4.5 * np.sqrt(2 / n)
    assert (1 + c) ** 2 > 1.5 * (1 + c**2), "so that noise drawn twice can be told"


@pytest.mark.slow
def test_restarts_nest_and_end_the_path():
    """Two restarts, the later one from the last point and up beyond the first; the answer is denoised there."""
    process, n = dj.Rectified(), 4000
    ts, xt, stepper, denoiser = (
        np.linspace(1, 0, 41),
        jax.random.normal(KEY(0), (n, 1)),
        dj.DDIM(eta=1.0),
        exact(process),
    )
    restarts = [Restart(0.0, 0.7, 20, 2), Restart(0.5, 0.6, 20, 2)]
    x = sample_with_restarts(KEY(1), process, denoiser, xt, ts, stepper, restarts=restarts, final_denoise=False)
    x0 = sample_with_restarts(KEY(1), process, denoiser, xt, ts, stepper, restarts=restarts[::-1])
    np.testing.assert_allclose(x0, denoiser(x, jnp.asarray(0.0)), rtol=1e-10)
    # Monte Carlo at 4.5 standard errors, and the bias of 20 steps of DDPM.
    assert abs(float(jnp.var(x)) / VARIANCE - 1) < 4.5 * np.sqrt(2 / n) + 0.25
    plain = sample_with_restarts(KEY(1), process, denoiser, xt, ts[:21], stepper, restarts=[])
    np.testing.assert_allclose(plain, dj.sample(KEY(1), process, denoiser, xt, ts[:21], stepper), rtol=1e-10)


@pytest.mark.parametrize(
    ("restart", "message"),
    [
        (Restart(0.5, 0.4, 3, 1), "lower < upper"),
        (Restart(0.05, 0.4, 3, 1), "0.1 <= lower"),
        (Restart(0.2, 0.95, 3, 1), "upper <= 0.9"),
        (Restart(float("nan"), 0.4, 3, 1), "lower < upper"),
        (Restart(0.66, 0.68, 3, 1), "the grid's point nearest lower, 0.7, is not below it"),
        (Restart(0.2, 0.4, 0, 1), "steps must be a positive integer"),
        (Restart(0.2, 0.4, 3, 0), "times must be a positive integer"),
        (Restart(0.2, 0.4, 3, 1.5), "times must be a positive integer"),
    ],
)
def test_bad_restarts(restart, message):
    process, ts = dj.VariancePreserving(), np.array([0.9, 0.7, 0.5, 0.3, 0.1])
    with pytest.raises(ValueError, match=f"restarts: .*{message}"):
        sample_with_restarts(KEY(0), process, exact(process), jnp.ones((2, 1)), ts, dj.Heun(), restarts=[restart])


def test_a_restart_keeps_some_of_the_data():
    process, ts = dj.Rectified(), np.array([1.0, 0.5, 0.1])
    restarts = [Restart(0.5, 1.0, 3, 1)]
    with pytest.raises(ValueError, match="restarts: upper must keep some of the data, alpha > 0"):
        sample_with_restarts(KEY(0), process, exact(process), jnp.ones((2, 1)), ts, dj.Heun(), restarts=restarts)
