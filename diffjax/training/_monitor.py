"""Monitoring of a run: the log, the progress bar, TensorBoard and other watchers, traces of the profiler.

    metrics of each step, on the devices --add--> pending --write, every few steps--> one line of means
                                                                |
                                        metrics.jsonl, bar, watchers: process 0     skipped in a row: every process

`add` waits for the step before the one just begun, so that the host is never more than one step ahead: nothing is
transferred, and a signal or a full disk is handled at the step the devices are at. The bar counts finished steps.

    watch(step, metrics)    called by process 0 with every line of the log, as floats; any function will do
"""

import json
import math
import os
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from diffjax.training._hosts import is_main, run_on_main
from diffjax.training._log import loss_names, means, stack_steps, truncate_log
from diffjax.training._step import Metrics

Watch: TypeAlias = Callable[[int, dict[str, float]], None]


class Monitor:
    """The metrics of a run, written every few steps; a context manager that closes the bar."""

    def __init__(
        self,
        log: str | Path | None,
        done: int,
        steps: int,
        batch_size: int,
        *,
        steps_per_call: int,
        skip_limit: int,
        progress: bool,
        watch: Sequence[Watch],
    ):
        """Opens the log and removes its lines after step `done`; in process 0 alone.

        Args:
          log: the JSONL file, or None.
          done: number of steps made before.
          steps: number of steps at the end of the run.
          batch_size: samples a step.
          steps_per_call: number of steps whose metrics `add` gets at a time.
          skip_limit: number of consecutive skipped steps that are stored.
          progress: True to draw a bar.
          watch: called with each line.
        """
        self._main = is_main()
        self._path = Path(log) if log is not None and self._main else None
        if log is not None:
            run_on_main(lambda: truncate_log(log, done))
        self._watch = watch if self._main else ()
        self._batch_size, self._steps_per_call, self._skip_limit = batch_size, steps_per_call, skip_limit
        self._written = done
        self._pending: list[Metrics] = []
        self._previous: Metrics | None = None
        self._spent = {"wait_seconds": 0.0, "save_seconds": 0.0}
        self._since = time.perf_counter()
        self._total_skipped = 0
        self.skipped: list[int] = []  # the newest steps, if they were skipped consecutively
        is_open = sys.stderr is not None and not sys.stderr.closed
        to_file = sys.stderr is not None and is_open and not sys.stderr.isatty()  # where each update of the bar stays
        self._warned: set[str] = set()
        self._bar: tqdm | None = None
        self._text = ""
        with self._warn_once("the progress bar"):
            self._bar = tqdm(
                total=steps,
                initial=done,
                unit="step",
                disable=not (progress and self._main and is_open),
                dynamic_ncols=True,
                mininterval=10.0 if to_file else 0.1,
                postfix="compiling" if done < steps else None,
            )

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        with self._warn_once("the progress bar"):
            if self._bar is not None:
                self._bar.close()

    @contextmanager
    def _warn_once(self, what: str) -> Iterator[None]:
        """An error of writing becomes one warning: a closed terminal or a full disk does not end a training."""
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
    def timed(self, name: str, text: str = "") -> Iterator[None]:
        """Adds the time within to `wait_seconds`, `save_seconds` or another; meanwhile the bar shows `text`."""
        start = time.perf_counter()
        if text:
            self._show(text)
        yield
        if text:
            self._show(self._text)
        self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - start

    def add(self, metrics: Metrics) -> None:
        """Stores the metrics of one call, on their devices, and waits for the previous call.

        Args:
          metrics: name -> [...], or [steps_per_call, ...] where a call is several steps.
        """
        self._pending.append(metrics)
        if self._previous is None:  # the first call has returned: it is compiled, and running
            self._show("", starts=True)
        jax.block_until_ready(self._previous)
        self._previous = metrics
        self._advance(self._written + (len(self._pending) - 1) * self._steps_per_call)

    def write(self, step: int) -> dict[str, float]:
        """Fetches the pending metrics and writes one line; `step` is the newest. Returns the numbers of the line.

        `skipped` then holds the newest steps if they were skipped consecutively, or the first `skip_limit` that were.
        """
        if not self._pending:
            return {}
        metrics = stack_steps(jax.device_get(self._pending), self._steps_per_call)
        count = len(metrics["skipped"])
        for number, skipped in enumerate(metrics["skipped"], step - count + 1):
            if len(self.skipped) < self._skip_limit:
                self.skipped = [*self.skipped, number] if skipped else []
        line = means(metrics) | self._times(count)
        self._pending, self._written = [], step
        self._write_line(step, line)
        return line

    def _times(self, count: int) -> dict[str, float]:
        """Seconds a step, and the parts of them that were spent waiting, saving and drawing."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        times = {"images_per_second": round(count * self._batch_size / seconds, 1), "step_seconds": seconds / count}
        times |= {name: spent / count for name, spent in self._spent.items()}
        self._spent = dict.fromkeys(self._spent, 0.0)
        peak = peak_bytes()
        return times if peak is None else times | {"device_bytes": float(peak)}

    def _write_line(self, step: int, line: dict[str, float]) -> None:
        """Writes a line to the log, the watchers and the bar."""
        if self._path is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
            text = json.dumps({"step": step, **finite}, allow_nan=False) + "\n"
            with self._warn_once(f"log: {self._path}"), self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # not a pipe or a terminal
                    os.fsync(file.fileno())
        for watch in self._watch:
            watch(step, dict(line))
        self._total_skipped += int(line["skipped"])
        skipped = f", {self._total_skipped} skipped" if self._total_skipped else ""
        losses = ", ".join(f"{name.replace('/', ' ')} {line[name]:.4f}" for name in loss_names(line))
        self._text = f"{losses}, {line['images_per_second']:,.0f} samples/s{skipped}"
        with self._warn_once("the progress bar"):
            if self._bar is not None:
                self._bar.set_postfix_str(self._text, refresh=False)
        self._advance(step)

    def _show(self, text: str, *, starts: bool = False) -> None:
        """Shows a text on the bar at once; where it starts, its speed is measured from here."""
        with self._warn_once("the progress bar"):
            if self._bar is not None and not self._bar.disable:
                if starts:
                    self._bar.unpause()
                self._bar.set_postfix_str(text)

    def _advance(self, step: int) -> None:
        """Moves the bar to a finished step."""
        with self._warn_once("the progress bar"):
            if self._bar is not None:
                self._bar.update(step - self._bar.n)


class TensorBoard:
    """Writes each metric as a scalar; a resumed run hides the values after its checkpoint.

    >>> watch = TensorBoard("runs/digits/tensorboard")   # train(..., watch=[watch])
    """

    def __init__(self, folder: str | Path):
        """Opens no file before the first line.

        Args:
          folder: for `tensorboard --logdir`.

        Raises:
          ImportError: tensorboardX is not installed: extra `log`.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("tensorboard: needs tensorboardX; pip install '.[log]' in diffjax's folder") from error
        self._open: Any = lambda step: SummaryWriter(str(folder), purge_step=step, flush_secs=10)
        self._writer: Any = None

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the finite metrics, scalars."""
        self._writer = self._writer or self._open(step)
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def picture(self, name: str, pixels: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Writes a picture, `pixels` [height, width, 3] of uint8, under a name."""
        self._writer = self._writer or self._open(step)
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is pending, which also happens at the end of the process."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def tensorboard(folder: str | Path) -> TensorBoard:
    """A watcher for `train` that writes each metric, a scalar, to TensorBoard files in a folder.

    Raises:
      ImportError: tensorboardX is not installed: extra `log`.
    """
    return TensorBoard(folder)


class Trace:
    """A trace by `jax.profiler` of some steps, in process 0; a context manager that ends it."""

    def __init__(self, profile: tuple[int, int, str | Path] | None):
        """Takes (first, last, folder): the numbers of the steps, both included; None for no trace.

        Raises:
          ValueError: the numbers are out of range.
        """
        if profile is not None and not 1 <= profile[0] <= profile[1]:
            raise ValueError(f"profile: (first, last, folder) with 1 <= first <= last, got {profile}")
        self._first, self._last, self._folder = profile or (math.inf, -1, "")
        self._on = False

    def before(self, steps: range) -> None:
        """Starts the trace if the next steps are among those to be traced."""
        if not self._on and is_main() and steps[-1] >= self._first and steps[0] <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, steps: range, metrics: Metrics) -> None:
        """Ends the trace when the last of the steps is finished."""
        if self._on and steps[-1] >= self._last:
            jax.block_until_ready(metrics)
            self.__exit__()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()


def peak_bytes() -> int | None:
    """The peak memory of this process's devices, their maximum, in bytes; None where the backend does not report it."""
    all_stats = [device.memory_stats() for device in jax.local_devices()]
    return max(
        (stats["peak_bytes_in_use"] for stats in all_stats if stats and "peak_bytes_in_use" in stats), default=None
    )
