"""Sampling through diffjax against a hand-written `lax.scan`: ratios of time, measured in one run.

    python benchmarks/sampler_overhead.py [--repeats 15]

100 Euler-Maruyama steps of the reverse SDE on 64 states of 3072 features (a batch of 32 x 32 x 3 images), the denoiser
a residual MLP of 512 hidden features. The loop is what a user would write: the update formula, one normal draw for
the whole batch, `lax.scan`, `jit`. The calls alternate, and medians are compared; compilation is left out. About one
minute on two CPU cores. Aim: a ratio of at most 1.1. Results: benchmarks/RESULTS.md.
"""

import argparse
import statistics
import time

import diffrax
import jax
import jax.numpy as jnp

import diffjax as dj
from diffjax import networks

BATCH, SIZE, STEPS = 64, 3072, 100


def by_hand(process, denoiser):
    """The reverse SDE of the VP process by Euler-Maruyama, written out."""

    @jax.jit
    def run(key, xt, ts, denoiser):
        def body(x, inputs):
            k, t, s = inputs
            beta = process.beta_min + (process.beta_max - process.beta_min) * t
            score = (process.alpha(t) * denoiser(x, t) - x) / process.sigma(t) ** 2
            drift = -0.5 * beta * x - beta * score
            noise = jax.random.normal(jax.random.fold_in(key, k), x.shape)
            return x - drift * (t - s) + jnp.sqrt(beta * (t - s)) * noise, None

        return jax.lax.scan(body, xt, (jnp.arange(STEPS), ts[:-1], ts[1:]))[0]

    return lambda key, xt, ts: run(key, xt, ts, denoiser)


def by_diffrax(process, denoiser):
    def run(key, xt, ts):
        path = dj.per_sample_path(key, BATCH, (SIZE,))
        return dj.integrate(dj.reverse_sde(process, denoiser, path), xt, ts, solver=diffrax.Euler()).x0

    return run


def by_sample(process, denoiser):
    """Our scan with a stochastic stepper of the same work a step."""
    return lambda key, xt, ts: dj.sample(key, process, denoiser, xt, ts, dj.DDIM(eta=1.0), denoise=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    process = dj.VariancePreserving()
    network = dj.from_linen(networks.MLP(width=512, depth=3))
    key = jax.random.key(0)
    xt = dj.prior(key, process, (BATCH, SIZE))
    params = network.init(key, xt, jnp.zeros(BATCH))
    denoiser = dj.make_denoiser(params, network=network, process=process, parameterisation=dj.VPrediction())
    ts = jnp.linspace(1.0, 1e-3, STEPS + 1)
    runs = {"lax.scan by hand": by_hand, "integrate(reverse_sde)": by_diffrax, "sample(DDIM(eta=1))": by_sample}
    runs = {name: make(process, denoiser) for name, make in runs.items()}
    results = {name: jax.block_until_ready(run(key, xt, ts)) for name, run in runs.items()}
    spread = {name: float(x.std()) for name, x in results.items()}
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(key, xt, ts))
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["lax.scan by hand"])
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {len(jax.devices())} device(s), {repeats} repeats")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:24} {1e3 * median:8.1f} ms   ratio {median / base:5.2f}   output std {spread[name]:.3f}")


if __name__ == "__main__":
    main()
