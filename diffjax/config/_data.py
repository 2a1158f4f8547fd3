"""From a configuration to data: what a run learns from, and what was held out to measure it against.

digits | a density in the plane | files of your own --build_data--> source, train, held out

    source(seed, step, size) -> (x0, cond)    all of the training items, read as they are used
    train, held_out                           in memory, for measures: read when first asked for, 256 MiB at most
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from diffjax.config._check import check_seed
from diffjax.config._items import ITEMS, Split, labels_of, read_some
from diffjax.config._options import DataConfig
from diffjax.data import checkerboard, digits, from_items, mixture, random_flip, swiss_roll, two_moons
from diffjax.data._arrays_source import Arrays
from diffjax.data._image_folder import in_words
from diffjax.data._items import Skipping

TOYS = {"mixture": mixture, "two_moons": two_moons, "checkerboard": checkerboard, "swiss_roll": swiss_roll}

Pair = tuple[Any, Any]

_CLASSES = 1000  # whose counts are told


class Data:
    """What a run learns from and is measured against.

    Attributes:
      source: `(seed, step, size, *, part=(0, 1)) -> (x0, cond)`.
      classes: how many the network is told of; None where it is told nothing.
      log_prob: the exact log density in nats, where there is one.
      about: lines for the user, of what there is: how many items, of which class, and what was left out.
      bad: `() -> [what was wrong with it]`, of the items that were skipped in this process so far.
    """

    def __init__(
        self,
        source: Callable[..., Pair],
        train: Pair | Callable[[], Pair],
        held_out: Pair | Callable[[], Pair],
        classes: int | None,
        log_prob: Callable[[Any], Any] | None,
        *,
        shape: tuple[int, ...] | None = None,
        digest: Callable[[], str] | None = None,
        about: tuple[str, ...] = (),
        bad: Callable[[], list[str]] = list,
    ):
        self.about, self.bad, self._digest = about, bad, digest
        self.source, self.classes, self.log_prob = source, classes, log_prob
        self._train, self._held_out, self._shape = train, held_out, shape

    @cached_property
    def digest(self) -> str | None:
        """Of files that `train` does not stand for; None where their contents are their digest."""
        return None if self._digest is None else self._digest()

    @cached_property
    def train(self) -> Pair:
        """x [n, *d] and labels [n] or None: the training items (where they are many, some), or fresh draws of a toy."""
        return self._train() if callable(self._train) else self._train

    @cached_property
    def held_out(self) -> Pair:
        """The same, never trained on."""
        return self._held_out() if callable(self._held_out) else self._held_out

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.train[0].shape[1:] if self._shape is None else self._shape


def build_data(config: DataConfig) -> Data:
    """The data of a configuration.

    Raises:
      ValueError: a file cannot be read, or holds values that are not finite; or a number is out of range.
    """
    check_seed("data.holdout_seed", config.holdout_seed)
    if config.workers < 0:
        raise ValueError(f"data.workers: at least 0, got {config.workers}")
    if config.name in TOYS or config.name == "digits":
        _check_without_files(config)
        return _toy(config) if config.name in TOYS else _from_items(config, _digits(config))
    if config.path is None:
        raise ValueError(f"data.path: {config.name} needs the place of its files, got None")
    if config.image_size is not None and (config.name != "image_folder" or config.image_size < 1):
        raise ValueError(f"data.image_size: at least 1, and for image_folder only, got {config.image_size}")
    if config.channels is not None and (config.name != "image_folder" or config.channels not in (1, 3)):
        raise ValueError(f"data.channels: 1 or 3, and for image_folder only, got {config.channels}")
    if config.skip_bad and config.name not in ("image_folder", "cifar10"):
        raise ValueError(f"data.skip_bad: for images in folders only, and not for {config.name}")
    try:
        split = ITEMS[config.name](config)
    except ValueError as error:
        named = str(error).startswith("data.")
        raise ValueError(str(error) if named else f"data.{error}") from None
    return _from_items(config, split)


def _check_without_files(config: DataConfig) -> None:
    if config.path is not None:
        raise ValueError(f"data.path: {config.name} reads no file, got {config.path}")
    if config.image_size is not None:
        raise ValueError(f"data.image_size: {config.name} has a size of its own, got {config.image_size}")
    if config.channels is not None:
        raise ValueError(f"data.channels: {config.name} has channels of its own, got {config.channels}")
    if config.skip_bad:
        raise ValueError(f"data.skip_bad: {config.name} reads no file, so that none can be bad")
    if config.flip and config.name in TOYS:
        raise ValueError(f"data.flip: {config.name} has no images to flip")


def _from_items(config: DataConfig, split: Split) -> Data:
    train, held_out = split.train, split.held_out
    if not len(held_out):
        raise ValueError(f"data.holdout: nothing is held out to measure against, got {config.holdout}")
    shape = np.shape(train[0][0])
    if config.flip and len(shape) != 3:
        raise ValueError(f"data.flip: images [h, w, c] are needed, {config.name} has items of shape {shape}")
    source = from_items(train, augment=random_flip if config.flip else None)
    told = config.conditional and labels_of(train) is not None
    read = lambda items: lambda: read_some(items, told=told)
    return Data(
        source if told else _Untold(source),
        read(train),
        read(held_out),
        _classes(labels_of(train), labels_of(held_out)) if told else None,
        None,
        shape=shape,
        digest=split.digest,
        about=_about(split, told),
        bad=lambda: [text for part in (train, held_out) if isinstance(part, Skipping) for text in part.bad.values()],
    )


def _about(split: Split, told: bool) -> tuple[str, ...]:
    """How many items there are, which label is which class, with its count in training, and what was left out."""
    lines = [f"data: {len(split.train):,} items to train on, {len(split.held_out):,} held out"]
    if told:
        counts = np.bincount(labels_of(split.train))
        names = split.classes
        each = [f"{i} = {names[i]}: {n:,}" if names else f"{i}: {n:,}" for i, n in enumerate(counts[:_CLASSES])]
        more = f", and {len(counts) - _CLASSES:,} more" if len(counts) > _CLASSES else ""
        lines.append(f"classes (label{' = name' if names else ''}: items to train on): {', '.join(each)}{more}")
    if split.left_out:
        lines.append(f"left out: {in_words(split.left_out)}")
    return tuple(lines)


class _Untold:
    """A source without its conditions; it can be sent to another process."""

    def __init__(self, source: Callable[..., Pair]):
        self.source = source

    def __call__(self, seed: int, step: int, size: int, *, part: tuple[int, int] = (0, 1)) -> Pair:
        return self.source(seed, step, size, part=part)[0], None


def _classes(*labels: Any) -> int:
    """One more than the largest label."""
    return max(int(part.max()) for part in labels) + 1


def _toy(config: DataConfig) -> Data:
    toy = TOYS[config.name]()
    source = toy if config.conditional else _Untold(toy)
    # Seeds that no run can have: what is measured against was not trained on.
    train, held_out = source(2**32, 0, 4000), source(2**32 + 1, 0, 4000)
    classes = None if train[1] is None else _classes(train[1], held_out[1])
    return Data(source, train, held_out, classes, getattr(toy, "log_prob", None))


def _digits(config: DataConfig) -> Split:
    split = {"holdout": config.holdout, "seed": config.holdout_seed}
    return Split(Arrays(*digits("train", **split)), Arrays(*digits("test", **split)))
