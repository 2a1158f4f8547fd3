"""`diffjax train`: a preset becomes a run, which the same command continues.

RUN/config.json  RUN/checkpoints/  RUN/metrics.jsonl  RUN/samples.png  RUN/results.json
RUN/data.json, for a data file: its digest     RUN/lock, while it trains: the pid
"""

import json
from pathlib import Path

import jax

from diffjax.cli._devices import find_devices, name_devices, use_cores
from diffjax.cli._draw import Draw
from diffjax.cli._folder import LOCK, check_data, keep_digest, lock_run
from diffjax.cli._measure import measure, show
from diffjax.cli._options import EVALUATED, Train
from diffjax.cli._picture import has_picture, save_arrays, save_measured
from diffjax.cli._run import fresh_state, read_config, write_file
from diffjax.config import Config, Data, Parts, build, build_data, differences, to_json
from diffjax.training import (
    Checkpoints,
    Layout,
    TrainState,
    data_mesh,
    jit_layout,
    make_ema,
    make_train_step,
    pmap_layout,
    train,
)


def run_train(options: Train, argv: list[str]) -> None:
    """Trains, or goes on where the run stopped; then draws samples and measures them."""
    config = options.config
    out = Path(options.out or f"runs/{config.name}")
    for name, value in {"save-every": options.save_every, "log-every": options.log_every}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    use_cores(config.batch_size, options.devices)
    if options.compile_cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(options.compile_cache).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    _check_folder(out, config)
    data = build_data(config.data)
    parts = build(config, data.classes)
    state = fresh_state(config, data, parts)
    layout = _layout(config, parts, options)
    if config.data.path is not None:
        check_data(out, config.data.path, data, "out")
    out.mkdir(parents=True, exist_ok=True)
    with lock_run(out):
        _check_folder(out, config)  # again: now nobody else writes
        _train(options, out, data, parts, state, layout)


def _train(options: Train, out: Path, data: Data, parts: Parts, state: TrainState, layout: Layout) -> None:
    config = options.config
    if not (out / "config.json").exists():  # first of all, so that a run cut short from here on can be continued
        write_file(out / "config.json", to_json(config))
    if config.data.path is not None:
        keep_digest(out, data)
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
    print(f"{out}: {config.steps} steps {where}; {size:,} parameters; {name_devices(devices)}", flush=True)
    return state if done is None else checkpoints.restore(state)


def _finish(out: Path, config: Config, data: Data, parts: Parts, state: TrainState) -> None:
    """The measures, the picture (arrays, where there is none), and what to do next."""
    print("drawing and measuring samples ...", flush=True)
    draw = Draw(config, data, parts, state.ema)
    results, x, labels = measure(draw, data, n=EVALUATED, seed=config.seed)
    write_file(out / "results.json", json.dumps(results, indent=2) + "\n")
    show(results)
    picture = has_picture(data)
    samples = out / ("samples.png" if picture else "samples.npz")
    if picture:
        save_measured(samples, x, labels, data)
    else:
        save_arrays(samples, x, labels)
        print(f"samples of shape {data.shape} make no picture: x is in {samples}")
    print(f"\nsamples   {samples}\nmeasures  {out / 'results.json'}\nlosses    {out / 'metrics.jsonl'}")
    label = " --label 3" if data.classes else ""
    print(f"draw more: diffjax sample {out}{label} --n 25 --out more{samples.suffix}")


def _check_folder(out: Path, config: Config) -> None:
    """Raises `ValueError` where a folder holds something else than this run."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file, not a folder")
    if not out.exists() or all(path.name.startswith(LOCK) for path in out.iterdir()):
        return
    found = differences(read_config(out, "out"), config)
    if found:
        path, there, here = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(f"out: {out} holds a run with {path} {there}, not {here}{more}; name another folder")


def _layout(config: Config, parts: Parts, options: Train) -> Layout:
    devices = find_devices(options.devices)
    if config.batch_size % len(devices):
        raise ValueError(f"batch_size: {config.batch_size} cannot be split evenly over {len(devices)} devices")
    ema = make_ema(config.ema_decay)
    if options.layout == "pmap":
        return pmap_layout(make_train_step(parts.loss, parts.tx, ema=ema, axis_name="data"), devices)
    return jit_layout(make_train_step(parts.loss, parts.tx, ema=ema), data_mesh(devices))
