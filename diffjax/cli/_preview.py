"""What a run looks like while it is trained, and how it went: pictures of the run, whose lack ends nothing.

state.ema --every so often--> the same noise, the same labels --> RUN/samples/STEP.png, TensorBoard
metrics.jsonl --at the end--> RUN/loss.png, a curve for each objective
"""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffjax._typing import Cond
from diffjax.cli._draw import Draw
from diffjax.cli._measure import proportional_conditions
from diffjax.cli._picture import has_picture, labels_in, save_arrays, save_measured
from diffjax.config import Data, Run
from diffjax.config._run import sampled_params
from diffjax.training import TrainState, is_main
from diffjax.training._log import loss_names

_IMAGES, _POINTS = 100, 1000


class Preview:
    """Draws samples of a state by its averaged parameters, every time from the same noise and for the same labels.

    So pictures of different steps show the same samples getting better. All processes draw, process 0 writes. What
    fails is reported once, and training goes on without; but not where one of several processes cannot draw, which the
    others would wait for.
    """

    def __init__(self, folder: Path, run: Run, data: Data, mesh: Mesh, board: Any = None):
        """Takes the folder of pictures, made with the first, and a `TensorBoard` to show them in, too."""
        self._folder, self._run, self._data = folder, run, data
        self._mesh, self._board, self._warned = mesh, board, False

    def __call__(self, step: int, state: TrainState) -> None:
        x = None
        try:
            n = _POINTS if len(self._data.shape) == 1 else _IMAGES
            classes = self._data.classes
            if classes is None or self._data.text is not None:
                cond = proportional_conditions(self._data.held_out[1], n)
            else:
                cond = (np.arange(n) * classes // n).astype(np.int32)
            draw = Draw(self._run.family, sampled_params(self._run, state), mesh=self._mesh)
            x = draw(n, cond, self._run.config.seed, silent=True)
            if is_main():
                self._write(step, x, cond)
        except Exception as error:
            if x is None and jax.process_count() > 1:
                raise
            if not self._warned:
                self._warned = True
                _warn(f"sample-every: {error or type(error).__name__}; training goes on without these samples")

    def _write(self, step: int, x: np.ndarray, cond: Cond) -> None:
        self._folder.mkdir(exist_ok=True)
        path = save_samples(self._folder / f"{step:07}", x, cond, self._data)
        if self._board is not None and has_picture(self._data):
            from diffjax import viz

            self._board.picture("samples", viz.read_picture(path), step)


def save_samples(stem: Path, x: np.ndarray, cond: Cond, data: Data) -> Path:
    """STEM.png of samples that make a picture, else STEM.npz with labels; returns which."""
    labels = labels_in(cond)
    picture = has_picture(data)
    path = stem.with_name(f"{stem.name}.{'png' if picture else 'npz'}")
    (save_measured if picture else lambda path, x, labels, data: save_arrays(path, x, labels))(path, x, labels, data)
    return path


def save_loss(path: Path, log: Path) -> bool:
    """Draws the losses of a run's log, where there are any; returns whether it did. What fails is reported."""
    try:
        if not log.is_file():  # a pipe
            return False
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        names = dict.fromkeys(name for line in lines for name in loss_names(line))
        losses = {name: np.array([line.get(name) for line in lines], float) for name in names}
        losses = {name: values for name, values in losses.items() if np.any(np.isfinite(values))}
        if not losses:
            return False
        from diffjax import viz

        viz.save_loss_curves(path, [line["step"] for line in lines], losses)
    except Exception as error:
        _warn(f"{path}: {error or type(error).__name__}; there is no curve of the loss")
        return False
    return True


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
