"""Which solver is best at so many evaluations? All of the library's, on all grids, against the exact solution.

    python scripts/bench_solvers.py [--problems plane features images] [--nfe 5 8 10 20 40 80] [--cost]
                                    [--images cifar10.zip --count 5000 --trajectories 16]

Each denoiser is exact, so that all error is the solver's. `EDM()`, sigma from 80 to 0.002, float64, no last denoise:

    plane       8 Gaussians of std 0.1 on the unit circle                               by RMS
    features    16 Gaussians of std 0.2 in 64 dimensions, means 0.5 N(0, I)             by median, and by flips
    images      a finite set of images: scikit-learn's digits, or those in a zip file   by median, and by flips

The error of a trajectory is its root mean square over features; a flip is an error above a quarter of the data's std:
it fell to another mode. Writes

    errors.csv                        every solver, grid and budget
    pareto.csv, work_precision.png    each solver at its best grid
    summary.csv                       the best peer of each budget beside our choice
    cost.csv, by --cost               wall-clock, compilation, memory: a grid does not change them
    stochastic.csv, by --stochastic   samplers that draw noise: sliced Wasserstein distance to exact samples

What was found: the best of the published methods, each at its best grid and chosen in hindsight, and `recommended`:

                        5       8      10      20      40      80
    plane, RMS
      published      .018    .014   .0065   .0027  3.3e-4  1.9e-5    DEIS, iPNDM, then UniPC-3
      recommended   .0093   .0062   .0050  6.3e-4  3.3e-5  3.9e-7
    features, median
      published     .0074   .0053   .0029   .0012  2.4e-4  8.4e-6    iPNDM, then DEIS, then UniPC-3
      recommended   .0048   .0030   .0027  4.8e-4  6.4e-6  5.9e-8
    features, flips of 256
      published         8       3       1       0       0       0
      recommended       4       1       1       0       0       0
    images (CIFAR-10), median
      published       .31     .16  4.5e-5  6.8e-6  1.8e-6  8.9e-8    of UniPC-2, -3 (bh2), DPM++ 2M, iPNDM with 4 points
      recommended     .41  1.6e-5  9.2e-6  4.1e-6  1.0e-7  8.2e-9
    images, flips of 16
      published        13       8       4       1       0       0
      recommended      13       4       2       1       0       0

At 5 evaluations most images have flipped, and the median says little.
The reference is right to 4e-9 (plane) and 3e-8 (features) RMS, 9e-10 (images) by median. All solvers on all grids took
13 minutes on two busy cores for the first two problems; the images, five minutes for the methods named.

Your own sampler joins by one line, in your copy or from Python before calling `main`:

    SOLVERS["mine"] = lambda problem: MyStepper()                # a stepper, `diffjax.samplers.AbstractStepper`
    SOLVERS["mine"] = lambda problem: Function(my_sampler)       # (key, process, denoiser, xt, ts) -> x at ts[-1]
"""

import argparse
import csv
import io
import pathlib
import statistics
import sys
import time
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import diffjax as dj
from diffjax import metrics, process, samplers

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "helpers"))
from walk import walk

# --- problems ---


class Problem(NamedTuple):
    """What is solved: from xt [b, *d] by the flow of an exact denoiser to `exact` [b, *d], the state at t = 0."""

    name: str
    process: Any
    denoiser: Any
    xt: Any
    data_std: float
    data: Any
    """The distribution, where it can be sampled."""
    exact: Any = None


class Memorised(eqx.Module):
    """E[x0 | xt] of a finite set [N, d] by matrix products: in float64 they are exact enough, and ten times as fast."""

    data: Any
    transposed: Any
    squares: Any
    process: Any

    def __call__(self, xt, t):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        near = alpha * (xt @ self.transposed) - 0.5 * alpha**2 * self.squares
        return jax.nn.softmax(near / sigma**2, axis=1) @ self.data


def plane(trajectories, seed=0):
    angle = 2 * np.pi * np.arange(8) / 8
    return _mixture("plane", np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.1, trajectories, seed)


def features(trajectories, seed=0):
    means = 0.5 * np.random.default_rng(seed).normal(size=(16, 64))
    return _mixture("features", means, 0.2, trajectories, seed)


def _mixture(name, means, std, trajectories, seed):
    of = dj.EDM()
    data = dj.GaussianMixture(jnp.asarray(means), std**2)
    xt = dj.prior(jax.random.key(seed), of, (trajectories, means.shape[1]))
    return Problem(name, of, dj.exact_denoiser(data, of), xt, float(np.sqrt(means.var() + std**2)), data)


def images(trajectories, seed=0, path=None, count=None):
    of = dj.EDM()
    data = _digits(count) if path is None else _zipped(path, count or 5000, seed)
    xt = dj.prior(jax.random.key(seed), of, (trajectories, data.shape[1]))
    memorised = Memorised(jnp.asarray(data), jnp.asarray(data.T.copy()), jnp.asarray(np.sum(data**2, axis=1)), of)
    return Problem("images", of, memorised, xt, float(data.std()), None)


def _digits(count):
    from sklearn.datasets import load_digits

    return load_digits().data[:count] / 8 - 1


def _zipped(path, count, seed):
    """`count` images of a zip file, drawn by the seed, as [count, features] in [-1, 1]."""
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))
        chosen = np.random.default_rng(seed).permutation(len(names))[:count]
        pictures = [Image.open(io.BytesIO(archive.read(names[i]))).convert("RGB") for i in chosen]
        return np.stack([np.asarray(picture, np.float64).ravel() for picture in pictures]) / 127.5 - 1


PROBLEMS: dict[str, Callable[..., Problem]] = {"plane": plane, "features": features, "images": images}


def solved(problem, steps):
    """The problem with its exact solution, and how far from it a Runge-Kutta method of order 8 ends."""
    best = samplers.ExponentialAdams(dj.parameterisation.EDMPrediction(problem.data_std), 5, corrector=True)
    exact = _run(best, problem, dj.logsnr_grid(problem.process, steps))
    other = _run(by_diffrax(diffrax.Dopri8()), problem, dj.logsnr_grid(problem.process, max(steps // 10, 1)))
    return problem._replace(exact=exact), _errors(problem._replace(exact=exact), other)


# --- solvers and grids ---


class Function(NamedTuple):
    """Any sampler: `run(key, process, denoiser, xt, ts)` gives the state at ts[-1]; what it evaluates, counted."""

    run: Callable[..., Any]
    evaluations_per_step: int = 1
    evaluations_once: int = 0


def by_diffrax(solver):
    """A Runge-Kutta method whose last stage is the next step's first."""

    def run(key, process, denoiser, xt, ts):
        return dj.integrate(dj.probability_flow(process, denoiser), xt, ts, solver=solver).x0

    return Function(run, len(solver.tableau.b_sol) - 1, 1)


SCALES = {"bh1": samplers.bh1, "bh2": samplers.bh2, "vary": None}
PREDICTIONS = {
    "x0": lambda problem: dj.X0Prediction(),
    "eps": lambda problem: dj.EpsPrediction(),
    "v": lambda problem: dj.VPrediction(),
    "F": lambda problem: dj.parameterisation.EDMPrediction(problem.data_std),
}

PEERS: dict[str, Callable[[Problem], Any]] = {
    "DDIM": lambda problem: dj.DDIM(),
    "Euler": lambda problem: samplers.Euler(),
    "Heun": lambda problem: dj.Heun(),
    "DPM-Solver-2": lambda problem: samplers.DPMSolver(2),
    "DPM-Solver-3": lambda problem: samplers.DPMSolver(3),
    "DPM++ 2S": lambda problem: samplers.DPMpp2S(),
    "DPM++ 2M": lambda problem: dj.DPMpp2M(),
    "DPM++ 3M": lambda problem: samplers.DPMpp3M(),
    "DPM++ 3M as published": lambda problem: samplers.DPMpp3MPublished(),
    **{
        f"UniPC-{p} {name}": lambda problem, p=p, scale=scale: dj.UniPC(p, scale)
        for p in (1, 2, 3)
        for name, scale in SCALES.items()
    },
    **{f"DEIS, order {order}": lambda problem, order=order: samplers.DEIS(order) for order in (2, 3, 4)},
    **{f"LMS, order {order}": lambda problem, order=order: samplers.LMS(order) for order in (2, 3, 4)},
    **{f"iPNDM, {points} points": lambda problem, points=points: samplers.IPNDM(points) for points in (2, 3, 4)},
    "Tsit5": lambda problem: by_diffrax(diffrax.Tsit5()),
    "Dopri5": lambda problem: by_diffrax(diffrax.Dopri5()),
}

OURS: dict[str, Callable[[Problem], Any]] = {
    f"Adams {name}, order {order}": lambda problem, name=name, order=order: samplers.ExponentialAdams(
        PREDICTIONS[name](problem), order, corrector=True
    )
    for name in PREDICTIONS
    for order in range(2, 7)
    if not (name == "x0" and order < 5)  # UniPC with varying coefficients
}

SOLVERS = {**PEERS, **OURS}

GRIDS: dict[str, Callable[[Problem, int], Any]] = {
    "uniform": lambda problem, n: dj.uniform_grid(problem.process, n),  # rho = 7, for EDM
    "rho 5": lambda problem, n: dj.edm_grid(problem.process, n, 5.0),
    "rho 3": lambda problem, n: dj.edm_grid(problem.process, n, 3.0),
    "quadratic": lambda problem, n: process.quadratic_grid(problem.process, n),
    "logsnr": lambda problem, n: dj.logsnr_grid(problem.process, n),
    "shifted": lambda problem, n: process.shifted_grid(problem.process, n),
    "snr": lambda problem, n: process.snr_grid(problem.process, n, problem.data_std),
}


def default(problem, nfe):
    """The library's own choice for a budget, (stepper, grid)."""
    size = problem.xt[0].size
    smooth = problem.data is not None  # a mixture, not a finite set
    return samplers.recommended(problem.process, nfe, data_std=problem.data_std, features=size, smooth=smooth)


def _steps(solver, nfe):
    return (nfe - getattr(solver, "evaluations_once", 0)) // solver.evaluations_per_step


def _nfe(solver, steps):
    return steps * solver.evaluations_per_step + getattr(solver, "evaluations_once", 0)


def _run(solver, problem, ts, key=None):
    """The state at ts[-1]. A stepper is compiled once for every number of steps."""
    key = jax.random.key(0) if key is None else key
    given = (key, problem.process, problem.denoiser, problem.xt, ts)
    return solver.run(*given) if isinstance(solver, Function) else walk(*given, solver)


# --- errors ---


class Row(NamedTuple):
    """An error; `budget` evaluations were allowed and `nfe` used."""

    problem: str
    solver: str
    grid: str
    budget: int
    nfe: int
    rms: float
    median: float
    flipped: int


MEASURES = {"plane": ("rms",), "features": ("median", "flipped"), "images": ("median", "flipped")}


def _errors(problem, x):
    """(RMS, median, flips) over the trajectories; what is not finite is infinitely wrong."""
    difference = np.asarray(x, np.float64) - np.asarray(problem.exact)
    each = np.sqrt(np.mean(difference.reshape(len(difference), -1) ** 2, axis=1))
    each = np.where(np.isfinite(each), each, np.inf)
    return float(np.sqrt(np.mean(each**2))), float(np.median(each)), int(np.sum(each > 0.25 * problem.data_std))


def errors(problem, budgets, solvers=None, grids=None):
    """Every solver on every grid, and the library's choice: a list of `Row`."""
    solvers, grids = SOLVERS if solvers is None else solvers, GRIDS if grids is None else grids
    made, rows = {}, []  # grids, which the solvers share
    for name, factory in tqdm(solvers.items(), desc=problem.name, leave=False):
        solver = factory(problem)
        for budget in budgets:
            n = _steps(solver, budget)
            for grid in grids if n > 0 else ():
                if (grid, n) not in made:
                    made[grid, n] = np.asarray(grids[grid](problem, n))
                found = _errors(problem, _run(solver, problem, made[grid, n]))
                rows.append(Row(problem.name, name, grid, budget, _nfe(solver, n), *found))
    for budget in budgets:
        stepper, ts = default(problem, budget)
        found = _errors(problem, _run(stepper, problem, np.asarray(ts)))
        rows.append(Row(problem.name, "recommended", "", budget, _nfe(stepper, len(ts) - 1), *found))
    return rows


def best(rows, measure):
    """The row of least error of each (solver, budget)."""
    found = {}
    for row in rows:
        key = row.solver, row.budget
        if key not in found or getattr(row, measure) < getattr(found[key], measure):
            found[key] = row
    return list(found.values())


def front(rows, measure):
    """The Pareto front: rows that no other beats or equals within the same or a smaller budget."""
    chosen, lowest = [], np.inf
    for row in sorted(rows, key=lambda row: (row.budget, getattr(row, measure))):
        if getattr(row, measure) < lowest:
            chosen.append(row)
            lowest = getattr(row, measure)
    return chosen


def summary(rows):
    """(problem, measure, budget, best peer, its grid, its error, our choice, its grid, its error, their ratio).

    Our choice is `recommended`; without it, the best of our methods. Flips count as one more than they are
    in the ratio.
    """
    table = []
    for problem in dict.fromkeys(row.problem for row in rows):
        for measure in MEASURES.get(problem, ("rms",)):
            for budget in sorted({row.budget for row in rows if row.problem == problem}):
                here = [row for row in rows if (row.problem, row.budget) == (problem, budget)]
                ours = [row for row in here if row.solver == "recommended"] or [r for r in here if r.solver in OURS]
                peers = [row for row in here if row.solver in PEERS]
                if ours and peers:
                    peer, our = (min(group, key=lambda row: getattr(row, measure)) for group in (peers, ours))
                    a, b = getattr(peer, measure), getattr(our, measure)
                    ratio = (a + 1) / (b + 1) if measure == "flipped" else a / b
                    table.append((problem, measure, budget, peer.solver, peer.grid, a, our.solver, our.grid, b, ratio))
    return table


# --- samplers that draw noise ---

STOCHASTIC: dict[str, Callable[[Problem], Any]] = {
    "DDPM": lambda problem: dj.DDPM(0.0),
    "DDIM, eta 1": lambda problem: dj.DDIM(eta=1.0),
    "churn": lambda problem: samplers.Churn(10.0, 0.01, 50.0),
    "DPM-2 ancestral": lambda problem: samplers.DPM2Ancestral(),
    "DPM++ 2S ancestral": lambda problem: samplers.DPMpp2SAncestral(),
    "DPM++ SDE": lambda problem: samplers.DPMppSDE(),
    "SDE-DPM++ 2M": lambda problem: samplers.SDEDPMpp2M(),
    "SDE-DPM++ 3M": lambda problem: samplers.SDEDPMpp3M(),
    "SEEDS-2": lambda problem: samplers.SEEDS2(),
    "SEEDS-3": lambda problem: samplers.SEEDS3(),
    "SA-Solver": lambda problem: samplers.ExponentialAdams(dj.X0Prediction(), 3, corrector=True, eta=1.0),
    "Restart": lambda problem: with_restarts(problem),
    "Heun (draws nothing)": lambda problem: dj.Heun(),
}


def with_restarts(problem):
    """Heun, and two rounds of two steps from sigma = 1 to 0.1."""
    upper, lower = (problem.process.time_from_logsnr(-2 * np.log(sigma)) for sigma in (1.0, 0.1))
    restarts = [samplers.Restart(upper, lower, 2, 2)]

    def run(key, process, denoiser, xt, ts):
        return samplers.sample_with_restarts(
            key, process, denoiser, xt, ts, dj.Heun(), restarts=restarts, final_denoise=False
        )

    return Function(run, 2, 8)


def stochastic(problem, budgets, solvers=None, grids=("uniform", "logsnr")):
    """Rows (problem, solver, grid, budget, NFE, distance), the first between two sets of exact samples: the floor."""
    keys = jax.random.split(jax.random.key(1), 4)
    truth, fresh = (problem.data.sample(key, len(problem.xt)) for key in keys[:2])
    rows = [(problem.name, "exact samples", "", 0, 0, float(metrics.sliced_wasserstein(keys[2], truth, fresh)))]
    solvers = STOCHASTIC if solvers is None else solvers
    for name, factory in tqdm(solvers.items(), desc=f"{problem.name}, stochastic", leave=False):
        solver = factory(problem)
        for budget in budgets:
            n = _steps(solver, budget)
            for grid in grids if n > 3 else ():
                x = _run(solver, problem, np.asarray(GRIDS[grid](problem, n)), keys[3])
                distance = float(metrics.sliced_wasserstein(keys[2], x, truth))
                rows.append((problem.name, name, grid, budget, _nfe(solver, n), distance))
    return rows


# --- cost ---


@jax.jit
def by_hand(key, process, denoiser, xt, ts):
    """DDIM as a user would write it: the yardstick of cost."""

    def body(x, times):
        t, s = times
        keep = process.sigma(s) / process.sigma(t)
        return keep * x + (process.alpha(s) - keep * process.alpha(t)) * denoiser(x, t), None

    return jax.lax.scan(body, xt, (ts[:-1], ts[1:]))[0]


def cost(problem, nfe, repeats, solvers=None):
    """Rows (problem, solver, NFE, compile s, s a call, temporary bytes, ratio of times to DDIM by hand).

    The real `sample`, tracing included in compilation. Calls alternate with the yardstick's; medians.
    """
    rows, yardstick = [], None
    solvers = {"DDIM by hand": lambda problem: Function(by_hand), **(SOLVERS if solvers is None else solvers)}
    for name, factory in tqdm(solvers.items(), desc=f"{problem.name}, cost", leave=False):
        solver = factory(problem)
        n = _steps(solver, nfe)
        if n < 1:
            continue
        ts = np.asarray(GRIDS["logsnr"](problem, n))
        start = time.perf_counter()
        compiled = jax.jit(_call(solver, problem.process, ts)).lower(problem.denoiser, problem.xt).compile()
        seconds = time.perf_counter() - start
        yardstick = compiled if yardstick is None else yardstick
        mine, theirs = _alternate((compiled, yardstick), problem, repeats)
        memory = compiled.memory_analysis()
        temporary = None if memory is None else memory.temp_size_in_bytes
        rows.append((problem.name, name, _nfe(solver, n), seconds, mine, temporary, mine / theirs))
    return rows


def _call(solver, process, ts):
    def call(denoiser, xt):
        key = jax.random.key(0)
        if isinstance(solver, Function):
            return solver.run(key, process, denoiser, xt, ts)
        return dj.sample(key, process, denoiser, xt, ts, solver, final_denoise=False)

    return call


def _alternate(calls, problem, repeats):
    """Median seconds of each, the calls in turn; the first round, warm-up, does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call(problem.denoiser, problem.xt))
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in times]


# --- output ---

COLOURS = {
    "DDIM": "tab:blue",
    "Heun": "tab:orange",
    "DPM++ 2M": "tab:green",
    "UniPC-3 bh2": "tab:purple",
    "DEIS, order 4": "tab:brown",
    "Tsit5": "tab:pink",
    "recommended": "tab:red",
}
MORE = ("tab:cyan", "tab:olive", "gold", "navy", "magenta", "darkgreen")
"""Colours of the solvers that you name; all six in dashes, then in dots."""


def highlighted(rows, named=()):
    """{solver: style} of those that a plot labels: `COLOURS`, those in `named`, and all that are not the library's."""
    here = list(dict.fromkeys(row.solver for row in rows))
    others = [name for name in here if name not in COLOURS and (name in named or name not in {**PEERS, **OURS})]
    styles = {name: {"color": COLOURS[name], "ls": "-"} for name in here if name in COLOURS}
    for i, name in enumerate(others):
        styles[name] = {"color": MORE[i % len(MORE)], "ls": ("--", ":", "-.", "-")[i // len(MORE) % 4]}
    return styles


def draw(rows, figure=None, named=()):
    """Error against NFE, a panel for each problem (flips are left to the table), on a new figure or the one given.

    named: solvers that get a colour and a label, beside `COLOURS` and those that you have added to `SOLVERS`.
    """
    panels, styles = list(dict.fromkeys(row.problem for row in rows)), highlighted(rows, named)
    figure = Figure(figsize=(5.2 * len(panels), 4.6), layout="constrained") if figure is None else figure
    for ax, problem in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        measure = MEASURES.get(problem, ("rms",))[0]
        chosen = best([row for row in rows if row.problem == problem], measure)
        lines = {}
        for row in chosen:
            lines.setdefault(row.solver, []).append((row.nfe, getattr(row, measure)))
        for name, points in lines.items():
            style = {"lw": 1.6, "marker": "o", "ms": 3, "label": name, "zorder": 3, **styles.get(name, {})}
            style = style if name in styles else {"color": "0.8", "lw": 0.7, "zorder": 1}
            ax.plot(*np.transpose(sorted(points)), **style)
        edge = front(chosen, measure)
        heights = [getattr(row, measure) for row in edge]
        ax.plot([row.budget for row in edge], heights, "k--", lw=1, marker="s", ms=4, label="Pareto front", zorder=4)
        if set(lines) - set(styles):
            ax.plot([], [], color="0.8", lw=0.7, label="all others")
        worst = max(getattr(row, measure) for row in chosen if row.solver == "DDIM") if "DDIM" in lines else heights[0]
        ax.set(xscale="log", yscale="log", ylim=(min(heights) / 2, 5 * worst))
        ticks = sorted({row.budget for row in chosen})
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set_xlim(0.9 * ticks[0], 1.1 * ticks[-1])
        ax.set(title=f"{problem}: {measure} error", xlabel="evaluations of the denoiser")
        ax.grid(color="0.93")
    figure.axes[0].legend(fontsize=8, loc="lower left")
    return figure


def write(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def pareto(rows):
    """(problem, measure, NFE, solver, grid, error) of every point on a front."""
    table = []
    for problem in dict.fromkeys(row.problem for row in rows):
        for measure in MEASURES.get(problem, ("rms",)):
            for row in front([row for row in rows if row.problem == problem], measure):
                table.append((problem, measure, row.nfe, row.solver, row.grid, getattr(row, measure)))
    return table


SUMMARY = ("problem", "measure", "nfe", "peer", "grid", "error", "ours", "our grid", "our error", "ratio")


def show(table):
    """Prints the summary."""
    print(f"{'problem':9} {'by':8} NFE  {'best peer':32} {'error':>8}  {'ours':32} {'error':>8}  times better")
    for problem, measure, nfe, peer, grid, a, ours, our_grid, b, ratio in table:
        names = (f"{peer}, {grid}", f"{ours}, {our_grid}".rstrip(", "))
        left, right = (f"{name:32} {value:8.2g}" for name, value in zip(names, (a, b), strict=True))
        print(f"{problem:9} {measure:8} {nfe:3}  {left}  {right}  {ratio:12.2f}")


def select(group, parts):
    return {name: value for name, value in group.items() if any(part in name for part in parts)}


def study(given):
    rows, noisy, costs = [], [], []
    solvers, grids = select(SOLVERS, given.solvers), select(GRIDS, given.grids)
    for name in given.problems:
        more = {"path": given.images, "count": given.count} if name == "images" else {}
        problem = PROBLEMS[name](given.trajectories, **more)
        problem, (rms, median, flips) = solved(problem, given.reference_steps)
        print(f"{name}: {len(problem.xt)} trajectories, data std {problem.data_std:.4f}; from the reference")
        print(f"  Dopri8, at a tenth of its steps, differs by RMS {rms:.1e}, median {median:.1e}, {flips} flips")
        rows += errors(problem, given.nfe, solvers, grids)
        write(given.out / "errors.csv", Row._fields, rows)
        if given.cost:
            costs += cost(problem, given.cost_nfe, given.repeats, solvers)
            header = ("problem", "solver", "nfe", "compile_s", "seconds", "temp_bytes", "ratio_to_by_hand")
            write(given.out / "cost.csv", header, costs)
        if given.stochastic and problem.data is not None:
            many = dj.prior(jax.random.key(2), problem.process, (2000, *problem.xt.shape[1:]))
            noisy += stochastic(problem._replace(xt=many), given.nfe, select(STOCHASTIC, given.solvers))
            header = ("problem", "solver", "grid", "budget", "nfe", "sliced_wasserstein")
            write(given.out / "stochastic.csv", header, noisy)
    write(given.out / "pareto.csv", ("problem", "measure", "nfe", "solver", "grid", "error"), pareto(rows))
    write(given.out / "summary.csv", SUMMARY, summary(rows))
    draw(rows, named=[] if given.solvers == [""] else list(solvers)).savefig(given.out / "work_precision.png", dpi=150)
    show(summary(rows))
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/bench_solvers"))
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10, 20, 40, 80])
    parser.add_argument("--solvers", nargs="+", default=[""], help="parts of the names of those wanted")
    parser.add_argument("--grids", nargs="+", default=[""], help="parts of the names of those wanted")
    parser.add_argument("--trajectories", type=int, default=256)
    parser.add_argument("--images", type=pathlib.Path, help="a zip file of images of one size; default: the digits")
    parser.add_argument("--count", type=int, help="how many images: all digits, or 5000 of the file")
    parser.add_argument("--reference-steps", type=int, default=3000, help="of the exact solution, at most 4096")
    parser.add_argument("--cost", action="store_true", help="measure time, compilation and memory too")
    parser.add_argument("--cost-nfe", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=21, help="timed calls")
    parser.add_argument("--stochastic", action="store_true", help="measure the samplers that draw noise too")
    parser.add_argument("--quick", action="store_true", help="a few solvers, in seconds")
    given = parser.parse_args(arguments)
    if given.quick:
        given.problems, given.nfe, given.grids = ["plane", "images"], [5, 10], ["snr"]
        given.solvers, given.trajectories, given.reference_steps = ["DDIM", "Adams F, order 3"], 32, 300
    with jax.enable_x64(True):
        return study(given)


if __name__ == "__main__":
    main()
