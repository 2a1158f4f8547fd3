"""`diffjax train`: a preset becomes a run, which the same command continues.

RUN/config.json  RUN/checkpoints/  RUN/metrics.jsonl  RUN/samples.png  RUN/results.json
RUN/data.json, for a data file: its digest     RUN/lock, while it trains
RUN/tensorboard/  RUN/profile/  RUN/averages/  where they are asked for
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax

from diffjax.cli._averages import averaged, make_average, snapshots
from diffjax.cli._devices import find_devices, name_devices
from diffjax.cli._draw import Draw
from diffjax.cli._dry_run import dry_run
from diffjax.cli._folder import DATA, LOCK, check_beside_data, check_data, check_out, digest_data, keep_digest, lock_run
from diffjax.cli._hosts import say, start_together
from diffjax.cli._layout import check_layout, make_layout
from diffjax.cli._measure import measure, show
from diffjax.cli._memory import keep_memory
from diffjax.cli._options import Train
from diffjax.cli._picture import has_picture, save_arrays, save_measured
from diffjax.cli._print import print_line, quoted
from diffjax.cli._run import fresh_state, read_config
from diffjax.config import Config, Data, Parts, build, build_data, check_config, differences, essence, to_json
from diffjax.data import prefetch
from diffjax.training import (
    Checkpoints,
    Layout,
    TrainState,
    agree,
    agree_on_main,
    check_same,
    data_mesh,
    is_main,
    tensorboard,
    train,
    write_durably,
)


def run_train(options: Train, argv: list[str]) -> None:
    """Trains, or goes on where the run stopped; then draws samples and measures them."""
    config = options.config
    out = Path(f"runs/{config.name}" if options.out is None else options.out)
    check_out(out, config.name, named=options.out is not None)
    start_together(options, config.batch_size, options.devices)
    for name in ("save_every", "log_every", "keep"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name.replace('_', '-')}: at least 1, got {value}")
    if options.samples < 2:
        raise ValueError(f"samples: at least 2, got {options.samples}")
    if not options.save_seconds > 0:
        raise ValueError(f"save-seconds: more than 0, got {options.save_seconds}")
    if options.profile is not None and not 1 <= options.profile[0] <= options.profile[1]:
        raise ValueError(f"profile: the first and the last step are needed, got {options.profile}")
    check_config(config)
    agree(lambda: _check_packages(options))
    ema = make_average(config)
    keep_memory()
    check_layout(options)
    data, parts = agree(lambda: _prepare(out, options))
    if jax.process_count() > 1 and config.data.path is not None:
        check_same({"data.path: its contents (SHA-256)": agree(lambda: digest_data(data))})
    layout = make_layout(options, parts, ema)
    shapes = agree(lambda: jax.eval_shape(lambda: fresh_state(config, data, parts)))
    layout.abstract(shapes)  # what does not fit is named before anything is written
    if options.dry_run:
        dry_run(options, data, parts, ema, shapes)
        return
    agree(lambda: (data.train, data.held_out))  # what is measured in the end: found bad now, and not then
    with contextlib.ExitStack() as held:
        agree_on_main(lambda: _hold(held, out, options, data))
        for line in (*data.about, *_skipped(data)):
            say(line)
        _train(options, out, data, parts, layout, shapes)


def _check_packages(options: Train) -> None:
    """Raises `ValueError` where an option needs a package that is not there."""
    workers = options.config.data.workers
    needed = [("tensorboard", True, "tensorboardX", "log")] if options.tensorboard else []
    needed += [("data.workers", workers, "grain", "data")] if workers else []
    for option, value, package, extra in needed:
        if importlib.util.find_spec(package) is None:
            remedy = f"pip install '.[{extra}]' in diffjax's folder"
            raise ValueError(f"{option}: needs {package}, got {value}; {remedy}")


def _skipped(data: Data) -> list[str]:
    """A line that counts the items that could not be read, where there are any."""
    bad = data.bad()
    return [f"skipped: {len(bad)} item{'s' if len(bad) > 1 else ''} that cannot be read: {bad[0]}"] if bad else []


def _prepare(out: Path, options: Train) -> tuple[Data, Parts]:
    """The data and the objects of a run, for a folder that holds nothing else."""
    config = options.config
    check_beside_data(out, config.data)
    _check_folder(out, config)
    data = build_data(config.data)
    if config.data.path is not None:
        check_data(out, config.data.path, data, "out", accept=options.accept_data)
    return data, build(config, data.classes)


def _hold(held: contextlib.ExitStack, out: Path, options: Train, data: Data) -> None:
    """Locks the folder and writes what a run is, so that from here on a run cut short can be continued."""
    config = options.config
    out.mkdir(parents=True, exist_ok=True)
    held.enter_context(lock_run(out))
    before = _check_folder(out, config)  # again: now nobody else writes
    kept = out / "config.json"
    if before is not None and before.steps < config.steps:
        print_line(
            f"{out}: {before.steps} steps become {config.steps}: from here the learning rate is that of a run of "
            f"{config.steps} steps"
        )
    if before != config or not kept.read_bytes().strip(b"\0 \n"):  # a power loss leaves it empty
        write_durably(kept, to_json(config))
    if config.data.path is not None:
        keep_digest(out, data, anew=options.accept_data)


def _train(options: Train, out: Path, data: Data, parts: Parts, layout: Layout, shapes: TrainState) -> None:
    config = options.config
    text = to_json(config)  # the copy from which an empty config.json is restored
    about = {"config": hashlib.sha256(to_json(essence(config)).encode()).hexdigest(), "configuration": text}
    about |= layout.about
    watch = [tensorboard(out / "tensorboard")] if options.tensorboard and is_main() else []
    with Checkpoints(out / "checkpoints", keep=options.keep, about=about) as checkpoints:
        state = _begin(checkpoints, layout, shapes, config, out, data, parts)
        state = train(
            state,
            layout,
            data.source,
            steps=config.steps,
            batch_size=config.batch_size,
            seed=config.seed,
            placed=True,
            checkpoints=checkpoints,
            save_every=options.save_every,
            save_seconds=options.save_seconds,
            snapshots=snapshots(config, out),
            log=out / "metrics.jsonl",
            log_every=options.log_every,
            progress=is_main(),
            watch=watch,
            profile=None if options.profile is None else (*options.profile, out / "profile"),
            prefetch=functools.partial(prefetch, workers=config.data.workers) if config.data.workers else None,
        )
    _finish(out, options, data, parts, state)


def _begin(
    checkpoints: Checkpoints,
    layout: Layout,
    shapes: TrainState,
    config: Config,
    out: Path,
    data: Data,
    parts: Parts,
) -> TrainState:
    """The state to go on from: the newest checkpoint, read straight into place, or a fresh one made there."""
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    done = checkpoints.latest()
    check_same({"newest checkpoint": done})
    where = "from the start" if done is None else f"from step {done}, saved before"
    say(f"{out}: {config.steps} steps {where}; {size:,} parameters; {name_devices(layout.devices)}")
    if done is None:
        return layout.init(lambda: fresh_state(config, data, parts))
    return layout.move_state(checkpoints.restore(layout.abstract(shapes)))


def _finish(out: Path, options: Train, data: Data, parts: Parts, state: TrainState) -> None:
    """The measures, the picture (arrays, where there is none), and what to do next."""
    config, mesh = options.config, data_mesh(find_devices(options.devices))
    for line in _skipped(data):
        say(line)
    say("drawing and measuring samples ...")
    draw = Draw(config, data, parts, averaged(config, state.ema), mesh=mesh)
    results, x, labels = measure(draw, data, n=options.samples, seed=config.seed)
    agree_on_main(lambda: _write(out, data, results, x, labels))


def _write(out: Path, data: Data, results: dict[str, float], x: Any, labels: Any) -> None:
    write_durably(out / "results.json", json.dumps(results, indent=2) + "\n")
    show(results)
    picture = has_picture(data)
    samples = out / ("samples.png" if picture else "samples.npz")
    if picture:
        save_measured(samples, x, labels, data)
    else:
        save_arrays(samples, x, labels)
        print_line(f"samples of shape {data.shape} make no picture: x is in {samples}")
    print_line(f"\nsamples   {samples}\nmeasures  {out / 'results.json'}\nlosses    {out / 'metrics.jsonl'}")
    label = f" --label {min(3, data.classes - 1)}" if data.classes else ""
    print_line(f"draw more: diffjax sample {quoted(out)}{label} --n 25 --out more{samples.suffix}")


def _check_folder(out: Path, config: Config) -> Config | None:
    """The configuration of the run in a folder, None where there is none; a `ValueError` where it is another run.

    The same run may have more steps than before, and its data elsewhere, if their contents can be compared.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file, not a folder")
    if not out.exists() or all(path.name.startswith(LOCK) for path in out.iterdir()):
        return None
    before = read_config(out, "out")
    same = dataclasses.replace(before, steps=max(before.steps, config.steps))
    found = differences(essence(same), essence(config))
    if before.data.path != config.data.path and not (out / DATA).is_file():
        found.append(("data.path", before.data.path, config.data.path))
    if found:
        path, there, here = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(f"out: {out} holds a run with {path} {there}, not {here}{more}; name another folder")
    return before
