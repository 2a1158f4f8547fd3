"""Samples as files: points in the plane next to what was held out, images in a grid, or arrays."""

from pathlib import Path
from typing import Any

import numpy as np

from diffjax._typing import Cascade, Cond
from diffjax.config import Data, Samples


def has_picture(data: Samples | Data) -> bool:
    """Whether samples make a picture: images of one or three channels, or points in the plane."""
    return data.shape == (2,) or (len(data.shape) == 3 and data.shape[-1] in (1, 3))


def labels_in(cond: Cond) -> np.ndarray | None:
    """The labels [n] in conditions [n, ...]; None where there are none."""
    label = cond.label if isinstance(cond, Cascade) else cond
    return label if isinstance(label, np.ndarray) and label.ndim == 1 else None


def save_measured(path: Path, x: np.ndarray, labels: np.ndarray | None, data: Data) -> None:
    """What was measured: all points in the plane, or a hundred images at most, as many of each class, in rows."""
    if len(data.shape) == 1:
        return save_picture(path, x, labels, data)
    if labels is None:
        return save_picture(path, x[:100], None, data)
    found = np.unique(labels)
    columns = max(1, 100 // len(found))
    first = np.concatenate([np.flatnonzero(labels == label)[:columns] for label in found])
    return save_rows(path, x[first], labels[first], data)


def save_rows(path: Path, x: np.ndarray, labels: np.ndarray | None, data: Samples | Data) -> None:
    """Images with a row for each class, as wide as the longest (the rest is black); points as `save_picture`."""
    if len(data.shape) == 1 or labels is None:
        return save_picture(path, x, labels, data)
    rows = [x[labels == label] for label in np.unique(labels)]
    columns = max(map(len, rows))
    black = lambda count: np.full((count, *data.shape), -1.0, x.dtype)
    padded = [np.concatenate([row, black(columns - len(row))]) for row in rows]
    return save_picture(path, np.concatenate(padded), None, data, columns=columns)


def save_picture(
    path: Path, x: np.ndarray, labels: np.ndarray | None, data: Samples | Data, *, columns: int | None = None
) -> None:
    """Images in a grid of so many columns (a square by default), or points coloured by their labels.

    Points are drawn over those that were held out, where the data are given.
    """
    from diffjax import viz

    if not has_picture(data):
        raise ValueError(f"out: samples of shape {data.shape} make no picture; write to an .npz")
    if len(data.shape) == 3:
        viz.save_grid(path, x, columns=columns, enlarge=max(1, 48 // data.shape[0]))
        return
    ax = viz.scatter(data.held_out[0], color="lightgrey", label="held out") if isinstance(data, Data) else None
    ax = viz.scatter(x, color="tab:blue" if labels is None else labels, label="samples", ax=ax)
    ax.legend(loc="upper right")
    figure: Any = ax.figure
    figure.savefig(path, dpi=150)


def save_captioned(path: Path, x: np.ndarray, captions: tuple[str, ...]) -> None:
    """Images [n, h, w, c] in rows of at most ten of one caption, which stands below each."""
    from diffjax import viz

    most = max(captions.count(text) for text in set(captions))
    columns = min(10, most) if len(set(captions)) > 1 else None
    viz.save_captioned(path, x, captions, columns=columns, enlarge=max(1, 128 // x.shape[1]))


def save_arrays(path: Path, x: np.ndarray, labels: np.ndarray | None, captions: tuple[str, ...] | None = None) -> None:
    """An .npz with x and, where there are any, labels and texts."""
    given: dict[str, Any] = {} if labels is None else {"labels": labels}
    given |= {} if captions is None else {"texts": np.array(captions)}
    np.savez(path, x=x, **given)
