"""The finite-data oracle against brute force in NumPy, in blocks and out of them, and what it costs in memory."""

import io
import os
import pathlib
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES
from scipy import special, stats

import diffjax as dj
from diffjax.analytic import Empirical


@eqx.filter_jit
def truths(distribution, process, xt, t):
    """(log_prob, score, denoise, grad log_prob) at xt [b, *d] and t [] or [b]."""
    gradient = jax.grad(lambda x: jnp.sum(distribution.log_prob(process, x, t)))(xt)
    return (
        distribution.log_prob(process, xt, t),
        distribution.score(process, xt, t),
        distribution.denoise(process, xt, t),
        gradient,
    )


def brute_force(data, weights, alpha, sigma, xt):
    """(log_prob [b], denoised [b, *d]) with everything in memory at once, in float64."""
    x, centres = xt.reshape(len(xt), -1).astype(np.float64), data.reshape(len(data), -1).astype(np.float64)
    squares = ((x[:, None] - alpha[:, None, None] * centres) ** 2).sum(-1)
    joint = np.log(weights) - squares / (2 * sigma[:, None] ** 2)
    joint -= x.shape[1] / 2 * np.log(2 * np.pi * sigma[:, None] ** 2)
    log_prob = special.logsumexp(joint, axis=1)
    return log_prob, (np.exp(joint - log_prob[:, None]) @ centres).reshape(xt.shape)


def levels(process, t):
    return np.asarray(process.alpha(jnp.asarray(t))), np.asarray(process.sigma(jnp.asarray(t)))


def noisy(rng, data, alpha, sigma):
    shape = (-1, *(1,) * (data.ndim - 1))
    x0 = data[rng.integers(len(data), size=len(alpha))]
    return alpha.reshape(shape) * x0 + sigma.reshape(shape) * rng.normal(size=x0.shape)


@pytest.mark.parametrize(
    ("n", "block", "name", "shape", "weighted"),
    [
        (1, 256, "vp", (3,), False),
        (2, 1, "vp", (3,), True),
        (1000, 64, "edm", (2, 2, 1), False),
        (1000, 1000, "vp", (3,), True),
    ],
)
def test_log_prob_score_and_denoiser_are_those_of_every_datum(n, block, name, shape, weighted):
    """By sums over all data in NumPy; N below, at and beyond a block, and no multiple of it."""
    rng, t, process = np.random.default_rng(n), np.array([0.01, 0.1, 0.4, 0.8]), ALL_PROCESSES[name]()
    data, weights = rng.normal(size=(n, *shape)), rng.uniform(0.2, 2.0, size=n) if weighted else np.ones(n)
    alpha, sigma = levels(process, t)
    xt = noisy(rng, data, alpha, sigma)
    distribution = Empirical(jnp.asarray(data), jnp.asarray(weights) if weighted else None, block=block)
    log_prob, score, denoised, gradient = truths(distribution, process, jnp.asarray(xt), jnp.asarray(t))
    expected_log_prob, expected = brute_force(data, weights / weights.sum(), alpha, sigma, xt)
    np.testing.assert_allclose(log_prob, expected_log_prob, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(denoised, expected, rtol=1e-9, atol=1e-11)
    alpha, sigma = (level.reshape(-1, *(1,) * len(shape)) for level in (alpha, sigma))
    np.testing.assert_allclose(score, (alpha * expected - xt) / sigma**2, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(gradient, score, rtol=1e-8, atol=1e-8)


def test_it_is_the_mixture_of_vanishing_width():
    """One time for the batch, through `exact_denoiser`, beside `GaussianMixture` of variance 1e-12."""
    data, process = np.random.default_rng(0).normal(size=(20, 2)), dj.Rectified()
    weights, xt = jnp.linspace(1.0, 2.0, 20), jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)))
    ours = truths(Empirical(jnp.asarray(data), weights, block=8), process, xt, jnp.asarray(0.3))
    theirs = truths(dj.GaussianMixture(jnp.asarray(data), 1e-12, weights), process, xt, jnp.asarray(0.3))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)
    denoised = dj.exact_denoiser(Empirical(jnp.asarray(data), weights), process)(xt, jnp.asarray(0.3))
    np.testing.assert_allclose(denoised, ours[2], rtol=1e-12)


def test_samples_are_the_data_in_their_shares_and_a_draw_is_its_indexs():
    data = np.arange(5.0)[:, None]
    for weights in (None, np.array([1.0, 2.0, 3.0, 1.0, 3.0])):
        distribution = Empirical(jnp.asarray(data), None if weights is None else jnp.asarray(weights))
        draw = eqx.filter_jit(lambda distribution, n: distribution.sample(jax.random.key(0), n))
        drawn = np.asarray(draw(distribution, 4000))
        assert drawn.shape == (4000, 1)
        shares = np.full(5, 0.2) if weights is None else weights / weights.sum()
        assert stats.chisquare(np.bincount(drawn[:, 0].astype(int), minlength=5), 4000 * shares).pvalue > 1e-4
        np.testing.assert_array_equal(draw(distribution, 7), drawn[:7])


@pytest.mark.parametrize("lam", [20.0, 0.0])
def test_float32_reaches_what_the_module_says(lam):
    """Against float64 for the same float32 xt and the same levels: 3072 features, the noise of logsnr 20 and of 0."""
    rng = np.random.default_rng(0)
    data = rng.uniform(-1, 1, size=(300, 3072)).astype(np.float32)
    process, t = dj.Rectified(), np.float32(1 / (1 + np.exp(lam / 2)))
    alpha, sigma = (np.full(4, level, np.float32) for level in (np.float32(1) - t, t))
    xt = noisy(rng, data, alpha, sigma).astype(np.float32)
    # As users compile it: sums that are not vectorised lose three digits.
    run = jax.jit(truths, static_argnums=1, compiler_options={"xla_backend_optimization_level": 3})
    found = run(Empirical(jnp.asarray(data), block=128), process, jnp.asarray(xt), jnp.full(4, t, jnp.float32))
    assert all(part.dtype == jnp.float32 for part in found)
    alpha, sigma = alpha.astype(np.float64), sigma.astype(np.float64)
    log_prob, denoised = brute_force(data, np.full(300, 1 / 300), alpha, sigma, xt)
    score = (alpha[:, None] * denoised - xt) / sigma[:, None] ** 2
    np.testing.assert_allclose(found[0], log_prob, rtol=2e-6, atol=1e-3)
    np.testing.assert_allclose(found[2], denoised, atol=1e-5)
    for ours in map(np.asarray, (found[1], found[3])):
        assert np.sqrt(np.mean((ours - score) ** 2) / np.mean(score**2)) < 2e-5


def test_cifar_sized_data_fit():
    """50,000 images of 3072 features, 614 MB, and a batch of 64: compiled, not run. Nothing of [b, N] or of [N, D]."""
    process = dj.VariancePreserving()
    shapes = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    images = jax.eval_shape(Empirical, shapes(50_000, 32, 32, 3))

    def all_three(images, xt, t):
        return images.log_prob(process, xt, t), images.score(process, xt, t), images.denoise(process, xt, t)

    compiled = jax.jit(all_three).lower(images, shapes(64, 32, 32, 3), shapes(64)).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes > 600e6
    assert memory.temp_size_in_bytes < 4 * (3 * 64 * 3072 + 64 * 256 + 256 * 3072) * 4


def test_bad_data_are_refused():
    with pytest.raises(ValueError, match=r"data: at least one .*got shape \(0, 2\)"):
        Empirical(jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"block: .*got 0"):
        Empirical(jnp.zeros((3, 2)), block=0)
    with pytest.raises(ValueError, match=r"weights: shape \(3,\) .*got \(2,\)"):
        Empirical(jnp.zeros((3, 2)), jnp.ones(2))
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"weights: must be positive, got {weight}"):
            Empirical(jnp.zeros((3, 2)), jnp.array([1.0, weight, 1.0]))


@pytest.mark.slow
def test_the_optimal_denoiser_of_cifar_images():
    """5,000 real images: at logsnr 20 it gives back the image, at logsnr -4 their weighted average, as in NumPy."""
    if not (folder := os.environ.get("DIFFJAX_DATA")):
        pytest.skip("$DIFFJAX_DATA is not set: the folder that holds CIFAR-10 (cifar10.zip)")
    archive = pathlib.Path(folder) / "cifar10.zip"
    if not archive.exists():
        pytest.skip(f"no CIFAR-10 (cifar10.zip) in $DIFFJAX_DATA = {folder}")
    from PIL import Image

    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.startswith("cifar10/train/") and name.endswith("jpg"))
        pictures = [np.asarray(Image.open(io.BytesIO(files.read(name)))) for name in names[::10]]
    data = np.stack(pictures).astype(np.float32) / 127.5 - 1
    rng, process = np.random.default_rng(0), dj.Rectified()
    for lam in (20.0, -4.0):
        t = np.float32(1 / (1 + np.exp(lam / 2)))
        alpha, sigma = np.full(4, np.float32(1) - t, np.float64), np.full(4, t, np.float64)
        xt = noisy(rng, data, alpha, sigma).astype(np.float32)
        found = truths(Empirical(jnp.asarray(data)), process, jnp.asarray(xt), jnp.full(4, t, jnp.float32))
        parts = [brute_force(data, np.full(len(data), 1 / len(data)), alpha[:1], sigma[:1], x[None]) for x in xt]
        np.testing.assert_allclose(found[0], [float(part[0][0]) for part in parts], atol=2e-2)
        np.testing.assert_allclose(found[2], np.concatenate([part[1] for part in parts]), atol=2e-4)
