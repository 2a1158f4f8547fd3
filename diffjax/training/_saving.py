"""When to save, and what is never saved: the loop's side of checkpoints.

every so many steps, every so many seconds, and at the end --> all finite? --> Checkpoints.save

NaN or infinite parameters are not saved, and the error names the leaf. A step whose loss or gradients are not finite
changes nothing (`make_train_step`) and is counted; ten consecutive ones end the run. An update can also make a
parameter infinite (an infinite learning rate), which the next loss would show one step too late for a checkpoint: so
the state is checked before it is saved, on its devices, and one bit is fetched. In the optimiser's state only NaN is an
error: it may hold infinity (`optax.contrib.reduce_on_plateau` starts with it), and gradients of finite norm make none.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, PyTree

from diffjax._arrays import leaves_by_path
from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.training._hosts import gather_texts, sync_errors
from diffjax.training._signals import Stopped
from diffjax.training._state import TrainState
from diffjax.training.checkpoint._store import Checkpoints

RESCUE = ("saved at step ", "the newest step could not be saved: ", "no step had been made")
"""The beginnings of the notes that `Saving.on_error` adds to errors."""


class NotFinite(ArithmeticError):
    """Raised by `train` where too many consecutive steps, or a parameter, are not finite; nothing was saved since."""


class Saving:
    """Saves the states of a run to its checkpoints; does nothing where there are none."""

    def __init__(self, checkpoints: Checkpoints | None, every: int | None, seconds: float | None):
        """Takes steps and seconds from one checkpoint to the next, None for never.

        Raises:
          ValueError: one of them is out of range.
        """
        if every is not None and every < 1:
            raise ValueError(f"save_every: at least 1, got {every}")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"save_seconds: more than 0, got {seconds}")
        self._checkpoints, self._every, self._seconds = checkpoints, every, seconds
        self._since, self._saved, self._failed = time.monotonic(), -1, False

    def check_space(self, state: TrainState) -> None:
        """Raises `RuntimeError` where the disk has no room for the checkpoints of a run.

        Args:
          state: arrays [*d], or their `jax.ShapeDtypeStruct`s.
        """
        if self._checkpoints is not None:
            self._checkpoints.check_space(state)

    def due(self, call: range, *, last: bool, fetch: bool) -> bool:
        """True if the state is to be saved after a call. Every process calls this, and all get the same result.

        Args:
          call: the numbers of the steps it made.
          last: True for the last call of the run.
          fetch: True if metrics are fetched after it: several processes compare the clock of process 0 only then.
        """
        if self._checkpoints is None:
            return False
        if last or (self._every is not None and passes(call, self._every)):
            return True
        if self._seconds is None:
            return False
        late = time.monotonic() - self._since >= self._seconds
        if jax.process_count() == 1:
            return late
        return fetch and bool(multihost_utils.broadcast_one_to_all(np.int32(late)))

    def save(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Saves a finite state, arrays [*d], with its metrics, scalars; raises `NotFinite` for another one."""
        if self._checkpoints is not None:
            check_parameters(step, state)
            with self._noting_failure():
                self._checkpoints.save(step, state, metrics=metrics)
            self._since, self._saved = time.monotonic(), step

    @contextlib.contextmanager
    def on_error(self, newest: Callable[[], tuple[int, TrainState]]) -> Iterator[None]:
        """Saves the newest state when an error is raised within; the error gets a note of it and is raised further.

        Not where saving itself failed, nor a state that is not finite, nor of several processes: the others are waiting
        in a step for this one, and cannot save with it.

        Args:
          newest: makes (number of updates of the newest state, the state).
        """
        try:
            yield
        except (Stopped, NotFinite):
            raise
        except BaseException as error:
            if self._checkpoints is None or self._failed or jax.process_count() > 1:
                raise
            try:
                step, state = newest()
                if step > max(self._saved, self._checkpoints.latest() or 0):
                    self.save(step, state, {})
                self.wait()
            except Exception as second:  # the error that ended the run is the one to raise
                error.add_note(f"{RESCUE[1]}{second}")
            else:
                error.add_note(f"{RESCUE[0]}{step}; the same call continues there" if step else RESCUE[2])
            raise

    def wait(self) -> None:
        """Returns when everything is on disk; raises `RuntimeError` where it could not be written."""
        if self._checkpoints is not None:
            with self._noting_failure():
                self._checkpoints.wait()

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._failed = True
            raise


def passes(call: range, every: int) -> bool:
    """True if a multiple of `every` is among the numbers of a call's steps."""
    return call[-1] // every > (call[0] - 1) // every


@checked_numbers
def check_parameters(step: int, state: TrainState) -> None:
    """Raises `NotFinite` naming the first leaf of params and ema that is NaN or infinite, of opt_state that is NaN.

    Args:
      step: number of updates it has had.
      state: arrays [*d], reduced on their devices and not copied. This waits for them.
    """
    if bool(_is_finite(state.params, state.ema, state.opt_state)):
        return
    for part in ("params", "ema", "opt_state"):
        for path, leaf in leaves_by_path(getattr(state, part)).items():
            if not bool(_is_finite(leaf) if part != "opt_state" else _is_finite((), (), leaf)):
                name = f"{part}/{path}".removesuffix("/")
                raise NotFinite(f"step {step}: {name} is not finite; the checkpoints are as they were")


@jax.jit
def _is_finite(params: Params, ema: PyTree = (), opt_state: PyTree = ()) -> Bool[Array, ""]:
    inexact = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    of_parameters = [jnp.all(jnp.isfinite(leaf)) for leaf in inexact((params, ema))]
    return jnp.all(jnp.asarray(of_parameters + [~jnp.any(jnp.isnan(leaf)) for leaf in inexact(opt_state)]))


def too_many_skipped(steps: Sequence[int], read: Callable[[int], PyTree], batch_size: int) -> NotFinite:
    """The error after consecutive skipped steps; every process calls it, and gets the same.

    Args:
      steps: their numbers, ascending; step s was made from batch s - 1, that is from the positions (s - 1) batch_size
        to s batch_size - 1 of the data.
      read: batch number -> this process's rows of it, leaves [rows, ...]; read again, to name rows that are not finite.
      batch_size: of the whole batch.
    """
    own = jax.process_index() * batch_size // jax.process_count()
    first, last = (steps[0] - 1) * batch_size, steps[-1] * batch_size - 1
    try:
        rows = sync_errors(
            lambda: [(s - 1) * batch_size + own + row for s in steps for row in _rows_not_finite(read(s - 1))]
        )
        cause = _cause(sorted(int(word) for text in gather_texts(" ".join(map(str, rows))) for word in text.split()))
    except Exception as error:  # `sync_errors` raises in all
        cause = f"they cannot be read again: {error}"
    return NotFinite(
        f"{len(steps)} steps in a row, {steps[0]} to {steps[-1]}, had a loss or gradients that are not finite and "
        f"were skipped; their batches are the positions {first} to {last} of the data; {cause}; nothing was saved since"
    )


def _cause(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:20])) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
    return f"not finite in the data: positions {shown}" if rows else "these are finite, it is the loss or its gradients"


def _rows_not_finite(batch: PyTree) -> list[int]:
    rows: set[int] = set()
    for leaf in jax.tree.leaves(batch):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            values = np.asarray(leaf, np.float64)
            rows.update(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).tolist())
    return sorted(rows)
