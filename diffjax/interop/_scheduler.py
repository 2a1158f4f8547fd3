"""A scheduler_config.json of diffusers as what `sample` needs: process, parameterisation, grid, method, thresholds.

    betas --> DiscreteChain        step n of the file, 0 .. K - 1, is the time (n + 1)/K, and the network's c_noise
    sigmas --> EDM, VarianceExploding                                      EDM, score SDEs
    line --> Rectified, its steps moved by `shift`                         flow matching

The file's steps n_1 > ... > n_m are the grid. Its last update, to no noise at all, is `sample`'s last denoise; where
the file ends at its first noise level instead, the grid does, and `final_denoise` is False. Each update goes to the
next step of the grid. diffusers' DDIM and PNDM go K // m steps instead: with `leading` that is the grid's next; with
`trailing` it is where m divides K; with `linspace`, whose steps are (K - 1)/(m - 1) apart, it never is. Where diffusers
lowers the order of a method in the last steps, so does ours (`_lowered.py`). `read_scheduler` states what differs;
`_scheduler_keys.py` has the keys, `_scheduler_chain.py` the grid.
Source: Ho et al. 2020; Lin et al. 2023, table 2 (spacings); Karras et al. 2022, eq. 5; Esser et al. 2024.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from diffjax._numbers import checked_numbers
from diffjax.interop._clock import OnSigma, OnSteps
from diffjax.interop._config import naming, read_fields
from diffjax.interop._lowered import LoweredAtTheEnd
from diffjax.interop._pndm import grid_of_pndm
from diffjax.interop._scheduler_chain import Fields, Sampling, on_chain, thresholds
from diffjax.interop._scheduler_keys import ALL_KEYS, KEYS, WITHOUT_EFFECT
from diffjax.parameterisation import EDMPrediction, ScorePrediction
from diffjax.parameterisation._linear import VelocityPrediction, X0Prediction
from diffjax.process._rectified import Rectified
from diffjax.process._ve import EDM, VarianceExploding
from diffjax.samplers import AbstractStepper, DPMpp3MPublished, EulerAncestral, ExponentialAdams, SDEDPMpp2M, bh1, bh2
from diffjax.samplers._ddim import DDIM
from diffjax.samplers._ddpm import DDPM
from diffjax.samplers._dpmpp import DPMpp2M
from diffjax.samplers._unipc import UniPC

REMEDY = "edit the file, or give `sample` a process, a grid and a stepper of your own in its place"
FEW = 15
"""Below so many steps DPM-Solver++ lowers the order of the last ones, where `lower_order_final` is on."""


@checked_numbers
def read_scheduler(config: Mapping[str, Any], steps: int = 50, *, where: str = "scheduler_config.json") -> Sampling:
    """The process, parameterisation, grid (of shape [steps] or [steps + 1]), method and thresholds of a configuration.

    DDIM, DDPM, PNDM, Euler (ancestral too), DPM-Solver++ (multistep), UniPC, EDM, flow matching's Euler and score SDE
    schedulers. Every key of the file is honoured, refused, or without effect and then listed in `without_effect`: a key
    of another scheduler, which diffusers does not read here either, and

        DPM-Solver++     `variance_type`: only the mean of a network's prediction is used in any case
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
        DDIM, `clip_sample` (default) 0         here eps_hat follows from the clipped x0_hat, as with diffusers'
                                                `use_clipped_model_output=True`, which its pipelines do not set: none
                                                for the exact denoiser, but 0.97 (data in [-1, 1]) for a network
                                                whose x0_hat is out of range in most steps
        sigmas on EDM's grid          1e-4      diffusers rounds the steps that the network is given

    Args:
      config: the file's content; `_class_name` is the scheduler's class.
      steps: evaluations of the network, at least 2. One less where the last step would be from the chain's first noise
        level to itself (`final_sigmas_type: sigma_min` and the like) and the method has no corrector. As with diffusers
        one more for PNDM with `skip_prk_steps`, whose first step is Heun's, and up to nine more without it, the first
        three being Runge-Kutta's.
      where: the file, for messages.

    Raises:
      ValueError: a scheduler, key or value that diffjax does not have, or more steps than the chain has; named.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(f"{where}: _class_name is {name!r}; diffjax has {', '.join(SCHEDULERS)}")
    scheduler = SCHEDULERS[name]
    defaults, only = scheduler.defaults, scheduler.only
    # Keys of other schedulers are left over from a conversion: diffusers does not read them here either.
    foreign = ALL_KEYS - set(defaults) - set(only)
    no_effect = (*WITHOUT_EFFECT.get(name, ()), *foreign)
    null = {"trained_betas": (0.1,)} if "trained_betas" in defaults else {}
    fields = read_fields(config, defaults, where=where, only=only, ignored=no_effect, nullable=null, remedy=REMEDY)
    last = fields.get("num_train_timesteps", steps)
    if steps < 2:
        raise ValueError(f"steps: at least 2 are needed, got {steps}")
    if steps > last:
        raise ValueError(f"steps: {where} has {last}, got {steps}")
    with naming(where):
        return scheduler.read(fields, steps, where)._replace(
            without_effect=tuple(key for key in config if key in no_effect)
        )


def _ddim(fields: Fields, n: int, where: str) -> Sampling:
    return on_chain(fields, n, where, DDIM(), to_zero=fields["set_alpha_to_one"])


def _ddpm(fields: Fields, n: int, where: str) -> Sampling:
    return on_chain(fields, n, where, DDPM(float(fields["variance_type"] == "fixed_large")), to_zero=True)


def _pndm(fields: Fields, n: int, where: str) -> Sampling:
    """Its last update, to no noise too, is of its latest four evaluations, as every other."""
    sampling = on_chain(fields, n, where, DDIM(), to_zero=fields["set_alpha_to_one"])
    steps, end = sampling.ts[:n], np.zeros(1) if sampling.final_denoise else sampling.ts[n:]
    ts, stepper = grid_of_pndm(steps, end, fields["num_train_timesteps"], fields["skip_prk_steps"])
    return sampling._replace(ts=ts, stepper=stepper, final_denoise=False)


def _euler(fields: Fields, n: int, where: str) -> Sampling:
    to_zero = fields["final_sigmas_type"] == "zero"
    return on_chain(fields, n, where, DDIM(), to_zero=to_zero, whole=False)


def _euler_ancestral(fields: Fields, n: int, where: str) -> Sampling:
    return on_chain(fields, n, where, EulerAncestral(), to_zero=True, whole=False)


def _dpm_solver(fields: Fields, n: int, where: str) -> Sampling:
    """`heun` weighs D0 - D1 by the exact integral of a line in l, which is the exponential Adams method."""
    midpoint, order = fields["solver_type"] == "midpoint", fields["solver_order"]
    stochastic = fields["algorithm_type"] == "sde-dpmsolver++"
    adams = partial(ExponentialAdams, X0Prediction(), eta=1.0 if stochastic else None)
    if stochastic:
        by_order = {1: adams(1), 2: SDEDPMpp2M() if midpoint else adams(2)}
    else:
        by_order = {1: adams(1), 2: DPMpp2M() if midpoint else adams(2), 3: DPMpp3MPublished()}
    if order not in by_order:
        kind = fields["algorithm_type"]
        raise ValueError(
            f"{where}: algorithm_type {kind!r} with solver_order {order} is not in diffjax, "
            f"which has {' and '.join(map(str, by_order))}; {REMEDY}"
        )
    to_zero = fields["final_sigmas_type"] == "zero"
    sampling = on_chain(fields, n, where, by_order[order], to_zero=to_zero, between=True)
    # The second step of order 3 is one of order 2, `DPMpp3MPublished`'s own that of midpoint.
    start = (by_order[1], by_order[2]) if order == 3 and not midpoint else ()
    return _lowered(sampling, fields["lower_order_final"] and n < FEW, n, by_order, start)


def _unipc(fields: Fields, n: int, where: str) -> Sampling:
    scale = bh1 if fields["solver_type"] == "bh1" else bh2
    by_order = {p: UniPC(p, scale=scale) for p in range(1, fields["solver_order"] + 1)}
    to_zero = fields["final_sigmas_type"] == "zero"
    sampling = on_chain(fields, n, where, by_order[fields["solver_order"]], to_zero=to_zero, between=True)
    return _lowered(sampling, fields["lower_order_final"], n, by_order)


def _lowered(
    sampling: Sampling,
    lower: bool,
    n: int,
    by_order: Mapping[int, AbstractStepper],
    start: tuple[AbstractStepper, ...] = (),
) -> Sampling:
    """Of n evaluations the last is of order 1, the one before of order 2; a last one to no noise is no step of ours.

    start: the methods of the first steps, where they are not the stepper's own.
    """
    order = next(key for key, stepper in by_order.items() if stepper is sampling.stepper)
    last = tuple(by_order[n - i] for i in range(len(sampling.ts) - 1) if lower and n - i < order)
    return sampling._replace(stepper=LoweredAtTheEnd(sampling.stepper, last, start)) if last or start else sampling


def _edm(fields: Fields, n: int, where: str) -> Sampling:
    """t runs evenly: sigma^(1/rho) or log sigma does."""
    if fields["sigma_schedule"] == "karras":
        process = EDM(fields["sigma_min"], fields["sigma_max"], fields["rho"])
    else:
        process = VarianceExploding(fields["sigma_min"], fields["sigma_max"])
    to_zero = fields["final_sigmas_type"] == "zero"
    ts = np.linspace(1, 0, n)
    if fields.get("solver_order") not in (None, 2):
        raise ValueError(f"{where}: solver_order is {fields['solver_order']}; diffjax has 2; {REMEDY}")
    stepper = DDIM() if fields.get("solver_order") is None else DPMpp2M()
    return Sampling(process, EDMPrediction(fields["sigma_data"]), ts, stepper, to_zero, thresholds(fields, where))


def _flow_matching(fields: Fields, n: int, where: str) -> Sampling:
    k, shift = fields["num_train_timesteps"], fields["shift"]
    moved = lambda t: shift * t / (1 + (shift - 1) * t)
    # Evenly from the last of the chain's moved times to its first, and then moved once more.
    ts = moved(np.linspace(moved(1.0), moved(1 / k), n))
    clock = OnSteps(inner=VelocityPrediction(), steps=k, first=0)
    return Sampling(Rectified(), clock, ts, DDIM(), True, ())


def _score_sde(fields: Fields, n: int, where: str) -> Sampling:
    process = VarianceExploding(fields["sigma_min"], fields["sigma_max"])
    return Sampling(process, OnSigma(inner=ScorePrediction()), np.linspace(1, 0, n), EulerAncestral(), True, ())


class Scheduler(NamedTuple):
    """A scheduler class of diffusers that diffjax reads.

    Attributes:
      read: `(values, evaluations, file) -> Sampling`.
      defaults: key -> default.
      only: key -> the values that diffjax has, the default first.
    """

    read: Callable[[Fields, int, str], Sampling]
    defaults: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]


_READERS: dict[str, Callable[[Fields, int, str], Sampling]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _unipc,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm,
    "FlowMatchEulerDiscreteScheduler": _flow_matching,
    "ScoreSdeVeScheduler": _score_sde,
}
SCHEDULERS: Mapping[str, Scheduler] = {name: Scheduler(read, *KEYS[name]) for name, read in _READERS.items()}
"""By `_class_name`."""
