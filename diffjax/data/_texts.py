"""Captions of items, and their encoded tokens: a table that is made once and read by caption.

    texts --encode-text--> EncodedTexts: caption -> embedding [n, k], mask [n] --save, load_texts--> texts.npz
    items with `texts`, EncodedTexts --with_texts--> items whose condition is a Text --from_items--> source

The table is of one tokenizer and one encoder, whose fingerprint is in the file: other embeddings never mix with these.
An empty caption has no tokens, and a mask that is all False: no condition, the null of classifier-free guidance.
"""

import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from diffjax._typing import Cascade, Text
from diffjax.data._items import Items, Skipping, Subset, gather
from diffjax.data._npz import check_unchanged, file_state, map_array
from diffjax.data._source import Batch, Item, Part, Source

LONGEST = 100_000
"""Characters of a caption: a book in its place is named."""
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}


def tidy(text: str) -> str:
    """A caption as it is encoded: in Unicode's composed form, with one space between words.

    >>> tidy("  a red\\n circle ")
    'a red circle'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_text(where: str, text: Any) -> str:
    """A caption, tidy; raises `ValueError` where it is no string, too long, or holds NUL or half a character."""
    if not isinstance(text, str):
        raise ValueError(f"{where}: a string is needed (an empty one for no caption), got {text!r}")
    if len(text) > LONGEST:
        raise ValueError(f"{where}: at most {LONGEST:,} characters are needed, got {len(text):,}: {text[:40]!r} ...")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start} is half of a pair of UTF-16"
        raise ValueError(f"{where}: {half}; write the caption anew, as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{where}: character {text.index(chr(0))} is NUL; if the file is UTF-16, save it as UTF-8")
    return tidy(text)


def shortened(text: str) -> str:
    """A text in quotes, as far as a message has room for it.

    >>> shortened("ab " * 100)
    "'ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ' ..."
    """
    return repr(text) if len(text) <= 60 else f"{text[:60]!r} ..."


def check_texts(texts: Iterable[Any], where: Callable[[int], str] = "texts[{}]".format) -> tuple[str, ...]:
    """Captions, each as of `check_text`; `where` says what the i-th is called."""
    if isinstance(texts, str):
        raise ValueError(f"texts: a list of strings is needed, got {texts!r}")
    return tuple(check_text(where(i), text) for i, text in enumerate(texts))


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Captions with the embeddings of their tokens, by one tokenizer and one encoder.

        texts = load_texts("texts/texts.npz")
        texts(["a red circle", ""])                  # Text(embedding [2, n, k], mask [2, n]); the second has no token

    Attributes:
      texts: m captions, each once.
      embedding: [m, n, k], bfloat16 or float32; or the ids [m, n] of their tokens, int32 (`with_ids`).
      mask: [m, n] bool, True for a token.
      fingerprint: of the tokenizer, the encoder and the length that they were encoded by.

    Raises:
      ValueError: the parts do not fit, or a caption is there twice or empty.
    """

    texts: tuple[str, ...]
    embedding: np.ndarray
    mask: np.ndarray
    fingerprint: str = ""
    file: tuple[str, tuple[int, int]] | None = field(default=None, repr=False)
    """Where it was loaded from, and the file's size and time: a worker maps it itself."""

    def __post_init__(self):
        shape = (len(self.texts), *self.embedding.shape[1:2])
        ids = self.embedding.dtype == np.int32
        if (
            self.embedding.ndim != (2 if ids else 3)
            or self.mask.shape != self.embedding.shape[:2]
            or self.mask.shape != shape
        ):
            raise ValueError(
                f"embedding: [m, n, k] and a mask [m, n] of {len(self.texts)} texts are needed, got "
                f"{list(self.embedding.shape)} and {list(self.mask.shape)}"
            )
        if not (ids or self.embedding.dtype in _DTYPES.values()) or self.mask.dtype != bool:
            raise ValueError(
                f"embedding: bfloat16 or float32, and a bool mask are needed, got {self.embedding.dtype} and "
                f"{self.mask.dtype}"
            )
        if len(self._places) < len(self.texts) or "" in self._places:
            raise ValueError("texts: each is needed once, and none empty")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k): tokens of a caption, features of a token."""
        return self.embedding.shape[1], self.embedding.shape[2]

    @property
    def tokens(self) -> int:
        """n, tokens of a caption."""
        return self.mask.shape[1]

    def with_ids(self, ids: np.ndarray, mask: np.ndarray) -> "EncodedTexts":
        """The same captions with the ids [m, n] of their tokens, int32, and a mask [m, n] in place of embeddings."""
        return EncodedTexts(self.texts, ids, mask, self.fingerprint)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.texts)}

    def rows(self, texts: Iterable[str]) -> Int[np.ndarray, " b"]:
        """The rows [b] of captions; -1 of an empty one.

        Raises:
          ValueError: captions that are not there; the first is named.
        """
        asked = check_texts(texts)
        absent = [text for text in asked if text and text not in self._places]
        if absent:
            raise ValueError(
                f"texts: {len(absent)} of {len(asked)} are not encoded, the first {shortened(absent[0])}; "
                "encode them as well, with diffjax encode-text"
            )
        return np.array([self._places[text] if text else -1 for text in asked], np.int64)

    def take(self, rows: Int[np.ndarray, "*b"]) -> Text:
        """The condition of rows [*b]: embedding [*b, n, k], or ids, and mask [*b, n]; no token where a row is -1."""
        rows = np.asarray(rows)
        there = rows >= 0
        place = np.where(there, rows, 0)
        if not len(self.texts):
            nothing = np.zeros((*rows.shape, *self.embedding.shape[1:]), self.embedding.dtype)
            return Text(nothing, np.zeros((*rows.shape, self.mask.shape[1]), bool))
        embedding = np.asarray(self.embedding[place])
        present = there.reshape(*rows.shape, *(1,) * (self.embedding.ndim - 1))
        return Text(np.where(present, embedding, np.zeros((), embedding.dtype)), self.mask[place] & there[..., None])

    def __call__(self, texts: Iterable[str]) -> Text:
        """The condition of captions: embedding [b, n, k] and mask [b, n]."""
        return self.take(self.rows(texts))

    def save(self, path: str | Path) -> None:
        """Writes an .npz, whole or not at all."""
        path = Path(path)
        bits = self.embedding.view(np.uint16) if self.embedding.dtype.itemsize == 2 else self.embedding
        about = {"texts": self.texts, "fingerprint": self.fingerprint, "dtype": str(self.embedding.dtype)}
        record = np.frombuffer(json.dumps(about).encode(), np.uint8)
        part = path.with_name(f"{path.name}.{os.getpid()}.part.npz")  # savez wants its suffix
        try:
            np.savez(part, about=record, embedding=bits, mask=self.mask)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def __reduce__(self):
        if self.file is None:
            return EncodedTexts, (self.texts, self.embedding, self.mask, self.fingerprint)
        return _load_again, self.file


def load_texts(path: str | Path) -> EncodedTexts:
    """Reads what `EncodedTexts.save` wrote; the embeddings [m, n, k] are mapped, not read.

    Raises:
      ValueError: it is no such file.
    """
    file = (str(path), file_state(path))
    try:
        about = json.loads(np.asarray(map_array(path, "about")).tobytes())
        embedding, mask = map_array(path, "embedding"), np.array(map_array(path, "mask"))
        dtype, texts, fingerprint = _DTYPES[about["dtype"]], about["texts"], about["fingerprint"]
        if not isinstance(texts, list) or check_texts(texts) != tuple(texts) or not isinstance(fingerprint, str):
            raise ValueError("texts or fingerprint")
        bits = np.uint16 if dtype.itemsize == 2 else dtype
        if embedding.dtype != bits:
            raise ValueError(f"embedding: {dtype} is needed, got {embedding.dtype}")
        return EncodedTexts(tuple(texts), embedding.view(dtype), mask, fingerprint, file)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        why = str(error).removeprefix("path: ") or type(error).__name__
        remedy = "write it anew by encode-text" + (", once it is removed" if file[1] != (-1, -1) else "")
        raise ValueError(f"path: {path} holds no encoded texts: {why}; {remedy}") from None


def _load_again(path: str, opened: tuple[int, int]) -> EncodedTexts:
    check_unchanged(path, opened)
    return load_texts(path)


def texts_of(items: Items) -> tuple[str, ...] | None:
    """The captions of all items, one each, without reading the items; None where there are none."""
    if isinstance(items, Subset):
        inside = texts_of(items.items)
        return None if inside is None else tuple(inside[i] for i in items.indices.tolist())
    if isinstance(items, Skipping):
        return texts_of(items.items)
    return getattr(items, "texts", None)


@dataclass(frozen=True, eq=False)
class Captioned:
    """Made by `with_texts`."""

    items: Items
    encoded: EncodedTexts
    rows: np.ndarray
    labels: bool

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        x, label = self.items[index]
        return x, self._condition(self.rows[index], label)

    def gather(self, indices: np.ndarray) -> Batch:
        """Many at once: x [k, *d] and their conditions."""
        x, labels = gather(self.items, indices)
        return x, self._condition(self.rows[indices], labels)

    def _condition(self, rows: Any, labels: Any) -> Text | Cascade:
        text = self.encoded.take(rows)
        return Cascade(text=text, label=np.asarray(labels, np.int32)) if self.labels else text

    def describe(self, index: int) -> str:
        """What an item is called."""
        found = getattr(self.items, "describe", None)
        return f"item {index}" if found is None else found(index)


def with_texts(
    items: Items, encoded: EncodedTexts, texts: Sequence[str] | None = None, *, labels: bool = False
) -> Items:
    """Items whose condition is the encoded caption, a `networks.Text`; for `from_items`.

    Args:
      items: with captions (an attribute `texts`), such as an `ImageFolder` with `text`, or any with `texts` given.
      encoded: where all captions are; empty ones need not be.
      texts: n captions, one an item.
      labels: keep the items' labels as well: the condition is then `networks.Cascade(text=..., label=...)`.

    Raises:
      ValueError: items without captions, or not one each; a caption that is not encoded; items without labels.
    """
    if isinstance(items, Skipping):  # an item that gives way takes its caption along
        return Skipping(with_texts(items.items, encoded, texts, labels=labels), items.bad)
    found = texts_of(items) if texts is None else tuple(texts)
    if found is None:
        raise ValueError(f"texts: {type(items).__name__} has no captions; give them, one an item")
    if len(found) != len(items):
        raise ValueError(f"texts: one an item is needed, {len(items)}, got {len(found)}")
    if labels and items[0][1] is None:
        raise ValueError("labels: the items have none; leave it out")
    return Captioned(items, encoded, encoded.rows(found), labels)


@dataclass(frozen=True, eq=False)
class CaptionedSource:
    """Made by `Scenes.captioned`: a source whose condition is the caption of what it was."""

    source: Source
    encoded: EncodedTexts
    caption: Callable[[Any], Sequence[str]]

    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        x0, cond = self.source(seed, step, size, part=part)
        return x0, self.encoded(self.caption(cond))
