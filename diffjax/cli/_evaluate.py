"""`diffjax evaluate`: a run is measured again, at another guidance, with other steps, or by its likelihood."""

import os
from pathlib import Path

from diffjax.cli._draw import Draw
from diffjax.cli._folder import check_data
from diffjax.cli._hosts import log, start_processes
from diffjax.cli._measure import measure, measure_alignment, measure_likelihood, show
from diffjax.cli._options import Evaluate
from diffjax.cli._run import each_steps, open_run, read_trained, sampling_options
from diffjax.config import Config, Data, FactorReader, Run, build_data, check_seed, factor_reader
from diffjax.config._sampling import learned_parts
from diffjax.training import is_main, sync_errors


def run_evaluate(options: Evaluate, argv: list[str]) -> None:
    """Prints the measures of a run."""
    start_processes(options, options.chunk)
    for name, value, least in (("n", options.n, 2), ("likelihood", options.likelihood, 0)):
        if value < least:
            raise ValueError(f"{name}: at least {least}, got {value}")
    check_seed("seed", options.seed)
    if options.likelihood == 1:
        raise ValueError("likelihood: 0, or at least 2 for a standard error, got 1")
    found = open_run(options.run, options.chunk)
    given = sampling_options(options, found)
    if options.likelihood and found.family.log_bound is None:
        raise ValueError(f"likelihood: this run ({_model(found)}) has none, 0 is needed, got {options.likelihood}")
    data = sync_errors(lambda: _read_data(options, found.config))
    if options.likelihood > len(data.held_out[0]):
        raise ValueError(f"likelihood: {len(data.held_out[0])} items are held out, got {options.likelihood}")
    _check_factors(options, data)
    run, params = read_trained(options.run, found, options.ema_width)
    results, budgets = {}, options.sampler.steps or ()
    draws = {  # all of them, so that a number of steps that does not fit is refused before anything is drawn
        steps: Draw(run.family, params, each, chunk=options.chunk) for steps, each in each_steps(given, budgets).items()
    }
    for steps, draw in draws.items():
        named = f"{steps} step{'s' if steps != 1 else ''}: " if len(budgets) > 1 else ""
        results |= _named(named, _measure(options, draw, data))
    draw = next(iter(draws.values()))
    if options.likelihood:
        process = None if run.parts is None else learned_parts(run.parts, draw.params)[0].process
        results |= measure_likelihood(draw, data, options.likelihood, options.seed, process)
    results |= _measure_teacher(options, run.config, data)
    if is_main():
        show(results)


def _measure(options: Evaluate, draw: Draw, data: Data) -> dict[str, float]:
    """Distances to what was held out, and of scenes what samples show of their captions."""
    results, x, _ = measure(draw, data, n=options.n, seed=options.seed)
    if data.factors is None:
        return results
    scenes, folder = data.scenes, Path(options.factors or Path(options.run) / "factors")
    assert scenes is not None

    def reader() -> FactorReader:
        try:
            return factor_reader(scenes, folder, report=log)
        except ValueError as error:
            raise ValueError(f"factors: {str(error).removeprefix('folder: ')}") from None

    return results | measure_alignment(draw, data, reader, x, options.seed)


def _check_factors(options: Evaluate, data: Data) -> None:
    """Refuses what would be found out after minutes of drawing and training."""
    if options.factors is None:
        return
    if data.factors is None:
        raise ValueError(f"factors: for runs of shapes and digit_scenes with captions alone, got {options.factors}")
    if not options.factors or (Path(options.factors).exists() and not Path(options.factors).is_dir()):
        raise ValueError(f"factors: the name of a folder is needed, got {options.factors!r}")


def _model(run: Run) -> str:
    """What kind of model a run is, for a message."""
    return run.config.loss.name if run.parts is not None else f"family {run.config.family.name}"


def _named(prefix: str, results: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in results.items()}


def _measure_teacher(options: Evaluate, config: Config, data: Data) -> dict[str, float]:
    """The same measures of the run that this one was distilled from, sampled as that one is; none if it is gone."""
    if config.teacher is None:
        return {}
    path = os.path.relpath(Path(options.run) / config.teacher)
    if not sync_errors(lambda: Path(path).is_dir()):
        log(f"teacher: {path} no longer exists; only the student is measured")
        return {}
    run, params = read_trained(path, open_run(path, options.chunk))
    draw = Draw(run.family, params, chunk=options.chunk)
    found = _measure(options, draw, data)
    sampler = run.config.sampler
    only = {name: value for name, value in found.items() if "floor" not in name and "ceiling" not in name}
    return _named(f"teacher, {sampler.steps} steps of {sampler.name}: ", only)


def _read_data(options: Evaluate, config: Config) -> Data:
    """The data of a run, which are what it was trained on."""
    try:
        data = build_data(config.data)
    except (OSError, ValueError) as error:
        raise ValueError(f"run: {options.run} is measured against its data, which cannot be read: {error}") from None
    if (place := config.data.path or config.data.text) is not None:
        check_data(Path(options.run), place, data, "run", accept=options.accept_data)
    return data
