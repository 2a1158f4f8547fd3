"""Text to image in small: do pictures show what their captions say, by guidance, threshold and text encoder?

    python scripts/text_to_image.py                                  all rows and seeds that are not in the CSV yet
    python scripts/text_to_image.py --row frozen_mini --seed 1       one of them, in this process
    python scripts/text_to_image.py --table                          the table of what is there
    python scripts/text_to_image.py --draw                           text_to_image.png: the curves, from the CSV

Scenes of two coloured shapes at 16 x 16 pixels, from their captions: network, process and data are those of the preset
`shapes`. Each row and seed has a process and 600 s of CPU time (--budget), ten minutes of one core; compilation is
beside it. The base has ten minutes of two cores as well (--row frozen_mini --budget 1200). Lines are appended to
scripts/text_to_image.csv as soon as they are measured, so that the study goes on where it was cut; trained parameters,
encoders and the classifiers of the factors are kept in --runs. The learning rate falls with the share of the budget
that is spent.

Rows: floor (real images, and with shuffled captions), frozen_mini (the base: a T5 encoder of 64 features, pretrained by
span corruption on the captions and frozen), random_mini (the same with random weights), frozen_tiny and frozen_midi (32
and 128 features), joint_mini (64 features, trained with the network from random weights). Features are whitened, in
joint_mini by a layer that is trained, too; joint_slow has a tenth of the learning rate for the encoder, joint_raw no
whitening. The base is drawn with static, dynamic and no threshold; its seed 0 writes text_to_image_samples.png.

Measured are --samples pictures of captions that are trained on, and as many of combinations of colour and shape that
never are: the share of the seven factors that classifiers read as the caption names them, the share of pictures with
all seven right, and in the classifiers' features the Frechet distance, precision and recall, density and coverage
against as many real images. std is that of the pixels.

Found so far, with one row: benchmarks/RESULTS.md.
"""

import argparse
import csv
import math
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffjax as dj
from diffjax import config, metrics, training, viz
from diffjax.data import shapes

SCRIPT = Path(__file__)
OUT = SCRIPT.with_suffix(".csv")
KINDS = ("size", "colour", "shape", "relation")
MEASURED = ("all_right", "factors_right", *KINDS, "frechet", "precision", "recall", "density", "coverage", "std")
FIELDS = ("row", "seed", "budget", "captions", "threshold", "scale", *MEASURED, "updates", "cpu_seconds")
BASE = "frozen_mini"
BUDGET, SAMPLES, READING, CHUNK, SIDE = 600.0, 500, 1500, 250, 16
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0)
FEW_SCALES = (1.0, 2.0, 3.0, 5.0)
PROMPTS = (
    "a red circle above a small blue square",
    "a small yellow triangle left of a green circle",
    "a blue triangle right of a red triangle",
    "a small green square below a yellow circle",
)
"""Of the picture."""


class Row(NamedTuple):
    """A trained model: its text encoder, and what it is drawn with."""

    encoder: str
    """As of `diffjax encode-text`."""
    size: str
    settings: tuple[tuple[str, float], ...]
    """(threshold, scale)."""
    training: str = "frozen"
    """frozen, or joint: the encoder is trained with the network."""
    whiten: bool = True
    """Whether the encoder's features are whitened."""
    rate: float = 1.0
    """The encoder's learning rate over the network's, where it is trained."""


_STATIC = tuple(("static", scale) for scale in FEW_SCALES)
ROWS: dict[str, Row | None] = {
    "floor": None,
    BASE: Row(
        "pretrained",
        "mini",
        (
            *(("static", scale) for scale in SCALES),
            *((name, scale) for name in ("dynamic", "none") for scale in (1.0, 3.0, 5.0, 10.0)),
        ),
    ),
    "random_mini": Row("random", "mini", _STATIC),
    "frozen_tiny": Row("pretrained", "tiny", _STATIC),
    "frozen_midi": Row("pretrained", "midi", _STATIC),
    "joint_mini": Row("random", "mini", _STATIC, training="joint"),
    "joint_slow": Row("random", "mini", _STATIC, training="joint", rate=0.1),
    "joint_raw": Row("random", "mini", _STATIC, training="joint", whiten=False),
}
SPLITS = {"trained": "train", "held out": "test"}


# --- training ---


def configuration(row, seed, folder):
    """The preset `shapes` with the captions of a row's encoder, which is made where it is not there."""
    texts = folder / f"texts-{row.encoder}-{row.size}-{seed}{'-whitened' if row.whiten else ''}"
    every = shapes("all", size=SIDE).texts
    encoder = config.make_text_encoder(texts, every, encoder=row.encoder, size=row.size, whiten=row.whiten, seed=seed)
    if not (texts / "texts.npz").is_file():
        encoder.encode(every).save(texts / "texts.npz")
    preset = config.PRESETS["shapes"]
    given = {"text": str(texts), "size": SIDE, "text_encoder": row.training}
    optimiser = replace(preset.optimiser, text_rate=row.rate)
    return replace(preset, seed=seed, data=replace(preset.data, **given), optimiser=optimiser)


def learning_rate(peak, share):
    """Linear warm-up over a fiftieth of the budget, then a cosine to zero."""
    return peak * min(1.0, share / 0.02) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def train(run, source, budget, path):
    """(averaged parameters, updates) after a budget of CPU seconds, summed over cores; compilation is not counted.

    What there is after each hundred steps is kept at `path`, and gone on from.
    """
    options = run.config.optimiser
    tx = optax.chain(optax.clip_by_global_norm(options.clip), optax.scale_by_adam(options.beta1, options.beta2))
    key, size = jax.random.key(run.config.seed), run.config.batch_size
    loss_fn = run.parts.loss

    @jax.jit
    def update(params, average, state, step, rate, batch):
        context = training.Context(jax.random.fold_in(key, step), step)
        (loss, _), slope = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, context)
        change, state = tx.update(slope, state)
        if "text_encoder" in change:
            slower = jax.tree.map(lambda c: options.text_rate * c, change["text_encoder"])
            change = change | {"text_encoder": slower}
        params = jax.tree.map(lambda p, c: p - rate * c, params, change)
        decay = jnp.minimum(run.config.ema_decay, (1 + step) / (10 + step))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return params, average, state, loss

    params = config.begin_from_encoder(run, config.fresh_state(run)).params
    carry = params, params, tx.init(params)
    jax.block_until_ready(update(*carry, 0, 0.0, source(run.config.seed, 0, size)))  # compiled, and thrown away
    step, before, losses = 0, 0.0, []
    if path.is_file():
        carry, step, before = pickle.loads(path.read_bytes())
    begun = time.process_time() - before
    while (spent := time.process_time() - begun) < budget:
        rate = learning_rate(options.learning_rate, spent / budget)
        *carry, loss = update(*carry, step, rate, source(run.config.seed, step, size))
        losses.append(loss)  # fetched when it is printed: the next batch is drawn meanwhile
        step += 1
        if step % 100 == 0:
            mean = float(jnp.mean(jnp.stack(losses)))
            print(f"{spent:5.0f} s of {budget:g}: step {step}, loss {mean:.4f}", flush=True)
            losses = []
            part = path.with_suffix(".new")
            part.write_bytes(pickle.dumps((jax.tree.map(np.asarray, carry), step, time.process_time() - begun)))
            part.replace(path)  # whole, or not at all
    return carry[1], step


def trained(name, seed, folder):
    """(run, data, averaged parameters, updates, CPU seconds) of a row, trained once."""
    begun = time.process_time()
    chosen = configuration(ROWS[name], seed, folder)
    data = config.build_data(chosen.data)
    run = config.build_run(chosen, data.samples)
    path = folder / f"{name}-{seed}-{BUDGET:g}.pkl"
    if path.is_file():
        params, updates, seconds = pickle.loads(path.read_bytes())
        return run, data, jax.tree.map(jnp.asarray, params), updates, seconds
    params, updates = train(run, data.source, BUDGET, path.with_suffix(".part"))
    seconds = round(time.process_time() - begun)
    path.write_bytes(pickle.dumps((jax.tree.map(np.asarray, params), updates, seconds)))
    path.with_suffix(".part").unlink(missing_ok=True)
    return run, data, params, updates, seconds


def sampler(run, threshold):
    """`(params, index [n], cond, scale) -> x0`, of a threshold; one program for all scales."""
    parts = run.parts

    @jax.jit
    def draw(params, key, index, cond, scale):
        guided = dj.classifier_free(parts.denoiser(params, cond), parts.null, scale)
        if threshold != "none":
            guided = config.THRESHOLDS[threshold](guided, bound=1.0)
        xT = dj.prior(key, parts.process, (len(index), *run.samples.shape), index=index)
        return dj.sample(None, parts.process, guided, xT, parts.ts, parts.stepper)

    def every(params, cond, scale, seed):
        n, key, found = len(cond.mask), jax.random.key(2000 + seed), []
        size = min(CHUNK, n)
        for start in range(0, n, size):
            index = np.minimum(np.arange(start, start + size), n - 1)
            rows = jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf[index]), cond)
            found.append(np.asarray(draw(params, key, jnp.asarray(index), rows, scale)))
        return np.concatenate(found)[:n]

    return every


# --- measures ---


class Captions(NamedTuple):
    """Captions to draw for, and real images to compare with."""

    factors: np.ndarray
    """What the captions say, [n, k]."""
    images: np.ndarray
    """Real ones of these captions, [n, h, w, c]."""
    reference: np.ndarray
    """Real ones of other draws, [n, h, w, c]."""


def captions_of(seed):
    """Captions that are trained on, and those of combinations that are not."""
    found, holdout = {}, config.PRESETS["shapes"].data.holdout
    for name, split in SPLITS.items():
        scenes = shapes(split, size=SIDE, holdout=holdout)
        images, factors = scenes(3000 + seed, 0, SAMPLES)
        found[name] = Captions(factors, images, scenes(4000 + seed, 0, SAMPLES)[0])
    return found


def measure(reader, x, factors, reference):
    """All that is measured of pictures x for captions of these factors, against real images."""
    found = reader.alignment(x, factors)
    named = list(zip(reader.scenes.factors, found.by_factor, strict=True))
    mine, other = reader.features(x), reader.features(reference)
    values = {"all_right": found.all_right, "factors_right": found.share, "std": x.std()}
    values |= {kind: np.mean([share for name, share in named if kind in name]) for kind in KINDS}
    values["frechet"] = metrics.frechet_distance(*(metrics.feature_statistics(each) for each in (mine, other)))
    values |= metrics.precision_recall(mine, other)._asdict() | metrics.density_coverage(mine, other)._asdict()
    return [f"{float(values[name]):.4f}" for name in MEASURED]


def run_row(name, seed, out, folder):
    """Trains a row and seed, and appends the lines that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {tuple(line[field] for field in FIELDS[:6]) for line in read(out)}
    wanted, row = captions_of(seed), ROWS[name]
    reader = config.factor_reader(shapes(size=SIDE), folder / "factors", report=print, steps=READING)

    def append(captions, threshold, scale, images, updates, seconds, factors=None):
        place = (name, str(seed), "" if row is None else f"{BUDGET:g}", captions, threshold, scale)
        if place in there:
            return
        of = wanted[captions]
        found = measure(reader, images(), of.factors if factors is None else factors, of.reference)
        line = [*place, *found, updates, seconds]
        with out.open("a", newline="") as file:
            csv.writer(file).writerow(line)
        print(*line, flush=True)

    if row is None:
        for captions, (factors, images, _) in wanted.items():
            append(captions, "real", "", lambda x=images: x, 0, 0)
            other = np.random.default_rng(seed).permutation(factors)
            append(captions, "shuffled", "", lambda x=images: x, 0, 0, other)
        return
    run, data, params, updates, seconds = trained(name, seed, folder)
    samplers = {threshold: sampler(run, threshold) for threshold, _ in row.settings}
    for threshold, scale in row.settings:
        for captions, of in wanted.items():
            texts = data.scenes.captions(of.factors)
            images = lambda texts=texts, t=threshold, s=scale: samplers[t](params, data.encoded(texts), s, seed)
            append(captions, threshold, f"{scale:g}", images, updates, seconds)
    if name == BASE and seed == 0:
        pictures(samplers, data, params, out.with_name(f"{out.stem}_samples.png"))


def pictures(samplers, data, params, path):
    """Four samples of each prompt, at several scales and thresholds, with the captions above them."""
    from matplotlib.figure import Figure

    every = (("static", 1.0), ("static", 3.0), ("static", 10.0), ("dynamic", 3.0), ("dynamic", 10.0), ("none", 10.0))
    shown = [setting for setting in every if setting[0] in samplers]
    cond = data.encoded([text for text in PROMPTS for _ in range(4)])
    figure = Figure(figsize=(10, 9), layout="constrained")
    for each, text in zip(figure.subfigures(len(PROMPTS), 1), PROMPTS, strict=True):
        each.suptitle(text, fontsize=9)
    columns = [figure_of.subplots(1, len(shown)) for figure_of in figure.subfigs]
    for column, (threshold, scale) in enumerate(shown):
        x = samplers[threshold](params, cond, scale, 0)
        for row, axes in enumerate(columns):
            viz.sample_grid(x[4 * row : 4 * row + 4], columns=2, ax=axes[column])
            axes[column].set_title(f"{threshold}, scale {scale:g}", fontsize=7)
    figure.savefig(path, dpi=120)


# --- the study ---


def read(out):
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


PLACE = ("row", "budget", "captions", "threshold", "scale")


def means(lines):
    """(row, budget, captions, threshold, scale) -> {measure: [a value a seed]}; real images have no budget."""
    found = {}
    for line in lines:
        values = found.setdefault(tuple(line[name] for name in PLACE), {})
        for name in MEASURED:
            values.setdefault(name, []).append(float(line[name]))
    return found


def budgets(found, row):
    """Those of a row, the least first."""
    return sorted({place[1] for place in found if place[0] == row}, key=float)


def table(out):
    """The mean over seeds of each row, captions, threshold and scale: lines of Markdown."""
    columns = (*PLACE, "seeds", *MEASURED)
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for place, values in means(read(out)).items():
        cells = [f"{np.mean(values[name]):.3f}" for name in MEASURED]
        lines.append(f"| {' | '.join([*place, str(len(values[MEASURED[0]])), *cells])} |")
    return lines


def draw(out, figure=None):
    """On a figure: alignment, fidelity and coverage of the base over the guidance scale, and the encoders beside."""
    from matplotlib.figure import Figure

    found = means(read(out))
    figure = Figure(figsize=(13, 6.5), layout="constrained") if figure is None else figure
    axes = figure.subplots(2, 4)
    shown = (("all_right", "all factors right"), ("precision", "fidelity (precision)"), ("coverage", "coverage"))
    for line, captions in zip(axes, SPLITS, strict=True):
        for at, (measured, label) in zip(line[:3], shown, strict=True):
            for threshold in ("static", "dynamic", "none"):
                for budget in budgets(found, BASE)[-1:]:
                    _curve(at, found, (BASE, budget, captions, threshold), measured, threshold)
            _floors(at, found, captions, measured)
            at.set(xlabel="guidance scale", ylabel=label, title=f"{captions} captions", ylim=(-0.02, 1.05))
        line[0].legend(fontsize=7)
        for name, row in ROWS.items():
            for budget in [] if row is None else budgets(found, name):
                _curve(line[3], found, (name, budget, captions, "static"), "all_right", f"{name}, {budget} s")
        line[3].set(xlabel="guidance scale", ylabel="all factors right", title="text encoders", ylim=(-0.02, 1.05))
        line[3].legend(fontsize=7)
    return figure


def _curve(axes, found, place, measured, label):
    """The mean over seeds, and each seed as a dot."""
    at = sorted((float(key[4]), values[measured]) for key, values in found.items() if key[:4] == place)
    if at:
        (drawn,) = axes.plot([scale for scale, _ in at], [np.mean(values) for _, values in at], label=label)
        for scale, values in at:
            axes.plot([scale] * len(values), values, ".", color=drawn.get_color())


def _floors(axes, found, captions, measured):
    """Real images, and for alignment shuffled captions."""
    for what, style in (("real", "--"), ("shuffled", ":")):
        values = found.get(("floor", "", captions, what, ""))
        if values is not None and (what == "real" or measured == "all_right"):
            axes.axhline(np.mean(values[measured]), color="grey", linewidth=1, linestyle=style)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, default=None, help="one row, in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=2, help="how many, where no row is named")
    parser.add_argument("--budget", type=float, default=BUDGET, help="CPU seconds of a training, over all cores")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="pictures that a line is measured on")
    parser.add_argument("--reading", type=int, default=READING, help="steps of the classifiers' training")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--runs", type=Path, default=Path("runs/text_to_image"), help="folder of what is trained")
    parser.add_argument("--table", action="store_true", help="the table of what is there")
    parser.add_argument("--draw", action="store_true", help="the picture of what is there")
    given = parser.parse_args(argv)
    globals().update(BUDGET=given.budget, SAMPLES=given.samples, READING=given.reading)
    only = given.table or given.draw
    if not only and not given.out.is_file():
        given.out.write_text(",".join(FIELDS) + "\n")
    if given.row is not None and not only:
        run_row(given.row, given.seed, given.out, given.runs)
        return 0
    options = ("budget", "samples", "reading", "out", "runs")
    shared = [part for name in options for part in (f"--{name}", str(getattr(given, name)))]
    for seed in range(0 if only else given.seeds):
        for name in ROWS:  # a row that is complete costs nothing but its start
            print(f"{name}, seed {seed}", flush=True)
            subprocess.run([sys.executable, SCRIPT, "--row", name, "--seed", str(seed), *shared], check=True)
    print("\n".join(table(given.out)))
    if not given.table:
        draw(given.out).savefig(given.out.with_suffix(".png"), dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
