"""An .npz of x [n, *d] and, if there are conditions, y [n, ...]: mapped into memory where `np.savez` wrote it.

np.savez stores arrays uncompressed, so that each is one stretch of the file and can be mapped: a set larger than memory
is read as it is used, and worker processes share it. np.savez_compressed cannot be mapped and is read whole. Nothing is
unpickled. zip's checksums are looked at only where an array is read whole.

A mapped file that is written over under its reader gives other numbers, and where it became shorter the system ends the
process (SIGBUS). So its size and time are compared before each read with what they were when it was opened.
"""

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffjax._arrays import check_npy_size, npy_header
from diffjax.data._files import unreadable
from diffjax.data._items import as_condition
from diffjax.data._source import Batch, Item

_UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, struct.error)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of its name and of its extra field


@dataclass(frozen=True, eq=False)
class Npz:
    """Items of an .npz, for `from_items`: bytes are taken for images, floats as they are.

    Args:
      path: written by np.savez (mapped) or np.savez_compressed (read).
      x: name of the array of data [n, *d].
      y: name of the array of conditions [n, ...]; None for none.

    Raises:
      ValueError: the file or an array cannot be read, or they differ in length. When an item is read: the file
        has changed since it was opened.
    """

    path: str | Path
    x: str = "x"
    y: str | None = None
    arrays: Batch = field(init=False, repr=False)
    _opened: tuple[int, int] = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "_opened", file_state(self.path))
        x = map_array(self.path, self.x)
        y = None if self.y is None else as_condition(np.array(map_array(self.path, self.y)))
        if x.ndim < 1 or len(x) < 1 or (y is not None and y.shape[:1] != x.shape[:1]):
            shape = None if y is None else y.shape
            raise ValueError(f"path: {self.path} needs items along a leading axis, got x {x.shape} and y {shape}")
        object.__setattr__(self, "arrays", (x, y))

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> Item:
        self._check()
        x, y = self.arrays
        return np.array(x[index]), None if y is None else y[index]

    def gather(self, indices: np.ndarray) -> Batch:
        """Many at once: x [k, *d] and cond [k, ...] or None."""
        self._check()
        x, y = self.arrays
        return np.asarray(x[indices]), None if y is None else y[indices]

    def _check(self) -> None:
        if isinstance(self.arrays[0], np.memmap):
            check_unchanged(self.path, self._opened)

    def __reduce__(self):
        return (_open_again, (self.path, self.x, self.y, self._opened))  # a worker maps the file itself


def _open_again(path: str | Path, x: str, y: str | None, opened: tuple[int, int]) -> Npz:
    check_unchanged(path, opened)
    return Npz(path, x, y)


def file_state(path: str | Path) -> tuple[int, int]:
    """Size and time of the last change of a file, in ns; (-1, -1) where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns


def check_unchanged(path: str | Path, opened: tuple[int, int]) -> None:
    """Raises `ValueError` where a file is not what it was when it was opened."""
    now = file_state(path)
    if now == opened:
        return
    if now == (-1, -1):
        what = "is gone"
    elif now[0] != opened[0]:
        what = f"has {now[0]} bytes, and had {opened[0]}"
    else:
        what = "was written again"
    raise ValueError(f"path: {path} has changed while it was read: it {what}; write new data to another name")


def is_npy(path: str | Path) -> bool:
    """True if a file begins as what np.save writes."""
    with open(path, "rb") as file:
        return file.read(6) == b"\x93NUMPY"


def map_array(path: str | Path, name: str) -> np.ndarray:
    """An array of an .npz, read-only: mapped where it is stored uncompressed, read otherwise; of any shape.

    Raises:
      ValueError: there is no such file or array, or it holds objects.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError("it is no regular file")
        if is_npy(path):
            raise ValueError("it is an .npy of one array; write np.savez(path, x=np.load(...))")
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                arrays = [member.removesuffix(".npy") for member in archive.namelist()]
                raise ValueError(f"it holds {', '.join(arrays[:8]) or 'nothing'}{', ...' if len(arrays) > 8 else ''}")
            member = archive.getinfo(f"{name}.npy")
            if why := unreadable(member):
                raise ValueError(why)
            if member.compress_type != zipfile.ZIP_STORED:
                with archive.open(member) as file:
                    shape, _, dtype = npy_header(file)
                    check_npy_size(shape, dtype, member.file_size - file.tell())
                with archive.open(member) as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(member.header_offset)
            signature, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise ValueError("the place of the array is not where the zip says")
            file.seek(sum(lengths), 1)
            start = file.tell()
            shape, fortran, dtype = npy_header(file)
            at = file.tell()
            check_npy_size(shape, dtype, member.file_size - (at - start))
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", at, shape, "F" if fortran else "C")
    except _UNREADABLE as error:
        raise ValueError(f"path: no .npz with an array {name} at {path}: {error}") from None
