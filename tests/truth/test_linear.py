"""Linear SDEs with matrices: their moments against matrix exponentials, Lyapunov equations and SciPy's integrator."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg, special

from diffjax import process as dp

BETA, MASS, GAMMA = (1.0, 9.0), 0.3, 0.05
F = np.array([[0.0, 1 / MASS], [-1.0, -2 / np.sqrt(MASS)]])  # Dockhorn et al. 2022, eq. 5, with Gamma = 2 sqrt(M)
L = np.array([[0.0, 0.0], [0.0, np.sqrt(2 * 2 * np.sqrt(MASS))]])
T, S = np.array([3e-4, 0.02, 0.3, 0.3, 1.0, 0.0]), np.array([0.0, 0.0, 0.0, 0.2, 0.4, 0.0])


class Moving(dp.AbstractLinearProcess):
    """Matrices that depend on time and do not commute from one time to another."""

    speed: jax.Array

    def drift_matrix(self, t):
        return self.speed * jnp.array([[0.0, 1.0], [-2.0, -1.0]]) - 3 * t * jnp.array([[1.0, 0.5], [0.0, 0.2]])

    def noise_matrix(self, t):
        return jnp.array([[0.3, 0.0], [0.5, 0.0]]) + jnp.cos(t) * jnp.array([[0.0, 0.4], [0.0, -0.2]])


class Unnamed(dp.AbstractLinearProcess):
    """Another process's matrices without its closed form, for the moment equation."""

    inner: dp.AbstractLinearProcess

    def drift_matrix(self, t):
        return self.inner.drift_matrix(t)

    def noise_matrix(self, t):
        return self.inner.noise_matrix(t)


def critically_damped():
    return dp.CriticallyDamped(*BETA, MASS, GAMMA)


def linear():
    return dp.LinearSDE(jnp.asarray(F), jnp.asarray(L), *BETA)


WAYS = {"closed form": critically_damped, "van loan": linear, "equation": lambda: Unnamed(critically_damped())}


def elapsed(t, s=0.0):
    return BETA[0] * (t - s) + 0.5 * (BETA[1] - BETA[0]) * (t**2 - s**2)


def truth(t, s=0.0):
    """exp(F tau), and Sigma = S - Phi S Phi' with S the stationary covariance, F S + S F' = -L L'."""
    phi, stationary = linalg.expm(F * elapsed(t, s)), linalg.solve_continuous_lyapunov(F, -L @ L.T)
    return phi, stationary - phi @ stationary @ phi.T


@functools.cache
def computed(way):
    return tuple(np.asarray(x) for x in eqx.filter_jit(WAYS[way]().moments)(jnp.asarray(T), jnp.asarray(S)))


@pytest.mark.parametrize("way", WAYS)
def test_moments_are_the_exponential_and_the_lyapunov_solution(way):
    assert np.allclose(linalg.solve_continuous_lyapunov(F, -L @ L.T), np.diag([1, MASS])), "N(0, I) x N(0, M I)"
    for t, s, phi, sigma in zip(T, S, *computed(way), strict=True):
        expected_phi, expected = truth(t, s)
        np.testing.assert_allclose(phi, expected_phi, atol=1e-9)
        np.testing.assert_allclose(sigma, expected, rtol=1e-6 if t < 0.01 else 1e-8, atol=1e-14)
        if t == 0:
            np.testing.assert_array_equal(phi, np.eye(2))
            np.testing.assert_array_equal(sigma, np.zeros((2, 2)))
    # Close to zero, where truth above cancels: Sigma = 2 Gamma (tau^3/(3 M^2), tau^2/(2 M); ., tau) to first order.
    tau = elapsed(T[0])
    small = 4 * np.sqrt(MASS) * np.array([[tau**3 / (3 * MASS**2), tau**2 / (2 * MASS)], [tau**2 / (2 * MASS), tau]])
    np.testing.assert_allclose(computed(way)[1][0], small, rtol=5 * tau / np.sqrt(MASS))


def test_times_may_be_one_number_or_a_python_float():
    for way in ("closed form", "van loan"):
        for t in (0.3, jnp.asarray(0.3)):
            phi, sigma = WAYS[way]().moments(t)
            np.testing.assert_allclose(phi, truth(0.3)[0], atol=1e-12)
            np.testing.assert_allclose(sigma, truth(0.3)[1], atol=1e-12)


@pytest.mark.slow
def test_moments_of_matrices_that_move():
    """Against SciPy's integrator, and composed over a time between."""
    process, t = Moving(jnp.asarray(1.5)), 0.9

    def field(u, y):
        phi, sigma = y.reshape(2, 2, 2)
        f, l = np.asarray(process.drift_matrix(u)), np.asarray(process.noise_matrix(u))
        return np.stack([f @ phi, f @ sigma + sigma @ f.T + l @ l.T]).ravel()

    start = np.stack([np.eye(2), np.zeros((2, 2))]).ravel()
    phi, sigma = (
        integrate.solve_ivp(field, (0, t), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1].reshape(2, 2, 2)
    )
    ends, starts = jnp.array([t, t, 0.4]), jnp.array([0.0, 0.4, 0.0])
    phis, sigmas = (np.asarray(m) for m in eqx.filter_jit(process.moments)(ends, starts))
    np.testing.assert_allclose(phis[0], phi, atol=1e-9)
    np.testing.assert_allclose(sigmas[0], sigma, atol=1e-9)
    np.testing.assert_allclose(phis[1] @ phis[2], phi, atol=1e-9)
    np.testing.assert_allclose(phis[1] @ sigmas[2] @ phis[1].T + sigmas[1], sigma, atol=1e-9)


@pytest.mark.slow
def test_the_moment_equation_is_differentiable_in_both_modes():
    total = lambda speed: jnp.sum(jnp.stack(Moving(speed).moments(0.9)) * jnp.arange(8.0).reshape(2, 2, 2))
    reverse, forward = jax.jit(lambda speed: (jax.grad(total)(speed), jax.jvp(total, (speed,), (1.0,))[1]))(1.5)
    difference = jax.jit(jax.vmap(total))(jnp.array([1.5 + 1e-4, 1.5 - 1e-4]))
    np.testing.assert_allclose([reverse, forward], (difference[0] - difference[1]) / 2e-4, rtol=1e-6)


@pytest.mark.parametrize("way", ["closed form", pytest.param("van loan", marks=pytest.mark.slow)])
def test_moments_compose_and_are_differentiable(way):
    process, one, two = WAYS[way](), np.array([0.7, 0.25, 0.7]), np.array([0.25, 0.0, 0.0])

    @jax.jit
    def run(process):
        out = process.moments(jnp.asarray(one), jnp.asarray(two))
        total = lambda p: jnp.sum(jnp.stack(p.moments(0.7)) * jnp.arange(8.0).reshape(2, 2, 2))
        return out, total(process), jax.grad(total)(process).beta_max

    (phi, sigma), here, slope = run(process)
    np.testing.assert_allclose(phi[0] @ phi[1], phi[2], atol=1e-12)
    np.testing.assert_allclose(phi[0] @ sigma[1] @ phi[0].T + sigma[0], sigma[2], atol=1e-12)
    moved = eqx.tree_at(lambda p: p.beta_max, process, process.beta_max + 1e-5)
    np.testing.assert_allclose((run(moved)[1] - here) / 1e-5, slope, rtol=1e-3)


@pytest.mark.parametrize("clock", [0.01, 0.05, 1.0, 8.0, 300.0])
def test_van_loan_keeps_its_digits_in_float32(clock):
    """A fast clock, where the plain exponential overflows, and a slow one; entries beside the largest, which are O(1)
    or, close to zero, beside their own leading order."""
    with jax.enable_x64(False):
        process = dp.LinearSDE(jnp.asarray(F, jnp.float32), jnp.asarray(L, jnp.float32), clock, clock)
        phi, sigma = (np.asarray(moment, np.float64) for moment in process.moments(1.0))
    phi_64, sigma_64 = linalg.expm(F * clock), np.diag([1.0, MASS])
    sigma_64 = sigma_64 - phi_64 @ sigma_64 @ phi_64.T
    np.testing.assert_allclose(phi, phi_64, atol=2e-6)
    scale = np.sqrt(np.diag(sigma_64))
    np.testing.assert_allclose(sigma / np.outer(scale, scale), sigma_64 / np.outer(scale, scale), atol=3e-6)


# --- the kernel ---


def test_kernel_given_the_data_alone():
    """C C' = Sigma + gamma M Phi_v Phi_v', C lower triangular: velocities start from N(0, gamma M)."""
    phi, chol = eqx.filter_jit(critically_damped().kernel)(jnp.asarray(T[:3]))
    for t, p, c in zip(T[1:3], phi[1:], chol[1:], strict=True):
        expected_phi, sigma = truth(t)
        np.testing.assert_allclose(p, expected_phi, atol=1e-12)
        covariance = sigma + expected_phi @ np.diag([0, GAMMA * MASS]) @ expected_phi.T
        np.testing.assert_allclose(c, linalg.cholesky(covariance, lower=True), rtol=1e-9, atol=1e-12)
    generic = linear().kernel(0.3)[1]
    np.testing.assert_allclose(generic @ generic.T, truth(0.3)[1], atol=1e-10)
    assert float(generic[0, 1]) == 0


@pytest.mark.parametrize("beta", [(4.0, 4.0), pytest.param((0.1, 20.0), marks=pytest.mark.slow)])
def test_kernel_in_float32_over_the_interval(beta):
    """Each entry within 2e-6 relative of float64, the incomplete gamma function by SciPy; gradients finite."""
    with jax.enable_x64(False):
        process = dp.CriticallyDamped(*beta)
        low, high = (float(end) for end in process.interval())
        t = np.geomspace(low, high, 400).astype(np.float32)
        got = np.asarray(process.kernel(jnp.asarray(t))[1], np.float64)

        def total(process, t):
            return jnp.sum(jnp.stack(process.kernel(t)))

        slopes = jax.jit(jax.vmap(jax.grad(total, (0, 1)), (None, 0)))(process, jnp.asarray(t))
    assert high == 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))
    t = t.astype(np.float64)
    s = (beta[0] * t + 0.5 * (beta[1] - beta[0]) * t**2) / 0.5
    e, gamma = np.exp(-s), 0.04
    # 1 - e^-2s (1 - 2s + 2s^2) = P(1, 2s) + e^-2s (2s - 2s^2)
    xx = special.gammainc(3, 2 * s) + gamma * (s * e) ** 2
    xw = 2 * (s * e) ** 2 + gamma * s * (1 - s) * e**2
    ww = special.gammainc(1, 2 * s) + e**2 * (2 * s - 2 * s**2) + gamma * ((1 - s) * e) ** 2
    np.testing.assert_allclose(got[:, 0, 0], np.sqrt(xx), rtol=2e-6)
    np.testing.assert_allclose(got[:, 1, 0], 0.5 * xw / np.sqrt(xx), rtol=2e-6, atol=1e-8)
    np.testing.assert_allclose(got[:, 1, 1], 0.5 * np.sqrt(ww - xw**2 / xx), rtol=2e-6)
    logsnr = 2 * np.log((1 + s) * e) - np.log(xx)
    assert 19 < logsnr[0] < 20.1, "the interval begins where the data's logsnr is about 20"


@pytest.mark.slow
def test_perturb_and_prior_act_on_the_channels_of_images():
    """[b, m, h, w]: every pixel has the same kernel; sample i of the prior depends on its global index alone."""
    process, shape = critically_damped(), (4000, 2, 2, 3)
    x0, eps = np.random.default_rng(0).normal(size=(2, *shape))
    t = jnp.linspace(0.1, 0.9, len(x0))
    xt = np.asarray(dp.linear_perturb(process, jnp.asarray(x0), jnp.asarray(eps), t))
    phi, chol = (np.asarray(m) for m in process.kernel(t))
    by_hand = np.einsum("bij,bjhw->bihw", phi, x0) + np.einsum("bij,bjhw->bihw", chol, eps)
    np.testing.assert_allclose(xt, by_hand, atol=1e-12)
    phi, sigma = truth(1.0)
    covariance = sigma + GAMMA * MASS * np.outer(phi[:, 1], phi[:, 1])
    draws = np.asarray(dp.linear_prior(jax.random.key(0), process, shape)).swapaxes(0, 1).reshape(2, -1)
    z = linalg.solve_triangular(linalg.cholesky(covariance, lower=True), draws, lower=True)
    n = z.shape[1]
    np.testing.assert_allclose(z @ z.T / n, np.eye(2), atol=4.5 * np.sqrt(2 / n))
    index = jnp.array([7, 2])
    part = dp.linear_prior(jax.random.key(0), process, (2, *shape[1:]), index=index)
    whole = dp.linear_prior(jax.random.key(0), process, (8, *shape[1:]))
    np.testing.assert_allclose(part, whole[index], rtol=1e-12)


def test_the_prior_is_the_kernels_root_times_each_samples_own_noise():
    """At t = 1, where F, L and M make the covariance far from its own root; noise by `fold_in(key, index_i)`."""
    phi, covariance = truth(1.0)
    covariance += GAMMA * MASS * np.outer(phi[:, 1], phi[:, 1])
    root, index = linalg.cholesky(covariance, lower=True), np.array([4, 0])
    found = dp.linear_prior(jax.random.key(0), critically_damped(), (2, 2, 3), index=jnp.asarray(index))
    for draw, i in zip(found, index, strict=True):
        eps = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (2, 3))
        np.testing.assert_allclose(draw, root @ eps, rtol=1e-9)
    assert np.abs(root - covariance).max() > 0.2


# --- simulation ---


def euler_moments(ts, x0):
    """Mean and covariance of Euler's method itself, by its recursion."""
    mean, covariance = x0, np.zeros((2, 2))
    for t, h in zip(ts, np.diff(ts), strict=False):
        beta = BETA[0] + (BETA[1] - BETA[0]) * t
        one = np.eye(2) + h * beta * F
        mean, covariance = one @ mean, one @ covariance @ one.T + h * beta * L @ L.T
    return mean, covariance


def test_simulated_moments():
    """Within Monte Carlo error of Euler's own, which approach `moments` at the first order in the step."""
    process, n, x0 = linear(), 8000, np.array([0.8, -0.5])
    (phi, sigma), bias = truth(0.8), []
    for steps in (40, 160, 640):
        mean, covariance = euler_moments(np.linspace(0, 0.8, steps + 1), x0)
        bias.append([np.abs(covariance - sigma).max(), np.abs(mean - phi @ x0).max()])
    ratios = np.divide(bias[:-1], bias[1:])
    assert np.all((ratios > 3) & (ratios < 8)), "four times the steps, a quarter of the error"
    start, ts = jnp.broadcast_to(jnp.asarray(x0)[:, None], (n, 2, 1)), np.linspace(0, 0.8, 41)
    x = np.asarray(dp.simulate(jax.random.key(1), process, start, ts))[-1, :, :, 0]
    mean, covariance = euler_moments(ts, x0)
    z = linalg.solve_triangular(linalg.cholesky(covariance, lower=True), (x - mean).T, lower=True)
    np.testing.assert_allclose(z.mean(1), 0, atol=4.5 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(z), np.eye(2), atol=4.5 * np.sqrt(2 / n))


# --- bad input ---


@pytest.mark.parametrize("name", ["beta_min", "beta_max", "mass", "gamma"])
@pytest.mark.parametrize("value", [0.0, -0.25, float("nan"), float("inf")])
def test_critically_damped_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name}: must be positive and finite, got {value}"):
        dp.CriticallyDamped(**{name: value})


def test_linear_sde_refuses():
    f, l = jnp.asarray(F), jnp.asarray(L)
    with pytest.raises(ValueError, match=r"noise: .*positive definite; got a rank of 0 for 2 channels"):
        dp.LinearSDE(f, jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"noise: .*got a rank of 1 for 2"):  # noise that reaches the first channel
        dp.LinearSDE(jnp.diag(jnp.array([-1.0, -2.0])), jnp.diag(jnp.array([1.0, 0.0])))
    turn, some = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0], np.diag([1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match=r"noise: .*got a rank of 2 for 3"):  # a combination that is no channel
        dp.LinearSDE(jnp.asarray(-turn @ np.diag([1.0, 2.0, 3.0]) @ turn.T), jnp.asarray(turn @ some @ turn.T))
    with pytest.raises(ValueError, match=r"noise: a square matrix of shape \(2, 2\) is needed, got \(3, 3\)"):
        dp.LinearSDE(f, jnp.eye(3))
    with pytest.raises(ValueError, match=r"matrix: a square matrix .* got \(2, 3\)"):
        dp.LinearSDE(jnp.ones((2, 3)), l)
    with pytest.raises(ValueError, match=r"beta_min: must be positive and finite, got -1.0"):
        dp.LinearSDE(f, l, -1.0)


@pytest.mark.parametrize(("rate", "unit"), [(1e-3, 1.0), (1.0, 1e-6), (1e-3, 1e6)])
def test_slow_processes_and_channels_in_other_units_are_not_refused_in_float32(rate, unit):
    """The position's variance at t = 1 is rate^3/3 or 1e-12 of the velocity's, below float32's rounding."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        dp.LinearSDE(jnp.array([[0.0, unit], [-1 / unit, -2.0]]), jnp.array([[0.0, 0.0], [0.0, 2.0]]), rate, rate)


def test_whole_numbers_are_float_leaves():
    process = dp.LinearSDE(jnp.array([[0, 1], [-1, -2]]), np.array([[0, 0], [0, 2]]), 1, 2)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(process))
    np.testing.assert_array_equal(process.drift_matrix(jnp.asarray(0.5)), [[0, 1.5], [-1.5, -3]])


def test_new_numbers_compile_nothing():
    traced = []

    @eqx.filter_jit
    def run(process, t):
        traced.append(1)
        return process.kernel(t)

    for mass in (0.2, 0.3, 0.4):
        run(dp.CriticallyDamped(mass=mass), jnp.asarray(T[:3]))
    assert len(traced) == 1
    across = jax.vmap(lambda mass: dp.CriticallyDamped(mass=mass).moments(0.5)[1])(jnp.array([0.2, 0.3]))
    np.testing.assert_allclose(across[1], dp.CriticallyDamped(mass=0.3).moments(0.5)[1], rtol=1e-12)
