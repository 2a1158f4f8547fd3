"""A run and its data: bad pictures are found before it starts, changed data is refused in words, moved data is not."""

import dataclasses
import io
import json
import os
import shutil
import warnings
import zipfile

import cloudpickle
import numpy as np
import pytest
from command_line import TINY, call, contents, covers, refused
from PIL import Image

from diffjax import config as c
from diffjax.data import ImageFolder

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)


def picture(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "BMP")  # of one size whatever is in it
    return file.getvalue()


def write_pictures(folder, images=IMAGES):
    for i, image in enumerate(images):
        path = folder / "ab"[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(image))
    return folder


@pytest.fixture
def untrained(monkeypatch):
    """Runs end where training would start: their folders are there by then."""
    monkeypatch.setattr("diffjax.cli._train._train", lambda *args: None)


def command(data, out, *options):
    name = ["--data.name", "image_folder", "--data.path", data, "--data.conditional"]
    return ["train", "toy2d", *TINY, *name, "--steps", 5, "--out", out, *options]


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "set")


@pytest.mark.slow
def test_a_bad_picture_ends_a_run_before_it_starts_unless_it_is_skipped(pictures, tmp_path, untrained, capfd):
    out = tmp_path / "run"
    for bad in sorted(pictures.rglob("*.bmp")):  # to train on, or held out
        whole = bad.read_bytes()
        bad.write_bytes(whole[:40])
        message = refused(capfd, *command(pictures, out))
        assert f"{bad}: image cannot be decoded" in message
        assert "data.skip-bad" in message
        assert not out.exists()
        with pytest.warns(UserWarning, match=f"skipped, 1 so far: {bad}"):
            code, said, _ = call(capfd, *command(pictures, out, "--data.skip-bad"))
        assert (code, f"skipped: 1 item that cannot be read: {bad}" in said) == (0, True)
        bad.write_bytes(whole)
        shutil.rmtree(out)


def test_a_run_that_met_a_bad_picture_goes_on(pictures, tmp_path, untrained, capfd):
    """Skipping may begin later; the picture put right is other data, and the message says how to take it."""
    out, bad = tmp_path / "run", pictures / "a" / "4.bmp"
    whole = bad.read_bytes()
    assert call(capfd, *command(pictures, out))[0] == 0
    bad.write_bytes(whole[:40])
    for option in ([], ["--data.skip-bad"]):
        message = refused(capfd, *command(pictures, out, *option))
        assert f"out: {out} was trained on other data: {pictures} has changed since" in message
        assert message.rstrip().endswith("go on with the data as it is now: --accept-data")
    with pytest.warns(UserWarning, match="skipped, 1 so far"):
        assert call(capfd, *command(pictures, out, "--data.skip-bad", "--accept-data"))[0] == 0
    bad.write_bytes(whole)
    assert "--accept-data" in refused(capfd, *command(pictures, out))
    bad.unlink()
    assert call(capfd, *command(pictures, out, "--accept-data"))[0] == 0
    assert call(capfd, *command(pictures, out))[0] == 0


def test_an_item_that_is_skipped_gives_way_to_the_next_and_the_rest_stay(pictures):
    config = c.DataConfig("image_folder", str(pictures), holdout=0.3)
    before = c.build_data(config)
    want, labels = before.source(0, 0, 14)
    trained = {image.tobytes() for image in before.train[0]}
    for bad in ("a/2.bmp", "a/4.bmp"):
        (pictures / bad).write_bytes(b"")
    data = c.build_data(dataclasses.replace(config, skip_bad=True))
    of = lambda name: IMAGES[int(name[-5])] / np.float32(127.5) - 1
    lost = [of("2.bmp"), of("4.bmp")]
    for source in (data.source, cloudpickle.loads(cloudpickle.dumps(data.source))):
        with pytest.warns(UserWarning, match="skipped"):
            x, y = source(0, 0, 14)
        same = [not any(np.array_equal(image, other) for other in lost) for image in want]
        assert 0 < len(same) - sum(same) <= 4
        np.testing.assert_array_equal(x[same], want[same])
        np.testing.assert_array_equal(y[same], labels[same])
        assert not any(np.array_equal(image, other) for image in x for other in lost)
        assert {image.tobytes() for image in x} <= trained  # never one that is held out
        halves = [source(0, 0, 14, part=(i, 2))[0] for i in range(2)]
        np.testing.assert_array_equal(np.concatenate(halves), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one that is held out
        measured = np.concatenate([data.train[0], data.held_out[0]])
    assert len({image.tobytes() for image in measured}) == len(measured) == 8
    assert len(data.bad()) == 2
    for path in pictures.rglob("*.bmp"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="7 items in a row cannot be read"), pytest.warns(UserWarning, match="skipped"):
        c.build_data(dataclasses.replace(config, skip_bad=True))
    for name in ("mnist", "digits"):
        path = str(pictures) if name == "mnist" else None
        with pytest.raises(ValueError, match=r"data\.skip_bad: "):
            c.build_data(c.DataConfig(name, path, skip_bad=True))


@pytest.mark.parametrize("within", ["../set", "run", "a/run", "../link/run", "../linked/run", "default"])
def test_a_run_in_the_folder_of_its_data_is_refused(pictures, tmp_path, untrained, monkeypatch, capfd, within):
    (tmp_path / "link").symlink_to(pictures)
    (pictures / "b").rename(tmp_path / "linked")
    (pictures / "b").symlink_to(tmp_path / "linked")
    files = contents(pictures)
    monkeypatch.chdir(pictures)
    argv = command(pictures, within)
    if within == "default":
        argv = [word for word in argv if word not in ("--out", "default")]
        within = "runs/toy2d"
    message = refused(capfd, *argv)
    assert f"out: {within} lies in the folder of the data, {pictures}, so that its pictures would count" in message
    assert contents(pictures) == files


def test_what_lies_beside_the_data_is_no_part_of_it(pictures, tmp_path, untrained, monkeypatch, capfd):
    (pictures / "a" / "notes.txt").touch()
    for out in (tmp_path / "set-run", tmp_path / "runs" / "set"):
        code, said, _ = call(capfd, *command(pictures, out))
        assert (code, said.splitlines()[0]) == (0, "data: 8 items to train on, 2 held out")
        assert said.splitlines()[1].startswith("classes (label = name: items to train on): 0 = a: ")
        assert said.splitlines()[2] == "left out: 1 .txt"
    message = refused(capfd, "sample", out, "--out", pictures / "b" / "drawn.png")
    assert f"out: {pictures / 'b' / 'drawn.png'} lies in the folder of the data" in message
    message = refused(capfd, "sample", out, "--out", pictures / "drawn.npz")  # no picture
    assert "lies in the folder" not in message


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.bmp"):
            archive.write(file, file.relative_to(folder))
    return path


@covers("train", "accept_data")
@covers("evaluate", "accept_data")
def test_what_identifies_data_is_its_contents_and_not_its_place(pictures, tmp_path, untrained, capfd):
    out, kept = tmp_path / "run", tmp_path / "run" / "config.json"
    assert call(capfd, *command(pictures, out))[0] == 0
    before = (out / "data.json").read_text()
    (tmp_path / "around").mkdir()
    for place in (tmp_path / "moved", tmp_path / "around" / "inner"):
        pictures = pictures.rename(place)
        assert call(capfd, *command(place, out))[0] == 0
        assert json.loads(kept.read_text())["data"]["path"] == str(place)  # where `sample` looks for it
    os.utime(pictures / "a" / "0.bmp", (1e9, 1e9))
    assert call(capfd, *command(pictures.parent, out))[0] == 0
    assert call(capfd, *command(zipped(pictures, tmp_path / "a.zip"), out))[0] == 0
    assert (out / "data.json").read_text() == before
    for change in ("black", "renamed", "class renamed"):
        other = shutil.copytree(pictures, tmp_path / change)
        if change == "black":
            write_pictures(other, np.zeros_like(IMAGES))
        elif change == "renamed":
            (other / "a" / "0.bmp").rename(other / "a" / "00.bmp")
        else:
            (other / "a").rename(other / "aa")
        for path in (other, zipped(other, tmp_path / f"{change}.zip")):
            message = refused(capfd, *command(path, out))
            assert f"was trained on other data: {path} has changed since" in message
            assert "--accept-data" in message
    assert json.loads(kept.read_text())["data"]["path"] == str(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(path.read_bytes())
    evaluate = ["evaluate", out, "--likelihood", 99]
    assert f"run: {out} was trained on other data: {tmp_path / 'a.zip'} has changed" in refused(capfd, *evaluate)
    assert "likelihood: 2 items are held out, got 99" in refused(capfd, *evaluate, "--accept-data")
    assert call(capfd, *command(other, out, "--accept-data"))[0] == 0
    assert call(capfd, *command(other, out))[0] == 0
    (out / "data.json").write_text("{}")
    assert "no sha256 in it; put back what it was, or go on" in refused(capfd, *command(other, out))
    (out / "data.json").unlink()
    assert "holds a run with data.path" in refused(capfd, *command(pictures, out))  # nothing to compare by


def test_a_run_may_have_more_steps_than_before_and_not_fewer(pictures, tmp_path, untrained, capfd):
    out = tmp_path / "run"
    assert call(capfd, *command(pictures, out))[0] == 0
    code, said, _ = call(capfd, *command(pictures, out, "--steps", 9, "--data.workers", 0))
    assert (code, f"{out}: 5 steps become 9: from here the learning rate" in said) == (0, True)
    assert c.from_json((out / "config.json").read_text()).steps == 9
    assert "holds a run with steps 9, not 5; name another folder" in refused(capfd, *command(pictures, out))
    assert "holds a run with seed 0, not 1" in refused(capfd, *command(pictures, out, "--steps", 20, "--seed", 1))


def test_of_many_files_a_fixed_sample_is_compared(pictures, monkeypatch):
    read = []
    monkeypatch.setattr("diffjax.data._image_folder._CHECKED", 3 * len(picture(IMAGES[0])))
    folder = ImageFolder(pictures)
    monkeypatch.setattr(folder.files, "checksum", lambda name: read.append(name) or 7)
    assert folder.digest() == folder.digest()
    assert read[:3] == read[3:]
    assert len(set(read)) == 3
