"""Posterior guidance against the exact posterior of Gaussian data, and against NumPy for mixtures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from registry import ALL_PROCESSES

import diffjax as dj
from diffjax import guidance, operators

KEY = jax.random.key
MEAN = np.array([0.3, -0.5, 0.2])
COVARIANCE = np.array([[0.5, 0.2, 0.1], [0.2, 0.3, -0.1], [0.1, -0.1, 0.4]])
MATRIX = np.array([[1.0, 0.5, 0.0], [0.0, -0.3, 1.0]])
STD, Y = 0.2, np.array([0.7, -0.4])
SOLVER = lx.CG(1e-13, 1e-13, max_steps=50)
TRUNCATED = guidance.TruncatedCG(1e-13, 1e-13)
MEANS, WEIGHTS, SPREAD = np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.5, 0.3, 0.2]), 0.15


def gaussian(process, mean=MEAN, covariance=COVARIANCE):
    return dj.exact_denoiser(dj.Gaussian(jnp.asarray(mean), jnp.asarray(covariance)), process)


def posterior(covariance, alpha, sigma, xt, y=Y, mean=MEAN):
    """(mean, covariance) of x0 given xt = alpha x0 + sigma eps and y = A x0 + STD n, by Gaussian conditioning."""
    prior = np.linalg.inv(covariance)
    precision = prior + np.eye(len(mean)) * (alpha / sigma) ** 2 + MATRIX.T @ MATRIX / STD**2
    return np.linalg.solve(precision, prior @ mean + alpha * xt / sigma**2 + MATRIX.T @ y / STD**2), precision


def mixture_denoiser(x, alpha, sigma):
    """E[x0 | xt] of sum_k pi_k N(m_k, SPREAD I), at one x, in NumPy."""
    v = alpha**2 * SPREAD + sigma**2
    log_r = np.log(WEIGHTS) - np.sum((x - alpha * MEANS) ** 2, axis=1) / (2 * v)
    r = np.exp(log_r - log_r.max())
    return (r / r.sum()) @ (MEANS + alpha * SPREAD / v * (x - alpha * MEANS))


def mixture(process):
    return dj.exact_denoiser(dj.GaussianMixture(jnp.asarray(MEANS), SPREAD, jnp.asarray(WEIGHTS)), process)


def slope(function, x, h=1e-5):
    """The Jacobian by central differences, to about 1e-9."""
    return np.stack([(function(x + h * e) - function(x - h * e)) / (2 * h) for e in np.eye(len(x))], axis=-1)


@pytest.mark.parametrize("name", ["vp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("edm", "rectified"))])
def test_tmpd_is_exact_for_gaussian_data(name):
    """The posterior's score, and so E[x0 | xt, y], to 1e-9 of the latter, for times and noise levels of each sample."""
    process = ALL_PROCESSES[name]()
    t, b = jnp.array([0.05, 0.3, 0.6, 0.95]), 4
    xt = dj.perturb(process, jax.random.normal(KEY(0), (b, 3)), jax.random.normal(KEY(1), (b, 3)), t)
    y = jnp.asarray(Y) + jax.random.normal(KEY(2), (b, 2))
    operator = operators.Matrix(jnp.asarray(MATRIX))
    guided = guidance.tmpd(process, gaussian(process), operator, y, jnp.full(b, STD), solver=TRUNCATED)
    found = eqx.filter_jit(dj.score)(process, guided, xt, t)
    for i in range(b):
        alpha, sigma, x = float(process.alpha(t[i])), float(process.sigma(t[i])), np.asarray(xt[i])
        mean, _ = posterior(COVARIANCE, alpha, sigma, x, np.asarray(y[i]))
        np.testing.assert_allclose(found[i], (alpha * mean - x) / sigma**2, rtol=1e-9, atol=1e-9 / sigma**2)


@pytest.mark.slow
def test_tmpd_samples_the_exact_posterior_of_gaussian_data():
    """The guided flow is affine, x0 = M xT + c: mean and covariance of its samples come without Monte Carlo."""
    process = dj.VariancePreserving()
    guided = guidance.tmpd(
        process, gaussian(process), operators.Matrix(jnp.asarray(MATRIX)), jnp.asarray(Y)[None], STD, solver=SOLVER
    )
    xt = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
    x0 = np.asarray(dj.sample(KEY(0), process, guided, xt, dj.logsnr_grid(process, 100), dj.DPMpp2M()))
    mean, precision = posterior(COVARIANCE, 0.0, 1.0, np.zeros(3))
    np.testing.assert_allclose(x0[0], mean, atol=2e-3)
    np.testing.assert_allclose((x0[1:] - x0[0]).T @ (x0[1:] - x0[0]), np.linalg.inv(precision), atol=2e-3)


def test_pigdm_is_exact_for_white_gaussian_data_alone():
    process, t = dj.VariancePreserving(), jnp.array([0.1, 0.4, 0.9])
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
    xt = jax.random.normal(KEY(0), (3, 3))
    for covariance, exact in ((0.49 * np.eye(3), True), (COVARIANCE, False)):
        guided = guidance.pigdm(
            process,
            gaussian(process, covariance=covariance),
            lambda x: x @ jnp.asarray(MATRIX).T,
            jnp.asarray(Y)[None],
            STD,
            data_std=0.7,
            solver=SOLVER,
        )
        found = np.asarray(guided(xt, t))
        for i in range(3):
            a, s, x = alpha[i], sigma[i], np.asarray(xt[i])
            mean, _ = posterior(covariance, a, s, x)
            assert (np.abs(found[i] - mean).max() < 1e-9) == exact
            # The paper's formula, J' A' (r^2 A A' + std^2)^-1 (y - A D), with J of the Gaussian in closed form.
            gain = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(3))
            plain = MEAN + gain @ (x - a * MEAN)
            r2 = 0.49 * s**2 / (0.49 * a**2 + s**2)
            inner = np.linalg.solve(r2 * MATRIX @ MATRIX.T + STD**2 * np.eye(2), Y - MATRIX @ plain)
            np.testing.assert_allclose(found[i], plain + s**2 / a * gain.T @ MATRIX.T @ inner, rtol=1e-9)


def bent(x):
    """An operator that is not linear, [b, 2] -> [b, 2]."""
    return jnp.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1]], axis=1)


def test_dps_is_the_gradient_of_the_likelihood():
    """Against NumPy for a mixture: the observation bent, the gradient by differences, as in the paper's eq. 16."""
    process, t = dj.EDM(), jnp.array([0.1, 0.35, 0.5])
    xt = jax.random.normal(KEY(0), (3, 2))
    y = np.array([0.4, 0.1])
    known = [process, mixture(process), bent, jnp.asarray(y)[None]]
    found = guidance.dps(*known, jnp.array([0.2, 0.3, 0.5]), scale=1.7)(xt, t)
    by_length = guidance.dps_normalised(*known, scale=0.8)(xt, t)
    for i in range(3):
        alpha, sigma = float(process.alpha(t[i])), float(process.sigma(t[i]))

        def misfit(x, alpha=alpha, sigma=sigma):
            a, b = mixture_denoiser(x, alpha, sigma)
            return np.sum((y - np.array([a**2, a * b])) ** 2)

        x = np.asarray(xt[i])
        plain, std = mixture_denoiser(x, alpha, sigma), [0.2, 0.3, 0.5][i]
        gradient = slope(misfit, x)
        expected = plain - 1.7 * sigma**2 / alpha * gradient / (2 * std**2)
        np.testing.assert_allclose(found[i], expected, rtol=1e-7)
        expected = plain - 0.8 * sigma**2 / alpha * gradient / (2 * np.sqrt(misfit(x)))
        np.testing.assert_allclose(by_length[i], expected, rtol=1e-7)


def test_tmpd_and_proximal_against_numpy_for_a_mixture():
    """With the Jacobians of the denoiser and of a bent operator by differences."""
    process, t, y, std = dj.VariancePreserving(), jnp.array([0.2, 0.35, 0.5]), np.array([0.4, 0.1]), 0.3
    xt = jax.random.normal(KEY(0), (3, 2))
    known = [process, mixture(process), bent, jnp.asarray(y)[None], std]
    found = guidance.tmpd(*known, solver=TRUNCATED)(xt, t)
    near = guidance.proximal(*known, strength=2.0, solver=SOLVER)(xt, t)
    for i in range(3):
        alpha, sigma, x = float(process.alpha(t[i])), float(process.sigma(t[i])), np.asarray(xt[i])
        plain = mixture_denoiser(x, alpha, sigma)
        C = sigma**2 / alpha * slope(lambda x, a=alpha, s=sigma: mixture_denoiser(x, a, s), x)
        A = np.array([[2 * plain[0], 0.0], [plain[1], plain[0]]])
        residual = y - np.array([plain[0] ** 2, plain[0] * plain[1]])
        for value, spread in ((found[i], C), (near[i], (sigma / alpha) ** 2 / 2 * np.eye(2))):
            expected = plain + spread @ A.T @ np.linalg.solve(A @ spread @ A.T + std**2 * np.eye(2), residual)
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-8)


METHODS = {
    "dps": guidance.dps,
    "pigdm": guidance.pigdm,
    "tmpd": guidance.tmpd,
    "proximal": guidance.proximal,
    "dps_normalised": lambda *args, **kw: guidance.dps_normalised(*args[:-1], scale=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_images_of_any_precision_each_alone(name):
    """float32 images with a denoiser that answers in bfloat16; a sample depends on its own row of y alone."""
    process, method = dj.Rectified(), METHODS[name]
    denoiser = lambda x, t: (0.7 * jnp.tanh(x)).astype(jnp.bfloat16)
    operator = operators.Blur(jnp.full((3, 3), 1 / 9), boundary=operators.periodic)
    xt, y = (jax.random.normal(KEY(k), (3, 4, 4, 2), jnp.float32) for k in range(2))
    run = eqx.filter_jit(lambda y, xt, t: method(process, denoiser, operator, y, jnp.float32(0.3))(xt, t))
    t = jnp.array([1.0, 0.4, 0.4], jnp.float32)
    together = run(y, xt, t)
    assert together.dtype == jnp.float32
    assert together.shape == xt.shape
    # Other rows as different as can be, and the same shapes: bit for bit.
    others = run(y.at[:2].set(100.0), xt.at[:2].set(-3.0), t)
    np.testing.assert_array_equal(together[2], others[2])
    # From pure noise, where alpha = 0, there is nothing to say of x0.
    assert np.all(np.isfinite(together))


@pytest.mark.slow
def test_new_numbers_compile_nothing_and_gradients_reach_them():
    process, calls = dj.VariancePreserving(), []
    operator, denoiser = operators.Matrix(jnp.asarray(MATRIX)), gaussian(process)
    xt = jax.random.normal(KEY(0), (3, 3))

    @eqx.filter_jit
    @eqx.filter_grad
    def slopes(everything):
        calls.append(1)
        guided = guidance.tmpd(process, denoiser, everything["operator"], everything["y"], everything["std"])
        return jnp.sum(guided(xt, jnp.asarray(0.4)) ** 2)

    for std in (0.2, 0.4):
        everything = {"operator": operator, "y": jnp.asarray(Y)[None], "std": jnp.asarray(std)}
        found = slopes(everything)
    assert calls == [1]
    alpha, sigma = float(process.alpha(0.4)), float(process.sigma(0.4))

    def total(y, std):
        prior = np.linalg.inv(COVARIANCE)
        precision = prior + np.eye(3) * (alpha / sigma) ** 2 + MATRIX.T @ MATRIX / std**2
        right = (prior @ MEAN + MATRIX.T @ y / std**2)[:, None] + alpha * np.asarray(xt).T / sigma**2
        return np.sum(np.linalg.solve(precision, right) ** 2)

    # atol: the default solver's 1e-5
    np.testing.assert_allclose(found["y"][0], slope(lambda y: total(y, 0.4), Y), atol=1e-4)
    np.testing.assert_allclose(found["std"], slope(lambda s: total(Y, s[0]), np.array([0.4]))[0], atol=1e-3)


@pytest.mark.slow
def test_conditions_are_split_with_the_samples():
    """One observation a sample: `sample_n` gives each chunk its own rows."""
    process, n = dj.VariancePreserving(), 5
    y = jnp.linspace(-2.0, 2.0, n)[:, None]
    guided = guidance.tmpd(process, gaussian(process), lambda x: x[:, :1], y, 0.01)
    ts = dj.logsnr_grid(process, 30)
    x0 = dj.sample_n(KEY(0), process, guided, (3,), n, ts=ts, stepper=dj.DDIM(), chunk=2)
    np.testing.assert_allclose(x0[:, 0], y[:, 0], atol=0.03)
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])  # of explicit axes, JAX's default
    spread = dj.sample_n(KEY(0), process, guided, (3,), n, ts=ts, stepper=dj.DDIM(), mesh=mesh)
    np.testing.assert_allclose(spread, x0, rtol=1e-9, atol=1e-9)


def test_which_observations_are_one_a_sample():
    """Also where y is one number a sample, and one number for all."""
    process = dj.VariancePreserving()
    of = lambda y: guidance.tmpd(process, gaussian(process), lambda x: x[:, 0], y, 0.01).per_sample_fields()
    assert of(jnp.ones((3, 1))) == of(jnp.ones(3)) == ("y",)
    assert of(jnp.ones((1, 1))) == of(jnp.ones(1)) == ()


def test_bad_observations():
    process = dj.VariancePreserving()
    known = [process, gaussian(process), operators.Matrix(jnp.asarray(MATRIX))]
    xt, t = jnp.ones((3, 3)), jnp.asarray(0.5)
    for method in (guidance.dps, guidance.pigdm, guidance.tmpd, guidance.proximal):
        with pytest.raises(ValueError, match=r"std: must be positive, got 0\.0"):
            method(*known, jnp.zeros((1, 2)), 0.0)
        with pytest.raises(ValueError, match=r"y: shape \(3, 2\) is needed, .* or \(1, 2,?\), got \(2, 2\)"):
            method(*known, jnp.zeros((2, 2)), 0.1)(xt, t)
        with pytest.raises(ValueError, match=r"std: a scalar or one number a sample, .* got shape \(3, 2\)"):
            method(*known, jnp.zeros((1, 2)), jnp.ones((3, 2)))
    for scale in (-1.5, float("nan")):
        with pytest.raises(ValueError, match=f"scale: .* got {scale}"):
            guidance.dps(*known, jnp.zeros((1, 2)), 0.1, scale=scale)
        with pytest.raises(ValueError, match=f"scale: .* got {scale}"):
            guidance.dps_normalised(*known, jnp.zeros((1, 2)), scale=scale)
    with pytest.raises(ValueError, match=r"data_std: must be positive, got -1\.0"):
        guidance.pigdm(*known, jnp.zeros((1, 2)), 0.1, data_std=-1.0)
    with pytest.raises(ValueError, match="strength: must be positive, got nan"):
        guidance.proximal(*known, jnp.zeros((1, 2)), 0.1, strength=float("nan"))


def truncated(matrix, rhs, **choices):
    """w for (I + K) w = rhs; K is a matrix."""
    operator = lx.MatrixLinearOperator(jnp.eye(len(matrix)) + jnp.asarray(matrix), lx.positive_semidefinite_tag)
    solve = lambda one: lx.linear_solve(operator, one, guidance.TruncatedCG(**choices)).value
    return np.asarray(jax.vmap(solve)(jnp.asarray(rhs)))


def test_truncated_conjugate_gradients_solve_for_a_covariance():
    rng = np.random.default_rng(0)
    root, rhs = rng.normal(size=(7, 7)), rng.normal(size=(3, 7))
    spread = 30 * root @ root.T
    exact = np.linalg.solve(np.eye(7) + spread, rhs.T).T
    np.testing.assert_allclose(truncated(spread, rhs, rtol=1e-12, atol=1e-12), exact, rtol=1e-8)


@pytest.mark.parametrize("fault", ["negative", "below", "skew"])
def test_truncated_conjugate_gradients_stop_where_there_is_no_covariance(fault):
    """The first direction is sound, the second is not: what is left is the first step, by hand."""
    faults = {
        "negative": [[3.0, 0.0], [0.0, -1.5]],
        "below": [[3.0, 0.0], [0.0, -0.5]],
        "skew": [[3.0, 8.0], [0.0, 1.0]],
    }
    spread = np.array(faults[fault])
    rhs = np.array([[1.0, 0.5]])
    image = rhs @ (np.eye(2) + spread).T
    first = rhs * (rhs @ rhs.T) / (rhs @ image.T)
    np.testing.assert_allclose(truncated(spread, rhs), first, rtol=1e-12)
    assert np.abs(np.linalg.solve(np.eye(2) + spread, rhs[0]) - first[0]).max() > 0.1
