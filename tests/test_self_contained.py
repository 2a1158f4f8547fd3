"""A run folder is all that sampling needs: copied, from another working folder, with the training data gone."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, contents, done, refused
from PIL import Image

import diffjax as dj
from diffjax.cli._folder import check_data, keep_data
from diffjax.config import DataConfig, Samples, build_data, from_json, read_samples, to_json
from diffjax.training import Checkpoints


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of pictures in two folders, copied; and an .npz drawn while its data, under a relative path, were there."""
    there, here = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("here")
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    for i, image in enumerate(images):
        path = there / "set" / ("10" if i % 2 else "9") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        from diffjax.cli import main

        data = ["--data.name", "image_folder", "--data.path", "set", "--data.conditional", "--data.holdout", "0.4"]
        size = ["--steps", "2", "--samples", "4", "--sampler.steps", "2", "--devices", "1"]
        assert main(["train", "toy2d", *TINY, *data, *size, "--out", "run"]) == 0
        assert main(["sample", "run", "--n", "4", "--out", str(here / "before.npz")]) == 0
    shutil.copytree(there / "run", here / "run")
    shutil.rmtree(there)
    return here


def test_a_run_is_sampled_without_its_data(alone, tmp_path, monkeypatch, capfd):
    """The same samples as with them; classes by their labels and by their names."""
    monkeypatch.chdir(tmp_path)
    run, before = alone / "run", np.load(alone / "before.npz")
    out = done(capfd, "sample", run, "--n", 4, "--out", "all.npz")
    assert out.splitlines()[-1] == "classes: 0 = 9, 1 = 10"
    with np.load("all.npz") as drawn:
        np.testing.assert_array_equal(drawn["x"], before["x"])
        np.testing.assert_array_equal(drawn["labels"], [0, 0, 1, 1])
    done(capfd, "sample", run, "--n", 4, "--out", "all.png")
    assert "class: 1 = 10" in done(capfd, "sample", run, "--n", 2, "--label", 1, "--out", "one.npz")
    np.testing.assert_array_equal(np.load("one.npz")["labels"], [1, 1])
    half = np.zeros((4, 4, 3))
    half[:2] = 1
    np.savez("half.npz", x=half / 2, mask=half)
    done(capfd, "sample", run, "--n", 2, "--known", "half.npz", "--mask", "half.npz", "--times", 1, "--out", "in.npz")
    np.testing.assert_array_equal(np.load("in.npz")["x"][:, :2], np.full((2, 2, 4, 3), 0.5, np.float32))
    for label in (2, "cat"):
        said = refused(capfd, "sample", run, "--label", label)
        assert f"label: the classes are 0 .. 1: 0 = 9, 1 = 10, got {label}" in said


def test_a_run_is_loaded_in_python_without_its_data(alone, monkeypatch):
    """With its labels, the samples are those of the command line; without, the network is told nothing of them."""
    monkeypatch.chdir(alone)
    run = dj.load("run")
    assert (run.shape, run.names, run.null, run.bound, run.step) == ((4, 4, 3), ("9", "10"), 2, 1.0, 2)
    before = np.load("before.npz")
    labels = jnp.asarray(before["labels"])
    denoiser = dj.guidance.static_threshold(run.denoiser(labels), -run.bound, run.bound)
    key = jax.random.key(0)
    x0 = dj.sample_n(key, run.process, denoiser, run.shape, len(labels), ts=run.ts, stepper=run.stepper)
    np.testing.assert_allclose(x0, before["x"], atol=1e-5)
    xt = jnp.ones((3, *run.shape))
    untold, null = run.denoiser(), run.denoiser(jnp.full(3, run.null))
    np.testing.assert_array_equal(untold(xt, jnp.asarray(0.5)), null(xt, jnp.asarray(0.5)))
    alike = dj.classifier_free(run.denoiser(jnp.zeros(3, int)), run.null, 0.0)
    np.testing.assert_allclose(untold(xt, jnp.asarray(0.5)), alike(xt, jnp.asarray(0.5)), atol=1e-6)
    for wrong in (jnp.array([0, 3]), jnp.array([-1, 0]), jnp.array([0.0, 1.0]), 1):
        with pytest.raises(ValueError, match=r"labels: whole numbers \[b\] from 0 to 2, the null label, are needed"):
            run.denoiser(wrong)
    with pytest.raises(ValueError, match="run: nowhere: no such folder"):
        dj.load("nowhere")
    with pytest.raises(ValueError, match="run: the path of a folder is needed, got None"):
        dj.load(None)


@pytest.mark.slow
def test_what_else_there_is_of_a_run_without_its_data(alone, tmp_path, monkeypatch, capfd):
    """Checkpoints are looked at as ever; what needs the data says so in a line."""
    monkeypatch.chdir(tmp_path)
    run, before = alone / "run", contents(alone / "run")
    for action in ("list", "verify"):
        assert done(capfd, "checkpoint", action, run)
    assert done(capfd, "checkpoint", "export", run, "--out", "weights.safetensors")
    said = refused(capfd, "evaluate", run)
    assert f"run: {run} is measured against its data, which cannot be read: data.path: set: no such folder" in said
    assert contents(run) == before


def test_what_samples_are_like_is_stored_and_restored_from_the_newest_readable_checkpoint(alone, tmp_path):
    run = shutil.copytree(alone / "run", tmp_path / "run")
    kept = run / "data.json"
    truth = Samples((4, 4, 3), 2, ("9", "10"), True, 1.0)
    assert read_samples(run, "run") == truth
    record = json.loads(kept.read_text())
    stored = {"shape": [4, 4, 3], "classes": 2, "names": ["9", "10"], "pictures": True, "largest": 1.0}
    assert record == {"sha256": record["sha256"]} | stored
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / "7")  # which is damage
    for text in ("", "\0\0", "[1]", "[" * 100_000, json.dumps(record | {"shape": [4.0, 4, 3]})):
        kept.write_text(text)
        with pytest.warns(UserWarning, match=r"run: .*data.json is damaged; the copy in the newest checkpoint is used"):
            assert read_samples(run, "run") == truth
    kept.unlink()
    assert read_samples(run, "run") == truth
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.about(2)["about"]["dataset"] == stored
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match=r"run: .*data.json does not describe the samples of the run, nor "):
        read_samples(run, "run")


def test_records_that_are_none(tmp_path):
    def samples_of(record):
        (tmp_path / "data.json").write_text(json.dumps(record))
        return read_samples(tmp_path, "run")

    sound = {"shape": [4], "classes": 2, "names": ["a", "b"], "pictures": False, "largest": 2.5}
    assert samples_of(sound)[:5] == ((4,), 2, ("a", "b"), False, 2.5)
    assert samples_of(sound)[5:] == (None, None, None, None)
    assert samples_of(sound | {"classes": None, "names": None})[:5] == ((4,), None, None, False, 2.5)
    changes = [{"pictures": 1}, {"largest": "2.5"}, {"largest": float("nan")}, {"shape": [0]}, {"shape": 3}]
    changes += [{"classes": True}, {"names": ["a"]}, {"names": [1, 2]}, {"names": 5}]
    for record in (None, *(sound | change for change in changes)):
        with pytest.raises(ValueError, match=r"run: .*data.json does not describe the samples of the run, nor "):
            samples_of(record)


def test_points_are_drawn_without_what_was_held_out_where_that_is_gone(toy_run, tmp_path, capfd):
    run = shutil.copytree(toy_run, tmp_path / "run")
    config = from_json((run / "config.json").read_text())
    gone = dataclasses.replace(config.data, name="file", path=str(tmp_path / "gone.npz"))
    (run / "config.json").write_text(to_json(dataclasses.replace(config, data=gone)))
    out = done(capfd, "sample", run, "--n", 8)
    assert f"not drawn, for the data cannot be read: data.path: no .npz with an array x at {tmp_path}/" in out
    assert (run / "drawn.png").read_bytes().startswith(b"\x89PNG")
    assert done(capfd, "sample", toy_run, "--n", 8, "--out", tmp_path / "x.png").count("held out") == 0


def test_data_of_another_shape_are_never_accepted_and_are_digested_once(tmp_path, monkeypatch):
    """The network is made for their shape; and their bytes are read once, however often they are compared."""
    file, hashed, sha256 = tmp_path / "a.npz", [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *data: hashed.append(1) or sha256(*data))

    def read(x, y):
        np.savez(file, x=x.astype(np.float32), y=y)
        return build_data(DataConfig("file", str(file), conditional=True))

    x, y = np.random.default_rng(0).uniform(-1, 1, (20, 2)), np.arange(20) % 2
    data = read(x, y)
    keep_data(tmp_path, data, hashed=True)
    check_data(tmp_path, str(file), data, "out")
    keep_data(tmp_path, data, hashed=True, anew=True)
    assert len(hashed) == 1
    check_data(tmp_path, str(file), read(-x, y), "out", accept=True)
    for other in (read(x[:, :1], y), read(x, np.arange(20) % 3)):
        for accept in (False, True):
            with pytest.raises(
                ValueError, match=r"out: .* was trained on other data, samples of shape \[2\] and 2 cla"
            ):
                check_data(tmp_path, str(file), other, "out", accept=accept)
    (tmp_path / "data.json").write_text(json.dumps({"sha256": data.digest}))
    check_data(tmp_path, str(file), data, "out")
    keep_data(tmp_path, data, hashed=True)
    assert read_samples(tmp_path, "run")[:5] == ((2,), 2, None, False, np.abs(x.astype(np.float32)).max())
