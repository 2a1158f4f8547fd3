# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which solver, which grid?
#
# Sampling solves an ordinary differential equation, and every evaluation of its right-hand side is a call of the
# network. Here the denoiser is exact, so that what is left is the solver's own error: we measure it for several solvers
# and grids at equal numbers of evaluations (NFE), then let a sampler of our own join by one line.
#
# The functions are those of `scripts/bench_solvers.py`, which does the same for every solver of the library, and for
# the exact denoiser of 5,000 CIFAR-10 images.

# %%
import os
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)  # errors down to 1e-6 of the data are looked at
here = Path(__file__).parent if "__file__" in globals() else Path.cwd()  # a script, or a notebook in its own folder
sys.path.insert(0, str(here.parent / "scripts"))
import bench_solvers as bench

import diffjax as dj

FAST = os.environ.get("DIFFJAX_FAST") == "1"
NFE = [5, 20] if FAST else [5, 8, 10, 20, 40, 80]
TRAJECTORIES = 32 if FAST else 256

# %% [markdown]
# ## The problems and their exact solution
#
# A ring of eight Gaussians in the plane, and scikit-learn's handwritten digits as a finite set, whose denoiser
# E[x0 | xt] is a weighted mean of all images. Noise of sigma = 80 is carried to sigma = 0.002. The reference comes from
# a method of order 5 at many steps; one of order 3 at as many steps agrees with it.

# %%
problems = {}
for name in ("plane", "images"):
    problem, (rms, median, flips) = bench.solved(bench.PROBLEMS[name](TRAJECTORIES), 300 if FAST else 2000)
    problems[name] = problem
    print(f"{name}: data std {problem.data_std:.3f}; another method differs by RMS {rms:.1e}, {flips} flips")

# %% [markdown]
# ## A sampler of your own
#
# Anything that carries the state down a grid can join, by one line. This one is Euler's method in sigma/alpha, written
# by hand; it must agree with DDIM, which is the same method.


# %%
@jax.jit
def my_sampler(key, process, denoiser, xt, ts):
    def step(x, times):
        t, s = times
        keep = process.sigma(s) / process.sigma(t)
        return keep * x + (process.alpha(s) - keep * process.alpha(t)) * denoiser(x, t), None

    return jax.lax.scan(step, xt, (ts[:-1], ts[1:]))[0]


bench.SOLVERS["mine"] = lambda problem: bench.Function(my_sampler)

# %% [markdown]
# A stepper (`diffjax.samplers.AbstractStepper`) joins the same way, and runs compiled. Here DPM++ 2M, had it not been
# there: the exponential Adams family makes it, and many others, from what is interpolated and to what order.

# %%
bench.SOLVERS["my stepper"] = lambda problem: dj.samplers.ExponentialAdams(dj.X0Prediction(), 2)

# %% [markdown]
# ## Errors
#
# The error of a trajectory is its distance to the exact one, as a root mean square over features. A flip is one that
# ends in another mode, or at another image.

# %%
names = ["DDIM", "DPM++ 2M", "Adams F, order 4", "mine", "my stepper"]
if not FAST:
    names += ["Heun", "UniPC-3 bh2", "DEIS, order 4", "Tsit5"]
grids = {name: bench.GRIDS[name] for name in (["uniform", "snr"] if FAST else ["uniform", "logsnr", "snr"])}
rows = []
for problem in problems.values():
    rows += bench.errors(problem, NFE, {name: bench.SOLVERS[name] for name in names}, grids)

for row in rows:
    if row.problem == "plane" and row.budget == 20:
        print(f"{row.solver:18} {row.grid:8} {row.nfe:3} NFE   RMS {row.rms:.2e}   flipped {row.flipped}")

# %% [markdown]
# ## Work-precision plot and Pareto front
#
# Each solver at the grid that is best for it at that budget. The front joins those that nothing beats at as few
# evaluations. "mine" is DDIM and "my stepper" nearly DPM++ 2M: their lines lie on each other.

# %%
figure = bench.draw(rows, plt.figure(figsize=(10.4, 5.2), layout="constrained"), named=names)

# %%
for problem, measure, nfe, solver, grid, error in bench.pareto(rows):
    print(f"{problem:7} {measure:8} {nfe:3} NFE   {solver:18} {grid:8} {error:.2g}")

# %% [markdown]
# The best of the published methods at each budget, at its best grid, beside the library's own (of those that ran here).
# Where the data are a few points the data prediction is hard to beat, for between them the denoiser is constant; where
# they have a width, F is better.

# %%
bench.show(bench.summary(rows))

# %% [markdown]
# ## Cost
#
# Wall-clock after warm-up, compilation and temporary memory of the real `sample`, at 20 evaluations. What a solver adds
# to the denoiser's calls is a few multiplications: the ratio to DDIM as a loop by hand stays near 1 wherever the
# denoiser costs more than they do.

# %%
for _, solver, nfe, compile_s, seconds, temporary, ratio in bench.cost(
    problems["images"], 20, 3 if FAST else 21, {name: bench.SOLVERS[name] for name in names[: 2 if FAST else 4]}
):
    print(
        f"{solver:18} {nfe:3} NFE   compile {compile_s:5.2f} s   call {1e3 * seconds:7.2f} ms ({ratio:4.2f} of by hand)"
        f"   temporary memory {temporary / 1e6:6.2f} MB"
    )
