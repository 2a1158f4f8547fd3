"""Digits in four steps and in one: students of `diffjax distill`, their guidance built in, against their teacher.

    python scripts/few_steps_digits.py                          all rows and seeds that are not in the CSV yet
    python scripts/few_steps_digits.py --row progressive_4      one of them
    python scripts/few_steps_digits.py --draw                   the table and few_steps_digits.png

The teacher is the run of `diffjax train digits`, which samples by 20 steps of DPM-Solver++ (2M) at guidance 1.1. Each
student is distilled by the command of its row, on one core; 2,000 samples are drawn with each of three seeds, and
compared with held-out digits: the Frechet distance of pixels, less its floor (that of the training images), over the
same of the teacher. Aims: 1.3 at four steps, 2 at one. Lines are appended to scripts/few_steps_digits.csv, and commands
go on where they were cut.

Twenty-five minutes of CPU time: 5 for the teacher, 4 to 6 for each student, 7 for samples of the teacher. Found:
benchmarks/RESULTS.md.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


import numpy as np

from diffjax import config as configs
from diffjax.cli._draw import Draw
from diffjax.cli._measure import measure
from diffjax.config import OtherSampler

SCRIPT = Path(__file__)
OUT = SCRIPT.with_suffix(".csv")
FIELDS = ("row", "seed", "steps", "frechet", "floor", "nearest", "cpu_seconds")
SAMPLES = 2000
AIMS = {4: 1.3, 1: 2.0}
TEACHER = ("teacher", "teacher_ddim")
"""As its run samples; and by DDIM, whose 32 or 16 steps progressive distillation begins with."""
DDIM = (16, 32)
CD = ("--loss.name", "consistency", "--loss.fewest", "18", "--loss.most", "18")
PROGRESSIVE = ("--loss.name", "progressive", "--loss.teacher-steps", "8")
FROM_64 = ("--loss.name", "progressive", "--loss.teacher-steps", "16")
SLOWER = ("--updates", "250", "--learning-rate", "0.001")
ROWS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "progressive_4": ((*FROM_64, "--steps", "4", "--loss.first", "64", *SLOWER), (4,)),
    "progressive_1": ((*PROGRESSIVE, "--steps", "1", "--loss.first", "16", *SLOWER), (1,)),
    "consistency": ((*CD, "--steps", "4", "--updates", "400"), (4, 1)),
}
"""Name -> (options of `diffjax distill`, numbers of steps that it is measured at)."""


def command(run, *words):
    """Runs a command of diffjax on one core unless its run is finished; adds the CPU seconds to RUN/cpu_seconds."""
    if (run / "results.json").is_file():
        return
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", "diffjax", *words, "--out", run, "--devices", "1"], check=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    (run / "cpu_seconds").write_text(str(seconds_of(run) + spent))


def seconds_of(run):
    """CPU seconds of a run's commands so far; those that were cut are not counted."""
    path = run / "cpu_seconds"
    return float(path.read_text()) if path.is_file() else 0.0


def prepared(name, runs, teacher, updates=None):
    """The folder of the finished run of a row."""
    if name in TEACHER:
        command(teacher, "train", "digits")
        return teacher
    options = list(ROWS[name][0])
    if updates is not None:
        options[options.index("--updates") + 1] = str(updates)
    command(runs / name, "distill", teacher, *options, "--samples", "100")
    return runs / name


def draws(name, run):
    """{steps: Draw} of a row: the teacher by its own sampler and by DDIM, students in their numbers of steps."""
    steps = ROWS[name][1] if name in ROWS else DDIM if name == "teacher_ddim" else ()
    given = {"sampler": OtherSampler(name="ddim", grid="angle")} if steps == DDIM else {}
    found, params = configs.load_run(run)
    return {
        n: Draw(found.family, params, given | {"steps": n}, chunk=250) for n in steps or (found.config.sampler.steps,)
    }


def measure_row(name, run, out, seeds, samples):
    """Appends the lines of a row that are not there."""
    done = {(line["seed"], line["steps"]) for line in read(out) if line["row"] == name}
    data = configs.build_data(configs.load_run(run)[0].config.data)
    for steps, draw in draws(name, run).items():
        for seed in range(seeds):
            if (str(seed), str(steps)) in done:
                continue
            results = measure(draw, data, n=samples, seed=seed)[0]
            of = "Frechet distance to held out: "
            values = [results[of + "samples"], results[of + "floor, training images"]]
            values.append(results["nearest training image: samples, median"])
            with out.open("a", newline="") as file:
                found = [f"{value:.4f}" for value in values]
                csv.writer(file).writerow([name, seed, steps, *found, round(seconds_of(run))])
            print(name, seed, steps, *found, flush=True)


def read(out):
    if not out.is_file():
        out.write_text(",".join(FIELDS) + "\n")
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def table(out):
    """Lines of text: Frechet distance less the floor, its ratio to the teacher's, and that of each seed."""
    excess = {
        (line["row"], int(line["steps"]), int(line["seed"])): float(line["frechet"]) - float(line["floor"])
        for line in read(out)
    }
    base = {seed: value for (row, _, seed), value in excess.items() if row == "teacher"}
    lines = [f"{'row':24}{'steps':>6}{'distance - floor':>18}{'ratio':>8}{'aim':>6}  seeds"]
    for row, steps in dict.fromkeys(key[:2] for key in excess):
        mine = {seed: value for (name, n, seed), value in excess.items() if (name, n) == (row, steps)}
        ratios = [value / base[seed] for seed, value in mine.items() if seed in base]
        aim = f"{AIMS[steps]:6}" if steps in AIMS else f"{'':6}"
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        mean = np.mean(list(mine.values())) / np.mean(list(base.values())) if base else float("nan")
        lines.append(f"{row:24}{steps:>6}{np.mean(list(mine.values())):18.3f}{mean:8.2f}{aim}  {each}")
    return lines


def draw(runs, teacher, path):
    """Two digits of each class, a row for each run and number of steps, from the same noise."""
    from matplotlib.figure import Figure

    from diffjax import viz

    labels = np.repeat(np.arange(10), 2).astype(np.int32)
    rows = {}
    for name in ("teacher", *ROWS):
        run = teacher if name == "teacher" else runs / name
        if (run / "results.json").is_file():
            for steps, each in draws(name, run).items():
                rows[f"{name.replace('_', ' ')}, {steps}"] = each(len(labels), labels, 0, silent=True)
    figure = Figure(figsize=(8, 0.42 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        viz.sample_grid(images, columns=len(labels), ax=axes)
        axes.text(-2, images.shape[1] / 2, name, ha="right", va="center", fontsize=7)
    figure.savefig(path, dpi=100)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, nargs="+", default=[*ROWS], help="the rows to train and measure")
    parser.add_argument("--seeds", type=int, default=3, help="of the samples")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each seed")
    parser.add_argument("--updates", type=int, default=None, help="in place of those of each row")
    parser.add_argument("--runs", type=Path, default=Path("runs/few_steps_digits"), help="folder of the runs")
    parser.add_argument("--teacher", type=Path, default=None, help="folder of the teacher's run; default: RUNS/teacher")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--draw", action="store_true", help="the table and the picture of what is there")
    given = parser.parse_args(argv)
    teacher = given.runs / "teacher" if given.teacher is None else given.teacher
    if not given.draw:
        prepared("teacher", given.runs, teacher)
        for name in (*given.row, *TEACHER):  # whose many steps take the longest to draw
            run = prepared(name, given.runs, teacher, given.updates)
            measure_row(name, run, given.out, given.seeds, given.samples)
    print("\n".join(table(given.out)))
    draw(given.runs, teacher, given.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
