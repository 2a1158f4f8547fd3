"""Posterior samplers that own a loop, against Gaussian recursions written out in NumPy."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import inverse
from diffjax.samplers import Step, step_weights

KEY = jax.random.key
MEAN = np.array([0.3, -0.2])
COVARIANCE = np.array([[1.0, 0.8], [0.8, 0.9]])
ROW = np.array([1.0, -0.4])
STD, Y = 0.3, 0.9


def first(x):
    """The operator y = x_1 - 0.4 x_2, [b, 2] -> [b, 1]."""
    return x @ jnp.asarray(ROW)[:, None]


def prior():
    return dj.Gaussian(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))


def schedule(process, ts):
    alpha, sigma = (np.asarray(f(jnp.asarray(ts))) for f in (process.alpha, process.sigma))
    return alpha, sigma


def affine(alpha, sigma):
    """(G, c): E[x0 | xt] = G xt + c of the prior."""
    G = alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * np.eye(2))
    return G, MEAN - alpha * G @ MEAN


def ancestral(alpha, sigma):
    """(keep, data, std) of q(xs | xt, x0) for a step of the arrays alpha, sigma = [at t, at s]; Ho et al., eq. 7."""
    a = alpha[0] / alpha[1]
    v = sigma[0] ** 2 - a**2 * sigma[1] ** 2
    return a * sigma[1] ** 2 / sigma[0] ** 2, alpha[1] * v / sigma[0] ** 2, sigma[1] * np.sqrt(v) / sigma[0]


def pushed(moments, M, c, noise=0.0):
    """(mean, covariance) after x -> M x + c + noise z."""
    mean, covariance = moments
    return M @ mean + c, M @ covariance @ M.T + noise**2 * np.eye(2)


# --- particles ---


def test_systematic_resampling():
    """Each particle floor(k w) or ceil(k w) times, k w times on average; and the effective sample size."""
    log_w = jnp.log(jnp.array([0.05, 0.4, 0.0, 0.3, 0.25])) + 7.0
    w = np.array([0.05, 0.4, 0.0, 0.3, 0.25])
    chosen = np.asarray(jax.vmap(inverse.systematic, (0, None))(jax.random.split(KEY(0), 2000), log_w))
    counts = (chosen[:, :, None] == np.arange(5)).sum(1)
    assert np.all((counts == np.floor(5 * w + 1e-9)) | (counts == np.ceil(5 * w - 1e-9)))
    np.testing.assert_allclose(counts.mean(0), 5 * w, atol=4.5 * 0.5 / 2000**0.5)
    np.testing.assert_allclose(inverse.effective_sample_size(log_w), 1 / np.sum(w**2))
    np.testing.assert_allclose(inverse.effective_sample_size(jnp.zeros(7)), 7.0)


def chain_posterior(process, ts):
    """Mean, covariance and log p(y) of x0 given y, x0 being the end of DDPM's chain on a grid, not of the data."""
    alpha, sigma = schedule(process, ts)
    moments = np.zeros(2), sigma[0] ** 2 * np.eye(2)
    for k in range(len(ts) - 1):
        G, c = affine(alpha[k], sigma[k])
        keep, data, noise = ancestral(alpha[k : k + 2], sigma[k : k + 2])
        moments = pushed(moments, keep * np.eye(2) + data * G, data * c, noise)
    mean, covariance = pushed(moments, *affine(alpha[-1], sigma[-1]))
    variance, apart = ROW @ covariance @ ROW + STD**2, Y - ROW @ mean
    gain = covariance @ ROW / variance
    log_p = -0.5 * apart**2 / variance - 0.5 * np.log(2 * np.pi * variance)
    return mean + gain * apart, covariance - np.outer(gain, ROW @ covariance), log_p


def runs_of(k, runs):
    """(weighted mean, weighted second moment, evidence over the true one, effective sizes) of so many runs of SMC, and
    the truth: the posterior of the chain on this coarse grid, in closed form."""
    process, ts = dj.VariancePreserving(), np.geomspace(0.9, 0.02, 11)
    denoiser = dj.exact_denoiser(prior(), process)
    mean, covariance, log_p = chain_posterior(process, ts)

    def one(key):
        prior_key, key = jax.random.split(key)
        xt = process.sigma(jnp.asarray(ts[0])) * jax.random.normal(prior_key, (k, 2))
        out = inverse.twisted_smc(key, process, denoiser, xt, ts, first, jnp.full((1, 1), Y), STD, threshold=0.8)
        w = jnp.exp(out.log_weights)
        return w @ out.x0, (w[:, None] * out.x0).T @ out.x0, jnp.exp(out.log_evidence - log_p), out.ess

    found = jax.vmap(one)(jax.random.split(KEY(k), runs))
    return *(np.asarray(a) for a in found), mean, covariance


@pytest.mark.slow
def test_smc_weighs_particles_by_the_posterior():
    """p(y) without bias, mean and covariance to the 1/k of a ratio's bias, over 400 runs of 64 particles."""
    k, runs = 64, 400
    found, square, ratio, ess, mean, covariance = runs_of(k, runs)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / runs**0.5
    assert np.all((ess > 0.99) & (ess < k + 0.01))
    assert ess.min() < 0.8 * k  # it does resample
    assert np.all(np.abs(found.mean(0) - mean) < 4.5 * found.std(0) / runs**0.5 + 0.5 / k)
    allowed = 4.5 * square.std(0) / runs**0.5 + 0.5 / k
    assert np.all(np.abs(square.mean(0) - covariance - np.outer(mean, mean)) < allowed)


@pytest.mark.slow
def test_smc_converges_as_particles_grow():
    """The error of the mean falls as the root of their number."""
    errors = []
    for k in (32, 512):
        found, _, _, _, mean, _ = runs_of(k, 200)
        errors.append(np.sqrt(np.mean((found - mean) ** 2)))
    print("rms errors of the mean", errors)
    assert abs(errors[0] / errors[1] / 4 - 1) < 0.3


def test_bad_particles():
    process = dj.Rectified()
    known = (KEY(0), process, dj.exact_denoiser(prior(), process), jnp.ones((4, 2)))
    ts, y = np.array([0.9, 0.5, 0.1]), jnp.ones((1, 1))
    with pytest.raises(ValueError, match=r"y: one observation, of shape \(1, \*m\), is needed, got shape \(4, 1\)"):
        inverse.twisted_smc(*known, ts, first, jnp.ones((4, 1)), STD)
    with pytest.raises(ValueError, match=r"threshold: must lie in \[0, 1\], got 2.0"):
        inverse.twisted_smc(*known, ts, first, y, STD, threshold=2.0)
    with pytest.raises(ValueError, match=r"ts: must end where sigma > 0, got 0\.0"):
        inverse.twisted_smc(*known, np.array([0.9, 0.5, 0.0]), first, y, STD)
    with pytest.raises(ValueError, match=r"y: shape \(4, 1\) is needed, .* got \(1, 2\)"):
        inverse.twisted_smc(*known, ts, first, jnp.ones((1, 2)), STD)


# --- inpainting ---


def repainted(process, ts, times):
    """Mean and covariance of RePaint's chain where x_1 = Y is known: Lugmayr et al., algorithm 1, as a recursion."""
    alpha, sigma = schedule(process, ts)
    moments = np.zeros(2), sigma[0] ** 2 * np.eye(2)
    hidden = np.diag([0.0, 1.0])
    for k in range(len(ts) - 1):
        G, c = affine(alpha[k], sigma[k])
        keep, data, noise = ancestral(alpha[k : k + 2], sigma[k : k + 2])
        a = alpha[k] / alpha[k + 1]
        for u in range(times):
            if u > 0:
                moments = pushed(moments, a * np.eye(2), 0.0, np.sqrt(sigma[k] ** 2 - a**2 * sigma[k + 1] ** 2))
            mean, covariance = pushed(moments, keep * np.eye(2) + data * G, data * c, noise)
            mean, covariance = hidden @ mean, hidden @ covariance @ hidden
            moments = mean + np.array([alpha[k + 1] * Y, 0.0]), covariance + np.diag([sigma[k + 1] ** 2, 0.0])
    return pushed(moments, *affine(alpha[-1], sigma[-1]))


def test_a_step_of_repaint_is_the_papers(monkeypatch):
    """With given noise: down by DDPM's step, what is known put back, up by the forward process, and so down again."""
    process, ts = dj.VariancePreserving(), np.array([0.6, 0.4])
    xt, z = np.random.default_rng(0).normal(size=(3, 2)), np.random.default_rng(1).normal(size=(5, 3, 2))
    draws = itertools.chain(z[:2], itertools.cycle(z[2:]))  # the repetition may be traced more than once
    for module in ("inverse._inpaint", "samplers._ddim"):
        monkeypatch.setattr(f"diffjax.{module}.normal_like", lambda keys, x: jnp.asarray(next(draws)))
    method = inverse.RePaint(jnp.array([True, False]), jnp.array([[Y, np.nan]]), 2)
    weights = jax.tree.map(lambda w: jnp.asarray(w[0]), step_weights(method, process, ts))
    keys, denoiser = jax.random.split(KEY(0), 3), dj.exact_denoiser(prior(), process)
    found, _ = method.step(denoiser, jnp.asarray(xt), Step(*map(jnp.asarray, ts), weights, keys), None)

    alpha, sigma = schedule(process, ts)
    (keep, data, noise), (G, c), a = ancestral(alpha, sigma), affine(alpha[0], sigma[0]), alpha[0] / alpha[1]

    def down(x, of_step, of_known):
        hidden = keep * x + data * (x @ G.T + c) + noise * of_step
        return np.stack([alpha[1] * Y + sigma[1] * of_known[:, 0], hidden[:, 1]], axis=1)

    up = a * down(xt, z[0], z[1]) + np.sqrt(sigma[0] ** 2 - a**2 * sigma[1] ** 2) * z[2]
    np.testing.assert_allclose(found, down(up, z[3], z[4]), rtol=1e-9)


@pytest.mark.slow
def test_replacement_is_biased_and_repaint_less():
    """Both chains' means and variances as their recursions say; against the exact posterior, replacement is off by a
    good part of what y should teach, and RePaint by less. Noise belongs to the sample's global index."""
    process, n = dj.VariancePreserving(), 20_000  # variances to 4.5 percent
    denoiser, ts = dj.exact_denoiser(prior(), process), np.linspace(0.95, 0.005, 21)
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    exact = MEAN[1] + slope * (Y - MEAN[0]), COVARIANCE[1, 1] - slope * COVARIANCE[0, 1]
    xt = process.sigma(jnp.asarray(ts[0])) * jax.random.normal(KEY(0), (n, 2))
    mask, y = jnp.array([True, False]), jnp.array([[Y, np.nan]])
    bias = []
    for times in (1, 6):
        x0 = inverse.inpaint(KEY(1), process, denoiser, xt, ts, mask, y, times=times, index=jnp.arange(n))
        np.testing.assert_array_equal(x0[:, 0], np.full(n, Y))
        mean, covariance = repainted(process, ts, times)
        found, variance = float(x0[:, 1].mean()), float(x0[:, 1].var())
        assert abs(found - mean[1]) < 4.5 * np.sqrt(covariance[1, 1] / n)
        assert abs(variance / covariance[1, 1] - 1) < 4.5 * np.sqrt(2 / n)
        bias.append(abs(mean[1] - exact[0]) / np.sqrt(exact[1]))
        turned = inverse.inpaint(
            KEY(1), process, denoiser, xt[::-1], ts, mask, y, times=times, index=jnp.arange(n)[::-1]
        )
        np.testing.assert_allclose(turned[::-1], x0, rtol=1e-9)
    assert bias[0] > 0.1
    assert bias[1] < 0.5 * bias[0]


@pytest.mark.slow
def test_images_are_inpainted_in_float32():
    process = dj.VariancePreserving()
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros((2, 4, 3), jnp.float32), jnp.float32(0.5)), process)
    xt, y = (jax.random.normal(KEY(k), (5, 2, 4, 3), jnp.float32) for k in range(2))
    mask = (np.arange(8) % 2).reshape(2, 4, 1)
    x0 = inverse.inpaint(KEY(2), process, denoiser, xt, np.linspace(0.9, 0.1, 5), mask, y, times=2, stepper=dj.Heun())
    assert x0.dtype == jnp.float32
    np.testing.assert_array_equal(np.where(mask, x0, 0), np.where(mask, y, 0))
    assert inverse.RePaint(jnp.asarray(mask), y, 3, dj.Heun()).evaluations_per_step == 6


def test_bad_inpainting():
    with pytest.raises(ValueError, match=r"mask: shape \(2, 4, 3\), that of one sample, .* got \(2, 4\)"):
        inverse.RePaint(jnp.ones((2, 4)), jnp.ones((1, 2, 4, 3)))
    with pytest.raises(ValueError, match="times: a positive integer is needed, got 0"):
        inverse.RePaint(jnp.ones(2), jnp.ones((1, 2)), 0)
    with pytest.raises(ValueError, match="stepper: a one-step method is needed, got DPMpp2M"):
        inverse.RePaint(jnp.ones(2), jnp.ones((1, 2)), 1, dj.DPMpp2M())
    process = dj.VariancePreserving()
    denoiser = dj.exact_denoiser(prior(), process)
    with pytest.raises(ValueError, match=r"y: shape \(4, 2\), that of the samples, is needed .* got \(3, 2\)"):
        inverse.inpaint(
            KEY(0), process, denoiser, jnp.ones((4, 2)), np.array([0.9, 0.1]), jnp.ones(2), jnp.ones((3, 2))
        )


# --- DiffPIR ---


def test_diffpir_is_the_papers_algorithm():
    """Algorithm 1 in NumPy: without new noise the sample itself, with it mean and covariance, by recursion."""
    process, n, strength = dj.VariancePreserving(), 4000, 3.0
    denoiser, ts = dj.exact_denoiser(prior(), process), np.linspace(0.95, 0.02, 9)
    alpha, sigma = schedule(process, ts)
    run = lambda xt, zeta: inverse.diffpir(
        KEY(1), process, denoiser, xt, ts, first, jnp.full((1, 1), Y), STD, strength=strength, zeta=zeta
    )

    def data_step(k):
        """x0' = argmin |y - A x|^2 + rho |x - D|^2 as an affine function of xt."""
        G, c = affine(alpha[k], sigma[k])
        rho = strength * STD**2 * alpha[k] ** 2 / sigma[k] ** 2
        matrix = np.outer(ROW, ROW) + rho * np.eye(2)
        return np.linalg.solve(matrix, rho * G), np.linalg.solve(matrix, ROW * Y + rho * c)

    def recursion(moments, zeta):
        for k in range(len(ts) - 1):
            G, c = data_step(k)
            old = np.sqrt(1 - zeta) * sigma[k + 1] / sigma[k]
            M = (alpha[k + 1] - old * alpha[k]) * G + old * np.eye(2)
            moments = pushed(moments, M, (alpha[k + 1] - old * alpha[k]) * c, np.sqrt(zeta) * sigma[k + 1])
        return pushed(moments, *data_step(len(ts) - 1))

    xt = jax.random.normal(KEY(0), (n, 2))
    still = recursion((np.asarray(xt[3]), np.zeros((2, 2))), 0.0)[0]
    np.testing.assert_allclose(run(xt, 0.0)[3], still, rtol=1e-4)  # the default solver's tolerance
    x0 = np.asarray(run(xt, 0.4))
    mean, covariance = recursion((np.zeros(2), np.eye(2)), 0.4)
    assert np.all(np.abs(x0.mean(0) - mean) < 4.5 * np.sqrt(np.diag(covariance) / n) + 1e-4)
    assert np.all(np.abs(x0.var(0) / np.diag(covariance) - 1) < 4.5 * np.sqrt(2 / n) + 1e-4)
    with pytest.raises(ValueError, match=r"zeta: must lie in \[0, 1\], got 1\.5"):
        inverse.Renoise(1.5)


# --- SDEdit ---


@pytest.mark.slow
def test_sdedit_noises_the_guide_and_follows_the_flow():
    """On N(0, c) data the flow multiplies by d_s/d_t: the mean keeps alpha d_s/d_t of the guide, and the noise does as
    much for the spread."""
    process, n, c = dj.VariancePreserving(), 20_000, 0.25
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), c), process)
    ts = np.linspace(0.4, 0.01, 61)
    alpha, sigma = schedule(process, ts)
    growth = np.sqrt(c * alpha[-1] ** 2 + sigma[-1] ** 2) / np.sqrt(c * alpha[0] ** 2 + sigma[0] ** 2)
    run = lambda guide, **kw: inverse.sdedit(KEY(1), process, denoiser, guide, ts, dj.Heun(), final_denoise=False, **kw)
    x = run(jnp.full((n, 1), 1.5))
    spread = sigma[0] * growth
    assert abs(float(x.mean()) - 1.5 * alpha[0] * growth) < 4.5 * spread / n**0.5 + 1e-3
    assert abs(float(x.std()) / spread - 1) < 4.5 / np.sqrt(2 * n) + 1e-3
    np.testing.assert_allclose(run(jnp.full((2, 1), 1.5), index=jnp.array([5, 9])), x[jnp.array([5, 9])], rtol=1e-9)


@pytest.mark.slow
def test_new_numbers_compile_nothing():
    """Another y, noise level, mask or number of any method."""
    process, calls = dj.VariancePreserving(), []

    class Counter(eqx.Module):
        gain: jax.Array

        def __call__(self, xt, t):
            calls.append(1)
            return self.gain * xt

    ts, xt = np.array([0.9, 0.5, 0.1]), jnp.ones((4, 2))

    def run(which):
        denoiser, y = Counter(jnp.asarray(0.3 + which)), jnp.full((1, 1), 0.2 + which)
        known = (KEY(which), process, denoiser, xt, ts + 0.01 * which)
        inverse.twisted_smc(*known, first, y, 0.2 + which, data_std=1.0 + which)
        inverse.inpaint(*known, jnp.array([which, 1]), jnp.full((1, 2), 0.1 + which), times=2)
        inverse.diffpir(*known, first, y, 0.3 + which, zeta=0.2 + 0.1 * which)

    run(0)
    before = len(calls)
    run(1)
    assert len(calls) == before > 0


@pytest.mark.slow
def test_known_rows_are_split_with_the_samples():
    """`sample_n` of a stepper that knows a row for each sample: chunks make no difference, and each keeps its own."""
    process, n = dj.VariancePreserving(), 6
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 0.5), process)
    y = jnp.stack([jnp.arange(1.0, n + 1), jnp.zeros(n)], axis=1)
    stepper = inverse.RePaint(jnp.array([True, False]), y, 2)
    run = lambda chunk: dj.sample_n(
        KEY(0),
        process,
        denoiser,
        (2,),
        n,
        ts=np.linspace(1, 0.01, 5),
        stepper=stepper,
        chunk=chunk,
        final_denoise=False,
    )
    whole = run(n)
    np.testing.assert_allclose(run(2), whole, rtol=1e-10)
    np.testing.assert_allclose(whole[:, 0], y[:, 0], atol=0.4)
    with pytest.raises(ValueError, match=r"y: one row for each of 12 samples is needed, got shape \(6, 2\)"):
        dj.sample_n(KEY(0), process, denoiser, (2,), 12, ts=[1.0, 0.01], stepper=stepper, chunk=6)
