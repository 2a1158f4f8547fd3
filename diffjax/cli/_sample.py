"""`diffjax sample`: from a run to a picture or an array."""

import itertools
import time
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffjax.cli._draw import Draw
from diffjax.cli._folder import check_beside_data, check_here
from diffjax.cli._hosts import log, start_processes
from diffjax.cli._known import read_known, read_mask
from diffjax.cli._options import Sample
from diffjax.cli._picture import has_picture, save_arrays, save_captioned, save_picture, save_rows
from diffjax.cli._prompts import Asked, asked_for, listed
from diffjax.cli._run import each_steps, open_run, read_trained, sampling_options
from diffjax.config import STEPPERS, Config, Data, Inpainting, Samples, build_data, check_seed
from diffjax.config._registry import numbers_of
from diffjax.config._run import check_folder
from diffjax.training import run_on_main, sync_errors


def run_sample(options: Sample, argv: list[str]) -> None:
    """Draws samples of a run into a picture or an .npz; several, where several numbers of steps are compared."""
    start_processes(options, options.chunk)
    for name, value in {"n": options.n, "times": options.times}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    check_seed("seed", options.seed)
    _check_times(options.ts, {"steps": options.sampler.steps, "sampler.grid": options.sampler.grid})
    sync_errors(lambda: check_folder(options.run))
    check_here("out", options.out or "")
    out = Path(options.out or Path(options.run) / "drawn.png")
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"out: a name that ends in .png or .npz is needed, got {out}")
    run_on_main(lambda: _check_parent(out))
    if (options.known is None) != (options.mask is None):
        given, missing = ("mask", "known") if options.known is None else ("known", "mask")
        raise ValueError(f"{missing}: inpainting needs --known and --mask, got only --{given}")
    if options.times is not None and options.known is None:
        raise ValueError(f"times: is for inpainting, with --known and --mask, got {options.times} without them")
    for name in {"name"}.union(*map(numbers_of, STEPPERS.values())):
        value = getattr(options.sampler, name)
        if value is not None and options.known is not None:
            raise ValueError(f"sampler.{name}: inpainting has a method of its own, RePaint, got {value}")
    found = open_run(options.run, options.chunk)
    config, samples = found.config, found.samples
    given = sampling_options(options, found)
    if out.suffix == ".png":
        sync_errors(lambda: check_beside_data(out, config.data))
    asked = sync_errors(lambda: asked_for(options, found))
    if out.suffix == ".png" and not has_picture(samples):
        raise ValueError(f"out: samples of shape {samples.shape} make no picture; name an .npz, got {out}")
    several = options.sampler.steps or ()
    run, params = read_trained(options.run, found, options.ema_width)
    if options.known is not None and options.mask is not None:
        paths = options.mask, options.known
        mask, known = sync_errors(lambda: (read_mask(paths[0], samples.shape), read_known(paths[1], samples.shape)))
        times = {} if options.times is None else {"times": options.times}
        given["known"] = Inpainting(jnp.asarray(mask), jnp.asarray(known), **times)
    if options.ts is not None:
        given["ts"] = np.asarray(options.ts)
    draws = {  # all of them, so that a number of steps that does not fit is refused before anything is drawn
        steps: Draw(run.family, params, each, chunk=options.chunk) for steps, each in each_steps(given, several).items()
    }
    for steps, draw in draws.items():
        start = time.perf_counter()
        x = draw(options.n, asked.cond, options.seed)
        file = out.with_name(f"{out.stem}-{steps}{out.suffix}") if len(several) > 1 else out
        run_on_main(lambda file=file, x=x: _save(file, x, asked, config, samples))
        log(f"{options.n} samples in {time.perf_counter() - start:.1f} s: {file}")
    if samples.names is not None:
        label = asked.label
        log(f"class: {label} = {samples.names[label]}" if label is not None else f"classes: {listed(samples)}")


def _save(out: Path, x: np.ndarray, asked: Asked, config: Config, samples: Samples) -> None:
    if out.suffix == ".npz":
        save_arrays(out, x, asked.labels, asked.captions)
    elif asked.captions is not None and len(samples.shape) == 3:
        save_captioned(out, x, asked.captions)
    else:
        (save_rows if asked.label is None else save_picture)(out, x, asked.labels, _beside(config, samples))


def _check_parent(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise ValueError(f"out: {out} is in a folder that does not exist")


def _check_times(ts: tuple[float, ...] | None, others: Mapping[str, object]) -> None:
    if ts is None:
        return
    said = " ".join(map(str, ts))
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"ts: give --ts or --{name}, not both, got {said} and {value}")
    if len(ts) < 2 or not all(0 <= t <= 1 for t in ts):
        raise ValueError(f"ts: two times or more in [0, 1] are needed, got {said}")
    if any(s >= t for t, s in itertools.pairwise(ts)):
        raise ValueError(f"ts: times must descend from noise (1) to data (0), got {said}")


def _beside(config: Config, samples: Samples) -> Samples | Data:
    """What samples are drawn with: of points the data, where they are there; of images nothing more than a shape."""
    if len(samples.shape) != 1:
        return samples
    try:
        data = build_data(config.data)
    except (OSError, ValueError) as error:
        log(f"what was held out is not drawn, for the data cannot be read: {error}")
        return samples
    return data if data.shape == samples.shape else samples
