"""`diffjax sample`: from a run to a picture or an array."""

import itertools
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.cli._draw import Draw, check_interval, check_scale, grid
from diffjax.cli._folder import check_beside_data
from diffjax.cli._hosts import say, start_together
from diffjax.cli._known import read_known, read_mask
from diffjax.cli._options import Sample
from diffjax.cli._picture import has_picture, save_arrays, save_picture, save_rows
from diffjax.cli._run import check_run, open_run, read_params
from diffjax.config import check_seed
from diffjax.inverse import RePaint
from diffjax.process import interval as finite_times
from diffjax.training import agree, agree_on_main


def run_sample(options: Sample, argv: list[str]) -> None:
    """Draws samples of a run into a picture or an .npz."""
    start_together(options, options.chunk)
    for name, value in {"n": options.n, "steps": options.steps, "times": options.times}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    check_seed("seed", options.seed)
    _check_times(options.ts, options.steps)
    agree(lambda: check_run(options.run))
    out = Path(options.out or Path(options.run) / "drawn.png")
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"out: a name that ends in .png or .npz is needed, got {out}")
    agree_on_main(lambda: _check_parent(out))
    if (options.known is None) != (options.mask is None):
        given, missing = ("mask", "known") if options.known is None else ("known", "mask")
        raise ValueError(f"{missing}: inpainting needs --known and --mask, got only --{given}")
    if options.times is not None and options.known is None:
        raise ValueError(f"times: is for inpainting, with --known and --mask, got {options.times} without them")
    config, data, parts = open_run(options.run, options.chunk)
    if out.suffix == ".png":
        agree(lambda: check_beside_data(out, config.data))
    _check_label(options.label, data.classes)
    if out.suffix == ".png" and not has_picture(data):
        raise ValueError(f"out: samples of shape {data.shape} make no picture; name an .npz, got {out}")
    kept = None
    if options.known is not None and options.mask is not None:
        paths = options.mask, options.known
        kept = agree(lambda: (read_mask(paths[0], data.shape), read_known(paths[1], data.shape)))
        mask, known = (jnp.asarray(array) for array in kept)
        parts = parts._replace(stepper=RePaint(mask, known, 10 if options.times is None else options.times))
    scale, interval = check_scale(options.guidance, data.classes), check_interval(options.interval, data.classes)
    draw = Draw(
        config,
        data,
        parts,
        read_params(options.run, config, data, parts, options.ema_width),
        scale=scale,
        interval=interval,
        ts=grid(config, parts, options.steps)
        if options.ts is None
        else np.clip(options.ts, *finite_times(parts.process)),
        chunk=options.chunk,
    )
    labels = _labels(options.n, data.classes, options.label)
    start = time.perf_counter()
    x = draw(options.n, labels, options.seed)
    if kept is not None:
        x = np.where(*kept, x)  # the last denoising moves what is known a little
    if out.suffix == ".npz":
        agree_on_main(lambda: save_arrays(out, x, labels))
    else:
        agree_on_main(lambda: (save_picture if options.label is not None else save_rows)(out, x, labels, data))
    say(f"{options.n} samples in {time.perf_counter() - start:.1f} s: {out}")


def _check_parent(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise ValueError(f"out: {out} is in a folder that does not exist")


def _labels(n: int, classes: int | None, label: int | None) -> Any:
    """Labels [n]: one class, or all classes in order, as evenly as n allows; None where there are none."""
    if classes is None:
        return None
    return (np.arange(n) * classes // n if label is None else np.full(n, label)).astype(np.int32)


def _check_times(ts: tuple[float, ...] | None, steps: int | None) -> None:
    if ts is None:
        return
    said = " ".join(map(str, ts))
    if steps is not None:
        raise ValueError(f"ts: give --ts or --steps, not both, got {said} and {steps}")
    if len(ts) < 2 or not all(0 <= t <= 1 for t in ts):
        raise ValueError(f"ts: two times or more in [0, 1] are needed, got {said}")
    if any(s >= t for t, s in itertools.pairwise(ts)):
        raise ValueError(f"ts: times must descend from noise (1) to data (0), got {said}")


def _check_label(label: int | None, classes: int | None) -> None:
    if label is None:
        return
    if classes is None:
        raise ValueError(f"label: this run knows no classes, got {label}")
    if not 0 <= label < classes:
        raise ValueError(f"label: the classes are 0 .. {classes - 1}, got {label}")
