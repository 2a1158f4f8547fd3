"""`Jump`: the law of its samples, what a step costs and draws, and which maps it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, gaussian

import diffjax as dj
from diffjax import guidance, inverse, likelihood, samplers

KEY = jax.random.key
TS = np.array([1.0, 0.7, 0.3, 0.0])
MEAN, COVARIANCE = np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]])


def check_law(x, alpha, sigma):
    """Mean and covariance of x [n, 2] against alpha x0 + sigma eps, within 4.5 standard errors."""
    x, n = np.asarray(x), len(x)
    wanted = alpha**2 * COVARIANCE + sigma**2 * np.eye(2)
    variances = np.diag(wanted)
    assert np.all(abs(x.mean(0) - alpha * MEAN) < 4.5 * np.sqrt(variances / n))
    assert np.all(abs(np.cov(x.T) - wanted) < 4.5 * np.sqrt((np.outer(variances, variances) + wanted**2) / n))


@pytest.mark.parametrize("name", ["cosine", "edm", "ve", "clipped"])
def test_its_law_is_exact_for_any_gamma_at_every_time(name):
    process, data, n = ALL_PROCESSES[name](), gaussian(), 4000
    F = dj.exact_flow_map(data, process)
    xT = dj.perturb(process, data.sample(KEY(0), n), jax.random.normal(KEY(1), (n, 2)), 1.0)
    ends = {}
    for gamma in (0, 0.5, 1.0):
        x, saved = dj.sample(KEY(2), process, F, xT, TS, dj.Jump(gamma), save=[1, 2])
        for at, t in ((saved[0], 0.7), (saved[1], 0.3), (x, 0.0)):
            check_law(at, float(process.alpha(t)), float(process.sigma(t)))
        ends[gamma] = x
    np.testing.assert_allclose(ends[0], F.move(xT, 1.0, 0.0), atol=1e-10 * float(process.sigma(1.0)))
    assert float(jnp.mean(jnp.abs(ends[0.5] - ends[0]))) > 0.05


def test_fresh_noise_is_a_share_gamma_of_that_at_s():
    """From two equal states the difference of what is drawn has variance 2 (gamma sigma_s)^2."""
    process, n, s = dj.Cosine(), 4000, 0.4
    point = lambda xt, t, s: jnp.broadcast_to(jnp.array([0.7, -0.2]), xt.shape)  # the data are one point
    xt, x0 = jnp.full((n, 2), 0.5), np.array([0.7, -0.2])
    alpha, sigma = (float(f(s)) for f in (process.alpha, process.sigma))
    alpha_t, sigma_t = (float(f(0.9)) for f in (process.alpha, process.sigma))
    for gamma in (0.3, 1.0):
        x = np.asarray(dj.sample(KEY(0), process, point, xt, np.array([0.9, s]), dj.Jump(gamma)))
        np.testing.assert_allclose(x.std(0), gamma * sigma, rtol=4.5 / np.sqrt(2 * n))
        kept = alpha * x0 + np.sqrt(1 - gamma**2) * sigma * (0.5 - alpha_t * x0) / sigma_t
        np.testing.assert_allclose(x.mean(0), kept, atol=4.5 * gamma * sigma / np.sqrt(n))


@pytest.mark.parametrize("gamma", [0, 0.5])
def test_k_steps_are_k_evaluations(gamma):
    calls, process = [], dj.Cosine()

    def F(xt, t, s):
        jax.debug.callback(lambda: calls.append(1))
        return 0.5 * xt

    stepper = dj.Jump(gamma)
    jax.block_until_ready(dj.sample(KEY(0), process, F, jnp.ones((2, 1)), TS, stepper))
    jax.effects_barrier()
    assert len(calls) == 3 * stepper.evaluations_per_step == 3


def test_a_sample_depends_on_its_index_alone_also_by_sample_n():
    process, data = dj.Cosine(), gaussian()
    F, stepper = dj.exact_flow_map(data, process), dj.Jump(0.5)
    key, xT = KEY(3), jnp.linspace(-1.0, 1.0, 12).reshape(6, 2)
    whole = dj.sample(key, process, F, xT, TS, stepper)
    parts = [
        dj.sample(key, process, F, xT[i], TS, stepper, index=i) for i in (jnp.array([0, 1, 2]), jnp.array([5, 3, 4]))
    ]
    np.testing.assert_allclose(jnp.concatenate(parts), whole[jnp.array([0, 1, 2, 5, 3, 4])], rtol=1e-12)
    prior_key, step_key = jax.random.split(key)
    alone = dj.sample(step_key, process, F, dj.prior(prior_key, process, (5, 2)), TS, stepper)
    many = dj.sample_n(key, process, F, (2,), 5, ts=TS, stepper=stepper, chunk=3)
    np.testing.assert_allclose(many, alone, rtol=1e-12)


def linear_map(knows, cond=None):
    """y = c x + the condition, as an estimate of x0."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        return params * x + (0.0 if cond is None else cond)

    diffusion = dj.Diffusion(dj.Network(lambda *_: None, apply), dj.Cosine(), dj.X0Prediction(clock="angle"))
    return dj.make_flow_map(diffusion, jnp.asarray(0.5), cond, knows=knows)


def test_the_conditions_of_a_map_belong_to_samples():
    F = linear_map("any", cond=jnp.arange(5.0)[:, None])
    xT = dj.prior(jax.random.split(KEY(0))[0], dj.Cosine(), (5, 1))
    many = dj.sample_n(KEY(0), dj.Cosine(), F, (1,), 5, ts=TS, stepper=dj.Jump(), chunk=2)
    np.testing.assert_allclose(many, dj.sample(None, dj.Cosine(), F, xT, TS, dj.Jump()), rtol=1e-12)


def test_under_jit_vmap_and_grad_with_a_traced_gamma():
    process = dj.Cosine()
    F, xT = dj.exact_flow_map(gaussian(), process), jnp.linspace(-1.0, 1.0, 4).reshape(2, 2)
    run = lambda gamma: dj.sample(KEY(0), process, F, xT, TS, dj.Jump(gamma))
    gammas = jnp.array([0.0, 0.5, 1.0])
    many = jax.jit(jax.vmap(run))(gammas)
    for gamma, found in zip((0, 0.5, 1.0), many, strict=True):
        np.testing.assert_allclose(found, run(gamma), atol=1e-7)
    slopes = jax.jit(jax.vmap(jax.grad(lambda gamma: jnp.sum(run(gamma)))))(gammas)
    assert np.all(np.isfinite(slopes))
    h = 1e-5
    np.testing.assert_allclose(slopes[1], (run(0.5 + h).sum() - run(0.5 - h).sum()) / (2 * h), rtol=1e-5)


def test_a_threshold_of_a_flow_map_is_one():
    process, xT = dj.Cosine(), jnp.array([[3.0, -0.1, 0.2], [0.4, -6.0, 0.0]])
    F = dj.exact_flow_map(dj.Gaussian(jnp.zeros(3), 4.0), process)
    half = lambda xt, t: 0.5 * xt
    for make in (dj.guidance.static_threshold, guidance.dynamic_threshold):
        clipped = make(F)
        assert clipped.knows == "any"
        assert float(jnp.max(jnp.abs(clipped(xT, 0.8, 0.3)))) <= 1 + 1e-12 < float(jnp.max(jnp.abs(F(xT, 0.8, 0.3))))
        np.testing.assert_allclose(
            make(F, bound=99.0)(xT, 0.8, 0.3)
            if make is guidance.dynamic_threshold
            else make(F, -99.0, 99.0)(xT, 0.8, 0.3),
            F(xT, 0.8, 0.3),
        )
        x = dj.sample(None, process, clipped, xT, TS, dj.Jump())
        assert float(jnp.max(jnp.abs(x))) <= 1 + 1e-12
        assert make(linear_map("zero")).knows == "zero"
        assert make(half).knows is None
        with pytest.raises(ValueError, match="denoiser: Jump needs a flow map"):
            dj.sample(None, process, make(half), xT, TS, dj.Jump())
        with pytest.raises(ValueError, match="trained on steps to s = 0 alone"):
            dj.sample(None, process, make(linear_map("zero")), xT, TS, dj.Jump())
    np.testing.assert_allclose(dj.guidance.static_threshold(F)(xT, 0.8, 0.3), jnp.clip(F(xT, 0.8, 0.3), -1, 1))


def test_what_jump_cannot_step_is_refused():
    process, xT = dj.Cosine(), jnp.ones((2, 1))
    run = lambda F, ts=TS, gamma=0: dj.sample(KEY(0), process, F, xT, ts, dj.Jump(gamma))
    F, half = linear_map("any"), lambda xt, t: 0.5 * xt
    for other in (half, guidance.extrapolate(F, half, 2.0), dj.make_denoiser(F.diffusion, F.params)):
        for call in (run, lambda F: dj.sample_n(KEY(0), process, F, (1,), 2, ts=TS, stepper=dj.Jump())):
            with pytest.raises(
                ValueError, match=r"denoiser: Jump needs a flow map F\(xt, t, s\), such as make_flow_map"
            ):
                call(other)
    zero, grid = linear_map("zero"), linear_map((1.0, 0.7, 0.3, 0.0))
    one_step = TS[[0, -1]]
    for right in ((zero, one_step), (zero, TS, 1.0), (grid,), (F, TS, 0.5)):
        assert np.all(np.isfinite(run(*right)))
    for wrong in ((zero,), (zero, TS, 0.5), (grid, one_step), (grid, TS, 1.0), (grid, np.array([1.0, 0.7, 0.31, 0.0]))):
        with pytest.raises(ValueError, match="flow map: it was trained on"):
            run(*wrong)
    with pytest.raises(ValueError, match=r"gamma: a map that knows s = 0 alone takes .* gamma = 1 only, got 0 and 3"):
        jax.jit(lambda ts: run(zero, ts))(TS)
    for gamma in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"gamma: must lie in \[0, 1\]"):
            dj.Jump(gamma)
    with pytest.raises(ValueError, match=r"key: one key is needed, .* for Jump draws noise"):
        dj.sample(None, process, F, xT, TS, dj.Jump(0.5))
    answers = lambda xt, t, s: xt[:1]
    with pytest.raises(ValueError, match="flow map: must answer shape"):
        run(answers)


@pytest.mark.parametrize("knows", ["zero", (1.0, 0.5, 0.0)])
def test_a_map_that_never_saw_s_equal_to_t_is_no_denoiser(knows):
    F, process, x, ts = linear_map(knows, jnp.ones((2, 1))), dj.Cosine(), jnp.ones((2, 1)), np.array([0.9, 0.5])
    guided = guidance.extrapolate(F, lambda xt, t: 0.5 * xt, 2.0)
    for call in (
        lambda: dj.sample(None, process, F, x, ts, dj.DDIM()),
        lambda: dj.sample(None, process, guided, x, ts, dj.DDIM()),
        lambda: dj.sample(None, process, dj.parameterisation.retime(F, process, dj.Rectified()), x, ts, dj.DDIM()),
        lambda: dj.log_likelihood(KEY(0), process, F, x),
        lambda: samplers.velocity(process, F, x, 0.5),
        lambda: F(x, 0.5),
    ):
        with pytest.raises(ValueError, match=r"flow map: it was trained on .*, and is no denoiser"):
            call()


def test_methods_around_it_check_the_map_too_or_refuse_it():
    F, half, process, x = linear_map("any"), lambda xt, t: 0.5 * xt, dj.Cosine(), jnp.ones((2, 1))
    needs = r"denoiser: Jump needs a flow map"
    around = dj.samplers.PredictorCorrector(dj.Jump())
    mask = jnp.array([True])
    filled = inverse.inpaint(KEY(0), process, F, x, TS, mask, x, stepper=dj.Jump())
    np.testing.assert_allclose(filled, x)
    restart = samplers.Restart(0.3, 0.7, 2, 1)
    restarted = lambda F, **choices: dj.samplers.sample_with_restarts(
        KEY(0), process, F, x, TS, dj.Jump(), restarts=[restart], **choices
    )
    np.testing.assert_allclose(restarted(F), restarted(F, final_denoise=False))
    for call in (
        lambda: dj.sample(KEY(0), process, half, x, TS, around),
        lambda: inverse.inpaint(KEY(0), process, half, x, TS, mask, x, stepper=dj.Jump()),
        lambda: restarted(half),
    ):
        with pytest.raises(ValueError, match=needs):
            call()
    with pytest.raises(ValueError, match="flow map: it was trained on"):  # a restart's own grid is not the map's
        dj.samplers.sample_with_restarts(KEY(0), process, linear_map(TS), x, TS, dj.Jump(), restarts=[restart])
    up = lambda ts: likelihood.invert(process, F, x, ts, dj.Jump())
    for invert in (up, jax.jit(up)):  # a traced grid, too
        with pytest.raises(ValueError, match="stepper: Jump steps a flow map, which goes down the grid alone"):
            invert(TS[:-1])
    with pytest.raises(ValueError, match="stepper: Jump steps a flow map, and solves no equation: use `sample`"):
        samplers.as_diffrax_solver(dj.Jump())


def test_the_last_step_is_the_sample():
    process, x = dj.EDM(), jnp.ones((2, 2))
    F = dj.exact_flow_map(gaussian(), process)
    run = lambda **choices: dj.sample(None, process, F, x, TS, dj.Jump(), **choices)
    np.testing.assert_array_equal(run(), run(final_denoise=False))
    np.testing.assert_allclose(run(final_denoise=True), F(run(), 0.0), rtol=1e-12)


def test_what_wraps_it_ends_with_its_last_step_too():
    """Nothing asks for a denoiser at t = 0, where this map has none."""
    F, process, x = linear_map("any"), dj.Cosine(), jnp.ones((2, 2))
    assert np.all(np.isnan(F(x, 0.0)))
    mask = jnp.array([True, False])
    corrected, saved = dj.sample(KEY(0), process, F, x, TS, dj.samplers.PredictorCorrector(dj.Jump()), save=[-2])
    np.testing.assert_allclose(corrected, F.move(saved[0], TS[-2], 0.0), rtol=1e-12)  # no noise, no correction
    many = dj.sample_n(KEY(0), process, F, (2,), 2, ts=TS, stepper=samplers.LangevinCorrected(dj.Jump()))
    filled = inverse.inpaint(KEY(0), process, F, x, TS, mask, x, stepper=dj.Jump())
    for found in (many, filled):
        assert np.all(np.isfinite(found))
    zero = linear_map("zero")
    last = inverse.inpaint(KEY(0), process, zero, x, TS, mask, x, stepper=dj.Jump(1.0))
    assert np.all(np.isfinite(last))
    with pytest.raises(ValueError, match="steps to s = 0 alone, and is no denoiser"):  # as a correction asks
        dj.sample(KEY(0), process, zero, x, TS, dj.samplers.PredictorCorrector(dj.Jump(1.0)))
    assert dj.samplers.PredictorCorrector(dj.DDIM()).final_denoise
    assert inverse.RePaint(mask, x).final_denoise
