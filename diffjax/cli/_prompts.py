"""What samples of a run are asked for: a class, prompts, numbers, or nothing, the null condition.

--label, --text, --prompts, --numbers --> Asked: conditions [n, ...] of the n samples, the class, the captions
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffjax._typing import Cascade, Cond, Text
from diffjax.cli._encode_text import lost
from diffjax.cli._hosts import log
from diffjax.cli._options import Sample
from diffjax.config import Run, Samples, load_text_encoder
from diffjax.config._conditions import with_presence
from diffjax.config._registry import did_you_mean
from diffjax.data._metadata import decode_lines
from diffjax.data._texts import check_texts

SHOWN = 1000
"""Names of classes that are printed."""
_LARGEST = 2**26
"""Bytes of a file of prompts."""


class Asked(NamedTuple):
    """What samples are drawn for."""

    cond: Cond
    """Conditions [n, ...], or None."""
    labels: np.ndarray | None
    """[n], or None."""
    label: int | None
    """The class, where there is one for all."""
    captions: tuple[str, ...] | None
    """Of the samples, n of them, or None."""


def asked_for(options: Sample, run: Run) -> Asked:
    """What the options ask for, of a run.

    Raises:
      ValueError: it is not conditioned on that, or a prompt cannot be encoded.
    """
    samples, n = run.samples, options.n
    label, prompts = _find_label(options.label, samples), _prompts(options, samples)
    rows = np.arange(n) * (1 if prompts is None else len(prompts)) // n
    labels = _labels(rows, samples.classes, label)
    captions, text = None, None
    if samples.text is not None:
        if prompts is None:
            text = samples.without_tokens(n)
        else:
            captions = tuple(prompts[row] for row in rows)
            encoded = _encode(prompts, options.encoder or run.config.data.text or "", samples)
            text = Text(np.asarray(encoded.embedding)[rows], np.asarray(encoded.mask)[rows])
    numbers = None if options.numbers is None else _numbers(options.numbers, samples.numbers)
    cond: Cond = labels
    if text is not None:
        cond = text if labels is None else Cascade(text=text, label=labels)
    elif samples.numbers is not None:
        cond = np.zeros((n, samples.numbers + 1), np.float32)
        if numbers is not None:
            cond = with_presence(np.tile(numbers, (n, 1)))
    return Asked(cond, labels, label, captions)


def _prompts(options: Sample, samples: Samples) -> tuple[str, ...] | None:
    """The prompts of --text or --prompts, tidy; None where there are none."""
    text = None if options.text is None else " | ".join(options.text)
    given = {"text": text, "prompts": options.prompts, "encoder": options.encoder}
    for name, value in given.items():
        if value is not None and samples.text is None:
            raise ValueError(f"{name}: this run is not conditioned on a text, got {value}")
    if options.text is not None and options.prompts is not None:
        raise ValueError(f"prompts: --text or --prompts is needed, got both, {options.prompts}")
    if options.prompts is not None:
        path = Path(options.prompts)
        try:
            lines = decode_lines(_read(path), str(path))
        except (OSError, ValueError) as error:
            raise ValueError(f"prompts: {path} cannot be read: {str(error).removeprefix('text: ')}") from None
        found = check_texts([line for line in lines if line.strip()], lambda i: f"prompts: prompt {i + 1} of {path}")
        if not found:
            raise ValueError(f"prompts: a prompt on each line is needed, {path} holds none")
    elif options.text is None:
        return None
    else:
        found = check_texts(options.text, lambda i: f"text: prompt {i + 1}")
        if not found:
            raise ValueError("text: at least one prompt is needed, got none; leave it out for the null condition")
    if len(found) > options.n:
        raise ValueError(f"n: at least one sample for each of {len(found)} prompts is needed, got {options.n}")
    return found


def _read(path: Path) -> bytes:
    """The bytes of a file, which may be a pipe."""
    with path.open("rb") as file:
        found = file.read(_LARGEST + 1)
    if len(found) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST:,} bytes, which is the most that is read")
    return found


def _numbers(given: tuple[float, ...], count: int | None) -> np.ndarray:
    """The numbers [k] of --numbers, float32."""
    if len(given) != count:
        what = f"{count} are needed" if count else "this run is conditioned on none"
        raise ValueError(f"numbers: {what}, got {len(given)}")
    with np.errstate(over="ignore"):
        found = np.array(given, np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"numbers: finite numbers of float32 are needed, got {' '.join(map(str, given))}")
    return found


def _encode(prompts: tuple[str, ...], folder: str, samples: Samples) -> Text:
    try:
        encoder = load_text_encoder(folder)
    except ValueError as error:
        why = str(error).removeprefix("text: ")
        raise ValueError(f"encoder: prompts are encoded as the captions of the run were, but {why}") from None
    if encoder.fingerprint != samples.encoder:
        raise ValueError(
            f"encoder: the run was trained on captions by the encoder {(samples.encoder or '')[:12]}, and {folder} "
            f"holds {encoder.fingerprint[:12]}; name its folder with --encoder"
        )
    for line in lost(encoder, prompts, "prompts"):
        log(line)
    return encoder(prompts) if samples.trained_encoder is None else Text(*encoder.ids(prompts))


def _labels(rows: np.ndarray, classes: int | None, label: int | None) -> np.ndarray | None:
    """Labels [n]: one class, or all classes in order, as evenly as possible, of each prompt; None where there are none.

    The prompts are given by their numbers [n], which ascend.
    """
    if classes is None:
        return None
    if label is not None:
        return np.full(len(rows), label, np.int32)
    place, count = np.arange(len(rows)) - np.searchsorted(rows, rows), np.bincount(rows)[rows]
    return (place * classes // count).astype(np.int32)


def _find_label(label: int | str | None, samples: Samples) -> int | None:
    """The label of a class that is given by its label or its name; None where none is given."""
    if label is None:
        return None
    if samples.classes is None:
        raise ValueError(f"label: this run knows no classes, got {label}")
    if isinstance(label, str) and label in (samples.names or ()):
        return (samples.names or ()).index(label)
    if isinstance(label, str) or not 0 <= label < samples.classes:
        named = f": {listed(samples)}" if samples.names else ""
        near = did_you_mean(label, samples.names) if isinstance(label, str) and samples.names else ""
        raise ValueError(f"label: the classes are 0 .. {samples.classes - 1}{named}, got {label}{near}")
    return label


def listed(samples: Samples) -> str:
    """0 = cat, 1 = dog, as many as are looked at."""
    names = samples.names or ()
    more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(f"{i} = {name}" for i, name in enumerate(names[:SHOWN])) + more
