"""From a configuration to data: what a run learns from, and what was held out to measure it against.

digits | a density in the plane | files of your own --build_data--> source, train, held out

    source(seed, step, size) -> (x0, cond)    all of the training items, read as they are used
    train, held_out                           in memory, for measures: read when first needed, 256 MiB at most
"""

import hashlib
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from diffjax.config._check import check_config
from diffjax.config._names import DATA
from diffjax.config._options import DataConfig
from diffjax.config._registry import construct, takes
from diffjax.data import from_items, random_flip
from diffjax.data._image_folder import in_words
from diffjax.data._items import Skipping
from diffjax.data._parts import Split, labels_of, read_some
from diffjax.data._source import Batch, Part, Source

_CLASSES = 1000  # whose counts are printed


class Samples(NamedTuple):
    """All that a run needs to know of its data to draw samples; it is stored with the run."""

    shape: tuple[int, ...]
    """Of one sample."""
    classes: int | None
    """How many the network is conditioned on; None where it is unconditional."""
    names: tuple[str, ...] | None = None
    """Of the classes, label by label, where they have names."""
    pictures: bool = False
    """Whether they are images, whose numbers are known to lie in [-1, 1]."""
    largest: float = 0.0
    """The largest number of the data, its sign left out; 0 where that is not known."""


class Data:
    """What a run learns from and is measured against.

    Attributes:
      source: `(seed, step, size, *, part=(0, 1)) -> (x0, cond)`.
      classes: how many the network is conditioned on; None where it is unconditional.
      names: of the classes, label by label; None where they have none.
      log_prob: the exact log density in nats, where there is one.
      about: lines for the user, of what there is: how many items, of which class, and what was left out.
      pictures: whether samples are images, whose values are known to lie in [-1, 1].
      bad: `() -> [what was wrong with it]`, of the items that were skipped in this process so far.
    """

    def __init__(
        self,
        source: Source,
        train: Batch | Callable[[], Batch],
        held_out: Batch | Callable[[], Batch],
        classes: int | None,
        log_prob: Callable[[Array], Array] | None,
        *,
        shape: tuple[int, ...] | None = None,
        names: tuple[str, ...] | None = None,
        digest: Callable[[], str] | None = None,
        about: tuple[str, ...] = (),
        bad: Callable[[], list[str]] = list,
        pictures: bool = False,
    ):
        self.about, self.bad, self._digest = about, bad, digest
        self.source, self.classes, self.names, self.log_prob = source, classes, names, log_prob
        self.pictures = pictures
        self._train, self._held_out, self._shape = train, held_out, shape

    @cached_property
    def digest(self) -> str:
        """SHA-256 over dtype, shape and bytes of x and y, training items and held out; or of the list of files."""
        if self._digest is not None:
            return self._digest()
        found = hashlib.sha256()
        for array in (*self.train, *self.held_out):
            if array is not None:
                array = np.ascontiguousarray(array)
                found.update(f"{array.dtype.str}{array.shape}".encode())
                found.update(array.tobytes())
        return found.hexdigest()

    @cached_property
    def train(self) -> Batch:
        """x [n, *d] and labels [n] or None: the training items (where they are many, some), or fresh draws of a toy."""
        return self._train() if callable(self._train) else self._train

    @cached_property
    def held_out(self) -> Batch:
        """The same, never trained on."""
        return self._held_out() if callable(self._held_out) else self._held_out

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.train[0].shape[1:] if self._shape is None else self._shape

    @property
    def samples(self) -> Samples:
        """What sampling needs to know of it."""
        largest = 1.0 if self.pictures else float(np.abs(self.train[0]).max())
        return Samples(self.shape, self.classes, self.names, self.pictures, largest)


def build_data(config: DataConfig) -> Data:
    """The data of a configuration.

    Raises:
      ValueError: a file cannot be read, or holds values that are not finite; or a number is out of range.
    """
    check_config(config, "data.")
    name, reads_files = config.name, takes(DATA[config.name], "path")
    if reads_files != (config.path is not None):
        why = f"{name} needs the place of its files" if reads_files else f"{name} reads no file"
        raise ValueError(f"data.path: {why}, got {config.path}")
    if config.skip_bad and not has_images_in_folders(config):
        raise ValueError(f"data.skip_bad: for images in folders only, and not for {name}")
    make = construct("data", DATA, config)
    try:
        found = make()
    except ValueError as error:
        raise ValueError(f"data.{error}") from None
    if not isinstance(found, Split):
        return _from_source(config, found)
    for text in found.doubts:
        warnings.warn(f"data.{text}", stacklevel=2)
    return _from_items(config, found)


def has_images_in_folders(config: DataConfig) -> bool:
    """True if every image below the folder of the data is an item."""
    return takes(DATA[config.name], "skip_bad")


def _from_items(config: DataConfig, split: Split) -> Data:
    train, held_out = split.train, split.held_out
    if not len(held_out):
        raise ValueError(f"data.holdout: nothing is held out to measure against, got {config.holdout}")
    shape = np.shape(train[0][0])
    if config.flip and len(shape) != 3:
        raise ValueError(f"data.flip: images [h, w, c] are needed, {config.name} has items of shape {shape}")
    source = from_items(train, augment=random_flip if config.flip else None)
    conditional = config.conditional and labels_of(train) is not None
    read = lambda items: lambda: read_some(items, conditional=conditional)
    return Data(
        source if conditional else _Unconditional(source),
        read(train),
        read(held_out),
        _classes(labels_of(train), labels_of(held_out)) if conditional else None,
        None,
        shape=shape,
        names=split.classes if conditional else None,
        digest=split.digest,
        about=_about(split, conditional),
        bad=lambda: [text for part in (train, held_out) if isinstance(part, Skipping) for text in part.bad.values()],
        pictures=split.pictures,
    )


def _about(split: Split, conditional: bool) -> tuple[str, ...]:
    """How many items there are, which label is which class, with its count in training, and what was left out."""
    lines = [f"data: {len(split.train):,} items to train on, {len(split.held_out):,} held out"]
    if conditional:
        counts = np.bincount(labels_of(split.train))
        names = split.classes
        each = [f"{i} = {names[i]}: {n:,}" if names else f"{i}: {n:,}" for i, n in enumerate(counts[:_CLASSES])]
        more = f", and {len(counts) - _CLASSES:,} more" if len(counts) > _CLASSES else ""
        lines.append(f"classes (label{' = name' if names else ''}: items to train on): {', '.join(each)}{more}")
    if split.left_out:
        lines.append(f"left out: {in_words(split.left_out)}")
    return tuple(lines)


class _Unconditional:
    """A source without its conditions; it can be sent to another process."""

    def __init__(self, source: Source):
        self.source = source

    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        return self.source(seed, step, size, part=part)[0], None


def _classes(*labels: np.ndarray) -> int:
    """One more than the largest label."""
    return max(int(part.max()) for part in labels) + 1


def _from_source(config: DataConfig, toy: Source) -> Data:
    if config.flip:
        raise ValueError(f"data.flip: {config.name} has no images to flip")
    source = toy if config.conditional else _Unconditional(toy)
    # Seeds that no run can have: what is measured against was not trained on.
    train, held_out = source(2**32, 0, 4000), source(2**32 + 1, 0, 4000)
    classes = None if train[1] is None else _classes(train[1], held_out[1])
    return Data(source, train, held_out, classes, getattr(toy, "log_prob", None))
