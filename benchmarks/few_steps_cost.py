"""What a training step of each few-step loss costs: over the denoising loss's step, measured in one run.

    python benchmarks/few_steps_cost.py [--repeats 15] [--batch 32] [--only progressive shortcut]

The U-Net of digits (base 32, images of 8 x 8 x 1), unconditional, on one core: a whole step (loss, gradient, Adam, an
average), jitted. Students of any pair of times have the leaves of a second one. Teachers are the same network. Calls
alternate, medians of wall time (and of CPU time, which other programs disturb less); compiled before.

    loss                          evaluations of the network a sample, besides those of the denoising loss
    progressive                   2 of the teacher
    consistency training          1 of the target
    consistency distillation      1 of the target, 2 of the teacher (Heun)
    sCT, sCD                      the derivative in time; 1 of the teacher for sCD
    MeanFlow                      the derivative in time; 1 of its own for the improved one, 1 of the teacher
    shortcut                      2 of the average

Five minutes on two idle CPU cores, most of it compiling. Results: benchmarks/RESULTS.md.
"""

import argparse
import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import optax
from likelihood_step import alternate

import diffjax as dj
from diffjax import flow_maps, losses, networks, training
from diffjax.networks import with_second_time

PROCESS = dj.Cosine()
NETWORK = dj.from_linen(networks.UNet(channels=(32, 64), blocks=1, attention=(1,)))
DIFFUSION = dj.Diffusion(NETWORK, PROCESS, dj.parameterisation.EDMPrediction(0.5, clock="angle"))
LEVELS = flow_maps.EDMLevels(PROCESS, 40, lognormal=(-1.1, 2.0))
TIMES = dj.process.LognormalTimes(PROCESS, -1.0, 1.4)
PAIRS = flow_maps.PartlyEqual(flow_maps.SortedPairs(dj.UniformTimes(PROCESS)), 0.5)
GRID = jnp.linspace(1.0, 0.0, 5)


def consistency(**given):
    given |= {"levels": LEVELS, "penalty": losses.PseudoHuber(0.00054), "weighting": flow_maps.OverGap()}
    return lambda *arguments, average: flow_maps.consistency_loss(DIFFUSION, *arguments, **given)


def continuous(teacher=None):
    given = {"times": TIMES, "teacher": teacher}
    return lambda *arguments, average: flow_maps.continuous_consistency_loss(DIFFUSION, *arguments, **given)


def mean_flow(**given):
    return lambda *arguments, average: flow_maps.mean_flow_loss(DIFFUSION, *arguments, pairs=PAIRS, **given)


def denoising(*arguments, average):
    return dj.denoising_loss(DIFFUSION, *arguments, times=dj.StratifiedTimes(PROCESS), weighting=losses.on_v)


def progressive(teacher):
    return lambda *arguments, average: flow_maps.progressive_loss(DIFFUSION, *arguments, teacher=teacher, grid=GRID)


def shortcut(*arguments, average):
    return flow_maps.shortcut_loss(DIFFUSION, *arguments, target_params=average, share=0.25)


def losses_of(teacher):
    """Name -> (number of times that the network takes, loss `(params, key, x0, *, average)`)."""
    return {
        "denoising": (1, denoising),
        "progressive": (1, progressive(teacher)),
        "consistency training": (1, consistency()),
        "consistency distillation": (1, consistency(teacher=teacher, solver="heun")),
        "sCT": (1, continuous()),
        "sCD": (1, continuous(teacher)),
        "MeanFlow": (2, mean_flow()),
        "improved MeanFlow": (2, mean_flow(improved=True)),
        "MeanFlow, teacher": (2, mean_flow(teacher=teacher)),
        "shortcut": (2, shortcut),
    }


def step_of(loss, params):
    """A jitted training step and its state."""
    objective = training.Objective(
        lambda params, x0, context: loss(params, context.key, x0, average=context.ema["average"]), optax.adam(1e-3)
    )
    averages = {"average": training.make_ema(0.999)}
    state = training.state_from_params(jax.random.key(2), params, objective, averages=averages)
    return jax.jit(training.make_train_step(objective, ema=averages)), state


def main(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=[], help="names of losses; default: all")
    options = parser.parse_args(arguments)
    x0 = jax.random.normal(jax.random.key(0), (options.batch, 8, 8, 1))
    params = NETWORK.init(jax.random.key(1), x0, jnp.zeros(options.batch))
    both = with_second_time(NETWORK, params, jax.random.key(1), x0)
    runs = {}
    for name, (times, loss) in losses_of(dj.make_denoiser(DIFFUSION, params)).items():
        if options.only and name not in ("denoising", *options.only):
            continue
        step, state = step_of(loss, params if times == 1 else both)
        runs[name] = lambda step=step, state=state: step(state, x0)
    taken = alternate(runs, options.repeats)
    base = taken["denoising"]
    print(
        f"jax {jax.__version__}, batch {options.batch}, {options.repeats} repeats; over the denoising step: wall (CPU)"
    )
    for name, (wall, cpu) in taken.items():
        print(f"  {name:26} {wall / base[0]:5.2f} ({cpu / base[1]:.2f})   {1e3 * wall:7.1f} ms", flush=True)


if __name__ == "__main__":
    main()
