"""Inception v3 layer by layer against one in torch, on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import own
import pytest
import tools
import torch_inception as theirs

from diffjax.interop import to_params, to_tensors
from diffjax.networks import InceptionV3

NAMES = list(theirs.CASES)


def run(config, shapes, dtype):
    """Every layer's output by its name, [b, c, h, w], and our parameters."""
    module = InceptionV3(resize=config["resize"], dtype=dtype)
    x = np.clip(own.images(tools.noise((1, 3, *config["size"]), "image")), -1, 1)
    wanted = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), to_params(tools.weights(shapes), wanted))
    is_layer = lambda layer, method: len(layer.path) == 1 and method == "__call__"
    apply = lambda params, x: module.apply({"params": params}, x, capture_intermediates=is_layer)
    y, seen = own.quick_jit(apply)(params, jnp.asarray(x, dtype))
    seen = {name: found["__call__"][0] for name, found in seen["intermediates"].items()}
    seen |= {"pool_1": y.pool_1, "pool_2": y.pool_2}
    return {name: np.transpose(value, (0, 3, 1, 2)) for name, value in seen.items()} | {"pool_3": y.pool_3}, params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [("inception_smallest", np.float64), ("inception_of_8", np.float64), (NAMES[0], np.float32)]
)
def test_is_the_frozen_reference(name, dtype):
    config, shapes, outputs = tools.load_fixture(name, theirs.CASES[name])
    ours, _ = run(config, shapes, dtype)
    assert set(ours) == set(outputs)
    for layer, expected in outputs.items():
        tools.assert_close(tools.pick(ours[layer], layer, len(expected)), expected, dtype)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_is_the_live_reference_there_and_back(name):
    torch = pytest.importorskip("torch")
    config, net = theirs.CASES[name], theirs.Net()
    with torch.no_grad():
        seen = net(theirs.image(config), config["resize"])
    ours, params = run(config, net.shapes, np.float64)
    assert set(ours) == set(seen)
    for layer, expected in seen.items():
        tools.assert_close(ours[layer], expected.numpy(), np.float64)
    exported, expected = to_tensors(params), tools.weights(net.shapes)
    assert set(exported) == set(expected)
    for key, tensor in exported.items():
        np.testing.assert_array_equal(tensor, expected[key])
