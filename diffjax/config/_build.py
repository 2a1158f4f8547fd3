"""From a configuration to the objects of a run.

Config --build--> process, parameterisation, network, tx, loss, stepper, ts
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from diffjax._typing import Network
from diffjax.config._check import check_config
from diffjax.config._names import GRIDS, PARAMETERISATIONS, PROCESSES, STEPPERS, TIMES, WEIGHTINGS, construct
from diffjax.config._networks import build_network, projection
from diffjax.config._options import Config, OptimiserConfig, SamplerConfig
from diffjax.losses import denoising_loss, drop_condition
from diffjax.networks import trained
from diffjax.parameterisation import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers import AbstractStepper
from diffjax.training import projected


class Parts(NamedTuple):
    """The objects of a run."""

    process: AbstractGaussianProcess
    parameterisation: AbstractParameterisation
    network: Network
    tx: optax.GradientTransformation
    loss: Callable[..., Any]
    """`(params, key, (x0, cond), index, total) -> (loss, aux)`, for `make_train_step`."""
    stepper: AbstractStepper
    ts: Any
    """Descending times [n + 1] to sample on."""
    null: int | None
    """The label that says nothing, one beyond the classes; None where the network is told nothing."""


def build(config: Config, classes: int | None) -> Parts:
    """The objects of a configuration.

    Args:
      config: what to build.
      classes: how many classes the network is told of, from `Data`; None for none.

    Raises:
      ValueError: a number is out of range, or of no use to what it is given to.
    """
    check_config(config)
    process = construct("process", PROCESSES, config.process)
    parameterisation = construct("parameterisation", PARAMETERISATIONS, config.parameterisation)
    network = build_network(config.network, classes)
    loss = _loss(
        config.guidance.dropout,
        classes,
        network=network,
        process=process,
        parameterisation=parameterisation,
        time_sampler=construct("times", TIMES, config.times, process),
        weighting=construct("weighting", WEIGHTINGS, config.weighting),
    )
    tx, project = build_optimiser(config.optimiser, config.steps), projection(config.network)
    tx = tx if project is None else projected(tx, project)
    stepper, ts = build_stepper(config.sampler), build_grid(config.sampler, process)
    return Parts(process, parameterisation, network, tx, loss, stepper, ts, classes)


def build_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then Adam with a linear warm-up and a cosine decay over `steps` updates.

    Weight decay leaves out what is never trained: `networks.trained`.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup, steps // 2),
        decay_steps=steps,
        end_value=config.final * config.learning_rate,
    )
    adam = optax.adamw(schedule, weight_decay=config.weight_decay, mask=trained)
    return optax.chain(optax.clip_by_global_norm(config.clip), adam)


def build_stepper(config: SamplerConfig) -> AbstractStepper:
    """The sampling method of a configuration."""
    found = STEPPERS[config.name]
    if config.eta is None:
        return found()
    if "eta" not in getattr(found, "__dataclass_fields__", {}):
        raise ValueError(f"sampler.eta: {config.name} has no such number, got {config.eta}")
    return found(eta=config.eta)


def build_grid(config: SamplerConfig, process: AbstractGaussianProcess, steps: int | None = None) -> Any:
    """Descending times [n + 1]; `steps` in place of the configuration's."""
    grid, n = GRIDS[config.grid], config.steps if steps is None else steps
    ts = jax.jit(grid, static_argnums=1)(process, n)  # one program, not thirty
    points = np.asarray(ts)
    sound = np.all((points >= 0) & (points <= 1)) and np.all(np.diff(points) < 0)
    return ts if sound else grid(process, n)  # which says what is wrong


def _loss(hidden: float, null: int | None, **choices: Any) -> Callable[..., Any]:
    """The denoising loss of a batch `(x0, cond)`, with the class hidden from a share of the samples."""

    def loss(params: Any, key: Any, batch: Any, index: Any, total: int) -> tuple[Any, dict[str, Any]]:
        x0, cond = batch
        drop_key, loss_key = jax.random.split(key)
        if null is not None and hidden > 0:
            cond = drop_condition(drop_key, cond, null, hidden, index=index)
        return denoising_loss(params, loss_key, x0, cond, index=index, total=total, **choices)

    return loss
