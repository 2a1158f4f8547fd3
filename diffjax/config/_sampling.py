"""How a run is sampled: method, times and guidance from a configuration.

SamplerConfig, process --> stepper, ts        GuidanceConfig, denoiser --build_denoiser--> guided, with a threshold
Parts, params of a trained run --trained_parts--> Parts with the process that was learned, the network's params
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Denoiser, Grid, Params
from diffjax.config import _names as names
from diffjax.config._check import check_config
from diffjax.config._data import Data, Samples
from diffjax.config._options import Config, GuidanceConfig, SamplerConfig
from diffjax.config._parts import Parts
from diffjax.config._registry import construct
from diffjax.guidance import AbstractRule, Guided, OnePass, TwoPasses, extrapolate, within_interval, zero_init
from diffjax.guidance._classifier_free import classifier_free
from diffjax.process import AbstractGaussianProcess, check_known
from diffjax.samplers import AbstractStepper, CFGpp, step_weights
from diffjax.samplers._jump import Jump


def build_stepper(config: SamplerConfig) -> AbstractStepper:
    """The sampling method of a configuration."""
    check_config(config, "sampler.")
    return construct("sampler", names.STEPPERS, config)


@checked_numbers
def build_grid(config: SamplerConfig, process: AbstractGaussianProcess, steps: int | None = None) -> Grid:
    """Descending times [n + 1]; `steps` in place of the configuration's."""
    check_config(config, "sampler.")
    grid, n = construct("sampler", names.GRIDS, config, field="grid"), config.steps if steps is None else steps
    ts = jax.jit(grid, static_argnums=1)(process, n)  # one program, not thirty
    points = np.asarray(ts)
    sound = np.all((points >= 0) & (points <= 1)) and np.all(np.diff(points) < 0)
    return ts if sound else grid(process, n)  # whose message says what is wrong


def build_sampling(
    config: Config, process: AbstractGaussianProcess, null: Cond
) -> tuple[AbstractStepper, Grid, AbstractRule]:
    """The stepper, the grid and the rule of guidance of a configuration.

    Raises:
      ValueError: the guidance does not go with the stepper.
    """
    stepper, ts = build_stepper(config.sampler), build_grid(config.sampler, process)
    rule = construct("guidance", names.GUIDANCES, config.guidance, process=process)
    construct("sampler", names.THRESHOLDS, config.sampler, field="threshold")
    if isinstance(stepper, CFGpp):
        if null is None:
            raise ValueError("sampler.name: cfgpp is a form of guidance, and this run has no classes; name another one")
        around = {"sampler.clip": config.sampler.clip or None, "guidance.interval": config.guidance.interval}
        for name, value in (around | {"guidance.logsnr_start": config.guidance.logsnr_start}).items():
            if value is not None:
                raise ValueError(f"{name}: cannot be used with cfgpp, which needs cond and uncond apart, got {value}")
    return stepper, ts, rule


def rebuild_sampling(config: Config, parts: Parts) -> Parts:
    """The objects of a run with the sampler and the guidance of another configuration.

    Raises:
      ValueError: a number is out of range, or not one of what it is given to.
    """
    check_config(config)
    stepper, ts, rule = build_sampling(config, parts.process, parts.null)
    return parts._replace(stepper=stepper, ts=ts, rule=rule)


def check_map_sampler(config: Config, parts: Parts, ts: Grid) -> None:
    """Raises `ValueError` where a run's flow map does not know the steps of a grid ts [n + 1] by its sampler."""
    objective, process = parts.objective, parts.process
    if not objective.flow_map:
        return
    flow_map = objective.denoiser(parts.diffusion, {}, None, parts.stage)
    try:
        if isinstance(parts.stepper, Jump):
            parts.stepper.check_denoiser(flow_map, process, ts, step_weights(parts.stepper, process, ts))
        else:
            t = ts[0]
            check_known(flow_map.knows, t, t)  # the same object: as a denoiser
    except ValueError as error:
        raise ValueError(
            f"sampler: {config.loss.name} is not sampled by {config.sampler.name} on {len(ts) - 1} steps of "
            f"{config.sampler.grid}: {error}; take {objective.sampled_by(parts.stage)}"
        ) from None


def parts_at_step(config: Config, parts: Parts, step: int) -> Parts:
    """The parts of a run that has had so many updates: of a training in stages, those of its stage."""
    stages = parts.objective.stages
    stage = min(max(step - 1, 0) // (config.steps // stages), stages - 1)
    if stage == parts.stage:
        return parts
    steps = parts.objective.steps_of(stage)
    return parts._replace(stage=stage, ts=build_grid(config.sampler, parts.process, steps))


def learned_parts(parts: Parts, params: Params) -> tuple[Parts, Params]:
    """The parts of a trained run with the process that it learned, and the network's parameters."""
    if not parts.learned and not parts.frozen:
        return parts, params
    if "process" in parts.learned:
        parts = parts._replace(diffusion=dataclasses.replace(parts.diffusion, process=params["process"]))
    return parts._replace(learned=(), frozen=()), params["network"]


def trained_parts(config: Config, parts: Parts, params: Params) -> tuple[Parts, Params]:
    """The same, with a grid on the process that it learned."""
    trained, network = learned_parts(parts, params)
    return rebuild_sampling(config, trained) if "process" in parts.learned else trained, network


def samples_bound(config: Config, samples: Samples | Data, parts: Parts) -> float:
    """The bound b of the threshold on x0_hat in sampling, which keeps it within [-b, b]; 0 for no threshold.

    1 for images. The range of other data is unknown; but if the prediction amplifies its errors, and is trained within
    bounds of logsnr for that reason, it is the largest absolute value of the data, which changes no exact denoiser.

    Raises:
      ValueError: there is no bound for a threshold that was chosen by name, or a number of it is out of range.
    """
    bound, samples = config.sampler.clip, samples.samples if isinstance(samples, Data) else samples
    if bound is None and not isinstance(parts.stepper, CFGpp):
        amplifies = math.isfinite(parts.diffusion.parameterisation.logsnr_range[0])
        bound = samples.largest if samples.pictures or amplifies else 0.0
    if not bound and config.sampler.threshold != SamplerConfig.threshold:
        raise ValueError(f"sampler.threshold: {config.sampler.threshold} needs the range of the data, --sampler.clip")
    if bound:
        threshold = construct("sampler", names.THRESHOLDS, config.sampler, field="threshold")
        try:
            threshold(lambda xt, t: xt, bound=bound)
        except ValueError as error:
            raise ValueError(f"sampler.{error}") from None
    return bound or 0.0


@checked_numbers
def build_denoiser(config: Config, parts: Parts, denoiser: Any, bound: float, weak: Denoiser | None = None) -> Denoiser:
    """The denoiser that a run samples with: guided, and with a threshold on x0_hat.

    Args:
      config: of the run.
      parts: of the run.
      denoiser: by `make_denoiser`; it is guided if it has a condition, or if there is a weak one.
      bound: by `samples_bound`.
      weak: the denoiser of a weaker model, which takes the place of the null label (autoguidance).
    """
    if not parts.objective.flow_map and (denoiser.cond is not None or weak is not None):
        if isinstance(parts.stepper, CFGpp):
            pair = OnePass(denoiser, parts.null) if weak is None else TwoPasses(denoiser, weak)
            return Guided(pair, jnp.asarray(config.guidance.scale), parts.rule)
        denoiser = guided(config.guidance, parts.process, parts.rule, denoiser, parts.null, weak)
    threshold = construct("sampler", names.THRESHOLDS, config.sampler, field="threshold")
    return threshold(denoiser, bound=bound) if bound else denoiser


def guided(
    choice: GuidanceConfig,
    process: AbstractGaussianProcess,
    rule: AbstractRule,
    denoiser: Any,
    null: Cond,
    weak: Denoiser | None = None,
) -> Denoiser:
    """A denoiser with the guidance of a configuration, against the null condition or a weaker model."""
    if weak is None:
        found = classifier_free(denoiser, null, choice.scale, rule=rule)
    else:
        found = extrapolate(denoiser, weak, choice.scale, rule=rule)
    if choice.interval is not None:
        found = within_interval(process, found, denoiser, *choice.interval)
    return found if choice.logsnr_start is None else zero_init(process, found, choice.logsnr_start)
