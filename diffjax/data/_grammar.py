"""Captions of scenes from a grammar, and back: factors [k] <-> "a red circle above a small blue square".

    one object      OBJECT PLACE                "a small red circle at the top left"
    two             OBJECT RELATION OBJECT      "an eight left of a nine"
    OBJECT          a | an, then a word for each of its factors, some of which are silent: "a red circle"

Factors are whole numbers in the order of the words: those of the first object, then its place; or those of both
objects, then the relation. Every caption is of one row of factors and every row has one caption, so that a picture's
content is known.

Combinations: what is held out together. Of two objects, the unordered pair of their kinds (colour and shape, or digit),
in any relation; of one object its kind, with its place where the kind is a single word.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

PLACES = ("at the top left", "at the top right", "in the middle", "at the bottom left", "at the bottom right")
CENTRES = ((0.25, 0.25), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (0.75, 0.75))
"""(row, column) of each place, in sides of the picture."""
RELATIONS = ("above", "below", "left of", "right of")
PAIRS = (
    ((0.25, 0.5), (0.75, 0.5)),
    ((0.75, 0.5), (0.25, 0.5)),
    ((0.5, 0.25), (0.5, 0.75)),
    ((0.5, 0.75), (0.5, 0.25)),
)
"""(row, column) of both objects, for each relation."""
_CONVERSE = np.array([1, 0, 3, 2])


@dataclass(frozen=True, eq=False)
class Grammar:
    """Captions of scenes of one object or two.

    Attributes:
      words: for each factor of an object its words, in the order of the caption; "" for a silent one.
      names: of these factors.
      kind: the factors, by number, that make an object's kind.
      objects: 1 or 2.
    """

    words: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    kind: tuple[int, ...]
    objects: int

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors [k], such as ("size", "colour", "shape", "place")."""
        if self.objects == 1:
            return (*self.names, "place")
        return (*(f"{which} {name}" for which in ("first", "second") for name in self.names), "relation")

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each factor has, [k]."""
        last = PLACES if self.objects == 1 else RELATIONS
        return (*(len(words) for words in self.words * self.objects), len(last))

    @cached_property
    def every(self) -> Int[np.ndarray, "m k"]:
        """All rows of factors, the last factor changing first."""
        return np.stack(np.meshgrid(*map(np.arange, self.counts), indexing="ij"), -1).reshape(-1, len(self.counts))

    def caption(self, factors: Sequence[int] | Int[np.ndarray, " k"]) -> str:
        """The caption of one row of factors [k]."""
        *rest, last = self.check(np.asarray(factors)[None])[0].tolist()
        each = len(self.words)
        phrases = [self._phrase(rest[i : i + each]) for i in range(0, len(rest), each)]
        return f"{phrases[0]} {PLACES[last]}" if self.objects == 1 else f" {RELATIONS[last]} ".join(phrases)

    def parse(self, caption: str) -> Int[np.ndarray, " k"]:
        """The factors [k] of a caption; capitals, more spaces and a full stop at the end do not matter.

        Raises:
          ValueError: it is none of the grammar; the words that it does not have are named.
        """
        if not isinstance(caption, str):
            raise ValueError(f"caption: a string is needed, got {caption!r}")
        found = self._pattern.fullmatch(" ".join(caption.lower().strip().removesuffix(".").split()))
        if found is None:
            known = {word for words in (*self.words, PLACES, RELATIONS) for each in words for word in each.split()}
            others = [word for word in re.findall(r"\w+", caption.lower()) if word not in known | {"a", "an"}]
            example = self.caption(self.every[-1])
            why = f"it has no {', '.join(map(repr, others))}" if others else f"one is {example!r}"
            raise ValueError(f"caption: {caption!r} is none of the grammar; {why}")
        tables = (*(self.words * self.objects), PLACES if self.objects == 1 else RELATIONS)
        groups = found.groups() if self.objects == 1 else self._last_relation(found.groups())
        return np.array([table.index(word or "") for table, word in zip(tables, groups, strict=True)], np.int32)

    def canonical(self, factors: Int[np.ndarray, "b k"]) -> Int[np.ndarray, "b k"]:
        """The same pictures with "above" and "left of" alone: "x below y" is "y above x".

        Of one object they are as they were. A picture does not say which object was named first, so that factors which
        are read from pictures should be compared with these.
        """
        factors = self.check(factors)
        if self.objects == 1:
            return factors.copy()
        each, turned = len(self.words), factors[:, -1] % 2 == 1
        swapped = np.concatenate(
            [factors[:, each:-1], factors[:, :each], _CONVERSE[factors[:, -1:]].astype(factors.dtype)], axis=1
        )
        return np.where(turned[:, None], swapped, factors)

    def combination(self, factors: Int[np.ndarray, "b k"]) -> Int[np.ndarray, " b"]:
        """A number for what is held out together, [b], from 0 to below `combinations`."""
        factors, each = self.check(factors).astype(np.int64), len(self.words)
        of = lambda start: np.ravel_multi_index(
            tuple(factors[:, start + i] for i in self.kind), tuple(len(self.words[i]) for i in self.kind)
        )
        first = of(0)
        if self.objects == 2:
            second = of(each)
            low, high = np.minimum(first, second), np.maximum(first, second)
            return high * (high + 1) // 2 + low
        return first if len(self.kind) > 1 else first * len(PLACES) + factors[:, -1]

    @cached_property
    def combinations(self) -> int:
        """How many combinations there are."""
        return int(self.combination(self.every).max()) + 1

    def check(self, factors: Int[np.ndarray, "b k"]) -> Int[np.ndarray, "b k"]:
        """Factors [b, k] as an array; raises `ValueError` where a number is none of its factor."""
        factors = np.asarray(factors)
        if factors.ndim != 2 or factors.shape[1] != len(self.counts) or not np.issubdtype(factors.dtype, np.integer):
            raise ValueError(
                f"factors: whole numbers [b, {len(self.counts)}] are needed, {', '.join(self.factors)}, got "
                f"{factors.dtype} {list(factors.shape)}"
            )
        bad = (factors < 0) | (factors >= np.array(self.counts))
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            name, most = self.factors[column], self.counts[column] - 1
            raise ValueError(f"factors: {name} must be in 0 .. {most}, got {factors[row, column]}")
        return factors

    def _phrase(self, values: Sequence[int]) -> str:
        words = " ".join(words[i] for words, i in zip(self.words, values, strict=True) if words[i])
        return f"{'an' if words[0] in 'aeiou' and not words.startswith('one') else 'a'} {words}"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        def group(words: Iterable[str]) -> str:
            spoken = "|".join(word for word in words if word)
            return f"(?:({spoken}) )?" if "" in words else f"({spoken}) "

        thing = "an? " + "".join(group(words) for words in self.words)
        if self.objects == 1:
            return re.compile(f"{thing}({'|'.join(PLACES)})")
        return re.compile(f"{thing}({'|'.join(RELATIONS)}) {thing.removesuffix(' ')}")

    def _last_relation(self, groups: tuple[str | None, ...]) -> list[str | None]:
        each = len(self.words)
        return [*groups[:each], *groups[each + 1 :], groups[each]]


def held_out_rows(grammar: Grammar, share: float, rng: np.random.Generator) -> Bool[np.ndarray, " m"]:
    """A mask over `grammar.every`: the rows of round(share c) of its c combinations, drawn at random."""
    chosen = rng.permutation(grammar.combinations)[: round(share * grammar.combinations)]
    return np.isin(grammar.combination(grammar.every), chosen)
