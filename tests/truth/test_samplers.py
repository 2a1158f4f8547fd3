"""Samplers against exact flows and exact marginals; every method shows the order that it declares."""

import itertools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import (
    ALL_PROCESSES,
    ALL_STEPPERS,
    each_process,
    each_stepper,
    gaussian,
    images,
    mixture,
)
from walk import walk

import diffjax as dj
from diffjax.samplers import Step, step_weights

KEY = jax.random.key
SLOW = pytest.mark.slow


def flow_reference(process, denoiser, xt, ts):
    """The probability flow of a mixture to 1e-9 of its size: an adaptive order-8 solve in the same clock."""
    solution = dj.integrate(
        dj.probability_flow(process, denoiser),
        xt,
        ts,
        solver=diffrax.Dopri8(),
        controller=diffrax.PIDController(1e-10, 1e-10),
    )
    assert solution.ok
    return solution.x0


@pytest.mark.parametrize("name", each_process(("vp",)))
def test_the_exact_flow_of_a_gaussian(name):
    """integrate, with Tsit5, follows the closed-form flow map; DPM++ 2M at 200 steps comes close to it."""
    process, data = ALL_PROCESSES[name](), gaussian()
    denoiser = dj.exact_denoiser(data, process)
    xt = dj.prior(KEY(0), process, (16, 2))
    ts = dj.logsnr_grid(process, 200)
    truth = dj.exact_flow_map(data, process).move(xt, ts[0], ts[-1])
    tolerance = 1e-10 if name.startswith("ddpm") else 1e-8  # a chain's rate jumps at its knots
    controller = diffrax.PIDController(tolerance, tolerance)
    solution = dj.integrate(
        dj.probability_flow(process, denoiser), xt, ts, solver=diffrax.Tsit5(), controller=controller
    )
    assert solution.ok
    np.testing.assert_allclose(solution.x0, truth, atol=1e-6)
    stepped = dj.sample(KEY(0), process, denoiser, xt, ts, dj.DPMpp2M(), final_denoise=False)
    np.testing.assert_allclose(stepped, truth, atol=2e-3)


@pytest.mark.parametrize("name", each_stepper(stochastic=False))
@pytest.mark.parametrize(
    "process_name", ["vp", *(pytest.param(p, marks=[SLOW, pytest.mark.relative]) for p in ("edm", "rectified"))]
)
def test_declared_order_is_the_fitted_one(name, process_name):
    """The error to the flow of a mixture, its geometric mean over samples, falls as n^-order within 0.15.

    Of v on EDM's process it is the first step's that is seen, n^-2, from 2000 steps on (`ExponentialAdams`).
    """
    process, stepper, steps = ALL_PROCESSES[process_name](), ALL_STEPPERS[name](), [256, 512, 1024]
    order = stepper.order
    if (process_name, name) == ("edm", "adams-v-3"):
        order, steps = 2, [2000, 4000]
    denoiser = dj.exact_denoiser(mixture(), process)
    xt = dj.prior(KEY(1), process, (64, 2))
    errors = []
    truth = flow_reference(process, denoiser, xt, dj.logsnr_grid(process, 2))
    for n in steps:
        apart = jnp.linalg.norm(
            walk(KEY(0), process, denoiser, xt, dj.logsnr_grid(process, n), stepper) - truth, axis=1
        )
        errors.append(float(jnp.exp(jnp.mean(jnp.log(apart)))))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    print(name, dict(zip(steps, errors, strict=True)), "fitted order", slope)
    assert abs(slope - order) < (0.15 if order == stepper.order else 0.2)


@pytest.mark.parametrize("name", each_stepper())
def test_declared_evaluations_are_counted(name):
    """A spy in the denoiser counts what runs: evaluations_per_step n, and one more for the final denoise."""
    process, stepper, calls = dj.EDM(), ALL_STEPPERS[name](), []
    exact = dj.exact_denoiser(gaussian(), process)

    def spy(xt, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(xt, t)

    xt = dj.prior(KEY(0), process, (3, 2))
    jax.block_until_ready(dj.sample(KEY(0), process, spy, xt, dj.uniform_grid(process, 7), stepper))
    jax.effects_barrier()
    assert len(calls) == 7 * stepper.evaluations_per_step + 1


@pytest.mark.parametrize("name", each_stepper(("sde-dpmpp-2m",)))
def test_as_diffrax_solver_takes_the_same_steps(name):
    """`sample`, the loop that other tests use, and diffrax: one result; nfe as declared. diffrax's path has keys of its
    own, by which the steps are then taken by hand."""
    process, stepper = dj.Cosine(), ALL_STEPPERS[name]()
    denoiser = dj.exact_denoiser(mixture(), process)
    xt = dj.prior(KEY(0), process, (5, 2))
    ts = dj.edm_grid(process, 9)
    path = dj.per_sample_path(KEY(0), 5, (2,))
    if stepper.stochastic:
        terms = dj.reverse_sde(process, denoiser, path)
    else:
        terms = dj.probability_flow(process, denoiser)
    solution = dj.integrate(terms, xt, ts, solver=dj.samplers.as_diffrax_solver(stepper))
    ours = dj.sample(KEY(0), process, denoiser, xt, ts, stepper, final_denoise=False)
    np.testing.assert_allclose(walk(KEY(0), process, denoiser, xt, ts, stepper), ours, rtol=1e-9, atol=1e-9)
    assert solution.ok
    assert int(solution.nfe) == 9 * stepper.evaluations_per_step
    if stepper.stochastic:
        ours, state, weights = xt, stepper.init(xt), step_weights(stepper, process, np.asarray(ts))
        for k in range(9):
            row = jax.tree.map(lambda w, k=k: jnp.asarray(w[k]), weights)
            keys = path.step_keys(-ts[k])
            ours, state = stepper.step(denoiser, ours, Step(ts[k], ts[k + 1], row, keys), state)
    np.testing.assert_allclose(solution.x0, ours, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_ddim_is_euler_in_noise_to_signal():
    """DDIM is Euler's method for dz/drho = eps, z = x/alpha, rho = sigma/alpha, written out by hand."""
    process = dj.VariancePreserving()
    denoiser = dj.exact_denoiser(mixture(), process)
    ts = np.asarray(dj.logsnr_grid(process, 12))
    x = xt = dj.prior(KEY(0), process, (4, 2))
    for t, s in itertools.pairwise(ts):
        eps = (x - process.alpha(t) * denoiser(x, jnp.asarray(t))) / process.sigma(t)
        step = process.sigma(s) / process.alpha(s) - process.sigma(t) / process.alpha(t)
        x = process.alpha(s) * (x / process.alpha(t) + step * eps)
    ours = dj.sample(KEY(0), process, denoiser, xt, ts, dj.DDIM(), final_denoise=False)
    np.testing.assert_allclose(ours, x, rtol=1e-10)


@pytest.mark.parametrize("name", each_process(("vp", "rectified")))
def test_ddim_eta_one_is_the_posterior_step(name):
    """One ancestral step has the mean and standard deviation of q(xs | xt, x0_hat), for every process."""
    n, process = 20_000, ALL_PROCESSES[name]()
    ts, xt, constant = np.array([0.6, 0.4]), jnp.full((n, 1), 0.7), jnp.full((n, 1), -0.2)
    xs = dj.sample(KEY(2), process, lambda x, t: constant, xt, ts, dj.DDIM(eta=1.0), final_denoise=False)
    mean, std = dj.posterior_mean_std(process, constant[:1], xt[:1], 0.4, 0.6)
    assert abs(float(xs.mean() - mean[0, 0])) < 4 * float(std) / n**0.5
    assert abs(float(xs.std() / std) - 1) < 4 / (2 * n) ** 0.5


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_carries_the_marginal_for_any_eta(eta):
    """With a denoiser that knows x0, every step takes q(xt | x0) to q(xs | x0) exactly: by our scan and by diffrax."""
    process, n = dj.Rectified(), 20_000
    x0, ts = jnp.full((n, 1), -0.7), np.array([0.9, 0.6, 0.4, 0.2])
    xt = dj.perturb(process, x0, jax.random.normal(KEY(1), x0.shape), 0.9)
    denoiser, stepper = KnownData(x0), dj.DDIM(eta=eta)
    terms = dj.reverse_sde(process, denoiser, dj.per_sample_path(KEY(2), n, (1,)))
    for xs in (
        dj.sample(KEY(2), process, denoiser, xt, ts, stepper, final_denoise=False),
        dj.integrate(terms, xt, ts, solver=dj.samplers.as_diffrax_solver(stepper)).x0,
    ):
        z = (xs - process.alpha(0.2) * x0) / process.sigma(0.2)
        assert abs(float(z.mean())) < 4 / n**0.5
        assert abs(float(z.var()) - 1) < 4 * (2 / n) ** 0.5


class KnownData(eqx.Module):
    x0: jax.Array

    def __call__(self, xt, t):
        return self.x0


@pytest.mark.parametrize("name", ["vp", *(pytest.param(p, marks=pytest.mark.slow) for p in ("edm", "rectified"))])
@pytest.mark.slow
def test_marginals_of_the_eta_family(name):
    """From the exact p_1, the eta family carries the exact marginal: mean and variance at t = 0.3, eta = 0.5, 1."""
    process, data, n = ALL_PROCESSES[name](), gaussian(), 20_000
    denoiser = dj.exact_denoiser(data, process)
    t_max = float(process.interval()[1])
    top = min(0.9, t_max)
    ts = np.linspace(top, 0.3, 151)
    eps_key, x_key = jax.random.split(KEY(3))
    x0 = data.sample(x_key, n)
    xt = dj.perturb(process, x0, jax.random.normal(eps_key, x0.shape), top)
    alpha, sigma = float(process.alpha(0.3)), float(process.sigma(0.3))
    variance = alpha**2 * np.array([0.5, 0.3]) + sigma**2
    for eta in (0.5, 1.0):
        terms = dj.reverse_sde(process, denoiser, dj.per_sample_path(KEY(4), n, (2,)), eta)
        xs = dj.integrate(terms, xt, ts, solver=diffrax.Euler()).x0
        # Monte Carlo error at 4 standard errors, and Euler's own bias of order one in 1/150.
        np.testing.assert_allclose(
            xs.mean(0), alpha * np.array([0.3, -0.5]), atol=4 * (variance.max() / n) ** 0.5 + 0.01
        )
        np.testing.assert_allclose(xs.var(0) / variance, 1, atol=4 * (2 / n) ** 0.5 + 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.Euler, diffrax.ShARK, diffrax.SEA])
def test_reverse_sde_variance(solver):
    """Exact Gaussian data of variance 0.25, VP, 500 steps, 100,000 samples: the output's variance within 2 %.

    ShARK and SEA are wrong by orders of magnitude where time is made to fall.
    """
    process, n = dj.VariancePreserving(), 100_000
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), 0.25), process)
    path = dj.per_sample_path(KEY(1), n, (1,), levy_area=diffrax.SpaceTimeLevyArea)
    xt = dj.prior(KEY(0), process, (n, 1))
    x0 = dj.integrate(dj.reverse_sde(process, denoiser, path), xt, dj.uniform_grid(process, 500), solver=solver()).x0
    print(solver.__name__, "variance", float(x0.var()), "relative error", float(x0.var()) / 0.25 - 1)
    assert abs(float(x0.var()) / 0.25 - 1) < 0.02


@pytest.mark.slow
def test_stochastic_runge_kutta_runs_with_the_right_sign():
    """The quick form of the above: 60 steps, 5,000 samples, 10 %."""
    process, n = dj.VariancePreserving(), 5_000
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), 0.25), process)
    path = dj.per_sample_path(KEY(1), n, (1,), levy_area=diffrax.SpaceTimeLevyArea)
    xt = dj.prior(KEY(0), process, (n, 1))
    terms = dj.reverse_sde(process, denoiser, path)
    x0 = dj.integrate(terms, xt, dj.logsnr_grid(process, 60), solver=diffrax.ShARK()).x0
    assert abs(float(x0.var()) / 0.25 - 1) < 0.1


@pytest.mark.slow
def test_adaptive_sde_wants_a_tree():
    """Adaptive steps on a path drawn anew at each step are refused; with a tree they reach the variance."""
    process, n = dj.VariancePreserving(), 300
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), 0.25), process)
    xt, ts = dj.prior(KEY(0), process, (n, 1)), np.array([0.9, 0.1])
    controller = diffrax.PIDController(rtol=1e-2, atol=1e-2, dtmin=1e-3)

    def solve(tolerance):
        path = dj.per_sample_path(KEY(1), n, (1,), levy_area=diffrax.SpaceTimeLevyArea, tolerance=tolerance)
        terms = dj.reverse_sde(process, denoiser, path)
        return dj.integrate(terms, xt, ts, solver=diffrax.ShARK(), controller=controller)

    with pytest.raises(ValueError, match="tolerance=None"):
        solve(None)
    solution = solve(1e-3)
    assert solution.ok
    expected = float(process.alpha(0.1) ** 2 * 0.25 + process.sigma(0.1) ** 2)
    assert abs(float(solution.x0.var()) / expected - 1) < 4 * (2 / n) ** 0.5 + 0.02


@pytest.mark.parametrize("name", each_stepper())
def test_any_number_of_steps(name):
    """One step, two, a thousand, on images: finite everywhere, and at a thousand close to the exact flow, or for those
    with noise as far from the mean as the data are."""
    process, data, stepper = dj.EDM(), images(), ALL_STEPPERS[name]()
    denoiser = dj.exact_denoiser(data, process)
    xt = dj.prior(KEY(0), process, (4, 2, 2, 1))
    for n in (1, 2, 1000):
        ts = dj.uniform_grid(process, n)
        x = walk(KEY(0), process, denoiser, xt, ts, stepper)
        assert x.shape == xt.shape
        assert np.all(np.isfinite(x))
    if not stepper.stochastic:
        truth = dj.exact_flow_map(data, process).move(xt, ts[0], ts[-1])
        np.testing.assert_allclose(x, truth, atol=0.05 if stepper.order == 1 else 1e-3)
    assert 0.4 < np.std((x - 0.1) / np.sqrt([[[0.2], [0.4]], [[0.6], [0.8]]])) < 1.8  # of 16 numbers 1 +- 0.18


@pytest.mark.parametrize("name", each_stepper())
def test_grids_may_touch_both_ends(name):
    """A rectified grid from t = 1 (alpha = 0) to t = 0 (sigma = 0): one step of it is the data's mean, which is all
    that is known of x0 there, and many end as the exact flow or near the data."""
    process = dj.Rectified()
    denoiser = dj.exact_denoiser(gaussian(), process)
    xt = dj.prior(KEY(0), process, (6, 2))
    one, two, many = (
        walk(KEY(0), process, denoiser, xt, np.linspace(1, 0, n + 1), ALL_STEPPERS[name]()) for n in (1, 2, 32)
    )
    mean = np.array([0.3, -0.5])
    np.testing.assert_allclose(one, np.broadcast_to(mean, (6, 2)), rtol=1e-9)
    for x in (two, many):
        assert np.all(np.abs(x - mean) < 4)
    if not ALL_STEPPERS[name]().stochastic:
        atol = 0.1 if ALL_STEPPERS[name]().order == 1 else 0.02
        np.testing.assert_allclose(many, dj.exact_flow_map(gaussian(), process).move(xt, 1.0, 0.0), atol=atol)


@pytest.mark.parametrize("name", each_stepper())
def test_a_network_in_bfloat16_and_a_state_in_float32(name):
    """The state stays float32, and the answer is that of a float32 network to what bfloat16 loses."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        process, stepper = dj.VariancePreserving(), ALL_STEPPERS[name]()
        exact = dj.exact_denoiser(gaussian(), process)
        coarse = lambda xt, t: exact(xt, t).astype(jnp.bfloat16)
        xt, ts = dj.prior(KEY(0), process, (6, 2)), dj.logsnr_grid(process, 12)
        fine = walk(KEY(0), process, exact, xt, ts, stepper)
        x = walk(KEY(0), process, coarse, xt, ts, stepper)
        assert x.dtype == jnp.float32
        # Song's corrections divide by the pull, which at d = 2 may be no more than bfloat16's rounding.
        np.testing.assert_allclose(x, fine, atol=2.0 if name == "predictor-corrector" else 0.1)


@pytest.mark.parametrize("make", [dj.Heun, pytest.param(lambda: dj.samplers.Churn(5.0), marks=SLOW)])
def test_nothing_is_asked_at_zero_noise(make):
    """A denoiser that is singular at sigma = 0, as that of finite data, is not evaluated there: the last one's answer,
    which lies between the data, is x0."""
    process = dj.Rectified()
    denoiser = dj.exact_denoiser(dj.analytic.Empirical(jnp.array([[1.0, 0.0], [-1.0, 0.5]])), process)
    xt, ts = dj.prior(KEY(0), process, (3, 2)), np.array([0.9, 0.5, 0.2, 0.0])
    run = lambda xt: dj.sample(KEY(0), process, denoiser, xt, ts, make(), final_denoise=False)
    x0 = np.asarray(run(xt))
    np.testing.assert_allclose(x0[:, 1], 0.25 * (1 - x0[:, 0]), atol=1e-12)
    assert np.all(np.abs(x0[:, 0]) <= 1)
    assert np.all(np.isfinite(jax.grad(lambda xt: jnp.sum(run(xt)))(xt)))


def test_a_heun_step_to_zero_noise_is_euler():
    process = dj.Rectified()
    denoiser = dj.exact_denoiser(gaussian(), process)
    xt, ts = dj.prior(KEY(0), process, (6, 2)), np.array([0.4, 0.0])
    heun, ddim = (dj.sample(KEY(0), process, denoiser, xt, ts, s, final_denoise=False) for s in (dj.Heun(), dj.DDIM()))
    np.testing.assert_allclose(heun, ddim, rtol=1e-12)
    np.testing.assert_allclose(ddim, denoiser(xt, jnp.asarray(0.4)), rtol=1e-12)


def test_denoise_and_save():
    """The default ends with the denoiser's answer; `save` returns the states it names, in its own order."""
    process = dj.VariancePreserving()
    denoiser = dj.exact_denoiser(mixture(), process)
    xt, ts = dj.prior(KEY(0), process, (4, 2)), dj.logsnr_grid(process, 6)
    half = lambda x, ts: dj.sample(KEY(0), process, denoiser, x, ts, dj.DDIM(), final_denoise=False)
    x0, saved = dj.sample(KEY(0), process, denoiser, xt, ts, dj.DDIM(), save=[6, 0, 3])
    np.testing.assert_array_equal(saved[1], xt)
    np.testing.assert_allclose(saved[2], half(xt, ts[:4]), rtol=1e-10)
    np.testing.assert_allclose(saved[0], half(saved[2], ts[3:]), rtol=1e-10)
    np.testing.assert_allclose(x0, denoiser(saved[0], jnp.asarray(ts[-1])), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_STEPPERS)
def test_a_traced_grid_gives_the_same_result(name):
    """Weights computed on the host in float64, and those computed inside jit, agree."""
    process = dj.Cosine()
    denoiser = dj.exact_denoiser(mixture(), process)
    xt, ts = dj.prior(KEY(0), process, (4, 2)), dj.logsnr_grid(process, 8)
    stepper = ALL_STEPPERS[name]()
    run = jax.jit(lambda process, ts: dj.sample(KEY(5), process, denoiser, xt, ts, stepper))
    np.testing.assert_allclose(
        run(process, ts), dj.sample(KEY(5), process, denoiser, xt, ts, stepper), rtol=1e-7, atol=1e-7
    )


@pytest.mark.slow
def test_gradient_through_the_sampler_and_the_schedule():
    """d/d beta_max of a DDIM sample equals its central difference; so does the gradient through diffrax."""
    data = gaussian()
    xt = jax.random.normal(KEY(0), (4, 2))
    ts = np.linspace(0.9, 0.1, 6)

    def by_scan(beta_max):
        process = dj.VariancePreserving(0.1, beta_max)
        return jnp.sum(dj.sample(KEY(0), process, dj.exact_denoiser(data, process), xt, ts, dj.DDIM()) ** 2)

    def by_diffrax(beta_max):
        process = dj.VariancePreserving(0.1, beta_max)
        terms = dj.probability_flow(process, dj.exact_denoiser(data, process))
        return jnp.sum(dj.integrate(terms, xt, ts, solver=diffrax.Heun()).x0 ** 2)

    for function in (by_scan, by_diffrax):
        slope = (function(jnp.asarray(15.001)) - function(jnp.asarray(14.999))) / 0.002
        np.testing.assert_allclose(jax.grad(function)(jnp.asarray(15.0)), slope, rtol=1e-5)


def test_a_failed_solve_is_a_value():
    """Too few steps: ok is False and x0 is NaN, without an exception."""
    process = dj.VariancePreserving()
    terms = dj.probability_flow(process, dj.exact_denoiser(gaussian(), process))
    xt = dj.prior(KEY(0), process, (4, 2))
    controller = diffrax.PIDController(1e-9, 1e-9)
    solution = dj.integrate(
        terms, xt, np.array([1.0, 0.01]), solver=diffrax.Tsit5(), controller=controller, max_steps=3
    )
    assert not solution.ok
    assert np.all(np.isnan(solution.x0))


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        ([0.1, 0.9], "ts: must descend"),
        ([0.9, 0.5, 0.5], "ts: must descend"),
        ([1.2, 0.5], r"ts: times lie in \[0, 1\]"),
        ([0.5], "at least two times in one dimension"),
        ([0.9, np.nan], "ts: must descend"),
    ],
)
def test_bad_grids(ts, message):
    process = dj.VariancePreserving()
    denoiser = dj.exact_denoiser(gaussian(), process)
    xt = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match=message):
        dj.sample(KEY(0), process, denoiser, xt, np.array(ts), dj.DDIM())
    with pytest.raises(ValueError, match=message):
        dj.integrate(dj.probability_flow(process, denoiser), xt, np.array(ts), solver=diffrax.Euler())


def test_bad_arguments():
    process = dj.VariancePreserving()
    denoiser = dj.exact_denoiser(gaussian(), process)
    xt, ts = jnp.zeros((2, 2)), np.array([0.9, 0.1])
    with pytest.raises(ValueError, match=r"eta: must lie in \[0, 1\], got 1.5"):
        dj.DDIM(eta=1.5)
    with pytest.raises(ValueError, match="eta: must not be negative"):
        dj.reverse_sde(process, denoiser, dj.per_sample_path(KEY(0), 2, (2,)), eta=-1.0)
    with pytest.raises(ValueError, match=r"save: the grid has points 0 .. 1, got 2"):
        dj.sample(KEY(0), process, denoiser, xt, ts, dj.DDIM(), save=[2])
    with pytest.raises(ValueError, match="index: one global index a sample"):
        dj.prior(KEY(0), process, (2, 2), index=jnp.arange(3))
