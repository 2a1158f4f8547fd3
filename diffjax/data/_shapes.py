"""Scenes of coloured shapes: "a red circle above a small blue square".

    circle      |r| <= R            square      max(|x|, |y|) <= R sqrt(pi)/2, of the circle's area
    triangle    on its base, 2 R wide and 2 R high                R: 0.5, 0.8 or 1 of a quarter of the side

Each pixel is the mean of 4 x 4 points in it, of the objects' colours and of the background's -0.9: pictures of any size
are of the same scene.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from diffjax._numbers import checked_numbers
from diffjax.data._grammar import Grammar
from diffjax.data._scenes import Scenes, check_objects, chosen, make_scenes

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
RGB = np.array(
    [
        (0.9, -0.7, -0.7),
        (-0.7, 0.7, -0.7),
        (-0.7, -0.5, 0.9),
        (0.9, 0.8, -0.7),
        (0.5, -0.7, 0.8),
        (0.9, 0.9, 0.9),
    ]
)
SIZES = ("small", "", "large")
RADII = 0.25 * np.array([0.5, 0.8, 1.0])
BACKGROUND = -0.9
_POINTS = 4  # along a pixel's side
_AT_A_TIME = 2**22  # points, so that large pictures need little memory


@dataclass(frozen=True)
class ShapePainter:
    """Draws shapes on a square of `size` pixels a side."""

    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)

    def radius(self, objects: Int[np.ndarray, "b n 3"]) -> Float[np.ndarray, "b n"]:
        return RADII[objects[..., 0]]

    def items(self, objects: Int[np.ndarray, "b n 3"], u: Float[np.ndarray, "b n"]) -> Int32[np.ndarray, "b n"]:
        return np.zeros(u.shape, np.int32)

    def paint(
        self,
        objects: Int[np.ndarray, "b n 3"],
        centres: Float[np.ndarray, "b n 2"],
        items: Int[np.ndarray, "b n"],
    ) -> Float32[np.ndarray, "b h w c"]:
        found = np.empty((len(objects), *self.shape), np.float32)
        rows = max(1, _AT_A_TIME // (self.size * _POINTS) ** 2)
        for start in range(0, len(objects), rows):
            part = slice(start, start + rows)
            found[part] = self._paint(objects[part], centres[part])
        return found

    def _paint(self, objects, centres):
        x0 = np.full((len(objects), *self.shape), BACKGROUND)
        for i in range(objects.shape[1]):
            share = self._cover(objects[:, i, 2], RADII[objects[:, i, 0]], centres[:, i])[..., None]
            x0 += share * (RGB[objects[:, i, 1]][:, None, None] - x0)
        return x0.astype(np.float32)

    def _cover(self, shape, radius, centre):
        """The share of each pixel, [b, h, w], that a shape [b] covers."""
        points = (np.arange(self.size * _POINTS) + 0.5) / (self.size * _POINTS)
        y = ((points - centre[:, :1]) / radius[:, None])[:, :, None]
        x = ((points - centre[:, 1:]) / radius[:, None])[:, None, :]
        side = np.sqrt(np.pi) / 2
        inside = np.empty((len(shape), len(points), len(points)), bool)
        for number, rule in enumerate(
            (
                lambda x, y: x**2 + y**2 <= 1,
                lambda x, y: (np.abs(x) <= side) & (np.abs(y) <= side),
                lambda x, y: (np.abs(x) <= (y + 1) / 2) & (y <= 1),
            )
        ):
            here = shape == number
            inside[here] = rule(x[here], y[here])
        return inside.reshape(len(shape), self.size, _POINTS, self.size, _POINTS).mean(axis=(2, 4))


@checked_numbers
def shapes(
    split: str = "train",
    *,
    size: int = 16,
    objects: int = 2,
    colours: int = 4,
    sizes: int = 2,
    jitter: float = 0.5,
    holdout: float = 0.1,
    holdout_seed: int = 0,
) -> Scenes:
    """Scenes of one coloured shape at a named place, or of two in a relation, as a source of fresh draws.

    `source(seed, step, size) -> (x0 [size, h, w, 3], factors int32 [size, k])`; `source.captions(factors)` are their
    texts. Factors of an object are size, colour and shape, in the order of the caption.

    >>> from diffjax import data
    >>> scenes = data.shapes(size=16)
    >>> x, _ = scenes(seed=0, step=0, size=4)
    >>> x.shape
    (4, 16, 16, 3)

    Args:
      split: "train", "test" (the combinations held out) or "all".
      size: pixels a side.
      objects: 1 ("a red circle at the top left") or 2 ("a red circle above a small blue square").
      colours: how many there are, of red, green, blue, yellow, purple and white.
      sizes: how many there are, of small, the usual, which no word is for, and large.
      jitter: how far an object may be from the middle of its place, 0 (not at all) to 1 (where it just fits).
      holdout: share of the combinations that are held out: a colour with a shape, or a pair of those in any relation.
      holdout_seed: which; both splits must be made with the same.

    Raises:
      ValueError: an argument out of range.
    """
    check_objects(objects)
    if size < 1:
        raise ValueError(f"size: at least one pixel is needed, got {size}")
    words = (chosen("sizes", SIZES, sizes), chosen("colours", COLOURS, colours), SHAPES)
    grammar = Grammar(words, ("size", "colour", "shape"), (1, 2), objects)
    return make_scenes(grammar, ShapePainter(size), jitter, split, holdout, holdout_seed, "combinations of shapes")
