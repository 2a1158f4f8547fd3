"""What is known of a sample, for inpainting: an image and the part of it to keep, from pictures or .npz files."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

_UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)


def read_known(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The known sample [1, *d]: a picture, its 0..255 scaled to -1..1, or the array x of an .npz.

    What is transparent in a picture is laid on white, in the mask as well.

    Raises:
      ValueError: the file cannot be read or is not of that shape.
    """
    known = _read("known", path, "x", shape)
    return known[None].astype(np.float32)


def read_mask(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Where the sample is known, booleans [*d] (an axis may be 1): a picture's light half, or an .npz's array mask.

    Raises:
      ValueError: the file cannot be read, is not of that shape, or keeps nothing or everything.
    """
    mask = _read("mask", path, "mask", shape)
    mask = mask != 0 if Path(path).suffix == ".npz" else mask > 0
    if mask.all() or not mask.any():
        raise ValueError(f"mask: {path} keeps {'everything' if mask.all() else 'nothing'}; light parts are kept")
    return mask


def _read(name: str, path: str, array: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        x = _array(path, array) if Path(path).suffix == ".npz" else _picture(path, shape)
    except _UNREADABLE as error:
        raise ValueError(f"{name}: {path} cannot be read: {error}") from None
    if x.shape == (1, *shape):
        x = x[0]
    fits = len(x.shape) == len(shape) and all(n in (1, m) for n, m in zip(x.shape, shape, strict=True))
    if not (fits and (name == "mask" or x.shape == shape)):
        raise ValueError(f"{name}: {path} has shape {x.shape}, the samples have {shape}")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{name}: {path} holds values that are not finite")
    return x


def _array(path: str, name: str) -> np.ndarray:
    with np.load(path) as file:
        return np.asarray(file[name], np.float64)


def _picture(path: str, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    from diffjax.data._pictures import prepare_image

    with Image.open(path) as picture:
        return prepare_image(picture, size=None, channels=3 if shape[-1] == 3 else 1) / 127.5 - 1
