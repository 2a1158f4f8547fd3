"""Each option of the command line does what the library call it stands for does."""

import dataclasses
import importlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import CLASSES, COVERED, TINY, TRAIN, call, covers, done, draw, measures, read_run, refused

import diffjax as dj
from diffjax.cli import _draw, _hosts, _layout, _sample, _train, main
from diffjax.cli._checkpoint import Checkpoint
from diffjax.cli._known import read_known, read_mask
from diffjax.cli._options import Evaluate, Hosts, Sample, Train
from diffjax.config import PRESETS, build, build_data, from_json
from diffjax.inverse import RePaint
from diffjax.training import (
    Checkpoints,
    Snapshots,
    init_state,
    make_ema,
    make_emas,
    make_power_ema,
    make_train_step,
)

WIDE = ["train", "toy2d", *TINY, "--data.name", "two_moons", "--steps", "6", "--seed", "3"]
WIDE += ["--ema-widths", "0.05", "0.1", "--layout", "fsdp", "--split", "2", "--devices", "4", "--accumulate", "2"]
WIDE += ["--save-every", "2", "--save-seconds", "500", "--keep", "2", "--log-every", "3", "--samples", "24"]
WIDE += ["--tensorboard", "--profile", "2", "3"]
AVERAGES = ("decay", "0.05", "0.1")


@pytest.fixture(scope="module")
def trained(toy_run):
    """The run of the conditional mixture, as the library reads it."""
    return read_run(toy_run)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A run without classes that every option of training was given to, and the arguments of the calls it made."""
    folder, calls = tmp_path_factory.mktemp("runs") / "wide", types.SimpleNamespace(train={}, step={}, traces=[])
    train, step = _train.train, _layout.make_train_step

    def recorded_train(*args, **options):
        calls.train = options
        return train(*args, **options)

    def recorded_step(*args, **options):
        calls.step = options
        return step(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_train, "train", recorded_train)
        patch.setattr(_layout, "make_train_step", recorded_step)
        patch.setattr(jax.profiler, "start_trace", lambda folder: calls.traces.append(folder))  # seconds, otherwise
        patch.setattr(jax.profiler, "stop_trace", lambda: None)
        assert main([*WIDE, "--out", str(folder)]) == 0
    return folder, calls


@pytest.fixture
def drawn(monkeypatch):
    """What the command line had the library draw: (x0, options of `sample_n`) of each call."""
    found = []

    def sample_n(*args, **options):
        found.append((np.asarray(dj.sample_n(*args, **options)), options))
        return found[-1][0]

    monkeypatch.setattr(_draw, "sample_n", sample_n)
    return found


def close(found, wanted):
    """Equal to the rounding of another sharding; far below what any option changes."""
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


# sample


@covers("sample", "run", "n", "label", "guidance", "ts", "seed", "out")
def test_samples_of_a_class_on_given_times_are_the_librarys(toy_run, trained, tmp_path, capfd):
    options = ["--ts", 1, 0.6, 0.2, 0, "--guidance", 2, "--label", 3, "--n", 5, "--seed", 7]
    out = done(capfd, "sample", toy_run, *options, "--out", tmp_path / "x.npz")
    assert f"{toy_run}: step 20 of 20" in out
    high, low = (float(t) for t in reversed(dj.interval(dj.Cosine())))
    labels = np.full(5, 3)
    wanted = draw(trained, 5, labels, seed=7, scale=2.0, ts=np.array([high, 0.6, 0.2, low]))
    with np.load(tmp_path / "x.npz") as file:
        close(file["x"], wanted)
        np.testing.assert_array_equal(file["labels"], labels)


def test_by_default_a_hundred_samples_with_the_runs_own_guidance(toy_run, trained, drawn, monkeypatch, capfd):
    pictures = []
    monkeypatch.setattr(_sample, "time", types.SimpleNamespace(perf_counter=iter([7.0, 9.5]).__next__))
    monkeypatch.setattr(_sample, "save_rows", lambda *args: pictures.append(args))
    assert f"100 samples in 2.5 s: {toy_run / 'drawn.png'}\n" in done(capfd, "sample", toy_run)
    labels = np.repeat(np.arange(8), [13, 12, 13, 12, 13, 12, 13, 12])
    wanted = draw(trained, 100, labels)
    ((x, options),) = drawn
    close(x, wanted)
    assert options["chunk"] == 256
    ((path, shown, shown_labels, _),) = pictures
    assert path == toy_run / "drawn.png"
    np.testing.assert_array_equal(shown, x)
    np.testing.assert_array_equal(shown_labels, labels)


def test_without_a_label_the_classes_are_as_even_as_their_number_allows(toy_run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(_draw, "sample_n", lambda key, process, denoiser, shape, n, **options: np.zeros((n, *shape)))
    for n in (1, 3, 11, 25):
        done(capfd, "sample", toy_run, "--n", n, "--out", tmp_path / "x.npz")
        labels = np.load(tmp_path / "x.npz")["labels"]
        assert np.all(np.diff(labels) >= 0)
        counts = np.bincount(labels, minlength=CLASSES)
        assert (counts.sum(), np.ptp(counts)) == (n, 1)


def test_one_step_from_noise_to_data_is_a_grid(toy_run, tmp_path, monkeypatch, capfd):
    grids = []
    monkeypatch.setattr(_draw, "sample_n", lambda *args, ts, **options: grids.append(ts) or np.zeros((1, 2)))
    done(capfd, "sample", toy_run, "--ts", 0.9, 0.1, "--n", 1, "--out", tmp_path / "x.npz")
    np.testing.assert_allclose(grids, [[0.9, 0.1]])


@covers("sample", "steps", "interval", "chunk")
def test_samples_with_guidance_in_an_interval_are_the_librarys_by_any_chunk(toy_run, trained, drawn, tmp_path, capfd):
    options = ["--steps", 3, "--guidance", 4, "--interval", -2, 3, "--n", 20, "--chunk", 8]
    done(capfd, "sample", toy_run, *options, "--out", tmp_path / "x.npz")
    labels = np.arange(20) * CLASSES // 20
    ts = dj.logsnr_grid(dj.Cosine(), 3)
    wanted = draw(trained, 20, labels, scale=4.0, ts=ts, interval=(-2.0, 3.0))
    close(np.load(tmp_path / "x.npz")["x"], wanted)
    assert drawn[0][1]["chunk"] == 8


@covers("sample", "known", "mask", "times")
@pytest.mark.parametrize("times", [None, 2])
def test_inpainting_is_repaint_and_then_puts_the_known_part_back(toy_run, trained, drawn, tmp_path, capfd, times):
    np.savez(tmp_path / "known.npz", x=np.array([0.25, 9.0]))
    np.savez(tmp_path / "mask.npz", mask=np.array([1, 0]))
    options = ["--known", tmp_path / "known.npz", "--mask", tmp_path / "mask.npz", "--steps", 3, "--label", 1, "--n", 8]
    options += [] if times is None else ["--times", times]
    done(capfd, "sample", toy_run, *options, "--out", tmp_path / "x.npz")
    method = RePaint(jnp.array([True, False]), np.array([[0.25, 9.0]], np.float32), 10 if times is None else times)
    ts = dj.logsnr_grid(dj.Cosine(), 3)
    wanted = draw(trained, 8, np.full(8, 1), ts=ts, stepper=method)
    ((x, _),) = drawn
    close(x, wanted)
    assert np.all(x[:, 0] != np.float32(0.25))  # the last denoising moves it
    found = np.load(tmp_path / "x.npz")["x"]
    np.testing.assert_array_equal(found[:, 0], np.float32(0.25))
    np.testing.assert_array_equal(found[:, 1], x[:, 1])


def test_pictures_of_what_is_known(tmp_path):
    """Bytes 0 .. 255 are -1 .. 1, and the light half of a mask is kept."""
    grey = np.array([[0, 51], [127, 255]], np.uint8)
    from PIL import Image

    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey, grey // 3, 255 - grey], axis=-1)).save(tmp_path / "colour.png")
    found = read_known(str(tmp_path / "grey.png"), (2, 2, 1))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[[[-1.0], [-0.6]], [[-1 / 255], [1.0]]]], rtol=1e-6)
    colour = read_known(str(tmp_path / "colour.png"), (2, 2, 3))
    np.testing.assert_allclose(colour[0, 1, 1], [1.0, -1 / 3, -1.0], rtol=1e-6)
    mask = read_mask(str(tmp_path / "grey.png"), (2, 2, 3))
    np.testing.assert_array_equal(np.broadcast_to(mask, (2, 2, 3))[..., 0], [[False, False], [False, True]])


@covers("train", "ema_widths")
@covers("sample", "ema_width")
@covers("evaluate", "ema_width")
def test_samples_of_another_average_without_classes(wide, drawn, tmp_path, capfd):
    folder, _ = wide
    run = read_run(folder, AVERAGES)
    params = Snapshots(folder / "averages", (0.05, 0.1)).reconstruct(run.ema["decay"], 0.07, 6)
    wanted = draw(run._replace(ema=params), 24)
    done(capfd, "sample", folder, "--ema-width", 0.07, "--n", 24, "--out", tmp_path / "x.npz")
    done(capfd, "evaluate", folder, "--ema-width", 0.07, "--n", 24)
    (x, _), (measured, _) = drawn
    close(x, wanted)
    close(measured, wanted)
    with np.load(tmp_path / "x.npz") as file:
        assert list(file) == ["x"]
        np.testing.assert_array_equal(file["x"], x)


# train


@covers("train", "config", "out", "accumulate")
def test_training_is_the_librarys_own_steps(wide):
    """Six steps over four devices in two parts, against whole batches on one device."""
    folder, calls = wide
    config = from_json((folder / "config.json").read_text())
    assert config == dataclasses.replace(
        PRESETS["toy2d"],
        steps=6,
        batch_size=16,
        seed=3,
        ema_widths=(0.05, 0.1),
        data=dataclasses.replace(PRESETS["toy2d"].data, name="two_moons"),
        network=dataclasses.replace(PRESETS["toy2d"].network, width=16, depth=1),
        sampler=dataclasses.replace(PRESETS["toy2d"].sampler, steps=4),
    )
    data = build_data(config.data)
    parts = build(config, data.classes)
    ema = make_emas({"decay": make_ema(0.999), "0.05": make_power_ema(0.05), "0.1": make_power_ema(0.1)})
    step = jax.jit(make_train_step(parts.loss, parts.tx, ema=ema))
    state = init_state(jax.random.key(3), parts.network, parts.tx, data.source(3, 0, 1)[0], averages=AVERAGES)
    for n in range(6):
        state, _ = step(state, data.source(3, n, 16))
    found = read_run(folder, AVERAGES).state
    for name in ("params", "ema"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            getattr(found, name),
            getattr(state, name),
        )
    assert calls.step["accumulate"] == 2


@covers("train", "layout", "split", "devices", "keep", "save_every", "log_every", "samples", "tensorboard")
def test_where_a_run_is_trained_and_what_it_leaves(wide):
    folder, calls = wide
    names = {"config.json", "checkpoints", "metrics.jsonl", "samples.png", "results.json", "averages", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == names
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [4, 6]
        about = checkpoints.about(6)["about"]
    del about["config"]
    assert about.pop("configuration") == (folder / "config.json").read_text()
    assert about == {"layout": "fsdp", "data": 2, "fsdp": 2, "tensor": 1}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]  # and at every checkpoint
    assert measures(folder)["samples"] == 24
    (board,) = calls.train["watch"]
    board.close()  # or it waits for the end of the process
    (events,) = (folder / "tensorboard").iterdir()
    assert b"grad_norm" in events.read_bytes()


@covers("train", "save_seconds", "profile")
def test_the_clock_of_checkpoints_and_the_steps_of_a_trace(wide):
    folder, calls = wide
    assert calls.train["save_seconds"] == 500
    assert calls.train["profile"] == (2, 3, folder / "profile")
    assert calls.traces == [str(folder / "profile")]


@covers("train", "dry_run")
def test_dry_run_tells_sizes_and_writes_nothing(trained, tmp_path, capfd):
    out = done(capfd, *TRAIN, "--layout", "fsdp", "--dry-run", "--out", tmp_path / "none")
    assert not list(tmp_path.iterdir())
    count = sum(leaf.size for leaf in jax.tree.leaves(trained.state.params))
    assert f"{count:,} parameters" in out
    size = {line.split()[0]: float(line.split()[1]) for line in out.splitlines() if line.endswith("KiB")}
    assert size["jit"] == size["pmap"] == pytest.approx(4 * 4 * count / 1024, rel=0.01)  # params, ema, two moments
    assert size["fsdp"] < 0.25 * size["jit"]  # an eighth, and the small arrays whole
    assert size["fsdp"] < size["tensor"] < size["jit"]
    assert "FLOPs of a step" in out


# every command


@covers("train", "compile_cache")
@covers("sample", "compile_cache")
@covers("evaluate", "compile_cache")
def test_every_command_keeps_its_programs_where_it_is_told(tmp_path, capfd):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for argv in (["train", "toy2d"], ["sample", "absent"], ["evaluate", "absent"]):
        said = refused(capfd, *argv, "--compile-cache", shared)
        assert said == f"diffjax: compile-cache: {shared} can be written by others than you\n"


@covers("train", "hosts")
@covers("sample", "hosts")
@covers("evaluate", "hosts")
@covers("hosts", "coordinator", "num_processes", "process_id", "heartbeat", "join_timeout")
def test_every_command_meets_the_others_that_it_is_told_of(monkeypatch, capfd):
    met = []

    def join(*args, **options):
        options.pop("tell")("process 2 waits")
        met.append((args, options))
        raise ValueError("met")

    monkeypatch.setattr(_hosts, "join", join)
    options = ["--coordinator", "node:1234", "--num-processes", 3, "--process-id", 2]
    options += ["--heartbeat", 17, "--join-timeout", 23]
    for argv in (["train", "toy2d"], ["sample", "absent"], ["evaluate", "absent"]):
        assert call(capfd, *argv, *options) == (2, "", "diffjax: process 2 waits\ndiffjax: met\n")
    assert met == 3 * [(("node:1234", 3, 2), {"heartbeat": 17, "timeout": 23})]


def test_a_run_is_written_to_its_own_name_by_default(tmp_path, monkeypatch, capfd):
    (tmp_path / "runs" / "toy2d").mkdir(parents=True)
    (tmp_path / "runs" / "toy2d" / "thesis.tex").touch()
    monkeypatch.chdir(tmp_path)
    assert "out: runs/toy2d holds no run" in refused(capfd, "train", "toy2d", *TINY, "--dry-run")


def test_every_option_is_compared_with_what_it_stands_for():
    """A new option needs a test that is marked as covering it."""
    for module in ("test_cli_measure", "test_cli_checkpoint", "test_data_identity"):
        importlib.import_module(module)
    commands = {"train": Train, "sample": Sample, "evaluate": Evaluate, "checkpoint": Checkpoint, "hosts": Hosts}
    options = {(name, field.name) for name, of in commands.items() for field in dataclasses.fields(of)}
    assert options | {("train", "ema_widths")} == COVERED  # that one is of the configuration
