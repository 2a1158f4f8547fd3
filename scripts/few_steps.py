"""Few-step methods at equal budget on 8 Gaussians, whose flow is known: who learns the right map, and how well.

    python scripts/few_steps.py                                all rows and seeds that are not in the CSV yet
    python scripts/few_steps.py --row mean_flow --seed 1       one of them, in this process
    python scripts/few_steps.py --draw                         few_steps.png and the table, from the CSV

Each row and seed has a process and a minute of CPU time on one core (compilation beside it); its lines are appended to
scripts/few_steps.csv, so that the study goes on where it was cut. Network (MLP, 96 x 3), process (cosine), prediction,
batch (256), optimiser (Adam, linear decay) are the same; students with a teacher begin with its parameters, and the
others have the teacher's minute as well. Measured are 20,000 samples: the sliced Wasserstein distance to 20,000 fresh
exact ones, and the root mean square distance to the exact flow from the same noise (X(xT, 1, 0) in closed solve).

Rows: teacher (DDIM), progressive, consistency (CD), consistency_training (iCT), easy_consistency (ECT),
continuous_consistency (sCD), mean_flow, improved_mean_flow, mean_flow_teacher, shortcut.

Half an hour of CPU time a seed. Found: benchmarks/RESULTS.md.
"""

import argparse
import csv
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import diffjax as dj
from diffjax import flow_maps, losses, metrics, networks, process
from diffjax.networks import with_second_time

SCRIPT = Path(__file__)
OUT = SCRIPT.with_suffix(".csv")
FIELDS = ("row", "seed", "steps", "sliced_wasserstein", "distance_to_flow", "on_mode", "updates", "cpu_seconds")
BUDGET, BATCH, CHUNK, SAMPLES = 60.0, 256, 100, 20_000
STD = 0.106
RADIUS = (2 * (1 - STD**2)) ** 0.5  # unit variance
ANGLES = 2 * np.pi * np.arange(8) / 8
MEANS = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
DATA = dj.GaussianMixture(jnp.asarray(MEANS, jnp.float32), STD**2)
PROCESS = dj.Cosine()
NETWORK = dj.from_linen(networks.MLP(width=96, depth=3))
DIFFUSION = dj.Diffusion(NETWORK, PROCESS, dj.parameterisation.EDMPrediction(1.0, clock="angle"))
FIRST = 16  # of DDIM's steps that the first stage of progressive distillation halves


def draw_data(key, n):
    """n exact samples, [n, 2]."""
    mode_key, noise_key = jax.random.split(key)
    return jnp.asarray(MEANS, jnp.float32)[jax.random.randint(mode_key, (n,), 0, 8)] + STD * jax.random.normal(
        noise_key, (n, 2)
    )


def train(loss_of, params, seed, budget, *, rate=2e-3, decay=0.999):
    """Parameters, their average and the number of updates after a budget of CPU seconds on one core.

    `loss_of(params, average, key, x0, share)` is given the share of the budget that is spent; so is the learning rate.
    """
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))

    def update(carry, inputs):
        params, state, average = carry
        key, share = inputs
        x0 = draw_data(jax.random.fold_in(key, 1), BATCH)
        grad = jax.grad(lambda p: loss_of(p, average, key, x0, share))(params)
        change, state = tx.update(grad, state)
        params = jax.tree.map(lambda p, c: p - rate * (1 - share) * c, params, change)
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return (params, state, average), None

    run = jax.jit(lambda carry, keys, share: jax.lax.scan(update, carry, (keys, jnp.full(CHUNK, share)))[0])
    carry = (params, tx.init(params), params)
    keys = lambda n: jax.random.split(jax.random.fold_in(jax.random.key(seed), n), CHUNK)
    jax.block_until_ready(run(carry, keys(0), 0.0))  # compiled, and thrown away
    begun, n = time.process_time(), 0
    with tqdm(total=round(budget), unit="s", disable=None) as bar:
        while (spent := time.process_time() - begun) < budget:
            carry = jax.block_until_ready(run(carry, keys(n), spent / budget))
            n += 1
            bar.update(round(spent) - bar.n)
    return carry[0], carry[2], n * CHUNK


# --- rows: (seed, teacher's parameters) -> {steps: flow map or samples}, updates ---


def denoising(params, average, key, x0, share):
    times = dj.StratifiedTimes(PROCESS)
    return dj.denoising_loss(DIFFUSION, params, key, x0, times=times, weighting=losses.on_v)[0]


def fresh(seed, times=1):
    shape = (2,) if times == 1 else (2, 2)
    return NETWORK.init(jax.random.key(seed), jnp.zeros((2, 2)), jnp.zeros(shape))


def row_teacher(seed, teacher):
    denoiser = dj.make_denoiser(DIFFUSION, teacher)
    for steps in (1, 2, 4, 8, 16, 32):
        yield steps, lambda xT, steps=steps: _ddim(denoiser, xT, steps), 0


def _ddim(denoiser, xT, steps):
    ts = process.angle_grid(PROCESS, steps)
    return dj.sample(None, PROCESS, denoiser, xT, ts, dj.DDIM(), final_denoise=False)


def row_progressive(seed, teacher):
    """The budget is shared by the stages."""
    params, moved, updates = teacher, dj.make_denoiser(DIFFUSION, teacher), 0
    stages = FIRST.bit_length() - 1
    for stage in range(stages):
        grid, fine = (np.asarray(process.angle_grid(PROCESS, FIRST >> k)) for k in (stage + 1, stage))

        def loss(params, average, key, x0, share, grid=grid, fine=fine, moved=moved):
            given = {"teacher": moved, "grid": grid, "teacher_grid": fine}
            return flow_maps.progressive_loss(DIFFUSION, params, key, x0, **given)[0]

        params, _, n = train(loss, params, seed + 10 * stage, BUDGET / stages, rate=1e-3)
        updates += n
        moved = dj.make_flow_map(DIFFUSION, params, knows=grid)
        if len(grid) - 1 <= 4:
            yield len(grid) - 1, lambda xT, F=moved, ts=grid: dj.sample(None, PROCESS, F, xT, ts, dj.Jump()), updates


def _zero(params, updates, middle=(0.5, 0.75, 0.35)):
    """Samples of a consistency model in 1, 2 and 4 steps; fresh noise in the middle."""
    F = dj.make_flow_map(DIFFUSION, params, knows="zero")
    for steps, ts in ((1, (1.0, 0.0)), (2, (1.0, middle[0], 0.0)), (4, (1.0, middle[1], middle[0], middle[2], 0.0))):
        stepper = dj.Jump() if steps == 1 else dj.Jump(gamma=1.0)
        yield (
            steps,
            lambda xT, ts=ts, stepper=stepper: dj.sample(
                jax.random.key(7), PROCESS, F, xT, jnp.array(ts), stepper, index=jnp.arange(len(xT))
            ),
            updates,
        )


def row_consistency(seed, teacher):
    denoiser = dj.make_denoiser(DIFFUSION, teacher)

    def loss(params, average, key, x0, share):
        levels = flow_maps.EDMLevels(PROCESS, 40)
        given = {"teacher": denoiser, "solver": "heun", "penalty": losses.PseudoHuber(0.03)}
        return flow_maps.consistency_loss(
            DIFFUSION, params, key, x0, levels=levels, weighting=flow_maps.unweighted, **given
        )[0]

    _, average, n = train(loss, teacher, seed, BUDGET)
    yield from _zero(average, n)


def row_consistency_training(seed, teacher):
    def loss(params, average, key, x0, share):
        n = jnp.minimum(10 * 2.0 ** jnp.floor(share * 5), 160) + 1
        levels = flow_maps.EDMLevels(PROCESS, n, lognormal=(-0.4, 2.0))
        given = {"penalty": losses.PseudoHuber(0.03), "weighting": flow_maps.OverGap()}
        return flow_maps.consistency_loss(DIFFUSION, params, key, x0, levels=levels, **given)[0]

    _, average, n = train(loss, fresh(seed), seed, 2 * BUDGET)
    yield from _zero(average, n)


def row_easy_consistency(seed, teacher):
    def loss(params, average, key, x0, share):
        levels = flow_maps.ECTLevels(dj.process.LognormalTimes(PROCESS, 0.0, 2.0), jnp.floor(8 * share))
        given = {"penalty": flow_maps.root_mean_square, "weighting": flow_maps.edm_weighting}
        return flow_maps.consistency_loss(DIFFUSION, params, key, x0, levels=levels, **given)[0]

    _, average, n = train(loss, teacher, seed, BUDGET)
    yield from _zero(average, n)


def row_continuous_consistency(seed, teacher):
    denoiser = dj.make_denoiser(DIFFUSION, teacher)

    def loss(params, average, key, x0, share):
        times = dj.process.LognormalTimes(PROCESS, -0.4, 1.6)
        warm_up = jnp.minimum(1.0, share / 0.3)
        return flow_maps.continuous_consistency_loss(
            DIFFUSION, params, key, x0, times=times, teacher=denoiser, warm_up=warm_up
        )[0]

    _, average, n = train(loss, teacher, seed, BUDGET)
    yield from _zero(average, n)


def _any(params, updates):
    """Samples of a map of all pairs in 1, 2 and 4 steps."""
    F = dj.make_flow_map(DIFFUSION, params, knows="any")
    for steps in (1, 2, 4):
        ts = process.angle_grid(PROCESS, steps)
        yield steps, lambda xT, ts=ts: dj.sample(None, PROCESS, F, xT, ts, dj.Jump()), updates


def _mean_flow(seed, params, budget, **given):
    pairs = flow_maps.PartlyEqual(flow_maps.SortedPairs(dj.UniformTimes(PROCESS)), 0.5)

    def loss(params, average, key, x0, share):
        return flow_maps.mean_flow_loss(DIFFUSION, params, key, x0, pairs=pairs, **given)[0]

    _, average, n = train(loss, params, seed, budget)
    yield from _any(average, n)


def row_mean_flow(seed, teacher):
    yield from _mean_flow(seed, fresh(seed, 2), 2 * BUDGET)


def row_improved_mean_flow(seed, teacher):
    yield from _mean_flow(seed, fresh(seed, 2), 2 * BUDGET, improved=True)


def row_mean_flow_teacher(seed, teacher):
    student = with_second_time(NETWORK, teacher, jax.random.key(seed), jnp.zeros((2, 2)))
    yield from _mean_flow(seed, student, BUDGET, teacher=dj.make_denoiser(DIFFUSION, teacher))


def row_shortcut(seed, teacher):
    def loss(params, average, key, x0, share):
        return flow_maps.shortcut_loss(DIFFUSION, params, key, x0, target_params=average, finest=32, share=0.5)[0]

    _, average, n = train(loss, fresh(seed, 2), seed, 2 * BUDGET)
    F = dj.make_flow_map(
        DIFFUSION, average, knows=process.Dyadic(tuple(np.asarray(process.line_grid(PROCESS, 32)).tolist()))
    )
    for steps in (1, 2, 4):
        ts = process.line_grid(PROCESS, steps)
        yield steps, lambda xT, ts=ts: dj.sample(None, PROCESS, F, xT, ts, dj.Jump()), n


ROWS = {name.removeprefix("row_"): row for name, row in list(globals().items()) if name.startswith("row_")}


# --- the study ---


def teacher_of(seed, folder):
    """The averaged parameters of the denoiser of a seed, trained once."""
    path = folder / f"teacher-{seed}.pkl"
    if path.is_file():
        return jax.tree.map(jnp.asarray, pickle.loads(path.read_bytes()))
    _, average, n = train(denoising, fresh(seed), 100 + seed, BUDGET)
    print(f"teacher of seed {seed}: {n} updates", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(jax.tree.map(np.asarray, average)))
    return average


def measure(x, flow, seed):
    """(sliced Wasserstein distance to fresh exact samples, distance to the exact flow, share within 3 std)."""
    truth = draw_data(jax.random.key(1000 + seed), SAMPLES)
    distance = float(metrics.sliced_wasserstein(jax.random.key(0), x, truth))
    to_flow = float(jnp.sqrt(jnp.mean(jnp.sum((x - flow) ** 2, axis=1))))
    nearest = jnp.min(jnp.linalg.norm(x[:, None] - MEANS[None], axis=-1), axis=1)
    return distance, to_flow, float(jnp.mean(nearest < 3 * STD))


def run_row(name, seed, out, folder):
    """Trains a row and seed, and appends its lines."""
    begun = time.process_time()
    teacher = teacher_of(seed, folder)
    xT = dj.prior(jax.random.key(2000 + seed), PROCESS, (SAMPLES, 2))
    flow = dj.exact_flow_map(DATA, PROCESS).move(xT, 1.0, 0.0)
    lines: list[Any] = [(steps, draw(xT), updates) for steps, draw, updates in ROWS[name](seed, teacher)]
    if name == "teacher":
        lines.append(("floor", flow, 0))
    with out.open("a", newline="") as file:
        writer = csv.writer(file)
        for steps, x, updates in lines:
            found = [f"{value:.4f}" for value in measure(x, flow, seed)]
            if "consistency" in name and steps > 1:
                found[1] = ""  # fresh noise: another sample than the flow's
            writer.writerow([name, seed, steps, *found, updates, round(time.process_time() - begun)])
            print(name, seed, steps, *found, updates, flush=True)


def read(out):
    with out.open() as file:
        return list(csv.DictReader(file))


def compared(lines):
    """The lines of seeds that every row has: the floor differs from seed to seed, so that means need the same ones."""
    seeds = {name: {line["seed"] for line in lines if line["row"] == name} for name in {line["row"] for line in lines}}
    common = set.intersection(*seeds.values()) if seeds else set()
    return [line for line in lines if line["seed"] in common]


def table(out):
    """The mean over seeds that every row has, and these seeds, of each row: lines of text."""
    lines, found = [f"{'row':24}{'steps':>6}{'sliced W':>10}  seeds"], {}
    for line in compared(read(out)):
        found.setdefault((line["row"], line["steps"]), []).append(float(line["sliced_wasserstein"]))
    for (row, steps), values in found.items():
        seeds = " ".join(f"{value:.3f}" for value in values)
        lines.append(f"{row:24}{steps:>6}{np.mean(values):10.3f}  {seeds}")
    return lines


def draw(out, figure=None):
    """The figure: a line for each row over the number of steps, and the samples' distance to the exact flow."""
    from matplotlib.figure import Figure

    rows = compared(read(out))
    figure = Figure(figsize=(10, 4.2), layout="constrained") if figure is None else figure
    left, right = figure.subplots(1, 2)
    for axes, field, label in (
        (left, "sliced_wasserstein", "sliced Wasserstein distance"),
        (right, "distance_to_flow", "distance to the exact flow (RMS)"),
    ):
        for name in dict.fromkeys(line["row"] for line in rows):
            mine: dict[int, list[float]] = {}
            for line in rows:
                if line["row"] == name and line["steps"] != "floor" and line[field]:
                    mine.setdefault(int(line["steps"]), []).append(float(line[field]))
            steps = sorted(mine)
            style = {"color": "black", "linestyle": "--"} if name == "teacher" else {}
            axes.plot(steps, [np.mean(mine[k]) for k in steps], marker="o", label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel="evaluations", ylabel=label)
        axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    floor = [float(line["sliced_wasserstein"]) for line in rows if line["steps"] == "floor"]
    left.axhline(float(np.mean(floor)), color="grey", linewidth=1)
    left.text(1, float(np.mean(floor)), "floor", va="top", color="grey")
    right.legend(fontsize=7)
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, default=None, help="one row, in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="how many, where no row is named")
    parser.add_argument("--budget", type=float, default=BUDGET, help="CPU seconds of a row")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--teachers", type=Path, default=Path("runs/few_steps"), help="folder of the trained teachers")
    parser.add_argument("--draw", action="store_true", help="the table and the picture of what is there")
    given = parser.parse_args(argv)
    globals()["BUDGET"] = given.budget
    if not given.draw and not given.out.is_file():
        given.out.write_text(",".join(FIELDS) + "\n")
    if given.row is not None:
        run_row(given.row, given.seed, given.out, given.teachers)
        return 0
    if not given.draw:
        for seed in range(given.seeds):
            for name in ROWS:
                if any(line["row"] == name and line["seed"] == str(seed) for line in read(given.out)):
                    continue
                print(f"{name}, seed {seed}", flush=True)
                place = ["--out", given.out, "--teachers", given.teachers, "--budget", str(given.budget)]
                command = [sys.executable, SCRIPT, "--row", name, "--seed", str(seed), *place]
                subprocess.run(command, check=True)
    print("\n".join(table(given.out)))
    draw(given.out).savefig(given.out.with_suffix(".png"), dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main())
