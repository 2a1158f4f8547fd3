"""A run's folder on the command line: read by all processes alike, and what is read is said.

RUN --open_run--> Run --read_trained--> Run at the stage that its training had reached, params
options of a command --sampling_options--> options of the family's samples
"""

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from diffjax._typing import Params
from diffjax.cli._devices import name_devices
from diffjax.cli._draw import on_every_device
from diffjax.cli._hosts import log
from diffjax.cli._options import Evaluate, Sample
from diffjax.config import Run, load
from diffjax.config._run import TrainedRun, at_step, check_folder, read_params, read_run
from diffjax.training import check_options, data_mesh, sync_errors


def open_run(run: str, chunk: int) -> Run:
    """A run's configuration, what its samples are like, and its family. No data are read.

    Raises:
      ValueError: there is no such run, or none are drawn at a time.
    """
    if chunk < 1:
        raise ValueError(f"chunk: at least 1, got {chunk}")

    def read() -> Run:
        check_folder(run)
        return read_run(Path(run))

    return sync_errors(read)


def sampling_options(options: Sample | Evaluate, found: Run) -> dict[str, Any]:
    """The options of the family's samples that a command names, but for a number of steps; each is looked at.

    Raises:
      ValueError: the family has no such option, or its value does not fit.
    """

    def read() -> dict[str, Any]:
        check_options(found.config.family.name, found.family, _named(options))
        sampler, guidance = dataclasses.replace(options.sampler, steps=None), options.guidance
        given = {"sampler": sampler if _of(sampler) else None, "guidance": guidance if _of(guidance) else None}
        given |= {"temperature": options.temperature, "autoguidance": options.autoguidance}
        given = {name: value for name, value in given.items() if value is not None}
        steps: Any = options.sampler.steps
        if steps is not None and not steps:
            raise ValueError("steps: at least one number is needed, got none")
        found.family.nfe(**given | ({} if steps is None else {"steps": steps[0]}))
        return given

    given, weak = sync_errors(read), sync_errors(lambda: read_weak(options.autoguidance, found))
    if weak is not None:
        given["autoguidance"] = weak._replace(params=on_every_device(weak.params, data_mesh())).denoiser
    return given


def _named(options: Sample | Evaluate) -> list[str]:
    """The options of samples that are given, by the names that families have for them."""
    named = ["steps" if name == "steps" else f"sampler.{name}" for name in _of(options.sampler)]
    named += [f"guidance.{name}" for name in _of(options.guidance)]
    named += [name for name in ("autoguidance", "temperature", "ts") if getattr(options, name, None) is not None]
    inpainted = any(getattr(options, name, None) is not None for name in ("known", "mask", "times"))
    return [*named, "known"] if inpainted else named


def _of(group: Any) -> list[str]:
    """The options of a group that are given."""
    return [name for name, value in vars(group).items() if value is not None]


def each_steps(given: dict[str, Any], steps: Any) -> dict[int | None, dict[str, Any]]:
    """Number of steps -> options of samples with it, for each number requested; by default the run's own, None."""
    return {n: given | {"steps": n} for n in steps} if steps else {None: given}


def read_trained(folder: str, run: Run, width: float | None = None) -> tuple[Run, Params]:
    """A run at the stage that its training had reached, and its averaged parameters; says of which step they are.

    As `config._run.read_params`. A training in stages that was stopped is sampled in the number of steps of its stage.
    """
    params, step = read_params(Path(folder), run, width)
    log(f"{folder}: step {step} of {run.config.steps}; {name_devices(len(jax.devices()))}")
    reached = at_step(run, step)
    if reached.parts is not None and (stages := reached.parts.objective.stages) > 1:
        steps = reached.parts.objective.steps_of(reached.parts.stage)
        log(f"stage {reached.parts.stage + 1} of {stages}: sampling steps {steps}")
    return reached, params


def read_weak(run: str | None, found: Run) -> TrainedRun | None:
    """The weaker run of `--autoguidance`, read back; None where there is none.

    Raises:
      ValueError: its samples, classes or process differ from those of the run that it guides.
    """
    if run is None or found.parts is None:
        return None
    try:
        weak = load(run)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"autoguidance: {str(error).removeprefix('run: ')}") from None
    differ = {
        "samples of another shape": weak.shape != found.samples.shape,
        "other classes": weak.null != found.parts.null,
        "a flow map": weak.objective.flow_map,
        "another process": not eqx.tree_equal(weak.process, found.parts.process),
    }
    for what, differs in differ.items():
        if differs:
            raise ValueError(f"autoguidance: a run on the same data and process is needed, got {what} in {run}")
    return weak
