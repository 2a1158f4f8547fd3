"""Bits per dimension of held-out 8 x 8 digits: the flow's and the bounds', uniform and variational dequantisation.

    python scripts/likelihood_digits.py                   writes runs/likelihood_digits/
    python scripts/likelihood_digits.py --run runs/digits   of a finished run of `diffjax train digits`

The digits preset is trained on uniformly dequantised images (a density that was trained on whole levels is high on
the levels alone, and pays for every point between them), as its U-Net, told the class. Then a noise q(u | image) is
trained on the training images by the continuous bound, the U-Net held fixed. Pixels have 17 levels, so that
log2(17) = 4.09 bits is what knowing nothing costs.

On two cores shared with other programs (load 15): training 10 minutes, the noise 5, the rest 15. Found, on the first 16
held-out digits given their class, in bits a dimension +- the standard error over images (nfe):

                                uniform              variational
    flow, one probe             2.047 +- 0.049 (91)  2.023 +- 0.044 (91)
    continuous bound            2.127 +- 0.075 (50)  2.111 +- 0.079 (50)
    100-step bound              3.157 +- 0.091 (50)  3.128 +- 0.095 (50)

Exact trace and 8 probes on 2 images and the same noise: 2.050 and 2.012, the estimate's errors -0.5 and +5.3 of its
standard errors, at tolerances of 1e-3 and of 1e-5 alike: eight probes tell their own spread badly. By 32 probes, in
nats: 54.7 +- 1.4 against 53.2, and 25.8 +- 0.75 against 25.2, the errors from eight keys of 4 probes each.

The bounds are those of the reverse SDE's likelihood, at 50 times and noises an image. A hundred steps over 34 units of
logsnr are few; the K-step bound falls to the continuous one as K grows.
"""

import argparse
import csv
import dataclasses
import math
import pathlib
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import trange

import diffjax as dj
from diffjax import config as configs, likelihood, training

LEVELS = likelihood.Quantisation(17)  # pixels 0 .. 16 are -1 .. 1
FINE = likelihood.adaptive(1e-5)
STEPS = likelihood.adaptive(1e-3)  # of the log density too: 0.002 bits a dimension at a hundred nats


def trained(folder, steps):
    """(data, parts, averaged parameters) of the digits preset on dequantised images; a folder that has them is read."""
    config = dataclasses.replace(configs.PRESETS["digits"], steps=steps)
    data = configs.build_data(config.data)
    run = configs.build_run(config, data.samples)
    parts = run.parts

    def source(seed, step, size):
        x0, labels = data.source(seed, step, size)
        u = np.random.default_rng((seed, step)).uniform(-0.5, 0.5, x0.shape)
        return (x0 + LEVELS.width * u).astype(np.float32), labels

    objective = training.Objective(parts.loss, parts.tx)
    update = training.make_train_step(objective, ema=training.make_ema(config.ema_decay))
    layout = training.jit_layout(update, training.data_mesh())
    state = configs.fresh_state(run)
    with training.Checkpoints(folder / "checkpoints") as checkpoints:
        state = state if checkpoints.latest() is None else checkpoints.restore(state)
        options = {"steps": steps, "batch_size": config.batch_size, "seed": config.seed, "checkpoints": checkpoints}
        state = training.train(state, layout, source, **options)
    return data, parts, state.ema


class Model:
    """The network's density: on the process itself for the flow, on its part up to logsnr 14 for the bounds."""

    def __init__(self, parts, params):
        self.parts, self.params = parts, params
        self.clipped = dj.process.Clipped(parts.process, likelihood.FLOAT32_LOGSNR, -20.0)

    def denoiser(self, process, labels):
        return dj.make_denoiser(dataclasses.replace(self.parts.diffusion, process=process), self.params, labels)

    def bits(self, key, images, labels, process=None, **choices):
        process = self.parts.process if process is None else process
        data = LEVELS.whole(images)
        denoiser = self.denoiser(process, labels)
        return likelihood.bits_per_dim(key, process, denoiser, data, quantisation=LEVELS, **choices)


def train_noise(model, images, labels, steps, batch):
    """Parameters of the noise q(u | image), by the continuous bound with one time and noise an image."""
    key, tx = jax.random.key(2), optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    params = likelihood.init_dequantiser(jax.random.key(3), images.shape[1:], 128)

    @jax.jit
    def step(params, opt_state, i, images, labels, model_params):
        fixed = Model(model.parts, model_params)
        denoiser = fixed.denoiser(fixed.clipped, labels)

        def density(key, x, index):
            return likelihood.evaluate_continuous_elbo(key, fixed.clipped, denoiser, x, draws=1, index=index).nats

        loss = partial(likelihood.dequantisation_loss, apply=likelihood.apply_dequantiser, quantisation=LEVELS)
        loss = partial(loss, log_density=density)
        slope = jax.value_and_grad(loss, has_aux=True)
        (nats, _), grads = slope(params, jax.random.fold_in(key, i), LEVELS.whole(images))
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, nats

    opt_state, history = tx.init(params), []
    order = np.random.default_rng(0)
    for i in (bar := trange(steps, desc="noise", mininterval=2.0)):
        rows = order.integers(len(images), size=batch)
        params, opt_state, nats = step(params, opt_state, i, images[rows], labels[rows], model.params)
        history.append(nats)
        if i % 50 == 49:
            bar.set_postfix_str(f"{np.mean(history[-50:]) / (64 * np.log(2)):.3f} bits/dim")
    return params


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="a finished run of digits, in place of training")
    parser.add_argument("--steps", type=int, default=1200, help="updates of the U-Net")
    parser.add_argument("--noise-steps", type=int, default=100, help="updates of the learned noise")
    parser.add_argument("--images", type=int, default=16, help="held-out images")
    parser.add_argument("--exact", type=int, default=2, help="of these, how many get the exact trace as well")
    parser.add_argument("--draws", type=int, default=1, help="dequantisations of each image")
    parser.add_argument("--probes", type=int, default=8, help="of Hutchinson's estimate beside the exact trace")
    parser.add_argument("--elbo-draws", type=int, default=50, help="times and noises for each dequantisation")
    parser.add_argument("--k", type=int, default=100, help="steps of the K-step bound")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/likelihood_digits"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.run:
        run, params = configs.load_run(options.run)
        parts, params = configs.trained_parts(run.config, run.parts, params)
        data = configs.build_data(run.config.data)
    else:
        data, parts, params = trained(options.out, options.steps)
    model = Model(parts, params)
    train_images, train_labels = (jnp.asarray(part) for part in data.train)
    noise = train_noise(model, train_images, train_labels, options.noise_steps, 32)
    images, labels = (jnp.asarray(part[: options.images]) for part in data.held_out)
    few = slice(options.exact)

    flow = partial(dj.log_likelihood, controller=STEPS, divergence=dj.Hutchinson())
    continuous = partial(likelihood.evaluate_continuous_elbo, draws=options.elbo_draws)
    grid = jnp.asarray(dj.logsnr_grid(model.clipped, options.k))
    discrete = lambda key, process, denoiser, x, index: likelihood.evaluate_discrete_elbo(
        key, process, denoiser, x, grid, draws=options.elbo_draws, index=index
    )
    dequantisations = {
        "uniform": likelihood.UniformDequantisation(),
        "variational": likelihood.VariationalDequantisation(noise, likelihood.apply_dequantiser),
    }
    key, rows = jax.random.key(1), {}

    def record(name, found, start):
        bits = np.asarray(found.bits)
        rows[name] = (bits.mean(), bits.std(ddof=1) / len(bits) ** 0.5, len(bits), int(found.nfe))
        mean, error, n, nfe = rows[name]
        print(
            f"{name:34} {mean:6.3f} +- {error:.3f}  {n:4} images  {nfe:5} nfe  {time.time() - start:4.0f} s", flush=True
        )
        return bits

    print(f"{'':34} bits a dimension, +- its standard error over images (log2 17 = {math.log2(17):.2f})")
    for name, q in dequantisations.items():
        choices = {"dequantisation": q, "draws": options.draws}
        start = time.time()
        record(f"flow, {name}", model.bits(key, images, labels, **choices, likelihood=flow), start)
        for bound, by in {"continuous ELBO": continuous, f"{options.k}-step ELBO": discrete}.items():
            start = time.time()
            found = model.bits(key, images, labels, model.clipped, **choices, likelihood=by)
            record(f"{bound}, {name}", found, start)

    # The same noise u in both, for it comes from the same key: what differs is the trace.
    few_images, few_labels = images[few], labels[few]
    errors = {}
    for name, divergence in {
        "exact": likelihood.Exact(),
        f"{options.probes} probes": dj.Hutchinson(options.probes),
    }.items():
        start = time.time()
        seen = []

        def by(*args, index, divergence=divergence, seen=seen):
            seen.append(dj.log_likelihood(*args, controller=FINE, divergence=divergence, index=index))
            return seen[-1]

        found = model.bits(key, few_images, few_labels, likelihood=by)
        record(f"flow, uniform, {name}", found, start)
        errors[name] = seen[0]
    exact, estimate = errors.values()
    z = np.asarray((estimate.nats - exact.nats) / estimate.standard_error)
    print(f"Hutchinson's error in its own standard errors: {np.array2string(z, precision=2)}")
    with (options.out / "bits.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["what", "bits_per_dim", "standard_error", "images", "nfe"])
        table.writerows([name, *row] for name, row in rows.items())
    return rows, z


if __name__ == "__main__":
    main()
