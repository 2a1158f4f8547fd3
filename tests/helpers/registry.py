"""All members of each kind, by name, each as a function that makes one; every property is tested over every member.

Adding a method adds one row here. Members are made inside a test, so that they have the test's precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import diffjax as dj
from diffjax import losses, process, samplers

CORE_PROCESSES = {
    "vp": dj.VariancePreserving,
    "vp-constant": lambda: dj.VariancePreserving(2.0, 2.0),
    "cosine": dj.Cosine,
    "cosine-shifted": lambda: dj.Cosine(shift=-1.5),
    "ve": dj.VarianceExploding,
    "edm": dj.EDM,
    "rectified": dj.Rectified,
}

ALL_PROCESSES = {
    **CORE_PROCESSES,
    "sub-vp": process.SubVP,
    "ve-from-zero": process.VarianceExplodingFromZero,
    "ou": process.OrnsteinUhlenbeck,
    "polynomial": process.Polynomial,
    "offset-cosine": process.OffsetCosine,
    "own": lambda: process.Schedule(Partial(_falling, jnp.asarray(1.0)), _rising),
    "learned-linear": process.LearnedLogsnr,
    "learned-monotone": lambda: process.MonotoneLogsnr(jax.random.key(0), width=8),
    # 47 steps: the times that tests look at lie between its knots, where its rate jumps.
    "ddpm": lambda: process.DiscreteChain(process.linear_betas(47, 0.002, 0.4)),
    "ddpm-zero-snr": lambda: process.DiscreteChain(process.zero_terminal_snr(process.linear_betas(47, 0.002, 0.4))),
    "shifted": lambda: process.Shifted(dj.Rectified(), -2 * np.log(3)),
    "clipped": lambda: process.Clipped(dj.Cosine(), 8.0, -6.0),
    "retimed": lambda: process.Retimed(dj.Rectified(), dj.VariancePreserving()),
}


KINDS = ("vp", "rectified", "own", "ddpm")
"""Processes that share the least: what every property is tested on at once, the others among the slow tests."""


def _falling(bend, t):
    return (1 - t) * (1 + bend * t)


def _rising(t):
    return 1.0 * t


def each_process(quick=CORE_PROCESSES):
    """The names of all processes: those not in `quick`, each a relative of one that is, are left to `-m slow`."""
    relative = [pytest.mark.slow, pytest.mark.relative]
    return [pytest.param(name, marks=[] if name in quick else relative, id=name) for name in ALL_PROCESSES]


ALL_PARAMETERISATIONS = {
    "eps": dj.EpsPrediction,
    "x0": dj.X0Prediction,
    "score": dj.parameterisation.ScorePrediction,
    "v": dj.VPrediction,
    "velocity": dj.VelocityPrediction,
    "edm": dj.parameterisation.EDMPrediction,
}

ALL_WEIGHTINGS = {
    "constant": lambda: losses.constant,
    "native": lambda: losses.native,
    "edm": losses.EDMWeighting,
    "min-snr": losses.MinSNR,
    "likelihood": lambda: losses.likelihood_weighting,
    "on-x0": lambda: losses.on_x0,
    "on-score": lambda: losses.on_score,
    "on-v": lambda: losses.on_v,
    "flow-matching": lambda: losses.flow_matching,
    "soft-min-snr": losses.SoftMinSNR,
    "sigmoid": lambda: losses.Sigmoid(-1.0),
    "p2": lambda: losses.P2(1.0, 0.5),
    "sigmoid-over-logsnr": lambda: losses.OverLogsnr(losses.Sigmoid(2.0)),
}

ALL_TIMES = {
    "uniform": dj.UniformTimes,
    "stratified": dj.StratifiedTimes,
    "lognormal": dj.process.LognormalTimes,
    "logit-normal": dj.process.LogitNormalTimes,
    "low-discrepancy": process.LowDiscrepancyTimes,
    "mode": process.ModeTimes,
    "uniform-in-logsnr": process.LogsnrTimes,
    "importance": lambda of: process.ImportanceTimes(process.LogsnrTimes(of)),
}

ALL_GRIDS = {
    "uniform": dj.uniform_grid,
    "quadratic": process.quadratic_grid,
    "logsnr": dj.logsnr_grid,
    "edm": dj.edm_grid,
    "snr": process.snr_grid,
    "shifted": process.shifted_grid,
    "angle": process.angle_grid,
    "line": process.line_grid,
}

ALL_STEPPERS = {
    "ddim": dj.DDIM,
    "ddim-ancestral": lambda: dj.DDIM(eta=1.0),
    "euler-ancestral": samplers.EulerAncestral,
    "heun": dj.Heun,
    "euler": samplers.Euler,
    "dpm-solver-1": lambda: samplers.DPMSolver(1),
    "dpm-solver-2": lambda: samplers.DPMSolver(2),
    "dpm-solver-3": lambda: samplers.DPMSolver(3),
    "dpmpp-2s": samplers.DPMpp2S,
    "churn": lambda: samplers.Churn(10.0, 0.01, 50.0),
    "dpmpp-2m": dj.DPMpp2M,
    "ddpm": lambda: dj.DDPM(1.0),
    "dpm-2-ancestral": samplers.DPM2Ancestral,
    "dpmpp-2s-ancestral": samplers.DPMpp2SAncestral,
    "dpmpp-sde": samplers.DPMppSDE,
    "sde-dpmpp-2m": samplers.SDEDPMpp2M,
    "sde-dpmpp-3m": samplers.SDEDPMpp3M,
    "seeds-2": samplers.SEEDS2,
    "seeds-3": samplers.SEEDS3,
    "predictor-corrector": lambda: samplers.PredictorCorrector(dj.DDIM(eta=1.0)),
    "dpmpp-3m": samplers.DPMpp3M,
    "dpmpp-3m-published": samplers.DPMpp3MPublished,
    "unipc-2": lambda: dj.UniPC(2, samplers.bh1),
    "unipc-3": dj.UniPC,
    "deis-3": lambda: samplers.DEIS(3),
    "lms-3": lambda: samplers.LMS(3),
    "ipndm-4": samplers.IPNDM,
    "adams-v-3": lambda: samplers.ExponentialAdams(dj.VPrediction(), 3),
    "adams-f-4-corrected": lambda: samplers.ExponentialAdams(dj.parameterisation.EDMPrediction(0.8), 4, corrector=True),
    "sa-solver": lambda: samplers.ExponentialAdams(dj.X0Prediction(), 3, corrector=True, eta=1.0),
}

QUICK_STEPPERS = ("ddim", "heun", "adams-f-4-corrected", "sa-solver")
"""One stepper of each kind of step: what every property is tested on at once, the others among the slow tests."""


def each_stepper(quick=QUICK_STEPPERS, *, stochastic=None):
    """The names of all steppers, or of the (not) stochastic ones; those not in `quick` are left to `-m slow`."""
    names = [name for name, make in ALL_STEPPERS.items() if stochastic in (None, make().stochastic)]
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow, id=name) for name in names]


def gaussian() -> dj.Gaussian:
    """Two correlated features."""
    return dj.Gaussian(jnp.array([0.3, -0.5]), jnp.array([[0.5, 0.2], [0.2, 0.3]]))


def mixture() -> dj.GaussianMixture:
    """Three unequal components in the plane, of full covariance."""
    covariances = jnp.array([[[0.05, 0.02], [0.02, 0.08]], [[0.1, 0.0], [0.0, 0.03]], [[0.04, -0.01], [-0.01, 0.04]]])
    return dj.GaussianMixture(
        jnp.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), covariances, jnp.array([0.5, 0.3, 0.2])
    )


def images() -> dj.Gaussian:
    """Images of 2 x 2 x 1 with variances of their own."""
    return dj.Gaussian(jnp.full((2, 2, 1), 0.1), jnp.array([[[0.2], [0.4]], [[0.6], [0.8]]]))
