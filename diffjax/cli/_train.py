"""`diffjax train`: a preset becomes a run, which the same command continues.

RUN/config.json  RUN/checkpoints/  RUN/metrics.jsonl  RUN/samples.png  RUN/results.json
RUN/data.json: what sampling needs of the data, and their digest     RUN/checkpoints/lock, while it trains
RUN/reconstructions.png  RUN/walk.png, of a model with an encoder
RUN/loss.png                                             RUN/samples/  RUN/tensorboard/  RUN/profile/  RUN/averages/:
where they are requested
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffjax._typing import Cond
from diffjax.cli._devices import find_devices, name_devices
from diffjax.cli._draw import Draw
from diffjax.cli._dry_run import dry_run
from diffjax.cli._folder import check_beside_data, check_data, check_out, keep_data
from diffjax.cli._hosts import log, start_processes
from diffjax.cli._latents import Latents, has_latents, latents_of, save_latents
from diffjax.cli._layout import check_layout, make_layout
from diffjax.cli._measure import measure, show
from diffjax.cli._memory import keep_memory
from diffjax.cli._options import Train
from diffjax.cli._picture import has_picture
from diffjax.cli._preview import Preview, save_loss, save_samples
from diffjax.cli._print import print_line, quoted
from diffjax.config import (
    LOSSES,
    Config,
    Data,
    Parts,
    Run,
    SamplerConfig,
    TrainedRun,
    build_data,
    build_run,
    check_config,
    differences,
    to_json,
    training_identity,
    with_family_defaults,
    with_loss_defaults,
)
from diffjax.config._averages import make_average, snapshots
from diffjax.config._families import check_data as check_data_of
from diffjax.config._registry import construct
from diffjax.config._run import (
    DATA,
    begin_from_encoder,
    fresh_state,
    read_config,
    sampled_params,
)
from diffjax.config._sampling import samples_bound
from diffjax.config._teacher import begin_from_teacher, next_stage, read_teacher
from diffjax.training import (
    Checkpoints,
    Layout,
    TrainState,
    check_same,
    data_mesh,
    is_main,
    run_on_main,
    sync_errors,
    tensorboard,
    train,
)
from diffjax.training.checkpoint import LOCK, write_durably


def run_train(options: Train, argv: list[str]) -> None:
    """Trains, or goes on where the run stopped; then draws samples and measures them."""
    given = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    config = with_loss_defaults(with_family_defaults(options.config, given), given)
    run_config(dataclasses.replace(options, config=config), given)


def run_config(options: Train, given: Collection[str] = ()) -> None:
    """Trains what the configuration says, whatever the command was; `given`: paths of the options on its line."""
    config = options.config
    out = check_out(options.out, config.name)
    start_processes(options, config.batch_size, options.devices)
    for name in ("save_every", "log_every", "sample_every", "keep"):
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
    sync_errors(lambda: _check_packages(options))
    ema = make_average(config)
    keep_memory()
    check_layout(options)
    data, run = sync_errors(lambda: _prepare(out, options, given))
    if jax.process_count() > 1 and _is_read(config):
        check_same({"data.path: its contents (SHA-256)": sync_errors(lambda: data.digest)})
    layout = make_layout(options, run.family, ema)
    shapes = sync_errors(lambda: jax.eval_shape(lambda: fresh_state(run)))
    layout.abstract(shapes)  # what does not fit is named before anything is written
    teacher = _read_teacher(out, run)
    if options.dry_run:
        dry_run(options, data, run.family, ema, shapes)
        return
    sync_errors(lambda: (data.train, data.held_out))  # what is measured in the end: found bad now, and not then
    sync_errors(lambda: (check_data_of(config, data.train[0]), check_data_of(config, data.held_out[0])))
    with _checkpoints(out, options, data, layout) as checkpoints:  # from here on nobody else writes to the folder
        run_on_main(lambda: _write_run(out, options, data))
        about = [] if run.parts is None else _about(config, data, run.parts)
        for line in (*data.about, *about, *_skipped(data)):
            log(line)
        _train(options, out, data, run, layout, shapes, checkpoints, teacher)


def _is_read(config: Config) -> bool:
    """True if a run's data are read from files, which may change."""
    return config.data.path is not None or config.data.text is not None


def _check_packages(options: Train) -> None:
    """Raises `ValueError` where an option needs a package that is not there."""
    workers = options.config.data.workers
    needed = [("tensorboard", True, "tensorboardX", "log")] if options.tensorboard else []
    needed += [("data.workers", workers, "grain", "data")] if workers else []
    loss = options.config.loss.name
    if (package := LOSSES[loss].package) is not None:
        needed += [("loss.name", loss, *package)]
    for option, value, package, extra in needed:
        if importlib.util.find_spec(package) is None:
            remedy = f"pip install '.[{extra}]' in diffjax's folder"
            raise ValueError(f"{option}: needs {package}, got {value}; {remedy}")


def _about(config: Config, data: Data, parts: Parts) -> list[str]:
    """A line on where a prediction is trained that is not trained everywhere, and why."""
    if not math.isfinite(parts.diffusion.parameterisation.logsnr_range[0]) or "process" in parts.learned:
        return []
    name = config.parameterisation.name
    first, last = (float(parts.process.logsnr(t)) for t in parts.process.interval())
    line = (
        f"{name}: trained and sampled within logsnr {last:.3g} .. {first:.3g}, for in the samples its errors are "
        f"e^(-logsnr/2) times as large, {math.exp(-last / 2):,.0f} times at {last:.3g}; --process.logsnr-min and "
        "--process.logsnr-max change that"
    )
    bound = samples_bound(config, data, parts)
    clipped = f"; samples are clipped to {bound:.3g}, the largest number of the data (--sampler.clip 0: not)"
    return [line if data.pictures or config.sampler.clip is not None else line + clipped]


def _skipped(data: Data) -> list[str]:
    """A line that counts the items that could not be read, where there are any."""
    bad = data.bad()
    return [f"skipped: {len(bad)} item{'s' if len(bad) > 1 else ''} that cannot be read: {bad[0]}"] if bad else []


def _prepare(out: Path, options: Train, given: Collection[str]) -> tuple[Data, Run]:
    """The data and the run, for a folder that holds nothing else."""
    config = options.config
    check_beside_data(out, config.data)
    _check_folder(out, config)
    data = build_data(config.data)
    if (place := config.data.path or config.data.text) is not None:
        check_data(out, place, data, "out", accept=options.accept_data)
    if not data.samples.conditional and (unused := [path for path in given if path.startswith("guidance.")]):
        raise ValueError(
            f"{min(unused)}: this run knows no classes, and guidance would have no effect; leave it out, or train with "
            "--data.conditional on data with labels"
        )
    run = build_run(config, data.samples)
    if run.parts is not None and config.sampler.threshold != SamplerConfig.threshold:
        samples_bound(config, data, run.parts)  # refused now, not after training
    return data, run


def _read_teacher(out: Path, run: Run) -> TrainedRun | None:
    """The run that is distilled, before anything is written; None where none is, or where the student has begun."""
    if run.config.teacher is None or run.parts is None:
        return None
    try:
        with Checkpoints(out / "checkpoints", read_only=True) as checkpoints:
            begun = bool(checkpoints.steps())
    except FileNotFoundError:
        begun = False
    return None if begun else read_teacher(run.config, run.parts, out)


def _checkpoints(out: Path, options: Train, data: Data, layout: Layout) -> Checkpoints:
    """The checkpoints of a run, each with a copy of what else the folder has to have."""
    config = options.config
    about = {"config": hashlib.sha256(to_json(training_identity(config)).encode()).hexdigest()}
    about |= {"configuration": to_json(config), "dataset": data.samples.record(), **layout.about}
    try:
        return Checkpoints(out / "checkpoints", keep=options.keep, about=about)
    except ValueError as error:  # in use
        raise type(error)(f"out: {error}") from None


def _write_run(out: Path, options: Train, data: Data) -> None:
    """Writes what a run is, so that from here on a run cut short can be continued, and sampled without its data."""
    config = options.config
    before = _check_folder(out, config)  # again: now nobody else writes
    kept = out / "config.json"
    if before is not None and before.steps < config.steps:
        print_line(f"{out}: {_more_steps(before, config)}")
    if before != config or not kept.read_bytes().strip(b"\0 \n"):  # a power loss leaves it empty
        write_durably(kept, to_json(config))
    keep_data(out, data, hashed=_is_read(config), anew=options.accept_data)


def _more_steps(before: Config, config: Config) -> str:
    """What it means for a run to have more steps than before: what is a share of its length is another share now."""
    shares = [f"family.{name}" for name in ("warm_up", "critic_start") if getattr(config.family, name)]
    what = f"the learning rate and {' and '.join(shares)} are those" if shares else "the learning rate is that"
    return f"{before.steps} steps become {config.steps}: from here {what} of a run of {config.steps} steps"


def _train(
    options: Train,
    out: Path,
    data: Data,
    run: Run,
    layout: Layout,
    shapes: TrainState,
    checkpoints: Checkpoints,
    teacher: TrainedRun | None,
) -> None:
    config = options.config
    board = tensorboard(out / "tensorboard") if options.tensorboard and is_main() else None
    mesh = data_mesh(find_devices(options.devices))
    state, done = _begin(checkpoints, layout, shapes, out, run, teacher)
    stages = 1 if run.parts is None else run.parts.objective.stages
    each = config.steps // stages
    first = min(done // each, stages - 1)
    for stage in range(first, stages):
        if stages > 1:
            run = build_run(config, run.samples, stage)
            assert run.parts is not None
            layout = make_layout(options, run.family, make_average(config))
            log(f"stage {stage + 1} of {stages}: sampling steps {run.parts.objective.steps_of(stage)}")
            if stage and done == stage * each:
                state = layout.get_state(state) if stage == first else state  # as `train` returns it
                state = layout.move_state(next_stage(config, run.parts, state))
        draw = Preview(out / "samples", run, data, mesh, board)
        done = (stage + 1) * each
        state = _train_to(done, options, out, data, state, layout, checkpoints, draw, board)
    _finish(out, run, data, state, mesh, n=options.samples)


def _train_to(
    steps: int,
    options: Train,
    out: Path,
    data: Data,
    state: TrainState,
    layout: Layout,
    checkpoints: Checkpoints,
    draw: Preview,
    board: Any,
) -> TrainState:
    config = options.config
    return train(
        state,
        layout,
        data.source,
        steps=steps,
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
        watch=[] if board is None else [board],
        profile=None if options.profile is None else (*options.profile, out / "profile"),
        workers=config.data.workers,
        draw=None if options.sample_every is None else (options.sample_every, draw),
        handle_signals=True,
    )


def _begin(
    checkpoints: Checkpoints,
    layout: Layout,
    shapes: TrainState,
    out: Path,
    run: Run,
    teacher: TrainedRun | None,
) -> tuple[TrainState, int]:
    """The state to go on from, and its step: the newest checkpoint, read straight into place, or a fresh one."""
    config = run.config
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    done = checkpoints.latest()
    check_same({"newest checkpoint": done})
    where = "from the start" if done is None else f"from step {done}, saved before"
    log(f"{out}: {config.steps} steps {where}; {size:,} parameters; {name_devices(layout.devices)}")
    if done is not None:
        return layout.move_state(checkpoints.restore(layout.abstract(shapes))), done
    if config.teacher is None or run.parts is None:
        return layout.init(lambda: begin_from_encoder(run, fresh_state(run))), 0
    teacher = read_teacher(config, run.parts, out) if teacher is None else teacher
    return layout.put_state(begin_from_teacher(config, run.parts, fresh_state(run), teacher)), 0


def _finish(out: Path, run: Run, data: Data, state: TrainState, mesh: Mesh, *, n: int) -> None:
    """The measures, the picture (arrays, where there is none), and what to do next."""
    for line in _skipped(data):
        log(line)
    draw = Draw(run.family, sampled_params(run, state), mesh=mesh)
    results, x, cond = measure(draw, data, n=n, seed=run.config.seed)
    latents = latents_of(draw, data, seed=run.config.seed) if has_latents(run) else None
    results |= {} if latents is None else {latents.name: latents.error}
    run_on_main(lambda: _write(out, data, results, x, cond, latents))


def _write(
    out: Path,
    data: Data,
    results: dict[str, float],
    x: np.ndarray,
    cond: Cond,
    latents: Latents | None,
) -> None:
    write_durably(out / "results.json", json.dumps(results, indent=2) + "\n")
    show(results)
    samples, curve = save_samples(out / "samples", x, cond, data), out / "loss.png"
    if not has_picture(data):
        print_line(f"samples of shape {data.shape} make no picture: x is in {samples}")
    pictures = [] if latents is None or not has_picture(data) else save_latents(out, latents, data)
    drawn = f", drawn in {curve}" if save_loss(curve, out / "metrics.jsonl") else ""
    about = "".join(f"\nlatents   {path}" for path in pictures)
    measures, losses = out / "results.json", out / "metrics.jsonl"
    print_line(f"\nsamples   {samples}{about}\nmeasures  {measures}\nlosses    {losses}{drawn}")
    label = f" --label {min(3, data.classes - 1)}" if data.classes else ""
    label += ' --text "..."' if data.text is not None else ""
    label += f" --numbers{' 0' * data.numbers}" if data.numbers is not None else ""
    print_line(f"draw more: diffjax sample {quoted(out)}{label} --n 25 --out more{samples.suffix}")


def _check_folder(out: Path, config: Config) -> Config | None:
    """The configuration of the run in a folder, None where there is none; a `ValueError` where it is another run.

    The same run may have more steps than before, unless it is trained in stages, and its data elsewhere, if their
    contents can be compared.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file, not a folder")
    if not out.exists() or all(map(_is_beginning, out.iterdir())):
        return None
    before = read_config(out, "out")
    fixed = construct("loss", LOSSES, before.loss).stages > 1  # whose lengths a larger number of steps would change
    same = before if fixed else dataclasses.replace(before, steps=max(before.steps, config.steps))
    found = differences(training_identity(same), training_identity(config))
    if before.data.path != config.data.path and not (out / DATA).is_file():
        found.append(("data.path", before.data.path, config.data.path))
    if found:
        path, there, here = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(f"out: {out} holds a run with {path} {there}, not {here}{more}; name another folder")
    return before


def _is_beginning(path: Path) -> bool:
    """True if it is a remainder of a start that was interrupted before the configuration was written."""
    if path.name.startswith(LOCK):
        return True
    return path.name == "checkpoints" and path.is_dir() and all(inside.name == LOCK for inside in path.iterdir())
