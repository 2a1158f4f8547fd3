"""The recommended method and grid: valid for any process and budget, and better than what is usual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES
from walk import walk

import diffjax as dj
from diffjax import samplers
from diffjax.process import snr_grid

KEY = jax.random.key
SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW) for name in ("vp", "edm", "rectified", "ve")])
def test_every_budget_has_a_method_and_a_grid(name):
    process = ALL_PROCESSES[name]()
    for features, smooth in ((2, True), (64, True), (3072, False)):
        for nfe in (1, 2, 5, 6, 7, 10, 15, 60):
            stepper, ts = dj.samplers.recommended(process, nfe, features=features, smooth=smooth)
            assert ts.shape == (nfe + 1,)
            assert np.all(np.diff(ts) < 0)
            assert stepper.evaluations_per_step == 1
            assert not stepper.stochastic
            if nfe in (1, 5):
                assert all(
                    np.all(np.isfinite(w))
                    for w in jax.tree.leaves(samplers.step_weights(stepper, process, np.asarray(ts)))
                )


STD = 0.7
IMAGE, FLAT = STD * 3072**0.5, STD * 64**0.43 / np.e
X0, ADAMS = dj.X0Prediction, samplers.ExponentialAdams
# (evaluations, features, smooth) -> the method, and (level, width) of a grid that is finest at sigma/alpha = level, its
# steps equal in arcsinh(log(sigma/alpha/level)/width); or rho, where they are equal in (sigma/alpha)^(1/rho).
BUDGETS = {
    (6, 3072, False): (lambda: dj.UniPC(2), 7.0),
    (7, 3072, False): (lambda: dj.UniPC(2), (IMAGE / 4.5, 0.6)),
    (14, 3072, False): (lambda: dj.UniPC(2), (IMAGE / 4.5, 0.6)),
    (15, 3072, False): (lambda: ADAMS(X0(), 5, corrector=True), (IMAGE / 8, 0.6)),
    (30, 3072, False): (lambda: ADAMS(X0(), 6, corrector=True), (IMAGE / 8, 0.6)),
    (6, 2, True): (
        lambda: ADAMS(dj.parameterisation.EDMPrediction(1.3 * STD), 3, corrector=True),
        (STD * 2**0.43 / np.e, 1.25),
    ),
    (6, 64, True): (
        lambda: ADAMS(
            dj.parameterisation.EDMPrediction(4.7 * STD),
            5,
            corrector=True,
            clock=dj.samplers.by_noise,
            orders=(1, 2, 3, 4, 4, 1),
        ),
        (0.83 * FLAT, 1.13),
    ),
    (8, 64, True): (lambda: samplers.IPNDM(3), (FLAT, 0.9)),
    (9, 64, True): (lambda: samplers.IPNDM(3), (FLAT, 0.4)),
    (14, 64, True): (lambda: samplers.IPNDM(3), (FLAT, 0.4)),
    (15, 64, True): (lambda: ADAMS(dj.parameterisation.EDMPrediction(STD), 5, corrector=True), (FLAT, 0.7)),
    (30, 64, True): (lambda: ADAMS(dj.parameterisation.EDMPrediction(STD), 6, corrector=True), (FLAT, 0.7)),
    (60, 64, True): (lambda: ADAMS(dj.parameterisation.EDMPrediction(STD), 7, corrector=True), (FLAT, 0.7)),
}


@pytest.mark.slow
def test_each_budget_has_the_method_and_the_grid_that_the_search_found():
    """What scripts/bench_solvers.py measured: borders of the budgets, methods, and grids by NumPy."""
    process, steppers = dj.Rectified(), []

    @jax.jit
    def grids():
        each = [
            dj.samplers.recommended(process, nfe, data_std=STD, features=features, smooth=smooth)
            for nfe, features, smooth in BUDGETS
        ]
        steppers.extend(stepper for stepper, _ in each)
        return [ts for _, ts in each]

    low, high = process.interval()
    for (budget, (make, finest)), ts, stepper in zip(BUDGETS.items(), map(np.asarray, grids()), steppers, strict=True):
        ratio = ts / (1 - ts)
        if isinstance(finest, tuple):
            place = np.arcsinh(np.log(ratio / finest[0]) / finest[1])
        else:
            place = ratio ** (1 / finest)
        np.testing.assert_allclose(place, np.linspace(place[0], place[-1], budget[0] + 1), atol=1e-9)
        assert (ts[0], ts[-1]) == (float(high), float(low))
        assert stepper == make(), budget


def ring(process):
    angle = 2 * np.pi * np.arange(8) / 8
    data = dj.GaussianMixture(jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1)), 0.01)
    return dj.exact_denoiser(data, process)


def cloud(process):
    means = 0.5 * np.random.default_rng(0).normal(size=(16, 64))
    return dj.exact_denoiser(dj.GaussianMixture(jnp.asarray(means), 0.04), process)


@SLOW
@pytest.mark.parametrize(("make", "features", "data_std"), [(ring, 2, 0.71), (cloud, 64, 0.53)])
def test_it_beats_the_usual_ones(make, features, data_std):
    """Against iPNDM and UniPC on two grids each, the best published ones there, on noise that nothing was fitted to."""
    process = dj.EDM()
    denoiser = make(process)
    xt = dj.prior(KEY(5), process, (200, features))
    best = samplers.ExponentialAdams(dj.parameterisation.EDMPrediction(data_std), 5, corrector=True)
    truth = walk(None, process, denoiser, xt, dj.logsnr_grid(process, 500), best)

    def error(stepper, ts):
        each = jnp.sqrt(jnp.mean((walk(None, process, denoiser, xt, ts, stepper) - truth) ** 2, axis=1))
        return float(jnp.sqrt(jnp.mean(each**2)) if features == 2 else jnp.median(each))

    for nfe, better in ((5, 1.0), (8, 1.0), (10, 1.0), (20, 1.5), (40, 4.0), (80, 4.0)):
        ours = error(*dj.samplers.recommended(process, nfe, data_std=data_std, features=features, smooth=True))
        grids = dj.edm_grid(process, nfe, 5.0), snr_grid(process, nfe, data_std)
        theirs = min(error(stepper, ts) for stepper in (samplers.IPNDM(3), dj.UniPC(3)) for ts in grids)
        print(f"{features} features, {nfe}: {ours:.2e}, {theirs / ours:.2f} times better")
        assert ours * better < theirs


def test_bad_arguments():
    for bad, message in (
        ({"nfe": 0}, "nfe: a positive integer is needed, got 0"),
        ({"nfe": 5, "features": 0}, "features: a positive integer is needed, got 0"),
        ({"nfe": 5, "data_std": 0.0}, "data_std: must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            dj.samplers.recommended(dj.Cosine(), **bad)
