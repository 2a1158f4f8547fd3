"""What a run says of itself: the JSONL file, the bar, and whoever else watches.

    metrics of each step, on the devices --add--> pending --write, every few steps--> one line of means
                                                                |
                                        metrics.jsonl, bar, watchers: process 0     skipped in a row: every process

`add` waits for the step before the one just begun, so that the host is never more than one step ahead: nothing is
moved, and a signal or a full disk is answered where the devices are.
"""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from diffjax.training._distributed import agree_on_main, is_main
from diffjax.training._durable import write_durably
from diffjax.training._watch import Watch, peak_bytes


class Record:
    """The metrics of a run, a context manager that closes the bar."""

    def __init__(
        self,
        log: str | Path | None,
        done: int,
        steps: int,
        batch_size: int,
        *,
        each: int,
        skip_limit: int,
        progress: bool,
        watch: Sequence[Watch],
    ):
        """Opens the log and cuts it off after step `done`; in process 0 alone.

        Args:
          log: the JSONL file, or None.
          done: how many steps were made before.
          steps: how many it will be in the end.
          batch_size: samples a step.
          each: how many steps `add` hears of at a time.
          skip_limit: how many steps skipped in a row are remembered.
          progress: whether to draw a bar.
          watch: called with each line.
        """
        self._main = is_main()
        self._path = Path(log) if log is not None and self._main else None
        if log is not None:
            agree_on_main(lambda: truncate_log(log, done))
        self._watch = watch if self._main else ()
        self._batch_size, self._each, self._skip_limit = batch_size, each, skip_limit
        self._pending: list[dict[str, Any]] = []
        self._before: Any = None
        self._spent = {"wait_seconds": 0.0, "save_seconds": 0.0}
        self._since = time.perf_counter()
        self._skipped_in_all = 0
        self.skipped: list[int] = []  # the newest steps, where they were skipped one after the other
        hidden = not (progress and self._main) or sys.stderr is None or sys.stderr.closed
        self._warned: set[str] = set()
        self._bar: Any = None
        with self._or_without("the progress bar"):
            self._bar = tqdm(total=steps, initial=done, unit="step", disable=hidden, dynamic_ncols=True)

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        with self._or_without("the progress bar"):
            if self._bar is not None:
                self._bar.close()

    @contextmanager
    def _or_without(self, what: str) -> Iterator[None]:
        """What cannot be written is dropped, with one warning: a closed terminal or a full disk ends no training."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a file that was closed here
            if what == "the progress bar" and self._bar is not None:
                self._bar.disable = True
            if what not in self._warned:
                self._warned.add(what)
                with suppress(OSError, ValueError):
                    warnings.warn(f"{what} cannot be written ({error}); training goes on without it", stacklevel=4)

    @contextmanager
    def spends(self, name: str) -> Iterator[None]:
        """Counts the time within as `wait_seconds` or `save_seconds`."""
        begun = time.perf_counter()
        yield
        self._spent[name] += time.perf_counter() - begun

    def add(self, metrics: dict[str, Any]) -> None:
        """Keeps the metrics of one call, wherever they are, and waits for the call before."""
        missing = [name for name in ("loss", "skipped") if name not in metrics]
        if missing:
            raise ValueError(
                f"layout: a step's metrics need the scalars loss and skipped (1 where nothing was updated), as of "
                f"`make_train_step`; {' and '.join(missing)}: missing, there are {', '.join(sorted(metrics))}"
            )
        self._pending.append(metrics)
        jax.block_until_ready(self._before)
        self._before = metrics

    def write(self, step: int) -> dict[str, float]:
        """Fetches what is pending and writes one line; `step` is the newest. Returns its numbers.

        `skipped` then holds the newest steps if they were skipped in a row, or the first `skip_limit` in a row that
        there were.
        """
        if not self._pending:
            return {}
        each = _per_step(jax.device_get(self._pending), self._each)
        count = len(each["skipped"])
        for number, skipped in enumerate(each["skipped"], step - count + 1):
            if len(self.skipped) < self._skip_limit:
                self.skipped = [*self.skipped, number] if skipped else []
        line = _means(each) | self._times(count)
        self._pending = []
        self._tell(step, count, line)
        return line

    def _times(self, count: int) -> dict[str, float]:
        """Seconds a step, and what they were spent on."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        times = {"images_per_second": round(count * self._batch_size / seconds, 1), "step_seconds": seconds / count}
        times |= {name: spent / count for name, spent in self._spent.items()}
        self._spent = dict.fromkeys(self._spent, 0.0)
        peak = peak_bytes()
        return times if peak is None else times | {"device_bytes": float(peak)}

    def _tell(self, step: int, count: int, line: dict[str, float]) -> None:
        if self._path is not None:
            known = {name: value if math.isfinite(value) else None for name, value in line.items()}
            text = json.dumps({"step": step, **known}, allow_nan=False) + "\n"
            with self._or_without(f"log: {self._path}"), self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for watch in self._watch:
            watch(step, dict(line))
        self._skipped_in_all += int(line["skipped"])
        skipped = f", {self._skipped_in_all} skipped" if self._skipped_in_all else ""
        text = f"loss {line['loss']:.4f}, {line['images_per_second']:,.0f} images/s{skipped}"
        with self._or_without("the progress bar"):
            if self._bar is not None:
                self._bar.set_postfix_str(text, refresh=False)
                self._bar.update(count)


def _per_step(rows: list[dict[str, Any]], steps_a_call: int) -> dict[str, np.ndarray]:
    """Name -> [steps, ...], from the metrics of calls of one step, or of several stacked."""
    join = np.stack if steps_a_call == 1 else np.concatenate
    return {name: join([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def _means(each: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the steps that were not skipped, NaN where all were; `skipped` is their number.

    A level's loss is the mean over the samples that fell into it, NaN where none did.
    """
    made = each["skipped"] == 0
    skipped = float(np.sum(~made))
    each = {name: value[made].astype(np.float64) for name, value in each.items() if name != "skipped"}
    counts, losses = each.pop("count_by_level", None), each.pop("loss_by_level", None)
    names = ("loss", *sorted(each.keys() - {"loss"}))
    means = {name: float(np.mean(each[name])) if made.any() else math.nan for name in names} | {"skipped": skipped}
    if counts is not None and losses is not None:
        total, sums = counts.sum(0), np.where(counts > 0, losses * counts, 0).sum(0)
        for level, (n, value) in enumerate(zip(total, sums, strict=True)):
            means[f"loss_by_level/{level:02}"] = float(value / n) if n else math.nan
    return means


def truncate_log(path: str | Path, step: int) -> None:
    """Removes the lines of a JSONL log beyond a step, and those that were cut short; the file may be absent.

    The rest is written beside it first, and put in its place by one rename. A log that begins with what a power loss or
    an editor leaves there (NULs, a byte order mark, blank lines) is moved aside, with a warning, and its lines kept.

    Raises:
      ValueError: the first line is no record of ours, whole or cut short: it is another file, and stays as it is.
    """
    path = Path(path)
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    sound = text.lstrip("\0\ufeff \t\r\n")
    lines = sound.splitlines()
    if lines and _step_of(lines[0]) is None and not (sound == lines[0] and _is_cut_short(sound)):
        raise ValueError(f"log: {path} is not a log of training, its first line is {lines[0][:40]!r}")
    if sound != text:
        aside = path.with_name(f"{path.name}.broken-{int(time.time())}")
        os.replace(path, aside)
        warnings.warn(f"log: {path} began with {text[:1]!r}, it is now {aside}; its lines are kept", stacklevel=3)
    kept = []
    for line in lines:
        at = _step_of(line)
        if at is not None and at > step:
            break
        if at is not None:  # a full disk cuts a line short, and training goes on after it
            kept.append(line + "\n")
    write_durably(path, "".join(kept))


def _step_of(line: str) -> int | None:
    """The step of a line of the log; None where it is no such line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _is_cut_short(text: str) -> bool:
    """Whether it is how a record begins."""
    opening = '{"step": '
    return text.startswith(opening) or opening.startswith(text)
