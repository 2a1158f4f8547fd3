"""The log of a run: one JSON object a line, each with the means of the metrics since the line before.

    metrics of each call, [...] --stack_steps--> name -> [steps, ...] --means--> {"step": 50, "loss": 0.12, ...}

A resumed run removes the lines after its checkpoint first.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffjax._numbers import checked_numbers
from diffjax.training.checkpoint._files import write_durably

OWN = ("step", "images_per_second", "step_seconds", "wait_seconds", "save_seconds", "draw_seconds", "device_bytes")
"""What a line holds besides the metrics of the steps."""


def stack_steps(calls: Sequence[Mapping[str, np.ndarray]], steps_per_call: int) -> dict[str, np.ndarray]:
    """Name -> [steps, ...], from the metrics of calls of one step, [...], or of several, [steps_per_call, ...]."""
    join = np.stack if steps_per_call == 1 else np.concatenate
    return {name: join([np.asarray(metrics[name]) for metrics in calls]) for name in calls[0]}


def means(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Name -> mean of [steps, ...] over the steps that were not skipped, for an objective over those it was due in.

    NaN where there were no such steps; `skipped` is the number of skipped steps. A level's loss is the mean over the
    samples of that level, NaN where there were none.
    """
    made = metrics["skipped"] == 0
    skipped = float(np.sum(~made))
    values = {name: value[made].astype(np.float64) for name, value in metrics.items() if name != "skipped"}
    counts, losses = values.pop("count_by_level", None), values.pop("loss_by_level", None)
    names = ("loss", *sorted(values.keys() - {"loss"}))
    due = {name: values[name][_due(name, values)] for name in names}
    means = {name: float(np.mean(value)) if len(value) else math.nan for name, value in due.items()}
    means["skipped"] = skipped
    if counts is not None and losses is not None:
        total, sums = counts.sum(0), np.where(counts > 0, losses * counts, 0).sum(0)
        for level, (n, value) in enumerate(zip(total, sums, strict=True)):
            means[f"loss_by_level/{level:02}"] = float(value / n) if n else math.nan
    return means


def loss_names(line: Mapping[str, float]) -> list[str]:
    """The names of the losses in a line of a log: NAME/loss of each objective, or loss where there is only one."""
    return [name for name in line if name.endswith("/loss")] or ["loss"]


def _due(name: str, metrics: Mapping[str, np.ndarray]) -> slice | np.ndarray:
    """The steps that made a metric: where NAME/due of NAME/..., or due of a metric without NAME, is 1; else all."""
    group = name.split("/", 1)[0] + "/due" if "/" in name else "due"
    due = metrics.get(group, metrics.get("due"))
    return slice(None) if due is None or name == group else due > 0


@checked_numbers
def truncate_log(path: str | Path, step: int) -> None:
    """Removes the lines of a JSONL log after a step, and truncated ones; the file may be absent.

    The remaining lines replace the file atomically. A log that begins with NULs (a power loss), a byte order mark or
    blank lines (an editor) is moved aside, with a warning, and its lines are written to a new one. A pipe or a terminal
    is neither read nor changed.

    Raises:
      ValueError: the first line is no line of a log, whole or truncated: it is another file, and is not changed.
    """
    path = Path(path).resolve()  # of a link, the file is replaced and not the link
    if not path.is_file() and not path.is_dir():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    content = text.lstrip("\0\ufeff \t\r\n")
    lines = content.splitlines()
    if lines and _step_of(lines[0]) is None and not (content == lines[0] and _is_truncated(content)):
        raise ValueError(f"log: {path} is not a log of training, its first line is {lines[0][:40]!r}")
    if content != text:
        aside = path.with_name(f"{path.name}.broken-{int(time.time())}")
        os.replace(path, aside)
        warnings.warn(f"log: {path} began with {text[:1]!r}, it is now {aside}; its lines are kept", stacklevel=3)
    remaining = []
    for line in lines:
        line_step = _step_of(line)
        if line_step is not None and line_step > step:
            break
        if line_step is not None:  # a full disk truncates a line, and training continues after it
            remaining.append(line + "\n")
    if "".join(remaining) != text:
        write_durably(path, "".join(remaining))


def _step_of(line: str) -> int | None:
    """The step of a line of the log; None where it is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _is_truncated(text: str) -> bool:
    """True if the text is a truncated log line."""
    opening = '{"step": '
    return text.startswith(opening) or opening.startswith(text)
