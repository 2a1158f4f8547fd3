"""`diffjax checkpoint` as a user has it: no network and no data are needed."""

import re
import time
from datetime import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import covers
from damage import array_file, flip
from safetensors import safe_open

from diffjax.cli import main
from diffjax.training import Checkpoints, load_weights
from diffjax.training.checkpoint import _reading


def call(capfd, *argv):
    """Exit code, stdout and stderr of a command line."""
    capfd.readouterr()
    code = main(["checkpoint", *map(str, argv)])
    return (code, *capfd.readouterr())


def state(step):
    """What a run saves, in small."""
    return {
        "params": {"w": jnp.full(20_000, -1.0)},
        "ema": {"dense": {"w": jax.random.normal(jax.random.key(step), (20_000,)), "b": jnp.zeros(3)}},
        "key": jax.random.key(step),
    }


@pytest.fixture
def run(tmp_path):
    """A run with three checkpoints."""
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=5) as checkpoints:
        for step in (100, 200, 300):
            checkpoints.save(step, state(step), metrics={"loss": step / 1000})
    (tmp_path / "run" / "config.json").write_text('{"name": "x"}')
    return tmp_path / "run"


def test_list_verify_rollback_export(run, capfd):
    code, out, err = call(capfd, "list", run)
    assert (code, err) == (0, "")
    rows = [re.split(" {2,}", line.strip()) for line in out.splitlines()]
    assert rows[0] == ["step", "saved", "size", "loss", "averages", "saved on", "readable"]
    assert [(row[0], row[3:]) for row in rows[1:]] == [
        (str(step), [str(step / 1000), "one", "one device", "yes"]) for step in (100, 200, 300)
    ]

    code, out, _ = call(capfd, "export", run)
    assert code == 0
    ema = state(300)["ema"]
    back = load_weights(run / "ema-300.safetensors", ema)
    np.testing.assert_array_equal(back["dense"]["w"], ema["dense"]["w"])

    flip(array_file(run / "checkpoints" / "200"))
    code, out, err = call(capfd, "verify", run)
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines()] == [["100", "ok"], ["200", "damaged"], ["300", "ok"]]
    assert "damaged: 200" in err
    assert err.count("\n") == 1
    assert call(capfd, "verify", run, "--step", 300)[0] == 0

    flip(run / "checkpoints" / "300" / "about" / "metadata")
    code, out, _ = call(capfd, "list", run)
    assert code == 0
    assert re.search("^ *300 +no: damaged on disk: about", out, re.M)
    assert len({line.index("yes") for line in out.splitlines() if "yes" in line} | {out.index("readable")}) == 1

    code, out, err = call(capfd, "rollback", run, "--step", 100)
    assert (code, err) == (0, "")
    assert "the newest is now step 100; moved to" in out
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [100]
    assert sorted(path.name for path in (run / "checkpoints" / "aside").iterdir()) == ["200", "300"]


@covers("checkpoint", "action", "run", "step", "out")
def test_an_older_step_alone_is_listed_and_exported_to_a_place_of_its_own(run, tmp_path, capfd):
    rows = call(capfd, "list", run, "--step", 200)[1].splitlines()
    assert [row.split()[0] for row in rows] == ["step", "200"]
    files = [path for path in (run / "checkpoints" / "200").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    assert rows[1].split()[4] == "MiB"
    assert float(rows[1].split()[3]) == pytest.approx(size, abs=0.005)
    out = tmp_path / "weights.safetensors"
    code, text, _ = call(capfd, "export", run, "--step", 200, "--out", out)
    assert (code, text) == (0, f"{out}: 2 arrays, 20,003 numbers, of step 200\n")
    ema = state(200)["ema"]
    jax.tree.map(np.testing.assert_array_equal, load_weights(out, ema), ema)
    with safe_open(out, "np") as file:
        about = file.metadata()
    assert (about["step"], about["config"]) == ("200", (run / "config.json").read_text())


def test_a_list_tells_the_local_time_the_names_of_averages_and_few_metrics(tmp_path, monkeypatch, capfd):
    """Of what a run logs, not its speed nor its parts; a metric or an average that a checkpoint lacks leaves a gap."""
    line = {"loss": 0.12345, "grad_norm": 1.0, "skipped": 0.0, "a": 7.0, "loss_by_level/00": 1.0}
    line |= {"images_per_second": 2.0, "step_seconds": 3.0, "device_bytes": 4.0}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(8, {"params": {"w": jnp.ones(2)}})
        checkpoints.save(
            12345,
            {"params": {"w": jnp.ones(2)}, "ema": {"b": {"w": jnp.ones(2)}, "a": {"w": jnp.ones(2)}}},
            metrics=line,
        )
        checkpoints.wait()
        saved = checkpoints.about(12345)["time"]
    monkeypatch.setenv("TZ", "UTC-9")  # nine hours before it
    time.tzset()
    try:
        head, *rows = call(capfd, "list", tmp_path)[1].splitlines()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert re.split(" {2,}", head.strip())[3:6] == ["loss", "grad_norm", "skipped"]
    cells = [re.split(" {2,}", row.strip()) for row in rows]
    assert cells[0][3:] == ["none", "one device", "yes"]
    assert cells[1][3:] == ["0.1235", "1", "0", "a, b", "one device", "yes"]
    here = datetime.strptime(cells[1][1] + " +0900", "%Y-%m-%d %H:%M:%S %z")
    assert here == datetime.fromisoformat(saved)
    assert len({row.index("MiB") for row in rows}) == 1
    assert {row.index("one device") for row in rows} == {head.index("saved on")}


@covers("checkpoint", "average")
def test_an_average_is_exported_by_its_name_with_what_is_never_trained(tmp_path, capfd):
    """Of two averages beside a teacher that is in neither; of a run of one, without a name, the teacher goes along."""
    tree = lambda value, teacher=7.0: {
        "net": {"w": jnp.full(2, value)},
        "teacher": {"w": teacher and jnp.full(3, teacher)},
    }
    averages = {"sampling": tree(2.0, None), "target": tree(3.0, None)}
    for name, ema in (("two", averages), ("one", tree(4.0, None))):
        with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            checkpoints.save(1, {"params": tree(1.0), "ema": ema})
    out = tmp_path / "x.safetensors"
    for name, argv, value in (("two", ("--average", "target"), 3.0), ("one", (), 4.0)):
        code, text, err = call(capfd, "export", tmp_path / name, *argv, "--out", out)
        assert (code, text, err) == (0, f"{out}: 2 arrays, 5 numbers, of step 1\n", "")
        jax.tree.map(np.testing.assert_array_equal, load_weights(out, tree(0.0)), tree(value))
    for argv, message in {
        ("export", tmp_path / "two"): "average: the run has sampling, target, got decay",
        ("export", tmp_path / "two", "--average", "x"): "average: the run has sampling, target, got x",
        ("export", tmp_path / "one", "--average", "x"): "average: the run has one, without a name, got x",
        ("list", tmp_path / "two", "--average", "target"): "average: list writes none, got target",
    }.items():
        code, _, err = call(capfd, *argv)
        assert code == 2
        assert message in err


def test_what_a_run_deletes_meanwhile_is_not_damage(run, tmp_path, monkeypatch, capfd):
    read = _reading.read_metadata

    def delete(folder):
        if folder.name == "300" and folder.exists():
            folder.rename(tmp_path / "300")

    before = lambda folder: (delete(folder), read(folder))[1]
    after = lambda folder: (read(folder), delete(folder))[0]  # so while its size is summed
    for action, late in (("list", before), ("list", after), ("verify", before)):
        monkeypatch.setattr(_reading, "read_metadata", late)
        code, out, err = call(capfd, action, run)
        assert (code, err) == (0, "")
        assert re.search("^ *300 +(no: )?deleted since it was listed", out, re.M)
        assert "damaged" not in out
        (tmp_path / "300").rename(run / "checkpoints" / "300")
    code, out, _ = call(capfd, "export", run)
    assert code == 0
    assert (run / "ema-200.safetensors").is_file()


def test_what_is_refused_is_named(run, tmp_path, capfd):
    for argv, message in {
        ("list", tmp_path / "absent"): "absent: no such folder",
        ("rollback", run): "step: rollback goes to one of 100, 200, 300, got none",
        ("rollback", run, "--step", 150): "got 150",
        ("verify", run, "--step", 150): "holds 100, 200, 300, got 150",
        ("verify", run, "--out", "x"): "out: verify writes no file, got x",
        ("export", run, "--out", tmp_path / "x.pt"): "out: weights are written as .safetensors",
        ("export", run, "--out", tmp_path / "no" / "x.safetensors"): "no: no such folder",
        ("mend", run): "mend",
    }.items():
        code, _, err = call(capfd, *argv)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    with Checkpoints(run / "checkpoints", keep=5):
        code, _, err = call(capfd, "rollback", run, "--step", 100)
    assert code == 2
    assert "in use" in err
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [100, 200, 300]
