"""Scenes of handwritten digits: "a two left of a nine", on a canvas whose side is that of two digits.

The digits are those of `load_digits`, 8 x 8 pixels, each pixel enlarged to a square of `size`/16; the background is -1.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from diffjax._numbers import checked_numbers
from diffjax.data._digits import load_digits
from diffjax.data._grammar import Grammar
from diffjax.data._scenes import Scenes, check_objects, make_scenes

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIDE = 8


@dataclass(frozen=True, eq=False)
class DigitPainter:
    """Puts images of digits on a square of `size` pixels a side, a multiple of 16.

    Attributes:
      size: of the canvas.
      images: [m, 8, 8, 1], those of a class next to one another.
      starts: [11], where the images of each class begin, and m.
    """

    size: int
    images: np.ndarray
    starts: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 1)

    @cached_property
    def enlarged(self) -> np.ndarray:
        """[m, size/2, size/2, 1]."""
        factor = self.size // (2 * _SIDE)
        return self.images.repeat(factor, axis=1).repeat(factor, axis=2)

    def radius(self, objects: Int[np.ndarray, "b n 1"]) -> Float[np.ndarray, "b n"]:
        return np.full(objects.shape[:2], 0.25)

    def items(self, objects: Int[np.ndarray, "b n 1"], u: Float[np.ndarray, "b n"]) -> Int32[np.ndarray, "b n"]:
        return (u * np.diff(self.starts)[objects[..., 0]]).astype(np.int32)

    def paint(
        self,
        objects: Int[np.ndarray, "b n 1"],
        centres: Float[np.ndarray, "b n 2"],
        items: Int[np.ndarray, "b n"],
    ) -> Float32[np.ndarray, "b h w c"]:
        x0, half = np.full((len(objects), *self.shape), -1.0, np.float32), self.size // 2
        count = np.diff(self.starts)[objects[..., 0]]
        if np.any((items < 0) | (items >= count)):
            raise ValueError(f"items: there are {count.min()} images or more of each digit, got {items.max()}")
        chosen = self.enlarged[self.starts[objects[..., 0]] + items]
        corners = np.clip(np.rint(centres * self.size).astype(int) - half // 2, 0, self.size - half)
        for picture, digits, at in zip(x0, chosen, corners, strict=True):
            for digit, (row, column) in zip(digits, at, strict=True):
                place = picture[row : row + half, column : column + half]
                np.maximum(place, digit, out=place)
        return x0


@checked_numbers
def digit_scenes(
    split: str = "train",
    *,
    size: int = 16,
    objects: int = 2,
    images: str = "train",
    jitter: float = 0.5,
    holdout: float = 0.1,
    holdout_seed: int = 0,
) -> Scenes:
    """Scenes of one handwritten digit at a named place, or of two in a relation, as a source of fresh draws.

    `source(seed, step, size) -> (x0 [size, h, w, 1], factors int32 [size, k])`; `source.captions(factors)` are their
    texts. An object has one factor, its digit.

    Args:
      split: "train", "test" (the combinations held out) or "all".
      size: pixels a side, a multiple of 16.
      objects: 1 ("a three at the top left") or 2 ("a two left of a nine").
      images: the part of `load_digits` that the digits are from, "train" or "test": other hands' images.
      jitter: how far a digit may be from the middle of its place, 0 (not at all) to 1 (where it just fits).
      holdout: share of the combinations that are held out: a digit at a place, or a pair of digits in any relation.
      holdout_seed: which; both splits must be made with the same.

    Raises:
      ValueError: an argument out of range.
    """
    check_objects(objects)
    if size < 16 or size % 16:
        raise ValueError(f"size: a multiple of 16 is needed, got {size}")
    if images not in ("train", "test"):
        raise ValueError(f"images: 'train' or 'test' is needed, got {images!r}")
    x, labels = load_digits(images)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(len(DIGITS) + 1))
    grammar = Grammar((DIGITS,), ("digit",), (0,), objects)
    painter = DigitPainter(size, x[order], starts)
    return make_scenes(grammar, painter, jitter, split, holdout, holdout_seed, "combinations of digits")
