"""AutoencoderKL is diffusers' AutoencoderKL: mean, logvar, decoded images, on random weights."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_autoencoder as torch_side
from tools import assert_close, load_fixture, weights

from diffjax.interop import load_module, module_from_config, to_params, to_tensors, write_tensors

CASES = list(torch_side.CASES)
OFTEN = ("autoencoder-flux", "autoencoder-odd")


def ours(config, tensors, dtype):
    """(our answers, our parameters), in a dtype."""
    fields = {key: value for key, value in config.items() if key != "image"}
    module = module_from_config({"_class_name": "AutoencoderKL", **fields}).clone(dtype=dtype)
    x = jnp.asarray(torch_side.images(config), dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), to_params(tensors, shapes))

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # runs once
    def both(params, x):
        mean, logvar = module.apply({"params": params}, x, method="encode")
        return {"mean": mean, "logvar": logvar, "decoded": module.apply({"params": params}, mean, method="decode")}

    return both(params, x), params


@pytest.mark.parametrize("name", [c if c in OFTEN else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_frozen(name):
    config, shapes, expected = load_fixture(name, torch_side.CASES[name])
    for dtype in (jnp.float64, jnp.float32) if name == OFTEN[0] else (jnp.float64,):
        found, params = ours(config, weights(shapes), dtype)
        for key, value in expected.items():
            assert found[key].dtype == dtype
            assert_close(found[key], value, dtype)
    assert {key: value.shape for key, value in to_tensors(params).items()} == shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != OFTEN[0]])
def test_frozen_float32(name):
    config, shapes, expected = load_fixture(name)
    found, _ = ours(config, weights(shapes), jnp.float32)
    for key, value in expected.items():
        assert_close(found[key], value, jnp.float32)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_live(name):
    """Against diffusers itself, and back: exported, and with old attention names, it answers the same."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    config = torch_side.CASES[name]
    network, shapes = torch_side.build(config)
    found, params = ours(config, weights(shapes), jnp.float64)
    for key, value in torch_side.answers(network, config).items():
        assert_close(found[key], value, np.float64)
    network.load_state_dict({key: torch.zeros(shape) for key, shape in shapes.items()})
    network.load_state_dict({key: torch.from_numpy(value) for key, value in to_tensors(params).items()})
    for key, value in torch_side.answers(network, config).items():
        assert_close(found[key], value, np.float64)


def test_old_attention_names(tmp_path):
    config, shapes, _ = load_fixture(OFTEN[0])
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    aged = {}
    tensors = {key: np.float32(value) for key, value in weights(shapes).items()}
    for key, value in tensors.items():
        for new, before in old.items():
            key = key.replace(new, before) if ".attentions." in key else key
        aged[key] = value
    assert aged.keys() != tensors.keys()
    fields = {key: value for key, value in config.items() if key != "image"}
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **fields}))
    found = []
    for named in (tensors, aged):
        write_tensors(tmp_path / "diffusion_pytorch_model.safetensors", named)
        found.append(load_module(tmp_path).params)
    jax.tree.map(np.testing.assert_array_equal, *found)
