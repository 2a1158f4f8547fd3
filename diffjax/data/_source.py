"""A source of batches: the contract, and the generator that all sources draw from.

Numbers come from Philox, a counter-based generator (Salmon et al. 2011), keyed by the seed and what is drawn; NumPy
promises the same stream on every machine, and so do we.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import jax
import numpy as np
from jaxtyping import PyTree
from numpy.typing import ArrayLike

from diffjax._numbers import checked_numbers

Part = tuple[int, int]
Item: TypeAlias = tuple[ArrayLike, PyTree]
"""(x [*d], cond), which is None for data without a condition."""
Batch: TypeAlias = tuple[np.ndarray, PyTree]
"""(x [k, *d], cond [k, ...] or None)."""


class Source(Protocol):
    """`source(seed, step, size, *, part=(i, n)) -> (x0, cond)`: a pure function with random access.

    x0 is float32 [size/n, *d] in NumPy. cond is [size/n, ...], int32 for labels, or None for data without a condition.
    They are the rows i size/n, ..., (i + 1) size/n - 1 of one batch of `size` items, which does not depend on n: n
    processes that ask for a part each hold that batch together. Files are read for these rows alone.
    """

    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch: ...


def whole(source: Callable[[int, int, int], Batch]) -> Source:
    """A source that knows `part`, from a function that does not: the whole batch is made, and its part kept.

    Args:
      source: `(seed, step, size) -> batch`, a pytree of leaves [size, ...].

    Returns:
      `(seed, step, size, *, part=(0, 1)) -> batch`, of leaves [size/n, ...].

    >>> count = whole(lambda seed, step, size: np.arange(size))
    >>> count(0, 0, 6, part=(1, 3)).tolist()
    [2, 3]
    """

    def parted(seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        rows = part_rows(size, part)
        return jax.tree.map(lambda leaf: leaf[rows], source(seed, step, size))

    return parted


def generator(seed: int, *what: int) -> np.random.Generator:
    """A generator that is a function of its numbers alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *what])))


@checked_numbers
def check_position(seed: int, step: int, size: int) -> None:
    """Raises `ValueError` where the numbers name no batch: a fraction, or below the least."""
    for name, value, least in (("seed", seed, 0), ("step", step, 0), ("size", size, 1)):
        if value < least:
            raise ValueError(f"{name}: at least {least} is needed, got {value}")


def part_rows(size: int, part: Part) -> slice:
    """The rows of a batch that one of n processes holds: `x[part_rows(size, part)]` is [size/n, *d] of x [size, *d].

    Args:
      size: of the whole batch.
      part: (i, n): process i of n.

    Raises:
      ValueError: part is not (i, n) with i in 0 .. n - 1, or n does not divide the size.
    """
    index, count = part
    if not 0 <= index < count:
        raise ValueError(f"part: (i, n) with i in 0 .. n - 1 is needed, got {part}")
    if size % count:
        raise ValueError(f"size: {size} items cannot be split evenly into {count} parts")
    share = size // count
    return slice(index * share, (index + 1) * share)
