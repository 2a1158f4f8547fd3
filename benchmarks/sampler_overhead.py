"""What sampling costs beside its network: ratios of time, each measured in one run, calls alternating, medians.

    python benchmarks/sampler_overhead.py [--repeats 31] [--only loop|peers|compile]

1. loop: 50 steps against what a user would write by `lax.scan`, the same update; the denoiser an MLP, for 64 states of
   3072 features and 16 of 2. ODE: DDIM and Euler; SDE: Euler-Maruyama. Aim: 1.05 and 1.3.
2. peers: the same MLP with the same weights in torch, EDM's process and grid, by k-diffusion and diffusers (extra
   `parity`, or `pip install torch diffusers` and `pip install --no-deps k-diffusion torchdiffeq torchsde trampoline`).
   The results' greatest relative difference is printed beside: it is the same computation. Aim: twice as fast.
3. compile: a U-Net's 50-step sampler against 1.2 x (evaluations a step) x one call's compilation + 2 s, and the
   temporary memory of 50 and 200 steps, which should be one. Aim: within the bound, and equal.

Compilation is left out of 1 and 2. Four minutes on two idle CPU cores; on a busy machine the small sizes are noise.
Results: benchmarks/RESULTS.md.
"""

import argparse
import importlib.util
import statistics
import sys
import time
import types

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import networks

SIZES = {(64, 3072): 1.05, (16, 2): 1.3}
STEPS = 50


def mlp_weights(size, width):
    """Weights of a perceptron with one residual block, as NumPy."""
    draw = np.random.default_rng(0)
    shapes = {"in": (size, width), "told": (1, width), "middle": (width, width), "out": (width, size)}
    return {name: draw.normal(size=s).astype(np.float32) / s[0] ** 0.5 for name, s in shapes.items()}


def apply_mlp(params, x, c_noise, cond=None, *, key=None):
    h = jax.nn.silu(x @ params["in"] + c_noise[:, None] * params["told"])
    return (h + jax.nn.silu(h @ params["middle"])) @ params["out"]


MLP = dj.Network(lambda key, x, c_noise, cond=None: None, apply_mlp)


def mlp_denoiser(process, size):
    params = jax.tree.map(jnp.asarray, mlp_weights(size, 512 if size > 64 else 64))
    return dj.make_denoiser(dj.Diffusion(MLP, process, dj.parameterisation.EDMPrediction()), params)


def alternate(runs, repeats):
    """(median, least) seconds of each call, the calls in turn."""
    for run in runs.values():
        jax.block_until_ready(run())
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: (statistics.median(seconds), min(seconds)) for name, seconds in times.items()}


# --- 1. a loop by hand ---


@jax.jit
def ddim_by_hand(process, denoiser, xt, ts):
    def body(x, times):
        t, s = times
        keep = process.sigma(s) / process.sigma(t)
        return keep * x + (process.alpha(s) - keep * process.alpha(t)) * denoiser(x, t), None

    return jax.lax.scan(body, xt, (ts[:-1], ts[1:]))[0]


def _drift(process, denoiser, x, t, share):
    beta = process.beta_min + (process.beta_max - process.beta_min) * t
    score = (process.alpha(t) * denoiser(x, t) - x) / process.sigma(t) ** 2
    return 0.5 * beta * x + share * beta * score, beta


@jax.jit
def flow_by_hand(process, denoiser, xt, ts):
    def body(x, times):
        t, s = times
        return x + _drift(process, denoiser, x, t, 0.5)[0] * (t - s), None

    return jax.lax.scan(body, xt, (ts[:-1], ts[1:]))[0]


@jax.jit
def sde_by_hand(key, process, denoiser, xt, ts):
    def body(x, inputs):
        k, t, s = inputs
        drift, beta = _drift(process, denoiser, x, t, 1.0)
        noise = jax.random.normal(jax.random.fold_in(key, k), x.shape)
        return x + drift * (t - s) + jnp.sqrt(beta * (t - s)) * noise, None

    return jax.lax.scan(body, xt, (jnp.arange(ts.shape[0] - 1), ts[:-1], ts[1:]))[0]


def against_a_loop(batch, size, repeats):
    process, key = dj.VariancePreserving(), jax.random.key(0)
    denoiser, xt = mlp_denoiser(process, size), dj.prior(key, process, (batch, size))
    ts = jnp.linspace(1.0, 1e-3, STEPS + 1)
    path = dj.per_sample_path(key, batch, (size,))
    euler, ddim, ancestral = diffrax.Euler(), dj.DDIM(), dj.DDIM(eta=1.0)
    as_solver = dj.samplers.as_diffrax_solver(ddim)
    flow = lambda denoiser: dj.probability_flow(process, denoiser)
    sde = lambda denoiser: dj.reverse_sde(process, denoiser, path)
    sample = lambda denoiser, xt, stepper: dj.sample(key, process, denoiser, xt, ts, stepper, final_denoise=False)
    integrate = lambda terms, xt, solver: dj.integrate(terms, xt, ts, solver=solver).x0
    groups = {  # by hand first; each a function of what it samples from, made beforehand where the call is plain
        "DDIM": {
            "by hand": (None, lambda d, x: ddim_by_hand(process, d, x, ts)),
            "sample(DDIM)": (None, lambda d, x: sample(d, x, ddim)),
            "integrate(DDIM)": (flow, lambda terms, x: integrate(terms, x, as_solver)),
        },
        "flow": {
            "by hand": (None, lambda d, x: flow_by_hand(process, d, x, ts)),
            "integrate(Euler)": (flow, lambda terms, x: integrate(terms, x, euler)),
        },
        "SDE": {
            "by hand": (None, lambda d, x: sde_by_hand(key, process, d, x, ts)),
            "integrate(SDE, Euler)": (sde, lambda terms, x: integrate(terms, x, euler)),
            "sample(DDIM(eta=1))": (None, lambda d, x: sample(d, x, ancestral)),
        },
    }
    print(f"\n{batch} x {size}, {STEPS} steps (aim {SIZES[batch, size]}): ratios of medians (of least times)")
    for group, runs in groups.items():
        made = {name: (denoiser if make is None else make(denoiser), run) for name, (make, run) in runs.items()}
        plain = {name: lambda field=field, run=run: run(field, xt) for name, (field, run) in made.items()}
        inside = {name: jax.jit(lambda d, x, m=m, r=r: r(d if m is None else m(d), x)) for name, (m, r) in runs.items()}
        inside = {name: lambda program=program: program(denoiser, xt) for name, program in inside.items()}
        for where, calls in {"a call": plain, "in one's own jit": inside}.items():
            times = alternate(calls, repeats)
            base = times.pop("by hand")
            print(f"  {group:5} {where:17} {'by hand':22} {1e3 * base[0]:8.2f} ms ({1e3 * base[1]:.2f})")
            for name, taken in times.items():
                median, least = (t / b for t, b in zip(taken, base, strict=True))
                print(f"  {group:5} {where:17} {name:22} {1e3 * taken[0]:8.2f} ms   ratio {median:5.2f} ({least:.2f})")


# --- 2. torch libraries ---


def k_diffusion_sampling():
    """k-diffusion's sampling module, without the rest of its package, which imports a training stack."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("k-diffusion")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    package.utils = utils
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


def against_peers(batch, size, repeats):
    try:
        import diffusers
        import torch

        kd = k_diffusion_sampling()
    except ImportError as missing:
        print(f"\npeers: left out, {missing}")
        return
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    print(f"\n{batch} x {size}, {STEPS} evaluations, {versions} (aim: twice as fast)")
    process, key = dj.EDM(), jax.random.key(0)
    ts = dj.uniform_grid(process, STEPS - 1)  # and the last denoise: EDM's step to sigma = 0
    sigmas = kd.get_sigmas_karras(STEPS, 0.002, 80.0)
    denoiser, xt = mlp_denoiser(process, size), dj.prior(key, process, (batch, size))
    weights = {k: torch.tensor(np.asarray(w)) for k, w in denoiser.params.items()}
    x = torch.tensor(np.asarray(xt))

    def network(x, c_noise):
        h = torch.nn.functional.silu(x @ weights["in"] + c_noise[:, None] * weights["told"])
        return (h + torch.nn.functional.silu(h @ weights["middle"])) @ weights["out"]

    def denoise(x, sigma):
        s = sigma[:, None]
        q = (s**2 + 0.25).sqrt()
        return 0.25 / q**2 * x + 0.5 * s / q * network(x / q, sigma.log() / 4)

    @torch.no_grad()
    def by_diffusers(scheduler):
        scheduler.set_timesteps(STEPS)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(network(scheduler.scale_model_input(y, t), t.expand(len(y))), t, y).prev_sample
        return y

    edm = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    ours = lambda stepper: dj.sample(key, process, denoiser, xt, ts, stepper)
    groups = {
        "Euler": {
            "sample(DDIM)": lambda: ours(dj.DDIM()),
            "k-diffusion": lambda: kd.sample_euler(denoise, x, sigmas, disable=True),
            "diffusers": lambda: by_diffusers(diffusers.EDMEulerScheduler(**edm)),
        },
        "DPM++ 2M": {
            "sample(DPMpp2M)": lambda: ours(dj.DPMpp2M()),
            "k-diffusion": lambda: kd.sample_dpmpp_2m(denoise, x, sigmas, disable=True),
            "diffusers": lambda: by_diffusers(diffusers.EDMDPMSolverMultistepScheduler(**edm)),
        },
        "ancestral": {
            "sample(DDIM(eta=1))": lambda: ours(dj.DDIM(eta=1.0)),
            "k-diffusion": lambda: kd.sample_euler_ancestral(denoise, x, sigmas, disable=True),
        },
    }
    for method, runs in groups.items():
        first, *_ = results = [np.asarray(run()) for run in runs.values()]
        times = alternate(runs, repeats)
        base, least = next(iter(times.values()))
        for (name, taken), result in zip(times.items(), results, strict=True):
            away = "" if method == "ancestral" else f"   differs by {abs(result - first).max() / first.std():.0e}"
            ratios = f"{taken[0] / base:6.2f} ({taken[1] / least:.2f}) times ours"
            print(f"  {method:10} {name:20} {1e3 * taken[0]:8.2f} ms   {ratios}{away}")


# --- 3. compilation and memory with a U-Net ---


def compile_and_memory():
    process = dj.VariancePreserving()
    network = dj.from_linen(networks.UNet(channels=(32, 64, 64)))
    xt = jnp.zeros((4, 32, 32, 3))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), xt, jnp.zeros(4)))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    denoiser = dj.make_denoiser(dj.Diffusion(network, process, dj.VPrediction()), params)

    def compiled(function, *arguments):
        start = time.perf_counter()
        program = jax.jit(function).lower(*arguments).compile()
        return time.perf_counter() - start, program

    def sampler(stepper, n, final_denoise=True):
        ts = np.asarray(dj.logsnr_grid(process, n))
        key = jax.random.key(0)
        return lambda denoiser, xt: dj.sample(key, process, denoiser, xt, ts, stepper, final_denoise=final_denoise)

    print("\nU-Net, seconds of compiling")
    adams = dj.samplers.ExponentialAdams(dj.parameterisation.EDMPrediction(), 5, corrector=True)
    for stepper in (dj.DDIM(), dj.Heun(), dj.DPMpp2M(), adams):
        call = compiled(lambda d, x, t: d(x, t), denoiser, xt, jnp.asarray(0.5))[0]
        seconds, program = compiled(sampler(stepper, STEPS), denoiser, xt)
        steps_alone, _ = compiled(sampler(stepper, STEPS, final_denoise=False), denoiser, xt)
        _, longer = compiled(sampler(stepper, 4 * STEPS), denoiser, xt)
        bound = 1.2 * stepper.evaluations_per_step * call + 2
        short, long = (run.memory_analysis().temp_size_in_bytes / 2**20 for run in (program, longer))
        print(
            f"  {type(stepper).__name__:16} one call {call:.1f}, {STEPS} steps {steps_alone:.1f} (bound {bound:.1f}), "
            f"and the last denoise {seconds:.1f};  memory {short:.2f} MiB, at {4 * STEPS} steps {long:.2f} MiB",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--only", choices=["loop", "peers", "compile"])
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {options.repeats} repeats")
    parts = {
        "loop": lambda: [against_a_loop(*size, options.repeats) for size in SIZES],
        "peers": lambda: [against_peers(*size, options.repeats) for size in SIZES],
        "compile": compile_and_memory,
    }
    for name, part in parts.items():
        if options.only in (None, name):
            part()


if __name__ == "__main__":
    main()
