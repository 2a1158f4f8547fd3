"""What a step of the likelihood costs beside a step of the flow, on a U-Net: ratios of time, measured in one run.

    python benchmarks/likelihood_step.py [--repeats 15] [--exact]

A step is one evaluation: u for the flow; u and one Hutchinson estimate of div u for the likelihood, by a backward
product (vjp, ours), beside the same by a forward product (jvp). Calls alternate, medians of wall time (and of CPU
time, which other programs disturb less); compiled before. Aim: 2.7 by vjp. With --exact also the exact trace on
8 x 8 x 1, by blocks of 1, 8 and 64 products.

Two minutes on two idle CPU cores, as much again for --exact. Results: benchmarks/RESULTS.md.
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp

import diffjax as dj
from diffjax import networks
from diffjax._arrays import sum_features

SIZES = {(16, 8, 8, 1): (32, 64), (8, 32, 32, 3): (32, 64, 64)}


def unet_denoiser(process, shape, channels):
    """A U-Net whose last layer is not zero, as a denoiser."""
    network = dj.from_linen(networks.UNet(channels=channels, blocks=1, attention=(1,)))
    params = network.init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))
    leaves, layout = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.02 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(layout, leaves)
    return dj.make_denoiser(dj.Diffusion(network, process, dj.VPrediction()), params)


def flow_step(process, denoiser, x, t, probes):
    return dj.samplers.velocity(process, denoiser, x, t)


def by_vjp(process, denoiser, x, t, probes):
    return dj.Hutchinson()(lambda x: dj.samplers.velocity(process, denoiser, x, t), x, probes)


def by_jvp(process, denoiser, x, t, probes):
    u, pushed = jax.jvp(lambda x: dj.samplers.velocity(process, denoiser, x, t), (x,), (probes[0],))
    return u, sum_features(probes[0] * pushed)[None]


def exact(block):
    trace = dj.likelihood.Exact(block)
    return lambda process, denoiser, x, t, probes: trace(
        lambda x: dj.samplers.velocity(process, denoiser, x, t), x, None
    )


def alternate(runs, repeats):
    """(median wall, median CPU) seconds of each call, the calls in turn."""
    times = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: tuple(map(statistics.median, zip(*taken, strict=True))) for name, taken in times.items()}


def measure(shape, channels, steps, repeats):
    process = dj.Cosine()
    denoiser, x = unet_denoiser(process, shape, channels), jax.random.normal(jax.random.key(2), shape)
    probes = dj.Hutchinson().probes(jax.random.key(3), x, jnp.arange(shape[0]))
    arguments = (process, denoiser, x, jnp.asarray(0.5), probes)
    compiled = {name: eqx.filter_jit(step) for name, step in steps.items()}
    times = alternate({name: lambda run=run: run(*arguments) for name, run in compiled.items()}, repeats)
    base = times["flow"]
    print(f"\n{' x '.join(map(str, shape))}: over the flow's step, medians: wall time (CPU time)")
    for name, (wall, cpu) in times.items():
        print(f"  {name:22} {wall / base[0]:7.2f} ({cpu / base[1]:.2f})   {1e3 * wall:8.1f} ms", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--exact", action="store_true", help="the exact trace as well")
    options = parser.parse_args(arguments)
    for shape, channels in SIZES.items():
        measure(shape, channels, {"flow": flow_step, "vjp": by_vjp, "jvp": by_jvp}, options.repeats)
    if options.exact:
        steps = {"flow": flow_step} | {f"exact, block {n}": exact(n) for n in (1, 8, 64)}
        measure((16, 8, 8, 1), (32, 64), steps, max(3, options.repeats // 5))


if __name__ == "__main__":
    main()
