"""The command line: `diffjax train | sample | evaluate`.

    argv --tyro--> Train | Sample | Evaluate --> config.py builds --> training, samplers, metrics, viz
                                                                           |
    RUN/config.json  RUN/checkpoints/  RUN/metrics.jsonl  RUN/samples.png  RUN/results.json

Exit codes: 0 done; 2 bad input, one line on stderr that names the argument and its value, and nothing written; 1 the
run failed (a loss that is not finite, a full disk), one line; 130 Ctrl-C and 143 SIGTERM, after saving, with the
command that goes on. DIFFJAX_TRACEBACK=1 shows where an error came from.
"""

import contextlib
import functools
import io
import itertools
import json
import math
import operator
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from diffjax import __version__
from diffjax.config import PRESETS, Config, Data, Parts, build, build_data, build_grid, differences, from_json, to_json
from diffjax.guidance import classifier_free
from diffjax.parameterisation import make_denoiser
from diffjax.process import interval, prior
from diffjax.samplers import sample as sample_denoiser
from diffjax.training import (
    Checkpoints,
    NotFinite,
    Stopped,
    TrainState,
    data_mesh,
    init_state,
    jit_layout,
    make_ema,
    make_train_step,
    pmap_layout,
    train,
)

_MOST_HOST_DEVICES = 8
_EVALUATED = 1800
_ABOUT = {
    "digits": "Class-conditional 8x8 digits with a U-Net; minutes on two cores.",
    "toy2d": "Points in the plane with a perceptron; choose them by --data.name.",
}
if TYPE_CHECKING:
    Preset: TypeAlias = Config
else:
    Preset = functools.reduce(
        operator.or_,
        (
            Annotated[Config, tyro.conf.subcommand(name, default=config, description=_ABOUT[name])]
            for name, config in PRESETS.items()
        ),
    )


@dataclass(frozen=True)
class Train:
    """Train a network on a preset, then draw samples.png and measure them.

    Saves as it goes: the same command again continues where the last one stopped.

        diffjax train digits
        diffjax train digits --out runs/wide --network.channels 64 --steps 8000
        diffjax train toy2d --data.name two_moons
    """

    config: Annotated[Preset, tyro.conf.arg(name="")]
    """Where to start from; every option can be changed."""
    out: str | None = None
    """Folder of the run, made if absent; runs/NAME by default."""
    layout: Literal["jit", "pmap"] = "jit"
    """How the batch is spread over devices; the results agree."""
    devices: int | None = None
    """How many devices. On CPU the cores are used as devices, as many as divide the batch, up to 8."""
    save_every: int = 500
    """Steps from one checkpoint to the next."""
    log_every: int = 50
    """Steps from one line of metrics.jsonl to the next."""
    compile_cache: str | None = None
    """A private folder that keeps compiled programs, so that the next start is faster; none by default."""


@dataclass(frozen=True)
class Sample:
    """Draw samples from a run, into a picture or an array.

    diffjax sample runs/digits --label 3 --n 25 --guidance 2 --out threes.png
    """

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    n: int = 100
    """How many."""
    label: int | None = None
    """The class to draw; all of them, in rows, by default."""
    guidance: float | None = None
    """Scale of classifier-free guidance: 1 is none. The run's own by default."""
    steps: int | None = None
    """Sampling steps; the run's own by default."""
    ts: tuple[float, ...] | None = None
    """Instead of --steps: times to go through, from noise (1) down to data (0); cut to where the process is finite."""
    seed: int = 0
    """The same seed draws the same samples, whatever --n and --chunk are."""
    chunk: int = 256
    """How many at a time."""
    out: str | None = None
    """Where to: .png is a picture, .npz holds x and labels; RUN/drawn.png by default."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a run against what was held out, beside what the measure says of perfect and of useless samples."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    n: int = _EVALUATED
    """How many samples to draw."""
    guidance: float | None = None
    """Scale of classifier-free guidance: 1 is none. The run's own by default."""
    steps: int | None = None
    """Sampling steps; the run's own by default."""
    seed: int = 0
    """Of the samples."""
    chunk: int = 256
    """How many at a time."""
    likelihood: int = 0
    """Held-out items whose log-likelihood is computed too; it takes a minute for tens of images."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default `sys.argv`) and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv in (["--version"], ["-V"]):
        print(f"diffjax {__version__}")
        return 0
    try:
        command = _parse(argv)
        commands: dict[type, Callable[[Any, list[str]], None]] = {Train: _train, Sample: _sample, Evaluate: _evaluate}
        commands[type(command)](command, argv)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt as stop:
        return _interrupted(stop, argv)
    except Exception as error:
        if os.environ.get("DIFFJAX_TRACEBACK"):
            raise
        return _failed(error)
    return 0


def _parse(argv: list[str]) -> Train | Sample | Evaluate:
    """The command, by tyro; what it says of a mistake, in a box of several lines, becomes one `ValueError`."""
    commands: Any = functools.reduce(
        operator.or_, (Annotated[c, tyro.conf.subcommand(c.__name__.lower())] for c in (Train, Sample, Evaluate))
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                commands,
                args=argv,
                prog="diffjax",
                description=f"Diffusion models in JAX, version {__version__}. Add --help to any command.",
                config=(tyro.conf.CascadeSubcommandArgs,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    text = re.sub(r"\x1b\[[0-9;]*m", "", complaint.getvalue())
    sections = [[]]
    for line in (line.strip("│ ╭╰╮╯") for line in text.splitlines()[1:]):
        sections.append([]) if line.startswith("──") else sections[-1].append(line)
    said = [" ".join(" ".join(section).split()) for section in sections]
    named = [said[0], *(part for part in said[1:] if part.startswith("Available"))]
    raise ValueError(f"{'; '.join(named).rstrip('.')} (diffjax --help lists what there is)")


def _interrupted(stop: KeyboardInterrupt, argv: list[str]) -> int:
    again = f"the same command continues: {shlex.join(['diffjax', *argv])}"
    if isinstance(stop, Stopped):
        print(f"\ndiffjax: {stop}; saved; {again}", file=sys.stderr)
        return 128 + stop.signal
    print(f"\ndiffjax: interrupted; {again}", file=sys.stderr)
    return 128 + signal.SIGINT


def _failed(error: Exception) -> int:
    """One line on stderr; 2 where the input was bad, 1 where the run went wrong."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    # An array in a message wraps over lines that belong together; a longer report is cut to its first line.
    text = " ".join(lines) if len(lines) <= 4 else f"{lines[0]} ..."
    print(f"diffjax: {text or type(error).__name__}", file=sys.stderr)
    bad_input = isinstance(error, ValueError | FileNotFoundError | NotADirectoryError) and not isinstance(
        error, NotFinite
    )
    return 2 if bad_input else 1


# Train


def _train(options: Train, argv: list[str]) -> None:
    config = options.config
    out = Path(options.out or f"runs/{config.name}")
    for name, value in {"save-every": options.save_every, "log-every": options.log_every}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    _use_cores(config.batch_size, options.devices)
    if options.compile_cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(options.compile_cache).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    _check_folder(out, config)
    data = build_data(config.data)
    parts = build(config, data.classes)
    state = _fresh_state(config, data, parts)
    layout = _layout(config, parts, options)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "config.json").exists():  # first of all, so that a run cut short from here on can be continued
        _write(out / "config.json", to_json(config))
    with Checkpoints(out / "checkpoints") as checkpoints:
        state = _resume(checkpoints, state, config, out, layout.devices)
        state = train(
            state,
            layout,
            data.source,
            steps=config.steps,
            batch_size=config.batch_size,
            seed=config.seed,
            checkpoints=checkpoints,
            save_every=options.save_every,
            log=out / "metrics.jsonl",
            log_every=options.log_every,
        )
    _finish(out, config, data, parts, state)


def _resume(checkpoints: Checkpoints, state: TrainState, config: Config, out: Path, devices: int) -> TrainState:
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    done = checkpoints.latest()
    where = "from the start" if done is None else f"from step {done}, saved before"
    print(f"{out}: {config.steps} steps {where}; {size:,} parameters; {_on(devices)}", flush=True)
    return state if done is None else checkpoints.restore(state)


def _finish(out: Path, config: Config, data: Data, parts: Parts, state: TrainState) -> None:
    """The picture, the measures, and what to do next."""
    print("drawing and measuring samples ...", flush=True)
    draw = _Draw(config, data, parts, state.ema)
    results, x, labels = _measure(draw, data, n=_EVALUATED, seed=config.seed)
    _picture(out / "samples.png", x, labels, data)
    _write(out / "results.json", json.dumps(results, indent=2) + "\n")
    _show(results)
    print(f"\nsamples   {out / 'samples.png'}\nmeasures  {out / 'results.json'}\nlosses    {out / 'metrics.jsonl'}")
    label = " --label 3" if data.classes else ""
    print(f"draw more: diffjax sample {out}{label} --n 25 --out more.png")


def _check_folder(out: Path, config: Config) -> None:
    """Raises `ValueError` where a folder holds something else than this run."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file, not a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    found = differences(_read_config(out, "out"), config)
    if found:
        path, there, here = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(f"out: {out} holds a run with {path} {there}, not {here}{more}; name another folder")


def _layout(config: Config, parts: Parts, options: Train) -> Any:
    devices = _devices(options.devices)
    if config.batch_size % len(devices):
        raise ValueError(f"batch_size: {config.batch_size} cannot be split evenly over {len(devices)} devices")
    ema = make_ema(config.ema_decay)
    if options.layout == "pmap":
        return pmap_layout(make_train_step(parts.loss, parts.tx, ema=ema, axis_name="data"), devices)
    return jit_layout(make_train_step(parts.loss, parts.tx, ema=ema), data_mesh(devices))


def _fresh_state(config: Config, data: Data, parts: Parts) -> TrainState:
    x0, cond = data.source(config.seed, 0, 1)
    cond = None if parts.null is None else jnp.asarray(cond)
    return init_state(jax.random.key(config.seed), parts.network, parts.tx, jnp.asarray(x0), cond)


# Devices


def _use_cores(batch_size: int, devices: int | None) -> None:
    """Makes each core a device of its own, where JAX runs on the CPU: one CPU device keeps two cores half busy.

    It has to be said before JAX starts; a choice in XLA_FLAGS stands, and accelerators do not care.
    """
    if devices is not None and devices < 1:
        raise ValueError(f"devices: at least 1, got {devices}")
    flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
    if flag in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(cores, _MOST_HOST_DEVICES, max(batch_size, 1))
    count = next(n for n in range(most, 0, -1) if batch_size % n == 0) if devices is None else devices
    os.environ["XLA_FLAGS"] = f"{flags} {flag}={count}".strip()


def _devices(count: int | None) -> list[Any]:
    found = jax.devices()
    if count is not None and count > len(found):
        raise ValueError(f"devices: there are {len(found)}, got {count}")
    return found[:count]


def _on(devices: int) -> str:
    return f"{devices} {jax.devices()[0].platform} device{'s' if devices > 1 else ''}"


# A run's folder


def _read_config(run: Path, argument: str) -> Config:
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"{argument}: {run} holds no run (there is no config.json in it)")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{argument}: {path}: {error}") from None


def _check_run(run: str) -> None:
    if not Path(run).is_dir():
        raise ValueError(f"run: {run}: no such folder")


def _open(run: str, chunk: int) -> tuple[Config, Data, Parts, Any]:
    """A run's configuration, data, objects and averaged parameters, from its newest checkpoint."""
    _check_run(run)
    if chunk < 1:
        raise ValueError(f"chunk: at least 1, got {chunk}")
    _use_cores(chunk, None)
    config = _read_config(Path(run), "run")
    data = build_data(config.data)
    parts = build(config, data.classes)
    with Checkpoints(Path(run) / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(_fresh_state(config, data, parts))
    print(f"{run}: step {int(state.step)} of {config.steps}; {_on(len(jax.devices()))}", flush=True)
    return config, data, parts, state.ema


def _write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


# Sampling


class _Draw:
    """Samples of a run by chunks, spread over the devices; sample i depends on the seed, its label and i alone."""

    def __init__(
        self,
        config: Config,
        data: Data,
        parts: Parts,
        params: Any,
        *,
        scale: float | None = None,
        ts: Any = None,
        chunk: int = 256,
    ):
        self.parts, self.shape, self.chunk = parts, data.shape, chunk
        self.scale = config.guidance.scale if scale is None else scale
        self.ts = parts.ts if ts is None else ts
        mesh = data_mesh()
        self.devices, self.split = mesh.size, NamedSharding(mesh, PartitionSpec("data"))
        self.params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    def __call__(self, n: int, labels: Any, seed: int) -> np.ndarray:
        """n samples [n, *d] for labels [n] or None."""
        chunks = math.ceil(n / self.chunk)
        size = math.ceil(n / chunks / self.devices) * self.devices
        parts = [self._chunk(np.arange(start, start + size), labels, seed) for start in range(0, n, size)]
        return np.concatenate(parts)[:n]

    def _chunk(self, index: np.ndarray, labels: Any, seed: int) -> np.ndarray:
        cond = None if labels is None else labels[np.minimum(index, len(labels) - 1)]  # the last is drawn, and cut off
        prior_key, key = jax.random.split(jax.random.key(seed))
        place = lambda value: jax.device_put(value, self.split)
        process, stepper = self.parts.process, self.parts.stepper
        xt = place(prior(prior_key, process, (len(index), *self.shape), index=jnp.asarray(index)))
        denoiser = self.denoiser(None if cond is None else place(cond))
        x0 = sample_denoiser(key, process, denoiser, xt, self.ts, stepper, index=place(index))
        return np.asarray(x0)

    def denoiser(self, cond: Any, *, guided: bool = True) -> Any:
        """The denoiser told of cond, guided where there is anything to follow."""
        parts = self.parts
        plain = make_denoiser(
            self.params, cond, network=parts.network, process=parts.process, parameterisation=parts.parameterisation
        )
        return classifier_free(plain, parts.null, self.scale) if guided and cond is not None else plain


def _rows(n: int, classes: int | None, label: int | None) -> tuple[Any, int | None]:
    """Labels [n] and columns of a picture: one class, or as many rows as classes."""
    if classes is None:
        return None, None
    if label is not None:
        return np.full(n, label, np.int32), None
    columns = -(-n // classes)
    return (np.arange(n) // columns).astype(np.int32), columns


def _picture(path: Path, x: np.ndarray, labels: Any, data: Data) -> None:
    """What was measured: all points in the plane, or the first hundred images, ten of each class in rows."""
    if len(data.shape) == 1:
        return _save_picture(path, x, labels, None, data)
    if labels is None:
        return _save_picture(path, x[:100], None, None, data)
    columns = max(1, 100 // int(labels.max() + 1))
    rows = [np.flatnonzero(labels == label)[:columns] for label in np.unique(labels)]
    return _save_picture(path, x[np.concatenate(rows)], None, columns, data)


def _save_picture(path: Path, x: np.ndarray, labels: Any, columns: int | None, data: Data) -> None:
    from diffjax import viz

    if len(data.shape) == 3:
        viz.save_grid(path, x, columns=columns, enlarge=max(1, 48 // data.shape[0]))
        return
    if data.shape != (2,):
        raise ValueError(f"out: samples of shape {data.shape} make no picture; write to an .npz")
    ax = viz.scatter(data.held_out[0], color="lightgrey", label="held out")
    ax = viz.scatter(x, color="tab:blue" if labels is None else labels, label="samples", ax=ax)
    ax.legend(loc="upper right")
    figure: Any = ax.figure
    figure.savefig(path, dpi=150)


def _sample(options: Sample, argv: list[str]) -> None:
    for name, value in {"n": options.n, "steps": options.steps}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    _check_times(options.ts, options.steps)
    _check_run(options.run)
    out = Path(options.out or Path(options.run) / "drawn.png")
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"out: a name that ends in .png or .npz is needed, got {out}")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"out: {out} is in a folder that does not exist")
    config, data, parts, params = _open(options.run, options.chunk)
    _check_label(options.label, data.classes)
    draw = _Draw(
        config,
        data,
        parts,
        params,
        scale=_check_scale(options.guidance, data.classes),
        ts=_grid(config, parts, options.steps) if options.ts is None else np.clip(options.ts, *interval(parts.process)),
        chunk=options.chunk,
    )
    labels, columns = _rows(options.n, data.classes, options.label)
    start = time.perf_counter()
    x = draw(options.n, labels, options.seed)
    if out.suffix == ".npz":
        np.savez(out, x=x, **({} if labels is None else {"labels": labels}))
    else:
        _save_picture(out, x, labels, columns, data)
    print(f"{options.n} samples in {time.perf_counter() - start:.1f} s: {out}")


def _grid(config: Config, parts: Parts, steps: int | None) -> Any:
    return parts.ts if steps is None else build_grid(config.sampler, parts.process, steps)


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


def _check_scale(scale: float | None, classes: int | None) -> float | None:
    if scale is not None and (classes is None or not np.isfinite(scale)):
        why = "this run knows no classes" if classes is None else "a finite number is needed"
        raise ValueError(f"guidance: {why}, got {scale}")
    return scale


# Measuring


def _evaluate(options: Evaluate, argv: list[str]) -> None:
    for name, value, least in (("n", options.n, 2), ("steps", options.steps, 1), ("likelihood", options.likelihood, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}: at least {least}, got {value}")
    config, data, parts, params = _open(options.run, options.chunk)
    scale = _check_scale(options.guidance, data.classes)
    ts = _grid(config, parts, options.steps)
    draw = _Draw(config, data, parts, params, scale=scale, ts=ts, chunk=options.chunk)
    results, _, _ = _measure(draw, data, n=options.n, seed=options.seed)
    if options.likelihood:
        results |= _likelihood(draw, data, options.likelihood, options.seed)
    _show(results)


def _measure(draw: _Draw, data: Data, *, n: int, seed: int) -> tuple[dict[str, float], np.ndarray, Any]:
    """Distances of n samples to what is held out, beside those of perfect and of useless samples; x and labels."""
    labels = None if data.classes is None else (np.arange(n) % data.classes).astype(np.int32)
    start = time.perf_counter()
    x = draw(n, labels, seed)
    seconds = time.perf_counter() - start
    found = _measure_plane(x, data) if len(data.shape) == 1 else _measure_images(x, data)
    return {"samples": n, "sampling seconds": seconds, **found}, x, labels


def _measure_images(x: np.ndarray, data: Data) -> dict[str, float]:
    """Squared Frechet distances in pixels, and distances to the nearest training image."""
    from diffjax.metrics import frechet_distance, moments, nearest_distances

    train, held_out = data.train[0], data.held_out[0]
    flat = lambda images: moments(images.reshape(len(images), -1))
    shuffled = np.random.default_rng(0).permuted(train.reshape(len(train), -1), axis=1)
    results = {
        "Frechet distance to held out: samples": frechet_distance(flat(x), flat(held_out)),
        "Frechet distance to held out: floor, training images": frechet_distance(flat(train), flat(held_out)),
        "Frechet distance to held out: ceiling, shuffled pixels": frechet_distance(moments(shuffled), flat(held_out)),
    }
    for name, images in (("samples", x), ("held out", held_out)):
        nearest = nearest_distances(images, train)
        results[f"nearest training image: {name}, median"] = float(np.median(nearest))
        results[f"nearest training image: {name}, least"] = float(np.min(nearest))
    return results


def _measure_plane(x: np.ndarray, data: Data) -> dict[str, float]:
    """Sliced Wasserstein distances, in units of the data."""
    from diffjax.metrics import sliced_wasserstein

    train, held_out = (jnp.asarray(part[0]) for part in (data.train, data.held_out))
    distance = lambda y: float(sliced_wasserstein(jax.random.key(0), jnp.asarray(y), held_out))
    noise = jax.random.normal(jax.random.key(1), x.shape) * held_out.std(0) + held_out.mean(0)
    return {
        "sliced Wasserstein distance to held out: samples": distance(x),
        "sliced Wasserstein distance to held out: floor, other data": distance(train[: len(x)]),
        "sliced Wasserstein distance to held out: ceiling, a Gaussian": distance(noise),
    }


def _likelihood(draw: _Draw, data: Data, n: int, seed: int) -> dict[str, float]:
    """The mean log-likelihood of held-out items along the flow: an exact trace in the plane, 16 probes beyond."""
    from diffjax.likelihood import Exact, Hutchinson, log_likelihood

    x, labels = (None if part is None else jnp.asarray(part[:n]) for part in data.held_out)
    assert x is not None
    size = int(np.prod(data.shape))
    divergence = Exact() if size <= 4 else Hutchinson(16)
    nats = log_likelihood(
        jax.random.key(seed), draw.parts.process, draw.denoiser(labels, guided=False), x, divergence=divergence
    ).nats
    results = {
        "log-likelihood of held out: nats": float(jnp.mean(nats)),
        "log-likelihood of held out: standard error": float(jnp.std(nats) / len(x) ** 0.5),
        "log-likelihood of held out: bits per dimension": -float(jnp.mean(nats)) / (size * np.log(2)),
    }
    if data.log_prob is not None:
        results["log-likelihood of held out: nats, exact"] = float(jnp.mean(data.log_prob(x)))
    return results


def _show(results: dict[str, float]) -> None:
    width = max(map(len, results))
    for name, value in results.items():
        print(f"{name:<{width}}  {value:,.4g}" if isinstance(value, float) else f"{name:<{width}}  {value:,}")


if __name__ == "__main__":
    sys.exit(main())
