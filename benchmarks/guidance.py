"""What guidance costs beside its network: ratios of time, calls alternating, medians of one run.

    python benchmarks/guidance.py [--repeats 31] [--batch 16]

A U-Net (base 32, images of 32 x 32 x 3) with a condition, called on a doubled batch by hand, one forward pass: that is
1. Beside it classifier-free guidance, alone, with each rule, and within an interval, where it is off (one plain pass:
near 0.5). All jitted, compilation left out. Aim: `classifier_free` at most 1.05.

About two minutes on two idle CPU cores. Results: benchmarks/RESULTS.md.
"""

import argparse

import jax
import jax.numpy as jnp
from sampler_overhead import alternate

import diffjax as dj
from diffjax import guidance, networks


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    process, b = dj.VariancePreserving(), options.batch
    network = dj.from_linen(networks.UNet(channels=(32, 64, 64), num_classes=10))
    key, cond = jax.random.key(0), jnp.arange(b) % 10
    xt, t, null = jax.random.normal(key, (b, 32, 32, 3)), jnp.asarray(0.4), 10
    params = jax.jit(network.init)(key, xt, jnp.zeros(b), cond)
    made = lambda cond: dj.make_denoiser(dj.Diffusion(network, process, dj.VPrediction()), params, cond)
    plain, doubled = made(cond), made(jnp.concatenate([cond, jnp.full(b, null)]))
    guide = lambda rule: dj.classifier_free(plain, null, jnp.asarray(2.0), rule=rule)
    free = guide(guidance.Linear())
    denoisers = {
        "classifier_free": free,
        "  rescaled": guide(guidance.Rescaled()),
        "  projected (APG)": guide(guidance.Projected(0.0, 2.5)),
        "  CFG-Zero*": guide(guidance.OnPrediction(process, dj.VelocityPrediction(), guidance.OptimalScale())),
        "  inside its interval": guidance.within_interval(process, free, plain, -9.0, 9.0),
        "  outside it": guidance.within_interval(process, free, plain, 8.0, 9.0),
        "two passes": guidance.extrapolate(plain, made(jnp.full(b, null)), jnp.asarray(2.0)),
    }
    call = jax.jit(lambda denoiser, xt, t: denoiser(xt, t))
    both = jnp.concatenate([xt, xt])
    runs = {"doubled batch": lambda: call(doubled, both, t)}
    runs |= {name: lambda d=denoiser: call(d, xt, t) for name, denoiser in denoisers.items()}
    times = alternate(runs, options.repeats)
    base = times["doubled batch"]
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, batch {b}, {options.repeats} repeats")
    for name, (median, least) in times.items():
        print(f"  {name:24} {1e3 * median:8.2f} ms   ratio {median / base[0]:5.3f} ({least / base[1]:.3f})")


if __name__ == "__main__":
    main()
