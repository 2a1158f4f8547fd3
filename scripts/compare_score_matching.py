"""Four ways to learn one score: implicit, sliced, denoising and NCSN losses on a mixture in the plane.

    python scripts/compare_score_matching.py [--steps 3000] [--out runs/compare_score_matching]

The same small network, told of the noise level, learns s(x, t) = grad log p_t under the VE process, with the same
optimiser, steps, batch and noise, weighted by sigma^2. Implicit (exact trace) and sliced (variance-reduced, one
Rademacher projection) see samples of p_t alone; denoising and NCSN (ten levels) see the noise too. Each field is
compared with the mixture's exact score at samples of p_t. Writes errors.csv and fields.png.

Two minutes on two CPU cores. Seed 0 gives, as root-mean-square errors relative to the score's own:

    loss         logsnr 4      2      0     -2    ms a step
    implicit        0.079  0.087  0.061  0.048          8.0
    sliced (vr)     0.095  0.093  0.070  0.042          4.7
    denoising       0.069  0.072  0.039  0.027          2.3
    NCSN            0.077  0.069  0.039  0.024          2.4

An implicit step takes one forward product for each dimension, a sliced one a single product in any dimension, the
other two none. The fields differ where there is no data, which is where no loss looks.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import diffjax as dj
from diffjax import losses, networks, viz
from diffjax.parameterisation import apply_network

BATCH, LEVELS, CHUNK = 256, 10, 50
LOGSNRS = (4.0, 2.0, 0.0, -2.0)
SHOWN = 2.0  # the logsnr of the picture
PROCESS = dj.VarianceExploding(0.1, 4.0)  # logsnr from 4.6 to -2.8
NETWORK = dj.from_linen(networks.MLP(width=64, depth=2))
DIFFUSION = dj.Diffusion(NETWORK, PROCESS, dj.EpsPrediction())


def mixture():
    """Three unequal components of full covariance."""
    covariances = jnp.array([[[0.06, 0.03], [0.03, 0.1]], [[0.25, 0.0], [0.0, 0.04]], [[0.05, -0.02], [-0.02, 0.05]]])
    return dj.GaussianMixture(
        jnp.array([[1.2, 0.3], [-1.0, 1.0], [-0.2, -1.2]]), covariances, jnp.array([0.4, 0.35, 0.25])
    )


def learned_score(params, xt, t):
    """s = -eps_hat/sigma [b, 2], at xt [b, 2] and t [b]."""
    return -apply_network(DIFFUSION, params, xt, t) / PROCESS.sigma(t)[:, None]


def at_p_t(loss):
    """A loss that knows samples of p_t alone, as a function of data: sigma^2 times it, at times of the whole clock."""

    def from_data(params, key, x0):
        t_key, eps_key, loss_key = jax.random.split(key, 3)
        t, _ = dj.UniformTimes(PROCESS)(t_key, len(x0))
        xt = dj.perturb(PROCESS, x0, jax.random.normal(eps_key, x0.shape), t)
        aux = loss(params, loss_key, xt, score_apply=lambda params, xt: learned_score(params, xt, t))[1]
        return jnp.mean(PROCESS.sigma(t) ** 2 * aux["per_sample"])

    return from_data


def denoising(params, key, x0):
    times = dj.UniformTimes(PROCESS)
    return dj.denoising_loss(DIFFUSION, params, key, x0, times=times, weighting=losses.constant)[0]


def ncsn(params, key, x0):
    ts = jnp.linspace(1.0, 0.0, LEVELS)
    return losses.noise_conditional_loss(DIFFUSION, params, key, x0, ts=ts)[0] / LEVELS


LOSSES = {
    "implicit": at_p_t(losses.implicit_score_matching),
    "sliced (vr)": at_p_t(losses.sliced_score_matching_vr),
    "denoising": denoising,
    "NCSN": ncsn,
}


def train(loss, steps, seed):
    """Parameters, averaged over the end of training, and a function that takes CHUNK steps more, to be timed."""
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    data, key = mixture(), jax.random.key(seed)
    params = NETWORK.init(jax.random.fold_in(key, 0), jnp.zeros((BATCH, 2)), jnp.zeros(BATCH), None)

    def step(carry, number):
        params, state, average = carry
        data_key, loss_key = jax.random.split(jax.random.fold_in(key, number))
        gradient = jax.grad(loss)(params, loss_key, data.sample(data_key, BATCH))
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state, optax.incremental_update(params, average, 0.01)), None

    chunk = jax.jit(lambda carry, first: jax.lax.scan(step, carry, first + jnp.arange(CHUNK))[0])
    carry = (params, tx.init(params), params)
    for first in tqdm(range(1, steps + 1, CHUNK), leave=False):
        carry = chunk(carry, first)
    return carry[2], lambda: jax.block_until_ready(chunk(carry, 1))


def milliseconds(runs, repeats=9):
    """The median time of a step by each of `runs`, which take turns."""
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(each) / CHUNK for name, each in seconds.items()}


@jax.jit
def errors(params, x0, eps):
    """Relative root-mean-square errors of the score at LOGSNRS: sqrt(E||s - s*||^2 / E||s*||^2)."""

    def one(value):
        t = jnp.full(len(x0), PROCESS.time_from_logsnr(value))
        xt = dj.perturb(PROCESS, x0, eps, t)
        exact = mixture().score(PROCESS, xt, t)
        return jnp.sqrt(jnp.mean((learned_score(params, xt, t) - exact) ** 2) / jnp.mean(exact**2))

    return jax.lax.map(one, jnp.array(LOGSNRS))


def draw(path, fields, rows):
    """Each field over the density at the logsnr SHOWN, the exact one below it in red; and the errors by noise level."""
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    t = PROCESS.time_from_logsnr(SHOWN)
    at_t = {name: lambda x, f=field: f(x, jnp.full(len(x), t)) for name, field in fields.items()}
    for ax, (name, field) in zip(panels, at_t.items(), strict=False):
        viz.density(lambda x: mixture().log_prob(PROCESS, x, t), ax=ax)
        for one, colour, width in ((at_t["exact"], "tab:red", 0.0055), (field, "black", 0.003)):
            quiver: Any = viz.arrows(one, ax=ax).collections[-1]
            quiver.set_color("black" if name == "exact" else colour)
            quiver.scale, quiver.width = 150, 0.003 if name == "exact" else width
        ax.set(title=name, xticks=[], yticks=[])
    for name, _, *each in rows:
        panels[-1].plot(LOGSNRS, each, marker="o", label=name)
    panels[-1].set(xlabel="logsnr (data to the right)", title="relative RMS error of the score", ylim=(0, None))
    panels[-1].grid(alpha=0.3)
    panels[-1].legend()
    sigma = float(PROCESS.sigma(t))
    figure.suptitle(f"Scores at logsnr {SHOWN:g} (sigma {sigma:.2f}) over the density there: learned black, exact red")
    figure.savefig(path, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help=f"optimiser steps for each loss, in chunks of {CHUNK}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_score_matching"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    x_key, eps_key = jax.random.split(jax.random.key(options.seed + 1))
    x0, eps = mixture().sample(x_key, 20000), jax.random.normal(eps_key, (20000, 2))
    fields, runs, found = {"exact": lambda x, t: mixture().score(PROCESS, x, t)}, {}, {}
    for name, loss in LOSSES.items():
        print(f"training: {name}")
        params, runs[name] = train(loss, options.steps, options.seed)
        fields[name] = lambda x, t, params=params: learned_score(params, x, t)
        found[name] = np.asarray(errors(params, x0, eps)).tolist()
    rows = [[name, each, *found[name]] for name, each in milliseconds(runs).items()]
    head = ["loss", "ms a step", *(f"error at logsnr {value:g}" for value in LOGSNRS)]
    print("  ".join(head))
    for name, *numbers in rows:
        print(f"{name:12}" + "".join(f"{value:10.3f}" for value in numbers))
    with open(options.out / "errors.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *([row[0], *(f"{v:.4g}" for v in row[1:])] for row in rows)])
    draw(options.out / "fields.png", fields, rows)
    print(f"written: {options.out}/errors.csv, {options.out}/fields.png")


if __name__ == "__main__":
    main()
