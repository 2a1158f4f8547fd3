"""What keeps a run's folder whole: one process trains in it at a time, and on the same data as before.

RUN/lock        locked (flock) by the process that trains here, while it does; its pid and machine
RUN/data.json   SHA-256 over the bytes of x and y of a data file, training items and held out; of images in folders
                over their paths, sizes and checksums
"""

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffjax.config import Data, DataConfig
from diffjax.training import write_durably

LOCK = "lock"
DATA = "data.json"
_WAY_ON = "put back what it was, or go on with the data as it is now: --accept-data"
_LONGEST_NAME, _LONGEST_PATH = 255, 4096 - 256  # bytes, of most file systems; checkpoints lie some 100 deeper


def check_out(out: Path, name: str, *, named: bool) -> None:
    """Raises `ValueError` where a run cannot have this folder, whatever is in it; nothing is looked at.

    Args:
      out: the folder.
      name: of the run.
      named: whether the folder was given; it is runs/NAME otherwise.
    """
    if not named and (name != Path(name).name or name in ("", ".", "..")):
        raise ValueError(f"name: the folder runs/NAME is made of it: no empty name, no slash and no dots, got {name!r}")
    if named and not out.name:
        raise ValueError(f"out: the name of a folder is needed, got {str(out)!r}")
    if "://" in str(out) or str(out).partition(":/")[0] in ("gs", "s3", "http", "https", "file", "hdfs"):
        raise ValueError(
            f"out: a folder of this machine is needed, or one mounted on it, got {out}; copy the run there later"
        )
    parts = [os.fsencode(part) for part in out.absolute().parts]
    if b"\0" in b"".join(parts):
        raise ValueError(f"out: no NUL can be in a name, got {str(out)!r}")
    longest = max(parts, key=len)
    if len(longest) > _LONGEST_NAME:
        raise ValueError(f"out: a name has at most {_LONGEST_NAME} bytes, got one of {len(longest)}; shorten it")
    length = len(os.fsencode(out.absolute()))
    if length > _LONGEST_PATH:
        raise ValueError(f"out: a path has at most {_LONGEST_PATH} bytes here, got one of {length}; shorten it")


def check_beside_data(out: Path, data: DataConfig) -> None:
    """Raises `ValueError` where pictures that are written to `out` would be listed as data."""
    if data.path is None or data.name not in ("image_folder", "cifar10") or not Path(data.path).is_dir():
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


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Holds a run's folder, which exists. The system frees it when the process ends, however, on whatever machine.

    Raises:
      ValueError: another process holds it.
    """
    path = folder / LOCK
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "a process"
            file.close()
            raise ValueError(f"out: {folder} is in use: {holder} trains there (it holds {path})") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its holder has just removed it
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def digest_data(data: Data) -> str:
    """SHA-256 over dtype, shape and bytes of x and y, training items and held out; or of the list of files."""
    if data.digest is not None:
        return data.digest
    found = hashlib.sha256()
    for array in (*data.train, *data.held_out):
        if array is not None:
            array = np.ascontiguousarray(array)
            found.update(f"{array.dtype.str}{array.shape}".encode())
            found.update(array.tobytes())
    return found.hexdigest()


def check_data(folder: Path, path: str, data: Data, argument: str, *, accept: bool = False) -> None:
    """Raises `ValueError` where a path no longer holds what the run was trained on; not where that is accepted."""
    kept = folder / DATA
    if accept or not kept.is_file():
        return
    try:
        before = str(json.loads(kept.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{argument}: {kept} is damaged: no sha256 in it; {_WAY_ON}") from None
    now = digest_data(data)
    if now != before:
        raise ValueError(
            f"{argument}: {folder} was trained on other data: {path} has changed since (SHA-256 "
            f"{before[:12]}, now {now[:12]}); {_WAY_ON}"
        )


def keep_digest(folder: Path, data: Data, *, anew: bool = False) -> None:
    """Writes the digest of the data; unless there is one, if not anew."""
    kept = folder / DATA
    if anew or not kept.exists():
        write_durably(kept, json.dumps({"sha256": digest_data(data)}) + "\n")
