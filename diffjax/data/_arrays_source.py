"""Arrays in memory as a source, shuffled anew in each epoch (`_order` says how)."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffjax.data._items import Augment, ItemSource, as_condition, from_items
from diffjax.data._source import Batch, Item, Source


@dataclass(frozen=True, eq=False)
class Arrays:
    """Items that are the rows of x [n, *d] and cond [n, ...] or None: a batch is one gather."""

    x: np.ndarray
    cond: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Item:
        return self.x[index], None if self.cond is None else self.cond[index]

    def gather(self, indices: np.ndarray) -> Batch:
        """Many at once: x [k, *d] and cond [k, ...] or None."""
        return self.x[indices], None if self.cond is None else self.cond[indices]


def from_arrays(x: ArrayLike, cond: ArrayLike | None = None) -> Source:
    """A source over `x [n, *d]`, with conditions `cond [n, ...]` that stay with their items.

    Args:
      x: real numbers, used as they are (not scaled: `from_images` scales). Kept in its own dtype, and turned into
        float32 batch by batch.
      cond: integers become int32, floating-point numbers float32; None for none.

    Raises:
      ValueError: x is empty, has no axis, or has a value that is not finite or beyond float32; cond has another length,
        or a whole number beyond 32 bits. And, when it is called, a source raises it for a negative seed or step, or a
        size below one.

    >>> source = from_arrays(np.arange(10.0))
    >>> sorted(source(seed=0, step=0, size=10)[0].tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    """
    return ItemSource(_arrays(x, cond))


def from_images(x: ArrayLike, cond: ArrayLike | None = None, *, augment: Augment | None = None) -> Source:
    """A source over images `x [n, h, w, c]` of bytes, which become floats in [-1, 1] batch by batch.

    Warns where the shape looks like channels first, or the values like [0, 1].

    >>> import numpy as np
    >>> from diffjax import data
    >>> images, labels = np.zeros((10, 8, 8, 3), np.uint8), np.arange(10)
    >>> x, cond = data.from_images(images, labels)(seed=0, step=0, size=4)
    >>> x.shape, x.dtype, float(x.min()), cond.shape
    ((4, 8, 8, 3), dtype('float32'), -1.0, (4,))

    Args:
      x: uint8 (floats stay as they are).
      cond: as `from_arrays` has it.
      augment: `(x [k, h, w, c], seed, positions [k]) -> x`, such as `random_flip`.

    Raises:
      ValueError: as `from_arrays`, or x has not four axes, or is neither uint8 nor floats.
    """
    arrays = _arrays(x, cond)
    if arrays.x.ndim != 4:
        raise ValueError(f"x: images [n, h, w, c] are needed, got shape {arrays.x.shape}")
    if arrays.x.dtype != np.uint8 and not np.issubdtype(arrays.x.dtype, np.floating):
        raise ValueError(f"x: bytes (uint8), or floats in [-1, 1], are needed, got {arrays.x.dtype}")
    for text in doubts("x", arrays.x):
        warnings.warn(text, stacklevel=2)
    return from_items(arrays, augment=augment)


def doubts(name: str, x: np.ndarray, extremes: tuple[float, float] | None = None) -> list[str]:
    """How an array [n, *d] is understood, where it is likely that something else was meant.

    Args:
      name: of the array, for the text.
      x: bytes, or floats.
      extremes: its least and its largest value, where they are known.
    """
    found, shape = [], x.shape
    if x.ndim == 4 and shape[1] <= 4 < shape[3]:
        found.append(
            f"{name} has shape {list(shape)}: taken for images [n, height {shape[1]}, width {shape[2]}, {shape[3]} "
            "channels]; if its channels come first, give np.moveaxis(x, 1, -1)"
        )
    least, most = (x.min(), x.max()) if extremes is None else extremes
    if x.dtype == np.uint8 and most == 1:
        found.append(
            f"{name} holds bytes of 0 and 1 alone: taken for images in 0 .. 255, all but black; to have them as -1 and "
            "1, give 255 * x"
        )
    elif np.issubdtype(x.dtype, np.floating) and 0 <= least < most <= 1:
        found.append(
            f"{name} holds floats in [{least:.3g}, {most:.3g}]: taken as they are, where [-1, 1] is usual; images in "
            "[0, 1] are 2 * x - 1 there"
        )
    return found


def _arrays(x: ArrayLike, cond: ArrayLike | None) -> Arrays:
    x = _checked("x", np.asarray(x))
    if x.ndim < 1 or len(x) < 1:
        raise ValueError(f"x: at least one item is needed along a leading axis, got shape {x.shape}")
    if cond is None:
        return Arrays(x)
    cond = as_condition(_checked("cond", np.asarray(cond)))
    if cond.shape[:1] != x.shape[:1]:
        raise ValueError(f"cond: one entry an item is needed, {len(x)} of them, got shape {cond.shape}")
    return Arrays(x, cond)


def _checked(name: str, values: np.ndarray) -> np.ndarray:
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool) or np.iscomplexobj(values):
        raise ValueError(f"{name}: real numbers are needed, got dtype {values.dtype}")
    if not np.issubdtype(values.dtype, np.inexact):
        return values
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: {bad.sum()} of {bad.size} values are not finite, the first {values[first]} at {first}"
        )
    if values.size and np.abs(values).max() > np.finfo(np.float32).max:
        raise ValueError(f"{name}: {np.abs(values).max()} is beyond float32; scale the data")
    return values
