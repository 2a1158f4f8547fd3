"""What keeps a run's folder whole: one process trains in it at a time, and on the same data as before.

RUN/lock        locked (flock) by the process that trains here, while it does; its pid and machine
RUN/data.json   SHA-256 over the bytes of x and y of a data file, training items and held out
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

from diffjax.config import Data
from diffjax.training import write_durably

LOCK = "lock"


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
        write_durably(kept, json.dumps({"sha256": digest_data(data)}) + "\n")
