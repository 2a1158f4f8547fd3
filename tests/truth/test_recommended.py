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


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW) for name in ("vp", "karras", "rectified", "ve")])
def test_every_budget_has_a_method_and_a_grid(name):
    process = ALL_PROCESSES[name]()
    for features, smooth in ((2, True), (64, True), (3072, False)):
        for nfe in (1, 2, 5, 6, 7, 10, 15, 60):
            stepper, ts = dj.recommended(process, nfe, features=features, smooth=smooth)
            assert ts.shape == (nfe + 1,)
            assert np.all(np.diff(ts) < 0)
            assert stepper.evaluations_per_step == 1
            assert not stepper.stochastic
            if nfe in (1, 5):
                assert all(np.all(np.isfinite(w)) for w in jax.tree.leaves(stepper.prepare(process, np.asarray(ts))))


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
    process = dj.Karras()
    denoiser = make(process)
    xt = dj.prior(KEY(5), process, (200, features))
    best = samplers.ExponentialAdams(dj.KarrasPrediction(data_std), 5, corrector=True)
    truth = walk(None, process, denoiser, xt, dj.logsnr_grid(process, 500), best)

    def error(stepper, ts):
        each = jnp.sqrt(jnp.mean((walk(None, process, denoiser, xt, ts, stepper) - truth) ** 2, axis=1))
        return float(jnp.sqrt(jnp.mean(each**2)) if features == 2 else jnp.median(each))

    for nfe, better in ((5, 1.0), (8, 1.0), (10, 1.0), (20, 1.5), (40, 4.0), (80, 4.0)):
        ours = error(*dj.recommended(process, nfe, data_std=data_std, features=features, smooth=True))
        grids = dj.karras_grid(process, nfe, 5.0), snr_grid(process, nfe, data_std)
        theirs = min(error(stepper, ts) for stepper in (samplers.IPNDM(3), samplers.UniPC(3)) for ts in grids)
        print(f"{features} features, {nfe}: {ours:.2e}, {theirs / ours:.2f} times better")
        assert ours * better < theirs


def test_bad_arguments():
    for bad, message in (
        ({"nfe": 0}, "nfe: a positive integer is needed, got 0"),
        ({"nfe": 5, "features": 0}, "features: a positive integer is needed, got 0"),
        ({"nfe": 5, "data_std": 0.0}, "data_std: must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            dj.recommended(dj.Cosine(), **bad)
