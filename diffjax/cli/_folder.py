"""What keeps a run's folder whole: it has a place of its own, and goes on with the same data as before.

RUN/data.json   shape of a sample, number and names of the classes: all that sampling needs of the data; of data in
                files SHA-256 as well, over the bytes of x and y, training items and held out; of images in folders
                over their paths, sizes and checksums
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from diffjax.config import Data, DataConfig, Samples
from diffjax.config._data import has_images_in_folders
from diffjax.config._run import DATA, read_record, samples_of
from diffjax.training.checkpoint import check_utf8, write_durably

_WAY_ON = "put back what it was, or go on with the data as it is now: --accept-data"
_LONGEST_NAME, _LONGEST_PATH = 255, 4096 - 256  # bytes, of most file systems; checkpoints lie some 100 deeper


def check_out(given: str | None, name: str) -> Path:
    """The folder of a run: the one that was given, or runs/NAME. Nothing is looked at.

    Raises:
      ValueError: a run cannot have this folder, whatever is in it.
    """
    out = Path(f"runs/{name}" if given is None else given)
    if given is None and (name != Path(name).name or name in ("", ".", "..")):
        raise ValueError(f"name: the folder runs/NAME is made of it: no empty name, no slash and no dots, got {name!r}")
    if given is not None and not (given and out.absolute().name):
        raise ValueError(f"out: the name of a folder is needed, got {given!r}")
    check_here("out", str(out) if given is None else given)
    check_utf8(str(out.absolute()))
    parts = [os.fsencode(part) for part in out.absolute().parts]
    if b"\0" in b"".join(parts):
        raise ValueError(f"out: no NUL can be in a name, got {str(out)!r}")
    longest = max(parts, key=len)
    if len(longest) > _LONGEST_NAME:
        raise ValueError(f"out: a name has at most {_LONGEST_NAME} bytes, got one of {len(longest)}; shorten it")
    length = len(os.fsencode(out.absolute()))
    if length > _LONGEST_PATH:
        raise ValueError(f"out: a path has at most {_LONGEST_PATH} bytes here, got one of {length}; shorten it")
    return out


def check_here(argument: str, path: str) -> None:
    """Raises `ValueError` where a path, as it was typed, is a URL, in which a `Path` would lose a slash."""
    if "://" in path or path.partition(":/")[0] in ("gs", "s3", "http", "https", "file", "hdfs"):
        raise ValueError(
            f"{argument}: a place on this machine is needed, or one mounted on it, got {path}; copy it there later"
        )


def check_beside_data(out: Path, data: DataConfig) -> None:
    """Raises `ValueError` where pictures that are written to `out` would be listed as data."""
    if data.path is None or not has_images_in_folders(data) or not Path(data.path).is_dir():
        return
    there = out.resolve()
    for folder in _with_links(Path(data.path)):
        if there != folder and folder not in there.parents:
            continue
        raise ValueError(
            f"out: {out} lies in the folder of the data, {data.path}, so that its pictures would count as data; name a "
            "place elsewhere"
        )


def _with_links(folder: Path) -> Iterator[Path]:
    """Where a folder is, and where the links to folders in it lead, as its files are listed through them."""
    yield folder.resolve()
    for path, folders, _ in os.walk(folder):
        yield from (Path(path, name).resolve() for name in folders if os.path.islink(os.path.join(path, name)))


def check_data(folder: Path, path: str, data: Data, argument: str, *, accept: bool = False) -> None:
    """Raises `ValueError` where a path no longer holds what the run was trained on; not where that is accepted.

    Samples of another shape, or another number of classes, can never be accepted: the network is made for them.
    """
    kept = folder / DATA
    if not kept.is_file():
        return
    record, _ = read_record(kept)
    samples = samples_of(record)
    if samples is not None and _describe(samples) != _describe(data):
        raise ValueError(
            f"{argument}: {folder} was trained on other data, {_describe(samples)}: {path} now holds "
            f"{_describe(data)}; put back what it was, or train anew in another folder"
        )
    if accept:
        return
    before = record.get("sha256")
    if not isinstance(before, str):
        raise ValueError(f"{argument}: {kept} is damaged: no sha256 in it; {_WAY_ON}")
    if data.digest != before:
        raise ValueError(
            f"{argument}: {folder} was trained on other data: {path} has changed since (SHA-256 "
            f"{before[:12]}, now {data.digest[:12]}); {_WAY_ON}"
        )


def _describe(samples: Samples | Data) -> str:
    found = f"samples of shape {list(samples.shape)} and {samples.classes or 'no'} classes"
    found += "" if samples.numbers is None else f" and {samples.numbers} numbers"
    if samples.text is None:
        return found
    return f"{found} and captions {list(samples.text)} by the encoder {(samples.encoder or '')[:12]}"


def keep_data(folder: Path, data: Data, *, hashed: bool, anew: bool = False) -> None:
    """Writes what sampling needs of the data, and their digest; unless that is there, if not anew."""
    kept = folder / DATA
    record, _ = read_record(kept)
    if anew or samples_of(record) is None or (hashed and "sha256" not in record):
        digest = {"sha256": data.digest} if hashed else {}
        write_durably(kept, json.dumps(digest | data.samples.record()) + "\n")
