"""`diffjax evaluate`: a run is measured again, at another guidance, with other steps, or by its likelihood."""

from pathlib import Path

from diffjax.cli._draw import Draw, check_scale, grid
from diffjax.cli._folder import check_data
from diffjax.cli._hosts import start_together
from diffjax.cli._measure import measure, measure_likelihood, show
from diffjax.cli._options import Evaluate
from diffjax.cli._run import open_run, read_params
from diffjax.config import check_seed
from diffjax.training import agree, is_main


def run_evaluate(options: Evaluate, argv: list[str]) -> None:
    """Prints the measures of a run."""
    start_together(options, options.chunk)
    for name, value, least in (("n", options.n, 2), ("steps", options.steps, 1), ("likelihood", options.likelihood, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}: at least {least}, got {value}")
    check_seed("seed", options.seed)
    if options.likelihood == 1:
        raise ValueError("likelihood: 0, or at least 2 for a standard error, got 1")
    config, data, parts = open_run(options.run, options.chunk)
    if config.data.path is not None:
        folder, path = Path(options.run), config.data.path
        agree(lambda: check_data(folder, path, data, "run", accept=options.accept_data))
    if options.likelihood > len(data.held_out[0]):
        raise ValueError(f"likelihood: {len(data.held_out[0])} items are held out, got {options.likelihood}")
    scale = check_scale(options.guidance, data.classes)
    ts = grid(config, parts, options.steps)
    params = read_params(options.run, config, data, parts, options.ema_width)
    draw = Draw(config, data, parts, params, scale=scale, ts=ts, chunk=options.chunk)
    results, _, _ = measure(draw, data, n=options.n, seed=options.seed)
    if options.likelihood:
        results |= measure_likelihood(draw, data, options.likelihood, options.seed)
    if is_main():
        show(results)
