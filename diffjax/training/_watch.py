"""Looking on: TensorBoard, traces of the profiler, and the memory of the devices.

watch(step, metrics)    called by process 0 with every line of the log, as floats; any function will do
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from diffjax.training._distributed import is_main

Watch = Callable[[int, dict[str, float]], None]


class TensorBoard:
    """Writes each metric as a scalar; a run that is resumed hides what it had written beyond.

    >>> watch = TensorBoard("runs/digits/tensorboard")   # train(..., watch=[watch])
    """

    def __init__(self, folder: str | Path):
        """Opens nothing before the first line.

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
        """Writes what is finite."""
        self._writer = self._writer or self._open(step)
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is pending; at the end of the process that happens by itself."""
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
        """Takes (first, last, folder): the numbers of the steps, both included; None for none.

        Raises:
          ValueError: no such steps.
        """
        if profile is not None and not 1 <= profile[0] <= profile[1]:
            raise ValueError(f"profile: (first, last, folder) with 1 <= first <= last, got {profile}")
        self._first, self._last, self._folder = profile or (math.inf, -1, "")
        self._on = False

    def before(self, steps: range) -> None:
        """Begins, where the steps to be made are among those asked for."""
        if not self._on and is_main() and steps[-1] >= self._first and steps[0] <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, steps: range, metrics: Any) -> None:
        """Ends, when the last of them is finished."""
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
    """The most memory that one of this process's devices has held, in bytes; None where the backend does not tell."""
    known = [device.memory_stats() for device in jax.local_devices()]
    return max((stats["peak_bytes_in_use"] for stats in known if stats and "peak_bytes_in_use" in stats), default=None)
