"""Flow maps: three identities of the exact ones, their two forms, and the targets that losses take from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PARAMETERISATIONS, ALL_PROCESSES, KINDS, each_process, gaussian, mixture

import diffjax as dj
from diffjax import samplers
from diffjax.analytic import Empirical, quantile_flow
from diffjax.flow_maps._eulerian import average_velocity, check_eulerian, eulerian_target, velocity_and_derivative
from diffjax.parameterisation import recover, target
from diffjax.process import (
    Circle,
    Line,
    angle,
    average,
    check_known,
    ddim_coefficients,
    is_flow_map,
    move,
    schedule_derivatives,
)

KEY = jax.random.key
T, U, S = np.array([0.95, 0.6, 0.31]), np.array([0.7, 0.45, 0.2]), np.array([0.33, 0.08, 0.19])
ENDS_AT_DATA = ("vp", "vp-constant", "cosine", "cosine-shifted", "rectified", "sub-vp", "ve-from-zero", "ou")
ENDS_AT_DATA += ("polynomial", "offset-cosine", "own", "ddpm", "ddpm-zero-snr", "shifted", "retimed")


def residuals(data, process, xt, t, u, s):
    """What should be 0, relative to what it is made of: name -> array."""
    F, denoiser = dj.exact_flow_map(data, process), dj.exact_denoiser(data, process)
    velocity = lambda x, t: samplers.velocity(process, denoiser, x, t)
    X = F.move(xt, t, s)
    v_t, v_s = velocity(xt, t), velocity(X, s)
    _, along = jax.jvp(lambda x, t: F.move(x, t, s), (xt, t), (v_t, jnp.ones_like(t)))
    _, by_s = jax.jvp(lambda s: F.move(xt, t, s), (s,), (jnp.ones_like(s),))
    A = F(xt, t, s)
    return {
        "Eulerian": along / jnp.max(jnp.abs(v_t)),
        "Lagrangian": (by_s - v_s) / jnp.max(jnp.abs(v_s)),
        "semigroup": F.move(F.move(xt, t, u), u, s) - X,
        "there and back": F.move(X, s, t) / jnp.max(jnp.abs(xt)) - xt / jnp.max(jnp.abs(xt)),
        "move": move(process, xt, t, s, A) - X,
        "average": average(process, xt, t, s, X) - A,
        "s = t": F(xt, t, jnp.copy(t)) - denoiser(xt, t),
        "the denoiser": F(xt, t) - denoiser(xt, t),
    }


def states(data, process):
    return dj.perturb(process, data.sample(KEY(0), 3), jax.random.normal(KEY(1), (3, 2)), T)


@pytest.mark.parametrize("name", each_process(("vp", "rectified", "own")))
def test_the_exact_map_of_a_gaussian(name):
    process, data = ALL_PROCESSES[name](), gaussian()
    found = jax.jit(lambda process, xt: residuals(data, process, xt, T, U, S))(process, states(data, process))
    for what, rest in found.items():
        np.testing.assert_allclose(rest, 0, atol=1e-10, err_msg=what)


def test_the_exact_map_of_a_mixture():
    """By one compiled solve: its derivatives are left to `-m slow`."""
    process, data = dj.Rectified(), mixture()
    F, xt = dj.exact_flow_map(data, process), states(data, process)
    A = jax.jit(lambda xt, t, s: F(xt, t, s))
    X = lambda xt, t, s: move(process, xt, t, s, A(xt, t, s))
    xs, denoiser, step = X(xt, T, S), dj.exact_denoiser(data, process), 1e-5
    np.testing.assert_allclose(X(X(xt, T, U), U, S), xs, atol=1e-9)
    by_s = (X(xt, T, S + step) - X(xt, T, S - step)) / (2 * step)
    np.testing.assert_allclose(by_s, samplers.velocity(process, denoiser, xs, S), atol=1e-6)
    np.testing.assert_allclose(A(xt, T, T), denoiser(xt, T), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_PROCESSES)
def test_the_exact_map_of_a_mixture_and_its_derivatives(name):
    process, data = ALL_PROCESSES[name](), mixture()
    found = jax.jit(lambda process, xt: residuals(data, process, xt, T, U, S))(process, states(data, process))
    for what, rest in found.items():
        np.testing.assert_allclose(rest, 0, atol=1e-9, err_msg=what)


def test_a_narrow_mixture_is_solved_to_rounding_and_agrees_with_its_quantiles():
    data, process = dj.GaussianMixture(jnp.array([[-1.0], [0.2], [1.1]]), 0.01, jnp.array([0.2, 0.5, 0.3])), dj.Cosine()
    xt = jnp.linspace(-2.5, 2.5, 9)[:, None]
    coarse, fine = (dj.exact_flow_map(data, process, steps=steps).move(xt, 1.0, 0.0) for steps in (64, 128))
    np.testing.assert_allclose(coarse, fine, atol=1e-11)
    np.testing.assert_allclose(quantile_flow(data, process, xt, 1.0, 0.0), fine, atol=1e-9)
    np.testing.assert_allclose(quantile_flow(data, process, fine, 0.0, 1.0), xt, atol=1e-9)
    with pytest.raises(ValueError, match=r"mixture: one feature is needed, of shape \[1\], got \(2,\)"):
        quantile_flow(mixture(), process, jnp.ones((2, 2)), 1.0, 0.0)


@pytest.mark.slow
def test_gradients_of_a_solved_map_are_those_of_differences():
    data, process, step = mixture(), dj.VariancePreserving(), 1e-6
    F, along = dj.exact_flow_map(data, process, steps=32), jnp.array([1.0, 0.5])
    xt = jnp.array([[0.4, -1.1]]) + step * jnp.array([[0.0], [1.0], [-1.0]]) * along

    @jax.jit
    def value_and_slope(xt):
        value, pull = jax.vjp(lambda xt: F.move(xt, 1.0, 0.0) @ jnp.array([0.3, 1.0]), xt)
        return value, pull(jnp.ones_like(value))[0]

    value, slope = value_and_slope(xt)
    np.testing.assert_allclose(slope[0] @ along, (value[1] - value[2]) / (2 * step), rtol=1e-7)


def test_rectified_flow_moves_by_the_average_velocity():
    process, data = dj.Rectified(), gaussian()
    F, xt = dj.exact_flow_map(data, process), states(data, process)
    u = (xt - F.move(xt, T, S)) / (T - S)[:, None]
    np.testing.assert_allclose(F(xt, T, S), xt - T[:, None] * u, atol=1e-13)


@pytest.mark.parametrize("name", ALL_PROCESSES)
def test_the_sample_is_x_and_a_only_where_the_process_begins_at_the_data(name):
    """X(xt, 1, 0) has the law of t = 0; the standard deviation of A is gain sqrt(v_1), another where sigma(0) > 0."""
    process, variance = ALL_PROCESSES[name](), 0.25
    F = dj.exact_flow_map(dj.Gaussian(jnp.zeros(1), variance), process)
    alpha, sigma = (np.array([float(f(jnp.asarray(t))) for t in (1.0, 0.0)]) for f in (process.alpha, process.sigma))
    std = np.sqrt(alpha**2 * variance + sigma**2)
    xt = jnp.full((1, 1), std[0])
    X, A = (float(y[0, 0]) for y in (F.move(xt, 1.0, 0.0), F(xt, 1.0, 0.0)))
    np.testing.assert_allclose(X, std[1], rtol=1e-12)
    c_x, c_x0 = ddim_coefficients(alpha[0], sigma[0], alpha[1], sigma[1])
    np.testing.assert_allclose(A, (std[1] - c_x * std[0]) / c_x0, rtol=1e-9)
    assert (abs(A - X) < 1e-12) == (name in ENDS_AT_DATA)
    if name == "edm":
        np.testing.assert_allclose(A / np.sqrt(variance) - 1, -0.004, atol=1e-3)


@pytest.mark.parametrize("name", ALL_PROCESSES)
def test_maps_and_moves_are_finite_at_both_ends(name):
    with jax.numpy_dtype_promotion("standard"):
        for dtype in (jnp.float32, jnp.float64):
            process, data = ALL_PROCESSES[name](), dj.Gaussian(jnp.ones(1, dtype), jnp.asarray(0.25, dtype))
            F, xt = dj.exact_flow_map(data, process), jnp.array([[0.3], [-2.0], [0.7], [1.1]], dtype)
            t, s = jnp.array([1.0, 1.0, 0.5, 0.0], dtype), jnp.array([0.0, 1.0, 0.0, 0.0], dtype)
            for found in (F(xt, t, s), F.move(xt, t, s), move(process, xt, t, s, F(xt, t, s))):
                assert np.all(np.isfinite(found))
            np.testing.assert_allclose(move(process, xt, t, s, F(xt, t, s))[3], xt[3], rtol=1e-5)


# --- the Eulerian target ---


def exact_network(data):
    """A network that answers, told the angles of t and s, what `EDMPrediction(1.0)` has of the exact A: every
    process's state over sqrt(alpha^2 + sigma^2) is the cosine schedule's at time 2/pi angle."""
    F, prediction, cosine = dj.exact_flow_map(data, dj.Cosine()), dj.parameterisation.EDMPrediction(1.0), dj.Cosine()

    def apply(params, x, c_noise, cond=None, *, key=None):
        t, s = 2 / jnp.pi * c_noise.T
        A = F(x, t, s)
        eps = (x - cosine.alpha(t)[:, None] * A) / cosine.sigma(t)[:, None]
        return target(prediction, cosine, A, eps, t)

    return dj.Network(lambda *_: None, apply)


def some_network(params, x, c_noise, cond=None, *, key=None):
    """Of both times, and of no flow."""
    return jnp.tanh(params * x + jnp.sin(c_noise[:, :1]) - 0.5 * (c_noise[:, :1] - c_noise[:, 1:]) ** 2)


COORDINATES = (Line, Circle)


@pytest.mark.parametrize("name", each_process(("rectified", "own")))
def test_at_the_exact_map_the_target_is_the_map(name):
    """Its tangent vanishes: from the flow's own velocity, at both clocks, also at t = 1 and s = 0."""
    process, data = ALL_PROCESSES[name](), gaussian()
    diffusion = dj.Diffusion(exact_network(data), process, dj.parameterisation.EDMPrediction(1.0, clock="angle"))
    check_eulerian(diffusion)
    z, t, s = jnp.array([[0.5, -1.0], [0.2, 0.4], [1.2, 0.1]]), jnp.array([0.9, 0.5, 1.0]), jnp.array([0.4, 0.0, 0.0])

    @jax.jit
    def found(diffusion):
        pairs = []
        for coordinates in (make(1.0) for make in COORDINATES):
            data = average_velocity(diffusion, None, coordinates, z, t, jnp.copy(t))
            u, derivative = velocity_and_derivative(diffusion, None, coordinates, z, t, s, data)
            gap = coordinates.clock(diffusion.process, t) - coordinates.clock(diffusion.process, s)
            pairs.append((u, eulerian_target(coordinates, gap, z, data, u, derivative)))
        return pairs

    for u, wanted in found(diffusion):
        np.testing.assert_allclose(wanted, u, atol=1e-9)


@pytest.mark.parametrize("name", each_process(("own",)))
def test_the_target_is_that_of_the_network_in_t(name):
    """target - u = (scale_t/scale_s) du/dy R/kappa, with R = d/dt X along the flow and kappa = dv/dy, both in t."""
    process, params, std = ALL_PROCESSES[name](), jnp.asarray(0.4), 0.8
    x0, eps = jnp.array([[0.5, -1.0], [0.2, 0.4], [1.2, 0.1]]), jnp.array([[0.1, 0.7], [-0.4, 1.0], [0.3, -0.9]])

    @jax.jit
    def found(process):
        xt, pairs = dj.perturb(process, x0, eps, T), {}
        alpha_dot, sigma_dot = (rate[:, None] for rate in schedule_derivatives(process, T))
        for kind, make in ALL_PARAMETERISATIONS.items():
            p = make(std, clock="angle")
            diffusion = dj.Diffusion(dj.Network(lambda *_: None, some_network), process, p)

            def X(xt, t, diffusion=diffusion, p=p):
                y = dj.parameterisation.apply_network(diffusion, params, xt, t, s=S)
                return move(process, xt, t, S, recover(p, process, y, xt, t)[0])

            R = jax.jvp(X, (xt, T), (alpha_dot * x0 + sigma_dot * eps, jnp.ones_like(T)))[1]
            answers = lambda y, p=p: recover(p, process, y, xt, T)
            by_y = [a - b for a, b in zip(answers(jnp.ones_like(xt)), answers(jnp.zeros_like(xt)), strict=True)]
            kappa = alpha_dot * by_y[0] + sigma_dot * by_y[1]
            for coordinates in (make(std) for make in COORDINATES):
                clock, z = coordinates.clock(process, T), xt / coordinates.scale(process, T)[:, None]
                data = coordinates.velocity(clock, x0, eps)
                u, derivative = velocity_and_derivative(diffusion, params, coordinates, z, T, S, data)
                wanted = eulerian_target(coordinates, clock - coordinates.clock(process, S), z, data, u, derivative)
                weight = coordinates.scale(process, T) / coordinates.scale(process, S)
                by_t = weight[:, None] * coordinates.velocity(clock, *by_y) * R / kappa
                pairs[kind, type(coordinates).__name__] = (wanted - u, by_t)
        return pairs

    for kind, (by_clock, by_t) in found(process).items():
        np.testing.assert_allclose(by_clock, by_t, rtol=1e-8, atol=1e-9, err_msg=str(kind))


@pytest.mark.parametrize("name", each_process(KINDS))
def test_derivatives_of_networks_are_finite_at_both_ends(name):
    with jax.numpy_dtype_promotion("standard"):
        for dtype in (jnp.float32, jnp.float64):
            process = ALL_PROCESSES[name]()
            prediction = dj.parameterisation.EDMPrediction(0.8, clock="angle")
            diffusion = dj.Diffusion(dj.Network(lambda *_: None, some_network), process, prediction)
            z = jnp.array([[0.5], [-0.7], [0.1]], dtype)
            t, s = jnp.array([1.0, 0.5, 0.0], dtype), jnp.zeros(3, dtype)

            @jax.jit
            def both(process, z=z, t=t, s=s, diffusion=diffusion, dtype=dtype):
                given = (diffusion, jnp.asarray(0.4, dtype))
                return [velocity_and_derivative(*given, make(0.8), z, t, s, z) for make in COORDINATES]

            for found in jax.tree.leaves(both(process)):
                assert found.dtype == dtype
                assert np.all(np.abs(found) < 30)


def test_what_has_no_bounded_derivative_is_refused():
    network = dj.Network(lambda *_: None, some_network)
    check = lambda process, prediction: check_eulerian(dj.Diffusion(network, process, prediction))
    for process, prediction in ((dj.Cosine(), dj.VPrediction), (dj.Rectified(), dj.VelocityPrediction)):
        check(process, prediction(clock="angle"))
        with pytest.raises(ValueError, match=r'clock="angle"\), got \'logsnr\''):
            check(process, prediction())
    for prediction in (dj.EpsPrediction, dj.parameterisation.ScorePrediction):
        with pytest.raises(ValueError, match="says nothing of x0 at t = 1"):
            check(dj.Cosine(), prediction(clock="angle"))
    with pytest.raises(ValueError, match="v diverges on EDM"):
        check(dj.EDM(), dj.VPrediction(clock="angle"))
    # of the last one the angle's derivative is 1/6 at both ends, but at t = 1 the scale grows 50 times as fast
    for process in (dj.VariancePreserving(), dj.EDM(), dj.VarianceExploding(0.02, 50.0)):
        with pytest.raises(ValueError, match=r"velocity in t of .* vanishes or diverges"):
            check(process, dj.VelocityPrediction(clock="angle"))


# --- the clock ---


@pytest.mark.parametrize("name", ALL_PROCESSES)
def test_the_angle_and_its_derivatives_are_right_between_the_ends_and_finite_at_them(name):
    process, std = ALL_PROCESSES[name](), 0.7
    t = jnp.array([0.0, 0.2, 0.7, 1.0])
    sigma, alpha = np.asarray(process.sigma(t)), np.asarray(process.alpha(t))
    np.testing.assert_allclose(angle(process, t, std), np.arctan2(sigma, std * alpha), atol=1e-15)
    slope = jax.vmap(jax.grad(lambda t: angle(process, t, std)))(t)
    alpha_dot, sigma_dot = schedule_derivatives(process, t[1:3])
    expected = std * (alpha[1:3] * sigma_dot - sigma[1:3] * alpha_dot) / (std**2 * alpha[1:3] ** 2 + sigma[1:3] ** 2)
    np.testing.assert_allclose(slope[1:3], expected, rtol=1e-9)
    assert np.all(np.isfinite(slope))
    assert np.all(slope >= 0)
    by_std = jax.grad(lambda std: angle(process, t[2], std))(std)
    np.testing.assert_allclose(by_std, -alpha[2] * sigma[2] / (std**2 * alpha[2] ** 2 + sigma[2] ** 2), rtol=1e-9)


def test_coordinates_are_the_same_flow_for_every_process():
    x0, eps = jnp.array([[0.5, -1.0]]), jnp.array([[0.1, 0.7]])
    for name in ("vp", "edm", "rectified"):
        process = ALL_PROCESSES[name]()
        xt = dj.perturb(process, x0, eps, 0.4)
        line, circle = Line(0.8), Circle(0.8)
        tau, phi = line.clock(process, 0.4), circle.clock(process, 0.4)
        np.testing.assert_allclose(xt / line.scale(process, 0.4), (1 - tau) * x0 / 0.8 + tau * eps, atol=1e-14)
        np.testing.assert_allclose(
            xt / circle.scale(process, 0.4), jnp.cos(phi) * x0 / 0.8 + jnp.sin(phi) * eps, atol=1e-14
        )
        np.testing.assert_allclose(line.velocity(tau, x0, eps), eps - x0 / 0.8)
        np.testing.assert_allclose(circle.velocity(phi, x0, eps), jnp.cos(phi) * eps - jnp.sin(phi) * x0 / 0.8)


# --- what is known, and what is refused ---


def test_pairs_that_a_map_does_not_know_are_refused():
    grid = (1.0, 0.6, 0.2, 0.0)
    for known, t, s in (("any", 0.5, 0.5), ("any", 0.5, 0.1), ("zero", 0.7, 0.0), (grid, 0.6, 0.2)):
        check_known(known, t, s if s != t else t)
    check_known(grid, np.array([1.0, 0.2]), np.array([0.6, 0.0]))
    check_known(grid, np.array(0.6, np.float32), np.array(0.2, np.float32))
    for known, t, s, words in (
        ("any", 0.4, 0.5, "s: a flow map goes from t to s <= t, got t = 0.4, s = 0.5"),
        ("zero", 0.7, 0.1, "flow map: .* s = 0 alone, and does not know the step from t = 0.7 to s = 0.1"),
        (grid, 1.0, 0.2, "the 3 steps of the grid 1, 0.6, 0.2, 0, and does not know the step from t = 1 to s = 0.2"),
        (grid, np.array([1.0, 0.5]), np.array([0.6, 0.2]), "from t = 0.5 to s = 0.2"),
        (grid, 0.6, 0.21, "from t = 0.6 to s = 0.21"),
    ):
        with pytest.raises(ValueError, match=words):
            check_known(known, t, s)
    for known in ("zero", grid):
        with pytest.raises(ValueError, match=r"flow map: it was trained on .*, and is no denoiser"):
            check_known(known, *[jnp.asarray(0.5)] * 2)
    long = tuple(np.linspace(1, 0, 9))
    with pytest.raises(ValueError, match=r"the 8 steps of the grid 1, 0.875, ..., 0.125, 0"):
        check_known(long, 1.0, 0.0)


def test_what_a_map_knows_is_read_before_anything_runs():
    network = dj.Network(lambda *_: None, some_network)
    diffusion = dj.Diffusion(network, dj.Cosine(), dj.X0Prediction(clock="angle"))
    made = lambda knows: dj.make_flow_map(diffusion, jnp.asarray(0.4), knows=knows)
    assert made(np.array([1.0, 0.5, 0.0])).knows == (1.0, 0.5, 0.0)
    assert made(jnp.array([1.0, 0.5])).knows == (1.0, 0.5)
    for knows in ("all", None, object(), 0.5, [0.0, 1.0], [1.0, 1.0], [1.0], [2.0, 0.0], [1.0, -0.1], [1.0, np.nan]):
        with pytest.raises(ValueError, match=r"^knows: "):
            made(knows)
    with pytest.raises(ValueError, match="knows: the grid must be known before tracing"):
        jax.jit(lambda grid: made(grid)(jnp.ones((2, 1)), 1.0, 0.5))(jnp.array([1.0, 0.5]))


def test_a_network_is_told_both_times_only_where_it_knows_any_pair():
    told = []

    def apply(params, x, c_noise, cond=None, *, key=None):
        told.append(c_noise)
        return params * x + cond

    cond = jnp.array([[1.0], [2.0]])
    diffusion = dj.Diffusion(dj.Network(lambda *_: None, apply), dj.Cosine(), dj.X0Prediction(clock="angle"))
    xt = jnp.array([[0.3], [0.6]])
    of = {knows: dj.make_flow_map(diffusion, jnp.asarray(0.5), cond, knows=knows) for knows in ("any", "zero")}
    half_pi = np.pi / 2
    np.testing.assert_allclose(of["any"](xt, 0.5, 0.25), 0.5 * xt + cond)
    np.testing.assert_allclose(told[-1], np.tile([half_pi / 2, half_pi / 4], (2, 1)))
    of["any"](xt, 0.5)
    np.testing.assert_allclose(told[-1], np.full((2, 2), half_pi / 2))
    np.testing.assert_allclose(of["zero"].move(xt, 1.0, 0.0), 0.5 * xt + cond, atol=1e-15)
    np.testing.assert_allclose(told[-1], [half_pi, half_pi])


def test_flow_maps_are_told_from_denoisers():
    F = dj.exact_flow_map(gaussian(), dj.Cosine())
    assert is_flow_map(F)
    assert is_flow_map(lambda xt, t, s: xt)
    for other in (lambda xt, t: xt, lambda xt, t, cond=None: xt, lambda *args: args[0], 3, dj.exact_denoiser):
        assert not is_flow_map(other)
    with pytest.raises(ValueError, match="s: a flow map goes from t to s <= t"):
        F(jnp.ones((1, 2)), 0.2, 0.5)
    with pytest.raises(ValueError, match="steps: at least 1 is needed, got 0"):
        dj.exact_flow_map(gaussian(), dj.Cosine(), steps=0)
    with pytest.raises(ValueError, match="distribution: the flow of a finite data set"):
        dj.exact_flow_map(Empirical(jnp.zeros((2, 1))), dj.Cosine())


def test_a_retimed_map_is_the_other_processs():
    """A is a mean over alpha/sigma, which processes share."""
    data, trained, sampled = gaussian(), dj.Rectified(), dj.VariancePreserving()
    F = dj.parameterisation.retime(dj.exact_flow_map(data, trained), trained, sampled)
    xt = states(data, sampled)
    np.testing.assert_allclose(F(xt, T, S), dj.exact_flow_map(data, sampled)(xt, T, S), atol=1e-9)
    np.testing.assert_allclose(F(xt, T), dj.exact_denoiser(data, sampled)(xt, T), atol=1e-9)
    assert F.knows == "any"
    assert is_flow_map(F)
    assert not is_flow_map(dj.parameterisation.retime(lambda xt, t: xt, trained, sampled))
    diffusion = dj.Diffusion(dj.Network(lambda *_: None, some_network), trained, dj.X0Prediction())
    for knows in ("zero", (1.0, 0.5)):
        assert not is_flow_map(
            dj.parameterisation.retime(dj.make_flow_map(diffusion, None, knows=knows), trained, sampled)
        )
