"""The next batch is made, and put on the devices, while a step runs.

    main thread     take 0 | step 0, take 1 | step 1, take 2 | ...
    its own         make 0 | make 1         | make 2         | make 3

One thread and one batch ahead: enough to hide a source that is faster than the step. One that is slower needs workers
of its own (`prefetch`).
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax

from diffjax.training._sharding import Layout

Source = Callable[..., Any]
Prefetch = Callable[..., AbstractContextManager[Iterator[Any]]]


def reader(source: Source, seed: int, size: int) -> Callable[[int], Any]:
    """`read(n)`: batch n, leaves [size, ...]; of several processes, each reads its own rows of it."""
    part = _part()
    return lambda n: source(seed, n, size, **part)


@contextmanager
def placed_batches(
    source: Source, seed: int, size: int, firsts: range, layout: Layout, prefetch: Prefetch | None
) -> Iterator[Iterator[Any]]:
    """Yields an iterator over the placed batches of calls, each begun when the one before it is asked for.

    Args:
      source: called in another thread, never twice at a time; what it raises is raised where its batch is asked for.
      seed: given to it.
      size: samples a step.
      firsts: the number of the first step of each call; step s is made from batch s - 1.
      layout: whose `put_batch` takes them.
      prefetch: as `diffjax.data.prefetch`, to read the source by; None reads it in the thread.
    """
    first, end = (firsts[0] - 1, firsts[-1] - 1 + layout.steps) if firsts else (0, 0)
    if prefetch is None:
        opened = nullcontext(map(reader(source, seed, size), range(first, end)))
    else:
        opened = prefetch(source, seed, first, size, stop=end, **_part())
    # The thread ends before what it reads from is closed.
    with opened as rows, ThreadPoolExecutor(1, thread_name_prefix="diffjax-batches") as pool:
        each = layout.steps
        put = lambda: layout.put_batch([next(rows) for _ in range(each)] if each > 1 else next(rows))
        yield _ahead(pool, put, len(firsts))


def _ahead(pool: ThreadPoolExecutor, make: Callable[[], Any], count: int) -> Iterator[Any]:
    coming: deque[Future] = deque()
    for _ in range(count):
        coming.append(pool.submit(make))
        if len(coming) > 1:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _part() -> dict[str, tuple[int, int]]:
    """What a source is asked for besides: nothing, by one process alone."""
    return {} if jax.process_count() == 1 else {"part": (jax.process_index(), jax.process_count())}
