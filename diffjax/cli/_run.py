"""A run's folder: what was trained is read back as it was written.

RUN/config.json --> Config --> Data, Parts --+
RUN/checkpoints/ ----------------------------+--> the averaged parameters
"""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from diffjax.cli._averages import DECAY, averaged, find_snapshots, names
from diffjax.cli._devices import name_devices
from diffjax.cli._hosts import say
from diffjax.config import Config, Data, Parts, build, build_data, from_json
from diffjax.training import Checkpoints, TrainState, agree, data_mesh, init_state


def read_config(run: Path, argument: str) -> Config:
    """The configuration of a run, or a `ValueError` that names the argument and what is wrong with its folder."""
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"{argument}: {run} holds no run (there is no config.json in it)")
    try:
        text = path.read_text(encoding="utf-8")
        return from_json(text)
    except ValueError as error:
        copy = _saved_config(run) if not text.strip("\0 \n") else None
        if copy is None:
            raise ValueError(f"{argument}: {path}: {error}") from None
        warnings.warn(f"{argument}: {path} is empty; the copy in the newest checkpoint is used", stacklevel=2)
        return copy


def _saved_config(run: Path) -> Config | None:
    """The configuration that the newest checkpoint of a run has a copy of; None where there is none."""
    try:
        with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
            newest = checkpoints.latest()
            return None if newest is None else from_json(checkpoints.about(newest)["about"]["configuration"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_run(run: str) -> None:
    """Raises `ValueError` where there is no such folder."""
    if not Path(run).is_dir():
        raise ValueError(f"run: {run}: no such folder")


def open_run(run: str, chunk: int) -> tuple[Config, Data, Parts]:
    """A run's configuration, data and objects."""
    if chunk < 1:
        raise ValueError(f"chunk: at least 1, got {chunk}")

    def read() -> tuple[Config, Data, Parts]:
        check_run(run)
        config = read_config(Path(run), "run")
        data = build_data(config.data)
        return config, data, build(config, data.classes)

    return agree(read)


def read_params(run: str, config: Config, data: Data, parts: Parts, width: float | None = None) -> Any:
    """A run's averaged parameters, from its newest checkpoint, whole everywhere; the rest of it is not read.

    `width` asks for another average, made of its snapshots.
    """
    snapshots = agree(lambda: find_snapshots(config, Path(run), width))
    shapes = agree(lambda: jax.eval_shape(lambda: fresh_state(config, data, parts)))
    everywhere = NamedSharding(data_mesh(), PartitionSpec())
    like = {"step": shapes.step, "ema": {DECAY: shapes.ema[DECAY]} if config.ema_widths else shapes.ema}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), like)
    with Checkpoints(Path(run) / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore_some(like)
    step, params = int(state["step"]), averaged(config, state["ema"])
    say(f"{run}: step {step} of {config.steps}; {name_devices(len(jax.devices()))}")
    if snapshots is not None and width is not None:
        found = agree(lambda: snapshots.reconstruct(jax.eval_shape(lambda: params), width, step))
        put = lambda array: jax.make_array_from_callback(array.shape, everywhere, lambda part: array[part])
        params = jax.tree.map(put, found)
    return params


def fresh_state(config: Config, data: Data, parts: Parts) -> TrainState:
    """The state before the first step, of the shapes that a checkpoint is read into."""
    x0, cond = data.source(config.seed, 0, 1)
    cond = None if parts.null is None else jnp.asarray(cond)
    key, averages = jax.random.key(config.seed), names(config)
    return init_state(key, parts.network, parts.tx, jnp.asarray(x0), cond, averages=averages)
