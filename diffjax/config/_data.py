"""From a configuration to data: what a run learns from, and what was held out to measure it against.

digits | a density in the plane | files of your own --build_data--> source, train, held out

    source(seed, step, size) -> (x0, cond)    all of the training items, read as they are used
    train, held_out                           in memory, for measures: read when first needed, 256 MiB at most
"""

import hashlib
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from diffjax._typing import Cond
from diffjax.config._check import check_config
from diffjax.config._conditions import Samples as Samples, with_presence
from diffjax.config._names import DATA
from diffjax.config._options import DataConfig
from diffjax.config._registry import construct, takes
from diffjax.config._text_encoder import TEXTS, load_text_encoder
from diffjax.data import EncodedTexts, Scenes, from_items, load_texts, random_flip
from diffjax.data._image_folder import in_words
from diffjax.data._items import Items, Skipping
from diffjax.data._parts import Split, labels_of, read_some
from diffjax.data._source import Batch, Part, Source
from diffjax.data._texts import texts_of, with_texts
from diffjax.networks import T5Encoder

_CLASSES = 1000  # whose counts are printed
_TOYS, _SCENES = 4000, 2000  # draws that measures look at
_TRAIN, _HELD_OUT = 2**32, 2**32 + 1
"""Seeds that no run can have: what is measured against was not trained on."""


class Data:
    """What a run learns from and is measured against.

    Attributes:
      source: `(seed, step, size, *, part=(0, 1)) -> (x0, cond)`.
      classes: how many the network is conditioned on; None where it is not conditioned on labels.
      numbers: how many the network is conditioned on, as a vector; None where it is not.
      text: tokens of a caption and features of a token; None where the network is not conditioned on a text.
      encoder: fingerprint of the captions' encoder.
      trained_encoder: that encoder, where it is trained with the network, whose conditions are ids then.
      scenes: that are drawn, whose factors are known; None of other data.
      encoded: the captions of these, and those of other combinations that were encoded with them.
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
        numbers: int | None = None,
        text: tuple[int, int] | None = None,
        encoder: str | None = None,
        trained_encoder: T5Encoder | None = None,
        scenes: Scenes | None = None,
        encoded: EncodedTexts | None = None,
    ):
        self.scenes, self.encoded = scenes, encoded
        self.numbers, self.text, self.encoder, self.trained_encoder = numbers, text, encoder, trained_encoder
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
        for leaf in jax.tree.leaves((*self.train, *self.held_out)):
            array = np.ascontiguousarray(leaf)
            found.update(f"{array.dtype.str}{array.shape}".encode())
            found.update(array.tobytes())
        return found.hexdigest()

    @cached_property
    def train(self) -> Batch:
        """x [n, *d] and conditions [n, ...] or None: training items (where they are many, some), or draws of a toy."""
        return self._train() if callable(self._train) else self._train

    @cached_property
    def held_out(self) -> Batch:
        """The same, never trained on."""
        return self._held_out() if callable(self._held_out) else self._held_out

    @cached_property
    def factors(self) -> np.ndarray | None:
        """What the captions of `train` say, [n, k]; None of data that are no scenes, or without captions."""
        if self.scenes is None or self.encoded is None:
            return None
        return self.scenes(_TRAIN, 0, _SCENES)[1]

    @cached_property
    def unseen(self) -> tuple[Cond, np.ndarray] | None:
        """Conditions and factors [n, k] of scenes of combinations that are never trained on, where there are any.

        None where their captions are not encoded, too.
        """
        scenes = None if self.scenes is None else self.scenes.held_out()
        if scenes is None or self.encoded is None or not set(scenes.texts) <= set(self.encoded.texts):
            return None
        factors = scenes(_TRAIN, 0, _SCENES)[1]
        return self.encoded(scenes.captions(factors)), factors

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.train[0].shape[1:] if self._shape is None else self._shape

    @property
    def samples(self) -> Samples:
        """What sampling needs to know of it."""
        largest = 1.0 if self.pictures else float(np.abs(self.train[0]).max())
        conditions = self.numbers, self.text, self.encoder, self.trained_encoder
        return Samples(self.shape, self.classes, self.names, self.pictures, largest, *conditions)


def build_data(config: DataConfig) -> Data:
    """The data of a configuration.

    Raises:
      ValueError: a file cannot be read, or holds values that are not finite; or a number is out of range.
    """
    check_config(config, "data.")
    if config.text_encoder == "joint" and config.text is None:
        raise ValueError("data.text_encoder: joint starts with the encoder of --data.text, got no such folder")
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
    encoded, of_text = _encoded_texts(config)
    if encoded is not None and texts_of(split.train) is None:
        raise ValueError(f"data.text: {config.name} has no captions to be conditioned on, got {config.text}")
    labels = [labels_of(part) for part in (split.train, split.held_out)]
    conditional = config.conditional and labels[0] is not None
    numbers = None if labels[0] is None or labels[0].ndim == 1 or not conditional else int(labels[0].shape[1])
    train, held_out = split.train, split.held_out
    if encoded is not None:
        both = conditional and numbers is None
        train, held_out = _with_texts(train, encoded, both), _with_texts(held_out, encoded, both)
    if not len(held_out):
        raise ValueError(f"data.holdout: nothing is held out to measure against, got {config.holdout}")
    shape = np.shape(train[0][0])
    if config.flip and len(shape) != 3:
        raise ValueError(f"data.flip: images [h, w, c] are needed, {config.name} has items of shape {shape}")
    source = from_items(train, augment=random_flip if config.flip else None)
    read = lambda items: lambda: read_some(items, conditional=conditional or encoded is not None)
    if numbers is not None:
        source, read = _WithPresence(source), lambda items: lambda: _present(read_some(items, conditional=True))
    return Data(
        source if conditional or encoded is not None else _Unconditional(source),
        read(train),
        read(held_out),
        _classes(*labels) if conditional and numbers is None else None,
        None,
        shape=shape,
        names=split.classes if conditional else None,
        digest=None if split.digest is None else _with_fingerprint(split.digest, encoded),
        about=_about(split, conditional and numbers is None, numbers, encoded),
        numbers=numbers,
        bad=lambda: [text for part in (train, held_out) if isinstance(part, Skipping) for text in part.bad.values()],
        pictures=split.pictures,
        **of_text,
    )


def _with_texts(items: Items, encoded: EncodedTexts, labels: bool) -> Items:
    try:
        return with_texts(items, encoded, labels=labels)
    except ValueError as error:
        raise ValueError(f"data.text: {str(error).removeprefix('texts: ')}") from None


def _with_fingerprint(digest: Callable[[], str], encoded: EncodedTexts | None) -> Callable[[], str]:
    """The digest of files, and of the encoder of their captions."""
    if encoded is None:
        return digest
    return lambda: hashlib.sha256(f"{digest()}{encoded.fingerprint}".encode()).hexdigest()


def _encoded_texts(config: DataConfig) -> tuple[EncodedTexts | None, dict[str, Any]]:
    """The captions of the folder `data.text`, encoded, and what `Data` holds of them; None where there is none.

    They are ids where the encoder is trained with the network.
    """
    if config.text is None:
        return None, {}
    folder = Path(config.text)
    try:
        table = load_texts(folder / TEXTS)
        about = {"text": table.shape, "encoder": table.fingerprint}
        if config.text_encoder == "frozen":
            return table, about
        encoder = load_text_encoder(folder)
        if encoder.fingerprint != table.fingerprint:
            raise ValueError(f"{folder / TEXTS} is of another encoder than that of {folder}; write it anew")
        return table.with_ids(*encoder.ids(table.texts)), about | {"trained_encoder": encoder.trainable()[0]}
    except ValueError as error:
        raise ValueError(f"data.text: {str(error).removeprefix('path: ').removeprefix('text: ')}") from None


def _about(split: Split, conditional: bool, numbers: int | None, encoded: EncodedTexts | None) -> tuple[str, ...]:
    """How many items there are, which label is which class, with its count in training, and what was left out."""
    lines = [f"data: {len(split.train):,} items to train on, {len(split.held_out):,} held out"]
    if numbers is not None:
        lines.append(f"condition: {numbers} numbers, y of the file")
    if encoded is not None:
        texts = texts_of(split.train) or ()
        without = sum(not text for text in texts)
        lines.append(
            f"captions: {len(set(texts) - {''}):,} different, of {encoded.tokens} tokens"
            + (f"; {without:,} items have none" if without else "")
        )
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


class _WithPresence:
    """A source whose conditions are numbers [k, m], with the 1 that says that they are there."""

    def __init__(self, source: Source):
        self.source = source

    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        return _present(self.source(seed, step, size, part=part))


def _present(batch: Batch) -> Batch:
    return batch[0], with_presence(np.asarray(batch[1], np.float32))


def _classes(*labels: np.ndarray) -> int:
    """One more than the largest label."""
    return max(int(part.max()) for part in labels) + 1


def _from_source(config: DataConfig, toy: Source) -> Data:
    if config.flip:
        what = "captions that say left and right" if isinstance(toy, Scenes) else "no images to flip"
        raise ValueError(f"data.flip: {config.name} has {what}")
    if isinstance(toy, Scenes):
        return _from_scenes(config, toy)
    if config.text is not None:
        raise ValueError(f"data.text: {config.name} has no captions to be conditioned on, got {config.text}")
    source = toy if config.conditional else _Unconditional(toy)
    train, held_out = source(_TRAIN, 0, _TOYS), source(_HELD_OUT, 0, _TOYS)
    classes = None if train[1] is None else _classes(train[1], held_out[1])
    return Data(source, train, held_out, classes, getattr(toy, "log_prob", None))


def _from_scenes(config: DataConfig, scenes: Scenes) -> Data:
    encoded, of_text = _encoded_texts(config)
    if config.conditional and encoded is None:
        raise ValueError(
            f"data.text: {config.name} is conditioned on captions, which are encoded first: diffjax encode-text "
            f"{config.name} --out texts, then --data.text texts; or --data.no-conditional"
        )
    source, about = _Unconditional(scenes), f"data: fresh scenes of {len(scenes.rows):,} captions"
    if config.conditional and encoded is not None:
        try:
            source = scenes.captioned(encoded)
        except ValueError as error:
            raise ValueError(f"data.text: {str(error).removeprefix('texts: ')}") from None
        about += f", {encoded.tokens} tokens each"
    elif encoded is not None:
        raise ValueError(f"data.text: without --data.conditional no captions are needed, got {config.text}")
    train, held_out = source(_TRAIN, 0, _SCENES), source(_HELD_OUT, 0, _SCENES)
    return Data(
        source,
        train,
        held_out,
        None,
        None,
        shape=scenes.shape,
        about=(about,),
        pictures=True,
        scenes=scenes,
        encoded=encoded,
        **of_text,
    )
