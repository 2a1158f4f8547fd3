"""Which item stands at which place, and the random numbers that belong to a place.

The batch of step k holds the global positions k size, ..., (k + 1) size - 1. Position p is item pi_e(p mod n) of the n
items, with epoch e = floor(p/n) and pi_e a random permutation keyed by (seed, e): each epoch visits each item exactly
once, batches run across the border between epochs, and any batch is found without those before it.

Augmentation draws its numbers by (seed, position): what happens to an item does not depend on the batch, the part of
it, or the process that decodes it, and differs from epoch to epoch.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int64

from diffjax._numbers import checked_numbers
from diffjax.data._source import Part, check_position, generator, part_rows

_BLOCK = 4096  # positions that share a generator: making one costs some 20 us
_UNIFORMS = 1  # a stream of numbers of its own, apart from the permutations


def batch_positions(seed: int, step: int, size: int, part: Part) -> Int64[np.ndarray, " k"]:
    """The global positions [size/n] of a part (i, n) of a batch, in the order of its rows.

    Args:
      seed: the run's; only checked.
      step: the number of the batch, from 0.
      size: of the whole batch.
      part: (i, n): process i of n.

    Raises:
      ValueError: they name no batch.
    """
    check_position(seed, step, size)
    rows = part_rows(size, part)
    return int(step) * size + np.arange(rows.start, rows.stop, dtype=np.int64)


def item_order(seed: int, positions: Int64[np.ndarray, " k"], count: int) -> Int64[np.ndarray, " k"]:
    """The items [k] at global positions [k], out of `count`."""
    epochs, places = np.divmod(positions, count)
    items = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        items[here] = _permutation(seed, int(epoch), count)[places[here]]
    return items


@lru_cache(maxsize=4)  # a batch mostly needs the epoch of the batch before it
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, epoch).permutation(count)


@checked_numbers
def uniforms(seed: int, positions: Int64[np.ndarray, " k"], *, stream: int = 0) -> Float[np.ndarray, " k"]:
    """A random number in [0, 1) for each global position, [k], a function of (seed, position, stream) alone.

    Args:
      seed: the run's.
      positions: [k], in any order.
      stream: another number, other draws.

    >>> u = uniforms(0, np.arange(10_000))
    >>> bool(np.all(uniforms(0, np.array([9_000, 3])) == u[[9_000, 3]]))
    True
    """
    blocks, places = np.divmod(positions, _BLOCK)
    found = np.empty(len(positions))
    for block in np.unique(blocks):
        here = blocks == block
        found[here] = _block(seed, int(block), stream)[places[here]]
    return found


@lru_cache(maxsize=16)
def _block(seed: int, block: int, stream: int) -> np.ndarray:
    return generator(seed, block, stream, _UNIFORMS).random(_BLOCK)


@checked_numbers
def random_flip(x: np.ndarray, seed: int, positions: Int64[np.ndarray, " k"]) -> np.ndarray:
    """Images [k, h, w, c] of which each is mirrored, left to right, with probability one half.

    >>> import numpy as np
    >>> from diffjax import data
    >>> x = np.arange(8.0).reshape(4, 1, 2, 1)
    >>> data.random_flip(x, seed=0, positions=np.arange(4)).shape
    (4, 1, 2, 1)
    """
    flip = uniforms(seed, positions) < 0.5
    found = x.copy()
    found[flip] = x[flip, :, ::-1]
    return found
