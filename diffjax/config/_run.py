"""A run's folder, read back: what was trained and what samples of it are like. The training data are not needed.

RUN/config.json  --> Config  --+
RUN/data.json    --> Samples --+--build--> Parts      copies of both in each checkpoint, where a file is gone or empty
RUN/checkpoints  --> the averaged parameters

RUN --load--> TrainedRun: process, denoiser, ts, stepper
"""

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array

from diffjax._arrays import check
from diffjax._typing import Denoiser, Grid, Params, Sample, Time
from diffjax.config._averages import DECAY, averaged, find_snapshots, names
from diffjax.config._build import build
from diffjax.config._data import Data, Samples
from diffjax.config._denoising import Denoising
from diffjax.config._json import from_json
from diffjax.config._loss import AbstractLoss
from diffjax.config._names import THRESHOLDS
from diffjax.config._options import Config, SamplerConfig
from diffjax.config._parts import Parts
from diffjax.config._registry import construct
from diffjax.config._sampling import at_step, trained_parts
from diffjax.networks import with_second_time
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers import AbstractStepper, CFGpp
from diffjax.training import Checkpoints, TrainState, data_mesh, state_from_params, sync_errors

DATA = "data.json"
Record: TypeAlias = Mapping[str, Any]
"""A JSON object."""


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
        threshold = construct("sampler", THRESHOLDS, config.sampler, field="threshold")
        try:
            threshold(lambda xt, t: xt, bound=bound)
        except ValueError as error:
            raise ValueError(f"sampler.{error}") from None
    return bound or 0.0


class Run(NamedTuple):
    """What a folder holds, but for the parameters."""

    config: Config
    samples: Samples
    parts: Parts


def read_run(run: Path, argument: str = "run") -> Run:
    """A run of a folder, or a `ValueError` that names the argument and what is wrong with the folder."""
    config = read_config(run, argument)
    samples = read_samples(run, argument)
    return Run(config, samples, build(config, samples.classes))


class TrainedRun(NamedTuple):
    """A trained run, as `load` gives it."""

    process: AbstractGaussianProcess
    diffusion: Diffusion
    """The network, the process and what it predicts."""
    ts: Grid
    """The descending grid [n + 1] that the run samples on."""
    stepper: AbstractStepper
    null: int | None
    """The label that says nothing, for `classifier_free`; None where the network is unconditional."""
    shape: tuple[int, ...]
    """Of one sample."""
    names: tuple[str, ...] | None
    """Of the classes, label by label, where they have names."""
    bound: float
    """What `static_threshold` should cut x0_hat to, [-bound, bound], in sampling; 0 for no cut."""
    step: int
    """How many updates the parameters have had."""
    params: Params
    """The averaged parameters of the network."""
    objective: AbstractLoss = Denoising()
    """What it was trained on, by its numbers."""
    stage: int = -1
    """How far a training in stages had come, from 0."""

    def denoiser(self, labels: ArrayLike | None = None) -> Denoiser:
        """The denoiser `(xt [b, *d], t) -> x0_hat`, given labels [b]; the null label for all where none are given.

        Raises:
          ValueError: labels are given to an unconditional network, or they are not whole numbers from 0 to `null`.
        """
        of = lambda cond: self.objective.denoiser(self.diffusion, self.params, cond, self.stage)
        if self.null is None:
            if labels is not None:
                raise ValueError("labels: the network of this run is unconditional, none are needed, got some")
            return of(None)
        if labels is None:
            conditional = of(jnp.asarray(self.null))
            return OneLabelMap(conditional) if self.objective.flow_map else OneLabel(conditional)
        labels = jnp.asarray(labels)
        needed = f"labels: whole numbers [b] from 0 to {self.null}, the null label, are needed, got {labels}"
        if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
            raise ValueError(needed)
        check((labels >= 0) & (labels <= self.null), needed)
        return of(labels)


class OneLabel(eqx.Module):
    """A denoiser conditioned on one label, the same for each sample."""

    conditional: Any

    def _of(self, xt: Sample) -> Any:
        cond = jnp.broadcast_to(self.conditional.cond, xt.shape[:1])
        return eqx.tree_at(lambda denoiser: denoiser.cond, self.conditional, cond)

    def __call__(self, xt: Sample, t: Time) -> Sample:
        return self._of(xt)(xt, t)


class OneLabelMap(OneLabel):
    """The same of a flow map."""

    @property
    def knows(self):
        """The pairs of times that the map knows."""
        return self.conditional.knows

    def __call__(self, xt: Sample, t: Time, s: Time | None = None) -> Sample:
        return self._of(xt)(xt, t, s)


def load(run: str | Path, *, ema_width: float | None = None) -> TrainedRun:
    """A run of `diffjax train`, read back for use in Python: its training data are not needed.

        run = diffjax.load("runs/digits")
        xT = diffjax.prior(key, run.process, (16, *run.shape))
        x0 = diffjax.sample(key, run.process, run.denoiser(labels), xT, run.ts, run.stepper)

    The command line cuts the denoiser's answer as well, by `static_threshold(denoiser, -bound, bound)`, where
    `run.bound` is not 0.

    Args:
      run: the folder.
      ema_width: another width of the average of the parameters, made of the run's snapshots (`--ema-widths`).

    Raises:
      ValueError: there is no such run, run is no path, or what is in it is damaged.
      FileNotFoundError: it has no checkpoint yet.
    """
    if not isinstance(run, str | os.PathLike):
        raise ValueError(f"run: the path of a folder is needed, got {run!r}")
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(f"run: {folder}: no such folder")
    config, samples, parts = read_run(folder)
    params, step = read_params(folder, config, samples, parts, ema_width)
    parts, params = trained_parts(config, at_step(config, parts, step), params)
    return TrainedRun(
        parts.diffusion.process,
        parts.diffusion,
        parts.ts,
        parts.stepper,
        parts.null,
        samples.shape,
        samples.names,
        samples_bound(config, samples, parts),
        step,
        params,
        parts.objective,
        parts.stage,
    )


def read_config(run: Path, argument: str) -> Config:
    """The configuration of a run, or a `ValueError` that names the argument and what is wrong with its folder."""
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"{argument}: {run} holds no run (there is no config.json in it)")
    try:
        text = path.read_text(encoding="utf-8")
        return from_json(text)
    except ValueError as error:
        copy = None
        if not text.strip("\0 \n"):
            copy = _saved_about(run).get("configuration")
        if copy is None:
            raise ValueError(f"{argument}: {path}: {error}") from None
        warnings.warn(f"{argument}: {path} is empty; the copy in the newest checkpoint is used", stacklevel=2)
        return from_json(copy)


def read_samples(run: Path, argument: str = "run") -> Samples:
    """The shape and classes of a run's samples, from data.json or else the copy in its newest checkpoint.

    Raises:
      ValueError: neither is readable.
    """
    path = run / DATA
    record, damaged = read_record(path)
    found = samples_of(record)
    if found is None:
        found = samples_of(_saved_about(run).get("dataset"))
        if found is not None and (damaged or "shape" in record):
            warnings.warn(f"{argument}: {path} is damaged; the copy in the newest checkpoint is used", stacklevel=2)
    if found is None:
        raise ValueError(f"{argument}: {path} does not describe the samples of the run, nor does a checkpoint of it")
    return found


def read_record(path: Path) -> tuple[Record, bool]:
    """A JSON object from a file, {} where there is none; and whether there is another thing in its place."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, False
    except (OSError, ValueError, RecursionError):
        return {}, True
    return (record, False) if isinstance(record, dict) else ({}, True)


def samples_of(record: Any) -> Samples | None:
    """`Samples` of a record as `Samples._asdict` gives it, read from JSON; None where it is no such record."""
    try:
        shape, classes, given = record["shape"], record["classes"], record["names"]
        whole = (*shape, 1 if classes is None else classes)
        if not all(type(n) is int and n > 0 for n in whole):
            return None
        if given is not None and (classes != len(given) or not all(type(name) is str for name in given)):
            return None
        pictures, largest = record["pictures"], record["largest"]
        if type(pictures) is not bool or type(largest) is not float or not math.isfinite(largest):
            return None
        return Samples(tuple(shape), classes, None if given is None else tuple(given), pictures, largest)
    except (KeyError, TypeError):
        return None


def _saved_about(run: Path) -> Record:
    """What the newest readable checkpoint of a run says of the run; {} where there is none."""
    try:
        with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
            for step in reversed(checkpoints.steps()):
                try:
                    return checkpoints.about(step)["about"]
                except (ValueError, KeyError, FileNotFoundError):
                    continue
    except OSError:
        pass
    return {}


def read_params(
    run: Path, config: Config, samples: Samples, parts: Parts, width: float | None = None
) -> tuple[Params, int]:
    """A run's averaged parameters, whole everywhere, and their step: the newest checkpoint's; the rest is not read.

    `width` asks for another average, made of its snapshots.
    """
    snapshots = sync_errors(lambda: find_snapshots(config, run, width))
    shapes = sync_errors(lambda: jax.eval_shape(lambda: fresh_state(config, samples, parts)))
    everywhere = NamedSharding(data_mesh(), PartitionSpec())
    like = {"step": shapes.step, "ema": {DECAY: shapes.ema[DECAY]} if names(config) else shapes.ema}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), like)
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore_some(like)
    step, params = int(state["step"]), averaged(config, state["ema"])
    if snapshots is not None and width is not None:
        found = sync_errors(lambda: snapshots.reconstruct(jax.eval_shape(lambda: params), width, step))
        put = lambda array: jax.make_array_from_callback(array.shape, everywhere, lambda part: array[part])
        params = jax.tree.map(put, found)
    return params, step


def read_teacher(config: Config, parts: Parts, folder: Path) -> TrainedRun:
    """The teacher of a run in a folder: the run at `config.teacher`.

    Raises:
      ValueError: there is no such run, it is a flow map, or it is of another process, prediction, clock, network or
        number of classes.
      FileNotFoundError: it has no checkpoint yet.
    """
    path = Path(os.path.normpath(folder / (config.teacher or "")))
    teacher = load(path)
    if teacher.objective.flow_map:
        raise ValueError(f"run: the teacher must be a denoiser, got a flow map, {path}")
    mine = parts.diffusion
    differ = {
        "process": not eqx.tree_equal(teacher.diffusion.process, mine.process),
        "prediction or clock": not eqx.tree_equal(teacher.diffusion.parameterisation, mine.parameterisation),
        "number of classes": teacher.null != parts.null,
        "network": teacher.diffusion.network != mine.network,
    }
    for what, differs in differ.items():
        if differs:
            raise ValueError(
                f"run: the student has the {what} of its teacher, and {path} has another; name another --out"
            )
    return teacher


def begin_from_teacher(config: Config, parts: Parts, state: TrainState, teacher: TrainedRun) -> TrainState:
    """A fresh state whose student begins with the parameters of its teacher."""
    network = jax.tree.map(lambda new, old: jnp.asarray(old, new.dtype), state.params["teacher"], teacher.params)
    student = network
    if parts.objective.two_times:
        student = with_second_time(parts.diffusion.network, network, state.key, *example(teacher, parts))
    params = state.params | {"network": student, "teacher": network}
    return state_from_params(state.key, params, parts.training_objective(), averages=names(config))


def next_stage(config: Config, parts: Parts, state: TrainState) -> TrainState:
    """The state that a stage begins with: its teacher is the student before it, its optimiser and average are new."""
    params = state.params | {"teacher": state.params["network"]}
    fresh = state_from_params(state.key, params, parts.training_objective(), averages=names(config))
    return fresh._replace(step=state.step)


def example(samples: Samples | Data | TrainedRun, parts: Parts) -> tuple[Array, Array | None]:
    """(x0 [1, *d], cond [1] or None): what the network takes, by its shapes."""
    return jnp.zeros((1, *samples.shape), jnp.float32), None if parts.null is None else jnp.zeros(1, jnp.int32)


def fresh_state(config: Config, samples: Samples | Data, parts: Parts) -> TrainState:
    """The state before the first step, of the shapes that a checkpoint is read into."""
    x0, cond = example(samples, parts)
    key, averages = jax.random.key(config.seed), names(config)
    init_key, step_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)  # as `init_state`
    return state_from_params(step_key, parts.init(init_key, x0, cond), parts.training_objective(), averages=averages)
