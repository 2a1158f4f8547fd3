"""ArrayRecord files: many items in a few files, any of them read by its number, each with a checksum.

A record is two arrays in NumPy's own format, one after the other: x, and the condition (an array of size 0 for none);
and a third, the bytes of a caption in UTF-8, where there is one. Nothing is pickled. Records of another make are read
with a `decode` of yours. Needs the extra `data` (array_record comes with grain).
"""

import io
import itertools
import math
import os
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree
from numpy.typing import ArrayLike

from diffjax.data._source import Batch, Item
from diffjax.data._texts import check_text

_REMEDY = "needs Grain and array_record: pip install '.[data]' in diffjax's folder"
_NONE = np.zeros(0, np.int32)


def encode_record(x: ArrayLike, cond: PyTree = None, text: str | None = None) -> bytes:
    """An item, x [*d], its condition and its caption, as the bytes of a record."""
    file = io.BytesIO()
    caption = () if text is None else (np.frombuffer(check_text("text", text).encode(), np.uint8),)
    for array in (x, _NONE if cond is None else cond, *caption):
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


def decode_text(record: bytes) -> str | None:
    """The caption of a record; None where it has none.

    Raises:
      ValueError: it is no such record, or the caption no UTF-8.
    """
    at = 0
    for _ in range(2):
        _, at = _array(record, at)
    return None if at == len(record) else _array(record, at)[0].tobytes().decode()


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


def write_records(path: str | Path, items: Iterable[Item], texts: Iterable[str] | None = None) -> None:
    """Writes items (x [*d], cond or None), such as an `ImageFolder`'s, to an ArrayRecord file.

    Args:
      path: of the file.
      items: in the order of the records.
      texts: their captions, one each; None for none.

    Raises:
      ImportError: the extra `data` is not installed.
      ValueError: there is not one caption an item, or one is no string.
    """
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:
        raise ImportError(f"write_records {_REMEDY} ({error})") from error
    writer = ArrayRecordWriter(str(path), "group_size:1")  # one record is read at a time
    try:
        captions = itertools.repeat(None) if texts is None else texts
        for (x, cond), text in zip(items, captions, strict=texts is not None):
            writer.write(encode_record(x, cond, text))
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

    @cached_property
    def texts(self) -> tuple[str, ...] | None:
        """The captions of all records, which are read for it once; None where the first has none."""
        found = []
        for index in range(self.count):
            try:
                text = decode_text(self.records[index])
            except (RuntimeError, ValueError, EOFError) as error:
                raise ValueError(f"{self.describe(index)}: its caption cannot be read: {error}") from error
            if text is None and not index:
                return None
            found.append(check_text(f"text: {self.describe(index)}", text))
        return tuple(found)

    def describe(self, index: int) -> str:
        """Which record an item is."""
        return f"record {index} of {', '.join(self.paths)}"
