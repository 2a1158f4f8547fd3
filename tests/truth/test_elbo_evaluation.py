"""Bounds of a denoiser on given data: at the exact one they are the flow's likelihood and the density, one by one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import gaussian, mixture

import diffjax as dj
from diffjax.likelihood import evaluate_continuous_elbo, evaluate_discrete_elbo

KEY = jax.random.key


class Wrong(eqx.Module):
    """The exact answer and a little more."""

    denoiser: dj.Denoiser
    more: jax.Array

    def __call__(self, xt, t):
        return self.denoiser(xt, t) + self.more


def test_at_the_exact_denoiser_the_bound_is_the_density():
    """Item by item; a denoiser that errs falls below. Ends at logsnr 8 and -8 leave 6e-3 nats open."""
    process, data = dj.process.Clipped(dj.Cosine(), 8.0, -8.0), gaussian()
    x0 = data.sample(KEY(0), 32)
    truth = data.log_prob(dj.Cosine(), x0, 0.0)
    evaluate = lambda more: evaluate_continuous_elbo(
        KEY(2), process, Wrong(dj.exact_denoiser(data, process), jnp.asarray(more)), x0, draws=500
    )
    found = evaluate(0.0)
    error = compare(found, truth)
    assert error < 0.12
    np.testing.assert_allclose(found.nats, -(found.prior + found.reconstruction + found.diffusion), rtol=1e-9)
    assert int(found.nfe) == 500
    assert float(jnp.mean(evaluate(0.1).nats)) < float(jnp.mean(truth)) - 10


def test_the_standard_error_is_that_of_so_many_draws():
    """Of D = 0, whose draw at a logsnr costs (logsnr_max - logsnr_min) e^logsnr ||x0||^2/2, from the times it is at."""
    process, x0, seen = dj.process.Clipped(dj.Cosine(), 2.0, -6.0), np.array([[0.7, -0.4], [1.5, 0.1], [0.0, 0.3]]), []

    def denoiser(xt, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
        return 0 * xt

    none = lambda x0, eps, std: jnp.zeros(3)
    found = evaluate_continuous_elbo(KEY(3), process, denoiser, jnp.asarray(x0), draws=5, reconstruction=none)
    jax.block_until_ready(found)
    jax.effects_barrier()
    levels = eqx.filter_jit(process.logsnr)(jnp.asarray(np.concatenate(seen))).reshape(5, 3)
    levels = np.sort(levels, axis=0)
    np.testing.assert_allclose(np.diff(levels, axis=0), 8 / 5, rtol=1e-9, err_msg="spread evenly over the interval")
    square = 0.5 * np.sum(x0**2, axis=1)
    totals = square * (8 * np.exp(levels) + np.exp(-6))
    np.testing.assert_allclose(found.nats, -totals.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.prior, square * np.exp(-6), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, totals.std(0, ddof=1) / np.sqrt(5), rtol=1e-9)


@pytest.mark.slow
def test_at_the_exact_denoiser_the_bound_is_the_flows_likelihood():
    process, data = dj.process.Clipped(dj.Cosine(), 8.0, -8.0), mixture()
    x0, denoiser = data.sample(KEY(0), 24), dj.exact_denoiser(data, process)
    flow = dj.log_likelihood(KEY(1), process, denoiser, x0).nats
    np.testing.assert_allclose(flow, data.log_prob(process, x0, 0.0), atol=1e-2)  # the prior's part of it
    times = dj.process.ModeTimes(process)  # any density of times gives the same
    for choices in ({}, {"times": times}):
        compare(evaluate_continuous_elbo(KEY(2), process, denoiser, x0, draws=1000, **choices), flow)


def compare(found, truth):
    """The bound within its errors of the truth: item by item, and in the mean."""
    z = np.asarray((found.nats - truth) / found.standard_error)
    off = float(jnp.mean(found.nats - truth))
    error = float(jnp.sqrt(jnp.mean(found.standard_error**2) / len(z)))
    print(f"bound less truth: {off:+.3f} +- {error:.3f} nats; z {z.min():.1f} .. {z.max():.1f}")
    assert abs(off) < 4 * error + 6e-3
    assert np.all(np.abs(z) < 4.5)
    return error


@pytest.mark.slow
def test_k_steps_of_gaussian_data():
    """Closed form, in the mean over data: sum over eigenvalues v of 1/2 sum_k expm1(dlambda) v snr/(1 + v snr)."""
    process, data, n = dj.process.Clipped(dj.Cosine(), 8.0, -6.0), gaussian(), 2000
    x0, denoiser = data.sample(KEY(0), n), dj.exact_denoiser(data, process)
    ts = np.linspace(1.0, 0.0, 9)
    found = evaluate_discrete_elbo(KEY(1), process, denoiser, x0, ts)
    levels = np.asarray(eqx.filter_jit(process.logsnr)(jnp.asarray(ts)))
    v = np.linalg.eigvalsh([[0.5, 0.2], [0.2, 0.3]])
    gain = v[:, None] * np.exp(levels[:-1])
    exact = np.sum(0.5 * np.expm1(levels[1:] - levels[:-1]) * gain / (1 + gain))
    part = np.asarray(found.diffusion)
    assert abs(part.mean() - exact) < 4.5 * part.std() / n**0.5
    assert part.std() / n**0.5 < 0.03 * exact
    np.testing.assert_allclose(found.prior, 0.5 * np.exp(-6) * np.sum(np.asarray(x0) ** 2, 1), rtol=1e-6)
    assert int(found.nfe) == 8
    # A sample does not depend on its batch.
    part = evaluate_discrete_elbo(KEY(1), process, denoiser, x0[5:9], ts, index=jnp.arange(5, 9))
    np.testing.assert_allclose(part.nats, found.nats[5:9], rtol=1e-9)


def test_bad_arguments():
    process, x0 = dj.Cosine(), jnp.zeros((2, 2))
    with pytest.raises(ValueError, match="draws: at least one is needed, got 0"):
        evaluate_continuous_elbo(KEY(0), process, lambda x, t: x, x0, draws=0)
    with pytest.raises(ValueError, match="ts: must descend"):
        evaluate_discrete_elbo(KEY(0), process, lambda x, t: x, x0, [0.1, 0.9])
    with pytest.raises(ValueError, match="ts: logsnr must be finite"):
        evaluate_discrete_elbo(KEY(0), process, lambda x, t: x, x0, [0.9, 0.0])
