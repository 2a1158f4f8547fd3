"""An .npz of x [n, *d] and, if there are conditions, y [n, ...]: mapped into memory where `np.savez` wrote it.

np.savez stores arrays uncompressed, so that each is one stretch of the file and can be mapped: a set larger than memory
is read as it is used, and worker processes share it. np.savez_compressed cannot be mapped and is read whole. Nothing is
unpickled. zip's checksums are looked at only where an array is read whole.
"""

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.data._items import as_condition

_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, struct.error)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of its name and of its extra field


@dataclass(frozen=True, eq=False)
class Npz:
    """Items of an .npz, for `from_items`: bytes are taken for images, floats as they are.

    Args:
      path: written by np.savez (mapped) or np.savez_compressed (read).
      x: name of the array of data [n, *d].
      y: name of the array of conditions [n, ...]; None for none.

    Raises:
      ValueError: the file or an array cannot be read, or they differ in length.
    """

    path: str | Path
    x: str = "x"
    y: str | None = None
    arrays: tuple[np.ndarray, Any] = field(init=False, repr=False)

    def __post_init__(self):
        x = map_array(self.path, self.x)
        y = None if self.y is None else as_condition(np.asarray(map_array(self.path, self.y)))
        if x.ndim < 1 or len(x) < 1 or (y is not None and y.shape[:1] != x.shape[:1]):
            shape = None if y is None else y.shape
            raise ValueError(f"path: {self.path} needs items along a leading axis, got x {x.shape} and y {shape}")
        object.__setattr__(self, "arrays", (x, y))

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        x, y = self.arrays
        return np.asarray(x[index]), None if y is None else y[index]

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """Many at once: x [k, *d] and cond [k, ...] or None."""
        x, y = self.arrays
        return np.asarray(x[indices]), None if y is None else y[indices]

    def __reduce__(self):
        return (Npz, (self.path, self.x, self.y))  # a worker maps the file itself


def map_array(path: str | Path, name: str) -> np.ndarray:
    """An array of an .npz, read-only: mapped where it is stored uncompressed, read otherwise; of any shape.

    Raises:
      ValueError: there is no such file or array, or it holds objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                with archive.open(member) as file:
                    shape, _, dtype = _header(file)
                    _check_size(shape, dtype, member.file_size - file.tell())
                with archive.open(member) as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(member.header_offset)
            signature, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise ValueError("the place of the array is not where the zip says")
            file.seek(sum(lengths), 1)
            start = file.tell()
            shape, fortran, dtype = _header(file)
            at = file.tell()
            _check_size(shape, dtype, member.file_size - (at - start))
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", at, shape, "F" if fortran else "C")
    except _UNREADABLE as error:
        raise ValueError(f"path: no .npz with an array {name} at {path}: {error}") from None


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and dtype, at the beginning of an .npy."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _check_size(shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    """Raises `ValueError` where an array is not of the bytes that its header says, before there is room made for it."""
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its header says {dtype}{list(shape)}, but it holds {size} bytes")
