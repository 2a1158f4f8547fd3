"""ArrayRecord files: many items in a few files, any of them read by its number, each with a checksum.

A record is two arrays in NumPy's own format, one after the other: x, and the condition (an array of size 0 for none).
Nothing is pickled. Records of another make are read with a `decode` of yours. Needs the extra `data` (array_record
comes with grain).
"""

import io
import math
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree
from numpy.typing import ArrayLike

from diffjax.data._source import Batch, Item

_REMEDY = "needs Grain and array_record: pip install '.[data]' in diffjax's folder"
_NONE = np.zeros(0, np.int32)


def encode_record(x: ArrayLike, cond: PyTree = None) -> bytes:
    """An item, x [*d] and its condition, as the bytes of a record."""
    file = io.BytesIO()
    for array in (x, _NONE if cond is None else cond):
        np.lib.format.write_array(file, np.asarray(array), (1, 0), allow_pickle=False)
    return file.getvalue()


def decode_record(record: bytes) -> Batch:
    """An item (x [*d], cond or None) from the bytes of a record.

    Raises:
      ValueError: it is no such record, or holds objects.
    """
    x, at = _array(record, 0)
    cond, _ = _array(record, at)
    return x, None if cond.shape == (0,) else cond


def _array(record: bytes, start: int) -> tuple[np.ndarray, int]:
    """The array that begins at a place of a record, and the place after it."""
    at = start + 10 + int.from_bytes(record[start + 8 : start + 10], "little")  # version 1: the header's length
    shape, fortran, dtype = _header(record[start:at])
    count = math.prod(shape)
    found = np.frombuffer(record, dtype, count, at) if count else np.empty(0, dtype)
    return found.reshape(shape, order="F" if fortran else "C"), at + count * dtype.itemsize


@lru_cache(maxsize=64)  # records mostly share one, and NumPy takes 50 us to read it
def _header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a record of another make")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, fortran, dtype


def write_records(path: str | Path, items: Iterable[Item]) -> None:
    """Writes items (x [*d], cond or None), such as an `ImageFolder`'s, to an ArrayRecord file.

    Raises:
      ImportError: the extra `data` is not installed.
    """
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:
        raise ImportError(f"write_records {_REMEDY} ({error})") from error
    writer = ArrayRecordWriter(str(path), "group_size:1")  # one record is read at a time
    try:
        for x, cond in items:
            writer.write(encode_record(x, cond))
    finally:
        writer.close()


class ArrayRecords:
    """Items of ArrayRecord files, through Grain, for `from_items`.

    Args:
      path: a file, or several, whose records follow one another.
      decode: `bytes -> (x [*d], cond or None)`.

    Raises:
      ImportError: the extra `data` is not installed.
      ValueError: a file is absent or no ArrayRecord. When an item is read: its record is damaged.
    """

    def __init__(
        self,
        path: str | Path | Iterable[str | Path],
        *,
        decode: Callable[[bytes], Item] = decode_record,
    ):
        self.paths = [str(path)] if isinstance(path, str | Path) else [str(one) for one in path]
        for one in self.paths:
            if not os.path.isfile(one):
                raise ValueError(f"path: {one}: no such file")
        self.decode = decode
        try:
            from grain.sources import ArrayRecordDataSource
        except ImportError as error:
            raise ImportError(f"ArrayRecords {_REMEDY} ({error})") from error
        try:
            self.records: Any = ArrayRecordDataSource(self.paths)
            self.count = len(self.records)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"path: {self.paths} is no ArrayRecord that can be read: {error}") from None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        try:
            return self.decode(self.records[int(index)])
        except (RuntimeError, ValueError, EOFError) as error:
            raise ValueError(f"{self.describe(index)}: cannot be read: {error}") from error

    def describe(self, index: int) -> str:
        """Which record an item is."""
        return f"record {index} of {', '.join(self.paths)}"
