"""MNIST and its kin (Fashion-MNIST, KMNIST, ...): images of one channel in idx files, gzipped or not.

idx: 0 0 type rank, big-endian sizes [rank] of 4 bytes, then the values; type 8 is a byte. Source: LeCun, Cortes &
Burges, "The MNIST database of handwritten digits", file formats.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

_PREFIX = {"train": "train", "test": "t10k"}
_LARGEST = 2**31  # bytes of one file, unpacked
_BYTES = 0x0800


def load_mnist(path: str | Path, split: str = "train") -> tuple[UInt8[np.ndarray, "n h w 1"], Int32[np.ndarray, " n"]]:
    """The images and labels of one part, from the files as they are distributed, `train-*` and `t10k-*`.

    Args:
      path: a folder that holds (train|t10k)-images-idx3-ubyte and (train|t10k)-labels-idx1-ubyte, with or without .gz.
      split: "train" or "test".

    Returns:
      (x [n, 28, 28, 1] uint8, labels [n] int32), for `from_images`.

    Raises:
      ValueError: a file is absent, damaged, or another kind of file; images and labels differ in number.
    """
    if split not in _PREFIX:
        raise ValueError(f"split: 'train' or 'test' is needed, got {split!r}")
    images = _read_idx(_find(path, f"{_PREFIX[split]}-images", "idx3-ubyte"), 3)
    labels = _read_idx(_find(path, f"{_PREFIX[split]}-labels", "idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise ValueError(f"path: {path} holds {len(images)} images but {len(labels)} labels for {split}")
    return images[..., None], labels.astype(np.int32)


def has_mnist(path: str | Path, split: str) -> bool:
    """Whether the images of a part are in a folder."""
    try:
        _find(path, f"{_PREFIX[split]}-images", "idx3-ubyte")
    except ValueError:
        return False
    return True


def _find(path: str | Path, name: str, kind: str) -> Path:
    tried = [Path(path, f"{name}{between}{kind}{end}") for between in "-." for end in ("", ".gz")]
    for file in tried:
        if file.is_file():
            return file
    raise ValueError(f"path: no {tried[0].name}[.gz] in {path}")


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """The bytes of an idx file, of the shape it declares; not a byte more is unpacked."""
    header = 4 + 4 * rank
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic, *shape = struct.unpack(f">{rank + 1}I", file.read(header))
            size = int(np.prod(shape, dtype=np.float64))  # as floats: four declared sizes may overflow 64 bits
            if magic != _BYTES + rank or size > _LARGEST:
                raise ValueError(f"its header says type and rank {magic:#x}, shape {shape}")
            values = file.read(size + 1)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"path: {path} is no idx file of rank {rank}: {error}") from None
    if len(values) != size:
        raise ValueError(
            f"path: {path} declares {size} bytes, but holds {'more' if len(values) > size else len(values)}"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)
