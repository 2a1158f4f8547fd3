"""Exact distributions against SciPy, quadrature and NumPy's conditioning; the flow map against the flow."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, gaussian, images, mixture
from scipy import stats

import diffjax as dj

# The truth reaches a process through alpha and sigma alone: three of them every time, the others among the slow tests.
EVERY_TIME = ("vp", "edm", "rectified")


def members(*whiches):
    """(which, name) for every process, those beyond `EVERY_TIME` marked slow."""
    return [
        pytest.param(which, name, marks=[] if name in EVERY_TIME else [pytest.mark.slow, pytest.mark.relative])
        for which in whiches
        for name in ALL_PROCESSES
    ]


DISTRIBUTIONS = {"gaussian": gaussian, "mixture": mixture, "images": images}
POINTS = 6


@eqx.filter_jit
def truths(distribution, process, xt, t):
    """(log_prob, score, denoise, grad log_prob) at xt [b, *d] and t [b]."""
    gradient = jax.grad(lambda x: jnp.sum(distribution.log_prob(process, x, t)))(xt)
    return (
        distribution.log_prob(process, xt, t),
        distribution.score(process, xt, t),
        distribution.denoise(process, xt, t),
        gradient,
    )


def components(distribution):
    """(weights [k], means [k, D], covariances [k, D, D]) by another road than the library's: as registered."""
    if isinstance(distribution, dj.GaussianMixture):
        covariances = [[[0.05, 0.02], [0.02, 0.08]], [[0.1, 0.0], [0.0, 0.03]], [[0.04, -0.01], [-0.01, 0.04]]]
        return np.array([0.5, 0.3, 0.2]), np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array(covariances)
    if distribution.mean.ndim == 1:
        return np.ones(1), np.array([[0.3, -0.5]]), np.array([[[0.5, 0.2], [0.2, 0.3]]])
    return np.ones(1), np.full((1, 4), 0.1), np.diag([0.2, 0.4, 0.6, 0.8])[None]


def points(distribution, process):
    rng = np.random.default_rng(0)
    t = np.linspace(0.03, 0.97, POINTS)
    shape = (2, 2, 1) if distribution in ("images",) else (2,)
    alpha, sigma = np.asarray(process.alpha(jnp.asarray(t))), np.asarray(process.sigma(jnp.asarray(t)))
    wide = np.sqrt(alpha**2 + sigma**2).reshape(-1, *(1,) * len(shape))
    return wide * rng.normal(size=(POINTS, *shape)), t, alpha, sigma


@pytest.mark.parametrize(("which", "name"), [*members("gaussian", "mixture"), ("images", "vp"), ("images", "edm")])
def test_log_prob_score_and_denoiser_are_the_mixtures(which, name):
    """By SciPy's densities and, for E[x0 | xt], conditioning of the joint (x0, xt) of every component in NumPy."""
    distribution, process = DISTRIBUTIONS[which](), ALL_PROCESSES[name]()
    xt, t, alpha, sigma = points(which, process)
    log_prob, score, denoised, gradient = truths(distribution, process, jnp.asarray(xt), jnp.asarray(t))
    weights, means, covariances = components(distribution)
    for i in range(POINTS):
        x = xt[i].ravel()
        marginals = [alpha[i] ** 2 * c + sigma[i] ** 2 * np.eye(len(x)) for c in covariances]
        joint = np.array(
            [
                w * stats.multivariate_normal(alpha[i] * m, c).pdf(x)
                for w, m, c in zip(weights, means, marginals, strict=True)
            ]
        )
        each = [
            m + alpha[i] * s @ np.linalg.solve(c, x - alpha[i] * m)
            for m, s, c in zip(means, covariances, marginals, strict=True)
        ]
        expected = joint / joint.sum() @ np.array(each)
        np.testing.assert_allclose(log_prob[i], np.log(joint.sum()), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(np.ravel(denoised[i]), expected, rtol=1e-7, atol=1e-9)
        tweedie = (alpha[i] * expected - x) / sigma[i] ** 2
        np.testing.assert_allclose(np.ravel(score[i]), tweedie, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-9)
    assert score.shape == denoised.shape == xt.shape


def test_denoiser_is_the_posterior_mean_by_quadrature():
    """In one dimension: int x0 p(x0) N(xt; alpha x0, sigma^2) dx0 over int of the same without x0."""
    data = dj.GaussianMixture(jnp.array([[-1.0], [0.5]]), jnp.array([0.02, 0.3]), jnp.array([1.0, 3.0]))
    process = dj.VariancePreserving()
    t, xt = np.array([0.05, 0.2, 0.5]), np.array([-0.8, 0.1, 1.5])
    grid = np.linspace(-6, 6, 40001)
    density = 0.25 * stats.norm(-1, np.sqrt(0.02)).pdf(grid) + 0.75 * stats.norm(0.5, np.sqrt(0.3)).pdf(grid)
    denoised = dj.exact_denoiser(data, process)(jnp.asarray(xt)[:, None], jnp.asarray(t))
    log_prob = data.log_prob(process, jnp.asarray(xt)[:, None], jnp.asarray(t))
    for i in range(3):
        b = 0.1 * t[i] + 19.9 * t[i] ** 2 / 2
        kernel = density * stats.norm(np.exp(-b / 2) * grid, np.sqrt(-np.expm1(-b))).pdf(xt[i])
        np.testing.assert_allclose(log_prob[i], np.log(np.trapezoid(kernel, grid)), rtol=1e-8)
        mean = np.trapezoid(grid * kernel, grid) / np.trapezoid(kernel, grid)
        np.testing.assert_allclose(denoised[i, 0], mean, rtol=1e-8)


def test_one_time_for_the_batch_is_that_time_for_each():
    process = dj.Cosine()
    for which in ("images", "mixture"):
        distribution, xt = DISTRIBUTIONS[which](), jnp.asarray(points(which, process)[0])
        for one, each in zip(
            truths(distribution, process, xt, jnp.asarray(0.3)),
            truths(distribution, process, xt, jnp.full(POINTS, 0.3)),
            strict=True,
        ):
            np.testing.assert_allclose(one, each, rtol=1e-12)


def test_at_time_zero_it_is_the_data():
    process = dj.Rectified()
    x = np.array([[0.2, -0.1], [1.0, 0.4]])
    for distribution in (gaussian(), mixture()):
        weights, means, covariances = components(distribution)
        density = sum(
            w * stats.multivariate_normal(m, c).pdf(x) for w, m, c in zip(weights, means, covariances, strict=True)
        )
        log_prob, _, denoised, _ = truths(distribution, process, jnp.asarray(x), jnp.zeros(2))
        np.testing.assert_allclose(log_prob, np.log(density), rtol=1e-10)
        np.testing.assert_allclose(denoised, x, rtol=1e-12)


@pytest.mark.parametrize("which", DISTRIBUTIONS)
def test_samples_have_the_moments(which):
    distribution = DISTRIBUTIONS[which]()
    n = 4000
    x = np.asarray(distribution.sample(jax.random.key(1), n)).reshape(n, -1)
    weights, means, covariances = components(distribution)
    mean = weights @ means
    spread = np.einsum("k,kij->ij", weights, covariances + np.einsum("ki,kj->kij", means - mean, means - mean))
    deviation = np.sqrt(np.diag(spread))
    assert np.all(np.abs(x.mean(0) - mean) < 4.5 * deviation / np.sqrt(n))
    assert np.all(np.abs(np.cov(x.T) - spread) < 4.5 * np.sqrt(2.5 / n) * np.outer(deviation, deviation))
    assert distribution.sample(jax.random.key(1), n).shape[1:] == ((2, 2, 1) if which == "images" else (2,))
    if which == "mixture":  # not only the moments: the shares of the components
        nearest = np.argmin(((x[:, None] - means) ** 2).sum(-1), axis=1)
        assert stats.chisquare(np.bincount(nearest, minlength=3), n * weights).pvalue > 1e-4


# --- the flow map ---


@pytest.mark.parametrize(("which", "name"), members("gaussian"))
def test_flow_map_follows_the_velocity_and_carries_the_density(which, name):
    """d/ds of the map is the velocity at its end; log p_s(map(x)) + log |det dmap/dx| = log p_t(x)."""
    process = ALL_PROCESSES[name]()
    data = DISTRIBUTIONS[which]()
    xt = jnp.asarray(points(which, process)[0])[:3]
    t, s = jnp.array([0.9, 0.5, 0.1]), jnp.array([0.3, 0.45, 0.6])

    @eqx.filter_jit
    def checks(process, xt, t, s):
        move = lambda x, s: dj.exact_flow_map(data, process).move(x, t, s)
        xs, rate = jax.jvp(lambda s: move(xt, s), (s,), (jnp.ones_like(s),))
        field = dj.samplers.velocity(process, dj.exact_denoiser(data, process), xs, s)
        jacobian = jax.vmap(jax.jacfwd(lambda x, t, s: dj.exact_flow_map(data, process).move(x[None], t, s)[0]))(
            xt, t, s
        )
        before, after = data.log_prob(process, xt, t), data.log_prob(process, xs, s)
        return xs, rate, field, before, after + jnp.log(jnp.linalg.det(jacobian)), move(xt, t), move(xs, s)

    xs, rate, field, before, after, still, _ = checks(process, xt, t, s)
    np.testing.assert_allclose(rate, field, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(still, xt, rtol=1e-12, atol=1e-12)
    back = dj.exact_flow_map(data, process).move(xs, s, t)
    np.testing.assert_allclose(back, xt, rtol=1e-10, atol=1e-10)
    assert not np.allclose(xs, xt, atol=1e-3)


def test_flow_map_is_the_flow_solved():
    """Runge-Kutta of fourth order in NumPy on dx/dt = f x - g^2 score/2, for the VP process."""
    data, process = gaussian(), dj.VariancePreserving()
    mean, covariance = np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]])

    def field(x, t):
        b, beta = 0.1 * t + 19.9 * t**2 / 2, 0.1 + 19.9 * t
        alpha = np.exp(-b / 2)
        score = -np.linalg.solve(alpha**2 * covariance - np.expm1(-b) * np.eye(2), (x - alpha * mean).T).T
        return -beta * x / 2 - beta * score / 2

    x = start = np.array([[1.0, 0.3], [-0.7, 0.2]])
    grid = np.linspace(0.8, 0.1, 401)
    for t, s in itertools.pairwise(grid):
        h = s - t
        k1 = field(x, t)
        k2 = field(x + h / 2 * k1, t + h / 2)
        k3 = field(x + h / 2 * k2, t + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(x + h * k3, s))
    np.testing.assert_allclose(dj.exact_flow_map(data, process).move(jnp.asarray(start), 0.8, 0.1), x, rtol=1e-7)


# --- what is refused ---


def test_bad_covariances_are_refused():
    mean = jnp.zeros(2)
    for bad in (-1.0, 0.0, [1.0, -0.5], [[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, float("nan")]]):
        with pytest.raises(ValueError, match=r"covariance: must be positive definite, got"):
            dj.Gaussian(mean, jnp.asarray(bad))
    with pytest.raises(ValueError, match=r"covariance: .*symmetric"):
        dj.Gaussian(mean, jnp.array([[1.0, 0.5], [0.0, 1.0]]))
    for shape in ((3,), (3, 3), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"covariance: shape .*got"):
            dj.Gaussian(mean, jnp.ones(shape))
    means = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"covariances: .*symmetric"):
        dj.GaussianMixture(means, jnp.array([[1.0, 0.5], [0.0, 1.0]]) * jnp.ones((3, 1, 1)))
    with pytest.raises(ValueError, match=r"covariances: must be positive definite, got"):
        dj.GaussianMixture(means, jnp.array([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match=r"covariances: a leading axis of 3"):
        dj.GaussianMixture(means, jnp.ones(2))
    for weights in ([1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [float("nan"), 1.0, 1.0]):
        with pytest.raises(ValueError, match=r"weights: must be positive, got"):
            dj.GaussianMixture(means, 1.0, jnp.asarray(weights))
