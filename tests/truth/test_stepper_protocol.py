"""A method of one's own in a few lines, and what `sample` does around it: keys, the bar, the last denoise."""

import ast
import inspect
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, ALL_STEPPERS, each_process

import diffjax as dj
from diffjax import samplers
from diffjax.process import ddim_coefficients, normal_like
from diffjax.samplers import AbstractStepper, Coefficients, step_weights

KEY = jax.random.key


class Consistency(AbstractStepper):
    """The consistency sampler: denoise to 0, noise again to s. Source: Song et al. 2023, algorithm 1."""

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def prepare(self, grid):
        return Coefficients(0 * grid.sigma[1:], grid.alpha[1:], grid.sigma[1:])

    def step(self, denoiser, x, at, state):
        return at.weights.c_x0 * denoiser(x, at.t) + at.weights.c_z * normal_like(at.keys, x), state


def test_a_method_costs_few_lines_beside_its_mathematics():
    tree = ast.parse(inspect.getsource(Consistency)).body[0]
    bodies = {
        line for f in tree.body if isinstance(f, ast.FunctionDef) for line in range(f.lineno + 1, f.end_lineno + 1)
    }
    text = inspect.getsource(Consistency).splitlines()
    outside = [line for n, line in enumerate(text, 1) if line.strip() and n not in bodies and '"""' not in line]
    assert len(outside) < 15, outside


def test_the_consistency_sampler_has_the_law_of_the_last_level():
    """Of a point of data, whose denoiser is its consistency function: N(alpha_s x0, sigma_s^2), wherever it began."""
    process, x0 = dj.Cosine(), jnp.array([0.7, -0.2])
    xt = jnp.full((4000, 2), 3.0)
    ts = np.array([0.9, 0.5, 0.2])
    x = dj.sample(
        KEY(0), process, lambda x, t: jnp.broadcast_to(x0, x.shape), xt, ts, Consistency(), final_denoise=False
    )
    alpha, sigma = float(process.alpha(0.2)), float(process.sigma(0.2))
    np.testing.assert_allclose(x.mean(0), alpha * x0, atol=4.5 * sigma / 4000**0.5)
    np.testing.assert_allclose(x.std(0), sigma, rtol=4.5 / 8000**0.5)


def test_what_a_method_gets_wrong_is_named():
    """Weights that have not a row for each step."""

    class Wrong(Consistency):
        weight: float = 1.0

        def prepare(self, grid):
            return grid.alpha if self.weight else Coefficients(grid.alpha[1:], 2.0)

    process, ts, xt = dj.Cosine(), np.linspace(0.9, 0.1, 4), jnp.ones((2, 1))
    run = lambda stepper: dj.sample(KEY(0), process, lambda x, t: x, xt, ts, stepper)
    for stepper, said in (
        (Wrong(), r"stepper: Wrong.prepare must give arrays \[3, ...\], got shape \(4,\)"),
        (Wrong(0.0), r"stepper: Wrong.prepare must give arrays \[3, ...\], got shape \(\)"),
    ):
        with pytest.raises(ValueError, match=said):
            run(stepper)


def test_a_key_is_needed_where_noise_is_drawn_alone():
    process, ts, xt = dj.Cosine(), np.linspace(0.9, 0.1, 4), jnp.ones((2, 1))
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), 0.5), process)
    run = lambda key, stepper: dj.sample(key, process, denoiser, xt, ts, stepper)
    np.testing.assert_array_equal(run(None, dj.DPMpp2M()), run(KEY(3), dj.DPMpp2M()))
    for stepper in (dj.DDPM(), dj.DDIM(eta=0.5), dj.samplers.PredictorCorrector(dj.DDIM())):
        name = type(stepper).__name__
        with pytest.raises(ValueError, match=rf"key: one key is needed, .* for {name} draws noise, got None"):
            run(None, stepper)


def test_the_bar_runs_to_its_end_and_costs_nothing_when_off(capfd):
    process, ts, xt = dj.Cosine(), np.linspace(0.9, 0.1, 251), jnp.ones((2, 1))
    half = lambda x, t: 0.5 * x
    run = lambda progress: dj.sample(None, process, half, xt, ts, dj.DDIM(), progress=progress)
    plain = run(False)
    assert not capfd.readouterr().err
    shown = run(True)
    jax.effects_barrier()
    assert "100.00%" in capfd.readouterr().err
    np.testing.assert_array_equal(plain, shown)
    assert "callback" not in str(jax.make_jaxpr(lambda: run(False))())
    assert "callback" in str(jax.make_jaxpr(lambda: run(True))())


@pytest.mark.parametrize("name", each_process(("vp", "edm")))
def test_ddims_coefficients_carry_data_and_a_share_of_the_noise(name):
    """alpha_t x0 + sigma_t eps becomes alpha_s x0 + share sigma_s eps where x0_hat = x0; at s = t nothing moves."""
    process = ALL_PROCESSES[name]()
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (
        [f(jnp.asarray(t)) for t in (0.8, 0.3)] for f in (process.alpha, process.sigma)
    )
    for share in (1.0, 0.6, 0.0):
        c_x, c_x0 = ddim_coefficients(alpha_t, sigma_t, alpha_s, sigma_s, share)
        np.testing.assert_allclose(c_x * alpha_t + c_x0, alpha_s, rtol=1e-12)
        np.testing.assert_allclose(c_x * sigma_t, share * sigma_s, rtol=1e-12)
    np.testing.assert_allclose(ddim_coefficients(alpha_t, sigma_t, alpha_t, sigma_t), (1.0, 0.0), atol=1e-12)


def test_every_method_is_in_the_registry_that_the_properties_walk():
    """`CFGpp` needs a pair of denoisers, `LangevinCorrected` a predictor, and `Jump` a flow map: tests of their own
    have them."""
    public = {
        thing
        for face in (dj, samplers)
        for thing in vars(face).values()
        if isinstance(thing, type) and issubclass(thing, AbstractStepper)
    }
    apart = {samplers.CFGpp, samplers.LangevinCorrected, dj.Jump}
    final = {thing for thing in public if not inspect.isabstract(thing)} - apart
    assert final == {type(make()) for make in ALL_STEPPERS.values()}


def test_euler_ancestral_is_ddim_with_noise():
    process, ts = dj.Cosine(), np.linspace(1, 0, 5)
    for eta in (0.3, 1.0):
        found, wanted = (step_weights(stepper, process, ts) for stepper in (samplers.EulerAncestral(eta), dj.DDIM(eta)))
        np.testing.assert_array_equal(found, wanted)
    assert samplers.EulerAncestral().eta == 1
    with pytest.raises(ValueError, match=r"eta: must lie in \[0, 1\], got 1.5"):
        samplers.EulerAncestral(1.5)
