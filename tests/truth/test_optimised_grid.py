"""Grids fitted by gradients through the sampler, judged on noise that they were not fitted to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import mixture
from walk import walk

import diffjax as dj
from diffjax.samplers import DPMpp2S, DPMSolver, optimise_grid

KEY = jax.random.key


def rms(process, denoiser, xt, truth, ts, stepper):
    return float(jnp.sqrt(jnp.mean((walk(KEY(0), process, denoiser, xt, ts, stepper) - truth) ** 2)))


def judged(process, stepper, n, **settings):
    """The fitted grid, and RMS errors on fresh noise of the logsnr grid and of the fitted one."""
    denoiser = dj.exact_denoiser(mixture(), process)
    ts = dj.logsnr_grid(process, n)
    fitted = optimise_grid(KEY(3), process, denoiser, (64, 2), stepper, ts, **settings)
    assert fitted.shape == (n + 1,)
    assert np.all(np.diff(fitted) < 0)
    np.testing.assert_array_equal(fitted[jnp.array([0, -1])], ts[jnp.array([0, -1])])
    xt = dj.prior(KEY(7), process, (256, 2))
    truth = walk(KEY(0), process, denoiser, xt, dj.logsnr_grid(process, 300), DPMSolver(3))
    return fitted, [rms(process, denoiser, xt, truth, grid, stepper) for grid in (ts, fitted)]


@pytest.mark.slow
def test_a_few_steps_lower_the_error():
    """Of Adam's, from a poor grid; for Gaussian data, whose flow is known in closed form."""
    process, data, ddim = dj.EDM(), dj.Gaussian(jnp.zeros(1), 0.25), dj.DDIM()
    denoiser = lambda x, t: 0.25 / (0.25 + process.sigma(t) ** 2) * x
    settings = {"reference_steps": 40, "steps": 100, "learning_rate": 0.1}
    ts = dj.edm_grid(process, 4, rho=2.0)
    fitted = optimise_grid(KEY(3), process, denoiser, (16, 1), ddim, ts, **settings)
    xt = dj.prior(KEY(7), process, (16, 1))
    truth = dj.exact_flow_map(data, process).move(xt, ts[0], ts[-1])
    before, equal, after = (
        rms(process, denoiser, xt, truth, grid, ddim) for grid in (ts, dj.logsnr_grid(process, 4), fitted)
    )
    print("rms", before, equal, after)
    assert after < 0.9 * equal < before


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stepper", "n"), [("vp", dj.DPMpp2M, 8), ("edm", DPMpp2S, 5)])
def test_a_fitted_grid_is_far_better(name, stepper, n):
    """RMS on a mixture at 8 evaluations (10 for 2S) against the logsnr grid, on fresh noise: 0.45 and 0.58 of it."""
    process = {"vp": dj.VariancePreserving, "edm": dj.EDM}[name]()
    _, (before, after) = judged(process, stepper(), n)
    print(name, "rms", before, after)
    assert after < 0.7 * before


def test_a_traced_process_gives_the_same_grid():
    """To rounding: the fine grid of the reference is computed in the state's dtype, not on the host."""
    fit = lambda beta: optimise_grid(
        KEY(0),
        dj.VariancePreserving(beta, 20.0),
        lambda x, t: 0.5 * jnp.tanh(x),
        (8, 2),
        dj.DDIM(),
        np.array([0.9, 0.7, 0.5, 0.1]),
        steps=10,
        reference_steps=12,
    )
    found = fit(0.1)
    assert abs(found[1] - 0.7) > 1e-3
    np.testing.assert_allclose(jax.jit(fit)(0.1), found, rtol=1e-6)


def test_bad_arguments():
    process = dj.VariancePreserving()
    ddim, known = dj.DDIM(), np.array([0.9, 0.5, 0.1])
    run = lambda stepper=ddim, ts=known, **k: optimise_grid(KEY(0), process, jnp.tanh, (4, 2), stepper, ts, **k)
    with pytest.raises(ValueError, match="stepper: only a deterministic one"):
        run(dj.DDIM(eta=1.0))
    with pytest.raises(ValueError, match=r"ts: logsnr is infinite at t = 0; start and end inside process.interval"):
        run(ts=np.array([0.9, 0.5, 0.0]))
    with pytest.raises(ValueError, match="ts: must descend"):
        run(ts=np.array([0.1, 0.9]))
    for name in ("steps", "reference_steps"):
        with pytest.raises(ValueError, match=f"{name}: must be a positive integer, got 0"):
            run(**{name: 0})
