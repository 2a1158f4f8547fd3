"""The studies in `scripts/` from one end to the other, with hardly any work in them."""

import csv
import dataclasses
import json
import pathlib
import re
import runpy

import numpy as np
import pytest

import diffjax
from diffjax import config, training, viz

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
pytestmark = pytest.mark.slow


def run(name, folder, *arguments):
    return runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]([*arguments, "--out", str(folder)])


def test_compare_score_matching(tmp_path):
    """A hundred steps: every loss has already learned something of the score (its error from zero is 1)."""
    run("compare_score_matching", tmp_path, "--steps", "100")
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["implicit", "sliced (vr)", "denoising", "NCSN"]
    assert all(0 < float(row["error at logsnr 0"]) < 0.9 for row in rows)
    assert all(float(row["ms a step"]) > 0 for row in rows)
    assert (tmp_path / "fields.png").stat().st_size > 10_000


def test_few_steps(tmp_path):
    """A second of a denoiser and of a map: the lines that the table and the picture are made of, begun and gone on."""
    out = tmp_path / "few_steps.csv"
    for row in ("teacher", "mean_flow"):
        run("few_steps", out, "--row", row, "--budget", "1", "--teachers", str(tmp_path))
    drawn = runpy.run_path(str(SCRIPTS / "few_steps.py"))["table"](out)
    with out.open("a") as file:  # of a seed that another row does not have
        file.write("teacher,1,1,9,9,0,0,0\n")
    run("few_steps", out, "--draw")
    assert runpy.run_path(str(SCRIPTS / "few_steps.py"))["table"](out) == drawn
    lines = [line for line in csv.DictReader(out.open(newline="")) if line["seed"] == "0"]
    assert [line["steps"] for line in lines if line["row"] == "mean_flow"] == ["1", "2", "4"]
    found = {(line["row"], line["steps"]): float(line["sliced_wasserstein"]) for line in lines}
    assert found["teacher", "floor"] < 0.06 < found["teacher", "32"] < found["teacher", "1"]
    assert found["mean_flow", "1"] < found["teacher", "1"]
    assert (tmp_path / "few_steps.png").stat().st_size > 10_000


def test_gan_25_gaussians(tmp_path):
    """A second of each row: its line, and the table of those; the floor is the truth."""
    out = tmp_path / "gan_25_gaussians.csv"
    script = runpy.run_path(str(SCRIPTS / "gan_25_gaussians.py"))
    for row in script["ROWS"]:
        run("gan_25_gaussians", out, "--row", row, "--budget", "1", "--runs", str(tmp_path))
    run("gan_25_gaussians", out, "--table")
    run("gan_25_gaussians", out, "--draw", "--budget", "1", "--runs", str(tmp_path))
    assert out.with_suffix(".png").stat().st_size > 30_000
    lines = {line["row"]: line for line in csv.DictReader(out.open(newline=""))}
    assert list(lines) == ["floor", "plain_gan", "r3gan", "r3gan_weak", "ddgan", "ddgan_strong", "ddim", "progressive"]
    assert [line["nfe"] for line in lines.values()] == ["0", "1", "1", "1", "4", "4", "4", "4"]
    floor = lines["floor"]
    assert float(floor["on_mode"]) == pytest.approx(1 - np.exp(-4.5), abs=3e-3)
    assert floor["modes"] == "25"
    assert float(floor["kl"]) == pytest.approx(24 / 40_000, abs=6e-4)
    distance = {row: float(line["sliced_wasserstein"]) for row, line in lines.items()}
    assert all(distance["floor"] < 0.05 < found for row, found in distance.items() if row != "floor")
    assert len(script["table"](out)) == 9


def test_text_to_image(tmp_path):
    """Few seconds of a small encoder: lines of samples and of real images, each once, the table and the pictures."""
    pytest.importorskip("tokenizers")
    script, out = runpy.run_path(str(SCRIPTS / "text_to_image.py")), tmp_path / "found.csv"
    base = script["BASE"]
    script["ROWS"][base] = script["Row"]("random", "tiny", (("static", 1.0), ("static", 3.0)))
    place = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--budget", "3", "--samples", "20", "--reading", "5"]
    for row in ("floor", base, base):  # what is there already is not measured again
        script["main"](["--row", row, *place])
    lines = list(csv.DictReader(out.open(newline="")))
    found = [(line["row"], line["captions"], line["threshold"], line["scale"]) for line in lines]
    splits = ("trained", "held out")
    assert found == [
        *(("floor", captions, what, "") for captions in splits for what in ("real", "shuffled")),
        *((base, captions, "static", scale) for scale in ("1", "3") for captions in splits),
    ]
    for line in lines:
        kinds = [float(line[kind]) for kind in ("size", "colour", "shape")]
        mean = (2 * sum(kinds) + float(line["relation"])) / 7
        assert float(line["factors_right"]) == pytest.approx(mean, abs=1e-3)
        assert float(line["all_right"]) <= min(kinds)
        assert float(line["frechet"]) > 0
    assert all(int(line["updates"]) > 0 for line in lines[4:])
    assert len(script["table"](out)) == 2 + len(lines)
    script["main"](["--draw", *place])
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert (tmp_path / "found_samples.png").stat().st_size > 10_000


def test_thresholds(tmp_path):
    """Few pictures of an exact row: at a large scale a dynamic threshold is nearest; each line once."""
    place = ["--runs", str(tmp_path / "runs"), "--samples", "300"]
    for row in ("texture", "flat_varied", "texture"):  # what is there already is not measured again
        run("thresholds", tmp_path / "found.csv", "--row", row, *place)
    run("thresholds", tmp_path / "found.csv", "--draw", *place)
    lines = list(csv.DictReader((tmp_path / "found.csv").open(newline="")))
    assert len(lines) == 2 * (1 + 3 * 6)
    found = {(line["row"], line["threshold"], line["scale"]): line for line in lines}
    frechet = {place: float(line["frechet"]) for place, line in found.items()}
    assert frechet["texture", "dynamic", "10"] < 0.6 * frechet["texture", "static", "10"]
    assert frechet["texture", "static", "10"] < frechet["texture", "none", "10"]
    assert frechet["flat_varied", "static", "10"] < frechet["flat_varied", "none", "10"]
    assert frechet["flat_varied", "none", "10"] < frechet["flat_varied", "dynamic", "10"]
    assert float(found["flat_varied", "dynamic", "10"]["median"]) > -0.7  # the background, -0.8 in the data
    for row in ("texture", "flat_varied"):
        assert float(found[row, "real", ""]["right"]) > 0.6
        assert frechet[row, "real", ""] < 0.5 * frechet[row, "none", "3"]
    assert (tmp_path / "found.png").stat().st_size > 10_000


@pytest.mark.relative  # compiling a U-Net; `diffjax train` has its own tests
def test_thresholds_of_pictures(tmp_path):
    """Ten updates, on pictures of one grey a class, from files."""
    for part in ("train", "test"):
        for label in range(10):
            for i in range(30):
                path = tmp_path / "cifar10" / part / f"class{label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                viz.save_grid(path, np.full((1, 32, 32, 3), label / 5 - 0.9), gap=0, enlarge=1)
    place = ["--cifar", str(tmp_path), "--runs", str(tmp_path / "runs"), "--samples", "20", "--updates", "10"]
    run("thresholds", tmp_path / "found.csv", "--row", "cifar", *place)
    lines = list(csv.DictReader((tmp_path / "found.csv").open(newline="")))
    assert [line["threshold"] for line in lines] == [
        "real",
        *(t for t in ("none", "static", "dynamic") for _ in range(6)),
    ]
    assert float(lines[0]["std"]) == pytest.approx(np.std(np.arange(10) / 5), abs=0.01)
    assert all(line["updates"] == "10" for line in lines)
    assert all(float(line["saturated"]) <= 1 and float(line["frechet"]) > 0 for line in lines[1:])


def test_critically_damped(tmp_path, capsys):
    """After few steps of training, within twice the floor by VP and three times by CLD, whose solves need their steps:
    by 20 evaluations its flow ends seventeen floors away."""
    rows = run("critically_damped", tmp_path, "--steps", "200", "--samples", "500", "--nfe", "50")
    assert [row[:3] for row in rows] == [(p, by, 50) for p in ("VP", "CLD") for by in ("SDE", "flow")]
    floor = float(re.search(r"floor +(\S+)", capsys.readouterr().out).group(1))
    assert all(0.5 * floor < row[3] < {"VP": 2, "CLD": 3}[row[0]] * floor for row in rows)
    assert (tmp_path / "samples.png").stat().st_size > 10_000


def test_fokker_planck(tmp_path, capsys):
    """Few paths: the solver is at the exact density all the same, and they are as far from it as their number says."""
    run("fokker_planck", tmp_path, "--paths", "5000", "--frames", "3", "--steps", "64")
    figures = r"exact density (\S+), to 5000 paths (\S+) \(sampling's floor (\S+)\); mass drifts by (\S+),"
    found = np.array(re.findall(figures, capsys.readouterr().out), float)
    assert len(found) == 2
    for exact, paths, floor, drift in found:
        assert exact < 1e-3
        assert 0.3 * floor < paths < 2 * floor
        assert drift < 1e-9
    assert (tmp_path / "movie.gif").stat().st_size > 0


def test_elbo_digits(tmp_path):
    """Even untrained the bound is a finite number of bits, the sum of its parts, and K steps cost more than infinitely
    many."""
    rows = run("elbo_digits", tmp_path, "--steps", "20", "--draws", "2")
    for row in rows.values():
        bits = {name: mean for name, (mean, _) in row.items()}
        assert np.isclose(bits["per_sample"], bits["prior"] + bits["reconstruction"] + bits["diffusion"], rtol=1e-5)
        assert bits["per_sample"] < bits["10 steps"] < 100
    assert (tmp_path / "bits.csv").stat().st_size > 100
    assert (tmp_path / "bits.png").stat().st_size > 10_000


def test_langevin(tmp_path):
    """Even short chains of every method come near the posterior; plain Langevin misses modes that annealing finds."""
    table, found = run("langevin", tmp_path, "--chains", "50", "--steps", "20", "--points", "300", "--levels", "20")
    assert set(table) == {"ULA", "SGLD", "SGLD, decaying", "MALA", "HMC"}
    assert all(0.8 < row[2] < 1.5 for row in table.values())
    _, narrow, _, annealed = found.values()
    assert narrow.min() < 0.05 < annealed.min()
    assert (tmp_path / "posterior.csv").stat().st_size > 100
    assert (tmp_path / "mixture.png").stat().st_size > 10_000


def test_composition(tmp_path):
    """Even few corrections come nearer to the composed densities than any flow does."""
    found = run("composition", tmp_path, "--samples", "300", "--steps", "20", "--corrections", "2")
    for methods in found.values():
        _, total, mean, few, more = methods.values()
        assert max(few, more) < mean < total
    assert (tmp_path / "distances.csv").stat().st_size > 100
    assert (tmp_path / "composition.png").stat().st_size > 10_000


def test_weak_order(tmp_path, capsys):
    rows = run("weak_order", tmp_path, "--steps", "64", "128", "--methods", "SEEDS-2", "Euler-Maruyama")
    assert [row[0] for row in rows] == ["SEEDS-2", "reverse SDE, Euler-Maruyama"]
    np.testing.assert_allclose([row[3:5] for row in rows], [(-7.76, -0.153), (16.27, 0.2115)], rtol=2e-3)
    assert [round(row[-1]) for row in rows] == [2, 1]
    assert (tmp_path / "errors.csv").stat().st_size > 100
    assert "amid noise" in capsys.readouterr().out


def test_bench_solvers(tmp_path, capsys):
    """Samplers of one's own join by one line, and agree with the method they are written after; a better one wins."""
    script = runpy.run_path(str(SCRIPTS / "bench_solvers.py"))
    script["SOLVERS"]["my DDIM"] = lambda problem: script["Function"](script["by_hand"])
    script["SOLVERS"]["my DDIM, a stepper"] = lambda problem: diffjax.samplers.ExponentialAdams(
        diffjax.X0Prediction(), 1
    )
    rows = script["main"](["--quick", "--cost", "--repeats", "1", "--stochastic", "--out", str(tmp_path)])
    found = {(r.problem, r.solver, r.grid, r.budget): r for r in rows}
    for place in ("plane", "images"):
        for mine in ("my DDIM", "my DDIM, a stepper"):
            own, ddim = (found[place, name, "snr", 10] for name in (mine, "DDIM"))
            np.testing.assert_allclose(own[3:7], ddim[3:7], rtol=1e-6)
    assert found["plane", "Adams F, order 3", "snr", 10].rms < 0.5 * found["plane", "DDIM", "snr", 10].rms
    assert capsys.readouterr().out.count("of its steps, differs by") == 2
    for name in ("errors", "pareto", "summary", "cost", "stochastic"):
        assert (tmp_path / f"{name}.csv").stat().st_size > 100
    assert (tmp_path / "work_precision.png").stat().st_size > 10_000


@pytest.mark.relative  # a hundred seconds of compiling; every method has its own tests
def test_inverse_calibration(tmp_path):
    """Few observations and samples: exact draws and TMPD are calibrated to some percent, DPS is not, and where noise is
    little it does not stay finite."""
    arguments = ("--observations", "8", "--samples", "100", "--steps", "60", "--particles", "8", "32")
    table = {row[:3]: row[3:] for row in run("inverse_calibration", tmp_path, *arguments)}
    assert len(table) == 2 * 3 * 10
    for method in ("exact draws", "TMPD"):
        assert all(abs(mass - 0.9) < 0.1 for mass in table["Gaussian", 0.2, method][-2:])
    assert table["Gaussian", 0.2, "DPS"][-2] < 0.8
    assert np.isnan(table["Gaussian", 0.05, "DPS"][0])
    assert (tmp_path / "calibration.csv").stat().st_size > 1000
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


def untrained_digits(folder):
    """Makes a run of digits in a folder, tiny, before its first step."""
    network = dataclasses.replace(config.PRESETS["digits"].network, channels=(8,), attention=())
    chosen = dataclasses.replace(config.PRESETS["digits"], network=network)
    data = config.build_data(chosen.data)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json(chosen))
    (folder / "data.json").write_text(json.dumps(data.samples._asdict()))
    with training.Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(0, config.fresh_state(config.build_run(chosen, data.samples)))


@pytest.mark.relative  # `diffjax distill` has its own tests
def test_few_steps_digits(tmp_path):
    """Two updates a stage of an untrained network: the lines, the table and the picture, begun and gone on."""
    untrained_digits(tmp_path / "runs" / "teacher")
    (tmp_path / "runs" / "teacher" / "results.json").write_text("{}")
    place = ["--runs", str(tmp_path / "runs"), "--row", "progressive_4", "--updates", "2", "--samples", "40"]
    for seeds in ("1", "2"):
        run("few_steps_digits", tmp_path / "found.csv", *place, "--seeds", seeds)
    lines = list(csv.DictReader((tmp_path / "found.csv").open(newline="")))
    found = [(line["row"], line["steps"], line["seed"]) for line in lines]
    rows = (("progressive_4", "4"), ("teacher", "20"), ("teacher_ddim", "16"), ("teacher_ddim", "32"))
    assert found == [(row, n, seed) for seed in "01" for row, n in rows]
    assert all(0 < float(line["floor"]) < float(line["frechet"]) for line in lines)
    assert (tmp_path / "found.png").stat().st_size > 5000


@pytest.mark.relative  # compiling six samplers; each has its own tests
def test_guided_digits(tmp_path):
    """Of an untrained network, tiny: what is seen comes back in every answer, and its samples have little precision."""
    untrained_digits(tmp_path)
    accuracy, rows, table = run("guided_digits", tmp_path / "out", "--run", str(tmp_path), "--quick")
    assert accuracy > 0.95
    np.testing.assert_array_equal(rows["RePaint"][:, :, :4], rows["held out"][:, :, :4])
    for name in ("TMPD", "PiGDM", "PiGDM ", "class, scale 1", "class, scale 4"):
        assert rows[name].shape == (10, 8, 8, 1)
    real, plain, guided, limited = table
    assert [row[:2] for row in table] == [
        ["held out", 1.0],
        *(["everywhere", s] for s in (1.0, 4.0)),
        ["interval", 4.0],
    ]
    assert min(real[2:4]) > 0.75
    assert plain[2] < 0.5 < real[2]
    assert np.all(np.isfinite([guided[2:], limited[2:]]))
    for name in ("samples.png", "sweep.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    assert len((tmp_path / "out" / "sweep.csv").read_text().splitlines()) == 5


def test_train_classifier(tmp_path):
    """Sixty steps: better than one in ten."""
    assert run("train_classifier", tmp_path, "digits", "--steps", "60") > 0.3
    assert (tmp_path / "weights.safetensors").stat().st_size > 10_000
