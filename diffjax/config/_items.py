"""Files of the user's as items to train on and items held out, by the name in a configuration.

    npz | folders of images | idx files of MNIST | CIFAR-10 --ITEMS--> Split(train, held_out, digest)

Where the files come in two parts, those are the parts; where not, `holdout` is a share drawn by `holdout_seed`.
"""

import functools
import hashlib
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.config._options import DataConfig
from diffjax.data import ImageFolder, Npz, Subset, cifar10, mnist
from diffjax.data._arrays_source import Arrays, doubts
from diffjax.data._files import open_files
from diffjax.data._image_folder import image_folders
from diffjax.data._items import Skipping, gather, to_unit
from diffjax.data._mnist import has_mnist
from diffjax.data._npz import check_unchanged, file_state, map_array

_LARGEST = 10.0  # data in [-1, 1], with room for some that are only centred; 255 is an image that was not scaled
_IN_MEMORY = 2**26  # numbers that measures look at: 256 MiB
_CHUNK = 2**24  # numbers that are checked at a time
_HELD_OUT = ("test", "val", "valid", "validation")


class Split(NamedTuple):
    """Items to train on and items held out."""

    train: Any
    held_out: Any
    digest: Callable[[], str] | None = None
    """Of the files, where they are not in memory."""
    classes: tuple[str, ...] | None = None
    """Their names, label by label."""
    left_out: Mapping[str, int] = {}
    """Suffix -> how many files beside the items were not read."""


def labels_of(items: Any) -> Any:
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


def read_some(items: Any, *, told: bool) -> tuple[Any, Any]:
    """(x [m, *d] float32, labels [m] or None): all items, or as many as fit 256 MiB, drawn at random."""
    most = max(1, _IN_MEMORY // max(1, int(np.prod(np.shape(items[0][0])))))
    chosen = np.arange(len(items))
    if len(items) > most:
        chosen = np.sort(np.random.default_rng(0).permutation(len(items))[:most])
    if isinstance(items, Skipping):
        items = items.readable(chosen)
        if not items:
            raise ValueError("data.path: no item can be read")
        chosen = np.arange(len(items))
    x, labels = gather(items, chosen)
    return to_unit(x, 0, chosen).astype(np.float32, copy=False), labels if told else None


def _held_out_share(items: Any, config: DataConfig, digest: Callable[[], str] | None = None, **about: Any) -> Split:
    cut = round(config.holdout * len(items))
    if not 0 < config.holdout < 1 or not 0 < cut < len(items):
        raise ValueError(
            f"data.holdout: {config.holdout} leaves nothing of {len(items)} items to train on or to measure"
        )
    order = np.random.default_rng(config.holdout_seed).permutation(len(items))
    return Split(Subset(items, np.sort(order[cut:])), Subset(items, np.sort(order[:cut])), digest, **about)


def _file(config: DataConfig) -> Split:
    """An .npz, read without unpickling anything, and mapped where it is not compressed."""
    path = Path(str(config.path))
    opened = file_state(path)
    try:
        with zipfile.ZipFile(path) as archive:
            labelled = "y.npy" in archive.namelist()
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"data.path: no .npz with an array x at {path}: {error}") from None
    x = map_array(path, "x")
    y = np.array(map_array(path, "y")) if labelled else None
    extremes = _check_x(path, x, opened)
    if y is not None and (y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or y.min() < 0):
        raise ValueError(f"data.path: y in {path} must be {len(x)} labels from 0, got {y.dtype}{list(y.shape)}")
    if y is not None and y.max() >= 2**31:
        raise ValueError(f"data.path: y in {path} must be labels of 32 bits, got {y.max()}; number the classes from 0")
    mapped = isinstance(x, np.memmap)
    items = Npz(path, y="y" if labelled else None) if mapped else Arrays(x, None if y is None else y.astype(np.int32))
    found = _held_out_share(items, config)
    for text in doubts(f"data.path: x in {path}", x, extremes):
        warnings.warn(text, stacklevel=3)
    return found


def _check_x(path: Path, x: Any, opened: tuple[int, int]) -> tuple[float, float]:
    """The extremes of x, read in pieces; a `ValueError` where x is neither bytes nor floats as they are trained on."""
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"data.path: x in {path} must be floats in [-1, 1] or uint8, got {x.dtype}")
    if not x.size or x.ndim < 2:
        raise ValueError(f"data.path: x in {path} is empty or no list of arrays, got shape {x.shape}")
    rows, least, most = max(1, _CHUNK * len(x) // x.size), np.inf, -np.inf
    for start in range(0, len(x), rows):
        check_unchanged(path, opened)
        part = np.asarray(x[start : start + rows])
        if x.dtype != np.uint8 and not np.isfinite(part).all():
            raise ValueError(f"data.path: x in {path} holds {part[~np.isfinite(part)].flat[0]}; data must be finite")
        if x.dtype != np.uint8 and np.abs(part).max() > _LARGEST:
            largest = part.flat[np.abs(part).argmax()]
            raise ValueError(f"data.path: x in {path} must be floats in [-1, 1], got {largest}")
        least, most = min(least, float(part.min())), max(most, float(part.max()))
    return least, most


def _image_folder(config: DataConfig) -> Split:
    return _images(config, config.image_size)


def _images(config: DataConfig, size: int | None) -> Split:
    """`_image_parts`, of which those that cannot be read are skipped where that was asked for."""
    split = _image_parts(config, size)
    if not config.skip_bad:
        return split
    return split._replace(train=Skipping(split.train), held_out=Skipping(split.held_out))


def _image_parts(config: DataConfig, size: int | None) -> Split:
    """Folders of images: train beside test (or val), within others or not; or one part, with a share held out."""
    files, under, channels = open_files(str(config.path)), "", config.channels or 3
    while True:
        folders, loose = image_folders(files, under)
        held_out = [name for name in _HELD_OUT if name in folders]
        if "train" in folders and held_out:
            train = ImageFolder(files, under=f"{under}/train", size=size, channels=channels)
            test = ImageFolder(files, under=f"{under}/{held_out[0]}", size=size, channels=channels)
            if train.classes != test.classes:
                raise ValueError(f"path: train holds classes {train.classes}, {held_out[0]} {test.classes}")
            digest = functools.partial(_digest_of, train, test)
            left_out = Counter(train.left_out) + Counter(test.left_out)
            for name in sorted(folders - {"train", held_out[0]}):
                beside = ImageFolder(files, under=f"{under}/{name}", size=size, channels=channels)
                left_out[f"images of the folder {name}"] = len(beside)
            if loose:
                left_out["images in no folder"] = loose
            return Split(train, test, digest, train.classes, left_out)
        if len(folders) != 1 or loose:
            images = ImageFolder(files, under=under, size=size, channels=channels)
            about = {"classes": images.classes, "left_out": images.left_out}
            return _held_out_share(images, config, images.digest, **about)
        under = f"{under}/{folders.pop()}".lstrip("/")  # a folder around it all


def _digest_of(*folders: ImageFolder) -> str:
    return hashlib.sha256("".join(folder.digest() for folder in folders).encode()).hexdigest()


def _mnist(config: DataConfig) -> Split:
    """train and t10k where both are there; of one alone, a share is held out."""
    path = str(config.path)
    there = [split for split in ("train", "test") if has_mnist(path, split)]
    parts = [Arrays(*mnist(path, split)) for split in there or ["train"]]
    return Split(parts[0], parts[1]) if len(parts) == 2 else _held_out_share(parts[0], config)


def _cifar10(config: DataConfig) -> Split:
    """The binary version, or its images in folders."""
    path = Path(str(config.path))
    if zipfile.is_zipfile(path) or (path.is_dir() and not any(path.rglob("*.bin"))):
        return _images(config, 32)
    if config.skip_bad:
        raise ValueError("data.skip_bad: for images in folders only; the binary version has no single items to skip")
    return Split(Arrays(*cifar10(path, "train")), Arrays(*cifar10(path, "test")))


ITEMS: Mapping[str, Callable[[DataConfig], Split]] = {
    "file": _file,
    "image_folder": _image_folder,
    "mnist": _mnist,
    "cifar10": _cifar10,
}
