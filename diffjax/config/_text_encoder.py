"""The folder of a text encoder: how captions become conditions, of a training set once and of a prompt later.

FOLDER/tokenizer.json   FOLDER/encoder/config.json, model.safetensors   FOLDER/encode.json: how it was made
FOLDER/texts.npz        captions -> embeddings, an `EncodedTexts` that grows   FOLDER/whitening.safetensors, where asked

texts --tokenizer--> ids, mask --T5Encoder, frozen--> embedding, mask --> EncodedTexts | Text

What is cached belongs to a fingerprint, SHA-256 of the tokenizer, the encoder's weights and configuration, the number
of tokens and the precision: embeddings of two encoders never mix.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Int32

from diffjax._numbers import checked_numbers
from diffjax._typing import Key, Params, Text
from diffjax.config._whitening import Whitening, fit_whitening
from diffjax.data import EncodedTexts, from_arrays
from diffjax.data._texts import check_texts, shortened
from diffjax.interop import (
    count_tokens,
    load_module,
    save_pretrained,
    t5_config,
    to_tensors,
    tokenize,
    train_tokenizer,
    vocabulary_of,
)
from diffjax.losses import span_corruption_loss
from diffjax.networks import T5Encoder, init_t5, sized_t5
from diffjax.training import load_weights, save_weights
from diffjax.training.checkpoint import write_durably

TEXTS, TOKENIZER, ENCODER, ABOUT = "texts.npz", "tokenizer.json", "encoder", "encode.json"
WHITENING = "whitening.safetensors"
MOST = 4096
"""Tokens of a text: attention is between all pairs of them."""
_AT_A_TIME = 64
_ADDED = 1
"""Tokens that a tokenizer of `train_tokenizer` adds to a text."""
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}


@checked_numbers
@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer and a frozen encoder: `encoder(texts) -> Text(embedding [b, n, k], mask [b, n])`.

        encoder = load_text_encoder("texts/shapes")
        cond = encoder(["a red circle above a small blue square"])

    An empty text has no token, and a mask that is all False. One with more tokens than `length` loses its end.

    Attributes:
      tokenizer: path of a tokenizer.json.
      module: the encoder.
      params: its parameters.
      length: n, tokens of a text.
      dtype: of embeddings, "float32" or "bfloat16"; they are computed in the module's own.
      whitening: of the features, None for those of the encoder itself.

    Raises:
      ValueError: a dtype of another name, a length that the tokenizer's own tokens fill or beyond 4096, or a tokenizer
        that has more ids than the encoder.
    """

    tokenizer: Path
    module: T5Encoder
    params: Params
    length: int
    dtype: str = "bfloat16"
    whitening: Whitening | None = None

    def __post_init__(self):
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype: one of {', '.join(_DTYPES)} is needed, got {self.dtype!r}")
        vocabulary = vocabulary_of(self.tokenizer)
        _check_length(self.length, vocabulary.added)
        if vocabulary.size > self.module.vocabulary:
            raise ValueError(
                f"tokenizer: {self.tokenizer} has {vocabulary.size} ids, the encoder is for {self.module.vocabulary}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k): tokens of a text, features of a token."""
        return self.length, self.module.width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that an embedding depends on but its text."""
        found = hashlib.sha256(Path(self.tokenizer).read_bytes())
        config = {"length": self.length, "dtype": self.dtype, "computed": str(jnp.dtype(self.module.dtype))}
        found.update(json.dumps(t5_config(self.module) | config, sort_keys=True).encode())
        for name, tensor in sorted(to_tensors(self.params).items()):
            array = np.ascontiguousarray(tensor)
            found.update(f"{name} {array.dtype.str}{array.shape}".encode() + array.tobytes())
        for array in self.whitening or ():
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def trainable(self) -> tuple[T5Encoder, Params]:
        """The module and its parameters, a pytree of arrays [*d], with the whitening as a layer, if there is one."""
        if self.whitening is None:
            return self.module, self.params
        return self.module.clone(whitened=True), self.params | {"whitening": self.whitening._asdict()}

    def ids(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
        """The ids and the mask of texts, both [b, n]; an empty text has no token."""
        texts = check_texts(texts)
        ids, mask = tokenize(self.tokenizer, texts, self.length)
        return ids, mask & np.array([bool(text) for text in texts], bool)[:, None]

    def __call__(self, texts: Sequence[str]) -> Text:
        """The condition of texts: embedding [b, n, k] and mask [b, n], on the host."""
        ids, mask = self.ids(texts)
        found, (module, params) = np.zeros((len(ids), *self.shape), _DTYPES[self.dtype]), self.trainable()
        for start in range(0, len(ids), _AT_A_TIME):
            part = slice(start, start + _AT_A_TIME)
            rows = len(ids[part])
            pad = lambda x, rows=rows: np.pad(x, ((0, _AT_A_TIME - rows), (0, 0)))  # one program for all
            embedding = _embed(module, params, pad(ids[part]), pad(mask[part]))
            found[part] = np.asarray(embedding)[:rows]
            if not np.isfinite(found[part]).all():
                worst = int(np.argmax(~np.isfinite(found[part]).all(axis=(1, 2))))
                raise ValueError(
                    f"texts: the encoder has values that are not finite for {shortened(texts[start + worst])}; its "
                    f"weights are damaged, or too large for {self.dtype}"
                )
        return Text(found, mask)

    def encode(self, texts: Sequence[str], known: EncodedTexts | None = None) -> EncodedTexts:
        """A table of texts, each once; those of `known` that are of this encoder are not encoded again."""
        texts = tuple(dict.fromkeys(text for text in check_texts(texts) if text))
        if known is not None and known.fingerprint != self.fingerprint:
            known = None
        there = () if known is None else known.texts
        new = [text for text in texts if text not in set(there)]
        text = self(new)
        if known is None:
            return EncodedTexts(tuple(new), text.embedding, text.mask, self.fingerprint)
        embedding = np.concatenate([np.asarray(known.embedding), text.embedding])
        return EncodedTexts((*there, *new), embedding, np.concatenate([known.mask, text.mask]), self.fingerprint)

    def save(self, folder: str | Path, about: dict[str, Any]) -> None:
        """Writes how it was made, and its weights unless they are read where they are; the tokenizer is there."""
        folder = Path(folder)
        if about["weights"] is None:
            save_pretrained(folder / ENCODER, self.params, t5_config(self.module))
        if self.whitening is not None:
            save_weights(folder / WHITENING, self.whitening._asdict())
        own = {"length": self.length, "dtype": self.dtype, "whiten": self.whitening is not None}
        write_durably(folder / ABOUT, json.dumps(about | own, indent=2) + "\n")


def load_text_encoder(folder: str | Path) -> TextEncoder:
    """The encoder of a folder by `diffjax encode-text`.

    Raises:
      ValueError: it holds none, or what is in it is damaged.
    """
    folder = Path(folder)
    about = read_about(folder)
    weights = folder / ENCODER if about["weights"] is None else Path(about["weights"])
    try:
        loaded = load_module(weights)
    except ValueError as error:
        raise ValueError(f"text: {folder} has no encoder: {error}") from None
    if not isinstance(loaded.module, T5Encoder):
        raise ValueError(f"text: {weights} holds a {type(loaded.module).__name__}; a T5 encoder is needed")
    try:
        made = TextEncoder(folder / TOKENIZER, loaded.module, loaded.params, about["length"], about["dtype"])
    except ValueError as error:
        raise ValueError(f"text: {folder} has no encoder: {str(error).removeprefix('source: ')}") from None
    if not about.get("whiten", False):
        return made
    width = loaded.module.width
    shapes = {"mean": (width,), "matrix": (width, width)}
    like = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    try:
        found = load_weights(folder / WHITENING, like)
    except (OSError, ValueError) as error:
        raise ValueError(f"text: {folder} has no whitening: {error}") from None
    return replace(made, whitening=Whitening(**jax.tree.map(np.asarray, found)))


def read_about(folder: Path) -> dict[str, Any]:
    """How the encoder of a folder was made; raises `ValueError` where there is none."""
    if not (folder / ABOUT).is_file():
        raise ValueError(f"text: {folder} holds no encoded texts (there is no {ABOUT} in it); make them by encode-text")
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        ok = type(found["length"]) is int and isinstance(found["dtype"], str)
        if not ok or not isinstance(found["weights"], str | None):
            raise ValueError("length, dtype or weights")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        remedy = f"remove {folder}, and write it anew by encode-text"
        raise ValueError(f"text: {folder / ABOUT} is damaged: {error}; {remedy}") from None
    return found


@partial(jax.jit, static_argnums=0)
def _embed(module, params, ids, mask):
    """[b, n, k], 0 at padding."""
    return jnp.where(mask[..., None], module.apply({"params": params}, ids, mask), 0)


@checked_numbers
def pretrain(
    key: Key,
    module: T5Encoder,
    params: Params,
    ids: Int32[np.ndarray, "m n"],
    mask: Bool[np.ndarray, "m n"],
    *,
    sentinels: Sequence[int],
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    report: Callable[[int, float, float], None] = lambda step, loss, accuracy: None,
) -> Params:
    """Parameters after so many updates of span corruption on texts, by Adam with warm-up and cosine decay.

    Args:
      key: of the batches and the spans.
      module: the encoder.
      params: to begin with.
      ids: of the texts [m, n].
      mask: [m, n].
      sentinels: as of `losses.corrupt_spans`.
      steps: updates.
      batch_size: texts of a batch.
      learning_rate: the largest.
      report: called ten times with the step, and the mean loss (nats a hidden token) and accuracy since the last.
    """
    there = mask.any(axis=1)
    source = from_arrays(np.stack([ids[there], mask[there]], axis=1))
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), max(steps, 2))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    hide = jnp.asarray(sentinels, jnp.int32)

    @jax.jit
    def update(params, state, key, batch):
        ids, mask = batch[:, 0].astype(jnp.int32), batch[:, 1] > 0
        loss = lambda p: span_corruption_loss(p, key, ids, mask, module=module, sentinels=hide)
        (value, aux), slope = jax.value_and_grad(loss, has_aux=True)(params)
        change, state = tx.update(slope, state, params)
        return optax.apply_updates(params, change), state, value, aux["accuracy"]

    state, seen = tx.init(params), []
    for step in range(steps):
        batch, _ = source(seed, step, batch_size)
        params, state, *found = update(params, state, jax.random.fold_in(key, step), batch)
        seen.append(found)
        if (step + 1) % max(1, steps // 10) == 0:
            loss, accuracy = np.mean(np.asarray(seen), axis=0)
            report(step + 1, float(loss), float(accuracy))
            seen = []
    return params


@checked_numbers
def make_text_encoder(
    folder: str | Path,
    texts: Sequence[str],
    *,
    tokenizer: str | Path | None = None,
    vocabulary: int = 512,
    encoder: str = "random",
    size: str = "mini",
    steps: int = 1000,
    length: int | None = None,
    longest: int = 128,
    dtype: str = "bfloat16",
    whiten: bool = False,
    seed: int = 0,
    report: Callable[[int, float, float], None] = lambda step, loss, accuracy: None,
) -> TextEncoder:
    """The encoder of a folder: the one that is there, or a new one, made for texts and written to it.

    Args:
      folder: is made.
      texts: what the tokenizer and the encoder are trained on, where they are.
      tokenizer: a tokenizer.json or its folder; None trains one, or takes the one next to the encoder's weights.
      vocabulary: ids of a tokenizer that is trained, at most.
      encoder: "random" and frozen, "pretrained" by span corruption on the texts and frozen, or a folder of T5's weights
        (config.json, .safetensors), which are read where they are.
      size: of the first two, one of `networks.T5_SIZES`.
      steps: of the training of "pretrained".
      length: tokens of a text; None: those of the longest of the texts, but at most `longest`.
      longest: see `length`.
      dtype: of embeddings, "bfloat16" or "float32".
      whiten: whether features are whitened over the tokens of the texts, so that what tells the same word in two
        places apart is not drowned by the word itself. A small encoder should be; T5's published weights need not.
      seed: of initial parameters and training.
      report: as of `pretrain`.

    Raises:
      ValueError: an argument that does not fit, or a folder that holds another encoder.
    """
    folder, texts = Path(folder), [text for text in check_texts(texts) if text]
    weights = None if encoder in ("random", "pretrained") else os.path.abspath(encoder)
    about = {"encoder": encoder if weights is None else "weights", "weights": weights, "seed": seed}
    about |= {"size": size, "steps": steps if encoder == "pretrained" else 0} if weights is None else {}
    about |= {"vocabulary": vocabulary} if tokenizer is None and weights is None else {}
    about |= {"whiten": whiten}
    given = None if tokenizer is None else _tokenizer_of(tokenizer)
    if (folder / ABOUT).exists():
        found = _existing(folder, about, length, dtype)
        if given is not None and given.read_bytes() != found.tokenizer.read_bytes():
            raise ValueError(f"tokenizer: {folder} holds an encoder with another than {given}; name another folder")
        return found
    if not texts:
        raise ValueError("texts: at least one that is not empty is needed, got none")
    if weights is not None and not (encoder and Path(weights).is_dir()):
        raise ValueError(f"encoder: random, pretrained or a folder of T5's weights is needed, got {encoder!r}")
    if weights is not None and given is None:
        given = _tokenizer_of(weights)
    if length is not None:
        _check_length(length, _ADDED if given is None else vocabulary_of(given).added)
    if encoder == "pretrained" and given is not None and not vocabulary_of(given).sentinels:
        raise ValueError(f"tokenizer: {given} has no <extra_id_0>, which spans are hidden behind; take another")
    make_folder(folder)
    place = folder / TOKENIZER
    if given is None:
        train_tokenizer(texts, place, vocabulary=vocabulary)
    else:
        write_durably(place, given.read_text(encoding="utf-8"))
    about_ids = vocabulary_of(place)
    length = min(longest, int(count_tokens(place, texts).max())) if length is None else length
    if weights is not None:
        loaded = load_module(weights)
        if not isinstance(loaded.module, T5Encoder):
            raise ValueError(f"encoder: {weights} holds a {type(loaded.module).__name__}; a T5 encoder is needed")
        made = TextEncoder(place, loaded.module, loaded.params, length, dtype)
    else:
        made = _small_encoder(place, about_ids, texts, about, length, dtype, report)
    if whiten:
        raw = replace(made, dtype="float32")(list(dict.fromkeys(texts)))
        made = replace(made, whitening=fit_whitening(raw.embedding, raw.mask))
    made.save(folder, about)
    return made


def _small_encoder(place, vocabulary, texts, about, length, dtype, report) -> TextEncoder:
    """An encoder with random weights, or pretrained on the texts, for a tokenizer's vocabulary."""
    key = jax.random.key(about["seed"])
    module = sized_t5(vocabulary.size, about["size"])
    made = TextEncoder(place, module, init_t5(jax.random.fold_in(key, 0), module), length, dtype)
    if about["encoder"] != "pretrained":
        return made
    fields = {"sentinels": vocabulary.sentinels, "steps": about["steps"], "report": report}
    params = pretrain(jax.random.fold_in(key, 1), module, made.params, *made.ids(texts), **fields)
    return replace(made, params=params)


def _check_length(length: int, added: int) -> None:
    """Raises `ValueError` for a number of tokens of which the tokenizer's own leave none, or too large a one."""
    if not added < length <= MOST:
        raise ValueError(f"length: more than {added} tokens are needed, at most {MOST}, got {length}")


def _tokenizer_of(source: str | Path) -> Path:
    """The tokenizer.json of that name or in that folder; raises `ValueError` where it is none."""
    try:
        vocabulary_of(source)
    except ValueError as error:
        raise ValueError(f"tokenizer: {str(error).removeprefix('source: ')}") from None
    return Path(source) / TOKENIZER if Path(source).is_dir() else Path(source)


def make_folder(folder: Path) -> None:
    """Makes a folder; raises `ValueError` where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder: {folder} cannot be made: {error.strerror or error}") from None


def _existing(folder: Path, about: dict[str, Any], length: int | None, dtype: str) -> TextEncoder:
    """The encoder of a folder, which must have been made as `about` says."""
    before = {"whiten": False} | read_about(folder)
    asked = about | {"dtype": dtype} | ({} if length is None else {"length": length})
    for name, value in asked.items():
        if before.get(name, value) != value:
            raise ValueError(
                f"{name}: {folder} holds an encoder with {name} {before[name]}, not {value}; name another folder"
            )
    return load_text_encoder(folder)
