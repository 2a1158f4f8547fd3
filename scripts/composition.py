"""Densities composed from denoisers: what a sampler alone makes of them, and what Langevin corrections make of them.

    python scripts/composition.py [--out runs/composition] [--samples 4000] [--steps 60] [--corrections 12]

A product of two Gaussian mixtures is a Gaussian mixture, and so is a mixture over a power of a Gaussian, so exact
samples are known. Sliced Wasserstein distance to 20 000 of them; the floor is that of as many exact samples as are
drawn, 4000 (mean of four sets):

                        p q     p/r^0.6
    floor               0.017   0.024
    flow of the sum     0.679   2.891     the sum of scores, which collapses or explodes: its weights sum to 2 and 0.4
    flow of the mean    0.130   0.302     weights scaled to sum to 1: what classifier-free guidance follows
    1 correction        0.053   0.092     60 steps of DDIM by the mean, Langevin steps by the sum after each
    12 corrections      0.028   0.020

`composition.png` shows the samples. About 60 s of computing on one CPU core.
"""

import argparse
import csv
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import diffjax as dj
from diffjax import guidance, samplers, viz
from diffjax.metrics import sliced_wasserstein

# (weight, mean, covariance) of each component
SHAPES = [
    (0.35, [1.0, 0.3], [[0.1, 0.0], [0.0, 0.3]]),
    (0.35, [-0.9, 0.5], [[0.3, 0.1], [0.1, 0.1]]),
    (0.3, [0.0, -0.9], [[0.3, 0.0], [0.0, 0.08]]),
]
OTHER = [(0.5, [0.6, 0.0], [[0.4, 0.1], [0.1, 0.5]]), (0.5, [-0.6, -0.3], [[0.35, 0.0], [0.0, 0.4]])]
UNWANTED = [(1.0, [0.6, 0.4], [[0.7, 0.1], [0.1, 0.7]])]
WEIGHT = 0.6


def distribution(components):
    weights, means, covariances = (jnp.asarray(np.array(part)) for part in zip(*components, strict=True))
    return dj.GaussianMixture(means, covariances, weights)


def composed(first, second, power):
    """first * second^power as a mixture; a power other than 1 needs a second of one component."""
    logs, parts = [], []
    for weight, mean, covariance in first:
        for weight_2, mean_2, covariance_2 in second:
            precision, precision_2 = np.linalg.inv(covariance), power * np.linalg.inv(covariance_2)
            both = np.linalg.inv(precision + precision_2)
            shift = precision @ mean + precision_2 @ mean_2
            centre = both @ shift
            exponent = shift @ centre - mean @ precision @ mean - mean_2 @ precision_2 @ mean_2
            size = np.linalg.det(both) / np.linalg.det(covariance)
            logs.append(np.log(weight * weight_2) + 0.5 * (exponent + np.log(size)))
            # what is left out, (2 pi)^... det(covariance_2)^(-power/2), differs between components of `second`
            logs[-1] -= 0.5 * power * np.linalg.slogdet(covariance_2)[1]
            parts.append((centre, both))
    weights = np.exp(np.array(logs) - max(logs))
    return distribution([(w, *part) for w, part in zip(weights / weights.sum(), parts, strict=True)])


def study(n, steps, corrections):
    """{case: {method: samples [n, 2]}}, the exact ones first, and {case: {method: distance}}."""
    process = dj.VariancePreserving()
    p, other, unwanted = (dj.exact_denoiser(distribution(parts), process) for parts in (SHAPES, OTHER, UNWANTED))
    cases = {
        "p q": (guidance.product(process, [p, other]), composed(SHAPES, OTHER, 1.0)),
        f"p/r^{WEIGHT}": (guidance.negation(process, p, unwanted, WEIGHT), composed(SHAPES, UNWANTED, -WEIGHT)),
    }
    few, many = (samplers.LangevinCorrected(dj.DDIM(), k, 0.4) for k in (1, corrections))
    low, high = (process.time_from_logsnr(jnp.asarray(value)) for value in (6.0, -6.0))
    ts = np.asarray(dj.logsnr_grid(process, steps, ends=(high, low)))
    xt = dj.prior(jax.random.key(1), process, (n, 2))
    points: dict[str, dict[str, Any]] = {}
    distances: dict[str, dict[str, float]] = {}
    for name, (denoiser, truth) in cases.items():
        draw = lambda d, stepper: dj.sample(jax.random.key(2), process, d, xt, ts, stepper)
        points[name] = {
            "exact": truth.sample(jax.random.key(3), n),
            "flow of the sum": draw(denoiser, dj.DDIM()),
            "flow of the mean": draw(denoiser.normalised(), dj.DDIM()),
            "1 correction": draw(denoiser, few),
            f"{corrections} corrections": draw(denoiser, many),
        }
        exact = truth.sample(jax.random.key(4), 20_000)
        distance = lambda x, exact=exact: float(sliced_wasserstein(jax.random.key(5), x, exact))
        distances[name] = {method: distance(x) for method, x in points[name].items()}
        distances[name]["exact"] = sum(distance(truth.sample(jax.random.key(k), n)) for k in range(6, 10)) / 4
    return points, distances


def draw_all(path, points):
    """One row a case, one column a method."""
    columns = len(next(iter(points.values())))
    figure = Figure(figsize=(2.6 * columns, 2.7 * len(points)), layout="constrained")
    axes = figure.subplots(len(points), columns)
    for row, (case, methods) in zip(axes, points.items(), strict=True):
        for ax, (method, x) in zip(row, methods.items(), strict=True):
            viz.scatter(np.asarray(x), size=0.5, ax=ax)
            ax.set(title=f"{case}, {method}", xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
    figure.savefig(path, dpi=120)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/composition"))
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--corrections", type=int, default=12)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    points, distances = study(options.samples, options.steps, options.corrections)
    with open(options.out / "distances.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["density", *next(iter(distances.values()))])
        writer.writerows([case, *methods.values()] for case, methods in distances.items())
    for case, methods in distances.items():
        for method, distance in methods.items():
            print(f"{case:10} {method:20} {distance:8.4f}" + ("   the floor" if method == "exact" else ""))
    draw_all(options.out / "composition.png", points)
    return distances


if __name__ == "__main__":
    main()
