"""When to save, and what never to: the loop's side of checkpoints.

every so many steps, every so many seconds, and at the end --> all finite? --> Checkpoints.save
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffjax.training._checkpoint import Checkpoints
from diffjax.training._finite import NotFinite, check_parameters
from diffjax.training._signals import Stopped
from diffjax.training._state import TrainState

RESCUE = ("saved at step ", "the newest step could not be saved: ", "no step had been made")
"""How the note begins that an error has of what became of the newest state, and what else libraries note does not."""


class Saves:
    """The checkpoints of a run; none at all where there is no folder for them."""

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
          state: arrays, or their `jax.ShapeDtypeStruct`s.
        """
        if self._checkpoints is not None:
            self._checkpoints.check_space(state)

    def due(self, call: range, *, last: bool, fetch: bool) -> bool:
        """Whether to save after a call. Every process asks, and all get the same answer.

        Args:
          call: the numbers of the steps it made.
          last: whether it was the last one.
          fetch: whether metrics are fetched after it: several processes ask the clock of process 0 only then.
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
        """Saves a state that is finite; raises `NotFinite` otherwise."""
        if self._checkpoints is not None:
            check_parameters(step, state)
            with self._noting_failure():
                self._checkpoints.save(step, state, metrics=metrics)
            self._since, self._saved = time.monotonic(), step

    @contextlib.contextmanager
    def rescue(self, newest: Callable[[], tuple[int, TrainState]]) -> Iterator[None]:
        """Saves the newest state when an error ends what is done within; the error has a note of it and goes on.

        Not where saving itself is what failed, nor what is not finite, nor one of several processes: the others are
        waiting in a step for this one, and cannot save with it.

        Args:
          newest: how many updates the newest state has had, and the state.
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
            except Exception as second:  # the error that ended the run is the one to be raised
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
    """Whether a multiple of `every` is among some numbers."""
    return call[-1] // every > (call[0] - 1) // every
