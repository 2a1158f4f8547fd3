"""Parity with torch: weights that both sides make from a name and a shape, and frozen outputs of the torch side.

    case (a configuration) --> torch network (float64) --> {key: shape}, output --freeze--> fixtures/NAME.npz
         |                            ^                                                        |
         |                     weights(shapes): a number's key and shape decide it             v
         +--> our network, weights(shapes) through interop._keys --> output           ==  output, to 1e-9

`python tests/parity/freeze.py` writes the fixtures (it needs the extra `parity`); the default suite reads them, and
`pytest -m parity` compares with torch itself wherever that is installed.
"""

import contextlib
import importlib
import json
import pathlib
import zlib

import numpy as np

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def optional(name):
    """A module, or None where it is not installed: cases are read without torch."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)


def weights(shapes):
    """Random tensors, {key: float64 array}: a key and a shape decide all of it. All matter: norms' scales are about
    one, single numbers (gains) too; everything else has variance 1/fan_in, biases .01."""
    return {key: _weight(key, tuple(shape)) for key, shape in shapes.items()}


def _weight(key, shape):
    z = noise(shape, key)
    if len(shape) > 1:
        return z / np.sqrt(np.prod(shape[1:]))
    if key.endswith("running_var"):
        return 0.5 * np.exp(0.1 * z)
    return 1 + 0.1 * z if key.endswith("weight") or shape == () else 0.1 * z


def noise(shape, seed):
    """Standard normals [shape], float64, decided by a word; NumPy promises to keep RandomState's stream."""
    return np.asarray(np.random.RandomState(zlib.crc32(str(seed).encode())).standard_normal(shape))


def pick(array, seed, count):
    """`count` values of an array, at places decided by a word: what a small fixture holds of a large output."""
    places = np.random.RandomState(zlib.crc32(str(seed).encode())).choice(np.size(array), count, replace=False)
    return np.asarray(array).reshape(-1)[places]


def save_fixture(name, config, shapes, outputs):
    """One case: its configuration (a dict that JSON can hold), torch's names and shapes, torch's float64 outputs."""
    FIXTURES.mkdir(exist_ok=True)
    about = json.dumps({"config": config, "shapes": {key: list(shape) for key, shape in shapes.items()}})
    np.savez_compressed(FIXTURES / f"{name}.npz", about=np.array(about), **outputs)


def load_fixture(name, case=None):
    """(config, {key: shape}, {name of an output: array}); the configuration is that of the case, where given."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        about = json.loads(str(file["about"]))
        outputs = {key: file[key] for key in file.files if key != "about"}
    same = case is None or about["config"] == json.loads(json.dumps(case))
    assert same, f"{name}: the fixture is of another configuration; python tests/parity/freeze.py"
    return about["config"], {key: tuple(shape) for key, shape in about["shapes"].items()}, outputs


def assert_close(ours, reference, dtype):
    """1e-9 in float64, 1e-5 of the largest (at least 1) in float32."""
    reference = np.asarray(reference)
    bound = 1e-9 if dtype == np.float64 else 1e-5 * max(1.0, np.abs(reference).max())
    error = np.abs(np.asarray(ours, np.float64) - reference).max()
    assert error <= bound, f"largest difference {error:.2e}, allowed {bound:.2e}"
