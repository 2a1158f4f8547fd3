"""Arrays in memory as a source, shuffled anew in each epoch.

The batch of step k holds the global positions k size, ..., (k + 1) size - 1. Position p is item pi_e(p mod n) of the n
items, with epoch e = floor(p/n) and pi_e a random permutation keyed by (seed, e): each epoch visits each item exactly
once, batches run across the border between epochs, and any batch is found without those before it.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from diffjax.data._source import Part, Source, check_position, generator, part_rows


def from_arrays(x: Any, cond: Any = None) -> Source:
    """A source over `x [n, *d]`, with conditions `cond [n, ...]` that stay with their items.

    Args:
      x: real numbers, used as they are (not scaled). Kept in its own dtype, and turned into float32 batch by batch.
      cond: integers become int32, floating-point numbers float32; None for none.

    Raises:
      ValueError: x is empty, has no axis, or has a value that is not finite; cond has another length. And, when it is
        called, a source raises it for a negative seed or step, or a size below one.

    >>> source = from_arrays(np.arange(10.0))
    >>> sorted(source(seed=0, step=0, size=10)[0].tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    """
    x = _checked("x", np.asarray(x))
    if x.ndim < 1 or len(x) < 1:
        raise ValueError(f"x: at least one item is needed along a leading axis, got shape {x.shape}")
    if cond is not None:
        cond = _checked("cond", np.asarray(cond))
        cond = cond.astype(np.int32 if np.issubdtype(cond.dtype, np.integer) else np.float32)
        if cond.shape[:1] != x.shape[:1]:
            raise ValueError(f"cond: one entry an item is needed, {len(x)} of them, got shape {cond.shape}")

    @lru_cache(maxsize=2)  # a batch mostly needs the epoch of the batch before it
    def permutation(seed: int, epoch: int) -> np.ndarray:
        return generator(seed, epoch).permutation(len(x))

    def source(seed: int, step: int, size: int, *, part: Part = (0, 1)) -> tuple[np.ndarray, Any]:
        check_position(seed, step, size)
        positions = int(step) * size + np.arange(size, dtype=np.int64)[part_rows(size, part)]
        epochs, places = np.divmod(positions, len(x))
        items = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            items[here] = permutation(seed, int(epoch))[places[here]]
        return x[items].astype(np.float32), None if cond is None else cond[items]

    return source


def _checked(name: str, values: np.ndarray) -> np.ndarray:
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool) or np.iscomplexobj(values):
        raise ValueError(f"{name}: real numbers are needed, got dtype {values.dtype}")
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: {bad.sum()} of {bad.size} values are not finite, the first {values[first]} at {first}"
        )
    return values
