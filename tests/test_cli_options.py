"""Each option of the command line does what the library call it stands for does."""

import dataclasses
import importlib
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import CLASSES, COVERED, TINY, TRAIN, call, covers, done, draw, measures, read_run, refused

import diffjax as dj
from diffjax import samplers, viz
from diffjax.cli import (
    Checkpoint,
    Distill,
    EncodeText,
    Evaluate,
    Hosts,
    Sample,
    Train,
    _draw,
    _hosts,
    _layout,
    _measure,
    _preview,
    _sample,
    _train,
    main,
    read_known,
    read_mask,
)
from diffjax.config import PRESETS, OtherSampler, SamplerConfig, build, build_data, changed, from_json
from diffjax.inverse import RePaint
from diffjax.training import (
    Checkpoints,
    Objective,
    Snapshots,
    init_state,
    make_ema,
    make_power_ema,
    make_train_step,
)

WIDE = ["train", "toy2d", *TINY, "--data.name", "two_moons", "--steps", "6", "--seed", "3"]
WIDE += ["--ema-widths", "0.05", "0.1", "--layout", "fsdp", "--split", "2", "--devices", "4", "--accumulate", "2"]
WIDE += ["--save-every", "2", "--save-seconds", "500", "--keep", "2", "--log-every", "3", "--samples", "24"]
WIDE += ["--tensorboard", "--profile", "2", "3", "--sample-every", "2"]
AVERAGES = ("decay", "0.05", "0.1")


@pytest.fixture(scope="module")
def trained(toy_run):
    """The run of the conditional mixture, as the library reads it."""
    return read_run(toy_run)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A run without classes that every option of training was given to, and the arguments of the calls it made."""
    folder, calls = tmp_path_factory.mktemp("runs") / "wide", types.SimpleNamespace(train={}, step={}, traces=[])
    calls.samples = {}
    train, step, save_samples = _train.train, _layout.make_train_step, _preview.save_samples

    def recorded_train(*args, **options):
        calls.train = options
        return train(*args, **options)

    def recorded_step(*args, **options):
        calls.step = options
        return step(*args, **options)

    def recorded_samples(stem, x, *args):
        calls.samples[stem.name] = x
        return save_samples(stem, x, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_preview, "save_samples", recorded_samples)
        patch.setattr(_train, "train", recorded_train)
        patch.setattr(_layout, "make_train_step", recorded_step)
        patch.setattr(jax.profiler, "start_trace", lambda folder: calls.traces.append(folder))  # seconds, otherwise
        patch.setattr(jax.profiler, "stop_trace", lambda: None)
        assert main([*WIDE, "--out", str(folder)]) == 0
    return folder, calls


@pytest.fixture
def drawn(monkeypatch):
    """What the command line drew: (x0, the `Draw`) of each call."""
    found, call = [], _draw.Draw.__call__

    def recorded(self, *args, **options):
        found.append((call(self, *args, **options), self))
        return found[-1][0]

    monkeypatch.setattr(_draw.Draw, "__call__", recorded)
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
    high, low = (float(t) for t in reversed(dj.Cosine().interval()))
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
    ((x, by),) = drawn
    close(x, wanted)
    assert (by.chunk, by.options) == (256, {})
    ((path, shown, shown_labels, _),) = pictures
    assert path == toy_run / "drawn.png"
    np.testing.assert_array_equal(shown, x)
    np.testing.assert_array_equal(shown_labels, labels)


def test_without_a_label_the_classes_are_as_even_as_their_number_allows(toy_run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(_draw.Draw, "__call__", lambda self, n, labels, seed: np.zeros((n, 2)))
    for n in (1, 3, 11, 25):
        done(capfd, "sample", toy_run, "--n", n, "--out", tmp_path / "x.npz")
        labels = np.load(tmp_path / "x.npz")["labels"]
        assert np.all(np.diff(labels) >= 0)
        counts = np.bincount(labels, minlength=CLASSES)
        assert (counts.sum(), np.ptp(counts)) == (n, 1)


def test_one_step_from_noise_to_data_is_a_grid(toy_run, tmp_path, monkeypatch, capfd):
    grids = []
    drawing = lambda self, *args: grids.append(self.options["ts"]) or np.zeros((1, 2))
    monkeypatch.setattr(_draw.Draw, "__call__", drawing)
    done(capfd, "sample", toy_run, "--ts", 0.9, 0.1, "--n", 1, "--out", tmp_path / "x.npz")
    np.testing.assert_allclose(grids, [[0.9, 0.1]])


@covers("sample", "chunk")
def test_samples_with_guidance_in_an_interval_are_the_librarys_by_any_chunk(toy_run, trained, drawn, tmp_path, capfd):
    options = ["--steps", 3, "--guidance", 4, "--interval", -2, 3, "--n", 20, "--chunk", 8]
    done(capfd, "sample", toy_run, *options, "--out", tmp_path / "x.npz")
    labels = np.arange(20) * CLASSES // 20
    ts = dj.logsnr_grid(dj.Cosine(), 3)
    wanted = draw(trained, 20, labels, scale=4.0, ts=ts, interval=(-2.0, 3.0))
    close(np.load(tmp_path / "x.npz")["x"], wanted)
    assert drawn[0][1].chunk == 8


@pytest.mark.slow
@covers("sample", "sampler")
@covers("evaluate", "sampler")
def test_samples_by_another_sampler_are_the_librarys(toy_run, trained, drawn, tmp_path, capfd):
    """Of the run's own sampler, steps and grid remain, and its numbers where the method is the same."""
    options = ["--sampler.name", "seeds2", "--sampler.r", 0.4, "--sampler.grid", "edm", "--sampler.rho", 4, "--n", 8]
    done(capfd, "sample", toy_run, *options, "--label", 1, "--out", tmp_path / "x.npz")
    rule = ["--guidance.name", "projected", "--guidance.norm", 0.5]
    done(capfd, "evaluate", toy_run, *options, "--guidance", 3, "--interval", -2, 3, *rule)
    (x, _), (measured, _) = drawn
    ts, stepper = dj.edm_grid(dj.Cosine(), 4, 4.0), samplers.SEEDS2(0.4)
    close(x, draw(trained, 8, np.full(8, 1), ts=ts, stepper=stepper))
    guided = {"scale": 3.0, "interval": (-2.0, 3.0), "rule": dj.guidance.Projected(norm=0.5)}
    close(measured, draw(trained, 8, np.arange(8), ts=ts, stepper=stepper, **guided))
    for run, other, found in (
        (("ddim", 9, "snr"), {}, ("ddim", 9, "snr")),
        (("ddim", 9, "snr"), {"grid": "edm"}, ("ddim", 9, "edm")),
        (("ddim", 9, "snr", 0.7), {"name": "heun"}, ("heun", 9, "snr", 0.7)),
    ):
        by = changed(SamplerConfig(*run, eta=0.5), OtherSampler(**other))
        assert by == SamplerConfig(*found, eta=None if found[0] == "heun" else 0.5)
    for argv, message in (
        (["--sampler.name", "heun", "--sampler.eta", 1], "sampler.eta: heun has no such number, got 1.0"),
        (["--sampler.s-churn", 1], "sampler.s_churn: dpmpp2m has no such number, got 1.0"),
        (["--sampler.rho", 3], "sampler.rho: logsnr has no such number, got 3.0"),
        (["--sampler.quantile", 0.9], "sampler.quantile: static has no such number, got 0.9"),
        (["--guidance.phi", 0.5], "guidance.phi: cfg has no such number, got 0.5"),
        (["--guidance.name", "rescaled", "--guidance.phi", 2], "phi: must lie in [0, 1], got 2.0"),
        (["--steps", 0], "sampler.steps: at least 1, got 0"),
        (["--sampler.order", 9, "--sampler.name", "lms"], "order: must be an integer from 1 to 8, got 9"),
    ):
        for command in ("sample", "evaluate"):
            assert message in refused(capfd, command, toy_run, *argv)
    for argv, message in (
        (["--ts", 1, 0, "--sampler.grid", "snr"], "ts: give --ts or --sampler.grid, not both, got 1.0 0.0 and snr"),
        (
            ["--known", "a", "--mask", "b", "--sampler.eta", 1],
            "sampler.eta: inpainting has a method of its own",
        ),
        (["--known", "a", "--mask", "b", "--sampler.name", "heun"], "sampler.name: inpainting has a method of its own"),
        (["--sampler.name", "hune"], "did you mean heun?"),
        (["--guidance.name", "cfgzero"], "did you mean cfg_zero?"),
        (["--sampler.threshold", "dinamic"], "did you mean dynamic?"),
        (["--intervall", 1, 2], "did you mean --interval?"),
        (["--sampler.s-chrun", 3], "did you mean --sampler.s-churn?"),
        (["--eta", 1], "did you mean --sampler.eta?"),
    ):
        assert message in refused(capfd, "sample", toy_run, *argv)


def test_samples_are_clipped_and_likelihoods_are_not(toy_run, trained, drawn, tmp_path, monkeypatch, capfd):
    seen = []

    def log_likelihood(key, process, denoiser, x, **options):
        seen.append(denoiser)
        return types.SimpleNamespace(nats=jnp.zeros(len(x)), standard_error=jnp.zeros(len(x)))

    monkeypatch.setattr("diffjax.likelihood._flow.log_likelihood", log_likelihood)
    threshold = ["--sampler.threshold", "dynamic", "--sampler.quantile", 0.5]
    done(capfd, "sample", toy_run, "--clip", 0.3, *threshold, "--label", 1, "--n", 8, "--out", tmp_path / "x.npz")
    done(capfd, "evaluate", toy_run, "--clip", 0.4, "--n", 8, "--likelihood", 2)
    ((sampled, _), (measured, _)) = drawn
    close(sampled, draw(trained, 8, np.full(8, 1), threshold=lambda x: dj.guidance.dynamic_threshold(x, 0.5, 0.3)))
    assert np.abs(sampled).max() == np.float32(0.3)
    assert np.abs(measured).max() == np.float32(0.4)
    assert [type(denoiser) for denoiser in seen] == [dj.parameterisation.NetworkDenoiser]
    for command in ("sample", "evaluate"):
        for value in (-0.5, "nan"):
            said = refused(capfd, command, toy_run, f"--clip={value}")
            assert said == f"diffjax: sampler.clip: a finite number, 0 for off, got {value}\n"


@pytest.mark.slow
@covers("sample", "autoguidance")
@covers("evaluate", "guidance", "autoguidance")
def test_autoguidance_is_away_from_another_run(toy_run, trained, drawn, tmp_path, capfd):
    """Here from the same run at an earlier step."""
    weak = shutil.copytree(toy_run, tmp_path / "weak")
    done(capfd, "checkpoint", "rollback", weak, "--step", 8)
    options = ["--autoguidance", weak, "--guidance", 3, "--n", 8]
    done(capfd, "sample", toy_run, *options, "--out", tmp_path / "x.npz")
    done(capfd, "evaluate", toy_run, *options)
    wanted = draw(trained, 8, np.arange(8), scale=3.0, weak=read_run(weak).ema)
    assert np.abs(wanted - draw(trained, 8, np.arange(8), scale=3.0)).max() > 0.01
    for x, _ in drawn:
        close(x, wanted)
    config = (weak / "config.json").read_text()
    (weak / "config.json").write_text(config.replace('"cosine"', '"rectified"'))
    for folder, message in (
        (weak, f"autoguidance: a run on the same data and process is needed, got another process in {weak}"),
        (tmp_path / "absent", f"autoguidance: {tmp_path / 'absent'}: no such folder"),
    ):
        for command in ("sample", "evaluate"):
            assert message in refused(capfd, command, toy_run, "--autoguidance", folder)


@covers("sample", "known", "mask", "times")
@pytest.mark.parametrize("times", [None, 2])
def test_inpainting_is_repaint_and_then_puts_the_known_part_back(toy_run, trained, tmp_path, capfd, times):
    np.savez(tmp_path / "known.npz", x=np.array([0.25, 9.0]))
    np.savez(tmp_path / "mask.npz", mask=np.array([1, 0]))
    options = ["--known", tmp_path / "known.npz", "--mask", tmp_path / "mask.npz", "--steps", 3, "--label", 1, "--n", 8]
    options += [] if times is None else ["--times", times]
    done(capfd, "sample", toy_run, *options, "--out", tmp_path / "x.npz")
    method = RePaint(jnp.array([True, False]), np.array([[0.25, 9.0]], np.float32), 10 if times is None else times)
    ts = dj.logsnr_grid(dj.Cosine(), 3)
    wanted = draw(trained, 8, np.full(8, 1), ts=ts, stepper=method)
    assert np.all(wanted[:, 0] != np.float32(0.25))  # the last denoising moves it
    found = np.load(tmp_path / "x.npz")["x"]
    np.testing.assert_array_equal(found[:, 0], np.float32(0.25))
    close(found[:, 1], wanted[:, 1])


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    ema = {"decay": make_ema(0.999), "0.05": make_power_ema(0.05), "0.1": make_power_ema(0.1)}
    step = jax.jit(make_train_step(Objective(parts.loss, parts.tx), ema=ema))
    state = init_state(jax.random.key(3), parts.diffusion.network, parts.tx, data.source(3, 0, 1)[0], averages=AVERAGES)
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
    names = {"config.json", "data.json", "checkpoints", "metrics.jsonl", "loss.png", "samples.png", "results.json"}
    assert {path.name for path in folder.iterdir()} == names | {"averages", "samples", "tensorboard"}
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [4, 6]
        about = checkpoints.about(6)["about"]
    del about["config"]
    assert about.pop("configuration") == (folder / "config.json").read_text()
    assert about.pop("dataset") == json.loads((folder / "data.json").read_text())
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


@covers("train", "sample_every")
def test_samples_are_drawn_meanwhile_from_the_same_noise_by_the_averages(wide):
    """On four devices, over which the averages are split: as the library draws by the checkpoints of those steps."""
    folder, calls = wide
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{s:07}.png" for s in (2, 4, 6)]
    assert [viz.read_picture(path).shape for path in (folder / "samples").iterdir()] == 3 * [(720, 960, 3)]
    run = read_run(folder, AVERAGES)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        ema = jax.tree.map(np.asarray, checkpoints.restore(run.state, step=4).ema["decay"])
    for step, params in ((4, ema), (6, run.ema["decay"])):
        close(calls.samples[f"{step:07}"], draw(run._replace(ema=params), 1000, seed=3))
    assert np.abs(calls.samples["0000004"] - calls.samples["0000006"]).max() > 0.01
    (events,) = (folder / "tensorboard").iterdir()
    assert events.read_bytes().count(b"\x89PNG") == 3


@pytest.mark.slow
def test_a_run_is_the_same_whatever_is_drawn_meanwhile_and_does_not_end_where_it_cannot(
    toy_run, trained, tmp_path, monkeypatch, capfd
):
    """The second and the third of four pictures fail: that is said once."""
    write, tried = _preview.Preview._write, []

    def full(self, step, x, labels):
        tried.append(step)
        if step in (10, 15):
            raise OSError("no space left")
        write(self, step, x, labels)

    monkeypatch.setattr(_preview.Preview, "_write", full)
    with pytest.warns(UserWarning, match=r"^sample-every: no space left; training goes on") as warned:
        assert call(capfd, *TRAIN, "--sample-every", 5, "--samples", 2, "--out", tmp_path / "run")[0] == 0
    assert (len(warned), tried) == (1, [5, 10, 15, 20])
    assert [path.name for path in sorted((tmp_path / "run" / "samples").iterdir())] == ["0000005.png", "0000020.png"]
    there, here = trained.state, read_run(tmp_path / "run").state
    jax.tree.map(np.testing.assert_array_equal, jax.random.key_data(there.key), jax.random.key_data(here.key))
    jax.tree.map(np.testing.assert_array_equal, there._replace(key=0), here._replace(key=0))
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (toy_run, tmp_path / "run")]
    for a, b in zip(*lines, strict=True):
        assert {name: b[name] for name in a if "second" not in name} == {
            name: value for name, value in a.items() if "second" not in name
        }
    assert "draw_seconds" in b
    assert "draw_seconds" not in a


def test_what_is_compiled_and_drawn_is_said_and_a_terminal_has_a_bar(toy_run, tmp_path, monkeypatch, capfd):
    argv = ["sample", toy_run, "--n", 12, "--chunk", 8, "--out", tmp_path / "x.npz"]
    assert "compiling the sampler, then drawing 12 samples ...\n" in done(capfd, *argv)
    monkeypatch.setattr(_draw, "is_watched", lambda: True)
    monkeypatch.setattr(_measure, "is_watched", lambda: True)
    _, _, err = call(capfd, *argv)
    assert err.index("compiling:   0%") < err.index("drawing:   0%") < err.index("drawing: 100%")
    assert "2/2" in err
    code, out, err = call(capfd, "evaluate", toy_run, "--n", 16, "--chunk", 8)
    assert code == 0
    said = ["compiling the sampler, then drawing 16 samples ...", "measuring: sliced Wasserstein distances ..."]
    assert [line for line in out.splitlines() if line.endswith("...")] == said
    assert [err.index(f"{name}: ") for name in ("drawing", "samples", "floor, other data", "ceiling, a Gaussian")]


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
def test_every_command_initialises_its_processes(monkeypatch, capfd):
    calls = []

    def initialize(*args, **options):
        options.pop("log")("process 2 waits")
        calls.append((args, options))
        raise ValueError("called")

    monkeypatch.setattr(_hosts, "initialize", initialize)
    options = ["--coordinator", "node:1234", "--num-processes", 3, "--process-id", 2]
    options += ["--heartbeat", 17, "--join-timeout", 23]
    for argv in (["train", "toy2d"], ["sample", "absent"], ["evaluate", "absent"]):
        assert call(capfd, *argv, *options) == (2, "", "diffjax: process 2 waits\ndiffjax: called\n")
    expected = {"heartbeat": 17, "timeout": 23, "abort_on_error": True}
    assert calls == 3 * [(("node:1234", 3, 2), expected)]


def test_a_run_is_written_to_its_own_name_by_default(tmp_path, monkeypatch, capfd):
    (tmp_path / "runs" / "toy2d").mkdir(parents=True)
    (tmp_path / "runs" / "toy2d" / "thesis.tex").touch()
    monkeypatch.chdir(tmp_path)
    assert "out: runs/toy2d holds no run" in refused(capfd, "train", "toy2d", *TINY, "--dry-run")


def test_every_option_is_compared_with_what_it_stands_for():
    """A new option needs a test that is marked as covering it."""
    for module in (
        "test_alignment",
        "test_cli_measure",
        "test_cli_checkpoint",
        "test_data_identity",
        "test_distill",
        "test_family",
        "test_text_encoder",
        "test_conditions",
    ):
        importlib.import_module(module)
    commands = {
        "train": Train,
        "distill": Distill,
        "sample": Sample,
        "evaluate": Evaluate,
        "encode-text": EncodeText,
        "checkpoint": Checkpoint,
        "hosts": Hosts,
    }
    options = {(name, field.name) for name, of in commands.items() for field in dataclasses.fields(of)}
    assert options | {("train", "ema_widths")} == COVERED  # that one is of the configuration
