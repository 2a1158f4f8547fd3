"""Batches made ahead of the step that needs them, and put on the device, while the one before is computed.

    source(seed, n, size) --> put --> `depth` that wait --> step n         n = start, start + 1, ...
      in `workers` processes   in a thread of this process

The batch of step n is f(seed, n), whoever makes it: a worker makes whole batches, and they come in the order of their
steps. So neither `workers` nor `depth` changes anything but the time. Worker processes, their shared memory and their
order are Grain's (extra `data`).
"""

import functools
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from diffjax._numbers import checked_numbers
from diffjax.data._source import Batch, Part, Source

_CLOSE = 10.0  # seconds to wait for a thread that is still reading


class WorkerDied(RuntimeError):
    """A process that makes batches has ended by itself: killed (out of memory?), crashed, or never started."""


@checked_numbers
def prefetch(
    source: Source,
    seed: int,
    start: int,
    size: int,
    *,
    part: Part = (0, 1),
    stop: int | None = None,
    depth: int = 2,
    workers: int = 0,
    each: int = 1,
    put: Callable[[PyTree], PyTree] | None = None,
) -> "Prefetch":
    """The batches of steps `start`, `start + 1`, ..., made ahead.

        with prefetch(source, seed, 0, 128, put=layout.put_batch) as batches:
            for batch in batches:
                ...

    >>> from diffjax import data
    >>> with data.prefetch(data.two_moons(), seed=0, start=0, size=4, stop=3) as batches:
    ...     [x.shape for x, _ in batches]
    [(4, 2), (4, 2), (4, 2)]

    Args:
      source: `(seed, step, size) -> batch`, a pytree of leaves [size, ...]; with `part` where that is given. For
        workers it must be one that can be pickled (by cloudpickle): all of `diffjax.data` can.
      seed: given to the source.
      start: the first step.
      size: items of a batch, over all parts.
      part: (i, n) where n processes hold a batch together.
      stop: the step to end before; None goes on for ever.
      depth: how many are made ahead, at least 1; the next is begun when one is taken.
      workers: processes that make batches; 0 makes them in the thread, which is enough for arrays in memory. A script
        with workers needs `if __name__ == "__main__":`, since each of them starts a Python of its own. A worker ignores
        SIGINT and SIGTERM, and ends itself when this process ends; in this process no signal handler changes, and
        absl's flags are marked as parsed, which Grain needs.
      each: 1, or how many batches come together, as a list: those of the steps of one call (`stop` ends whole lists).
      put: `batch -> batch` on the device, called in the thread, in order; None leaves it on the host.

    Returns:
      An iterator, to be closed (`with`, or `close()`); it ends its thread and processes. An error of the source, of a
      worker or of `put` is raised where the batch was to come, as it was, and again at each further try.

    Raises:
      ValueError: a number is out of range.
      ImportError: workers are requested, and Grain is not there.
      WorkerDied: raised by the iterator, within seconds.
    """
    for name, value, least in (("start", start, 0), ("depth", depth, 1), ("workers", workers, 0), ("each", each, 1)):
        if value < least:
            raise ValueError(f"{name}: at least {least} is needed, got {value}")
    if stop is not None and stop < start:
        raise ValueError(f"stop: at least start = {start} is needed, got {stop}")
    keywords = {} if part == (0, 1) else {"part": part}
    make = functools.partial(_make, source, seed, size, keywords)
    batches = _by_workers(make, start, stop, workers) if workers else _here(make, start, stop)
    batches = batches if each == 1 else _together(batches, each)
    return Prefetch(batches, put, depth)


def _make(source: Source, seed: int, size: int, keywords: dict[str, Part], step: int) -> Batch:
    return source(seed, int(step), size, **keywords)


def _here(make: Callable[[int], Batch], start: int, stop: int | None) -> Iterator[Batch]:
    step = start
    while stop is None or step < stop:
        yield make(step)
        step += 1


def _together(batches: Any, each: int) -> Iterator[list[Batch]]:
    with closing(batches):
        while len(group := list(itertools.islice(batches, each))) == each:
            yield group


class Prefetch(Iterator[PyTree]):
    """An iterator over batches that are made ahead; from `prefetch`."""

    def __init__(self, batches: Iterator[PyTree], put: Callable[[PyTree], PyTree] | None, depth: int):
        self._queue: queue.Queue[tuple[bool, PyTree]] = queue.Queue()
        self._room = threading.Semaphore(depth)
        self._ended = threading.Event()
        self._error: BaseException | None = None
        # The thread holds no reference to this object: dropped unclosed, it ends all the same.
        self._thread = threading.Thread(
            target=_fill,
            args=(batches, put, self._queue, self._room, self._ended),
            name="diffjax-prefetch",
            daemon=True,
        )
        weakref.finalize(self, self._ended.set)
        self._thread.start()

    def __next__(self) -> PyTree:
        if self._error is not None:
            raise self._error
        if self._ended.is_set():
            raise StopIteration
        good, found = self._queue.get()
        if good:
            self._room.release()
            return found
        self._ended.set()
        if found is None:
            raise StopIteration
        self._error = found
        raise found

    def close(self) -> None:
        """Ends the thread and the worker processes; what was made ahead is dropped."""
        self._ended.set()
        self._thread.join(_CLOSE)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fill(
    batches: Any,
    put: Callable[[PyTree], PyTree] | None,
    filled: queue.Queue,
    room: threading.Semaphore,
    ended: threading.Event,
) -> None:
    """Moves batches to the queue, as there is room, until they or the reader end; then (False, error or None)."""
    last = None
    try:
        with closing(batches):
            while not ended.is_set():
                if room.acquire(timeout=0.1):
                    batch = next(batches)
                    filled.put((True, batch if put is None else put(batch)))
                    del batch  # or one more would be held while the next is made
    except StopIteration:
        pass
    except BaseException as error:  # whatever it is, it is the reader's
        last = error
    filled.put((False, last))


# --- worker processes ---


def _by_workers(make: Callable[[int], Batch], start: int, stop: int | None, workers: int) -> Iterator[Batch]:
    """Batches in the order of their steps, step n by worker (n - start) mod workers."""
    try:
        import grain
        from absl import flags
    except ImportError as error:
        remedy = f"pip install '.[data]' in diffjax's folder ({error})"
        raise ImportError(f"workers: {workers} processes need Grain: {remedy}") from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks absl for its options, which only an absl program has parsed
    steps = grain.MapDataset.range(start, 2**62 if stop is None else stop)
    batches = steps.map(make).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    return _named(batches.mp_prefetch(options, worker_init_fn=_start_worker), workers)


def _named(dataset: Any, workers: int) -> Iterator[Any]:
    """Grain's batches, with a death in our words."""
    iterator = iter(dataset)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):
                    raise
                hint = 'Was it out of memory? Or does the script lack `if __name__ == "__main__":`?'
                message = f"workers: one of {workers} data workers has died: {error} {hint}"
                raise WorkerDied(message) from error
            yield jax.tree.map(np.array, batch)  # a copy: the shared memory goes back at once
            del batch
    finally:
        iterator.close()


def _start_worker(index: int, count: int) -> None:
    """In a worker process of ours: no accelerator, signals ignored, and it ends when its parent does."""
    jax.config.update("jax_platforms", "cpu")
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to all of a job: the parent ends its workers when it has saved
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
