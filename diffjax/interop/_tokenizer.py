"""Texts -> ids, by the `tokenizers` library (extra `text`) and a tokenizer.json, as transformers writes it.

tokenizer.json + texts --> ids [b, length], mask [b, length] --> T5Encoder --> embedding --> Text(embedding, mask)
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from diffjax._arrays import whole_numbers
from diffjax.interop._files import read_regular

LARGEST = 2**28
"""Bytes of a tokenizer.json."""

PADDING = ("<pad>", "[PAD]")


@whole_numbers
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


def _read(source):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError("source: tokenizers is not installed; pip install '.[text]' in diffjax's folder") from None
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
