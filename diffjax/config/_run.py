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

from diffjax._numbers import checked_numbers
from diffjax._typing import Cascade, Cond, Denoiser, Grid, Params, Sample, Text, Time
from diffjax.config._averages import DECAY, averaged, find_snapshots, names
from diffjax.config._conditions import Samples
from diffjax.config._denoising import Denoising
from diffjax.config._families import Run, build_run, with_parts
from diffjax.config._json import from_json
from diffjax.config._loss import AbstractLoss
from diffjax.config._options import Config
from diffjax.config._sampling import parts_at_step, samples_bound, trained_parts
from diffjax.config._text_encoder import load_text_encoder
from diffjax.interop._t5 import t5_encoder
from diffjax.networks._with_text_encoder import ENCODER
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers import AbstractStepper
from diffjax.training import Checkpoints, TrainState, data_mesh, state_from_params, sync_errors

DATA = "data.json"
Record: TypeAlias = Mapping[str, Any]
"""A JSON object."""


def read_run(run: Path, argument: str = "run") -> Run:
    """A run of a folder, or a `ValueError` that names the argument and what is wrong with the folder."""
    config = read_config(run, argument)
    samples = read_samples(run, argument)
    return build_run(config, samples)


class TrainedRun(NamedTuple):
    """A trained run, as `load` gives it."""

    process: AbstractGaussianProcess
    diffusion: Diffusion
    """The network, the process and what it predicts."""
    ts: Grid
    """The descending grid [n + 1] that the run samples on."""
    stepper: AbstractStepper
    null: Cond
    """The null condition, for `classifier_free`: of labels the number of classes; None where the network is
    unconditional."""
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
    samples: Samples | None = None
    """What samples are like, and what they are conditioned on."""

    def denoiser(self, cond: ArrayLike | Text | Cascade | None = None) -> Denoiser:
        """The denoiser `(xt [b, *d], t) -> x0_hat`, given a condition; the null condition for all where none is given.

        The condition is labels [b], numbers [b, k], a `networks.Text`, such as `load_text_encoder(FOLDER)(texts)`, or a
        `networks.Cascade` of a text and a label, as the run was trained.

        Raises:
          ValueError: a condition is given to an unconditional network, or it is of another kind.
        """
        assert self.samples is not None
        of = lambda cond: self.objective.denoiser(self.diffusion, self.params, cond, self.stage)
        if cond is not None:
            return of(self.samples.condition(cond))
        if self.null is None:
            return of(None)
        conditional = of(self.samples.unconditional())
        return OneLabelMap(conditional) if self.objective.flow_map else OneLabel(conditional)


class OneLabel(eqx.Module):
    """A denoiser with one condition, the same for each sample."""

    conditional: Any

    def _of(self, xt: Sample) -> Any:
        rows = lambda leaf: jnp.broadcast_to(leaf, (len(xt), *leaf.shape))
        cond = jax.tree.map(rows, self.conditional.cond)
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


@checked_numbers
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
    check_folder(run)
    folder = Path(run)
    read = read_run(folder)
    config, samples, parts = read.config, read.samples, read.parts
    if parts is None:
        raise ValueError(
            f"run: {folder} is of the family {config.family.name}, which has no denoiser; take diffjax.config.load_run"
        )
    params, step = read_params(folder, read, ema_width)
    parts, params = trained_parts(config, parts_at_step(config, parts, step), params)
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
        samples,
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
        numbers, text, encoder = (record.get(name) for name in ("numbers", "text", "encoder"))
        trained = record.get("trained_encoder")
        if trained is not None:
            whitened = trained["whitened"]
            if type(whitened) is not bool:
                return None
            rest = {name: value for name, value in trained.items() if name != "whitened"}
            trained = t5_encoder(rest, DATA).clone(whitened=whitened)
            if text is None or text[1] != trained.width:
                return None
        if numbers is not None and not (type(numbers) is int and numbers > 0):
            return None
        if text is not None and not (len(text) == 2 and all(type(n) is int and n > 0 for n in text)):
            return None
        if type(encoder) is not (type(None) if text is None else str):
            return None
        text = None if text is None else (text[0], text[1])
        names = None if given is None else tuple(given)
        return Samples(tuple(shape), classes, names, pictures, largest, numbers, text, encoder, trained)
    except (KeyError, TypeError, ValueError, AttributeError):
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


@checked_numbers
def load_run(run: str | Path, *, ema_width: float | None = None) -> tuple[Run, Params]:
    """A run of any family and its averaged parameters, read back for use in Python: its training data are not needed.

        run, params = diffjax.config.load_run("runs/digits")
        x0 = run.family.sample(params, key, jnp.arange(16), labels, steps=10)

    Args:
      run: the folder.
      ema_width: as in `load`.

    Raises:
      ValueError, FileNotFoundError: as `load`.
    """
    check_folder(run)
    found = read_run(Path(run))
    params, step = read_params(Path(run), found, ema_width)
    return at_step(found, step), params


def check_folder(run: str | Path) -> None:
    """Raises `ValueError` where a run is no path of a folder."""
    if not isinstance(run, str | os.PathLike):
        raise ValueError(f"run: the path of a folder is needed, got {run!r}")
    if not Path(run).is_dir():
        raise ValueError(f"run: {run}: no such folder")


def read_params(folder: Path, run: Run, width: float | None = None) -> tuple[Params, int]:
    """A run's averaged parameters, whole everywhere, and their step: the newest checkpoint's; the rest is not read.

    `width` asks for another average, made of its snapshots.
    """
    config = run.config
    snapshots = sync_errors(lambda: find_snapshots(config, folder, width))
    shapes = sync_errors(lambda: jax.eval_shape(lambda: fresh_state(run)))
    everywhere = NamedSharding(data_mesh(), PartitionSpec())
    like = {"step": shapes.step, "ema": {DECAY: shapes.ema[DECAY]} if names(config) else shapes.ema}
    if (untrained := _untrained(run, shapes)) is not None:
        like["params"] = untrained
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), like)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore_some(like)
    step, params = int(state["step"]), averaged(config, state["ema"])
    if snapshots is not None and width is not None:
        found = sync_errors(lambda: snapshots.reconstruct(jax.eval_shape(lambda: params), width, step))
        put = lambda array: jax.make_array_from_callback(array.shape, everywhere, lambda part: array[part])
        params = jax.tree.map(put, found)
    return params if untrained is None else eqx.combine(params, state["params"]), step


def _untrained(run: Run, state: TrainState) -> Params | None:
    """The parameters of a state, or their shapes, that no objective trains, None in the place of others.

    None where there are none, and of a diffusion: a student's teacher has no part in its samples.
    """
    if run.parts is not None:
        return None
    ema = averaged(run.config, state.ema)
    none = lambda leaf: leaf is None
    rest = jax.tree.map(lambda mean, leaf: leaf if mean is None else None, ema, state.params, is_leaf=none)
    return rest if jax.tree.leaves(rest) else None


def sampled_params(run: Run, state: TrainState) -> Params:
    """The parameters that samples of a state are drawn with: the average of those that are trained, and the rest."""
    params, untrained = averaged(run.config, state.ema), _untrained(run, state)
    return params if untrained is None else eqx.combine(params, untrained)


def at_step(run: Run, step: int) -> Run:
    """A run that has had so many updates: of a training in stages, as of its stage."""
    if run.parts is None or (parts := parts_at_step(run.config, run.parts, step)) is run.parts:
        return run
    return with_parts(run.config, run.samples, parts)


def begin_from_encoder(run: Run, state: TrainState) -> TrainState:
    """A fresh state whose text encoder has the weights of the folder `data.text`; the same one if it trains none.

        state = config.begin_from_encoder(run, config.fresh_state(run))

    Args:
      run: of `build_run`.
      state: of `fresh_state`.

    Returns:
      The state; its averages begin from these weights as well.

    Raises:
      ValueError: the folder no longer holds the encoder that the data were read with.
    """
    parts, samples = run.parts, run.samples
    if parts is None or samples.trained_encoder is None:
        return state
    encoder = load_text_encoder(run.config.data.text or "")
    if encoder.fingerprint != samples.encoder:
        raise ValueError(f"data.text: {run.config.data.text} holds another encoder than before; start again")
    weights = jax.tree.map(jnp.asarray, encoder.trainable()[1])
    if parts.learned:
        params = state.params | {"network": state.params["network"] | {ENCODER: weights}}
    else:
        params = state.params | {ENCODER: weights}
    return state_from_params(state.key, params, parts.training_objective(), averages=names(run.config))


def fresh_state(run: Run) -> TrainState:
    """The state before the first step, of the shapes that a checkpoint is read into."""
    x0, cond = run.samples.example()
    key, averages = jax.random.key(run.config.seed), names(run.config)
    init_key, step_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)  # as `init_state`
    params = run.family.init(init_key, x0, cond)
    return state_from_params(step_key, params, run.family.objectives, averages=averages)
