"""The command line as a user has it: what it writes, what it says, and what it refuses."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from command_line import TINY, TRAIN, call, contents, read_run, refused

from diffjax.cli import main
from diffjax.cli._picture import save_rows
from diffjax.config import PRESETS, Data, DataConfig, from_json, to_json
from diffjax.training import Checkpoints, NotFinite


@pytest.fixture(scope="module")
def run(toy_run):
    """A finished run on the conditional mixture."""
    return toy_run


# What it does


def test_version_and_help(capfd):
    assert call(capfd, "--version")[0] == 0
    code, out, err = call(capfd, "--help")
    assert (code, err) == (0, "")
    for command in ("train", "sample", "evaluate"):
        assert command in out
    for argv in (["train", "digits"], ["train", "toy2d"], ["sample"], ["evaluate"]):
        code, out, _ = call(capfd, *argv, "--help")
        assert code == 0
        assert "--seed" in out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--sampler.quantile", 2], "sampler.quantile: must lie in (0, 1], got 2"),
        (["--sampler.largest", 0.5], "sampler.largest: at least bound = 1.0 is needed, got 0.5"),
        (["--sampler.largest", "nan"], "sampler.largest: at least bound = 1.0 is needed, got nan"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused_before_training(option, words, tmp_path, capfd):
    threshold = ["--sampler.threshold", "dynamic", "--sampler.clip", 1]
    assert words in refused(capfd, "train", "toy2d", *threshold, *option, "--steps", 1, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_option_is_explained_with_its_default(capfd, monkeypatch):
    """None stands for no default: the words say what happens then. Names of a table have lines of their own."""
    monkeypatch.setenv("COLUMNS", "110")
    found = {}
    for argv in (["train", "digits"], ["train"], ["distill"], ["sample"], ["evaluate"], ["checkpoint"]):
        text = call(capfd, *argv, "--help")[1]
        assert "None" not in text
        lines = [line.strip("│")[1:].rstrip() for line in text.splitlines() if line.startswith("│")]
        starts = [i for i, line in enumerate(lines) if re.match(r"--|[A-Z]+  |\{", line)]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            option, words = re.split(r"  +|\n", "\n".join(lines[start:end]), maxsplit=1)
            words = re.sub(r"\n +", "\n", words.strip())
            found[argv[0], option] = words
            assert "..." not in words.replace("[n, ...]", ""), (option, words)
            assert re.search(r"[Dd]efault|\(required\)", words), (option, words)
    assert found["train", "--batch-size INT"].startswith("Batch size, summed over all devices. (default: 64)")
    assert found["train", "--layout {jit,fsdp,tensor,pmap}"].startswith("How to spread the run over devices")
    assert "\nedm: EDM's process and clock.\n" in found["train", "--process.name NAME"]
    assert found["train", "--network.channels [INT [INT ...]]"].endswith("\n(default: 32 64)")
    assert "\n(default: cosine)" in found["train", "--process.name NAME"]
    assert "(default: 7)" in found["train", "--process.rho FLOAT"]
    assert found["sample", "RUN"].startswith("Folder of the run. (required)")
    assert "Used by" not in found["train", "--process.logsnr-min FLOAT"]
    assert "(default: ddim 0; euler_ancestral" in found["train", "--sampler.eta FLOAT"].replace("\n", " ")
    assert found["train", "--guidance.interval FLOAT FLOAT"].endswith("Default: always.")
    own = [words for (command, _), words in found.items() if command == "sample" and "the run's own)" in words]
    assert len(own) >= 9
    assert not any("Default: " in words for words in own)


def test_train_leaves_a_run(run):
    names = {path.name for path in run.iterdir()}
    files = {"config.json", "data.json", "metrics.jsonl", "samples.png", "loss.png", "results.json"}
    assert names == files | {"checkpoints"}
    assert from_json((run / "config.json").read_text()).steps == 20
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [8, 16, 20]
    for name in ("samples.png", "loss.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_trains_no_further(run, capfd):
    before = contents(run)
    code, out, _ = call(capfd, *TRAIN, "--out", run)
    assert code == 0
    assert "from step 20, saved before" in out
    assert f"diffjax sample {run}" in out
    after = contents(run)
    assert before[Path("metrics.jsonl")] == after[Path("metrics.jsonl")]
    assert before[Path("samples.png")] == after[Path("samples.png")]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["jit"], ["fsdp", "--accumulate", "2"], ["tensor", "--split", "2"]])
def test_layouts_agree(run, tmp_path, capfd, options):
    assert call(capfd, *TRAIN, "--layout", *options, "--out", tmp_path / "other")[0] == 0
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (run, tmp_path / "other"))
    name = "sliced Wasserstein distance to held out: samples"
    assert a[name] == pytest.approx(b[name], rel=1e-3)


def test_a_row_of_a_picture_is_a_class(tmp_path):
    labels = np.arange(25) * 10 // 25
    x = (labels / 10).astype(np.float32)[:, None, None, None]
    data = Data(lambda *_: (x, labels), (x, labels), (x, labels), 10, None)
    save_rows(tmp_path / "a.png", x, labels, data)
    pixels = matplotlib.image.imread(tmp_path / "a.png")[..., 0]
    grid = pixels[24 :: 2 * 48, 24 :: 2 * 48]  # neighbours are one grey pixel apart, all enlarged to 48
    assert grid.shape == (10, 3)
    np.testing.assert_allclose(grid[:, :2], np.repeat((np.arange(10)[:, None] / 10 + 1) / 2, 2, 1), atol=0.01)
    np.testing.assert_array_equal(grid[:, 2] == 0, np.bincount(labels) == 2)


@pytest.mark.slow
def test_vectors_that_make_no_picture_are_saved_as_arrays(tmp_path, capfd):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).uniform(-1, 1, (40, 3)).astype(np.float32))
    source = ["--data.name", "file", "--data.path", tmp_path / "a.npz"]
    code, out, err = call(capfd, "train", "toy2d", *TINY, *source, "--steps", 2, "--out", tmp_path / "run")
    assert code == 0, err
    assert f"samples of shape (3,) make no picture: x is in {tmp_path / 'run' / 'samples.npz'}" in out
    assert "--out more.npz" in out
    assert np.load(tmp_path / "run" / "samples.npz")["x"].shape == (1800, 3)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["samples"] == 1800
    assert "out: samples of shape (3,) make no picture; name an .npz" in refused(capfd, "sample", tmp_path / "run")


# What it refuses


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["tarin"], ["tarin"]),
        ([], ["train", "sample", "evaluate"]),
        (["train", "cats"], ["cats", "digits", "toy2d"]),
        (["train", "toy2d", "--stpes", "3"], ["--stpes"]),
        (["train", "toy2d", "--steps", "many"], ["steps: a whole number", "many"]),
        (["train", "toy2d", "--layout", "tpu"], ["--layout", "tpu"]),
        (["train", "toy2d", "--process.name", "vp"], ["--process.name", "vp"]),
        (["train", "toy2d", "--steps", "0"], ["steps", "0"]),
        (["train", "toy2d", "--batch-size", "12"], ["batch_size", "12", "8 devices"]),
        (["train", "toy2d", "--devices", "99"], ["devices", "99"]),
        (["train", "toy2d", "--devices", "0"], ["devices", "0"]),
        (["train", "toy2d", "--layout", "fsdp", "--split", "3"], ["split", "3", "8 devices"]),
        (["train", "toy2d", "--layout", "tensor", "--split", "0"], ["split", "0"]),
        (["train", "toy2d", "--accumulate", "0"], ["accumulate", "0"]),
        (["train", "toy2d", "--accumulate", "3"], ["accumulate: 64 samples a device", "3", "take a number"]),
        (["train", "toy2d", "--save-every", "0"], ["save-every", "0"]),
        (["train", "toy2d", "--sample-every", "0"], ["sample-every", "0"]),
        (["train", "toy2d", "--samples", "1"], ["samples", "1"]),
        (["train", "toy2d", "--ema-decay", "1.0"], ["ema_decay: a number in [0, 1)", "1.0"]),
        (["train", "toy2d", "--process.beta-min", "0.1"], ["process.beta_min", "0.1"]),
        (["train", "toy2d", "--sampler.eta", "0.5"], ["sampler.eta", "0.5"]),
        (["train", "toy2d", "--data.name", "file", "--data.path", "absent.npz"], ["data.path", "absent.npz"]),
        (["train", "toy2d", "--network.name", "unet"], ["x", "images"]),
        (["train", "toy2d", "--seed", "-1"], ["seed", "-1"]),
        (["train", "toy2d", "--seed", "99999999999"], ["seed", "99999999999"]),
        (["train", "toy2d", "--data.holdout-seed", "-1"], ["data.holdout_seed", "-1"]),
        (["train", "toy2d", "--network.depth", "-1"], ["network.depth", "-1"]),
        (["train", "digits", "--network.head-channels", "0"], ["network.head_channels", "0"]),
        (["sample", "absent", "--seed", "99999999999"], ["seed", "99999999999"]),
        (["sample", "absent", "--seed", "-1"], ["seed", "-1"]),
        (["evaluate", "absent", "--seed", "99999999999"], ["seed", "99999999999"]),
        (["evaluate", "absent", "--seed", "-1"], ["seed", "-1"]),
        (["evaluate", "absent", "--likelihood", "1"], ["likelihood", "1"]),
        (["sample", "absent"], ["run", "absent"]),
        (["evaluate", "absent"], ["run", "absent"]),
        (["sample"], ["RUN is missing", "diffjax sample --help"]),
        (["sample", "absent", "--n", "0"], ["n", "0"]),
        (["sample", "absent", "--steps", "3", "--ts", "1", "0"], ["ts", "--steps"]),
        (["evaluate", "absent", "--n", "1"], ["n", "1"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_writes_nothing(argv, names, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    err = refused(capfd, *argv)
    for name in names:
        assert name in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--tensorboard"], "tensorboard: needs tensorboardX, got True; pip install '.[log]' in diffjax's folder"),
        (["--data.workers", "2"], "data.workers: needs grain, got 2; pip install '.[data]' in diffjax's folder"),
        (["--ema-widths", "0.5"], "ema-widths: a number between 0 and 0.2887, of a plain mean, is needed, got 0.5"),
        (["--layout", "fsdp", "--split", "3"], "split: 3 does not divide"),
    ],
)
def test_what_needs_no_data_is_refused_before_there_is_any(option, message, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("diffjax.cli._train.build_data", lambda config: pytest.fail("too late"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert message in refused(capfd, "train", "digits", *option, "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_nan_in_the_data(tmp_path, capfd):
    x = np.zeros((20, 2), np.float32)
    x[3, 1] = np.nan
    np.savez(tmp_path / "bad.npz", x=x)
    argv = ["train", "toy2d", "--data.name", "file", "--data.path", tmp_path / "bad.npz", "--out", tmp_path / "run"]
    err = refused(capfd, *argv)
    assert "data.path" in err
    assert "nan" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--label", "8"], ["label", "8", "0 .. 7"]),
        (["--label", "-1"], ["label", "-1"]),
        (["--guidance", "nan"], ["guidance", "nan"]),
        (["--guidance", "-1"], ["guidance", "-1.0"]),
        (["--interval", "2", "1"], ["interval", "2.0, 1.0"]),
        (["--known", "x.npz"], ["mask", "--known"]),
        (["--times", "3"], ["times", "--known", "3"]),
        (["--known", "no.npz", "--mask", "no.npz"], ["mask", "no.npz", "cannot be read"]),
        (["--ts", "1", "0.5", "0.7", "0"], ["ts", "descend", "0.7"]),
        (["--ts", "1", "0.5", "0.5", "0"], ["ts", "descend", "0.5"]),
        (["--ts", "1.5", "0.5"], ["ts", "1.5"]),
        (["--ts", "1"], ["ts"]),
        (["--chunk", "0"], ["chunk", "0"]),
        (["--steps", "2", "0"], ["steps", "0"]),
        (["--out", "x.gif"], ["out", "x.gif"]),
        (["--out", "no/x.png"], ["out", "no/x.png"]),
    ],
    ids=" ".join,
)
def test_bad_sampling_is_one_line_and_writes_nothing(run, options, names, capfd):
    before = contents(run)
    err = refused(capfd, "sample", run, *options)
    for name in names:
        assert name in err
    assert contents(run) == before


def test_classes_that_a_run_does_not_know(tmp_path, capfd):
    config = replace(PRESETS["toy2d"], data=DataConfig(name="checkerboard"))
    (tmp_path / "config.json").write_text(to_json(config))
    samples = {"shape": [2], "classes": None, "names": None, "pictures": False, "largest": 1.0}
    (tmp_path / "data.json").write_text(json.dumps(samples))
    assert "label: this run knows no classes, got 3" in refused(capfd, "sample", tmp_path, "--label", 3)
    for command in ("sample", "evaluate"):
        assert "guidance.scale: this run knows no classes, got 2.0" in refused(
            capfd, command, tmp_path, "--guidance", 2
        )
    assert "guidance.interval: this run knows no classes, got (1.0, 2.0)" in refused(
        capfd, "sample", tmp_path, "--interval", 1, 2
    )


@pytest.mark.parametrize("option", ["scale", "dropout"])
def test_guidance_of_a_run_without_classes_is_refused(option, tmp_path, capfd):
    err = refused(capfd, "train", "toy2d", f"--guidance.{option}", 0.5, "--out", tmp_path / "run")
    assert f"guidance.{option}: this run knows no classes" in err
    assert "--data.conditional" in err
    assert not (tmp_path / "run").exists()


def test_a_known_part_that_does_not_fit(run, tmp_path, capfd):
    for name, values in {"known": {"x": np.zeros(2)}, "wide": {"x": np.zeros(3)}, "mask": {"mask": [1, 0]}}.items():
        np.savez(tmp_path / f"{name}.npz", **values)
    np.savez(tmp_path / "all.npz", mask=np.ones(2))
    np.savez(tmp_path / "none.npz", mask=np.zeros(2))
    for known, mask, message in (
        ("wide", "mask", "wide.npz has shape (3,), the samples have (2,)"),
        ("known", "all", "keeps everything"),
        ("known", "none", "keeps nothing"),
    ):
        files = ["--known", tmp_path / f"{known}.npz", "--mask", tmp_path / f"{mask}.npz"]
        assert message in refused(capfd, "sample", run, *files)
    assert "known: inpainting needs --known and --mask, got only --mask" in refused(
        capfd, "sample", run, "--mask", tmp_path / "mask.npz"
    )


def test_a_folder_that_holds_something_else(run, tmp_path, capfd):
    before = contents(run)
    err = refused(capfd, *TRAIN, "--steps", 10, "--seed", 5, "--out", run)
    assert f"out: {run} holds a run with steps 20, not 10 (and 1 more)" in err
    err = refused(capfd, *TRAIN, "--parameterisation.clock", "angle", "--out", run)
    assert f"out: {run} holds a run with parameterisation.clock logsnr, not angle; name another folder" in err
    assert contents(run) == before
    (tmp_path / "thesis.tex").write_text("x")
    assert f"out: {tmp_path} holds no run" in refused(capfd, *TRAIN, "--out", tmp_path)
    assert "is a file" in refused(capfd, *TRAIN, "--out", tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_checkpoint_of_another_architecture(run, tmp_path, capfd):
    shutil.copytree(run, tmp_path / "run")
    config = (run / "config.json").read_text().replace('"width": 16', '"width": 32')
    (tmp_path / "run" / "config.json").write_text(config)
    before = contents(tmp_path / "run")
    for argv in (["sample", tmp_path / "run"], [*TRAIN, "--network.width", 32, "--out", tmp_path / "run"]):
        err = refused(capfd, *argv)
        assert "another architecture" in err
        assert "float32[" in err
        assert contents(tmp_path / "run") == before


@pytest.mark.slow
def test_a_data_file_that_changed(tmp_path, capfd):
    x, file = np.random.default_rng(0).uniform(-1, 1, (40, 2)), tmp_path / "a.npz"
    argv = [
        "train",
        "toy2d",
        *TINY,
        "--data.name",
        "file",
        "--data.path",
        file,
        "--steps",
        2,
        "--out",
        tmp_path / "run",
    ]
    np.savez(file, x=x)
    assert call(capfd, *argv)[0] == 0
    assert call(capfd, *argv)[0] == 0
    before = contents(tmp_path / "run")
    np.savez(file, x=-x)
    assert f"out: {tmp_path / 'run'} was trained on other data: {file} has changed" in refused(capfd, *argv)
    assert f"run: {tmp_path / 'run'} was trained on other data" in refused(capfd, "evaluate", tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_one_process_at_a_time_trains_in_a_folder(run, tmp_path, capfd):
    shutil.copytree(run, tmp_path / "run")
    folder, before = tmp_path / "run" / "checkpoints", contents(tmp_path / "run")
    with Checkpoints(folder):
        err = refused(capfd, *TRAIN, "--out", tmp_path / "run")
        assert f"out: {folder} is in use: process {os.getpid()} of " in err
        assert call(capfd, "sample", tmp_path / "run", "--n", 2, "--out", tmp_path / "x.npz")[0] == 0
    assert contents(tmp_path / "run") == before


def test_a_start_that_was_cut_short_before_it_wrote_what_it_is_may_begin_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("diffjax.cli._train._train", lambda *args: None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "lock").touch()
    assert call(capfd, *TRAIN, "--out", tmp_path)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "config.json", "data.json"}
    (tmp_path / "config.json").unlink()
    assert "holds no run" in refused(capfd, *TRAIN, "--out", tmp_path)


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda text: text.replace('"steps"', '"stpes"'), "stpes: unknown key"),
        (lambda text: text[:40], "not JSON"),
    ],
)
def test_a_configuration_that_is_damaged(run, tmp_path, edit, name, capfd):
    (tmp_path / "config.json").write_text(edit((run / "config.json").read_text()))
    err = refused(capfd, "sample", tmp_path)
    assert name in err
    assert str(tmp_path / "config.json") in err


def test_a_run_without_a_checkpoint(run, tmp_path, capfd):
    for name in ("config.json", "data.json"):
        shutil.copy(run / name, tmp_path / name)
    assert "checkpoints: no such folder" in refused(capfd, "sample", tmp_path)


def test_a_run_that_fails_is_one_line_and_code_1(run, tmp_path, monkeypatch, capfd):
    def fail(*args, **options):
        raise NotFinite("10 steps in a row, 3 to 12")

    shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr("diffjax.cli._train.train", fail)
    code, _, err = call(capfd, *TRAIN, "--out", tmp_path / "run")
    assert (code, err) == (1, "diffjax: 10 steps in a row, 3 to 12\n")


@pytest.mark.slow
def test_a_run_that_diverges_is_one_line_and_code_1(tmp_path, capfd):
    argv = ["train", "toy2d", *TINY, "--steps", "30", "--optimiser.learning-rate", "1e38", "--out", tmp_path]
    code, _, err = call(capfd, *argv)
    assert code == 1
    assert "diffjax: 10 steps in a row, 3 to 12, had a loss or gradients that are not finite" in err.splitlines()[-1]
    assert not list((tmp_path / "checkpoints").iterdir())


# Ctrl-C


def saved(folder):
    """The newest state of a run, as bytes."""
    state = read_run(folder).state
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_go_on_and_goes_on(tmp_path, capfd):
    argv = ["train", "toy2d", *TINY, "--data.conditional", "--steps", "300", "--log-every", "1", "--out"]
    here = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "diffjax.cli", *argv, str(tmp_path / "cut")],
        env={**os.environ, "PYTHONPATH": str(here)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "cut" / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    last = err.splitlines()[-1]
    assert process.returncode == 130, err
    assert "by SIGINT; saved; the same command continues: diffjax train toy2d" in last
    step = int(last.split("stopped at step ")[1].split()[0])
    assert 0 < step < 300
    code, out, _ = call(capfd, *argv, tmp_path / "cut")
    assert code == 0
    assert f"from step {step}, saved before" in out
    assert call(capfd, *argv, tmp_path / "whole")[0] == 0
    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 301))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("train toy2d --stpes 5", "Unrecognized options: --stpes, 5; did you mean --steps?"),
        ("train toy2d --stpes=5", "Unrecognized options: --stpes=5; did you mean --steps?"),
        ("train --stpes 5 toy2d", "Unrecognized options: --stpes, 5; did you mean --steps?"),
        ("train toy2d --data.nmae two_moons", "did you mean --data.name?"),
        ("train toy2d --data.no-flp", "did you mean --data.no-flip?"),
        ("train toy2d --proces_id 3", "did you mean --process-id?"),
        ("train toy2d --learning-rate 3", "did you mean --optimiser.learning-rate?"),
        ("train toy2d --channels 3", "did you mean --data.channels or --network.channels?"),
        ("train toy2d --sampler.name ddmi", "invalid choice 'ddmi'|'langevin_corrected'); did you mean ddim?"),
        (
            "train toy2 --steps 5",
            "options: toy2, --steps, 5; did you mean toy2d?; Available subcommands: ",
        ),
        ("trian toy2d", "Unrecognized options: trian, toy2d; did you mean train?; Available subcommands: "),
        ("sample --guidence 3 run", "Unrecognized options: --guidence; did you mean --guidance?"),
        ("evaluate run --likelyhood 3", "did you mean --likelihood?"),
        ("checkpoint lsit run", "did you mean list?"),
        ("sample", "diffjax: RUN is missing: folder of the run ("),
        ("checkpoint list", "diffjax: RUN is missing: folder of the run ("),
        ("--versoin", "did you mean --version?"),
        ("train toy2d --zzzz 5", "Unrecognized options: --zzzz, 5 ("),
        ("train toy2d --steps 10.0", "diffjax: steps: a whole number is needed, got 10.0; did you mean 10? ("),
        ("sample run --steps ten", "diffjax: steps: whole numbers are needed, got ten ("),
        ("sample run --clip abc", "diffjax: clip: a number is needed, got abc ("),
        ("sample run --interval 1 b", "diffjax: interval: 2 numbers are needed, got 1 b ("),
        ("train toy2d --network.channels 1 2.5", "network.channels: whole numbers are needed, got 1 2.5 ("),
        ("train toy2d --sampler.eta x", "diffjax: sampler.eta: a number is needed, got x ("),
    ],
)
def test_a_mistyped_word_or_value_is_told_with_the_nearest(argv, said, capfd):
    assert main(argv.split()) == 2
    err = capfd.readouterr().err
    assert all(part in err for part in said.split("|")), err
    assert err.startswith("diffjax: ")
    command = argv.split()[0]
    known = f"{command} " if command in ("train", "sample", "evaluate", "checkpoint") else ""
    preset = "toy2d " if argv.startswith("train toy2d") else ""
    assert err.endswith(f"(diffjax {known}{preset}--help lists what there is)\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", ["train toy2d --stpes 3", "trian toy2d", "train toy2d --steps 10.5"])
def test_a_mistake_is_told_in_the_same_words_where_stdout_is_ascii_or_closed(argv, monkeypatch, capfd):
    said = []
    for stdout in (sys.stdout, io.TextIOWrapper(io.BytesIO(), encoding="ascii"), None):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(argv.split()) == 2
        said.append(capfd.readouterr().err)
    assert said[0].startswith("diffjax: ")
    assert said[1:] == said[:1] * 2


@pytest.mark.parametrize("argv", ["train toy2d", "sample RUN", "checkpoint export RUN"])
def test_an_address_on_the_net_is_named_as_it_was_typed(argv, tmp_path, capfd):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    err = refused(capfd, *argv.replace("RUN", str(tmp_path)).split(), "--out", "gs://b//x.safetensors")
    assert "out: a place on this machine is needed, or one mounted on it, got gs://b//x.safetensors; copy" in err


def test_the_nearest_name_of_a_class_is_a_question(run, tmp_path, capfd):
    named = shutil.copytree(run, tmp_path / "run")
    record = json.loads((named / "data.json").read_text())
    names = ["cat", "dog", *map(str, range(2, record["classes"]))]
    (named / "data.json").write_text(json.dumps(record | {"names": names}))
    err = refused(capfd, "sample", named, "--label", "dgo")
    assert re.search(r"label: .*, got dgo; did you mean dog\?", err)
