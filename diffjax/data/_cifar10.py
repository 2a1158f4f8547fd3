"""CIFAR-10, binary version: 60,000 colour images of 32 x 32 pixels in ten classes.

Records of 3073 bytes: the label, then 1024 bytes each of red, green and blue, row by row. Six files of 10,000 records.
Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

import lzma
import tarfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from diffjax.data._files import is_safe

_RECORD = 3073
_LARGEST = 10_000 * _RECORD
_FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}


def load_cifar10(
    path: str | Path, split: str = "train"
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, " n"]]:
    """The images and labels of one part.

    Args:
      path: a folder that holds data_batch_1.bin ... data_batch_5.bin and test_batch.bin (in it or in its
        cifar-10-batches-bin), or cifar-10-binary.tar.gz, which is read in memory. The pickled version is refused.
      split: "train" or "test".

    Returns:
      (x [n, 32, 32, 3] uint8, labels [n] int32 in 0 .. 9), for `from_images`; n is 50,000 or 10,000.

    Raises:
      ValueError: a file is absent or damaged; a member of the archive has an unsafe path or size.
    """
    if split not in _FILES:
        raise ValueError(f"split: 'train' or 'test' is needed, got {split!r}")
    path = Path(path)
    contents = _from_folder(path, _FILES[split]) if path.is_dir() else _from_tar(path, _FILES[split])
    parts = [_decode(f"{path}/{name}", contents[name]) for name in _FILES[split]]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _from_folder(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    below = path / "cifar-10-batches-bin"
    folder = below if below.is_dir() else path
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"path: no {absent[0]} in {folder} (the binary version of CIFAR-10 is needed)")
    for name in names:
        _check_size(f"{folder}/{name}", (folder / name).stat().st_size)
    return {name: (folder / name).read_bytes() for name in names}


def _from_tar(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The members of those names, wherever in the archive; it is read once, up to the last of them."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name not in names or name in found:
                    continue
                where = f"{path}: member {member.name!r}"
                if not member.isreg() or not is_safe(member.name):
                    raise ValueError(f"path: {where} is refused: it is a link, or its path leads out of the archive")
                _check_size(where, member.size)
                file = archive.extractfile(member)
                assert file is not None  # a regular file
                found[name] = file.read()
                if len(found) == len(names):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"path: {path} is no folder or tar that can be read: {error}") from None
    absent = [name for name in names if name not in found]
    if absent:
        raise ValueError(f"path: no {absent[0]} in {path} (the binary version of CIFAR-10 is needed)")
    return found


def _check_size(where: str, size: int) -> None:
    if size % _RECORD or not 0 < size <= _LARGEST:
        raise ValueError(f"path: {where} holds {size} bytes, not up to 10,000 records of {_RECORD}")


def _decode(where: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    _check_size(where, len(data))
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        raise ValueError(f"path: {where} holds label {labels.max()}; CIFAR-10 has 0 .. 9")
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels
