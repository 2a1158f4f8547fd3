"""`diffjax checkpoint`: what a run has saved, looked at and put in order without its network or data.

RUN/checkpoints --> list | verify | rollback (RUN/checkpoints/aside) | export (weights.safetensors)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from diffjax.cli._folder import check_here
from diffjax.cli._print import print_line, print_table
from diffjax.config._averages import DECAY
from diffjax.training import Checkpoints, Damaged, save_weights

_GONE = "deleted since it was listed: the run goes on"
_METRICS = 3
"""How many metrics are listed."""
_OF_THE_MACHINE = re.compile(r"/|_seconds$|_per_second$|_bytes$")
"""Metrics that are not listed: of parts of others, or of the speed and the memory."""


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
    """Which one: verify takes all of them by default, export the newest; rollback needs it named."""
    out: str | None = None
    """export: the .safetensors file; RUN/ema-STEP.safetensors by default."""
    average: str | None = None
    """export: name of the average, such as 0.05 of --ema-widths; by default the one that samples are drawn with."""


def run_checkpoint(options: Checkpoint, argv: list[str]) -> None:
    """Runs the action; raises `RuntimeError` where a checkpoint was found damaged."""
    run = Path(options.run)
    if not run.is_dir():
        raise ValueError(f"run: {options.run}: no such folder")
    folder = run / "checkpoints"
    if options.out is not None and options.action != "export":
        raise ValueError(f"out: {options.action} writes no file, got {options.out}")
    if options.average is not None and options.action != "export":
        raise ValueError(f"average: {options.action} writes none, got {options.average}")
    if options.action == "rollback":
        _rollback(folder, options.step)
        return
    with Checkpoints(folder, read_only=True) as checkpoints:
        if not checkpoints.steps():
            raise FileNotFoundError(f"{folder}: no checkpoint")
        if options.step is not None and options.step not in checkpoints.steps():
            raise ValueError(f"step: {folder} holds {_listed(checkpoints.steps())}, got {options.step}")
        {"list": _list, "verify": _verify, "export": _export}[options.action](checkpoints, run, options)


def _list(checkpoints: Checkpoints, run: Path, options: Checkpoint) -> None:
    """A line for each: read are its records, and not its arrays, as `verify` does."""
    found: dict[int, tuple[Mapping[str, Any], str, str]] = {}  # step -> what it says of itself, size, readable
    for step in checkpoints.steps() if options.step is None else [options.step]:
        folder = checkpoints.folder / str(step)
        try:
            about = checkpoints.about(step)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
            folder.stat()  # it is still there
            found[step] = about, f"{size:,.2f} MiB", "yes"
        except FileNotFoundError:
            found[step] = {}, "", f"no: {_GONE}"
        except ValueError as error:
            found[step] = {}, "", f"no: {str(error).removeprefix(f'{folder}: ')}"
    metrics = dict.fromkeys(name for about, _, _ in found.values() for name in about.get("metrics", {}))
    shown = [name for name in metrics if not _OF_THE_MACHINE.search(name)][:_METRICS]
    rows = [["step", "saved", "size", *shown, "averages", "saved on", "readable"]]
    for step, (about, size, readable) in found.items():
        values = [f"{about['metrics'][name]:.4g}" if name in about.get("metrics", {}) else "" for name in shown]
        described = ["", ""]
        if about:
            mesh = " ".join(f"{axis} {n}" for axis, n in about.get("mesh", {}).items() if n > 1) or "one device"
            described = [_named_averages(about["leaves"]), mesh]
        rows.append([str(step), _local(about.get("time")), size, *values, *described, readable])
    print_table(rows, right={0, 2, *range(3, 3 + len(shown))})


def _local(time: str | None) -> str:
    """A time in ISO 8601 as the clock on the wall shows it here."""
    try:
        return "" if time is None else datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return str(time)


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


def _rollback(folder: Path, step: int | None) -> None:
    with Checkpoints(folder, read_only=True) as checkpoints:
        steps = checkpoints.steps()
    if step is None or step not in steps:
        raise ValueError(f"step: rollback goes to one of {_listed(steps)}, got {'none' if step is None else step}")
    with Checkpoints(folder) as checkpoints:
        moved = checkpoints.rollback(step)
    print_line(f"{folder}: the newest is now step {step}; moved to {folder / 'aside'}: {_listed(moved)}")


def _export(checkpoints: Checkpoints, run: Path, options: Checkpoint) -> None:
    check_here("out", options.out or "")
    if options.out is not None and Path(options.out).suffix != ".safetensors":
        raise ValueError(f"out: weights are written as .safetensors, got {options.out}")
    if options.out is not None and not Path(options.out).parent.is_dir():
        raise ValueError(f"out: {Path(options.out).parent}: no such folder")
    step, weights = _averages(checkpoints, options.step, options.average)
    out = Path(options.out or run / f"ema-{step}.safetensors")
    config = run / "config.json"
    about = {"step": str(step)} | ({"config": config.read_text(encoding="utf-8")} if config.is_file() else {})
    save_weights(out, weights, about)
    print_line(
        f"{out}: {len(weights)} arrays, {sum(array.size for array in weights.values()):,} numbers, of step {step}"
    )


def _averages(checkpoints: Checkpoints, step: int | None, name: str | None) -> tuple[int, dict[str, np.ndarray]]:
    """The averaged parameters of a step, or of the newest: of the one after it where the run has just deleted that.

    Parameters that are never trained, in no average, are as they are.
    """
    while True:
        at = checkpoints.steps()[-1] if step is None else step
        try:
            leaves = checkpoints.about(at)["leaves"]
            prefix = _prefix(leaves, name)
            found = {path.removeprefix(prefix): array for path, array in checkpoints.leaves(at, prefix)}
            params = _within(leaves, "params/")
            if found.keys() < params:  # some are never trained
                rest = {path.removeprefix("params/"): array for path, array in checkpoints.leaves(at, "params/")}
                found = rest | found
            return at, found
        except FileNotFoundError:
            if step is not None or at in checkpoints.steps():
                raise


def _prefix(leaves: Mapping[str, object], name: str | None) -> str:
    """The path of the average of a name, of those that a checkpoint has."""
    names = _names(leaves)
    if not names:
        if name is not None:
            raise ValueError(f"average: the run has one, without a name, got {name}")
        return "ema/"
    name = DECAY if name is None else name
    if name not in names:
        raise ValueError(f"average: the run has {', '.join(names)}, got {name}")
    return f"ema/{name}/"


def _names(leaves: Mapping[str, object]) -> list[str]:
    """What a checkpoint's averages are called; nothing where there is one alone, or none."""
    params, averages = _within(leaves, "params/"), _within(leaves, "ema/")
    if averages <= params or not {path.split("/", 1)[-1] for path in averages} <= params:
        return []
    return sorted({path.split("/", 1)[0] for path in averages})


def _named_averages(leaves: Mapping[str, object]) -> str:
    return ", ".join(_names(leaves)) or ("one" if _within(leaves, "ema/") else "none")


def _within(leaves: Mapping[str, object], top: str) -> set[str]:
    """The paths below one."""
    return {path.removeprefix(top) for path in leaves if path.startswith(top)}


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "nothing"
