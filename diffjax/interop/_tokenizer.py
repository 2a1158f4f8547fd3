"""Texts -> ids, by the `tokenizers` library (extra `text`) and a tokenizer.json, as transformers writes it.

texts --train_tokenizer--> tokenizer.json: byte pair encoding (Sennrich et al. 2016) with T5's special tokens
tokenizer.json + texts --> ids [b, length], mask [b, length] --> T5Encoder --> embedding --> Text(embedding, mask)
"""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from diffjax._numbers import checked_numbers
from diffjax.interop._files import read_regular

LARGEST = 2**28
"""Bytes of a tokenizer.json."""

PADDING = ("<pad>", "[PAD]")
_SENTINEL = "<extra_id_{}>"
_SENTINELS = 100
"""How many T5 has."""


class Vocabulary(NamedTuple):
    """What a tokenizer says of its ids.

    Attributes:
      size: one more than the largest id.
      sentinels: the ids that stand for hidden spans, T5's `<extra_id_0>` and so on; none in other tokenizers.
      unknown: the id of what has no token; None where every text has tokens.
      added: how many tokens are added to each text (T5's `</s>`).
    """

    size: int
    sentinels: tuple[int, ...]
    unknown: int | None
    added: int


@checked_numbers
def tokenize(source: str | os.PathLike[str], texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of texts, each cut or filled up to one length.

    A text that is too long loses its end, but not the tokens that the tokenizer adds (T5's `</s>`).

    Args:
      source: a tokenizer.json, or the folder it is in.
      texts: b strings.
      length: tokens of each.

    Returns:
      ids [b, length] int32, mask [b, length] bool, True where there is a token.

    Raises:
      ValueError: no tokenizer.json, or one that cannot be read; texts that are not a list of strings; a length that
        the added tokens alone fill; `tokenizers` is not installed.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts: a list of strings is needed, got {texts!r}")
    tokenizer = _read(source)
    added = tokenizer.num_special_tokens_to_add(False)
    if length <= added:
        raise ValueError(
            f"length: more than {added} is needed, for so many tokens are added to each text; got {length}"
        )
    known = [(name, tokenizer.token_to_id(name)) for name in PADDING]
    name, number = next(((name, number) for name, number in known if number is not None), (PADDING[0], 0))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=number, pad_token=name)
    encoded = tokenizer.encode_batch(list(texts))
    ids = np.array([each.ids for each in encoded], np.int32).reshape(-1, length)
    return ids, np.array([each.attention_mask for each in encoded], bool).reshape(-1, length)


@checked_numbers
def train_tokenizer(texts: Iterable[str], path: str | os.PathLike[str], *, vocabulary: int = 512) -> None:
    """Trains byte pair encoding on texts and writes a tokenizer.json, the same for the same texts.

    Special tokens are T5's: `<pad>` 0, `</s>` 1, which ends each text, `<unk>` 2, `<extra_id_0>` ... `<extra_id_9>`.
    Where texts are of a small grammar, words become single tokens; a unigram model leaves most of them in letters.

    Args:
      texts: what to train on.
      path: of the tokenizer.json to write.
      vocabulary: ids at most; characters and special tokens are all kept, whatever it is.

    Raises:
      ValueError: there is no text; `tokenizers` is not installed.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("texts: at least one that is not empty is needed to train a tokenizer on, got none")
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = library.normalizers.NFKC()
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace()
    tokenizer.decoder = library.decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *(_SENTINEL.format(i) for i in range(10))]
    fields = {"vocab_size": vocabulary, "special_tokens": special, "show_progress": False}
    tokenizer.train_from_iterator(texts, library.trainers.BpeTrainer(**fields))
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = library.processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
    tokenizer.save(str(path))


def vocabulary_of(source: str | os.PathLike[str]) -> Vocabulary:
    """What a tokenizer.json, or that of a folder, says of its ids; raises `ValueError` as `tokenize` does."""
    tokenizer = _read(source)
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    sentinels = (numbers.get(_SENTINEL.format(i)) for i in range(_SENTINELS))
    return Vocabulary(
        max(numbers.values()) + 1,
        tuple(number for number in sentinels if number is not None),
        numbers.get("<unk>"),
        tokenizer.num_special_tokens_to_add(False),
    )


def count_tokens(source: str | os.PathLike[str], texts: Sequence[str]) -> np.ndarray:
    """How many tokens each text has, [b], with those that the tokenizer adds and without a limit."""
    tokenizer = _read(source)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array([len(each.ids) for each in tokenizer.encode_batch(list(texts))], np.int64)


def _library():
    try:
        import tokenizers
    except ImportError:
        raise ValueError("source: tokenizers is not installed; pip install '.[text]' in diffjax's folder") from None
    return tokenizers


def _read(source):
    Tokenizer = _library().Tokenizer
    path = pathlib.Path(source)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not os.path.lexists(path):
        raise ValueError(
            f"source: no file {path}; a tokenizer.json is needed, as transformers' fast tokenizers save it"
        )
    try:
        content = read_regular(path, LARGEST)
    except ValueError as error:
        raise ValueError(f"source: {error}") from None
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"source: {path} is not a tokenizer.json: {error}") from error
