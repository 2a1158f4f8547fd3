"""Batches made ahead of the step that needs them, and put on the device, while the one before is computed.

    source(seed, n, size) --> put --> queue of `depth` --> step n         n = start, start + 1, ...
      in `workers` processes   in a thread of this process

The batch of step n is f(seed, n), whoever makes it: a worker makes whole batches, and they come in the order of their
steps. So neither `workers` nor `depth` changes anything but the time. Worker processes, their shared memory and their
order are Grain's (extra `data`).
"""

import functools
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

from diffjax.data._source import Part

_CLOSE = 10.0  # seconds to wait for a thread that is still reading


class WorkerDied(RuntimeError):
    """A process that makes batches has ended by itself: killed (out of memory?), crashed, or never started."""


def prefetch(
    source: Callable[..., Any],
    seed: int,
    start: int,
    size: int,
    *,
    part: Part = (0, 1),
    stop: int | None = None,
    depth: int = 2,
    workers: int = 0,
    put: Callable[[Any], Any] | None = None,
) -> "Prefetch":
    """The batches of steps `start`, `start + 1`, ..., made ahead.

        with prefetch(source, seed, 0, 128, put=layout.put_batch) as batches:
            for batch in batches:
                ...

    Args:
      source: `(seed, step, size) -> batch`, a pytree of leaves [size, ...]; with `part` where that is given. For
        workers it must be one that can be pickled (by cloudpickle): all of `diffjax.data` can.
      seed: given to the source.
      start: the first step.
      size: items of a batch, over all parts.
      part: (i, n) where n processes hold a batch together.
      stop: the step to end before; None goes on for ever.
      depth: batches that wait on the device, at least 1.
      workers: processes that make batches; 0 makes them in the thread, which is enough for arrays in memory. A script
        that asks for workers needs `if __name__ == "__main__":`, since each of them starts a Python of its own.
      put: `batch -> batch` on the device, called in the thread, in order; None leaves it on the host.

    Returns:
      An iterator, to be closed (`with`, or `close()`); it ends its thread and processes. An error of the source, of a
      worker or of `put` is raised where the batch was to come, as it was, and again at each further try.

    Raises:
      ValueError: a number is out of range.
      ImportError: workers are asked for, and Grain is not there.
      WorkerDied: raised by the iterator, within seconds.
    """
    for name, value, least in (("start", start, 0), ("depth", depth, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name}: at least {least} is needed, got {value}")
    if stop is not None and stop < start:
        raise ValueError(f"stop: at least start = {start} is needed, got {stop}")
    keywords = {} if part == (0, 1) else {"part": part}
    make = functools.partial(_make, source, seed, size, keywords)
    batches = _by_workers(make, start, stop, workers) if workers else _here(make, start, stop)
    return Prefetch(batches, put, depth)


def _make(source: Callable[..., Any], seed: int, size: int, keywords: dict[str, Any], step: int) -> Any:
    return source(seed, int(step), size, **keywords)


def _here(make: Callable[[int], Any], start: int, stop: int | None) -> Iterator[Any]:
    step = start
    while stop is None or step < stop:
        yield make(step)
        step += 1


class Prefetch(Iterator[Any]):
    """An iterator over batches that are made ahead; from `prefetch`."""

    def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any] | None, depth: int):
        self._queue: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._ended = threading.Event()
        self._error: BaseException | None = None
        # The thread holds no reference to this object: dropped unclosed, it ends all the same.
        self._thread = threading.Thread(
            target=_fill, args=(batches, put, self._queue, self._ended), name="diffjax-prefetch", daemon=True
        )
        weakref.finalize(self, self._ended.set)
        self._thread.start()

    def __next__(self) -> Any:
        if self._error is not None:
            raise self._error
        if self._ended.is_set():
            raise StopIteration
        good, found = self._queue.get()
        if good:
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


def _fill(batches: Any, put: Callable[[Any], Any] | None, filled: queue.Queue, ended: threading.Event) -> None:
    """Moves batches to the queue until they or the reader end; (True, batch), then (False, error or None)."""
    last = None
    try:
        with closing(batches):
            while not ended.is_set():
                batch = next(batches)
                _offer(filled, ended, (True, batch if put is None else put(batch)))
                del batch  # or one more would be held while the next is made
    except StopIteration:
        pass
    except BaseException as error:  # whatever it is, it is the reader's
        last = error
    _offer(filled, ended, (False, last))


def _offer(filled: queue.Queue, ended: threading.Event, found: tuple[bool, Any]) -> None:
    while not ended.is_set():
        try:
            return filled.put(found, timeout=0.1)
        except queue.Full:
            continue


# --- worker processes ---


def _by_workers(make: Callable[[int], Any], start: int, stop: int | None, workers: int) -> Iterator[Any]:
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
    """In a worker: it leaves accelerators and signals to its parent, and does not outlive it."""
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
