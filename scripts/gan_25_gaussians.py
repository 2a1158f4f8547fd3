"""Few evaluations on 25 Gaussians: a plain GAN, R3GAN, a denoising diffusion GAN, and diffusion in four steps.

    python scripts/gan_25_gaussians.py                             all rows and seeds that are not in the CSV yet
    python scripts/gan_25_gaussians.py --row r3gan --seed 1        one of them, in this process
    python scripts/gan_25_gaussians.py --table                     the table of what is there
    python scripts/gan_25_gaussians.py --draw --seed 2 --budget 600    gan_25_gaussians.png: samples of each row

The modes lie on a grid of 5 x 5, their standard deviation is a tenth of their spacing, and each coordinate has variance
1. Each row and seed has a process and a budget of CPU time on one core (60 s, or --budget; compilation beside it), and
appends a line to scripts/gan_25_gaussians.csv, so that the study goes on where it was cut. Networks have three hidden
layers of 128, batches 256 points. The number of updates is what fits into the budget, as a first chunk of them takes.

Rows: floor (exact samples), plain_gan (non-saturating, no penalty), r3gan (relativistic pairs, R1 + R2, annealed),
ddgan (4 steps, R3GAN's recipe), ddim (a denoiser, 4 steps), progressive (distilled from it to 4 steps, with a second
budget). The penalties begin at gamma = 0.1 for r3gan and 0.01 for ddgan, the better of the two for each; r3gan_weak and
ddgan_strong have the other.

All GANs have the optimiser of R3GAN, Adam without a first moment from 2e-4, so that the first two rows differ in their
loss and penalties alone. At 1e-3 R3GAN's discriminator stayed near zero, and after 6000 updates all samples were at one
mode.

Measured are 20,000 samples: the share within 3 standard deviations of a mode (exact samples: 0.989), the modes that at
least 20 of these are at, the divergence KL(histogram of nearest modes || uniform) in nats (floor 24/40,000), and the
sliced Wasserstein distance to exact samples.

Ten minutes of CPU time a seed by 60 s, 80 by 600 s. Found: benchmarks/RESULTS.md.
"""

import argparse
import csv
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffjax as dj
from diffjax import flow_maps, gan, losses, metrics, networks, process, training, viz

SCRIPT = Path(__file__)
OUT = SCRIPT.with_suffix(".csv")
FIELDS = ("row", "seed", "budget", "nfe", "on_mode", "modes", "kl", "sliced_wasserstein", "updates", "cpu_seconds")
BUDGET, BATCH, CHUNK, SAMPLES, SHOWN = 60.0, 256, 100, 20_000, 4000
STRONG, WEAK = 0.1, 0.01  # gamma of R1 and R2 at the first update, a tenth of it at the last
SPACING = (2 + 0.1**2) ** -0.5  # unit variance
STD = 0.1 * SPACING
GRID = SPACING * np.stack(np.meshgrid(np.arange(-2, 3), np.arange(-2, 3)), axis=-1).reshape(25, 2)
MEANS = jnp.asarray(GRID, jnp.float32)
PROCESS = dj.Cosine()
NETWORK = dj.from_linen(networks.MLP(width=128, depth=3))
DIFFUSION = dj.Diffusion(NETWORK, PROCESS, dj.parameterisation.EDMPrediction(1.0, clock="angle"))
DISCRIMINATOR = dj.from_linen(networks.Discriminator(width=128, depth=3))
LATENTS, STEPS = 16, 4


def draw_data(key, n):
    """n exact samples, [n, 2]."""
    keys = jax.random.split(key)
    return MEANS[jax.random.randint(keys[0], (n,), 0, 25)] + STD * jax.random.normal(keys[1], (n, 2))


def train(objectives_of, params, seed, budget):
    """(parameters with their averages, updates) after a budget of CPU seconds; `objectives_of(steps)` makes the step.

    A first chunk is timed, and thrown away, so that schedules know how many steps there are.
    """

    def compiled(steps):
        objectives = objectives_of(steps)
        step = training.make_train_step(objectives, ema=training.make_ema(0.999))
        state = training.state_from_params(jax.random.key(seed), params, objectives)

        def update(state, key):
            return step(state, (draw_data(key, BATCH), None))[0], None

        run = jax.jit(lambda state, keys: jax.lax.scan(update, state, keys)[0])
        data_key = jax.random.key(4000 + seed)  # seed alone is that of the losses
        keys = lambda n: jax.random.split(jax.random.fold_in(data_key, n), CHUNK)
        jax.block_until_ready(run(state, keys(0)))
        return run, state, keys

    run, state, keys = compiled(1000)
    begun = time.process_time()
    jax.block_until_ready(run(state, keys(0)))
    chunks = max(1, round(budget / (time.process_time() - begun)))
    run, state, keys = compiled(chunks * CHUNK)
    for n in range(chunks):
        state = jax.block_until_ready(run(state, keys(n)))
    return training.averaged_params(state), chunks * CHUNK


def adversarial(model, seed, *, tx, **given):
    """(averaged parameters, updates) of a GAN; tx and gammas are functions of the number of steps."""

    def objectives(steps):
        choices = {name: value(steps) if callable(value) else value for name, value in given.items()}
        named = gan.training_losses(model, **choices)
        return [training.Objective(loss_fn, tx(steps), name) for name, loss_fn in named.items()]

    return train(objectives, model.init(jax.random.key(seed), jnp.zeros((1, 2))), seed, BUDGET)


# --- rows: (seed, folder) -> samples [n, 2], network evaluations a sample, updates ---


def row_floor(seed, folder):
    return draw_data(jax.random.key(3000 + seed), SAMPLES), 0, 0


def _plain():
    generator = dj.from_linen(networks.Perceptron((2,), width=128, depth=3))
    return gan.GAN(generator, DISCRIMINATOR, LATENTS)


def _drawn(model, params, seed):
    return gan.generate_samples(model, params, jax.random.key(2000 + seed), jnp.arange(SAMPLES))


def row_plain_gan(seed, folder):
    model = _plain()
    params, updates = adversarial(model, seed, tx=lambda steps: gan.r3gan(steps).tx)
    return _drawn(model, params, seed), 1, updates


def _recipe(gamma):
    """The optimiser, loss and penalties of R3GAN, for `adversarial`."""
    recipe = lambda steps: gan.r3gan(steps, gamma=gamma)
    weight = lambda steps: recipe(steps).gamma
    return {"tx": lambda steps: recipe(steps).tx, "loss": gan.Relativistic(), "r1": weight, "r2": weight}


def row_r3gan(seed, folder, gamma=STRONG):
    model = _plain()
    params, updates = adversarial(model, seed, **_recipe(gamma))
    return _drawn(model, params, seed), 1, updates


def row_r3gan_weak(seed, folder):
    return row_r3gan(seed, folder, WEAK)


def row_ddgan(seed, folder, gamma=WEAK):
    generator = dj.from_linen(networks.LatentNetwork(networks.PlainMLP(width=128, depth=3), width=128))
    ts = np.linspace(1, 0, STEPS + 1)
    model = gan.DenoisingGAN(generator, DISCRIMINATOR, dj.VariancePreserving(), ts, (2,), LATENTS)
    params, updates = adversarial(model, seed, **_recipe(gamma))
    return _drawn(model, params, seed), STEPS, updates


def row_ddgan_strong(seed, folder):
    return row_ddgan(seed, folder, STRONG)


def _adam(steps, rate=2e-3):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(rate, 0.0, steps), b2=0.99))


def denoiser_of(seed, folder):
    """(parameters, updates) of the denoiser of a seed and budget, trained once."""
    path = folder / f"denoiser-{seed}-{BUDGET:g}.pkl"
    if path.is_file():
        return pickle.loads(path.read_bytes())

    def loss(params, batch, context):
        given = {"times": dj.StratifiedTimes(PROCESS), "weighting": losses.on_v, "index": context.index}
        return dj.denoising_loss(DIFFUSION, params, context.key, batch[0], **given)[0], {}

    start = NETWORK.init(jax.random.key(seed), jnp.zeros((2, 2)), jnp.zeros(2))
    params, updates = train(lambda steps: training.Objective(loss, _adam(steps)), start, seed, BUDGET)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps((jax.tree.map(np.asarray, params), updates)))
    return params, updates


def _noise(seed):
    return dj.prior(jax.random.key(2000 + seed), PROCESS, (SAMPLES, 2))


def row_ddim(seed, folder):
    params, updates = denoiser_of(seed, folder)
    denoiser = dj.make_denoiser(DIFFUSION, jax.tree.map(jnp.asarray, params))
    ts = process.angle_grid(PROCESS, STEPS)
    x0 = dj.sample(None, PROCESS, denoiser, _noise(seed), ts, dj.DDIM(), final_denoise=False)
    return x0, STEPS, updates


def row_progressive(seed, folder):
    """16 steps to 8, and 8 to 4; half of the budget each."""
    params, _ = denoiser_of(seed, folder)
    params, updates = jax.tree.map(jnp.asarray, params), 0
    moved = dj.make_denoiser(DIFFUSION, params)
    for stage, count in enumerate((2 * STEPS, STEPS)):
        grid, fine = (np.asarray(process.angle_grid(PROCESS, n)) for n in (count, 2 * count))

        def loss(params, batch, context, grid=grid, fine=fine, moved=moved):
            given = {"teacher": moved, "grid": grid, "teacher_grid": fine, "index": context.index}
            return flow_maps.progressive_loss(DIFFUSION, params, context.key, batch[0], **given)[0], {}

        objective = lambda steps, loss=loss: training.Objective(loss, _adam(steps, 1e-3))
        params, n = train(objective, params, seed + 10 * stage, BUDGET / 2)
        updates += n
        moved = dj.make_flow_map(DIFFUSION, params, knows=grid)
    return dj.sample(None, PROCESS, moved, _noise(seed), grid, dj.Jump()), STEPS, updates


TITLES = {
    "floor": "exact samples",
    "plain_gan": "plain GAN",
    "r3gan": "R3GAN",
    "r3gan_weak": "R3GAN, penalties of a tenth",
    "ddgan": "denoising GAN, 4 steps",
    "ddgan_strong": "denoising GAN, penalties times ten",
    "ddim": "DDIM, 4 steps",
    "progressive": "progressive distillation, 4 steps",
}
ROWS = {name.removeprefix("row_"): row for name, row in list(globals().items()) if name.startswith("row_")}


# --- the study ---


def measure(x, seed):
    """(share within 3 std of a mode, modes hit, KL of the modes' histogram to uniform, sliced Wasserstein distance)."""
    distances = np.linalg.norm(np.asarray(x)[:, None] - GRID[None], axis=-1)
    nearest, near = distances.argmin(axis=1), distances.min(axis=1) < 3 * STD
    shares = np.bincount(nearest, minlength=25) / len(x)
    present = shares[shares > 0]
    kl = float(np.sum(present * np.log(25 * present)))
    hit = int((np.bincount(nearest[near], minlength=25) >= 20).sum())
    truth = draw_data(jax.random.key(1000 + seed), SAMPLES)
    return float(near.mean()), hit, kl, float(metrics.sliced_wasserstein(jax.random.key(0), x, truth))


def samples_of(name, seed, folder):
    """The file of some of a row's samples, for the picture."""
    return folder / f"samples-{name}-{seed}-{BUDGET:g}.npy"


def run_row(name, seed, out, folder):
    """Trains a row and seed, and appends its line."""
    begun = time.process_time()
    x, nfe, updates = ROWS[name](seed, folder)
    path = samples_of(name, seed, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(x[:SHOWN], np.float32))
    on_mode, modes, kl, distance = measure(x, seed)
    line = [name, seed, BUDGET, nfe, f"{on_mode:.4f}", modes, f"{kl:.4f}", f"{distance:.4f}", updates]
    with out.open("a", newline="") as file:
        csv.writer(file).writerow([*line, round(time.process_time() - begun)])
    print(*line, flush=True)


def read(out):
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def table(out):
    """The mean over seeds of each row and budget, with their range: lines of text."""
    lines, found = [f"{'row':14}{'budget':>8}{'nfe':>5}{'on mode':>18}{'modes':>12}{'KL':>20}{'sliced W':>18}"], {}
    for line in read(out):
        found.setdefault((line["row"], line["budget"], line["nfe"]), []).append(line)
    for (row, budget, nfe), of in found.items():
        values = {name: np.array([float(line[name]) for line in of]) for name in FIELDS[4:8]}
        shown = lambda v, d: f"{v.mean():.{d}f} ({v.min():.{d}f}-{v.max():.{d}f})"
        cells = [shown(values["on_mode"], 2), shown(values["modes"], 0), shown(values["kl"], 3)]
        cells.append(shown(values["sliced_wasserstein"], 3))
        lines.append(f"{row:14}{float(budget):8.0f}{nfe:>5}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


def draw(seed, folder):
    """Samples of each row of a seed and budget that are there, and exact ones: a figure."""
    from matplotlib.figure import Figure

    found = {name: np.load(path) for name in ROWS if (path := samples_of(name, seed, folder)).is_file()}
    if not found:
        raise SystemExit(f"no samples of seed {seed} at {BUDGET:g} s in {folder}: run its rows first")
    columns, rows = -(-len(found) // 2), min(2, len(found))
    figure = Figure(figsize=(3 * columns, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (name, x) in zip(axes, found.items(), strict=False):
        viz.scatter(x, ax=ax)
        ax.set(title=TITLES[name], xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), aspect="equal", xticks=[], yticks=[])
    for ax in axes[len(found) :]:
        ax.set_axis_off()
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, default=None, help="one row, in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="how many, where no row is named")
    parser.add_argument("--budget", type=float, default=BUDGET, help="CPU seconds of a row")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/gan_25_gaussians"), help="folder of denoisers and samples"
    )
    parser.add_argument("--table", action="store_true", help="the table of what is there")
    parser.add_argument("--draw", action="store_true", help="the picture of a seed and budget whose rows are there")
    given = parser.parse_args(argv)
    globals()["BUDGET"] = given.budget
    if given.draw:
        draw(given.seed, given.runs).savefig(given.out.with_suffix(".png"), dpi=110)
        return 0
    if not given.table and not given.out.is_file():
        given.out.write_text(",".join(FIELDS) + "\n")
    if given.row is not None:
        run_row(given.row, given.seed, given.out, given.runs)
        return 0
    for seed in range(0 if given.table else given.seeds):
        for name in ROWS:
            here = (name, str(seed), str(given.budget))
            if any((line["row"], line["seed"], line["budget"]) == here for line in read(given.out)):
                continue
            print(f"{name}, seed {seed}", flush=True)
            place = ["--out", given.out, "--runs", given.runs, "--budget", str(given.budget)]
            subprocess.run([sys.executable, SCRIPT, "--row", name, "--seed", str(seed), *place], check=True)
    print("\n".join(table(given.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
