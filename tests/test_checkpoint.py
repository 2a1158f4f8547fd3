"""Checkpoints: every bit back, in the right place, or a line that says what is wrong."""

import errno
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_toy as toy

from diffjax.training import Checkpoints, data_mesh, state_from_params
from diffjax.training._checkpoint import Damaged


def trained(steps=3):
    """A state whose parts all differ from a fresh one's."""
    layout = toy.make_layout("jit")
    state = layout.put_state(toy.fresh_state())
    for n in range(steps):
        state, _ = layout.step(state, layout.put_batch(toy.source(0, n, 16)))
    return state


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


def test_a_flipped_bit_is_found(tmp_path):
    state = {"w": jax.random.normal(jax.random.key(0), (50_000,))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    data = max((path for path in (tmp_path / "1").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    raw = bytearray(data.read_bytes())
    assert len(raw) > 100_000
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="damaged on disk: w does not match"):
        checkpoints.restore(state)


def test_an_unreadable_checkpoint_is_one_line(tmp_path, capfd):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(2)})
    for path in (tmp_path / "1" / "state").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(Damaged, match="step 1 could not be read") as caught:
        checkpoints.restore({"w": jnp.zeros(2)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_failure_in_the_background_surfaces(tmp_path, monkeypatch, capfd):
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
        with pytest.raises(RuntimeError, match="No space left"):
            checkpoints.wait()
        monkeypatch.undo()
        assert float(checkpoints.restore({"w": jnp.zeros(2)}, 1)["w"][0]) == 1
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


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match=r"keep: .* got 0"):
        Checkpoints(tmp_path / "new", keep=0)
    assert not (tmp_path / "new").exists()
