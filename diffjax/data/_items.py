"""Items that are read one by one (files, records, rows of a table) as a source.

    positions --item_order--> items[i] -> (x, cond) --stack--> augment(x, seed, positions) --> bytes to [-1, 1] --> x0

Only the items of the part that was requested are read, and what is read is a function of (seed, step, size, part): the
same in this process and in any worker (`prefetch`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from diffjax.data._order import batch_positions, item_order
from diffjax.data._source import Batch, Item, Part, Source

_IN_A_ROW = 100  # items that cannot be read: then it is not they, but the disk
_WARNED = 10

Augment = Callable[[np.ndarray, int, np.ndarray], np.ndarray]


class Items(Protocol):
    """Anything with a length, and `items[i] -> (x [*d], cond)`: uint8 (images) or float; cond None, a label, numbers.

    One with a method `gather(indices [k]) -> (x [k, *d], cond [k, ...] or None)` is called for many at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


@dataclass(frozen=True, eq=False)
class Subset:
    """Some of the items, by their indices."""

    items: Items
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        return self.items[int(self.indices[index])]

    def gather(self, indices: np.ndarray) -> Batch:
        """Many at once: x [k, *d] and cond [k, ...] or None."""
        return gather(self.items, self.indices[indices])


@dataclass(frozen=True, eq=False)
class Skipping:
    """Items of which one that cannot be read gives way to the next that can, so that batches stay what they are.

    Warns of the first few, by their names.

    Attributes:
      bad: index -> what was wrong with it, of those that were tried in this process.
    """

    items: Items
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        for at in (np.arange(index, index + min(len(self), _IN_A_ROW)) % len(self)).tolist():
            found = self._try(at)
            if found is not None:
                return found
        raise ValueError(f"{min(len(self), _IN_A_ROW)} items in a row cannot be read, the last: {self.bad[at]}")

    def readable(self, indices: np.ndarray) -> list[Item]:
        """The items that can be read, without any in place of the others."""
        return [found for index in indices.tolist() if (found := self._try(index)) is not None]

    def describe(self, index: int) -> str:
        """What an item is called."""
        return _name(self.items, index)

    def _try(self, index: int) -> Item | None:
        if index in self.bad:
            return None
        try:
            return self.items[index]
        except ValueError as error:
            self.bad[index] = str(error)
            if len(self.bad) <= _WARNED:
                warnings.warn(f"skipped, {len(self.bad)} so far: {error}", stacklevel=3)
            return None


@dataclass(frozen=True, eq=False)
class ItemSource:
    """A source over items, shuffled anew in each epoch; it can be sent to another process."""

    items: Items
    finish: tuple[Augment, ...] = ()

    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        positions = batch_positions(seed, step, size, part)
        x, cond = gather(self.items, item_order(seed, positions, len(self.items)))
        for function in self.finish:
            x = function(x, seed, positions)
        return x.astype(np.float32, copy=False), cond


def from_items(items: Items, *, augment: Augment | None = None) -> Source:
    """A source over items, in the order of `from_arrays`; bytes become floats in [-1, 1], 0 is -1 and 255 is 1.

    Args:
      items: `ImageFolder`, `ArrayRecords`, or anything with a length and `items[i] -> (x [*d], cond)`.
      augment: `(x [k, *d], seed, positions [k]) -> x`, such as `random_flip`, of the items as they were read. Its
        random numbers should be `uniforms(seed, positions)`.

    Raises:
      ValueError: there are no items. When the source is called: what reading an item says.
    """
    if len(items) < 1:
        raise ValueError("items: at least one is needed, got none")
    return ItemSource(items, (to_unit,) if augment is None else (augment, to_unit))


def gather(items: Items, indices: np.ndarray) -> Batch:
    """Many items: x [k, *d], and cond [k, ...] (int32 or float32) or None.

    Raises:
      ValueError: they differ in shape.
    """
    together = getattr(items, "gather", None)
    if together is not None:
        return together(indices)
    read = [items[int(index)] for index in indices]
    x = [np.asarray(pair[0]) for pair in read]
    for index, one in zip(indices, x, strict=True):
        if one.shape != x[0].shape:
            raise ValueError(
                f"items: {_name(items, index)} has shape {one.shape}, {_name(items, indices[0])} {x[0].shape}"
            )
    return np.stack(x), _stack([pair[1] for pair in read])


def _stack(conditions: list[Any]) -> Any:
    """The conditions of k items as one: [k, ...]; trees, such as a `Text`, leaf by leaf as they are."""
    if conditions[0] is None:
        return None
    if isinstance(conditions[0], tuple):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *conditions)
    return as_condition(np.stack(conditions))


def _name(items: Items, index: Any) -> str:
    """What an item is called, where the items know."""
    found = getattr(items, "describe", None)
    return f"item {index}" if found is None else found(int(index))


def as_condition(cond: np.ndarray) -> np.ndarray:
    """Conditions [k, ...] in the dtype that is trained on, of the same shape: integers as int32, others as float32.

    Raises:
      ValueError: they are no real numbers, or one is beyond what that type holds.
    """
    if not (np.issubdtype(cond.dtype, np.number) or cond.dtype == bool) or np.iscomplexobj(cond):
        raise ValueError(f"cond: real numbers are needed, got dtype {cond.dtype}")
    if not np.issubdtype(cond.dtype, np.integer):
        return in_float32("cond", cond)
    if cond.size and not np.can_cast(cond.dtype, np.int32):
        for worst in (int(cond.max()), int(cond.min())):
            if not -(2**31) <= worst < 2**31:
                raise ValueError(f"cond: whole numbers of 32 bits are needed (labels from 0), got {worst}")
    return cond.astype(np.int32)


def in_float32(name: str, values: np.ndarray) -> np.ndarray:
    """Values of any shape [...] as float32; raises `ValueError` where one that is finite is beyond its range."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if values.dtype.itemsize > 4 and values.size:
        lost = np.isfinite(values) & ~np.isfinite(found)
        if lost.any():
            raise ValueError(f"{name}: {values[lost].flat[0]} is beyond float32; scale the data")
    return found


def to_unit(x: np.ndarray, seed: int, positions: np.ndarray) -> np.ndarray:
    """Bytes [k, *d] as float32 in [-1, 1]; floats as they are."""
    if x.dtype != np.uint8:
        return x
    found = x / np.float32(127.5)
    found -= 1
    return found
