"""A density on its way to noise: the Fokker-Planck equation, a million simulated paths, and the exact answer.

    python scripts/fokker_planck.py [--out runs/fokker_planck] [--paths 1000000] [--cells 240] [--frames 41]

A bimodal start under the VP and the Ornstein-Uhlenbeck process. Writes `movie.gif` (the solver's density as a line, the
paths' histogram as bars, 1/10 second a frame) and `middle.png` (its frame in the middle), and prints the L1 distances:

    to the exact density       VP 5.2e-4, OU 5.2e-4   below 1e-3 at every time
    to 10^6 simulated paths    VP 5.1e-3, OU 5.3e-3   below 1e-2 at every time; sampling alone leaves up to 4.4e-3

Three minutes on two busy CPU cores, 130 s of it computing, mostly paths. Their distances are sums over bins: the floor
is sqrt(2 bins/(pi paths)), and Euler-Maruyama's own error is of first order in its steps.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from tqdm import tqdm

import diffjax as dj
from diffjax.analytic import Box, cell_averages, cell_centres, fokker_planck
from diffjax.process import OrnsteinUhlenbeck

matplotlib.use("agg")
import matplotlib.pyplot as plt
from PIL import Image

LOW, HIGH = -6.0, 6.0
PROCESSES = {"VP": dj.VariancePreserving(), "OU": OrnsteinUhlenbeck()}


def start() -> dj.GaussianMixture:
    """Two bumps of unequal weight, width and distance from the middle."""
    return dj.GaussianMixture(jnp.array([[-1.0], [1.2]]), jnp.array([0.09, 0.16]), jnp.array([1.0, 2.0]))


def times(process, steps):
    """Equal steps in time [steps + 1] to where alpha = exp(-2): 86 % of the data is forgotten."""
    fine = np.linspace(0, 1, 100_001)
    return np.linspace(0, np.interp(2, -np.log(np.asarray(process.alpha(jnp.asarray(fine)))), fine), steps + 1)


def histograms(process, ts, every, paths, bins, chunk=50_000):
    """The shares of simulated paths in each bin, [frames, bins], at every so many of the times ts."""
    edges = jnp.linspace(LOW, HIGH, bins + 1)

    @jax.jit
    def count(x):
        return jax.vmap(lambda x: jnp.histogram(x, edges)[0])(x[::every, :, 0])

    total = 0
    for begin in tqdm(range(0, paths, chunk), desc="paths", leave=False):
        n = min(chunk, paths - begin)
        x0_key, path_key = jax.random.split(jax.random.fold_in(jax.random.key(0), begin))
        total = total + np.asarray(count(dj.process.simulate(path_key, process, start().sample(x0_key, n), ts)))
    return total / paths


def solve(process, ts, cells):
    """The solver's density and the exact one, each [frames, cells], in float64."""
    with jax.enable_x64(True):
        process, data, box = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64), (process, start(), Box(LOW, HIGH, cells))
        )
        low, _ = process.interval()
        exact = jax.jit(lambda t: cell_averages(box, lambda x: data.log_prob(process, x, t)))
        truth = np.stack([exact(jnp.maximum(t, low)) for t in ts])
        found = np.asarray(fokker_planck(process, box, jnp.asarray(truth[0]), ts))
        return np.asarray(cell_centres(box))[:, 0], found, truth


def draw(frame, results):
    """One frame of the movie as an array of pixels."""
    figure, axes = plt.subplots(1, len(results), figsize=(4.5 * len(results), 3.2), sharey=True, layout="constrained")
    for axis, (name, (ts, x, found, shares)) in zip(axes, results.items(), strict=True):
        width = (HIGH - LOW) / shares.shape[1]
        middles = LOW + width * (np.arange(shares.shape[1]) + 0.5)
        axis.bar(middles, shares[frame] / width, width, color="0.8", label="simulated paths")
        axis.plot(x, found[frame], color="C0", label="Fokker-Planck")
        axis.set(xlim=(-4, 4), ylim=(0, 0.75), title=f"{name}, t = {ts[frame]:.3f}", xlabel="x")
    axes[0].legend(loc="upper left", frameon=False, fontsize="small")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return Image.fromarray(pixels)


def study(out, paths, cells, frames, bins, steps):
    every = max(steps // (frames - 1), 1)
    floor = np.sqrt(2 * bins / (np.pi * paths))
    results, passed = {}, True
    for name, process in PROCESSES.items():
        ts = times(process, every * (frames - 1))
        x, found, truth = solve(process, ts[::every], cells)
        shares = histograms(process, ts, every, paths, bins)
        h = (HIGH - LOW) / cells
        mass = h * found.sum(1)
        to_exact = h * np.abs(found - truth).sum(1).max()
        to_paths = np.abs(h * found.reshape(frames, bins, -1).sum(2) - shares).sum(1).max()
        print(
            f"{name}: L1 distance to the exact density {to_exact:.2e}, to {paths} paths {to_paths:.2e} (sampling's "
            f"floor {floor:.1e}); mass drifts by {np.ptp(mass):.0e}, lowest density {found.min():.0e}"
        )
        passed &= to_exact < 1e-3 and (to_paths < 1e-2 or paths < 1_000_000)
        results[name] = ts[::every], x, found, shares
    out.mkdir(parents=True, exist_ok=True)
    pictures = [draw(frame, results) for frame in tqdm(range(frames), desc="frames", leave=False)]
    pictures[0].save(out / "movie.gif", save_all=True, append_images=pictures[1:], duration=100, loop=0)
    pictures[frames // 2].save(out / "middle.png")
    print(f"{out / 'movie.gif'}: {frames} frames")
    return passed


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/fokker_planck"))
    parser.add_argument("--paths", type=int, default=1_000_000)
    parser.add_argument("--cells", type=int, default=240, help="a multiple of the bins")
    parser.add_argument("--frames", type=int, default=41)
    parser.add_argument("--bins", type=int, default=30, help="of the histogram of paths")
    parser.add_argument("--steps", type=int, default=320, help="of Euler-Maruyama, a multiple of frames - 1")
    if not study(**vars(parser.parse_args(arguments))):
        raise SystemExit("a distance is larger than it should be")


if __name__ == "__main__":
    main()
