"""Handwritten digits, 1797 images of 8 x 8 pixels: they come with scikit-learn, so nothing is downloaded.

Source: Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits (its test part).
"""

import importlib.util
from pathlib import Path

import numpy as np

from diffjax._numbers import checked_numbers
from diffjax.data._source import generator


@checked_numbers
def load_digits(split: str = "train", *, holdout: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one part of the digits.

    >>> from diffjax import data
    >>> images, labels = data.load_digits()
    >>> images.shape, images.dtype, labels.shape
    ((1438, 8, 8, 1), dtype('float32'), (1438,))

    Args:
      split: "train" or "test".
      holdout: the share of each class that goes to the test part, in [0, 1), rounded to whole images.
      seed: of the split; both parts must be read with the same.

    Returns:
      (x [n, 8, 8, 1] float32 in [-1, 1], labels [n] int32 in 0 .. 9), in the data set's own order.

    Raises:
      ValueError: an argument out of range.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: 'train' or 'test' is needed, got {split!r}")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout: a share in [0, 1) is needed, got {holdout}")
    data, target = _load()
    held_out = _held_out(target, holdout, generator(seed))
    chosen = held_out if split == "test" else ~held_out
    images = (data[chosen] / 8 - 1).astype(np.float32)  # pixels are 0 .. 16
    return images.reshape(-1, 8, 8, 1), target[chosen].astype(np.int32)


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 64] and classes [n] of all images: from scikit-learn's file, as importing it takes a second."""
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1].astype(int)
    import sklearn.datasets

    data, target = sklearn.datasets.load_digits(return_X_y=True)
    return data, target


def _held_out(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A mask of the items held out: round(share n_c) of the n_c items of each class c."""
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        items = rng.permutation(np.flatnonzero(labels == label))
        mask[items[: round(share * len(items))]] = True
    return mask
