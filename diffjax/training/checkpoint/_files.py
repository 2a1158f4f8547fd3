"""Files and folders that survive a crash: each write is whole or absent, also when the power fails.

text --> FILE.tmp --fsync--> rename to FILE --fsync of the folder--> on disk
step folders, newest first --rename--> folder/aside/STEP, STEP.1, ...
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

LARGEST_STEP = 2**63 - 1


def check_utf8(word: str) -> None:
    """Raises `ValueError` where a path, or an argument, is a name that JAX's libraries cannot open later."""
    encoding = sys.getfilesystemencoding()
    if not word.isascii() and encoding.lower().replace("-", "") != "utf8":
        raise ValueError(f"{word!a}: names beyond ASCII need a UTF-8 locale (LC_ALL=C.UTF-8), got {encoding}")
    try:
        word.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{word!a}: it is not UTF-8; rename the file or folder") from None


def check_is_no_file(path: Path) -> None:
    """Raises `NotADirectoryError` where a file has the name of a folder that is needed."""
    if os.path.lexists(path) and not path.is_dir():
        raise NotADirectoryError(f"{path}: it is a file, in the place of a folder that is needed; rename it")


def write_durably(path: str | Path, text: str) -> None:
    """Replaces a text file, in UTF-8, atomically: by fsync, rename and fsync of the folder.

    Raises:
      OSError: it cannot be written; the previous file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    with contextlib.suppress(OSError):  # some file systems cannot: the file itself is on disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)


def bytes_in(folder: Path) -> int:
    """The size of all files in a folder, in bytes; 0 where there is no such folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def move_aside(folder: Path, steps: Sequence[int]) -> None:
    """Moves steps to `folder/aside`, newest first: if interrupted, the rest is a run up to some step.

    Raises:
      NotADirectoryError: `folder/aside` is a file; nothing is moved.
    """
    aside = folder / "aside"
    check_is_no_file(aside)
    aside.mkdir(exist_ok=True)
    for step in sorted(steps, reverse=True):
        names = (str(step), *(f"{step}.{i}" for i in range(1, 10**6)))
        os.rename(folder / str(step), next(aside / name for name in names if not (aside / name).exists()))


def warn_of_large_numbers(folder: Path) -> None:
    """Warns of entries that are named like a step, with a number too large for one."""
    is_beyond = lambda name: name.isascii() and name.isdigit() and int(name) > LARGEST_STEP
    if beyond := [path for path in folder.iterdir() if is_beyond(path.name)]:
        shown = f"{beyond[0]}{f' (and {len(beyond) - 1} more)' if len(beyond) > 1 else ''}"
        warnings.warn(f"{shown}: ignored, the number of a step is at most 2^63 - 1", stacklevel=4)
