"""A data set as items to train on and items held out.

    digits | npz | folders of images | idx files of MNIST | CIFAR-10 --> Split(train, held_out, digest)

Where the files come in two parts, those are the parts; where not, `holdout` is a share drawn by `holdout_seed`.
"""

import functools
import hashlib
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.data._arrays_source import Arrays, doubts
from diffjax.data._cifar10 import load_cifar10
from diffjax.data._digits import load_digits
from diffjax.data._files import open_files
from diffjax.data._image_folder import ImageFolder, image_folders
from diffjax.data._items import Items, Skipping, Subset, gather, to_unit
from diffjax.data._mnist import has_mnist, load_mnist
from diffjax.data._npz import Npz, check_unchanged, file_state, map_array
from diffjax.data._source import Batch

_LARGEST = 10.0  # data in [-1, 1], with room for some that are only centred; 255 is an image that was not scaled
_IN_MEMORY = 2**26  # numbers that measures look at: 256 MiB
_CHUNK = 2**24  # numbers that are checked at a time
_HELD_OUT = ("test", "val", "valid", "validation")


class Split(NamedTuple):
    """Items to train on and items held out."""

    train: Items
    held_out: Items
    digest: Callable[[], str] | None = None
    """Of the files, where they are not in memory."""
    classes: tuple[str, ...] | None = None
    """Their names, label by label."""
    left_out: Mapping[str, int] = {}
    """Suffix -> how many files next to the items were not read."""
    pictures: bool = True
    """Whether items are images, whose values lie in [-1, 1] (or bytes that become that)."""
    doubts: tuple[str, ...] = ()
    """What the user should be warned of, each beginning with the name of an argument."""


def labels_of(items: Items) -> Any:
    """The labels [n] of all items, without reading the items; None where there are none."""
    if isinstance(items, Subset):
        inside = labels_of(items.items)
        return None if inside is None else inside[items.indices]
    if isinstance(items, Skipping):
        return labels_of(items.items)
    if isinstance(items, Npz):
        return items.arrays[1]
    assert isinstance(items, Arrays | ImageFolder)
    return items.cond if isinstance(items, Arrays) else items.labels


def read_some(items: Items, *, conditional: bool) -> Batch:
    """(x [m, *d] float32, labels [m] or None): all items, or as many as fit 256 MiB, drawn at random."""
    most = max(1, _IN_MEMORY // max(1, int(np.prod(np.shape(items[0][0])))))
    chosen = np.arange(len(items))
    if len(items) > most:
        chosen = np.sort(np.random.default_rng(0).permutation(len(items))[:most])
    if isinstance(items, Skipping):
        items = items.readable(chosen)
        if not items:
            raise ValueError("path: no item can be read")
        chosen = np.arange(len(items))
    x, labels = gather(items, chosen)
    return to_unit(x, 0, chosen).astype(np.float32, copy=False), labels if conditional else None


def _held_out_share(items: Items, holdout: float, seed: int, **about: Any) -> Split:
    cut = round(holdout * len(items))
    if not 0 < holdout < 1 or not 0 < cut < len(items):
        raise ValueError(f"holdout: {holdout} leaves nothing of {len(items)} items to train on or to measure")
    order = np.random.default_rng(seed).permutation(len(items))
    return Split(Subset(items, np.sort(order[cut:])), Subset(items, np.sort(order[:cut])), **about)


def digits_parts(holdout: float, holdout_seed: int) -> Split:
    """Handwritten digits, 1,797 images of 8 x 8 pixels, which come with scikit-learn."""
    split = {"holdout": holdout, "seed": holdout_seed}
    return Split(Arrays(*load_digits("train", **split)), Arrays(*load_digits("test", **split)))


def file_parts(path: str | Path, holdout: float, holdout_seed: int) -> Split:
    """An .npz with x [n, ...] (floats in [-1, 1], or uint8) and y: [n] integers (classes), or [n, k] floats."""
    # It is read without unpickling anything, and mapped where it is not compressed.
    path = Path(path)
    opened = file_state(path)
    x = map_array(path, "x")
    try:
        with zipfile.ZipFile(path) as archive:
            labelled = "y.npy" in archive.namelist()
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: no .npz with an array x at {path}: {error}") from None
    y = np.array(map_array(path, "y")) if labelled else None
    extremes = _check_x(path, x, opened)
    y = None if y is None else _check_y(path, y, len(x))
    mapped = isinstance(x, np.memmap)
    items = Npz(path, y="y" if labelled else None) if mapped else Arrays(x, y)
    about = {"pictures": _are_pictures(x, extremes), "doubts": tuple(doubts(f"path: x in {path}", x, extremes))}
    return _held_out_share(items, holdout, holdout_seed, **about)


def _check_y(path: Path, y: np.ndarray, n: int) -> np.ndarray:
    """Conditions of an .npz as int32 [n] (labels) or float32 [n, k]; a `ValueError` where they are neither."""
    if np.issubdtype(y.dtype, np.floating):
        if y.ndim != 2 or len(y) != n or not y.shape[1]:
            raise ValueError(
                f"path: y in {path} must be {n} labels from 0, or floats [{n}, k], got {y.dtype}{list(y.shape)}"
            )
        if not np.isfinite(y).all():
            raise ValueError(f"path: y in {path} holds {y[~np.isfinite(y)].flat[0]}; conditions must be finite")
        if (largest := np.abs(y).max()) > _LARGEST:
            raise ValueError(
                f"path: y in {path} must be floats of order one, got {largest:.6g}; give (y - mean)/std of each column"
            )
        return y.astype(np.float32)
    if y.shape != (n,) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(
            f"path: y in {path} must be {n} labels from 0, or floats [{n}, k], got {y.dtype}{list(y.shape)}"
        )
    if y.max() >= 2**31:
        raise ValueError(f"path: y in {path} must be labels of 32 bits, got {y.max()}; number the classes from 0")
    return y.astype(np.int32)


def _check_x(path: Path, x: np.ndarray, opened: tuple[int, int]) -> tuple[float, float]:
    """The extremes of x, read in pieces; a `ValueError` where x is neither bytes nor floats as they are trained on."""
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"path: x in {path} must be floats in [-1, 1] or uint8, got {x.dtype}")
    if not x.size or x.ndim < 2:
        raise ValueError(f"path: x in {path} is empty or no list of arrays, got shape {x.shape}")
    rows, least, most = max(1, _CHUNK * len(x) // x.size), np.inf, -np.inf
    for start in range(0, len(x), rows):
        check_unchanged(path, opened)
        part = np.asarray(x[start : start + rows])
        if x.dtype != np.uint8 and not np.isfinite(part).all():
            raise ValueError(f"path: x in {path} holds {part[~np.isfinite(part)].flat[0]}; data must be finite")
        if x.dtype != np.uint8 and np.abs(part).max() > _LARGEST:
            largest = part.flat[np.abs(part).argmax()]
            raise ValueError(f"path: x in {path} must be floats in [-1, 1], got {largest}")
        least, most = min(least, float(part.min())), max(most, float(part.max()))
    return least, most


def _are_pictures(x: np.ndarray, extremes: tuple[float, float]) -> bool:
    """Whether x [n, *d] are images, of bytes or in [-1, 1]; floats of other than 1 or 3 channels may be latents."""
    inside = x.shape[-1] in (1, 3) and -1 <= extremes[0] <= extremes[1] <= 1
    return x.ndim == 4 and bool(x.dtype == np.uint8 or inside)


def image_folder_parts(
    path: str,
    holdout: float,
    holdout_seed: int,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    text: str | None = None,
    text_field: str = "text",
) -> Split:
    """A folder or zip with a folder of images for each class; train and test (or val) may stand above them.

    Args:
      path: of the folder or zip.
      holdout: share of the items held out, if there is no test part.
      holdout_seed: of the split.
      image_size: pixels per side: the shorter side is scaled to it and the middle cut out; by default images keep
        their size.
      channels: 3 (colour) or 1 (grey); by default 3.
      skip_bad: take the next image instead of one that cannot be decoded.
      text: folder of encoded captions, for which a metadata.jsonl is read.
      text_field: field of metadata.jsonl that holds a caption.
    """
    fields: dict[str, Any] = {
        "size": image_size,
        "channels": channels or 3,
        "text": None if text is None else text_field,
    }
    split = _image_parts(path, holdout, holdout_seed, fields)
    if not skip_bad:
        return split
    return split._replace(train=Skipping(split.train), held_out=Skipping(split.held_out))


def _image_parts(path: str, holdout: float, holdout_seed: int, fields: dict[str, Any]) -> Split:
    """Folders of images: train next to test (or val), within others or not; or one part, with a share held out."""
    files, under = open_files(path), ""
    uncaptioned: dict[str, Any] = fields | {"text": None}
    while True:
        folders, loose = image_folders(files, under)
        held_out = [name for name in _HELD_OUT if name in folders]
        if "train" in folders and held_out:
            train = ImageFolder(files, under=f"{under}/train", **fields)
            test = ImageFolder(files, under=f"{under}/{held_out[0]}", **fields)
            if train.classes != test.classes:
                raise ValueError(f"path: train holds classes {train.classes}, {held_out[0]} {test.classes}")
            digest = functools.partial(_digest_of, train, test)
            left_out = Counter(train.left_out) + Counter(test.left_out)
            for name in sorted(folders - {"train", held_out[0]}):
                other = ImageFolder(files, under=f"{under}/{name}", **uncaptioned)
                left_out[f"images of the folder {name}"] = len(other)
            if loose:
                left_out["images in no folder"] = loose
            return Split(train, test, digest, train.classes, left_out)
        if len(folders) != 1 or loose:
            images = ImageFolder(files, under=under, **fields)
            about = {"classes": images.classes, "left_out": images.left_out, "digest": images.digest}
            return _held_out_share(images, holdout, holdout_seed, **about)
        under = f"{under}/{folders.pop()}".lstrip("/")  # a folder around it all


def _digest_of(*folders: ImageFolder) -> str:
    return hashlib.sha256("".join(folder.digest() for folder in folders).encode()).hexdigest()


def mnist_parts(path: str, holdout: float, holdout_seed: int) -> Split:
    """The folder of MNIST's idx files: train and t10k, or one of them, of which a share is held out."""
    there = [split for split in ("train", "test") if has_mnist(path, split)]
    parts = [Arrays(*load_mnist(path, split)) for split in there or ["train"]]
    return Split(parts[0], parts[1]) if len(parts) == 2 else _held_out_share(parts[0], holdout, holdout_seed)


def cifar10_parts(path: str, holdout: float, holdout_seed: int, skip_bad: bool = False) -> Split:
    """The folder or .tar.gz of CIFAR-10's binary version, or its images in folders."""
    place = Path(path)
    if zipfile.is_zipfile(place) or (place.is_dir() and not any(place.rglob("*.bin"))):
        return image_folder_parts(path, holdout, holdout_seed, 32, skip_bad=skip_bad)
    if skip_bad:
        raise ValueError("skip_bad: for images in folders only; the binary version has no single items to skip")
    return Split(Arrays(*load_cifar10(place, "train")), Arrays(*load_cifar10(place, "test")))
