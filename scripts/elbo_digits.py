"""The evidence lower bound on 8 x 8 digits, by a fixed schedule and by a learned one, in bits per dimension.

    python scripts/elbo_digits.py              three and a half minutes on two cores; writes runs/elbo_digits/

The same perceptron is trained on the continuous bound twice: on a logsnr that falls linearly from 8 to -6, and on a
monotone network between end points that train as well. As in Variational Diffusion Models (Kingma et al. 2021), the
end points follow the bound, to which the inside of the schedule makes no difference, and the inside follows the
estimator's variance. Pixels have 17 levels, so that log2(17) = 4.09 bits is what knowing nothing costs.

Expected, on the 359 held-out digits (bits per dimension +- its standard error over images):

    schedule   logsnr         bound           reconstruction  diffusion   10 steps   100 steps   1000 steps
    fixed       8.00 .. -6.00  3.019 +- 0.025  0.002           3.016       5.785      3.201       3.037
    learned     6.17 .. -6.84  2.420 +- 0.013  0.429           1.990       3.861      2.521       2.430

The learned schedule leaves off where the levels can still be told apart (levels are 2.7 sigma/alpha apart at its end
point), and spares the network the noise that is finer. Times and noises are drawn 64 times an image.
"""

import argparse
import csv
import pathlib
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import trange

import diffjax as dj
from diffjax import data, losses, networks

BITS = 64 * np.log(2)  # nats an image in one bit per dimension
DECODER = losses.LevelDecoder(17)
NETWORK = dj.from_linen(networks.MLP(width=256, depth=3, dropout=0.1))
EVALUATED = NETWORK._replace(apply=lambda *args, key=None: NETWORK.apply(*args))  # without dropout
SCHEDULES = {
    "fixed": lambda: dj.process.LearnedLogsnr(8.0, -6.0),
    "learned": lambda: dj.process.MonotoneLogsnr(jax.random.key(0), 8.0, -6.0, width=64),
}
PARTS = ("prior", "reconstruction", "diffusion", "per_sample")


def bound(params, key, x0, network=NETWORK, **grid):
    """The parts of the bound in bits per dimension, each [b]: the continuous one, or that of K steps on a grid ts."""
    process = params["process"]
    given = (dj.Diffusion(network, process, dj.VPrediction()), params["network"], key, x0)
    if grid:
        parts = losses.negative_discrete_elbo(*given, reconstruction=DECODER, **grid)[1]
    else:
        times = dj.StratifiedTimes(process)
        parts = losses.negative_continuous_elbo(*given, times=times, reconstruction=DECODER)[1]
    return {name: parts[name] / BITS for name in PARTS}


def mean_bound(params, key, x0):
    return jnp.mean(bound(params, key, x0)["per_sample"])


def variance(process, network_params, key, x0):
    """E[diffusion^2], which the inside of a schedule lowers; its mean does not depend on the inside."""
    return jnp.mean(bound({"network": network_params, "process": process}, key, x0)["diffusion"] ** 2)


def gradient(params, key, x0, learned):
    """Of the bound; a learned schedule's inside follows the variance in its place, a fixed schedule stays."""
    bits, grads = jax.value_and_grad(mean_bound)(params, key, x0)
    if not learned:
        return bits, grads | {"process": jax.tree.map(jnp.zeros_like, grads["process"])}
    ends = lambda process: (process.logsnr_max, process.logsnr_min)
    inside = jax.grad(variance)(params["process"], params["network"], key, x0)
    return bits, grads | {"process": eqx.tree_at(ends, inside, ends(grads["process"]))}


def train(name, steps, batch, x):
    """Averaged parameters {"network", "process"} after so many steps, and the bits per dimension on the way."""
    init_key, key = jax.random.split(jax.random.key(1))
    params = {"network": NETWORK.init(init_key, x[:1], jnp.zeros(1)), "process": SCHEDULES[name]()}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)  # weakly typed numbers compile twice
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {"network": optax.adam(optax.cosine_decay_schedule(2e-3, steps)), "process": optax.adam(1e-2)},
            {"network": "network", "process": "process"},
        ),
    )

    @partial(jax.jit, donate_argnums=0)
    def step(state, i, x0):
        params, average, opt_state = state
        bits, grads = gradient(params, jax.random.fold_in(key, i), x0, name == "learned")
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(0.998, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return (params, average, opt_state), bits

    state, history = (params, jax.tree.map(jnp.copy, params), tx.init(params)), []
    source = data.from_arrays(np.asarray(x))
    bar = trange(steps, desc=name, mininterval=2.0)
    for i in bar:
        state, bits = step(state, i, source(0, i, batch)[0])
        history.append(bits)
        if i % 100 == 99:
            bar.set_postfix_str(f"{float(np.mean(history[-100:])):.3f} bits/dim")
    return state[1], np.asarray(history)


def evaluate(params, x, draws, steps):
    """Of held-out images, (mean, standard error over images) of each part, and of the bounds of K steps on grids that
    are even in logsnr."""

    def over_images(**grid):
        drawn = jax.jit(lambda key: bound(params, key, x, EVALUATED, **grid))
        drawn = [jax.tree.map(np.asarray, drawn(jax.random.key(1000 + i))) for i in range(draws)]
        means = {name: np.mean([parts[name] for parts in drawn], axis=0) for name in PARTS}
        return {name: (mean.mean(), mean.std(ddof=1) / len(mean) ** 0.5) for name, mean in means.items()}

    grids = {f"{k} steps": dj.logsnr_grid(params["process"], k) for k in steps}
    return over_images() | {name: over_images(ts=ts)["per_sample"] for name, ts in grids.items()}


def picture(path, trained, history):
    """The schedules, and the bound while training."""
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    t = jnp.linspace(0, 1, 201)
    for name, params in trained.items():
        left.plot(t, params["process"].logsnr(t), label=name)
        smooth = np.convolve(history[name], np.full(50, 1 / 50), "valid")
        right.plot(np.arange(len(smooth)) + 50, smooth, label=name)
    left.set(xlabel="t", ylabel="logsnr", title="schedule")
    right.set(xlabel="step", ylabel="bits/dim, mean of 50 steps", title="bound while training", ylim=(None, 5))
    left.legend()
    plt.savefig(path, dpi=120)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4000, help="updates of each run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draws", type=int, default=64, help="times and noises for each held-out image")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/elbo_digits"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    train_x, test_x = (jnp.asarray(data.load_digits(part)[0].reshape(-1, 64)) for part in ("train", "test"))
    trained, history, rows = {}, {}, {}
    for name in SCHEDULES:
        trained[name], history[name] = train(name, options.steps, options.batch, train_x)
        rows[name] = evaluate(trained[name], test_x, options.draws, (10, 100, 1000))
        process = trained[name]["process"]
        print(f"{name}: logsnr from {float(process.logsnr_max):.2f} to {float(process.logsnr_min):.2f}")
    columns = list(rows["fixed"])
    print("".join(f"{c.replace('per_sample', 'bound'):>18}" for c in ["", *columns]))
    for name, row in rows.items():
        print(f"{name:>18}" + "".join(f"{mean:>9.3f} +- {error:.3f}" for mean, error in row.values()))
    with (options.out / "bits.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["schedule", "part", "bits_per_dim", "standard_error"])
        table.writerows([name, part, *row[part]] for name, row in rows.items() for part in row)
    picture(options.out / "bits.png", trained, history)
    print(f"table and picture in {options.out}")
    return rows


if __name__ == "__main__":
    main()
