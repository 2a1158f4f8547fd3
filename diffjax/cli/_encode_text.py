"""`diffjax encode-text`: captions become embeddings, once.

shapes | digit_scenes | captions.txt | metadata.jsonl | folder, zip --> captions
captions --tokenizer, frozen encoder--> FOLDER/texts.npz            FOLDER/tokenizer.json  FOLDER/encoder/
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffjax.cli._options import EncodeText
from diffjax.cli._print import print_line
from diffjax.config import check_seed, store_text_encoder, trained_text_encoder
from diffjax.config._text_encoder import TEXTS, TextEncoder, make_text_encoder
from diffjax.config._trained_encoder import is_run
from diffjax.data import ImageFolder, digit_scenes, load_texts, shapes
from diffjax.data._metadata import METADATA, decode_lines, parse_line
from diffjax.data._texts import check_text, shortened
from diffjax.interop import count_tokens, tokenize, vocabulary_of

_LONGEST = 128
"""Tokens: of T5 in Imagen."""


def run_encode_text(options: EncodeText, argv: list[str]) -> None:
    """Encodes the captions that the folder does not hold yet."""
    for name, value in {"vocabulary": options.vocabulary, "steps": options.steps}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    check_seed("seed", options.seed)
    out = Path(options.out)
    if not options.out or (out.exists() and not out.is_dir()):
        raise ValueError(f"out: the name of a folder is needed, got {options.out!r}")
    texts = read_captions(options.captions, options.field)
    unique = tuple(dict.fromkeys(text for text in texts if text))
    if not unique:
        raise ValueError(f"captions: {options.captions} holds none that is not empty")
    path = out / TEXTS
    try:
        known = load_texts(path) if path.exists() else None
    except ValueError as error:
        raise ValueError(f"out: {str(error).removeprefix('path: ')}") from None
    try:
        encoder = _encoder(options, unique)
    except ValueError as error:
        raise ValueError(re.sub(r"^(text|folder): ", "out: ", str(error))) from None
    table = encoder.encode(unique, known)
    new = len(table.texts) - (0 if known is None or known.fingerprint != table.fingerprint else len(known.texts))
    if new:
        table.save(path)
    for line in _about(encoder, texts, unique, new):
        print_line(line)
    print_line(f"{path}: {len(table.texts):,} captions of {table.shape[0]} tokens, {table.shape[1]} features each")


def _encoder(options: EncodeText, texts: tuple[str, ...]) -> TextEncoder:
    """The encoder of the folder, made where there is none."""
    if is_run(options.encoder):
        if options.whiten:
            raise ValueError("whiten: the encoder that a run trained is taken as it is, got True; leave it out")
        try:
            trained = trained_text_encoder(
                options.encoder, texts=options.tokenizer, length=options.length, dtype=options.dtype
            )
        except ValueError as error:
            text = re.sub("^texts: ", "tokenizer: ", re.sub("^run: ", "encoder: ", str(error)))
            raise ValueError(text) from None
        return store_text_encoder(options.out, trained)
    return make_text_encoder(
        options.out,
        texts,
        tokenizer=options.tokenizer,
        vocabulary=options.vocabulary,
        encoder=options.encoder,
        size=options.size,
        steps=options.steps,
        length=options.length,
        longest=_LONGEST,
        dtype=options.dtype,
        whiten=options.whiten,
        seed=options.seed,
        report=lambda step, loss, right: print_line(
            f"step {step}: {loss:.3f} nats a hidden token, {100 * right:.0f} % of them right"
        ),
    )


def read_captions(source: str, field: str = "text") -> list[str]:
    """The captions of a grammar, of a text file, of a metadata.jsonl or of a folder or zip of images; some empty.

    Raises:
      ValueError: there is nothing of the kind, or a caption is none.
    """
    grammars: dict[str, Callable[[int], tuple[str, ...]]] = {
        "shapes": lambda objects: shapes("all", objects=objects, colours=6, sizes=3).texts,
        "digit_scenes": lambda objects: digit_scenes("all", objects=objects).texts,
    }
    if not source:
        raise ValueError(f"captions: {', '.join(grammars)}, a file or a folder is needed, got ''")
    if source in grammars:
        return [text for objects in (1, 2) for text in grammars[source](objects)]
    path = Path(source)
    if path.is_dir() or path.suffix.lower() == ".zip":
        try:
            found = ImageFolder(path, text=field).texts
        except ValueError as error:
            raise ValueError(f"captions: {str(error).removeprefix('path: ').removeprefix('text: ')}") from None
        assert found is not None
        return list(found)
    if not path.is_file():
        raise ValueError(f"captions: {', '.join(grammars)}, a file or a folder is needed, got {source}")
    try:
        lines = decode_lines(path.read_bytes(), str(path))
        if path.name == METADATA or path.suffix == ".jsonl":
            named = enumerate(lines, start=1)
            return [_of_record(line, f"{path}, line {i}", field) for i, line in named if line.strip()]
        return [check_text(f"text: {path}, line {i}", line) for i, line in enumerate(lines, start=1) if line.strip()]
    except ValueError as error:
        raise ValueError(f"captions: {str(error).removeprefix('text: ')}") from None


def _of_record(line: str, at: str, field: str) -> str:
    record = parse_line(line, at)
    if field not in record:
        raise ValueError(f"text: {at}: there is no {field!r}, but {json.dumps(list(record))}")
    return check_text(f"text: {at}: {field}", record[field])


def _about(encoder: TextEncoder, texts: list[str], unique: tuple[str, ...], new: int) -> list[str]:
    """What there was, and what was lost of it."""
    empty, size = sum(not text for text in texts), sum(leaf.size for leaf in _leaves(encoder))
    lines = [
        f"{len(texts):,} captions, {len(unique):,} different" + (f", {empty:,} empty (no condition)" if empty else ""),
        f"encoder: {size:,} parameters, fingerprint {encoder.fingerprint[:12]}; {new:,} captions were new",
    ]
    return [*lines, *lost(encoder, unique, "captions")]


def lost(encoder: TextEncoder, texts: Sequence[str], what: str) -> list[str]:
    """Lines that say what of texts the encoder does not see: none where it sees all."""
    lines, tokens = [], count_tokens(encoder.tokenizer, texts)
    if cut := int(np.sum(tokens > encoder.length)):
        lines.append(
            f"cut: {cut:,} {what} have more than {encoder.length} tokens, the longest {tokens.max():,}; they lose "
            "their end"
        )
    unknown = vocabulary_of(encoder.tokenizer).unknown
    if unknown is not None:
        ids, mask = tokenize(encoder.tokenizer, texts, encoder.length)
        without = ((ids == unknown) & mask).any(axis=1)
        if without.any():
            first = shortened(texts[int(np.argmax(without))])
            lines.append(f"unknown: {int(without.sum()):,} {what} have characters without a token, the first {first}")
    return lines


def _leaves(encoder: TextEncoder) -> list[np.ndarray]:
    import jax

    return jax.tree.leaves(encoder.params)
