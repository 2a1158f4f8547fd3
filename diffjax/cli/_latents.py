"""What the latents of a family hold, looked at on held-out items: a measure and two pictures.

    x0 --encode--> z --decode--> reconstruction                          RUN/reconstructions.png, below the items
    z, z' of two items --slerp, ten steps--> --decode--> a row           RUN/walk.png, of each class

A walk keeps the label of its class, where there are labels, and goes from one item's latents to another's, level by
level. A diffusion has latents, too, but each is a solve of its flow: `family.encode` and `decode` have them in Python.
"""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.cli._draw import Draw
from diffjax.cli._hosts import log
from diffjax.cli._picture import save_picture
from diffjax.config import Data, Run
from diffjax.likelihood import slerp
from diffjax.training import local_copy

_ITEMS, _SHOWN = 1000, 50
"""Items that are reconstructed to be measured, and in the picture."""
_ROWS = _COLUMNS = 10
_AT_A_TIME = 100
"""Items that are encoded and decoded in one call, so that large images need no more memory than their training did."""


class Latents(NamedTuple):
    """What `latents_of` finds."""

    error: float
    """Root mean square of x0 - decode(encode(x0)) over features and items, in units of the data."""
    items: np.ndarray
    """Held-out items [n, *d], the classes in turn."""
    reconstructions: np.ndarray
    """[n, *d]."""
    walk: np.ndarray
    """[rows, columns, *d]: of each row the first and the last are reconstructions of two items; no row where no class
    has two items."""

    @property
    def name(self) -> str:
        """What results call the error."""
        return "reconstruction error of held out, root mean square"


def has_latents(run: Run) -> bool:
    """Whether a run's latents are looked at: those of a family that encodes and decodes without solving a flow."""
    return run.parts is None and run.family.encode is not None and run.family.decode is not None


def latents_of(draw: Draw, data: Data, *, seed: int) -> Latents:
    """Reconstructions and a walk of held-out items; every process finds the same."""
    encode, decode = draw.family.encode, draw.family.decode
    assert encode is not None
    assert decode is not None
    log("encoding and decoding held-out items ...")
    params, key = local_copy(draw.params), jax.random.key(seed)
    x, labels = data.held_out
    order = in_turn(labels, len(x))[:_ITEMS]
    n, x, cond = len(order), x[order], None if labels is None else jnp.asarray(labels[order])
    parts, size = [], math.ceil(n / math.ceil(n / _AT_A_TIME))  # of all parts, so that one program does
    for start in range(0, n, size):
        index = np.minimum(np.arange(start, start + size), n - 1)  # the surplus of the last repeats the last item
        own = None if cond is None else cond[index]
        z = encode(params, key, jnp.asarray(x[index]), own, index=jnp.asarray(index))
        parts.append((z, decode(params, z, own)))
    z, y = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:n], *parts)
    y = np.asarray(y)
    error = float(np.sqrt(np.mean((x.astype(np.float64) - y) ** 2)))
    pairs = pairs_of(None if labels is None else labels[order], n)
    if not len(pairs):
        return Latents(error, x[:_SHOWN], y[:_SHOWN], np.zeros((0, _COLUMNS, *x.shape[1:]), x.dtype))
    of = lambda rows: jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], z)
    kept = None if cond is None else cond[pairs[:, 0]]
    steps = []
    for weight in jnp.linspace(0.0, 1.0, _COLUMNS):
        between = jax.tree.map(lambda a, b, weight=weight: slerp(a, b, weight), of(pairs[:, 0]), of(pairs[:, 1]))
        steps.append(np.asarray(decode(params, between, kept)))
    return Latents(error, x[:_SHOWN], y[:_SHOWN], np.stack(steps, axis=1))


def in_turn(labels: np.ndarray | None, n: int) -> np.ndarray:
    """The order [n] of items in which classes take turns: the first of each class, then the second, and so on.

    >>> in_turn(np.array([1, 1, 0, 0, 1]), 5).tolist()
    [2, 0, 3, 1, 4]
    """
    if labels is None:
        return np.arange(n)
    rank = np.zeros(n, int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange(np.sum(labels == label))
    return np.lexsort((labels, rank))


def pairs_of(labels: np.ndarray | None, n: int) -> np.ndarray:
    """Ten pairs of items at most, [rows, 2]: the first two of each class, or of all items the first two, the next two.

    >>> pairs_of(np.array([0, 1, 2, 0, 1]), 5).tolist()
    [[0, 3], [1, 4]]
    """
    if labels is None:
        return np.arange(min(n // 2, _ROWS) * 2).reshape(-1, 2)
    found = [np.flatnonzero(labels == label)[:2] for label in np.unique(labels)]
    return np.array([pair for pair in found if len(pair) == 2][:_ROWS], int).reshape(-1, 2)


def save_latents(out: Path, latents: Latents, data: Data) -> list[Path]:
    """Writes the two pictures, and returns their paths; of points the walk is coloured by its rows."""
    paths = [out / "reconstructions.png", out / "walk.png"]
    x, y, walk = latents.items, latents.reconstructions, latents.walk
    columns = min(len(x), _COLUMNS)
    if len(data.shape) == 1:
        save_picture(paths[0], y, None, data)
    else:
        n = len(x) // columns * columns
        both = [part[i : i + columns] for i in range(0, n, columns) for part in (x, y)]
        save_picture(paths[0], np.concatenate(both), None, data, columns=columns)
    if not len(walk):
        return paths[:1]
    rows = np.repeat(np.arange(len(walk)), _COLUMNS)
    flat = walk.reshape(-1, *data.shape)
    save_picture(paths[1], flat, rows if len(data.shape) == 1 else None, data, columns=_COLUMNS)
    return paths
