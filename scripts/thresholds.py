"""Where a dynamic threshold wins: static, dynamic and no threshold under strong guidance, measured on known laws.

    python scripts/thresholds.py                             all rows and seeds that are not in the CSV yet
    python scripts/thresholds.py --cifar ZIP                 with those of real pictures
    python scripts/thresholds.py --row texture --seed 1      one of them, in this process
    python scripts/thresholds.py --table                     the table of what is there
    python scripts/thresholds.py --draw                      thresholds.png: curves and pictures

Exact rows need no training: pictures of 12 x 12 pixels of two classes, weak and strong,

    x0 = base + A pattern + noise,    A ~ N(weak or strong, 0.15^2),    noise ~ N(0, S)

whose conditional and unconditional denoisers are known. The classes overlap, so that guidance towards the strong one
overshoots. At t = 1 the guided answer is

    x0_hat = base + A_w pattern,    A_w = mean + scale (strong - mean),    mean = (weak + strong)/2

A dynamic threshold divides x0_hat by its largest pixels. Where the overshoot scales the whole picture (base = 0) the
picture keeps its shape and contrast, and a static one would flatten it. Where base is not 0, the background is divided
as well: base -> base/s. Whether it comes back is a matter of the denoiser: one that knows that the background is always
the same puts it back, one that has seen darker and brighter ones takes it as it is.

Rows: texture (mid-tones, a wave in a smooth texture, base 0), flat (a square on a background that is always -0.9),
flat_varied (on one around -0.8 that differs from picture to picture), cifar (CIFAR-10 at 8 x 8 pixels, a class-
conditional U-Net of 6000 steps, about ten minutes of one core: under-trained).

Measured are --samples pictures: the squared Frechet distance to the strong class, of pixels against its exact mean and
covariance, and for cifar of a classifier's features against the 10,000 held-out pictures; the sliced Wasserstein
distance of pixels; standard deviation and median of pixels, the share beyond 0.99, and the share that the exact
posterior, or the classifier, takes for the class. The threshold `real` is the floor: exact samples, or training images.

A minute of one core for an exact row and seed. Found: benchmarks/RESULTS.md.
"""

import argparse
import csv
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffjax as dj
from diffjax import data, guidance, metrics, networks, training, viz

SCRIPT = Path(__file__)
OUT = SCRIPT.with_suffix(".csv")
MEASURED = ("frechet", "sliced_wasserstein", "std", "median", "saturated", "right")
FIELDS = ("row", "seed", "threshold", "scale", *MEASURED, "updates", "cpu_seconds")
THRESHOLDS = {
    "none": lambda denoiser: denoiser,
    "static": guidance.static_threshold,
    "dynamic": guidance.dynamic_threshold,
}
SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
SIDE, STEPS, SAMPLES, CHUNK, SHOWN = 12, 30, 500, 250, 6
UPDATES = 6000
"""Of cifar's U-Net; its classifier has a quarter."""
PROCESS = dj.Cosine()


class Problem(NamedTuple):
    """What is drawn, and what it is compared with."""

    process: Any
    ts: Any
    shape: tuple[int, ...]
    held: Any
    """Parameters of `guided`."""
    guided: Callable
    """`(held, index [b], scale) -> denoiser`."""
    real: np.ndarray
    """The floor, [n, *shape]."""
    reference: np.ndarray
    """Of the sliced Wasserstein distance, [m, *shape]."""
    frechet: Callable
    """`x [n, *shape] -> squared distance`."""
    right: Callable
    """`(x, index [n]) -> bool [n]`."""
    updates: int = 0


# --- exact laws ---


class Law(NamedTuple):
    """Pictures base + A pattern + noise; see the head of this file."""

    pattern: np.ndarray
    covariance: np.ndarray
    weak: float
    strong: float
    base: float = 0.0
    strength_std: float = 0.15


def wave():
    x = 2 * np.pi * np.arange(SIDE) / SIDE
    return np.cos(x[:, None]) * np.cos(x)


def square():
    pattern = np.zeros((SIDE, SIDE))
    pattern[4:9, 3:8] = 1
    return pattern


def texture(std):
    """Covariance [D, D] of a stationary texture on the torus, its spectrum (1 + |k|^2)^(-3/2)."""
    k = np.fft.fftfreq(SIDE) * SIDE
    kernel = np.fft.ifft2((1 + k[:, None] ** 2 + k**2) ** -1.5).real
    i, j = np.divmod(np.arange(SIDE**2), SIDE)
    return std**2 / kernel[0, 0] * kernel[(i[:, None] - i) % SIDE, (j[:, None] - j) % SIDE]


def grain(std, of_picture=0.0):
    """Covariance [D, D] of independent pixels and, with `of_picture`, of one number added to all of them."""
    return std**2 * np.eye(SIDE**2) + of_picture**2


LAWS = {
    "texture": Law(wave(), texture(0.25), weak=0.3, strong=0.6),
    "flat": Law(square(), grain(0.03), weak=1.2, strong=1.5, base=-0.9),
    "flat_varied": Law(square(), grain(0.03, 0.08), weak=1.1, strong=1.4, base=-0.8),
}


def classes_of(law):
    """The laws of the weak and of the strong class, and of both."""
    covariance = law.covariance + law.strength_std**2 * np.outer(law.pattern, law.pattern) + 1e-4 * np.eye(SIDE**2)
    means = jnp.asarray([law.base + a * law.pattern[..., None] for a in (law.weak, law.strong)], jnp.float32)
    covariance = jnp.asarray(covariance, jnp.float32)
    each = [dj.Gaussian(mean, covariance) for mean in means]
    return *each, dj.GaussianMixture(means, jnp.stack([covariance] * 2))


def exact_problem(law, seed):
    weak, strong, both = classes_of(law)
    mean, factor = np.asarray(strong.mean, float).ravel(), np.asarray(strong.basis, float)
    covariance = (factor * np.asarray(strong.variances, float)) @ factor.T
    exact = metrics.FeatureStatistics(10**9, mean, covariance)  # exact: as of any number
    log_prob = lambda law, x: law.log_prob(PROCESS, jnp.asarray(x), jnp.zeros(()))
    return Problem(
        process=PROCESS,
        ts=dj.logsnr_grid(PROCESS, STEPS),
        shape=(SIDE, SIDE, 1),
        held=(dj.exact_denoiser(strong, PROCESS), dj.exact_denoiser(both, PROCESS)),
        guided=lambda held, index, scale: guidance.extrapolate(*held, scale),
        real=np.asarray(strong.sample(jax.random.key(3000 + seed), SAMPLES)),
        reference=np.asarray(strong.sample(jax.random.key(4000 + seed), 4 * SAMPLES)),
        frechet=lambda x: metrics.frechet_distance(metrics.feature_statistics(x.reshape(len(x), -1)), exact),
        right=lambda x, index: log_prob(strong, x) > log_prob(weak, x),
    )


# --- real pictures ---


def cifar_images(cifar, folder):
    """{"train", "test"} -> (bytes [n, 8, 8, 3], labels [n]); the files that they are in are written once."""
    found = {}
    for part in ("train", "test"):
        path = folder / f"cifar-{part}.npz"
        if not path.is_file():
            images = data.ImageFolder(cifar, under=f"cifar10/{part}", size=8)
            np.savez(path, x=np.stack([images[i][0] for i in range(len(images))]), y=images.labels)
        with np.load(path) as file:
            found[part] = file["x"], file["y"]
    return found


def classifier_of(images, folder):
    """(classifier, parameters): trained once, on mirrored images as well."""
    classifier = networks.Classifier(10, channels=(32, 64), dropout=0.05)
    network, steps = dj.from_linen(classifier), UPDATES // 4
    path = folder / f"classifier-{steps}.pkl"
    if path.is_file():
        return classifier, pickle.loads(path.read_bytes())
    tx = optax.adamw(optax.cosine_onecycle_schedule(steps, 4e-3), weight_decay=1e-2)

    def loss(params, batch, context):
        logits = network.apply(params, batch[0], jnp.zeros(len(batch[0])), key=context.key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), {}

    source = data.from_images(*images, augment=data.random_flip)
    params = network.init(jax.random.key(0), source(0, 0, 2)[0], jnp.zeros(2))
    objective = training.Objective(loss, tx)
    step = jax.jit(training.make_train_step(objective, ema=training.make_ema(0.99)))
    state = training.state_from_params(jax.random.key(0), params, objective)
    for i in range(steps):
        state = step(state, source(0, i, 64))[0]
    params = jax.tree.map(np.asarray, training.averaged_params(state))
    path.write_bytes(pickle.dumps(params))
    return classifier, params


def train_cifar(seed, folder):
    """The finished run of a seed, by `diffjax train`, which goes on where it was cut."""
    run = folder / f"cifar-{seed}"
    if not (run / "results.json").is_file():
        words = [
            "--data.name",
            "file",
            "--data.path",
            folder / "cifar-train.npz",
            "--data.holdout",
            0.02,
            "--data.flip",
        ]
        words += ["--network.channels", 32, 64, "--network.attention", 1, "--steps", UPDATES, "--batch-size", 64]
        words += ["--seed", seed, "--samples", 100, "--devices", 1, "--out", run]
        subprocess.run([sys.executable, "-m", "diffjax", "train", "digits", *map(str, words)], check=True)
    return dj.load(run)


def cifar_problem(cifar, seed, folder):
    images = cifar_images(cifar, folder)
    classifier, weights = classifier_of(images["train"], folder)
    run = train_cifar(seed, folder)
    train, test = (images[part][0] / np.float32(127.5) - 1 for part in ("train", "test"))
    features = jax.jit(lambda x: networks.classifier_features(classifier, weights, x))
    logits = jax.jit(lambda x: classifier.apply({"params": weights}, x))
    by_parts = lambda of, x: np.concatenate([of(x[i : i + CHUNK]) for i in range(0, len(x), CHUNK)])
    read = lambda x: by_parts(logits, x).argmax(axis=1)
    held_out = metrics.feature_statistics(by_parts(features, test))
    print(f"classifier: {np.mean(read(test) == images['test'][1]):.3f} of held-out images", flush=True)
    order = np.concatenate(list(zip(*(np.flatnonzero(images["train"][1] == c) for c in range(10)), strict=False)))
    return Problem(
        process=run.process,
        ts=run.ts,
        shape=run.shape,
        held=run.params,
        guided=lambda params, index, scale: dj.classifier_free(
            dj.make_denoiser(run.diffusion, params, index % 10), run.null, scale
        ),
        real=train[order[10 * SAMPLES * seed :][:SAMPLES]],  # label i % 10, as samples have
        reference=test,
        frechet=lambda x: metrics.frechet_distance(metrics.feature_statistics(by_parts(features, x)), held_out),
        right=lambda x, index: read(x) == index % 10,
        updates=run.step,
    )


ROWS = {name: lambda seed, given, law=law: exact_problem(law, seed) for name, law in LAWS.items()}
ROWS["cifar"] = lambda seed, given: cifar_problem(given.cifar, seed, given.runs)


# --- the study ---


def sampler(problem, threshold):
    """`(scale, seed) -> x0 [n, *shape]`; one program for all scales."""

    @jax.jit
    def draw(held, key, index, scale):
        denoiser = THRESHOLDS[threshold](problem.guided(held, index, scale))
        xT = dj.prior(key, problem.process, (len(index), *problem.shape), index=index)
        return dj.sample(None, problem.process, denoiser, xT, problem.ts, dj.DPMpp2M())

    def every(scale, seed):
        parts = [np.arange(i, min(i + CHUNK, SAMPLES)) for i in range(0, SAMPLES, CHUNK)]
        key = jax.random.key(2000 + seed)
        return np.concatenate([draw(problem.held, key, index, jnp.float32(scale)) for index in parts])

    return every


def measure(problem, x):
    """All that is measured of pictures x [n, *shape]."""
    distance = metrics.sliced_wasserstein(jax.random.key(0), jnp.asarray(x), jnp.asarray(problem.reference))
    right = problem.right(x, np.arange(len(x)))
    values = (problem.frechet(x), distance, x.std(), np.median(x), np.mean(np.abs(x) > 0.99), np.mean(right))
    return [f"{float(value):.4f}" for value in values]


def run_row(name, seed, given):
    """Draws a row and seed, and appends the lines that are not there yet."""
    there = {(line["row"], line["seed"], line["threshold"], line["scale"]) for line in read(given.out)}
    wanted = [("real", ""), *((threshold, f"{scale:g}") for threshold in THRESHOLDS for scale in SCALES)]
    wanted = [place for place in wanted if (name, str(seed), *place) not in there]
    if not wanted:
        return
    given.runs.mkdir(parents=True, exist_ok=True)
    problem = ROWS[name](seed, given)
    shown = given.runs / f"shown-{name}.npz"
    pictures = dict(np.load(shown)) if shown.is_file() else {}
    samplers = {threshold: sampler(problem, threshold) for threshold in THRESHOLDS}
    for threshold, scale in wanted:
        begun = time.process_time()
        x = problem.real if threshold == "real" else samplers[threshold](float(scale), seed)
        line = [name, seed, threshold, scale, *measure(problem, x), problem.updates]
        with given.out.open("a", newline="") as file:
            csv.writer(file).writerow([*line, f"{time.process_time() - begun:.1f}"])
        print(*line, flush=True)
        pictures[f"{threshold}{scale}"] = x[:SHOWN]
        if seed == 0:
            np.savez(shown, **pictures)


def read(out):
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def values_of(out):
    """(row, threshold, scale) -> {measure: [a value a seed]}."""
    found = {}
    for line in read(out):
        values = found.setdefault((line["row"], line["threshold"], line["scale"]), {})
        for name in MEASURED:
            values.setdefault(name, []).append(float(line[name]))
    return found


def table(out):
    """The mean over seeds of each row, threshold and scale: lines of Markdown."""
    columns = ("row", "threshold", "scale", "seeds", *MEASURED)
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for place, values in values_of(out).items():
        cells = [f"{np.mean(values[name]):.3f}" for name in MEASURED]
        lines.append(f"| {' | '.join([*place, str(len(values['std'])), *cells])} |")
    return lines


def draw(out, runs, figure=None):
    """On a figure, a column a row: the Frechet distance and the standard deviation over the scale, and pictures."""
    from matplotlib.figure import Figure

    found = values_of(out)
    labels = {"frechet": "squared Frechet distance", "std": "standard deviation of pixels"}
    rows = [name for name in ROWS if (name, "real", "") in found]
    figure = Figure(figsize=(3.2 * len(rows), 8.5), layout="constrained") if figure is None else figure
    axes = figure.subplots(3, len(rows), squeeze=False)
    for column, name in zip(axes.T, rows, strict=True):
        for at, measured in zip(column, labels, strict=False):
            for threshold in THRESHOLDS:
                curve = [found.get((name, threshold, f"{scale:g}"), {}).get(measured, np.nan) for scale in SCALES]
                at.plot(SCALES, [np.mean(values) for values in curve], ".-", label=threshold)
            at.axhline(np.mean(found[name, "real", ""][measured]), color="grey", linestyle="--", linewidth=1)
            at.set(xlabel="guidance scale", ylabel=labels[measured])
        column[0].set(title=name, yscale="log")
        column[2].set_axis_off()
        if (runs / f"shown-{name}.npz").is_file():
            shown = np.load(runs / f"shown-{name}.npz")
            there = [what for what in ("real", "none10", "static10", "dynamic10") if what in shown]
            viz.sample_grid(np.concatenate([shown[what] for what in there]), columns=SHOWN, ax=column[2])
            names = ", ".join(what.removesuffix("10") for what in there)
            column[2].set_title(f"rows: {names} (scale 10)", fontsize=8)
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, default=None, help="one row, in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="how many, where no row is named; cifar has one")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="pictures that a line is measured on")
    parser.add_argument("--updates", type=int, default=UPDATES, help="of cifar's U-Net; its classifier has a quarter")
    parser.add_argument("--cifar", type=Path, default=None, help="zip or folder of cifar10/train/CLASS/*.jpg, test/...")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--runs", type=Path, default=Path("runs/thresholds"), help="folder of trained networks")
    parser.add_argument("--table", action="store_true", help="the table of what is there")
    parser.add_argument("--draw", action="store_true", help="the picture of what is there")
    given = parser.parse_args(argv)
    globals().update(SAMPLES=given.samples, UPDATES=given.updates)
    if given.row == "cifar" and given.cifar is None:
        parser.error("--row cifar: --cifar is needed, the pictures")
    only = given.table or given.draw
    if not only and not given.out.is_file():
        given.out.write_text(",".join(FIELDS) + "\n")
    if given.row is not None and not only:
        run_row(given.row, given.seed, given)
        return 0
    place = ["--out", given.out, "--runs", given.runs, "--samples", str(given.samples), "--updates", str(given.updates)]
    place += [] if given.cifar is None else ["--cifar", given.cifar]
    for name in [] if only else [name for name in ROWS if name != "cifar" or given.cifar is not None]:
        for seed in range(1 if name == "cifar" else given.seeds):
            print(f"{name}, seed {seed}", flush=True)
            subprocess.run([sys.executable, SCRIPT, "--row", name, "--seed", str(seed), *place], check=True)
    print("\n".join(table(given.out)))
    if not given.table:
        draw(given.out, given.runs).savefig(given.out.with_suffix(".png"), dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
