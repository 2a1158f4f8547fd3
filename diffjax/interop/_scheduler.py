"""A scheduler_config.json of diffusers as what `sample` needs: process, parameterisation, grid, method, thresholds.

    betas --> DiscreteChain        step n of the file, 0 .. K - 1, is the time (n + 1)/K, and what the network is told
    sigmas --> Karras, VarianceExploding                                   EDM, score SDEs
    line --> Rectified, its steps moved by `shift`                         flow matching

The file's steps n_1 > ... > n_m are the grid. Its last update, to no noise at all, is `sample`'s last denoise; where
the file ends at its first noise level instead, the grid does, and `denoise` is False. Each update goes to the next step
of the grid. diffusers' DDIM and PNDM go K // m steps instead: with `leading` that is the grid's next; with `trailing`
it is where m divides K; with `linspace`, whose steps are (K - 1)/(m - 1) apart, it never is. Where diffusers lowers the
order of a method in the last steps, so does ours (`_lowered.py`). `read_scheduler` states what remains different.
Source: Ho et al. 2020; Lin et al. 2023, table 2 (spacings); Karras et al. 2022, eq. 5; Esser et al. 2024.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffjax._arrays import on_host
from diffjax.guidance import dynamic_threshold, static_threshold
from diffjax.interop._clipped import clipped_and_scaled
from diffjax.interop._clock import OnSigma, OnSteps
from diffjax.interop._config import naming, read_fields
from diffjax.interop._lowered import LoweredAtTheEnd
from diffjax.parameterisation import (
    AbstractParameterisation,
    EpsPrediction,
    KarrasPrediction,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)
from diffjax.process import (
    AbstractGaussianProcess,
    DiscreteChain,
    Karras,
    Rectified,
    VarianceExploding,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    time_from_logsnr,
    zero_terminal_snr,
)
from diffjax.samplers import (
    DDIM,
    DDPM,
    IPNDM,
    AbstractStepper,
    DPMpp2M,
    DPMpp3MPublished,
    ExponentialAdams,
    SDEDPMpp2M,
    UniPC,
    bh1,
    bh2,
    euler_ancestral,
)

FEW = 15
"""Below so many steps DPM-Solver++ lowers the order of the last ones, where `lower_order_final` is on."""
CLOSE = 2.0**-20
"""Relative difference of two times that are one for the solution, but still two in float32."""


class Sampling(NamedTuple):
    """What a scheduler's configuration says.

    Attributes:
      process: the forward process.
      parameterisation: what the network predicts, and what it is told of the noise: the file's own clock.
      ts: the grid, descending, shape [m] or [m + 1] for m evaluations.
      stepper: the scheduler's method, or the nearest to it.
      denoise: for `sample`: whether the last evaluation gives x0.
      denoiser_transforms: thresholds `(denoiser) -> denoiser`, to be applied in order.
      without_effect: the file's keys, in its order, that change nothing in the above; see `read_scheduler`.
    """

    process: AbstractGaussianProcess
    parameterisation: AbstractParameterisation
    ts: Float[np.ndarray, " points"]
    stepper: AbstractStepper
    denoise: bool
    denoiser_transforms: tuple[Callable[[Any], Any], ...]
    without_effect: tuple[str, ...] = ()


def read_scheduler(config: Mapping[str, Any], steps: int = 50, *, where: str = "scheduler_config.json") -> Sampling:
    """The process, parameterisation, grid of shape [steps] or [steps + 1], method and thresholds of a configuration.

    DDIM, DDPM, PNDM, Euler (ancestral too), DPM-Solver++ (multistep), UniPC, EDM, flow matching's Euler and score SDE
    schedulers. Every key of the file is honoured, refused, or without effect and then listed in `without_effect`: a key
    of another scheduler, which diffusers does not read here either, and

        PNDM             `skip_prk_steps`: `IPNDM(4)` starts with fewer points, neither way of diffusers
        DPM-Solver++     `variance_type`: of what a network predicts the mean is kept in any case
        UniPC too        `flow_shift`, `time_shift_type`: of `use_flow_sigmas`, which is refused
        EDM              `num_train_timesteps`: its grid is from sigma_min to sigma_max; `lower_order_final`: its last
                         step is to no noise, or has no length
        flow matching    `base_shift`, `max_shift`, `base_image_seq_len`, `max_image_seq_len`, `time_shift_type`: of
                         `use_dynamic_shifting`, which is refused
        score SDE        `num_train_timesteps`; `correct_steps`, `snr`: the predictor alone is read, and
                         `PredictorCorrector` has the corrector

    Where ten steps of ours end elsewhere than diffusers' own, and how far (RMS in units of the data's standard
    deviation, exact denoiser of Gaussian data, a chain of 1000 steps; samples agree to 1e-4 otherwise):

        DDIM, linspace                0.14      diffusers steps K // m down, not to the grid's next step
        PNDM, linspace                0.1       the same
        DDIM, trailing, K = 996       0.015     the same; none where the number of steps divides K
        DDPM, trailing, fixed_large   0.31      diffusers adds noise after the last step, on the data
        PNDM, leading                 0.0008    diffusers' first step is Heun's (`skip_prk_steps`: true)
                                      0.0013    or its first three are Runge-Kutta's (false)
        DDIM, `clip_sample` (default) 0         here eps_hat follows from the clipped x0_hat, as with diffusers'
                                                `use_clipped_model_output=True`, which its pipelines do not set: none
                                                for the exact denoiser, but 0.97 (data in [-1, 1]) for a network
                                                whose x0_hat is out of range in most steps
        sigmas on Karras's grid       1e-4      diffusers rounds the steps that the network is given

    Args:
      config: the file's content; `_class_name` says whose it is.
      steps: evaluations of the network, at least 2; one less where the last step would be from the chain's first
        noise level to itself (`final_sigmas_type: sigma_min` and the like) and the method has no corrector.
      where: the file, for messages.

    Raises:
      ValueError: a scheduler, key or value that we do not have, or more steps than the chain has; named.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(f"{where}: _class_name is {name!r}; diffjax has {', '.join(SCHEDULERS)}")
    reader, defaults, only = SCHEDULERS[name]
    # Keys of other schedulers are left over from a conversion: diffusers does not read them here either.
    foreign = _KEYS - set(defaults) - set(only)
    no_effect = (*WITHOUT_EFFECT.get(name, ()), *foreign)
    null = {"trained_betas": (0.1,)} if "trained_betas" in defaults else {}
    found = read_fields(config, defaults, where=where, only=only, ignored=no_effect, nullable=null, remedy=REMEDY)
    last = found.get("num_train_timesteps", steps)
    if steps < 2:
        raise ValueError(f"steps: at least 2 are needed, got {steps}")
    if steps > last:
        raise ValueError(f"steps: {where} has {last}, got {steps}")
    with naming(where):
        return reader(found, steps, where)._replace(without_effect=tuple(key for key in config if key in no_effect))


def _ddim(found, n, where):
    return _on_chain(found, n, where, DDIM(), to_zero=found["set_alpha_to_one"])


def _ddpm(found, n, where):
    return _on_chain(found, n, where, DDPM(float(found["variance_type"] == "fixed_large")), to_zero=True)


def _pndm(found, n, where):
    return _on_chain(found, n, where, IPNDM(4), to_zero=found["set_alpha_to_one"])


def _euler(found, n, where):
    to_zero = found["final_sigmas_type"] == "zero"
    return _on_chain(found, n, where, DDIM(), to_zero=to_zero, whole=False)


def _euler_ancestral(found, n, where):
    return _on_chain(found, n, where, euler_ancestral(), to_zero=True, whole=False)


def _dpm_solver(found, n, where):
    """`heun` weighs D0 - D1 by the exact integral of a line in l, which is the exponential Adams method."""
    midpoint, order = found["solver_type"] == "midpoint", found["solver_order"]
    stochastic = found["algorithm_type"] == "sde-dpmsolver++"
    adams = partial(ExponentialAdams, X0Prediction(), eta=1.0 if stochastic else None)
    if stochastic:
        by_order = {1: adams(1), 2: SDEDPMpp2M() if midpoint else adams(2)}
    else:
        by_order = {1: adams(1), 2: DPMpp2M() if midpoint else adams(2), 3: DPMpp3MPublished()}
    if order not in by_order:
        kind = found["algorithm_type"]
        raise ValueError(
            f"{where}: algorithm_type {kind!r} with solver_order {order} is not in diffjax, "
            f"which has {' and '.join(map(str, by_order))}; {REMEDY}"
        )
    to_zero = found["final_sigmas_type"] == "zero"
    sampling = _on_chain(found, n, where, by_order[order], to_zero=to_zero, between=True)
    # The second step of order 3 is one of order 2, `DPMpp3MPublished`'s own that of midpoint.
    start = (by_order[1], by_order[2]) if order == 3 and not midpoint else ()
    return _lowered(sampling, found["lower_order_final"] and n < FEW, n, by_order, start)


def _unipc(found, n, where):
    scale = bh1 if found["solver_type"] == "bh1" else bh2
    by_order = {p: UniPC(p, scale=scale) for p in range(1, found["solver_order"] + 1)}
    to_zero = found["final_sigmas_type"] == "zero"
    sampling = _on_chain(found, n, where, by_order[found["solver_order"]], to_zero=to_zero, between=True)
    return _lowered(sampling, found["lower_order_final"], n, by_order)


def _lowered(sampling, lower, n, by_order, start=()):
    """Of n evaluations the last is of order 1, the one before of order 2; a last one to no noise is no step of ours.

    start: the methods of the first steps, where they are not the stepper's own.
    """
    order = next(key for key, stepper in by_order.items() if stepper is sampling.stepper)
    last = tuple(by_order[n - i] for i in range(len(sampling.ts) - 1) if lower and n - i < order)
    return sampling._replace(stepper=LoweredAtTheEnd(sampling.stepper, last, start)) if last or start else sampling


def _on_chain(found, n, where, stepper, *, to_zero, between=False, whole=True):
    """A chain with a grid of its own steps; `between`, `whole`: as `_spaced` has them."""
    betas = _betas(found, where)
    k = len(betas)
    steps = _spaced(found, k, n, between, whole)
    if steps[0] > k - 1:
        raise ValueError(f"{where}: with steps_offset {found['steps_offset']}, {n} steps begin beyond the chain's {k}")
    if found.get("rescale_betas_zero_snr"):
        betas = zero_terminal_snr(betas)
        if found["prediction_type"] == "epsilon" and steps[0] == k - 1:
            raise ValueError(f"{where}: rescale_betas_zero_snr leaves no signal, and prediction_type is 'epsilon'")
    process = DiscreteChain(betas)
    ts = (steps + 1) / k
    if found.get("use_karras_sigmas"):
        ts = _karras_times(betas, n, steps if not whole else np.array([k - 1, 0]))
    if not to_zero and ts[-1] > (1 + CLOSE) / k:
        ts = np.append(ts, 1 / k)
    elif not to_zero and isinstance(stepper, UniPC):
        ts = np.append(ts, (1 - CLOSE) / k)  # the last evaluation, at the chain's first level, corrects the step to it
    inner = {"epsilon": EpsPrediction, "sample": X0Prediction, "v_prediction": VPrediction}[found["prediction_type"]]
    clock = OnSteps(inner=inner(), steps=k)
    return Sampling(process, clock, ts, stepper, to_zero, _thresholds(found, where))


def _betas(found, where):
    k, start, stop = (found[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if found["trained_betas"] is not None:
        betas = np.asarray(found["trained_betas"], np.float64)
        if betas.shape != (k,):
            raise ValueError(f"{where}: trained_betas has shape {betas.shape}, num_train_timesteps is {k}")
        return betas
    makers = {
        "linear": lambda: linear_betas(k, start, stop),
        "scaled_linear": lambda: scaled_linear_betas(k, start, stop),
        "squaredcos_cap_v2": lambda: cosine_betas(k),
        "sigmoid": lambda: start + (stop - start) / (1 + np.exp(-np.linspace(-6, 6, k))),
    }
    try:
        return makers[found["beta_schedule"]]()
    except ValueError as error:
        raise ValueError(f"{where}: beta_start, beta_end, num_train_timesteps: {error}") from None


def _spaced(found, k, n, between, whole):
    """The file's steps, [n], descending.

    between: n of n + 1, the last (0, or the offset) being left out, as multistep methods have it. whole: rounded.
    """
    spacing, m = found["timestep_spacing"], n + between
    if spacing == "linspace":
        steps = np.linspace(0, k - 1, m)
        steps = (np.round(steps) if whole else steps)[::-1]
    elif spacing == "leading":
        steps = np.arange(m)[::-1] * (k // m) + found["steps_offset"]
    else:
        return np.round(np.arange(n) * -(k / n) + k) - 1
    return steps[:n].astype(np.float64)


def _karras_times(betas, n, ends):
    """Times where sigma/alpha is on Karras's grid (eq. 5, rho = 7) between two of the chain's steps."""
    kept = np.cumprod(1 - betas)
    sigmas = np.interp(np.array([ends[0], ends[-1]]), np.arange(len(betas)), np.sqrt((1 - kept) / kept))
    high, low = sigmas ** (1 / 7)
    with on_host():
        times = time_from_logsnr(DiscreteChain(betas), -14 * np.log(np.linspace(high, low, n)))
    return np.clip(np.asarray(times, np.float64), 1 / len(betas), 1.0)


def _thresholds(found, where):
    if found.get("thresholding"):
        quantile, largest = found["dynamic_thresholding_ratio"], found["sample_max_value"]
        if quantile > 1:
            raise ValueError(f"{where}: dynamic_thresholding_ratio is {quantile}; a number in (0, 1] is needed")
        if largest < 1:  # then it is the threshold of every sample
            return (partial(clipped_and_scaled, limit=largest),)
        return (partial(dynamic_threshold, quantile=quantile, largest=largest),)
    if found.get("clip_sample"):
        limit = found["clip_sample_range"]
        return (partial(static_threshold, low=-limit, high=limit),)
    return ()


def _edm(found, n, where):
    """t runs evenly: sigma^(1/rho) or log sigma does."""
    if found["sigma_schedule"] == "karras":
        process = Karras(found["sigma_min"], found["sigma_max"], found["rho"])
    else:
        process = VarianceExploding(found["sigma_min"], found["sigma_max"])
    to_zero = found["final_sigmas_type"] == "zero"
    ts = np.linspace(1, 0, n)
    if found.get("solver_order") not in (None, 2):
        raise ValueError(f"{where}: solver_order is {found['solver_order']}; diffjax has 2; {REMEDY}")
    stepper = DDIM() if found.get("solver_order") is None else DPMpp2M()
    return Sampling(process, KarrasPrediction(found["sigma_data"]), ts, stepper, to_zero, _thresholds(found, where))


def _flow_matching(found, n, where):
    k, shift = found["num_train_timesteps"], found["shift"]
    moved = lambda t: shift * t / (1 + (shift - 1) * t)
    # Evenly from the last of the chain's moved times to its first, and then moved once more.
    ts = moved(np.linspace(moved(1.0), moved(1 / k), n))
    clock = OnSteps(inner=VelocityPrediction(), steps=k, first=0)
    return Sampling(Rectified(), clock, ts, DDIM(), True, ())


def _score_sde(found, n, where):
    process = VarianceExploding(found["sigma_min"], found["sigma_max"])
    return Sampling(process, OnSigma(inner=ScorePrediction()), np.linspace(1, 0, n), euler_ancestral(), True, ())


_CHAIN = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "trained_betas": None,
    "steps_offset": 0,
}
_SHARED = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
}
_CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0}
_DYNAMIC = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_LOWERED = {"lower_order_final": True}
_RESCALED = {"rescale_betas_zero_snr": False}
_LEADING = {"timestep_spacing": ("leading", "trailing", "linspace")}
_EVEN = {"timestep_spacing": ("linspace", "leading", "trailing")}
_LAST = {"final_sigmas_type": ("zero", "sigma_min")}
_ONLY_KARRAS = {
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_dynamic_shifting": (False, None),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "shift_terminal": (None,),
}
_EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
_EDM_ONLY = {"prediction_type": ("epsilon",), "sigma_schedule": ("karras", "exponential"), **_LAST}

# _class_name -> (reader, {key: default}, {key: values that we have, the default first})
SCHEDULERS: dict[str, tuple[Callable[..., Sampling], dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "DDIMScheduler": (
        _ddim,
        {**_CHAIN, **_CLIPPED, **_DYNAMIC, **_RESCALED, "set_alpha_to_one": True},
        {**_SHARED, **_LEADING},
    ),
    "DDPMScheduler": (
        _ddpm,
        {**_CHAIN, **_CLIPPED, **_DYNAMIC, **_RESCALED},
        {**_SHARED, **_LEADING, "variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
    ),
    "PNDMScheduler": (_pndm, {**_CHAIN, "set_alpha_to_one": False}, {**_SHARED, **_LEADING}),
    "EulerDiscreteScheduler": (
        _euler,
        {**_CHAIN, **_RESCALED},
        {
            **_SHARED,
            **_EVEN,
            **_LAST,
            **_ONLY_KARRAS,
            "interpolation_type": ("linear",),
            "timestep_type": ("discrete",),
        },
    ),
    "EulerAncestralDiscreteScheduler": (_euler_ancestral, {**_CHAIN, **_RESCALED}, {**_SHARED, **_EVEN}),
    "DPMSolverMultistepScheduler": (
        _dpm_solver,
        {**_CHAIN, **_DYNAMIC, **_RESCALED, **_LOWERED, "solver_order": 2},
        {
            **_SHARED,
            **_EVEN,
            **_LAST,
            **_ONLY_KARRAS,
            "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
            "solver_type": ("midpoint", "heun"),
            "lambda_min_clipped": (float("-inf"), None),
            "euler_at_final": (False,),
        },
    ),
    "UniPCMultistepScheduler": (
        _unipc,
        {**_CHAIN, **_DYNAMIC, **_RESCALED, **_LOWERED},
        {
            **_SHARED,
            **_EVEN,
            **_LAST,
            **_ONLY_KARRAS,
            "solver_order": (2, 1, 3),
            "solver_type": ("bh2", "bh1"),
            "predict_x0": (True,),
            "disable_corrector": ([], None),
            "solver_p": (None,),
        },
    ),
    "EDMEulerScheduler": (_edm, _EDM, _EDM_ONLY),
    "EDMDPMSolverMultistepScheduler": (
        _edm,
        {**_EDM, **_DYNAMIC, **_LOWERED, "solver_order": 2},
        {
            **_EDM_ONLY,
            "algorithm_type": ("dpmsolver++",),
            "solver_type": ("midpoint",),
            "euler_at_final": (False,),
        },
    ),
    "FlowMatchEulerDiscreteScheduler": (
        _flow_matching,
        {"num_train_timesteps": 1000, "shift": 1.0},
        {
            "use_dynamic_shifting": (False,),
            "invert_sigmas": (False,),
            "shift_terminal": (None,),
            "use_karras_sigmas": (False, None),
            "use_exponential_sigmas": (False, None),
            "use_beta_sigmas": (False, None),
            "stochastic_sampling": (False,),
        },
    ),
    "ScoreSdeVeScheduler": (
        _score_sde,
        {"sigma_min": 0.01, "sigma_max": 1348.0, "snr": 0.15},
        {"correct_steps": (1, 0), "sampling_eps": (1e-5,)},
    ),
}

# _class_name -> keys of that scheduler which change nothing in what we read; `read_scheduler` says why.
WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "PNDMScheduler": ("skip_prk_steps",),
    "DPMSolverMultistepScheduler": ("variance_type", "flow_shift", "time_shift_type"),
    "UniPCMultistepScheduler": ("flow_shift", "time_shift_type"),
    "EDMEulerScheduler": ("num_train_timesteps",),
    "EDMDPMSolverMultistepScheduler": ("num_train_timesteps", "lower_order_final"),
    "FlowMatchEulerDiscreteScheduler": (
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
        "time_shift_type",
    ),
    "ScoreSdeVeScheduler": ("num_train_timesteps", "snr", "correct_steps"),
}
REMEDY = "edit the file, or give `sample` a process, a grid and a stepper of your own in its place"

_KEYS = {key for _, defaults, only in SCHEDULERS.values() for key in (*defaults, *only)}
_KEYS |= {key for keys in WITHOUT_EFFECT.values() for key in keys}
