"""Snapshots of averages on disk, from which an average of any width is made after training.

    state.ema[width] --every checkpoint--> folder/WIDTH-STEP.safetensors --reconstruct(width)--> parameters

Unlike checkpoints all of them are kept. A folder with fewer than it could have (a run that was killed between its
checkpoint and its snapshot) serves, a little less exactly.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from diffjax._typing import Params
from diffjax.training._distributed import fetch, is_main
from diffjax.training._export import load_weights, save_weights
from diffjax.training._power_ema import combine, power_exponent, reconstruction_weights
from diffjax.training._state import TrainState


class Snapshots:
    """A folder of snapshots of a state's averages of some widths; `train(..., snapshots=...)` takes them.

    Attributes:
      folder: made with the first snapshot.
      widths: scalars in (0, 0.2886); `state.ema` has an average for each under its `name(width)`.
    """

    def __init__(self, folder: str | Path, widths: Sequence[float]):
        """Takes a folder and one width or more.

        Raises:
          ValueError: there is none, or no profile of such a width.
        """
        if not widths:
            raise ValueError("widths: at least one is needed, got none")
        for width in widths:
            power_exponent(width)
        self.folder, self.widths = Path(folder), tuple(widths)
        self._thread, self._writing = ThreadPoolExecutor(1), Future()
        self._writing.set_result(None)

    @staticmethod
    def name(width: float) -> str:
        """What an average of this width, a scalar, is called in `state.ema` and in the folder."""
        return f"{width:g}"

    def take(self, step: int, state: TrainState) -> None:
        """Copies the averages of a state to the host, and writes them in a thread; in process 0, though all call it.

        Args:
          step: the number of updates the state has had, a scalar.
          state: its `ema` is a dict.

        Raises:
          OSError: the snapshot before this one could not be written.
        """
        averages = fetch({self.name(width): state.ema[self.name(width)] for width in self.widths})
        if is_main():
            copied = jax.tree.map(np.array, averages)  # the step will donate what they may be views of
            self.wait()
            self._writing = self._thread.submit(self._write, step, copied)

    def wait(self) -> None:
        """Returns when all is on disk; raises `OSError` where it could not be written."""
        self._writing.result()

    def found(self) -> list[tuple[int, float]]:
        """(step, width) of each snapshot in the folder, of the widths asked for, in order of step."""
        steps = lambda width: (path.stem.rsplit("-", 1)[1] for path in self.folder.glob(f"{self.name(width)}-*"))
        return sorted((int(step), width) for width in self.widths for step in steps(width) if step.isdigit())

    def reconstruct(self, like: Params, width: float, step: int | None = None) -> Params:
        """The average of a width at a step, from the snapshots up to that step.

        Args:
          like: parameters, a tree of arrays [...] or `jax.ShapeDtypeStruct`s; values are not used.
          width: of the average, a scalar; near or between the widths of the snapshots it is the average itself to
            about 1e-3 with ten snapshots of each, and better with more.
          step: the last one by default.

        Returns:
          NumPy arrays [...] like `like`.

        Raises:
          FileNotFoundError: there are no snapshots up to that step.
          ValueError: a width or a file is no good.
        """
        self.wait()
        found = self.found()
        step = max((at for at, _ in found), default=0) if step is None else step
        used = [(at, of) for at, of in found if at <= step]
        if not used or used[-1][0] != step:
            raise FileNotFoundError(f"{self.folder}: no snapshot of step {step}" if found else f"{self.folder}: empty")
        weights = reconstruction_weights([at for at, _ in used], [of for _, of in used], step, width)
        return combine((load_weights(self._path(*snapshot), like) for snapshot in used), weights)

    def _path(self, step: int, width: float) -> Path:
        return self.folder / f"{self.name(width)}-{step:08d}.safetensors"

    def _write(self, step: int, averages: dict[str, Params]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for width in self.widths:
            save_weights(self._path(step, width), averages[self.name(width)], {"step": str(step), "width": str(width)})
