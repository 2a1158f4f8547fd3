"""One-step deterministic methods and EDM's churn: published algorithms transcribed, orders, estimates, ends."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import gaussian
from scipy import integrate
from walk import walk

import diffjax as dj
from diffjax.process import normal_like, sample_keys
from diffjax.samplers import Churn, DPMpp2S, DPMSolver, Euler, Step, step_weights

KEY = jax.random.key

# --- published algorithms, in NumPy, for the linear-beta VP process ---

XT = np.array([[1.3, -0.4], [-0.2, 0.9], [0.5, 2.0]])


def bent(x, t):
    """A denoiser that is linear in neither x nor t."""
    return jnp.tanh(1.5 * x) * (1 - 0.4 * t) + 0.1 * t


def bent_numpy(x, t):
    return np.tanh(1.5 * x) * (1 - 0.4 * t) + 0.1 * t


class VP:
    """alpha, sigma, l and its inverse."""

    low, width = 0.1, 19.9

    def integral(self, t):
        return self.low * t + self.width * t**2 / 2

    def alpha(self, t):
        return np.exp(-self.integral(t) / 2)

    def sigma(self, t):
        return np.sqrt(-np.expm1(-self.integral(t)))

    def half_logsnr(self, t):
        return np.log(self.alpha(t) / self.sigma(t))

    def time(self, l):
        return (np.sqrt(self.low**2 + 2 * self.width * np.log1p(np.exp(-2 * l))) - self.low) / self.width

    def eps(self, x, t):
        return (x - self.alpha(t) * bent_numpy(x, t)) / self.sigma(t)


def euler(p, x, t, s):
    """dx/dt = -beta/2 (x + score), Song et al. 2021, eq. 13."""
    beta = p.low + p.width * t
    score = -p.eps(x, t) / p.sigma(t)
    return x + (s - t) * (-beta / 2) * (x + score)


def dpm_solver_1(p, x, t, s):
    h = p.half_logsnr(s) - p.half_logsnr(t)
    return p.alpha(s) / p.alpha(t) * x - p.sigma(s) * np.expm1(h) * p.eps(x, t)


def dpm_solver_2(p, x, t, s, r1=0.5):
    h = p.half_logsnr(s) - p.half_logsnr(t)
    m = p.time(p.half_logsnr(t) + r1 * h)
    u = p.alpha(m) / p.alpha(t) * x - p.sigma(m) * np.expm1(r1 * h) * p.eps(x, t)
    change = p.eps(u, m) - p.eps(x, t)
    return dpm_solver_1(p, x, t, s) - p.sigma(s) / (2 * r1) * np.expm1(h) * change


def dpm_solver_3(p, x, t, s, r1=1 / 3, r2=2 / 3):
    h, eps = p.half_logsnr(s) - p.half_logsnr(t), p.eps(x, t)
    m1, m2 = p.time(p.half_logsnr(t) + r1 * h), p.time(p.half_logsnr(t) + r2 * h)
    u1 = p.alpha(m1) / p.alpha(t) * x - p.sigma(m1) * np.expm1(r1 * h) * eps
    d1 = p.eps(u1, m1) - eps
    u2 = p.alpha(m2) / p.alpha(t) * x - p.sigma(m2) * np.expm1(r2 * h) * eps
    u2 = u2 - p.sigma(m2) * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = p.eps(u2, m2) - eps
    return dpm_solver_1(p, x, t, s) - p.sigma(s) / r2 * (np.expm1(h) / h - 1) * d2


def dpmpp_2s(p, x, t, s, r=0.5):
    h = p.half_logsnr(s) - p.half_logsnr(t)
    m = p.time(p.half_logsnr(t) + r * h)
    u = p.sigma(m) / p.sigma(t) * x - p.alpha(m) * np.expm1(-r * h) * bent_numpy(x, t)
    d = (1 - 1 / (2 * r)) * bent_numpy(x, t) + 1 / (2 * r) * bent_numpy(u, m)
    return p.sigma(s) / p.sigma(t) * x - p.alpha(s) * np.expm1(-h) * d


TRANSCRIBED = {
    "euler": (Euler, euler),
    "dpm-solver-1": (lambda: DPMSolver(1), dpm_solver_1),
    "dpm-solver-2": (lambda: DPMSolver(2), dpm_solver_2),
    "dpm-solver-2, r1": (lambda: DPMSolver(2, 0.3), lambda *a: dpm_solver_2(*a, 0.3)),
    "dpm-solver-3": (lambda: DPMSolver(3), dpm_solver_3),
    "dpm-solver-3, r1": (lambda: DPMSolver(3, 0.25), lambda *a: dpm_solver_3(*a, 0.25)),
    "dpmpp-2s": (DPMpp2S, dpmpp_2s),
    "dpmpp-2s, r1": (lambda: DPMpp2S(0.7), lambda *a: dpmpp_2s(*a, 0.7)),
}


@pytest.mark.parametrize("name", TRANSCRIBED)
def test_steps_are_the_published_ones(name):
    """Over grids of one and of five steps, to 1e-10."""
    make, published = TRANSCRIBED[name]
    for ts in (np.array([0.9, 0.2]), np.linspace(1, 0.01, 6)):
        x = XT
        for t, s in itertools.pairwise(ts):
            x = published(VP(), x, t, s)
        ours = walk(KEY(0), dj.VariancePreserving(), bent, XT, ts, make())
        np.testing.assert_allclose(ours, x, rtol=1e-10, atol=1e-10)


def algorithm_2(key, denoise, z, rho, s_churn, s_min, s_max, s_noise):
    """Karras et al. 2022, algorithm 2: from z at rho[0] over rho [N] to 0; (z, how many of the N steps were churned).

    `denoise(z, rho)`; the noise is what our keys draw.
    """
    steps, rho, churned = len(rho), np.append(rho, 0.0), 0
    for i in range(steps):
        gamma = min(s_churn / steps, np.sqrt(2) - 1) if s_min <= rho[i] <= s_max else 0.0
        churned += gamma > 0
        noise = normal_like(sample_keys(jax.random.fold_in(key, i), jnp.arange(len(z))), jnp.asarray(z))
        hat = rho[i] + gamma * rho[i]
        z = z + np.sqrt(hat**2 - rho[i] ** 2) * s_noise * np.asarray(noise)
        d = (z - denoise(z, hat)) / hat
        euler = z + (rho[i + 1] - hat) * d
        if rho[i + 1] > 0:
            d = (d + (euler - denoise(euler, rho[i + 1])) / rho[i + 1]) / 2
        z = z + (rho[i + 1] - hat) * d
    return z, churned


@pytest.mark.parametrize("points", [2, 3, 10])
def test_churn_is_edms(points):
    """`sample` on a grid of N points above sigma = 0 is EDM's algorithm 2 of N steps: s_churn/N at each.

    s_min and s_max leave out both ends of the grid; N = 2, 3 are at the largest gamma, sqrt(2) - 1.
    """
    p, numbers = VP(), (1.8, 0.1, 7.0, 1.01)
    denoise = lambda z, rho: bent_numpy(p.alpha(p.time(-np.log(rho))) * z, p.time(-np.log(rho)))
    ts = np.linspace(0.95 if points > 3 else 0.6, 0.02, points)
    x0, churned = algorithm_2(KEY(4), denoise, XT / p.alpha(ts[0]), p.sigma(ts) / p.alpha(ts), *numbers)
    assert churned == {2: 1, 3: 2, 10: 5}[points]
    ours = dj.sample(KEY(4), dj.VariancePreserving(), bent, jnp.asarray(XT), ts, Churn(*numbers))
    np.testing.assert_allclose(ours, x0, rtol=1e-9, atol=1e-9)


def test_churn_counts_a_step_to_sigma_zero_once_and_churns_it():
    """The grid ends at sigma = 0 itself: of its 6 points N = 5 have sigma > 0, and the last step is algorithm 2's."""
    ts, numbers, bent_at = np.linspace(0.9, 0, 6), (1.0, 0.0, 20.0, 1.01), lambda z, t: np.tanh(z) * (1 - t / 2)
    x0, churned = algorithm_2(
        KEY(4),
        lambda z, rho: bent_at((1 / (1 + rho)) * z, rho / (1 + rho)),
        XT / (1 - ts[0]),
        (ts / (1 - ts))[:-1],
        *numbers,
    )
    assert churned == 5
    denoiser = lambda x, t: jnp.tanh(x) * (1 - t / 2)
    ours = dj.sample(KEY(4), dj.Rectified(), denoiser, jnp.asarray(XT), ts, Churn(*numbers), final_denoise=False)
    np.testing.assert_allclose(ours, x0, rtol=1e-9, atol=1e-9)


# --- orders ---

STEPPERS = {
    "euler": Euler,
    "heun": dj.Heun,
    "dpm-solver-2": lambda: DPMSolver(2, 0.4),
    "dpm-solver-3": lambda: DPMSolver(3, 0.25),
    "dpmpp-2s": lambda: DPMpp2S(0.6),
}


@eqx.filter_jit
def _embedded(denoiser, xt, t, s, stepper, weights):
    return stepper.step_with_error(denoiser, xt, Step(t, s, weights), None)[:2]


def slope(lengths, errors):
    return np.polyfit(np.log(lengths), np.log(errors), 1)[0]


def test_a_steps_error_and_its_estimate_fall_as_declared():
    """One step from the same state: its error as h^(order + 1), the estimate as h^order; truth by scipy."""
    p, process, t, lengths = VP(), dj.VariancePreserving(), 0.4, np.array([0.08, 0.04, 0.02])
    ends = [p.time(p.half_logsnr(t) + h) for h in lengths]

    def flow(t, x):
        beta, x = p.low + p.width * t, x.reshape(XT.shape)
        return (-beta / 2 * (x - p.eps(x, t) / p.sigma(t))).ravel()

    tight = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14}
    truths = [integrate.solve_ivp(flow, (t, s), XT.ravel(), **tight).y[:, -1].reshape(XT.shape) for s in ends]
    for which, make in STEPPERS.items():
        stepper, errors, estimates = make(), [], []
        for s, truth in zip(ends, truths, strict=True):
            if isinstance(stepper, dj.samplers.AbstractEmbeddedStepper):
                weights = jax.tree.map(lambda w: jnp.asarray(w[0]), step_weights(stepper, process, np.array([t, s])))
                xs, estimate = _embedded(bent, jnp.asarray(XT), jnp.asarray(t), jnp.asarray(s), stepper, weights)
                estimates.append(np.sqrt(np.mean(np.asarray(estimate) ** 2)))
            else:
                xs = walk(KEY(0), process, bent, XT, np.array([t, s]), stepper)
            errors.append(np.sqrt(np.mean((np.asarray(xs) - truth) ** 2)))
        print(which, errors, slope(lengths, errors), estimates)
        assert abs(slope(lengths, errors) - stepper.order - 1) < 0.15, which
        if estimates:
            assert abs(slope(lengths, estimates) - stepper.order) < 0.15, which


def test_error_estimates_are_differences_from_the_order_below():
    """DPM-Solver-12 and -23 of Lu et al. 2022, appendix C; DDIM within Heun and 2S."""
    process, ts = dj.VariancePreserving(), np.array([0.7, 0.5])
    pairs = [
        (dj.Heun(), dj.DDIM()),
        (DPMSolver(2), dj.DDIM()),
        (DPMpp2S(), dj.DDIM()),
        (DPMSolver(3), DPMSolver(2, 1 / 3)),
    ]
    for stepper, below in pairs:
        weights = jax.tree.map(lambda w: jnp.asarray(w[0]), step_weights(stepper, process, ts))
        xs, error = _embedded(bent, jnp.asarray(XT), jnp.asarray(0.7), jnp.asarray(0.5), stepper, weights)
        lower = walk(KEY(0), process, bent, XT, ts, below)
        assert float(jnp.abs(error).max()) > 1e-4
        np.testing.assert_allclose(xs - error, lower, rtol=1e-11)


# --- ends ---


@pytest.mark.parametrize("name", ["dpm-solver-2", "dpm-solver-3", "dpmpp-2s", "churn"])
def test_steps_from_alpha_zero_and_to_sigma_zero_are_ddims(name):
    make = {**STEPPERS, "churn": lambda: Churn(0.3, s_max=1.0)}[name]
    process = dj.Rectified()
    denoiser = dj.exact_denoiser(gaussian(), process)
    for ts in (np.array([1.0, 0.6]), np.array([1.0, 0.0])) + (() if name == "churn" else (np.array([0.6, 0.0]),)):
        ours, ddim = (walk(KEY(0), process, denoiser, XT, ts, s) for s in (make(), dj.DDIM()))
        np.testing.assert_allclose(ours, ddim, rtol=1e-12, atol=1e-14)


def test_churn_without_churn_is_heun_and_stops_at_the_top():
    process = dj.EDM()
    xt, ts = jnp.asarray(80 * XT), dj.edm_grid(process, 8)
    heun, still, noisy = (walk(KEY(0), process, bent, xt, ts, s) for s in (dj.Heun(), Churn(0.0), Churn(1.0)))
    np.testing.assert_allclose(still, heun, rtol=1e-12)
    assert float(jnp.abs(noisy - heun).min()) > 1e-4
    # From sigma = 75 no noise leads beyond 80: sqrt(80^2 - 75^2) of it is added, for gamma = sqrt(2) - 1.
    start = process.time_from_logsnr(-2 * jnp.log(75.0))
    t_hat, grow, noise, _ = step_weights(Churn(10.0), process, np.array([start, 0.5]))
    np.testing.assert_allclose([t_hat[0], grow[0], noise[0]], [1, 1, np.sqrt(80**2 - 75**2)], rtol=1e-10)


def variance_errors(stepper, process, grids, variance):
    """Relative errors of the output's variance for N(0, variance) data with its exact denoiser, without Monte Carlo.

    The state stays Gaussian: a step takes it to A x + B z, seen by two states, 1 and 0, that share their noise.
    """
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), variance), process)
    keys = sample_keys(KEY(0), jnp.zeros(2, int))
    z = normal_like(keys, jnp.zeros((2, 1)))[0, 0]

    @jax.jit
    @jax.vmap
    def affine(t, s, row):
        xs = stepper.step(denoiser, jnp.array([[1.0], [0.0]]), Step(t, s, row, keys), None)[0][:, 0]
        return xs[0] - xs[1], xs[1] / z

    weights = jax.tree.map(lambda *w: jnp.concatenate(w), *[step_weights(stepper, process, ts) for ts in grids])
    t, s = (jnp.concatenate([ts[part] for ts in grids]) for part in (slice(-1), slice(1, None)))
    steps, errors = iter(np.stack(affine(t, s, weights), 1)), []
    for ts in grids:
        marginal = lambda t: variance * process.alpha(t) ** 2 + process.sigma(t) ** 2
        found = float(marginal(ts[0]))
        for a, b in itertools.islice(steps, len(ts) - 1):
            found = a**2 * found + b**2
        errors.append(found / float(marginal(ts[-1])) - 1)
    return np.array(errors)


def test_weak_order_of_churn():
    """Data of variance 0.25, EDM's grid from sigma 80 to 0.002: the variance's error falls as n^-2."""
    grids = [np.linspace(1, 0, n + 1) for n in (64, 128)]
    errors = variance_errors(Churn(4.0), dj.EDM(), grids, 0.25)
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.15


# --- bad input ---


def test_bad_settings():
    for order in (0, 4):
        with pytest.raises(ValueError, match=f"order: singlestep DPM-Solver has orders 1, 2 and 3, got {order}"):
            DPMSolver(order)
    for make in (lambda r: DPMSolver(2, r), lambda r: DPMSolver(3, r), DPMpp2S):
        for r in (0.0, 1.0, -0.5):
            with pytest.raises(ValueError, match=rf"r1: .* must stand inside \(0, 1\), got {r}"):
                make(r)
    with pytest.raises(ValueError, match=r"r1: order 1 has no intermediate evaluation, got 0.5"):
        DPMSolver(1, 0.5)
    for name in ("s_churn", "s_min", "s_noise"):
        with pytest.raises(ValueError, match=f"{name}: must not be negative, got -1.0"):
            Churn(**{"s_churn": 1.0, name: -1.0})
    with pytest.raises(ValueError, match=r"s_max: must be at least s_min = 2.0, got 1.0"):
        Churn(1.0, 2.0, 1.0)


def test_euler_names_the_time_where_the_flow_is_singular():
    class Root(dj.process.AbstractGaussianProcess):
        """alpha' is infinite at t = 1."""

        def alpha(self, t):
            return jnp.sqrt(1 - t)

        def sigma(self, t):
            return jnp.sqrt(t)

    process, ts = Root(), np.array([1.0, 0.5, 0.0])
    with pytest.raises(
        ValueError, match=r"ts: the velocity of Root is singular at t = 1; .*process\.interval\(\).*DDIM"
    ):
        dj.sample(KEY(0), process, bent, jnp.asarray(XT), ts, Euler())
    x = dj.sample(KEY(0), process, bent, jnp.asarray(XT), ts[1:], Euler(), final_denoise=False)
    x0, root = bent_numpy(XT, 0.5), np.sqrt(0.5)  # alpha = sigma = sigma' = -alpha' there
    np.testing.assert_allclose(x, XT - 0.5 * (-root * x0 + root * (XT - root * x0) / root), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("make", [Euler, lambda: DPMSolver(2), lambda: DPMSolver(3), DPMpp2S, lambda: Churn(1.0)])
def test_gradient_with_respect_to_the_grid(make):
    """Equal to a central difference, for a traced grid."""
    process = dj.VariancePreserving()
    ts, way = np.linspace(0.9, 0.1, 5), np.array([0.0, 0.3, -0.5, 0.2, 0.1])

    @jax.jit
    @jax.value_and_grad
    def loss(amount):
        return jnp.sum(dj.sample(KEY(0), process, bent, jnp.asarray(XT), ts + amount * way, make()) ** 2)

    values = [loss(jnp.asarray(a)) for a in (-1e-4, 0.0, 1e-4)]
    np.testing.assert_allclose(values[1][1], (values[2][0] - values[0][0]) / 2e-4, rtol=1e-5)
