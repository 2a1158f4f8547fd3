"""A small file that is there whole or not at all, also where the power fails: written beside it, then renamed."""

import contextlib
import os
from pathlib import Path


def write_durably(path: str | Path, text: str) -> None:
    """Writes a text file, in UTF-8, in place of the one that may be there: by fsync, rename and fsync of the folder.

    Raises:
      OSError: it cannot be written; the one before is as it was.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    with contextlib.suppress(OSError):  # not every file system can: the file itself is there
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
