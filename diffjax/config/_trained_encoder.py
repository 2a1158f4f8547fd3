"""The text encoder that a run trained with its network, as a frozen one that other runs may be conditioned by.

    RUN (--data.text-encoder joint) --trained_text_encoder--> TextEncoder --store_text_encoder--> FOLDER

The tokenizer is that of the folder which the run began from, since the ids are what the encoder learned.
"""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from diffjax._numbers import checked_numbers
from diffjax.config._run import DATA, load, read_config, read_samples
from diffjax.config._text_encoder import ABOUT, TOKENIZER, TextEncoder, load_text_encoder, make_folder
from diffjax.config._whitening import Whitening
from diffjax.networks._with_text_encoder import ENCODER
from diffjax.training.checkpoint import write_durably


def is_run(folder: str | Path) -> bool:
    """True for the folder of a run, which has a description of its data."""
    return (Path(folder) / DATA).is_file()


@checked_numbers
def trained_text_encoder(
    run: str | Path, *, texts: str | Path | None = None, length: int | None = None, dtype: str | None = None
) -> TextEncoder:
    """The encoder of a run that trained one with its network, from the averaged parameters of the newest checkpoint.

        encoder = store_text_encoder("texts/trained", trained_text_encoder("runs/joint"))
        encoder.encode(captions).save("texts/trained/texts.npz")

    Args:
      run: the folder.
      texts: the folder of the encoder that the run began from; None: where it was in training.
      length: tokens of a text; None: as in training.
      dtype: of embeddings, "float32" or "bfloat16"; None: that of the encoder that the run began from.

    Raises:
      ValueError: there is no such run, it trained no encoder, or texts holds another one than it began from.
      FileNotFoundError: it has no checkpoint yet.
    """
    run = Path(run)
    config, samples = read_config(run, "run"), read_samples(run)
    if samples.trained_encoder is None:
        raise ValueError(
            f"run: {run} trained no text encoder; name a run of --data.text-encoder joint, or take the folder of its "
            "encoder"
        )
    place = config.data.text if texts is None else texts
    try:
        first = load_text_encoder(place or "")
    except ValueError as error:
        why = str(error).removeprefix("text: ")
        raise ValueError(f"texts: the encoder that {run} began from is needed for its tokenizer, but {why}") from None
    if first.fingerprint != samples.encoder:
        raise ValueError(
            f"texts: {run} began from the encoder {(samples.encoder or '')[:12]}, and {place} holds "
            f"{first.fingerprint[:12]}; name the folder of the first"
        )
    params = dict(load(run).params[ENCODER])
    module, whitening = samples.trained_encoder.clone(whitened=False), None
    if samples.trained_encoder.whitened:
        whitening = Whitening(**jax.tree.map(np.asarray, params.pop("whitening")))
    length, dtype = first.length if length is None else length, first.dtype if dtype is None else dtype
    return TextEncoder(first.tokenizer, module, params, length, dtype, whitening)


def store_text_encoder(folder: str | Path, encoder: TextEncoder) -> TextEncoder:
    """The encoder in a folder of its own, as `load_text_encoder` reads it; the one that is there, if it is the same.

    >>> from tempfile import mkdtemp
    >>> from diffjax import config
    >>> captions = ["a red circle", "a blue square"]
    >>> encoder = config.make_text_encoder(mkdtemp() + "/a", captions, size="tiny", whiten=True)
    >>> copy = config.store_text_encoder(mkdtemp() + "/b", encoder)
    >>> copy.fingerprint == encoder.fingerprint
    True

    Args:
      folder: is made.
      encoder: such as `trained_text_encoder` gives it.

    Raises:
      ValueError: the folder cannot be made, or holds another encoder.
    """
    folder = Path(folder)
    if (folder / ABOUT).exists():
        found = load_text_encoder(folder)
        if found.fingerprint != encoder.fingerprint:
            raise ValueError(
                f"encoder: {folder} holds the encoder {found.fingerprint[:12]}, not {encoder.fingerprint[:12]}; name "
                "another folder"
            )
        return found
    make_folder(folder)
    write_durably(folder / TOKENIZER, encoder.tokenizer.read_text(encoding="utf-8"))
    stored = replace(encoder, tokenizer=folder / TOKENIZER)
    stored.save(folder, {"encoder": "trained", "weights": None})
    return stored
