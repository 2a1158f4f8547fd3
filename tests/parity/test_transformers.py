"""DiT, U-ViT and T5 equal their torch originals on random weights; those that have none, networks written in torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_dit
import torch_t5
import torch_uvit
from tools import assert_close, load_fixture, weights

from diffjax.interop import module_from_config, to_params, to_tensors
from diffjax.interop._t5 import encoder_tensors
from diffjax.networks import DiT, Text, UViT, timestep_features

DIT, T5 = {"_class_name": "DiTTransformer2DModel"}, {"model_type": "t5"}
FAMILIES = {name: family for family in (torch_dit, torch_uvit, torch_t5) for name in family.CASES}
OFTEN = ("dit-sigma", "dit-joint-rope", "uvit-text", "t5-gated")
NAMES = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def module(name, config):
    """Our network for a case; where blocks repeat, every other case has them under scan."""
    fields = {key: value for key, value in config.items() if key not in ("size", "cond", "length")}
    scan = list(FAMILIES).index(name) % 2 == 0
    if FAMILIES[name] is torch_t5:
        return module_from_config(T5 | fields)
    if FAMILIES[name] is torch_uvit:
        return UViT(**fields, noise_features=timestep_features, scan=scan)
    return (module_from_config(DIT | fields) if "sample_size" in fields else DiT(**fields)).clone(scan=scan)


def ours(name, config, tensors, dtype):
    """(our y, our parameters) on the inputs of a case."""
    network = module(name, config).clone(dtype=dtype)
    inputs = FAMILIES[name].inputs(name, config)
    inputs = tuple(Text(*leaf) if isinstance(leaf, tuple) else leaf for leaf in inputs)
    cast = lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype == np.float64 else None)
    inputs = jax.tree.map(cast, inputs)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(cast, to_params(tensors, shapes))
    run = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # runs once
    return run(network.apply)({"params": params}, *inputs), params


@pytest.mark.parametrize("name", NAMES)
def test_frozen(name):
    config, shapes, expected = load_fixture(name, FAMILIES[name].CASES[name])
    for dtype in (jnp.float64, jnp.float32) if name == OFTEN[0] else (jnp.float64,):
        y, params = ours(name, config, weights(shapes), dtype)
        assert y.dtype == dtype
        assert_close(y, expected["y"], dtype)
    assert {key: value.shape for key, value in to_tensors(params).items()} == shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != OFTEN[0]])
def test_frozen_float32(name):
    config, shapes, expected = load_fixture(name, FAMILIES[name].CASES[name])
    y, _ = ours(name, config, weights(shapes), jnp.float32)
    assert_close(y, expected["y"], jnp.float32)


@pytest.mark.parity
@pytest.mark.parametrize("name", FAMILIES)
def test_live(name):
    """Against torch itself in both dtypes; and what we export is loaded there and answers the same."""
    torch = pytest.importorskip("torch")
    for library in ("diffusers", "transformers"):
        pytest.importorskip(library)
    family, config = FAMILIES[name], FAMILIES[name].CASES[name]
    for dtype in ("float64", "float32"):
        network, shapes = family.build(config, dtype)
        expected = family.apply(network, name, config, dtype)
        y, params = ours(name, config, weights(shapes), jnp.dtype(dtype))
        assert_close(y, expected, jnp.dtype(dtype))
        exported = to_tensors(params)
        state = torch_t5.load(network, exported) if family is torch_t5 else jax.tree.map(torch.from_numpy, exported)
        network.load_state_dict(jax.tree.map(torch.zeros_like, state))
        network.load_state_dict(state)
        np.testing.assert_array_equal(family.apply(network, name, config, dtype), expected)


@pytest.mark.parity
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 9), (10, 40), (16, 100), (64, 512)])
def test_buckets_are_those_of_transformers_in_float32(buckets, distance):
    pytest.importorskip("transformers")
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    from diffjax.networks import relative_buckets

    n = 600
    steps = torch.arange(n)[None, :] - torch.arange(n)[:, None]
    theirs = T5Attention._relative_position_bucket(steps, True, buckets, distance)
    np.testing.assert_array_equal(relative_buckets(n, buckets, distance), theirs.numpy())


def test_t5_tables_of_tokens_are_one():
    a, b = np.zeros((3, 2)), np.ones((3, 2))
    tied = "encoder.embed_tokens.weight"
    whole = {"shared.weight": a, tied: a, "decoder.block.0.layer.0.layer_norm.weight": b, "lm_head.weight": b}
    for tensors in (whole, {tied: a}, {"shared.weight": a}):
        assert set(encoder_tensors(tensors, "file")) == {"shared.weight"}
    with pytest.raises(ValueError, match=r"file: shared\.weight and encoder\.embed_tokens\.weight differ"):
        encoder_tensors({"shared.weight": a, tied: b}, "file")


@pytest.mark.parametrize(
    ("of", "config", "message"),
    [
        (
            DIT,
            {"norm_type": "ada_norm_single"},
            "config.json: norm_type is 'ada_norm_single'; diffjax has 'ada_norm_zero'",
        ),
        (DIT, {"patch": 2}, "config.json: unknown key patch"),
        (DIT, {"patch_size": None}, "config.json: patch_size is None"),
        (DIT, {"caption_channels": 4096}, "config.json: caption_channels is 4096"),
        (T5, {"feed_forward_proj": "gated-tanh"}, "config.json: feed_forward_proj is 'gated-tanh'"),
        (T5, {"model_type": "umt5"}, "config.json: _class_name is 'umt5'"),
    ],
)
def test_configurations_that_we_lack_are_named(of, config, message):
    with pytest.raises(ValueError, match=message):
        module_from_config(of | config)
