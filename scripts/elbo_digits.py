"""The evidence lower bound on 8 x 8 digits, by a fixed schedule and by a learned one, in bits per dimension.

    python scripts/elbo_digits.py                                  TIME on two cores; writes runs/elbo_digits/

The same perceptron is trained on the continuous bound twice: on a logsnr that falls linearly from 8 to -6, and on a
monotone network between end points that train as well. As in Variational Diffusion Models (Kingma et al. 2021), the
end points follow the bound, to which the inside of the schedule makes no difference, and the inside follows the
estimator's variance. Pixels have 17 levels, so that log2(17) = 4.09 bits is what knowing nothing costs.

Expected, on the 359 held-out digits (bits per dimension +- its standard error over images):

EXPECTED
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
    "fixed": lambda: dj.LearnedLogsnr(8.0, -6.0),
    "learned": lambda: dj.MonotoneLogsnr(jax.random.key(0), 8.0, -6.0, width=64),
}
PARTS = ("prior", "reconstruction", "diffusion")


def bound(params, key, x0, network=NETWORK):
    """(nats, parts) of the continuous bound, with stratified times."""
    process = params["process"]
    choices = {"network": network, "process": process, "parameterisation": dj.VPrediction()}
    times = dj.StratifiedTimes(process)
    return losses.continuous_elbo(params["network"], key, x0, time_sampler=times, reconstruction=DECODER, **choices)


def inside(process, moving, still):
    """The schedule's gradient: its end points', and of the rest that of the variance."""
    ends = lambda p: (p.logsnr_max, p.logsnr_min)
    return eqx.tree_at(ends, moving, ends(still))


def gradient(params, key, x0, learned):
    """Of the bound, in bits per dimension; where the schedule is learned, its inside follows E[diffusion^2] instead."""
    grads, (nats, parts) = jax.grad(lambda p: (lambda out: (out[0] / BITS, out))(bound(p, key, x0)), has_aux=True)(
        params
    )
    if not learned:
        return grads | {"process": jax.tree.map(jnp.zeros_like, grads["process"])}, nats / BITS

    def variance(process):
        frozen = jax.lax.stop_gradient(params["network"])
        return jnp.mean((bound({"network": frozen, "process": process}, key, x0)[1]["diffusion"] / BITS) ** 2)

    return grads | {
        "process": inside(params["process"], jax.grad(variance)(params["process"]), grads["process"])
    }, nats / BITS


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
        grads, bits = gradient(params, jax.random.fold_in(key, i), x0, name == "learned")
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
    """Bits per dimension of held-out images, (mean, standard error over images) of each part and of their sum; and of
    the K-step bounds on grids that are even in logsnr."""

    @jax.jit
    def parts(key):
        return bound(params, key, x, EVALUATED)[1]

    def over_images(draw, names):
        drawn = [jax.tree.map(np.asarray, draw(jax.random.key(1000 + i))) for i in range(draws)]
        means = {name: np.mean([d[name] for d in drawn], axis=0) / BITS for name in names}
        return {name: (m.mean(), m.std(ddof=1) / len(m) ** 0.5) for name, m in means.items()}

    row = over_images(parts, (*PARTS, "per_sample"))
    for k in steps:
        ts = dj.logsnr_grid(params["process"], k)
        choices = {"network": EVALUATED, "process": params["process"], "parameterisation": dj.VPrediction()}
        discrete = jax.jit(
            lambda key, ts=ts: losses.discrete_elbo(
                params["network"], key, x, ts=ts, reconstruction=DECODER, **choices
            )[1]
        )
        row[f"{k} steps"] = over_images(discrete, ("per_sample",))["per_sample"]
    return row


def picture(path, trained, history):
    """The schedules, and the bound while training."""
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    t = jnp.linspace(0, 1, 201)
    for name, params in trained.items():
        left.plot(t, dj.logsnr(params["process"], t), label=name)
        smooth = np.convolve(history[name], np.full(50, 1 / 50), "valid")
        right.plot(np.arange(len(smooth)) + 50, smooth, label=name)
    left.set(xlabel="t", ylabel="logsnr", title="schedule")
    right.set(xlabel="step", ylabel="bits/dim, mean of 50 steps", title="bound while training", ylim=(None, 5))
    left.legend()
    plt.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help="updates of each run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draws", type=int, default=64, help="times and noises for each held-out image")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/elbo_digits"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train_x, test_x = (jnp.asarray(data.digits(part)[0].reshape(-1, 64)) for part in ("train", "test"))
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


if __name__ == "__main__":
    main()
