"""`diffjax checkpoint`: what a run has saved, looked at and put in order without its network or data.

RUN/checkpoints --> list | verify | rollback (RUN/checkpoints/aside) | export (weights.safetensors)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from diffjax.cli._folder import lock_run
from diffjax.cli._print import print_line
from diffjax.training import Checkpoints, Damaged, save_weights

_GONE = "deleted since it was listed: the run goes on"


@dataclass(frozen=True)
class Checkpoint:
    """List a run's checkpoints, verify them, go back to an older one, or export averaged parameters.

    Neither the network nor the data are needed.

        $ diffjax checkpoint list runs/digits
        $ diffjax checkpoint verify runs/digits
        $ diffjax checkpoint rollback runs/digits --step 2000
        $ diffjax checkpoint export runs/digits --out digits.safetensors
    """

    action: tyro.conf.Positional[Literal["list", "verify", "rollback", "export"]]
    """verify reads every byte; rollback moves newer steps to RUN/checkpoints/aside; export writes the averages."""
    run: tyro.conf.Positional[str]
    """Folder of the run."""
    step: int | None = None
    """Which one: verify takes all of them by default, export the newest; rollback has to be told."""
    out: str | None = None
    """export: the .safetensors file; RUN/ema-STEP.safetensors by default."""


def run_checkpoint(options: Checkpoint, argv: list[str]) -> None:
    """Does what was asked; raises `RuntimeError` where a checkpoint was found damaged."""
    run = Path(options.run)
    if not run.is_dir():
        raise ValueError(f"run: {run}: no such folder")
    folder = run / "checkpoints"
    if options.out is not None and options.action != "export":
        raise ValueError(f"out: {options.action} writes no file, got {options.out}")
    if options.action == "rollback":
        _rollback(run, folder, options.step)
        return
    with Checkpoints(folder, read_only=True) as checkpoints:
        if not checkpoints.steps():
            raise FileNotFoundError(f"{folder}: no checkpoint")
        if options.step is not None and options.step not in checkpoints.steps():
            raise ValueError(f"step: {folder} holds {_listed(checkpoints.steps())}, got {options.step}")
        {"list": _list, "verify": _verify, "export": _export}[options.action](checkpoints, run, options)


def _list(checkpoints: Checkpoints, run: Path, options: Checkpoint) -> None:
    print_line(f"{'step':>10}  {'saved':25}  {'MiB':>9}  {'saved on':16}  metrics")
    for step in checkpoints.steps() if options.step is None else [options.step]:
        try:
            about = checkpoints.about(step)
            folder = checkpoints.folder / str(step)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
            folder.stat()  # it is still there
        except FileNotFoundError:
            print_line(f"{step:>10}  {_GONE}")
            continue
        except ValueError as error:
            print_line(f"{step:>10}  {str(error).removeprefix(f'{checkpoints.folder / str(step)}: ')}")
            continue
        mesh = " ".join(f"{axis} {n}" for axis, n in about.get("mesh", {}).items() if n > 1) or "one device"
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in about.get("metrics", {}).items())
        print_line(f"{step:>10}  {about.get('time', ''):25}  {size:>9.2f}  {mesh:16}  {metrics}".rstrip())


def _verify(checkpoints: Checkpoints, run: Path, options: Checkpoint) -> None:
    steps = checkpoints.steps() if options.step is None else [options.step]
    damaged = []
    for step in steps:
        try:
            checkpoints.verify(step)
        except FileNotFoundError:
            print_line(f"{step:>10}  {_GONE}")
        except Damaged as error:
            damaged.append(step)
            print_line(f"{step:>10}  {str(error).removeprefix(f'{checkpoints.folder / str(step)}: ')}")
        else:
            print_line(f"{step:>10}  ok")
    if damaged:
        raise RuntimeError(
            f"{checkpoints.folder}: damaged: {_listed(damaged)}; training goes on from the last good one"
        )


def _rollback(run: Path, folder: Path, step: int | None) -> None:
    with Checkpoints(folder, read_only=True) as checkpoints:
        steps = checkpoints.steps()
    if step is None or step not in steps:
        raise ValueError(f"step: rollback goes to one of {_listed(steps)}, got {'none' if step is None else step}")
    with lock_run(run), Checkpoints(folder) as checkpoints:
        moved = checkpoints.rollback(step)
    print_line(f"{folder}: the newest is now step {step}; moved to {folder / 'aside'}: {_listed(moved)}")


def _export(checkpoints: Checkpoints, run: Path, options: Checkpoint) -> None:
    if options.out is not None and Path(options.out).suffix != ".safetensors":
        raise ValueError(f"out: weights are written as .safetensors, got {options.out}")
    if options.out is not None and not Path(options.out).parent.is_dir():
        raise ValueError(f"out: {Path(options.out).parent}: no such folder")
    step, weights = _averages(checkpoints, options.step)
    out = Path(options.out or run / f"ema-{step}.safetensors")
    config = run / "config.json"
    about = {"step": str(step)} | ({"config": config.read_text(encoding="utf-8")} if config.is_file() else {})
    save_weights(out, weights, about)
    print_line(
        f"{out}: {len(weights)} arrays, {sum(array.size for array in weights.values()):,} numbers, of step {step}"
    )


def _averages(checkpoints: Checkpoints, step: int | None) -> tuple[int, dict[str, np.ndarray]]:
    """The averaged parameters of a step, or of the newest: of the one after it where the run has just deleted that."""
    while True:
        at = checkpoints.steps()[-1] if step is None else step
        try:
            several = {path.removeprefix("ema/decay/"): array for path, array in checkpoints.leaves(at, "ema/decay/")}
            return at, several or {path.removeprefix("ema/"): array for path, array in checkpoints.leaves(at, "ema/")}
        except FileNotFoundError:
            if step is not None or at in checkpoints.steps():
                raise


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "nothing"
