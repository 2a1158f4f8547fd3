"""UNet2D equals diffusers' UNet2DModel, and NCSN++ with residual input and output made of its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_unet2d as theirs
from tools import assert_close, load_fixture, weights

from diffjax.interop import module_from_config, parameter_shapes, to_params, to_tensors
from diffjax.networks import input_residual, output_residual

OFTEN = "unet2d_adm"
CASES = list(theirs.CASES)


def of_class(config):
    """The configuration as in a file."""
    own = {key: value for key, value in config.items() if key not in ("size", "pyramid")}
    return {"_class_name": "UNet2DModel", **own}


def module(config):
    """Our network for a case; "pyramid" is the tests' own key."""
    network = module_from_config(of_class(config))
    if config.get("pyramid") != "residual":
        return network
    down = tuple(stage._replace(pyramid=input_residual) for stage in network.down)
    return network.clone(down=down, up=tuple(stage._replace(pyramid=output_residual) for stage in network.up))


def ours(name, config, tensors, dtype):
    """(our y, our parameters) on the inputs of a case."""
    network = module(config).clone(dtype=dtype)
    shapes = parameter_shapes(network, of_class(config))
    cast = lambda leaf: jnp.asarray(leaf, dtype if np.issubdtype(np.asarray(leaf).dtype, np.floating) else None)
    params = jax.tree.map(cast, to_params(tensors, shapes))
    arguments = jax.tree.map(cast, theirs.inputs(name, config))
    # This program runs once: half of the time to compile it is optimising.
    apply = jax.jit(network.apply, compiler_options={"xla_backend_optimization_level": 0})
    return apply({"params": params}, *arguments), params


@pytest.mark.parametrize(
    "name", [name if name == OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_frozen(name):
    config, shapes, expected = load_fixture(name, theirs.CASES[name])
    y, params = ours(name, config, weights(shapes), jnp.float64)
    assert y.dtype == jnp.float64
    assert_close(y, expected["y"], np.float64)
    assert {key: value.shape for key, value in to_tensors(params).items()} == shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_frozen_float32(name):
    config, shapes, expected = load_fixture(name, theirs.CASES[name])
    y, _ = ours(name, config, weights(shapes), jnp.float32)
    assert y.dtype == jnp.float32
    assert_close(y, expected["y"], np.float32)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_live(name):
    """Against diffusers itself, in both dtypes; and what we export is loaded and answers the same."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    config = theirs.CASES[name]
    for dtype, same in ((jnp.float64, "float64"), (jnp.float32, "float32")):
        network, shapes = theirs.build(name, config, same)
        expected = theirs.apply(network, name, config, same)
        y, params = ours(name, config, weights(shapes), dtype)
        assert_close(y, expected, dtype)
        exported = {key: torch.tensor(value) for key, value in to_tensors(params).items()}
        network.load_state_dict({key: torch.zeros_like(value) for key, value in exported.items()})
        network.load_state_dict(exported)
        np.testing.assert_array_equal(theirs.apply(network, name, config, same), expected)
