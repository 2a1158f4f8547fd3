"""Parity of the networks that have no original in torch's libraries: ours against one written from the paper in torch.

A family has a file torch_<family>.py (`theirs`), which is imported without torch too, with `CASES`, `reference` (see
freeze.py) and `answer(config, tensors)`; its test makes our module and its NumPy arguments from a configuration.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tools

from diffjax.interop import to_params, to_tensors

# These programs run once: half of the time to compile them is optimising.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def run(module, tensors, args, dtype):
    """Our output [b, c, h, w], and our parameters, for torch's tensors; args = (x [b, h, w, c], c_noise, cond)."""
    args = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype if np.asarray(leaf).dtype == np.float64 else None), args)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), to_params(tensors, shapes))
    y = quick_jit(module.apply)({"params": params}, *args)
    assert y.dtype == dtype
    return np.asarray(y) if y.ndim != 4 else np.transpose(y, (0, 3, 1, 2)), params


def check_frozen(theirs, name, make, inputs, dtype):
    config, shapes, outputs = tools.load_fixture(name, theirs.CASES[name])
    y, _ = run(make(config, dtype), tools.weights(shapes), inputs(config), dtype)
    tools.assert_close(y, outputs["y"], dtype)


def check_live(theirs, name, make, inputs):
    """Ours is torch's, every tensor is used, and torch's with the tensors that we write is itself again."""
    pytest.importorskip("torch")
    config = theirs.CASES[name]
    shapes, outputs = theirs.reference(name, config)
    y, params = run(make(config, np.float64), tools.weights(shapes), inputs(config), np.float64)
    tools.assert_close(y, outputs["y"], np.float64)
    exported = to_tensors(params)
    assert {key: value.shape for key, value in exported.items()} == shapes
    tools.assert_close(theirs.answer(config, exported), outputs["y"], np.float64)


def tuples(config):
    """The fields of a module from what JSON can hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def tests(theirs, make, inputs, *, quick):
    """The three tests of a family: frozen in float64 (by default those in `quick`) and float32, and live.

    Args:
      theirs: the module of the torch side.
      make: (configuration, dtype) -> our Linen module.
      inputs: configuration -> NumPy (x [b, ...], c_noise [b], cond).
      quick: names of cases.
    """
    names = list(theirs.CASES)
    some = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]

    @pytest.mark.parametrize("name", some)
    def frozen(name):
        check_frozen(theirs, name, make, inputs, np.float64)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", names)
    def frozen_in_float32(name):
        check_frozen(theirs, name, make, inputs, np.float32)

    @pytest.mark.parity
    @pytest.mark.parametrize("name", names)
    def live(name):
        check_live(theirs, name, make, inputs)

    return frozen, frozen_in_float32, live


def images(x):
    return np.transpose(x, (0, 2, 3, 1))
