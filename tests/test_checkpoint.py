"""Checkpoints: every bit back, in the right place, or a line that says what is wrong."""

import errno
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_toy as toy
from damage import array_file, flip
from jax.sharding import AxisType

import diffjax.training.checkpoint
from diffjax.training import Checkpoints, Damaged, data_mesh, state_from_params
from diffjax.training.checkpoint import FORMAT, FolderLock, _reading, digest_part, digest_parts, quiet_orbax_logs


def trained():
    """A state on all devices, every leaf of which differs from a fresh one's."""
    rng, fresh = np.random.default_rng(0), toy.fresh_state()
    noise = lambda leaf: (10 * rng.normal(size=leaf.shape)).astype(leaf.dtype)
    changed = jax.tree.map(lambda leaf: leaf + 1 + noise(leaf), fresh._replace(key=np.zeros(())))
    changed = changed._replace(key=jax.random.fold_in(fresh.key, 3))
    return jax.device_put(changed, jax.NamedSharding(data_mesh(), jax.P()))


def test_round_trip_is_bitwise_and_typed(tmp_path):
    state = trained()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        back = checkpoints.restore(toy.fresh_state())
    assert toy.digest(back) == toy.digest(state) != toy.digest(toy.fresh_state())
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert back.key.dtype == state.key.dtype
    assert [leaf.dtype for leaf in jax.tree.leaves(back)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


def test_odd_leaves(tmp_path):
    tree = {
        "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "low": jnp.arange(3, dtype=jnp.bfloat16),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 2),
        "old": jax.random.PRNGKey(3),
        "flag": jnp.array(True),
        "none": None,
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree)
        back = checkpoints.restore(tree)
    for name in ("nan", "low", "old", "flag"):
        assert np.asarray(back[name]).tobytes() == np.asarray(tree[name]).tobytes()
    np.testing.assert_array_equal(jax.random.key_data(back["keys"]), jax.random.key_data(tree["keys"]))
    assert back["none"] is None


def test_state_lands_where_the_like_state_is(tmp_path):
    state, everywhere = trained(), jax.NamedSharding(data_mesh(), jax.P())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        one = checkpoints.restore(toy.fresh_state())
        many = checkpoints.restore(jax.device_put(toy.fresh_state(), everywhere))
    assert toy.digest(one) == toy.digest(many) == toy.digest(state)
    assert one.params["in"].sharding.device_set == {jax.devices()[0]}
    assert many.params["in"].sharding.device_set == set(jax.devices())


def test_saved_state_is_the_one_given_though_it_is_donated_next(tmp_path):
    grow = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = {"w": jnp.zeros(2_000_000)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(3):
            checkpoints.save(step, state)
            for _ in range(10):
                state = grow(state)
        for step in range(3):
            back = checkpoints.restore(state, step)
            np.testing.assert_array_equal(back["w"], np.full(2_000_000, 10.0 * step, np.float32))


def test_keeps_the_newest_and_an_existing_step(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": jnp.full(2, float(step))})
        checkpoints.save(3, {"w": jnp.zeros(2)})
        checkpoints.wait()
        assert not (tmp_path / "trash").exists()  # while the run goes on: room for one more than are kept is enough
        assert float(checkpoints.restore({"w": jnp.zeros(2)})["w"][0]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_save_that_would_be_dropped_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"w": jnp.zeros(2)})
        with pytest.raises(RuntimeError, match="step 4 could not be saved: it already holds step 5"):
            checkpoints.save(4, {"w": jnp.zeros(2)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"in": p["in"][:, :4]}, r"params/in is float32\[8, 32\] in the checkpoint, float32\[8, 4\] in"),
        (lambda p: p | {"in": p["in"].astype(jnp.bfloat16)}, r"params/in is float32.* bfloat16\[8, 32\] in this run"),
        (lambda p: p | {"new": p["in"]}, r"params/new is absent in the checkpoint, float32\[8, 32\] in this run"),
        (lambda p: {"in": p["in"], "out": p["out"]}, r"params/cond is float32\[3, 32\] in the checkpoint, absent in"),
    ],
)
def test_another_architecture_is_named(tmp_path, change, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, trained())
        fresh = toy.fresh_state()
        other = state_from_params(fresh.key, change(fresh.params), toy.make_tx())
        with pytest.raises(ValueError, match=message) as caught:
            checkpoints.restore(other)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_another_optimiser_and_another_key_are_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        fresh = toy.fresh_state()
        checkpoints.save(3, fresh)
        with pytest.raises(ValueError, match="opt_state/"):
            checkpoints.restore(state_from_params(fresh.key, fresh.params, optax.sgd(0.1, momentum=0.9)))
        with pytest.raises(ValueError, match=r"key is key<fry>\[\] in the checkpoint, key<rbg>\[\] in this run"):
            checkpoints.restore(fresh._replace(key=jax.random.key(0, impl="rbg")))


def test_missing_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            checkpoints.restore({"w": jnp.zeros(2)})
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 4"):
            checkpoints.restore({"w": jnp.zeros(2)}, 4)


def save_steps(folder, *steps, size=50_000):
    """Saves {"w": noise of the step}; gives back step -> state."""
    states = {step: {"w": jax.random.normal(jax.random.key(step), (size,))} for step in steps}
    with Checkpoints(folder, keep=len(steps)) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    return states


def test_a_flipped_bit_is_found_and_the_step_before_is_used(tmp_path):
    states = save_steps(tmp_path, 1, 2, 3)
    for step in (2, 3):
        flip(array_file(tmp_path / str(step)))
    like = states[1]
    damaged = "3: damaged on disk: w does not match"
    with Checkpoints(tmp_path, read_only=True) as reader:
        with pytest.warns(UserWarning, match=damaged) as warned:
            np.testing.assert_array_equal(reader.restore(like)["w"], states[1]["w"])
        assert len(warned) == 1
        assert reader.steps() == [1, 2, 3]
        for check in (reader.verify, lambda: reader.verify(2), lambda: reader.restore(like, 3)):
            with pytest.raises(Damaged, match="damaged on disk: w does not match"):
                check()
        reader.verify(1)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.warns(UserWarning, match=damaged + r".*\(and 1 more\); going back to step 1; .*aside") as warned:
            np.testing.assert_array_equal(checkpoints.restore(like)["w"], states[1]["w"])
        assert len(warned) == 1
        assert checkpoints.steps() == [1]
        checkpoints.save(3, states[3])  # the run comes by again
        np.testing.assert_array_equal(checkpoints.restore(like)["w"], states[3]["w"])
    assert sorted(path.name for path in (tmp_path / "aside").iterdir()) == ["2", "3"]


def test_where_all_are_damaged_nothing_is_moved(tmp_path):
    states = save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        flip(array_file(tmp_path / str(step)))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Damaged, match="/2: damaged on disk"):
            checkpoints.restore(states[1])
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("part", ["about/metadata", "digests/process_0.json", "state/manifest.ocdbt"])
def test_the_other_files_are_checked_too(tmp_path, part):
    states = save_steps(tmp_path, 1, 2)
    flip(tmp_path / "2" / part)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.warns(UserWarning, match=r"/2: damaged on disk: .*(match|could not be read)"):
            assert float(checkpoints.restore(states[1])["w"][0]) == float(states[1]["w"][0])
        (tmp_path / "1" / part).unlink()
        with pytest.raises(Damaged, match=r"/1: damaged on disk: .*could not be read"):
            checkpoints.restore(states[1])


def rewrite_about(folder, **changes):
    """Changes the metadata of a checkpoint, as another version would have written them."""
    path = folder / "about" / "metadata"
    about = json.loads(path.read_text()) | changes
    del about["crc32"]
    path.write_text(json.dumps(about | {"crc32": zlib.crc32(json.dumps(about, sort_keys=True).encode())}))


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_version_is_refused_and_not_damage(tmp_path, version):
    states = save_steps(tmp_path, 1, 2)
    rewrite_about(tmp_path / "2", format=version)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            ValueError, match=rf"/2: a checkpoint of format {version}; .* reads format {FORMAT}$"
        ) as caught:
            checkpoints.restore(states[1])
        assert not isinstance(caught.value, Damaged)
        assert checkpoints.steps() == [1, 2]


def test_a_format_that_is_sealed_otherwise_is_named(tmp_path):
    states = save_steps(tmp_path, 1, 2)
    about = tmp_path / "2" / "about" / "metadata"
    for record, kind, message in (
        ({"format": 9, "seal": "x"}, ValueError, "/2: a checkpoint of format 9"),
        ({"format": 1, "step": 2, "leaves": {}}, ValueError, "/2: a checkpoint of format 1"),  # it had no seal
        ({"format": 9, "crc32": 1}, Damaged, r"/2: damaged on disk: about .*\(or it is of another format: 9\)"),
        ({"format": 2, "crc32": 1}, Damaged, "/2: damaged on disk: about does not match its checksum$"),
        ([9], Damaged, "/2: damaged on disk: about"),
    ):
        about.write_text(json.dumps(record))
        with Checkpoints(tmp_path, read_only=True) as reader, pytest.raises(ValueError, match=message) as caught:
            reader.restore(states[1], 2)
        assert type(caught.value) is kind


def test_rollback_moves_newer_steps_aside(tmp_path):
    states = save_steps(tmp_path, 1, 2, 3)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 9"):
            checkpoints.rollback(9)
        assert checkpoints.rollback(1) == [2, 3]
        assert checkpoints.latest() == 1
        checkpoints.save(2, states[3])  # another past
        assert checkpoints.rollback(1) == [2]
        assert checkpoints.rollback(1) == []
    assert sorted(path.name for path in (tmp_path / "aside").iterdir()) == ["2", "2.1", "3"]
    with (
        Checkpoints(tmp_path, read_only=True) as reader,
        pytest.raises(RuntimeError, match="read only; nothing is moved"),
    ):
        reader.rollback(1)


def test_the_best_by_a_metric_stays(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0}
    with Checkpoints(tmp_path, keep=1, best="loss") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, {"w": jnp.full(2, float(step))}, metrics={"loss": np.float32(loss)})
        assert (checkpoints.steps(), checkpoints.best()) == ([2, 4], 2)
    with Checkpoints(tmp_path, keep=1, best="loss") as checkpoints:  # it is read back
        assert checkpoints.best() == 2
        checkpoints.save(5, {"w": jnp.zeros(2)})  # nobody measured it
        assert (checkpoints.steps(), checkpoints.best()) == ([2, 5], 2)
        checkpoints.save(6, {"w": jnp.zeros(2)}, metrics={"loss": 0.5})
        assert (checkpoints.steps(), checkpoints.best()) == ([6], 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6"]


def test_about_says_what_the_run_says_of_itself(tmp_path):
    placed = jax.device_put(jnp.zeros(8), jax.NamedSharding(data_mesh(), jax.P("data")))
    with Checkpoints(tmp_path, about={"config": "abc"}) as checkpoints:
        checkpoints.save(7, {"w": placed}, metrics={"loss": 1.5})
        checkpoints.wait()
        about = checkpoints.about(7)
    expected = {"format": 2, "step": 7, "jax": jax.__version__, "mesh": {"data": 8}, "about": {"config": "abc"}}
    assert {name: about[name] for name in expected} == expected
    assert about["metrics"] == {"loss": 1.5}
    assert about["leaves"] == {"w": {"shape": [8], "dtype": "float32"}}
    with pytest.raises(ValueError, match="about: it is written as JSON"):
        Checkpoints(tmp_path / "new", about={"config": object()})
    assert not (tmp_path / "new").exists()


def test_saved_on_eight_devices_read_on_four_by_shapes_alone(tmp_path):
    mesh = lambda n: jax.make_mesh((n,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])
    values = jax.random.normal(jax.random.key(0), (16, 24))
    tree = {
        "rows": jax.device_put(values, jax.NamedSharding(mesh(8), jax.P("fsdp"))),
        "columns": jax.device_put(values, jax.NamedSharding(mesh(8), jax.P(None, "fsdp"))),
        "whole": jax.device_put(values, jax.NamedSharding(mesh(8), jax.P())),
        "keys": jax.random.split(jax.random.key(1), 3),
    }
    spread = jax.NamedSharding(mesh(4), jax.P(None, "fsdp"))
    like = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=None if name == "keys" else spread)
        for name, leaf in tree.items()
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        back = checkpoints.restore(like)
        checkpoints.verify()
        arrays = dict(checkpoints.leaves(1, "ro"))
    assert list(arrays) == ["rows"]
    np.testing.assert_array_equal(arrays["rows"], values)
    for name in ("rows", "columns", "whole"):
        np.testing.assert_array_equal(back[name], values)
        assert back[name].sharding == spread
    np.testing.assert_array_equal(jax.random.key_data(back["keys"]), jax.random.key_data(tree["keys"]))
    # The same values have the same digest, however they lay when they were saved.
    digests = json.loads((tmp_path / "1" / "digests" / "process_0.json").read_text())["digests"]
    words = np.asarray(values).view(np.uint32).ravel().tolist()
    truth = sum(word * (2 * i + 1) for i, word in enumerate(words)) % 2**64
    assert digests["rows"] == digests["columns"] == digests["whole"] == truth


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.complex64, np.complex128])
def test_digest_is_its_formula_whatever_the_parts(dtype):
    rng = np.random.default_rng(0)
    shape = (3, 7, 130)
    whole = rng.integers(0, 255, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8).view(dtype)[..., 0]
    words = np.ascontiguousarray(whole).view(f"u{min(8, whole.itemsize)}").ravel().tolist()
    truth = sum(word * (2 * i + 1) for i, word in enumerate(words)) % 2**64
    for cut in ((3, 7, 130), (1, 7, 130), (3, 2, 130), (3, 7, 50), (2, 3, 33)):
        offsets = itertools.product(*(range(0, n, c) for n, c in zip(shape, cut, strict=True)))
        box = lambda at, cut=cut: tuple(slice(a, a + c) for a, c in zip(at, cut, strict=True))
        assert sum(digest_part(whole[box(at)], at, shape) for at in offsets) % 2**64 == truth
    assert digest_part(whole[1, 2, 3], (), ()) == digest_part(whole[1, 2, 3:4], (0,), (1,))


def test_digest_sees_every_single_bit_and_a_lost_page():
    whole = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    truth = digest_part(whole, (0,), whole.shape)
    for word, bit in itertools.product((0, 1, 255, 256, 65_535, 65_536, 299_999), range(32)):
        changed = whole.view(np.uint32).copy()
        changed[word] ^= np.uint32(1 << bit)
        assert digest_part(changed.view(np.float32), (0,), whole.shape) != truth
    changed = whole.copy()
    changed[1024:2048] = 0
    assert digest_part(changed, (0,), whole.shape) != truth


def test_digests_are_made_behind_the_training(tmp_path, monkeypatch):
    go, threads = threading.Event(), []

    def slow(*args):
        threads.append(threading.get_ident())
        assert go.wait(60)
        return digest_parts(*args)

    monkeypatch.setattr("diffjax.training.checkpoint._orbax.digest_parts", slow)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)})
        assert not (tmp_path / "1").exists()  # it returned, and waits for the digests
        go.set()
        checkpoints.wait()
        assert (tmp_path / "1" / "digests").is_dir()
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_space_is_asked_for_before_a_run(tmp_path, monkeypatch):
    state = {"w": jnp.zeros(2**18), "key": jax.random.key(0)}  # 1 MiB
    usage = shutil.disk_usage(tmp_path)
    free = lambda number: monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=number))
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.check_space(state)
        free(3 * 2**20)
        with pytest.raises(RuntimeError, match="no space for checkpoints: 4 of 1 MiB are needed at a time, 4 MiB more"):
            checkpoints.check_space(jax.eval_shape(lambda: state))
        checkpoints.save(1, {"w": jax.random.bits(jax.random.key(0), (2**18 + 2**16,))})
        checkpoints.wait()
        checkpoints.check_space(state)  # what is there already need not fit again


@pytest.fixture
def quiet():
    """Orbax's messages off the terminal, as on the command line."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [list(logger.filters) for logger in loggers]
    quiet_orbax_logs()
    yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters[:] = filters


def test_an_unreadable_checkpoint_is_one_line(tmp_path, capfd, quiet):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(2)})
    for path in (tmp_path / "1" / "state").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(Damaged, match="step 1 could not be read") as caught:
        checkpoints.restore({"w": jnp.zeros(2)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_failure_in_the_background_surfaces(tmp_path, monkeypatch, capfd, quiet):
    # What a full disk does: the save returns, and the write fails behind it.
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
        checkpoints.wait()
        rename = Path.rename

        def full(self, target):
            if ".orbax-checkpoint-tmp" in self.name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", full)
        monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        checkpoints.save(2, {"w": jnp.zeros(2)})
        with pytest.raises(
            RuntimeError, match=r"did not reach the disk: No space left on device \(.* free\); the check"
        ):
            checkpoints.wait()
        monkeypatch.undo()
        assert checkpoints.steps() == [1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "lock"]  # the room is free again
        assert float(checkpoints.restore({"w": jnp.zeros(2)})["w"][0]) == 1
        checkpoints.save(2, {"w": jnp.full(2, 2.0)})
        assert float(checkpoints.restore({"w": jnp.zeros(2)})["w"][0]) == 2
    assert capfd.readouterr().err == ""


def test_remains_of_a_dead_process_are_swept(tmp_path):
    (tmp_path / "trash" / "3").mkdir(parents=True)
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(1, {"w": jnp.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_reader_touches_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()  # a save of a run that goes on elsewhere
    (tmp_path / "trash").mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest() == 1
        assert float(checkpoints.restore({"w": jnp.zeros(2)})["w"][0]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "7.orbax-checkpoint-tmp", "trash"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Checkpoints(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("moment", ["read_metadata", "_saved_digests"])
def test_a_step_that_the_run_deletes_while_it_is_read_is_not_damage(tmp_path, monkeypatch, moment):
    states = save_steps(tmp_path, 1, 2, 3)
    (tmp_path / "3").rename(tmp_path / "coming")
    with Checkpoints(tmp_path, read_only=True) as reader:
        read = getattr(_reading, moment)

        def late(folder, *more):  # the run, which keeps one
            if folder.name == "2":
                (tmp_path / "2").rename(tmp_path / "gone")
                (tmp_path / "coming").rename(tmp_path / "3")
            return read(folder, *more)

        monkeypatch.setattr(_reading, moment, late)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(reader.restore(states[1])["w"], states[3]["w"])
        assert reader.steps() == [1, 3]
        (tmp_path / "gone").rename(tmp_path / "2")  # it is seen without asking for the steps
        (tmp_path / "3").rename(tmp_path / "coming")
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 2: it was deleted while it was read"):
            reader.verify(2)
        (tmp_path / "gone").rename(tmp_path / "2")
        (tmp_path / "3").rename(tmp_path / "coming")
        reader.verify()
        assert reader.steps() == [1, 3]


def test_some_leaves_are_read_alone(tmp_path):
    mesh = data_mesh(jax.devices()[:4])
    spread = jax.NamedSharding(mesh, jax.P("data"))
    state = {
        "step": jnp.int32(5),
        "ema": {"w": jnp.arange(8.0)},
        "params": {"w": jax.random.normal(jax.random.key(0), (2**16,))},
    }
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(5, state)
        checkpoints.save(6, state | {"step": jnp.int32(6)})
    flip(array_file(tmp_path / "6"))  # not where they are
    like = {"step": state["step"], "ema": {"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=spread)}}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(Damaged, match="params/w"):
            checkpoints.restore(state, 6)
        some = checkpoints.restore_some(like)
        assert (int(some["step"]), list(some)) == (6, ["ema", "step"])
        np.testing.assert_array_equal(some["ema"]["w"], np.arange(8.0))
        assert some["ema"]["w"].sharding == spread
        with pytest.raises(ValueError, match=r"ema/w is float32\[8\] in the checkpoint, float32\[9\] in this run"):
            checkpoints.restore_some({"ema": {"w": jnp.zeros(9)}})
        with pytest.raises(ValueError, match="ema/v is absent in the checkpoint"):
            checkpoints.restore_some({"ema": {"v": jnp.zeros(9)}})


def test_what_cannot_be_saved_is_named(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(ValueError, match=r"state: only arrays .* and a/rate is 0\.1"):
            checkpoints.save(1, {"a": {"rate": 0.1}})
        with pytest.raises(ValueError, match=r"state: only arrays .* and a is of shape \[0, 3\]"):
            checkpoints.save(1, {"a": jnp.zeros((0, 3))})
        checkpoints.save(1, {"a": jnp.zeros(3)})
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file: it is a file"):
        Checkpoints(tmp_path / "file")


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match=r"keep: .* got 0"):
        Checkpoints(tmp_path / "new", keep=0)
    assert not (tmp_path / "new").exists()


def test_a_folder_is_written_to_by_one_at_a_time(tmp_path):
    """Another object, here or in another process, is refused in words; readers are not, and closing frees it."""
    lock = tmp_path / "lock"
    with Checkpoints(tmp_path) as checkpoints:
        assert lock.read_text().startswith(f"process {os.getpid()} of ")
        with pytest.raises(ValueError, match=rf"{tmp_path} is in use: process {os.getpid()} of .* \(it holds .*lock\)"):
            Checkpoints(tmp_path)
        checkpoints.save(1, {"w": jnp.ones(2)})
        checkpoints.wait()
        with Checkpoints(tmp_path, read_only=True) as reader:
            assert reader.steps() == [1]
    assert not lock.exists()
    checkpoints.close()  # once more
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        lock.unlink()
        lock.write_text("another's")
    assert lock.read_text() == "another's"  # not ours to remove


def test_who_holds_a_folder_and_is_killed_leaves_it_free_and_children_do_not_keep_it(tmp_path):
    """A forked child outlives its parent; and one that ends does not free what its parent holds."""
    hold = (
        "import os, sys, pathlib\nfrom _lock import FolderLock\n"
        "lock = FolderLock(pathlib.Path(sys.argv[1]))\n"
        "child = os.fork()\n"
        "if not child:\n    lock.release(); print('held', flush=True); os.read(0, 1); os._exit(0)\n"
        "os.waitpid(child, 0)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(diffjax.training.checkpoint.__file__).parent),
    }  # without JAX: a second less
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], **pipes) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"in use: process {holder.pid} of "):
            FolderLock(tmp_path)
        holder.kill()
        holder.wait()
        assert (tmp_path / "lock").exists()
        FolderLock(tmp_path).release()  # the child is still there
        holder.communicate(b"x")
    FolderLock(tmp_path)  # dropped, and free
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
    def fail(number):
        monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))

    fail(errno.ENOLCK)
    with pytest.warns(UserWarning, match=f"{tmp_path}: no locks here .*only one process"):
        FolderLock(tmp_path).release()
    fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        FolderLock(tmp_path)
    monkeypatch.undo()
    (tmp_path / "precious").write_text("text")
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(OSError, match=r"to read alone, open with read_only=True: '.*lock'"):
        Checkpoints(tmp_path)
    assert (tmp_path / "precious").read_text() == "text"


def test_a_step_under_another_number_is_named_and_the_rest_is_of_use(tmp_path):
    states = save_steps(tmp_path, 2, 3)
    for number in (1, 7):
        shutil.copytree(tmp_path / "3", tmp_path / str(number))
    wrong = r"/{}: damaged on disk: it holds step 3, and its name is {}: copied or renamed"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3, 7]
        for number in (1, 7):
            for read in (checkpoints.about, checkpoints.verify, lambda n: checkpoints.restore(states[2], n)):
                with pytest.raises(Damaged, match=wrong.format(number, number)):
                    read(number)
        checkpoints.verify(2)
        with pytest.warns(UserWarning, match=wrong.format(7, 7) + "; going back to step 3"):
            np.testing.assert_array_equal(checkpoints.restore(states[2])["w"], states[3]["w"])
        checkpoints.save(5, states[2])
        assert checkpoints.latest() == 5


def test_files_and_numbers_where_folders_of_steps_should_be(tmp_path):
    """A number beyond 63 bits is no step; files in the place of our folders are named, and nothing has moved."""
    states = save_steps(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "1", tmp_path / str(2**63))
    (tmp_path / ("9" * 200)).mkdir()
    for name in ("9", "-4", "007", "1_0", "aside"):
        (tmp_path / name).write_text("")
    with pytest.warns(UserWarning, match=r"9: ignored, the number of a step is at most|\(and 1 more\): ignored"):
        reader = Checkpoints(tmp_path, read_only=True)
    with reader:
        assert reader.steps() == [1, 2]
    shutil.rmtree(tmp_path / ("9" * 200))
    with pytest.warns(UserWarning, match=f"/{2**63}: ignored, the number of a step is at most"):
        checkpoints = Checkpoints(tmp_path)
    with checkpoints:
        with pytest.raises(ValueError, match=f"step: a number from 0 to .* is needed, got {2**63}"):
            checkpoints.save(2**63, states[1])
        with pytest.raises(NotADirectoryError, match="/aside: it is a file, in the place of a folder"):
            checkpoints.rollback(1)
        checkpoints.save(3, states[1])
        assert checkpoints.steps() == [1, 2, 3]
        (tmp_path / "aside").unlink()
        assert checkpoints.rollback(2) == [3]
    shutil.rmtree(tmp_path / str(2**63))
    (tmp_path / "trash").write_text("")
    with pytest.raises(NotADirectoryError, match="/trash: it is a file, in the place of a folder"):
        Checkpoints(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_what_is_closed_or_opened_to_read_writes_nothing(tmp_path):
    """And leaves the folder to who has it now."""
    state = {"w": np.ones(3, np.float32)}
    first = Checkpoints(tmp_path)
    first.save(1, state)
    first.save(2, state)
    first.close()
    first.close()
    with Checkpoints(tmp_path) as now:
        (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
        for write in (lambda: first.save(3, state), lambda: first.rollback(1)):
            with pytest.raises(RuntimeError, match=r"these checkpoints are closed; nothing is (saved|moved); open"):
                write()
        first.wait()
        assert (tmp_path / "9.orbax-checkpoint-tmp").is_dir()
        assert now.steps() == [1, 2]
        with Checkpoints(tmp_path, read_only=True) as reader:
            for write in (lambda: reader.save(3, state), lambda: reader.rollback(1)):
                with pytest.raises(RuntimeError, match=r"opened to read only; nothing is (saved|moved)"):
                    write()
        shutil.rmtree(tmp_path / "9.orbax-checkpoint-tmp")
