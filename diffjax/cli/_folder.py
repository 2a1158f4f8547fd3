"""What keeps a run's folder whole: one process trains in it at a time, and on the same data as before.

RUN/lock        the pid of the process that trains here, while it does
RUN/data.json   SHA-256 over the bytes of x and y of a data file, training items and held out
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffjax.cli._run import write_file
from diffjax.config import Data

LOCK = "lock"


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Holds a run's folder, which exists; a lock whose process is not alive on this machine is taken over.

    Raises:
      ValueError: another process that is alive holds it.
    """
    path = folder / LOCK
    while True:
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            _remove_stale(path)
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        opened.write(f"{os.getpid()}\n")
    try:
        yield
    finally:
        if _holder(path) == os.getpid():
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Removes a lock whose process is gone; moved aside first, so that a newer lock is not removed in its place."""
    pid = _holder(path)
    if pid is None:  # it may be about to be written
        time.sleep(0.2)
        pid = _holder(path)
    if pid is not None and pid != os.getpid() and _alive(pid):
        raise ValueError(f"out: {path.parent} is in use: process {pid} trains there (it holds {path})")
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _holder(aside) != pid:
        os.rename(aside, path)
        return
    aside.unlink()


def _holder(path: Path) -> int | None:
    """The pid in a lock; None where there is none."""
    try:
        pid = int(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return pid if pid > 0 else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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


def check_data(folder: Path, path: str, data: Data, argument: str) -> None:
    """Raises `ValueError` where the file at a path no longer holds what the run was trained on."""
    kept = folder / "data.json"
    if not kept.is_file():
        return
    try:
        before = str(json.loads(kept.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{argument}: {kept} is damaged: no sha256 in it") from None
    now = digest_data(data)
    if now != before:
        raise ValueError(
            f"{argument}: {folder} was trained on other data: {path} has changed since (SHA-256 "
            f"{before[:12]}, now {now[:12]})"
        )


def keep_digest(folder: Path, data: Data) -> None:
    """Writes the digest of the data, unless there is one."""
    kept = folder / "data.json"
    if not kept.exists():
        write_file(kept, json.dumps({"sha256": digest_data(data)}) + "\n")
