"""Snapshots of averages on disk, from which an average of any width is made after training.

    state.ema[width] --every so often--> folder/WIDTH-STEP.safetensors --reconstruct(width)--> parameters

Unlike checkpoints, none is deleted. A resumed run writes those from its checkpoint on again, with equal contents; those
before are on disk when a checkpoint is saved.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from diffjax._arrays import check_real
from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.training._ema import power_exponent, reconstruction_weights, weighted_sum
from diffjax.training._hosts import gather_to_host, is_main
from diffjax.training._state import TrainState
from diffjax.training.checkpoint._export import load_weights, save_weights


@checked_numbers
class Snapshots:
    """A folder of snapshots of a state's power-function averages; `train(..., snapshots=...)` takes them.

    Attributes:
      folder: created with the first snapshot.
      every: steps from one snapshot to the next.
      widths: scalars in (0, 0.2886); `state.ema` has an average for each under its `name(width)`.
    """

    def __init__(self, folder: str | Path, widths: Sequence[float], *, every: int = 1000):
        """Takes a folder and one width or more.

        Raises:
          ValueError: there is none, or no profile of such a width; or `every` is less than 1.
        """
        if every < 1:
            raise ValueError(f"every: at least 1, got {every}")
        if not widths:
            raise ValueError("widths: at least one is needed, got none")
        for width in widths:
            check_real("widths", width)
            power_exponent(width)
        self.folder, self.widths, self.every = Path(folder), tuple(widths), every
        self._thread, self._writing = ThreadPoolExecutor(1), Future()
        self._writing.set_result(None)

    @staticmethod
    def name(width: float) -> str:
        """The name of an average of this width, a scalar, in `state.ema` and in the folder."""
        return f"{width:g}"

    @checked_numbers
    def take(self, step: int, state: TrainState) -> None:
        """Copies the averages of a state to the host, and writes them in a thread; in process 0, though all call it.

        Args:
          step: the number of updates the state has had, a scalar.
          state: its `ema` is a dict.

        Raises:
          RuntimeError: the snapshot before this one could not be written.
        """
        averages = gather_to_host({self.name(width): state.ema[self.name(width)] for width in self.widths})
        if is_main():
            copied = jax.tree.map(np.array, averages)  # they may be views of arrays that the next step donates
            self.wait()
            self._writing = self._thread.submit(self._write, step, copied)

    def wait(self) -> None:
        """Returns when every snapshot is on disk; raises `RuntimeError` where it could not be written."""
        try:
            self._writing.result()
        except Exception as error:
            raise RuntimeError(f"{self.folder}: a snapshot could not be written: {error}") from error

    def saved(self) -> list[tuple[int, float]]:
        """(step, width) of each snapshot in the folder, of `widths`, in order of step."""
        steps = lambda width: (path.stem.rsplit("-", 1)[1] for path in self.folder.glob(f"{self.name(width)}-*"))
        return sorted((int(step), width) for width in self.widths for step in steps(width) if step.isdigit())

    @checked_numbers
    def reconstruct(self, like: Params, width: float, step: int | None = None) -> Params:
        """The average of any width at the last snapshot up to a step, from the snapshots up to there.

        Args:
          like: parameters, a tree of arrays [*d] or `jax.ShapeDtypeStruct`s; values are not used.
          width: of the average, a scalar; near or between the widths of the snapshots the relative error is about
            1e-3 with ten snapshots of each, and smaller with more.
          step: by default that of the last snapshot; a scalar.

        Returns:
          A tree of NumPy arrays [*d] like `like`.

        Raises:
          FileNotFoundError: there is no snapshot up to that step.
          ValueError: there is no profile of that width, or a file is damaged.
        """
        self.wait()
        saved = self.saved()
        used = [(at, of) for at, of in saved if step is None or at <= step]
        if not used:
            raise FileNotFoundError(
                f"{self.folder}: no snapshot up to step {step}" if saved else f"{self.folder}: empty"
            )
        weights = reconstruction_weights([at for at, _ in used], [of for _, of in used], used[-1][0], width)
        return weighted_sum((load_weights(self._path(*snapshot), like) for snapshot in used), weights)

    def _path(self, step: int, width: float) -> Path:
        return self.folder / f"{self.name(width)}-{step:08d}.safetensors"

    def _write(self, step: int, averages: dict[str, Params]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for width in self.widths:
            save_weights(self._path(step, width), averages[self.name(width)], {"step": str(step), "width": str(width)})
