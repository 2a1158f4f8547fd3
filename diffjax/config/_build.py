"""From a configuration to the objects of a run.

Config --build--> Diffusion (network, process, parameterisation), tx, loss, stepper, ts, rule
"""

import dataclasses
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Network, Params, Sample
from diffjax.config import _names as names
from diffjax.config._check import check_config
from diffjax.config._conditions import null_condition
from diffjax.config._json import differences
from diffjax.config._loss import LEARNED, AbstractLoss, Choices, Loss
from diffjax.config._options import Config, GuidanceConfig, NetworkConfig, OptimiserConfig, ProcessConfig
from diffjax.config._parts import Parts
from diffjax.config._registry import construct, takes
from diffjax.config._sampling import build_grid, build_sampling, check_map_sampler, guided
from diffjax.guidance import AbstractRule
from diffjax.losses import drop_condition
from diffjax.networks import T5Encoder, trained, with_text_encoder
from diffjax.networks._adapters import LinenModule, from_linen
from diffjax.networks._with_text_encoder import DENOISER, ENCODER
from diffjax.parameterisation import AbstractParameterisation, bounded
from diffjax.parameterisation._denoiser import make_denoiser
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import AbstractGaussianProcess, DiscreteChain
from diffjax.training import Context, projected


@checked_numbers
def build(
    config: Config,
    classes: int | None,
    stage: int | None = None,
    *,
    numbers: int | None = None,
    text: tuple[int, int] | None = None,
    trained_encoder: T5Encoder | None = None,
) -> Parts:
    """The objects of a configuration.

    Args:
      config: what to build.
      classes: the number of classes, from `Data`; None for an unconditional network.
      stage: of a training in stages, the last by default.
      numbers: how many the network is conditioned on, as a vector, from `Data`.
      text: tokens of a caption and features of a token, from `Data`.
      trained_encoder: of the captions, where it is trained with the network, from `Data`.

    Raises:
      ValueError: a number is out of range, or not one of what it is given to.
    """
    check_config(config)
    null, text_width = null_condition(classes, numbers, text is not None), None if text is None else text[1]
    parameterisation = construct("parameterisation", names.PARAMETERISATIONS, config.parameterisation)
    objective, process = _objective(config), _process(config.process, parameterisation)
    network = build_network(config.network, classes, objective.channels, text_width=text_width)
    if trained_encoder is not None:
        fields = {"dtype": jnp.dtype(config.network.dtype), "remat": config.network.remat}
        network = with_text_encoder(network, trained_encoder.clone(**fields))
    diffusion = Diffusion(network, process, parameterisation)
    times = lambda process: construct("times", names.TIMES, config.times, process)
    if isinstance(process, LEARNED) and not objective.trains_process:
        bounds = ", ".join(name for name, row in names.LOSSES.items() if row.trains_process)
        raise ValueError(
            f"process.name: {config.process.name} is learned, which needs a bound on the likelihood: one of {bounds} "
            f"as loss.name, got {config.loss.name}"
        )
    objective.check(process, times(process))
    learned = (*(("process",) if isinstance(process, LEARNED) else ()), *objective.init_learned())
    frozen = () if config.teacher is None else ("teacher",)
    if config.steps % objective.stages:
        raise ValueError(f"steps: a multiple of the {objective.stages} stages is needed, got {config.steps}")
    stage, steps = objective.stages - 1 if stage is None else stage, config.steps // objective.stages
    objective.check_steps(steps)
    tx = build_optimiser(config.optimiser, steps, (*learned, *frozen))
    if config.optimiser.text_rate != 1:
        tx = optax.chain(tx, _scaled(ENCODER, config.optimiser.text_rate))
    if (after_update := getattr(names.NETWORKS[config.network.name], "after_update", None)) is not None:
        if trained_encoder is not None:
            after_update = _of_denoiser(after_update)
        of_network = lambda params: params | {"network": after_update(params["network"])}
        tx = projected(tx, of_network if learned or frozen else after_update)
    stepper, ts, rule = build_sampling(config, process, null)
    if objective.flow_map:
        _check_map(config, objective, null)
    if stage < objective.stages - 1:  # drawn in its own number of steps
        ts = build_grid(config.sampler, process, objective.steps_of(stage))
    weighting = construct("weighting", names.WEIGHTINGS, config.weighting)
    choices = Choices(times, weighting, null=null, scale=config.guidance.scale, steps=steps, stage=stage)
    loss = _loss(config.guidance, objective, diffusion, rule, choices, learned, frozen)
    sampled = objective.diffusion(diffusion)
    parts = Parts(sampled, tx, loss, objective, learned, frozen, stage, stepper, ts, null, rule)
    check_map_sampler(config, parts, ts)
    return parts


def with_loss_defaults(config: Config, given: Collection[str]) -> Config:
    """A configuration with the defaults of its loss, such as a flow map's sampler, in options that are not given.

    Args:
      config: by default options, but for those given.
      given: paths of options, such as "sampler.name". Where another sampler is given than the loss's own, the sampler
        is left as it is.
    """
    defaults = names.LOSSES[config.loss.name].defaults
    for path, value in defaults.items():
        group, name = path.split(".")
        own = group != "sampler" or path == "sampler.name" or config.sampler.name == defaults["sampler.name"]
        if path not in given and own:
            part = dataclasses.replace(getattr(config, group), **{name: value})
            config = dataclasses.replace(config, **{group: part})
    return config


def _objective(config: Config) -> AbstractLoss:
    """The loss, whose numbers and process are checked, and the groups of options that it has no use for."""
    objective = construct("loss", names.LOSSES, config.loss)
    if objective.needs_teacher and config.teacher is None:
        raise ValueError(
            f"loss.name: {config.loss.name} needs a teacher; train one, then: diffjax distill RUN "
            f"--loss.name {config.loss.name}"
        )
    if config.teacher is not None and not objective.distils:
        able = ", ".join(name for name, row in names.LOSSES.items() if row.distils)
        raise ValueError(f"loss.name: one of {able} learns from a teacher, got {config.loss.name}")
    for group in objective.unused:
        given, plain = getattr(config, group), getattr(Config(), group)
        if given != plain:
            path, _, value = differences(plain, given, group)[0]
            raise ValueError(f"{path}: {config.loss.name} has its own, got {value}; leave it out")
    return objective


def _check_map(config: Config, objective: AbstractLoss, null: Cond) -> None:
    """Raises `ValueError` where a flow map cannot be trained on this input, or guidance would have no effect."""
    name, clock = config.loss.name, objective.defaults.get("parameterisation.clock")
    if clock is not None and config.parameterisation.clock != clock:
        raise ValueError(
            f"parameterisation.clock: {name} differentiates the network in time, which needs the clock {clock}, got "
            f"{config.parameterisation.clock}; --parameterisation.clock {clock}"
        )
    if config.parameterisation.name in ("eps", "score"):
        raise ValueError(
            f"parameterisation.name: {name} samples from pure noise in a step, where {config.parameterisation.name} "
            "says nothing of the data; take v, x0, velocity or edm"
        )
    if null is None or config.teacher is not None:
        return
    guidance, plain = config.guidance, GuidanceConfig()
    if not objective.guides and guidance.scale != 1:
        raise ValueError(
            f"guidance.scale: {name} has no guidance when it is trained from data, 1 is needed, got {guidance.scale}; "
            "train a denoiser with guidance and distill it, or take mean_flow"
        )
    for field in ("name", "interval", "logsnr_start"):
        if (value := getattr(guidance, field)) != getattr(plain, field):
            raise ValueError(
                f"guidance.{field}: {name} trained from data has no such guidance, got {value}; leave it out, or "
                "distill a denoiser guided so"
            )


@checked_numbers
def build_network(
    config: NetworkConfig, classes: int | None, channels: int = 1, *, text_width: int | None = None
) -> Network:
    """The network of a configuration, conditional on labels of so many classes, on a text of so many features, or both.

    Its output has `channels` times the channels of its input.

    Raises:
      ValueError: a number does not fit the network.
    """
    check_config(config, "network.")
    given = {"num_classes": classes, "text_width": text_width, "dtype": jnp.dtype(config.dtype)}
    module = construct("network", names.NETWORKS, config, **given)
    if channels == 1:
        return from_linen(module)
    return Network(_WidenedInit(module, channels), _WidenedApply(module, channels))


@dataclasses.dataclass(frozen=True)
class _Widened:
    """A module whose output has a multiple of the channels of its input, which only a call shows."""

    module: LinenModule
    channels: int

    def network(self, x: Sample) -> Network:
        return from_linen(self.module.clone(out_channels=self.channels * x.shape[-1]))


class _WidenedInit(_Widened):
    def __call__(self, key, x, c_noise, cond=None):
        return self.network(x).init(key, x, c_noise, cond)


class _WidenedApply(_Widened):
    def __call__(self, params, x, c_noise, cond=None, *, key=None):
        return self.network(x).apply(params, x, c_noise, cond, key=key)


def _process(config: ProcessConfig, parameterisation: AbstractParameterisation) -> AbstractGaussianProcess:
    """The process between the bounds that are given, or else those of the prediction."""
    whole = construct("process", names.PROCESSES, config)
    chain = isinstance(whole, DiscreteChain)
    if config.zero_terminal_snr and not takes(names.PROCESSES[config.name], "zero_terminal_snr"):
        raise ValueError(f"process.zero_terminal_snr: {config.name} has no betas to change, got True")
    for name in ("logsnr_max", "logsnr_min") if chain else ():
        if (value := getattr(config, name)) is not None:
            raise ValueError(f"process.{name}: {config.name} begins and ends as its betas say, got {value}")
    if chain or isinstance(whole, LEARNED):
        return whole
    try:
        return bounded(whole, parameterisation, logsnr_max=config.logsnr_max, logsnr_min=config.logsnr_min)
    except ValueError as error:
        raise ValueError(f"process.{error}") from None


@checked_numbers
def build_optimiser(
    config: OptimiserConfig, steps: int, learned: tuple[str, ...] = (), *, updates: int = 1
) -> optax.GradientTransformation:
    """Clipping, then Adam with a linear warm-up and a cosine decay over `steps` steps, of beta2 too if it has an end.

    Weight decay leaves out what is never trained, `networks.trained`, and what is `learned` with the network. An
    optimiser counts its updates: where a step has several, the schedules are of the step.
    """
    if updates < 1:
        raise ValueError(f"updates: at least 1 is needed, got {updates}")
    decayed = lambda params: {name: name == "network" and trained(part) for name, part in params.items()}
    by_step = lambda schedule: schedule if updates == 1 else lambda count: schedule(count // updates)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup, steps // 2),
        decay_steps=steps,
        end_value=config.final * config.learning_rate,
    )
    decay = {"weight_decay": config.weight_decay, "mask": decayed if learned else trained}
    if config.beta2_final is None:
        adam = optax.adamw(by_step(schedule), b1=config.beta1, b2=config.beta2, **decay)
    else:
        static = ("b1", "eps", "eps_root", "weight_decay", "mask")
        annealed = optax.inject_hyperparams(optax.adamw, static_args=static)
        share, final = optax.cosine_decay_schedule(1.0, steps), config.beta2_final
        b2 = lambda step: final + (config.beta2 - final) * share(step)
        adam = annealed(learning_rate=by_step(schedule), b1=config.beta1, b2=by_step(b2), **decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), adam)


def _scaled(name: str, factor: float) -> optax.GradientTransformation:
    """Updates of the entry of a name times a factor."""

    def scale(path: jax.tree_util.KeyPath, leaf: Array) -> Array:
        inside = any(getattr(key, "key", None) == name for key in path)
        return factor * leaf if inside else leaf

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates))


def _of_denoiser(after_update: Callable[[Params], Params]) -> Callable[[Params], Params]:
    """What is done to a network's parameters after an update, where the parameters include a text encoder."""
    return lambda params: params | {DENOISER: after_update(params[DENOISER])}


def _loss(
    guidance: GuidanceConfig,
    objective: AbstractLoss,
    diffusion: Diffusion,
    rule: AbstractRule,
    choices: Choices,
    learned: tuple[str, ...],
    frozen: tuple[str, ...],
) -> Callable[[Params, tuple[Sample, Cond], Context], Loss]:
    """The loss of a batch `(x0, cond)`, with the class hidden from a share of the samples."""
    hidden, null = guidance.dropout, choices.null

    def loss(params: Params, batch: tuple[Sample, Cond], context: Context) -> Loss:
        x0, cond = batch
        drop_key, loss_key = jax.random.split(context.key)
        if null is not None and hidden > 0 and not frozen:
            cond = drop_condition(drop_key, cond, null, hidden, index=context.index)
        network, more = (params["network"], params) if learned or frozen else (params, {})
        of = dataclasses.replace(diffusion, process=params["process"]) if "process" in learned else diffusion
        teacher = make_denoiser(of, jax.lax.stop_gradient(params["teacher"]), cond) if frozen else None
        if teacher is not None and null is not None:
            teacher = guided(guidance, of.process, rule, teacher, null)
        context = context._replace(key=loss_key)
        return objective(of, network, x0, cond, context, choices._replace(learned=more, teacher=teacher))

    return loss
