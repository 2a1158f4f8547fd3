"""Scenes drawn by a seeded function: pictures whose content is known, with captions.

    (seed, step) --> factors, uniform over those of the split --grammar--> caption
                     centres of the objects, where they fit --painter--> x0 [h, w, c]

Batch k of a seed is a function of (seed, k, size): nothing is stored, and no scene is seen twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from diffjax._numbers import checked_numbers
from diffjax.data._grammar import CENTRES, PAIRS, Grammar, held_out_rows
from diffjax.data._source import Batch, Part, Source, check_position, generator, part_rows
from diffjax.data._texts import CaptionedSource, EncodedTexts


class Scene(NamedTuple):
    """Scenes [b] with all that they were drawn from.

    Attributes:
      x0: [b, h, w, c], in [-1, 1].
      factors: [b, k] int32, what the caption says.
      centres: [b, objects, 2], (row, column) of each object's centre, in sides of the picture from the top left.
      items: [b, objects] int32, which image of its class an object is; 0 where there is one alone.
    """

    x0: np.ndarray
    factors: np.ndarray
    centres: np.ndarray
    items: np.ndarray


class Painter(Protocol):
    """How objects become a picture."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a picture."""
        ...

    def radius(self, objects: Int[np.ndarray, "b n f"]) -> Float[np.ndarray, "b n"]:
        """Half the side of the square that an object fills, in sides of the picture, at most 1/4."""
        ...

    def items(self, objects: Int[np.ndarray, "b n f"], u: Float[np.ndarray, "b n"]) -> Int32[np.ndarray, "b n"]:
        """Which image of its class each object is, from u uniform in [0, 1)."""
        ...

    def paint(
        self,
        objects: Int[np.ndarray, "b n f"],
        centres: Float[np.ndarray, "b n 2"],
        items: Int[np.ndarray, "b n"],
    ) -> Float32[np.ndarray, "b h w c"]:
        """The pictures."""
        ...


@checked_numbers
@dataclass(frozen=True, eq=False)
class Scenes:
    """A source of scenes; cond is their factors, int32 [size, k]. Made by `shapes` and `digit_scenes`.

    >>> from diffjax.data import shapes
    >>> scenes = shapes(size=16)
    >>> x0, factors = scenes(0, 0, 2)
    >>> x0.shape, scenes.factors
    ((2, 16, 16, 3), ('first size', 'first colour', 'first shape', 'second size', 'second colour', 'second shape', \
'relation'))
    >>> bool((scenes.parse(scenes.captions(factors)[1]) == factors[1]).all())
    True
    """

    grammar: Grammar
    painter: Painter
    jitter: float
    rows: np.ndarray
    """[m, k] the factors that are drawn from, each row as likely."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a picture."""
        return self.painter.shape

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors [k], in the order of the caption."""
        return self.grammar.factors

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each factor has, [k]."""
        return self.grammar.counts

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Every caption of this split, in the order of `rows`."""
        return tuple(self.captions(self.rows))

    @checked_numbers
    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        scene = self.draw(seed, step, size, part=part)
        return scene.x0, scene.factors

    @checked_numbers
    def draw(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Scene:
        """A batch with all that it was drawn from; arguments as of any source."""
        check_position(seed, step, size)
        part_of, rng = part_rows(size, part), generator(seed, step)
        factors = self.rows[rng.integers(len(self.rows), size=size)]
        u = rng.random((size, self.grammar.objects, 3))
        factors, u = factors[part_of], u[part_of]
        objects = self._objects(factors)
        centres = self._centres(factors, self.painter.radius(objects), self.jitter * (2 * u[..., :2] - 1))
        items = self.painter.items(objects, u[..., 2])
        return Scene(self.painter.paint(objects, centres, items), factors.astype(np.int32), centres, items)

    def paint(
        self,
        factors: Int[np.ndarray, "b k"],
        centres: Float[np.ndarray, "b n 2"] | None = None,
        items: Int[np.ndarray, "b n"] | None = None,
    ) -> Float32[np.ndarray, "b h w c"]:
        """The pictures [b, h, w, c] of factors [b, k], which need not be of this split.

        Args:
          factors: [b, k].
          centres: [b, objects, 2] of the objects; by default in the middle of their places.
          items: [b, objects]; by default the first image of each class.
        """
        factors = self.grammar.check(factors)
        objects = self._objects(factors)
        if centres is None:
            centres = self._centres(factors, self.painter.radius(objects), np.zeros((*objects.shape[:2], 2)))
        return self.painter.paint(objects, centres, np.zeros(objects.shape[:2], np.int32) if items is None else items)

    def captions(self, factors: Int[np.ndarray, "b k"]) -> list[str]:
        """The captions of factors [b, k]."""
        return [self.grammar.caption(row) for row in np.asarray(factors)]

    def parse(self, caption: str) -> Int[np.ndarray, " k"]:
        """The factors [k] of a caption; raises `ValueError` where it is none of the grammar."""
        return self.grammar.parse(caption)

    def canonical(self, factors: Int[np.ndarray, "b k"]) -> Int[np.ndarray, "b k"]:
        """The same pictures with "above" and "left of" alone, [b, k]: "x below y" is "y above x".

        A picture does not say which object was named first: compare factors that are read from pictures with these.
        """
        return self.grammar.canonical(factors)

    def held_out(self) -> "Scenes | None":
        """The scenes of the combinations that this split never draws; None where it draws all."""
        held_out = ~self.is_drawn(self.grammar.every)
        return replace(self, rows=self.grammar.every[held_out]) if held_out.any() else None

    def is_drawn(self, factors: Int[np.ndarray, "b k"]) -> Bool[np.ndarray, " b"]:
        """True for factors [b, k] of this split, False for those that it never draws."""
        combination = self.grammar.combination
        return np.isin(combination(factors), np.unique(combination(self.rows)))

    def captioned(self, encoded: EncodedTexts) -> Source:
        """The same scenes with their encoded captions as condition, a `networks.Text`.

        Raises:
          ValueError: captions of this split that are not encoded.
        """
        encoded.rows(self.texts)
        return CaptionedSource(self, encoded, self.captions)

    def _objects(self, factors):
        """[b, objects, factors of an object]."""
        return factors[:, :-1].reshape(len(factors), self.grammar.objects, len(self.grammar.words))

    def _centres(self, factors, radius, offset):
        """Centres [b, n, 2] at offsets in [-1, 1] of the room that each object has around the middle of its place."""
        if self.grammar.objects == 1:
            middle, half = np.array(CENTRES)[factors[:, -1]][:, None], np.full((len(factors), 1, 2), 0.25)
        else:
            middle = np.array(PAIRS)[factors[:, -1]]
            half = np.where((factors[:, -1] < 2)[:, None, None], (0.25, 0.5), (0.5, 0.25))  # half a place's sides
        return middle + offset * (half - radius[..., None])


def make_scenes(
    grammar: Grammar, painter: Painter, jitter: float, split: str, holdout: float, seed: int, what: str
) -> Scenes:
    """The scenes of a split.

    Raises:
      ValueError: an argument out of range, or nothing is left of the split.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split: 'train', 'test' or 'all' is needed, got {split!r}")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout: a share in [0, 1) is needed, got {holdout}")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter: a number in [0, 1] is needed, got {jitter}")
    held_out = held_out_rows(grammar, holdout, generator(seed))
    rows = grammar.every[{"train": ~held_out, "test": held_out, "all": np.ones_like(held_out)}[split]]
    if not len(rows):
        raise ValueError(f"holdout: {holdout} of {grammar.combinations} {what} leaves none to {split} on")
    return Scenes(grammar, painter, float(jitter), rows)


def check_objects(objects: int) -> None:
    """Raises `ValueError` for a number of objects that there is no grammar for."""
    if objects not in (1, 2):
        raise ValueError(f"objects: 1 or 2 are needed, got {objects}")


def chosen(name: str, words: Sequence[str], count: int, least: int = 2) -> tuple[str, ...]:
    """The first so many words of a factor; raises `ValueError` where there are not so many."""
    if not least <= count <= len(words):
        raise ValueError(f"{name}: {least} to {len(words)} are needed, got {count}")
    return tuple(words[:count])
