"""From a configuration to data: what a run learns from, and what was held out to measure it against.

digits | a density in the plane | a file --build_data--> source(seed, step, size) -> (x0, cond), train, held out
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.config._check import check_seed
from diffjax.config._options import DataConfig

_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error)
_LARGEST = 10.0  # data in [-1, 1], with room for some that are only centred; 255 is an image that was not scaled

TOYS = ("mixture", "two_moons", "checkerboard", "swiss_roll")


class Data(NamedTuple):
    """What a run learns from and is measured against."""

    source: Callable[..., tuple[Any, Any]]
    """`(seed, step, size, *, part=(0, 1)) -> (x0, cond)`."""
    train: tuple[Any, Any]
    """x [n, *d] and labels [n] or None: all of the training items, or fresh draws of a toy."""
    held_out: tuple[Any, Any]
    """The same, never trained on."""
    classes: int | None
    """How many the network is told of; None where it is told nothing."""
    log_prob: Callable[[Any], Any] | None
    """The exact log density in nats, where there is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.train[0].shape[1:]


def build_data(config: DataConfig) -> Data:
    """The data of a configuration.

    Raises:
      ValueError: the file cannot be read, or holds values that are not finite; or a number is out of range.
    """
    if (config.path is None) == (config.name == "file"):
        raise ValueError(f"data.path: needed for data.name file, and for that only, got {config.path}")
    check_seed("data.holdout_seed", config.holdout_seed)
    if config.name in TOYS:
        return _toy(config)
    from diffjax.data import digits, from_arrays

    if config.name == "digits":
        split = {"holdout": config.holdout, "seed": config.holdout_seed}
        train, held_out = digits("train", **split), digits("test", **split)
    else:
        train, held_out = _file(config)
    if not len(held_out[0]):
        raise ValueError(f"data.holdout: nothing is held out to measure against, got {config.holdout}")
    if not config.conditional:
        train, held_out = (train[0], None), (held_out[0], None)
    return Data(from_arrays(*train), train, held_out, _classes(train[1], held_out[1]), None)


def _classes(*labels: Any) -> int | None:
    """One more than the largest label; None where there are none."""
    return None if labels[0] is None else max(int(part.max()) for part in labels) + 1


def _toy(config: DataConfig) -> Data:
    from diffjax import data

    toy = {name: getattr(data, name) for name in TOYS}[config.name]()
    source = toy if config.conditional else lambda *position, **part: (toy(*position, **part)[0], None)
    # Seeds that no run can have: what is measured against was not trained on.
    train, held_out = source(2**32, 0, 4000), source(2**32 + 1, 0, 4000)
    return Data(source, train, held_out, _classes(train[1], held_out[1]), getattr(toy, "log_prob", None))


def _file(config: DataConfig) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """(x, y) to train on and (x, y) held out, from an .npz that is read without unpickling anything."""
    path = Path(str(config.path))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays.get("y")
    except (*_UNREADABLE, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"data.path: no .npz with an array x at {path}: {error}") from None
    x = _scaled(path, x)
    if y is not None and (y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or y.min() < 0):
        raise ValueError(f"data.path: y in {path} must be {len(x)} labels from 0, got {y.dtype}{list(y.shape)}")
    if x.ndim < 2 or not 0 < config.holdout < 1 or not 0 < round(config.holdout * len(x)) < len(x):
        raise ValueError(f"data.holdout: {config.holdout} leaves nothing of x {x.shape} to train on or to measure")
    order = np.random.default_rng(config.holdout_seed).permutation(len(x))
    cut = round(config.holdout * len(x))
    pick = lambda items: (x[items], None if y is None else y[items].astype(np.int32))
    return pick(np.sort(order[cut:])), pick(np.sort(order[:cut]))


def _scaled(path: Path, x: Any) -> np.ndarray:
    """x as float32: bytes are scaled to [-1, 1], floats are as they should be."""
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"data.path: x in {path} must be floats in [-1, 1] or uint8, got {x.dtype}")
    if not x.size:
        raise ValueError(f"data.path: x in {path} is empty, got shape {x.shape}")
    if x.dtype == np.uint8:
        return x / np.float32(127.5) - 1
    if not np.isfinite(x).all():
        raise ValueError(f"data.path: x in {path} holds {x[~np.isfinite(x)].flat[0]}; data must be finite")
    if np.abs(x).max() > _LARGEST:
        raise ValueError(f"data.path: x in {path} must be floats in [-1, 1], got {x.flat[np.abs(x).argmax()]}")
    return x.astype(np.float32)
