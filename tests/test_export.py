"""Weights as files: every bit back, and what does not fit is named."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from diffjax.training import load_weights, save_weights

PARAMS = {
    "dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([1, 2, -3], jnp.bfloat16)},
    "scale": jnp.float32(2.5),
    "list": [jnp.arange(3), jnp.array(True)],
}


def test_round_trip_is_bitwise_and_others_can_read_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, PARAMS, {"step": "7"})
    back = load_weights(path, jax.eval_shape(lambda: PARAMS))
    assert jax.tree.structure(back) == jax.tree.structure(PARAMS)
    for here, there in zip(jax.tree.leaves(back), jax.tree.leaves(PARAMS), strict=True):
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(here, there)
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == {"dense/kernel", "dense/bias", "scale", "list/0", "list/1"}
        assert file.metadata()["step"] == "7"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_foreign_files_are_read_without_our_digests(tmp_path):
    kernel = np.ones((2, 3), np.float32)
    save_file({"kernel": kernel}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{"dense/kernel": kernel})
    np.savez_compressed(tmp_path / "b.npz", kernel=kernel)
    np.testing.assert_array_equal(load_weights(tmp_path / "a.safetensors", {"kernel": kernel})["kernel"], kernel)
    np.testing.assert_array_equal(load_weights(tmp_path / "b.npz", {"kernel": kernel})["kernel"], kernel)
    back = load_weights(tmp_path / "a.npz", {"dense": {"kernel": kernel}})
    np.testing.assert_array_equal(back["dense"]["kernel"], kernel)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": np.ones((3, 2), np.float32)}, r"another architecture: w is float32\[2, 3\], not float32\[3, 2\]"),
        ({"w": np.ones((2, 3), np.float16)}, r"another architecture: w is float32\[2, 3\], not float16\[2, 3\]"),
        ({"v": np.ones((2, 3), np.float32)}, "another architecture: v is missing in the file"),
        ({}, "another architecture: w is not among the parameters"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, suffix, like, message):
    path = tmp_path / f"weights.{suffix}"
    arrays = {"w": np.ones((2, 3), np.float32)}
    (save_weights if suffix == "safetensors" else lambda path, arrays: np.savez(path, **arrays))(path, arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(path, like)
    assert str(path) in str(caught.value)


def test_what_is_not_finite_is_neither_written_nor_read(tmp_path):
    bad = {"w": np.array([1.0, np.nan], np.float32)}
    with pytest.raises(ValueError, match="w holds NaN"):
        save_weights(tmp_path / "new.safetensors", bad)
    assert not list(tmp_path.iterdir())
    save_file(bad, tmp_path / "bad.safetensors")
    np.savez(tmp_path / "bad.npz", **bad)
    for name in ("bad.safetensors", "bad.npz"):
        with pytest.raises(ValueError, match="w holds NaN"):
            load_weights(tmp_path / name, bad)


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"w": np.linspace(1, 2, 1000, dtype=np.float32)})
    raw = bytearray(path.read_bytes())
    raw[-2000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged: w does not match its checksum"):
        load_weights(path, {"w": np.zeros(1000, np.float32)})


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_executed_unpacked_or_believed(tmp_path):
    like = {"w": np.zeros(4, np.float32)}
    np.savez(tmp_path / "object.npz", w=np.array([Evil(tmp_path / "executed")], dtype=object))
    np.savez_compressed(tmp_path / "bomb.npz", w=np.zeros(10**7, np.float32))
    (tmp_path / "short.npz").write_bytes(b"PK\x03\x04")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**9]}}).encode()
    (tmp_path / "offsets.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "huge.safetensors").write_bytes(b"\xff" * 64)
    for name, message in {
        "object.npz": "w cannot be read: Object arrays cannot be loaded",
        "bomb.npz": r"w cannot be read: it unpacks to 400\d+ bytes, where float32\[4\] is expected",
        "short.npz": "cannot be read",
        "offsets.safetensors": "cannot be read",
        "huge.safetensors": "cannot be read",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_weights(tmp_path / name, like)
    assert not (tmp_path / "executed").exists()
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"read from .safetensors and .npz alone, got .*weights.pt"):
        load_weights(tmp_path / "weights.pt", like)
    with pytest.raises(ValueError, match=r"written as .safetensors, got .*weights.pt"):
        save_weights(tmp_path / "weights.pt", like)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_weights(tmp_path / "absent.npz", like)
