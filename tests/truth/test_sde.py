"""Any SDE by its f and g: matrix noise, noise that depends on the state, and time reversed by a score.

Where drift and score are affine, Euler's method moves mean and covariance by a recursion that NumPy repeats: samples
are held to it within Monte Carlo error, and it to the exact moments within the method's order.
"""

import itertools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

import diffjax as dj
from diffjax import process as dp, samplers

NILPOTENT = np.array([[0.5, 1.0], [-0.25, -0.5]])
A = NILPOTENT - np.eye(2)  # exp(A t) = exp(-t) (1 + N t)
G = np.array([[0.7, 0.0], [0.9, 0.4]])
MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[0.6, 0.3], [0.3, 0.4]])
STATIONARY = linalg.solve_continuous_lyapunov(A, -G @ G.T)


def full(x, t):
    return jnp.broadcast_to(jnp.asarray(G), (len(x), 2, 2))


def ornstein_uhlenbeck():
    return dp.SDE(lambda x, t: x @ jnp.asarray(A).T, full)


def exact(t):
    phi = linalg.expm(A * t)
    return phi @ MEAN, phi @ (COVARIANCE - STATIONARY) @ phi.T + STATIONARY


def assert_moments(x, mean, covariance):
    n = len(x)
    z = linalg.solve_triangular(linalg.cholesky(covariance, lower=True), (np.asarray(x) - mean).T, lower=True)
    np.testing.assert_allclose(z.mean(1), 0, atol=4.5 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(z), np.eye(len(z)), atol=4.5 * np.sqrt(2 / n))


def draws(n, mean=MEAN, covariance=COVARIANCE):
    return mean + np.random.default_rng(0).normal(size=(n, 2)) @ linalg.cholesky(covariance)


# --- forward ---


def test_full_matrix_noise_forward():
    bias = []
    for steps in (10, 40):
        mean, covariance, h = MEAN, COVARIANCE, 0.8 / steps
        for _ in range(steps):
            one = np.eye(2) + h * A
            mean, covariance = one @ mean, one @ covariance @ one.T + h * G @ G.T
        bias.append(np.abs(covariance - exact(0.8)[1]).max())
        if steps == 10:
            x = dp.simulate(jax.random.key(0), ornstein_uhlenbeck(), jnp.asarray(draws(4000)), np.linspace(0, 0.8, 11))
            assert_moments(x[-1], mean, covariance)
    assert 3 < bias[0] / bias[1] < 6
    assert bias[1] < 0.02


def test_one_matrix_a_sample():
    """Sample i has its own G_i, whose rows mix the two increments: cov = G_i G_i' h after one step."""
    many = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 2)))
    process = dp.SDE(lambda x, t: jnp.zeros_like(x), lambda x, t: jnp.repeat(many, len(x) // 3, axis=0))
    x = np.asarray(dp.simulate(jax.random.key(0), process, jnp.zeros((12_000, 2)), np.array([0.0, 0.25])))[-1]
    for g, block in zip(np.asarray(many), x.reshape(3, 4000, 2), strict=True):
        assert_moments(block, 0.0, 0.25 * g @ g.T)


def test_a_module_keeps_its_leaves_and_a_function_is_static():
    class Pull(eqx.Module):
        rate: jax.Array

        def __call__(self, x, t):
            return -self.rate * x

    traced = []

    def spread(x, t):
        traced.append(1)
        return jnp.sqrt(1 + t)

    x0, ts = jnp.ones((2, 3)), np.linspace(0, 1, 3)
    run = jax.jit(lambda process: dp.simulate(jax.random.key(0), process, x0, ts))
    processes = [dp.SDE(Pull(jnp.asarray(rate)), spread) for rate in (0.5, 2.0)]
    assert len(jax.tree.leaves(processes[0])) == 1
    first, count = run(processes[0]), len(traced)
    assert not np.allclose(first[-1], run(processes[1])[-1])
    assert len(traced) == count


# --- the divergence of G G' ---


def noisy_matrix(x, t):
    """G(x) of [b, 2, 2], with dependence across coordinates."""
    rows = [jnp.sin(x[:, 1]), x[:, 0] * x[:, 1]], [t + x[:, 0] ** 2, jnp.cos(x[:, 0] - 2 * x[:, 1])]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


NOISES = {
    "number": lambda x, t: jnp.asarray(0.3),
    "number a sample": lambda x, t: jnp.sin(x[:, 0]) + x[:, 1] ** 2 * t,
    "diagonal": lambda x, t: jnp.sqrt(1 + x**2),
    "diagonal, across": lambda x, t: jnp.stack([x[:, 0] * x[:, 1], x[:, 1] ** 2 + x[:, 0]], axis=1),
    "matrix": noisy_matrix,
}


@pytest.mark.parametrize("name", NOISES)
def test_noise_divergence_is_the_divergence(name):
    """sum_j d(G G')_ij/dx_j by central differences of G G' written out."""
    g, x, h = NOISES[name], np.random.default_rng(2).normal(size=(4, 2)), 1e-5

    def squared(x):
        value = np.asarray(g(jnp.asarray(x), 0.4))
        if name == "matrix":
            return np.einsum("bij,bkj->bik", value, value)
        diagonal = np.broadcast_to(value if value.ndim != 1 else value[:, None], x.shape)
        return diagonal[:, :, None] ** 2 * np.eye(2)

    step = h * np.eye(2)
    by_hand = sum((squared(x + step[j])[:, :, j] - squared(x - step[j])[:, :, j]) / (2 * h) for j in range(2))
    got = dp.SDE(lambda x, t: x, g).noise_divergence(jnp.asarray(x), 0.4)
    np.testing.assert_allclose(got, by_hand, atol=1e-8)
    assert name == "number" or np.abs(by_hand).max() > 0.1


# --- time reversed ---


class LinearScore(eqx.Module):
    """The score of the Gaussian that MEAN and COVARIANCE become under dx = A x dt + G dw."""

    stationary: jax.Array

    def __call__(self, x, t):
        phi = jnp.exp(-t) * (jnp.eye(2) + t * jnp.asarray(NILPOTENT))
        covariance = phi @ (jnp.asarray(COVARIANCE) - self.stationary) @ phi.T + self.stationary
        shape = x.shape
        x = x.reshape(shape[0], 2)
        (a, b), (_, d) = covariance
        inverse = jnp.stack([d, -b, -b, a]).reshape(2, 2) / (a * d - b**2)
        return -((x - phi @ jnp.asarray(MEAN)) @ inverse).reshape(shape)


@pytest.mark.parametrize("kind", ["sde", pytest.param("linear", marks=pytest.mark.slow)])
def test_reverse_of_a_full_matrix_keeps_the_marginals(kind):
    """From p_1 to t = 0.1 for eta = 0, 0.5 and 1: the same mean and covariance, those of the forward process."""
    n, ts = 4000, np.linspace(1, 0.1, 31)
    process = ornstein_uhlenbeck() if kind == "sde" else dp.LinearSDE(jnp.asarray(A), jnp.asarray(G))
    shape = (2,) if kind == "sde" else (2, 1)
    x1 = jnp.asarray(draws(n, *exact(1.0))).reshape(n, *shape)
    score, path = LinearScore(jnp.asarray(STATIONARY)), dj.per_sample_path(jax.random.key(3), n, shape)
    for eta in (0.0, 0.5, 1.0):
        terms = samplers.score_reverse_sde(process, score, path, eta)
        solution = dj.integrate(terms, x1, ts, solver=diffrax.Euler())
        mean, covariance = exact(1.0)
        for t, s in itertools.pairwise(ts):  # Euler's own moments
            m, p = exact(t)
            pull = -0.5 * (1 + eta**2) * G @ G.T @ linalg.inv(p)
            one = np.eye(2) + (t - s) * (pull - A)
            mean = one @ mean - (t - s) * pull @ m
            covariance = one @ covariance @ one.T + (t - s) * eta**2 * G @ G.T
        assert_moments(np.asarray(solution.x0).reshape(n, 2), mean, covariance)
        assert solution.ok
        assert solution.nfe == 30
        np.testing.assert_allclose(mean, exact(0.1)[0], atol=0.03)
        np.testing.assert_allclose(covariance, exact(0.1)[1], atol=0.06)


def test_score_flow_is_deterministic_exact_and_counted():
    """The flow of a Gaussian maps x_1 to m_0 + (affine)(x_1 - m_1): pushing p_1 forward gives the exact covariance."""
    ts, x1 = np.array([1.0, 0.1]), jnp.asarray(exact(1.0)[0] + np.concatenate([np.zeros((1, 2)), np.eye(2)]))
    flow = samplers.score_flow(ornstein_uhlenbeck(), LinearScore(jnp.asarray(STATIONARY)))
    controller = diffrax.PIDController(1e-9, 1e-9)
    solution = dj.integrate(flow, x1, ts, solver=diffrax.Tsit5(), controller=controller)
    matrix = np.asarray(solution.x0[1:] - solution.x0[0]).T
    np.testing.assert_allclose(solution.x0[0], exact(0.1)[0], atol=1e-7)
    np.testing.assert_allclose(matrix @ exact(1.0)[1] @ matrix.T, exact(0.1)[1], atol=1e-7)
    assert solution.nfe % 6 == 1, "six evaluations a step, and one at the start"


MU, VOLATILITY, START = 0.3, 0.6, 0.25


class LognormalScore(eqx.Module):
    """Of geometric Brownian motion from log x_0 ~ N(0, START)."""

    gain: jax.Array

    def __call__(self, x, t):
        mean, variance = (MU - VOLATILITY**2 / 2) * t, START + VOLATILITY**2 * t
        return -self.gain * (1 + (jnp.log(x) - mean) / variance) / x


@pytest.mark.parametrize("eta", [0.0, pytest.param(0.5, marks=pytest.mark.slow), 1.0])
def test_reverse_of_geometric_brownian_motion(eta):
    """g = 0.6 x: without the divergence of g^2 = 0.36 x^2, log x would end 0.36 (1 + eta^2) away from its mean."""
    n, ts = 4000, np.linspace(1, 0.0, 61)
    process = dp.SDE(lambda x, t: MU * x, lambda x, t: VOLATILITY * x)
    z = np.random.default_rng(4).normal(size=(n, 1))
    mean, variance = MU - VOLATILITY**2 / 2, START + VOLATILITY**2
    x1 = jnp.asarray(np.exp(mean + np.sqrt(variance) * z))
    path = dj.per_sample_path(jax.random.key(5), n, (1,))
    terms = samplers.score_reverse_sde(process, LognormalScore(jnp.asarray(1.0)), path, eta)
    log_x = np.log(np.asarray(dj.integrate(terms, x1, ts, solver=diffrax.Euler()).x0))
    np.testing.assert_allclose(log_x.mean(), 0, atol=4.5 * np.sqrt(START / n) + 0.015)
    np.testing.assert_allclose(log_x.var() / START, 1, atol=4.5 * np.sqrt(2 / n) + 0.05)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_stationary_law_is_kept(eta):
    """g^2 = 1 + x^2 and f = (g^2)'/2 - g^2 x/2 leave N(0, 1) as it is; so does the way back. The flow stands still."""
    n, process = 4000, dp.SDE(lambda x, t: x - 0.5 * (1 + x**2) * x, lambda x, t: jnp.sqrt(1 + x**2))
    x1 = jnp.asarray(np.random.default_rng(6).normal(size=(n, 1)))
    path = dj.per_sample_path(jax.random.key(7), n, (1,))
    terms = samplers.score_reverse_sde(process, lambda x, t: -x, path, eta)
    x0 = np.asarray(dj.integrate(terms, x1, np.linspace(1, 0, 61), solver=diffrax.Euler()).x0)
    if eta == 0:
        np.testing.assert_allclose(x0, x1, atol=1e-12)
    else:
        assert np.std(x0 - np.asarray(x1)) > 0.5
        np.testing.assert_allclose([x0.mean(), x0.var()], [0, 1], atol=4.5 * np.sqrt(2 / n) + 0.03)
        np.testing.assert_allclose(np.mean(np.abs(x0) < 1), 0.6827, atol=4.5 * np.sqrt(0.25 / n) + 0.01)


def test_new_scores_compile_nothing_and_a_negative_eta_is_refused():
    traced = []

    class Counted(LognormalScore):
        def __call__(self, x, t):
            traced.append(1)
            return LognormalScore.__call__(self, x, t)

    process, x1 = dp.SDE(lambda x, t: MU * x, lambda x, t: VOLATILITY * x), jnp.ones((2, 1))
    path = dj.per_sample_path(jax.random.key(5), 2, (1,))

    def run(gain, eta):
        terms = samplers.score_reverse_sde(process, Counted(jnp.asarray(gain)), path, eta)
        return dj.integrate(terms, x1, np.linspace(1, 0.5, 4), solver=diffrax.Euler()).x0

    first, count = run(1.0, 0.5), len(traced)
    assert not np.allclose(first, run(1.3, 0.8))
    assert len(traced) == count
    with pytest.raises(ValueError, match=r"eta: must not be negative, got -0.1"):
        run(1.0, -0.1)


def test_stochastic_runge_kutta_takes_matrix_noise():
    """ShARK on the reverse of a linear process, 12 steps: closer to the exact covariance than Euler's are."""
    n, ts = 4000, np.linspace(1, 0.1, 13)
    process = dp.LinearSDE(jnp.asarray(A), jnp.asarray(G))
    x1 = jnp.asarray(draws(n, *exact(1.0))).reshape(n, 2, 1)
    path = dj.per_sample_path(jax.random.key(8), n, (2, 1), levy_area=diffrax.SpaceTimeLevyArea)
    terms = samplers.score_reverse_sde(process, LinearScore(jnp.asarray(STATIONARY)), path)
    solution = dj.integrate(terms, x1, ts, solver=diffrax.ShARK())
    assert_moments(np.asarray(solution.x0)[:, :, 0], *exact(0.1))
    assert solution.nfe == 24
