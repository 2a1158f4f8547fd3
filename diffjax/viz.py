"""Pictures: each function draws on the Axes it is given, or on a new figure's, and returns the Axes.

No global state: figures are made without `pyplot`, so nothing is registered, shown or left open, and no backend is
chosen. `ax.figure.savefig(path)` writes one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from PIL import Image, ImageDraw, ImageFont

from diffjax._numbers import checked_numbers

Extent = tuple[float, float, float, float]
"""(x_min, x_max, y_min, y_max) of a picture of the plane."""

_FONT = 12
"""Pixels of a caption's letters."""
PLANE: Extent = (-2.5, 2.5, -2.5, 2.5)


@checked_numbers
def sample_grid(
    images: Shaped[Any, "b h w c"], *, columns: int | None = None, gap: int = 1, ax: Axes | None = None
) -> Axes:
    """Images [b, h, w, c] in [-1, 1] (clipped; c is 1 or 3), row by row in a grid; nearly square without `columns`.

    Neighbours are `gap` grey pixels apart.
    """
    ax = _axes(ax)
    ax.imshow(_tile(images, columns, gap), interpolation="nearest")
    ax.set_axis_off()
    return ax


@checked_numbers
def save_grid(
    path: str | Path, images: Shaped[Any, "b h w c"], *, columns: int | None = None, gap: int = 1, enlarge: int = 4
) -> None:
    """Writes the same grid as a PNG, every pixel `enlarge` x `enlarge` pixels of the file, exactly.

    Raises:
      ValueError: images are not [b, h, w, 1 or 3], columns or enlarge is below 1, gap below 0.
    """
    if enlarge < 1:
        raise ValueError(f"enlarge: at least 1 is needed, got {enlarge}")
    imsave(path, _tile(images, columns, gap).repeat(enlarge, axis=0).repeat(enlarge, axis=1), format="png")


@checked_numbers
def save_captioned(
    path: str | Path,
    images: Shaped[Any, "b h w c"],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    enlarge: int = 8,
    lines: int = 3,
) -> None:
    """Writes a grid of images as a PNG, each with its caption below it, in `lines` lines at most.

    Args:
      path: of the PNG.
      images: [b, h, w, c] in [-1, 1] (clipped; c is 1 or 3).
      captions: b of them.
      columns: of the grid, nearly square by default.
      enlarge: every pixel of an image is so many in the file, along both sides.
      lines: of a caption; what does not fit is cut.

    Raises:
      ValueError: as of `save_grid`, or there is not one caption an image.
    """
    if len(captions) != len(images):
        raise ValueError(f"captions: one an image is needed, {len(images)}, got {len(captions)}")
    for name, value in {"enlarge": enlarge, "lines": lines}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1 is needed, got {value}")
    font = ImageFont.load_default(size=_FONT)
    size = np.asarray(images).shape[1:3]
    margin, height = _FONT // 2, lines * (_FONT + 2)
    width, rows = size[1] * enlarge, []
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    for i, image in enumerate(images):
        cell = Image.new("RGB", (width + margin, size[0] * enlarge + height), "white")
        pixels = _tile(image[None], 1, 0).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
        cell.paste(Image.fromarray(pixels), (0, 0))
        text = "\n".join(_wrapped(captions[i], width, font, lines))
        ImageDraw.Draw(cell).multiline_text((0, size[0] * enlarge + 1), text, fill="black", font=font, spacing=1)
        rows.append(np.asarray(cell))
    blank = np.full_like(rows[0], 255)
    rows += [blank] * (-len(rows) % columns)
    picture = np.concatenate([np.concatenate(rows[i : i + columns], axis=1) for i in range(0, len(rows), columns)])
    imsave(path, picture, format="png")


def _wrapped(text, width, font, lines) -> list[str]:
    """The first lines of a text, each no wider than so many pixels; a word that is wider is cut."""
    found = [""]
    for word in text.split():
        word = word[: 2 * width]  # what is measured letter by letter is no longer than what could be seen
        while font.getlength(word) > width and len(word) > 1:
            word = word[:-1]
        joined = f"{found[-1]} {word}".strip()
        found = [*found[:-1], joined] if font.getlength(joined) <= width else [*found, word]
        if len(found) > lines:
            break
    return found[:lines]


def _tile(images, columns, gap) -> np.ndarray:
    """Images [b, h, w, c] as one uint8 picture [rows, columns, 3]; places without an image are black."""
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(f"images: shape [b, height, width, 1 or 3] is needed, got {images.shape}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns: at least 1 is needed, got {columns}")
    if gap < 0:
        raise ValueError(f"gap: 0 or more pixels are needed, got {gap}")
    b, h, w, _ = images.shape
    columns = math.ceil(math.sqrt(b)) if columns is None else columns
    rows = math.ceil(b / columns)
    levels = np.rint((np.clip(np.nan_to_num(images, nan=-1.0), -1, 1) + 1) * 127.5).astype(np.uint8)
    grid = np.full((rows * columns, h + gap, w + gap, 3), 64, np.uint8)
    grid[:, :h, :w] = 0
    grid[:b, :h, :w] = levels
    picture = grid.reshape(rows, columns, h + gap, w + gap, 3).swapaxes(1, 2)
    return picture.reshape(rows * (h + gap), columns * (w + gap), 3)[
        : rows * (h + gap) - gap, : columns * (w + gap) - gap
    ]


def read_picture(path: str | Path) -> np.ndarray:
    """The pixels of a PNG, uint8 [height, width, 3]; what is transparent is ignored."""
    levels = imread(path)
    levels = np.atleast_3d(levels)[..., :3]
    return np.rint(np.broadcast_to(levels, (*levels.shape[:2], 3)) * 255).astype(np.uint8)


@checked_numbers
def scatter(
    x: Shaped[Any, "b 2"], *, color: Any = None, size: float = 2.0, label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Points [b, 2]; `color` is one for all, or a number for each point (a label, say)."""
    ax = _axes(ax)
    x = np.asarray(x)
    ax.scatter(x[:, 0], x[:, 1], s=size, c=color, label=label, linewidths=0)
    ax.set_aspect("equal")
    return ax


@checked_numbers
def density(
    log_prob: Callable[[Any], Any], *, extent: Extent = PLANE, points: int = 200, ax: Axes | None = None
) -> Axes:
    """exp(log_prob) over a rectangle of the plane; `log_prob([n, 2]) -> [n]` in nats is called once.

    Args:
      log_prob: of the density.
      extent: the rectangle.
      points: along each axis.
      ax: to draw on.
    """
    ax = _axes(ax)
    (x, y), plane = _mesh(extent, points)
    height = np.exp(np.asarray(log_prob(plane))).reshape(points, points)
    ax.pcolormesh(x, y, height, shading="nearest", cmap="Blues", rasterized=True)
    ax.set_aspect("equal")
    return ax


@checked_numbers
def arrows(field: Callable[[Any], Any], *, extent: Extent = PLANE, points: int = 20, ax: Axes | None = None) -> Axes:
    """A vector field, such as a score: `field([n, 2]) -> [n, 2]` is called once, on points x points places."""
    ax = _axes(ax)
    (x, y), plane = _mesh(extent, points)
    u, v = np.asarray(field(plane)).reshape(points, points, 2).transpose(2, 0, 1)
    ax.quiver(x, y, u, v, angles="xy")
    ax.set_aspect("equal")
    return ax


def trajectories(paths: Shaped[Any, "s b k"], ts: Shaped[Any, " s"] | None = None, *, ax: Axes | None = None) -> Axes:
    """Paths of b points, time first: [s, b, 2] as curves in the plane, [s, b, 1] against the times `ts [s]`.

    Raises:
      ValueError: paths are not [s, b, 1 or 2], or times are missing for one dimension, or too many for two.
    """
    paths = np.asarray(paths)
    if paths.ndim != 3 or paths.shape[-1] not in (1, 2):
        raise ValueError(f"paths: shape [s, b, 1 or 2], time first, is needed, got {paths.shape}")
    if (ts is None) != (paths.shape[-1] == 2):
        raise ValueError(f"ts: times are needed for paths in one dimension, and for those only, got {ts}")
    ax = _axes(ax)
    if ts is None:
        ax.plot(paths[..., 0], paths[..., 1], linewidth=0.5, alpha=0.6)
        ax.scatter(paths[-1, :, 0], paths[-1, :, 1], s=4, color="black", zorder=3)
        ax.set_aspect("equal")
    else:
        ax.plot(np.asarray(ts), paths[..., 0], linewidth=0.5, alpha=0.6)
        ax.set_xlabel("t")
    return ax


@checked_numbers
def loss_curve(
    steps: Shaped[Any, " n"], losses: Shaped[Any, " n"], *, smoothing: float | None = None, ax: Axes | None = None
) -> Axes:
    """Losses [n] against steps [n]: each as it is, pale, and over them a running mean.

    The scale is logarithmic where all are positive and they span a factor of ten; the mean is that of the logarithms
    then. It has weights e^(-distance/smoothing) in both directions, so that it does not lag behind.

    Args:
      steps: ascending.
      losses: what is not finite is left out.
      smoothing: in steps; a fiftieth of the length by default.
      ax: to draw on.

    Raises:
      ValueError: there are not as many losses as steps, none is finite, or smoothing is not positive.
    """
    steps, losses = np.asarray(steps, float), np.asarray(losses, float)
    if steps.ndim != 1 or steps.shape != losses.shape:
        raise ValueError(f"losses: as many as steps are needed, got {losses.shape} and {steps.shape}")
    if smoothing is not None and not smoothing > 0:
        raise ValueError(f"smoothing: a positive number of steps is needed, got {smoothing}")
    known = np.isfinite(losses)
    steps, losses = steps[known], losses[known]
    if not len(losses):
        raise ValueError("losses: at least one that is finite is needed, got none")
    width = (np.ptp(steps) / 50 or 1.0) if smoothing is None else smoothing
    log = bool(np.min(losses) > 0 and np.max(losses) >= 10 * np.min(losses))
    smooth = np.exp(_running_mean(steps, np.log(losses), width)) if log else _running_mean(steps, losses, width)
    ax = _axes(ax)
    ax.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, marker="." if len(losses) < 3 else None)
    ax.plot(steps, smooth, color="tab:blue", label="running mean")
    ax.legend(loc="best")
    ax.set(xlabel="step", ylabel="loss", yscale="log" if log else "linear")
    return ax


def save_loss_curves(path: str | Path, steps: Shaped[Any, " n"], losses: Mapping[str, Shaped[Any, " n"]]) -> None:
    """A picture of the `loss_curve` of each of the losses, by name, one below another.

    >>> from tempfile import mkdtemp
    >>> from diffjax import viz
    >>> losses = {"generator": [1.0, 0.8, 0.7], "discriminator": [0.7, 0.6, 0.6]}
    >>> viz.save_loss_curves(mkdtemp() + "/losses.png", [10, 20, 30], losses)

    Args:
      path: of a .png.
      steps: ascending, of all.
      losses: name -> [n].

    Raises:
      ValueError: there is none, or as `loss_curve`.
    """
    if not losses:
        raise ValueError("losses: at least one is needed, got none")
    figure = Figure(figsize=(6.4, 4.8 * len(losses)), layout="tight")
    for ax, (name, values) in zip(figure.subplots(len(losses), squeeze=False).flat, losses.items(), strict=True):
        loss_curve(steps, values, ax=ax).set_ylabel(name.replace("/", " "))
    figure.savefig(path, dpi=150)


def _running_mean(at: np.ndarray, values: np.ndarray, width: float) -> np.ndarray:
    """The mean of values [n] around each, with weights e^(-distance/width), in one sweep forth and one back."""

    def sweep(at, values):
        sums, total, weight = np.zeros((len(values), 2)), 0.0, 0.0
        for i, value in enumerate(values):
            kept = math.exp(-abs(at[i] - at[i - 1]) / width) if i else 0.0
            total, weight = total * kept + value, weight * kept + 1
            sums[i] = total, weight
        return sums

    total, weight = (sweep(at, values) + sweep(at[::-1], values[::-1])[::-1]).T
    return (total - values) / (weight - 1)


def _axes(ax: Axes | None) -> Axes:
    return Figure(layout="tight").subplots() if ax is None else ax


def _mesh(extent: Extent, points: int):
    """((x [points], y [points]), all places [points^2, 2]), the second axis (y) running first."""
    x_min, x_max, y_min, y_max = extent
    if not (x_min < x_max and y_min < y_max):
        raise ValueError(f"extent: x_min < x_max and y_min < y_max are needed, got {extent}")
    if points < 2:
        raise ValueError(f"points: at least 2 are needed, got {points}")
    x, y = np.linspace(x_min, x_max, points), np.linspace(y_min, y_max, points)
    plane = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return (x, y), jnp.asarray(plane, jnp.float32)
