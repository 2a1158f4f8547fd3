"""A run's folder on the command line: read by all processes alike, and what is read is said."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from diffjax._typing import Params
from diffjax.cli._devices import name_devices
from diffjax.cli._hosts import log
from diffjax.config import Config, OtherGuidance, OtherSampler, Parts, Samples, changed, load, rebuild_sampling
from diffjax.config._run import Run, TrainedRun, fresh_state as fresh_state, read_params as _read_params, read_run
from diffjax.config._sampling import at_step, trained_parts
from diffjax.training import sync_errors


def check_run(run: str) -> None:
    """Raises `ValueError` where there is no such folder."""
    if not Path(run).is_dir():
        raise ValueError(f"run: {run}: no such folder")


def open_run(
    run: str,
    chunk: int,
    sampler: OtherSampler | None = None,
    guidance: OtherGuidance | None = None,
    *,
    autoguidance: bool = False,
) -> Run:
    """A run's configuration, what its samples are like, and its objects, with changes to its sampler and guidance.

    No data are read. A run without classes has guidance only where there is a weaker run (`autoguidance`).

    Raises:
      ValueError: there is no such run, or an option does not fit it.
    """
    if chunk < 1:
        raise ValueError(f"chunk: at least 1, got {chunk}")

    def read() -> Run:
        check_run(run)
        found = read_run(Path(run))
        if found.parts.objective.flow_map:
            for name, value in {**vars(guidance or OtherGuidance()), "autoguidance": autoguidance or None}.items():
                if value is not None:
                    raise ValueError(
                        f"guidance: this run is a flow map, which has its guidance built in, got {name} = {value}; "
                        "train, or distill, with another --guidance.scale"
                    )
        if found.samples.classes is None and not autoguidance:
            for name, value in vars(guidance or OtherGuidance()).items():
                if value is not None:
                    raise ValueError(f"guidance.{name}: this run knows no classes, got {value}")
        config = dataclasses.replace(
            found.config,
            sampler=changed(found.config.sampler, _with_one_number(sampler or OtherSampler())),
            guidance=changed(found.config.guidance, guidance or OtherGuidance()),
        )
        return found._replace(config=config, parts=rebuild_sampling(config, found.parts))

    return sync_errors(read)


def _with_one_number(sampler: OtherSampler) -> OtherSampler:
    """With the first of several numbers of steps."""
    steps: Any = sampler.steps
    if steps is not None and not steps:
        raise ValueError("steps: at least one number is needed, got none")
    return sampler if steps is None else dataclasses.replace(sampler, steps=steps[0])


def each_steps(found: Run, steps: tuple[int, ...] | None) -> Iterator[tuple[int, Run]]:
    """(number of steps, run with a grid of so many), for each number requested; by default the run's own."""
    if not steps:
        yield len(found.parts.ts) - 1, found
    for n in steps or ():
        sampler = dataclasses.replace(found.config.sampler, steps=n)
        config = dataclasses.replace(found.config, sampler=sampler)
        yield n, found._replace(config=config, parts=rebuild_sampling(config, found.parts))


def read_trained(
    run: str, config: Config, samples: Samples, parts: Parts, width: float | None = None, *, given: bool = False
) -> tuple[Parts, Params]:
    """A run's parts, with the process that it learned, and the network's averaged parameters.

    As `config._run.read_params`; says of which step they are. A training in stages that was stopped is sampled in the
    number of steps of its stage, unless the grid of `parts` was requested.
    """
    params, step = _read_params(Path(run), config, samples, parts, width)
    log(f"{run}: step {step} of {config.steps}; {name_devices(len(jax.devices()))}")
    reached = at_step(config, parts, step)
    if parts.objective.stages > 1:
        stage, steps = reached.stage, parts.objective.steps_of(reached.stage)
        log(f"stage {stage + 1} of {parts.objective.stages}: sampling steps {steps}")
    return trained_parts(config, reached._replace(ts=parts.ts) if given else reached, params)


def read_weak(run: str | None, found: Run) -> TrainedRun | None:
    """The weaker run of `--autoguidance`, read back; None where there is none.

    Raises:
      ValueError: its samples, classes or process differ from those of the run that it guides.
    """
    if run is None:
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
