"""Every network that a configuration can name is built, trains under the loss of a run, and is told the class."""

import dataclasses
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from diffjax import config as c, networks

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
SMALL = c.NetworkConfig(channels=(8, 16), head_channels=8, width=16, heads=2)
NAMES = ("unet", "ddpm", "ddpmpp", "ncsnpp", "adm", "edm2", "efficient", "dit", "uvit")


def small(name, **changes):
    return dataclasses.replace(SMALL, name=name, **changes)


@pytest.mark.parametrize(
    "name",
    [name if name in ("unet", "edm2", "dit") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_network_by_name_computes_as_it_was_told(name):
    plain, again = (c.build_network(small(name, remat=remat, dtype="bfloat16"), 3) for remat in (False, True))
    inputs = IMAGES, jnp.zeros(2), jnp.zeros(2, int)
    params = jax.eval_shape(plain.init, jax.random.key(0), *inputs)
    y = jax.eval_shape(again.apply, params, *inputs)
    assert (y.shape, y.dtype) == (IMAGES.shape, jnp.float32)
    program = str(jax.make_jaxpr(again.apply)(params, *inputs))
    assert "bf16" in program
    assert "checkpoint" in program or "remat" in program
    told = next(leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params) if _names_classes(path))
    assert 4 in told  # three classes and the null label


def _names_classes(path):
    return any(word in str(path[-1]) + str(path[-2:]) for word in ("class", "label", "embedding_table", "embedding"))


@pytest.mark.slow
def test_an_efficient_unet_takes_a_text_a_label_or_both():
    """Each changes the answer, once the layers that start at zero do not."""
    text = networks.Text(jnp.ones((2, 3, 5)), jnp.array([[True, True, False], [True, False, False]]))
    label = jnp.array([0, 2])
    kinds = ((None, 5, text), (3, None, label), (3, 5, networks.Cascade(text=text, label=label)), (None, None, None))
    for classes, width, cond in kinds:
        network = c.build_network(small("efficient"), classes, text_width=width)
        params = jax.tree.map(lambda p: p + 0.1, network.init(jax.random.key(0), IMAGES, jnp.zeros(2), cond))
        apply = jax.jit(network.apply)
        y = apply(params, IMAGES, jnp.zeros(2), cond)
        assert y.shape == IMAGES.shape
        if width is not None:
            other = networks.Text(text.embedding.at[0, 0, 0].set(3.0), text.mask)
            other = other if classes is None else cond._replace(text=other)
            assert jnp.abs(apply(params, IMAGES, jnp.zeros(2), other) - y)[0].max() > 1e-5
        if classes is not None:
            other = label + 1 if width is None else cond._replace(label=label + 1)
            assert jnp.abs(apply(params, IMAGES, jnp.zeros(2), other) - y).max() > 1e-5


ODD = c.NetworkConfig("unet", (16, 48, 80), 2, (0, 2), 8, 24, 5, 3, 4, True, 0.35, "bfloat16", True)


def test_a_network_is_the_module_of_its_name_with_its_numbers(monkeypatch):
    monkeypatch.setattr("diffjax.config._build.from_linen", lambda module: module)  # the module itself, to compare
    n = networks
    plain = {"num_classes": None, "dropout": 0.0, "dtype": jnp.float32, "remat": False}
    odd = {"num_classes": 7, "dropout": 0.35, "dtype": jnp.bfloat16, "remat": True}
    expected = {}
    for kind, own in (("plain", plain), ("odd", odd)):
        as_is = kind == "plain"
        levels = {"channels": (32, 64) if as_is else (16, 48, 80), "blocks": 1 if as_is else 2}
        levels |= {"attention": (1,) if as_is else (0, 2)}
        unet = {"head_channels": 32 if as_is else 8, **levels, **own}
        tokens = {"width": 128, "depth": 3, "heads": 4, "patch": 2, "scan": False}
        tokens = (tokens if as_is else {"width": 24, "depth": 5, "heads": 3, "patch": 4, "scan": True}) | own
        paper = {"attention": levels["attention"], "blocks": levels["blocks"]}
        paper |= {name: own[name] for name in ("num_classes", "dropout")}
        channels = levels["channels"]
        late = {"dtype": own["dtype"], "remat": own["remat"]}
        expected |= {
            (kind, "mlp"): n.MLP(**{name: tokens[name] for name in ("width", "depth", "scan")}, **own),
            (kind, "unet"): n.UNet(**unet),
            (kind, "ddpm"): n.ddpm(channels, **paper).clone(**late),
            (kind, "ddpmpp"): n.ddpmpp(channels, **paper).clone(**late),
            (kind, "ncsnpp"): n.ncsnpp(channels, **paper).clone(**late),
            (kind, "adm"): n.adm(channels, **paper, head_channels=unet["head_channels"]).clone(**late),
            (kind, "edm2"): n.EDM2UNet(**unet),
            (kind, "efficient"): n.EfficientUNet(
                channels,
                (levels["blocks"],) * len(channels),
                (1, 2, 2)[: len(channels)],
                text_attention=levels["attention"],
                scan=tokens["scan"],
                **{name: value for name, value in unet.items() if name not in ("channels", "blocks")},
            ),
            (kind, "dit"): n.DiT(**tokens),
            (kind, "uvit"): n.UViT(**tokens),
        }
    for (kind, name), module in expected.items():
        config = c.NetworkConfig(name=name) if kind == "plain" else dataclasses.replace(ODD, name=name)
        assert c.build_network(config, 7 if kind == "odd" else None) == module, (kind, name)
    generated = {field.name for field in dataclasses.fields(ODD) if field.default is None}
    own = {
        "edm2": {"residual_balance": 0.4, "attention_balance": 0.2, "skip_balance": 0.6, "label_balance": 0.7},
        "dit": {"rope": 50.0, "position_range": 16, "mlp_ratio": 3.0, "norm_epsilon": 1e-5},
        "uvit": {"mlp_ratio": 2.5},
    }
    assert generated == set().union(*own.values())
    for name in NAMES:
        for number in generated:
            config = c.NetworkConfig(name=name, **{number: own.get(name, {}).get(number, 1)})
            if number in own.get(name, {}):
                assert c.build_network(config, None) == expected["plain", name].clone(**{number: own[name][number]})
                continue
            with pytest.raises(ValueError, match=rf"network\.{number}: {name} has no such number, got 1"):
                c.build_network(config, None)
    assert all(
        getattr(ODD, field.name) != field.default
        for field in dataclasses.fields(ODD)
        if field.name not in generated | {"name"}
    )
    assert {name for _, name in expected} == set(get_args(get_type_hints(c.NetworkConfig)["name"]))
    assert len({repr(module) for module in expected.values()}) == len(expected) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "dit", "heads": 3}, r"width: a multiple of 4 and of heads=3 is needed, got 16"),
        ({"name": "uvit", "depth": 2}, r"depth: an odd number"),
        ({"name": "adm", "attention": (5,)}, r"attention: levels are 0 .. 1, got \(5,\)"),
        ({"name": "efficient", "head_channels": 7}, r"head_channels: a divisor of level 1's 16, got 7"),
        ({"name": "efficient", "channels": (8, 9)}, r"channels: "),
        ({"name": "edm2", "head_channels": 7}, r"head_channels: a divisor"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        c.build_network(dataclasses.replace(SMALL, **changes), None)


@pytest.mark.parametrize("name", ["edm2", "unet"])
def test_weights_are_normalised_after_an_update_of_edm2_alone(name):
    digits = c.PRESETS["digits"]
    config = dataclasses.replace(digits, network=small(name), optimiser=c.OptimiserConfig(1.0, warmup=0))
    tx, alone = c.build(config, None).tx, c.build_optimiser(config.optimiser, config.steps)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "bias": jnp.ones(4)}
    gradient = jax.tree.map(jnp.ones_like, params)
    after, plain = (optax.apply_updates(params, of.update(gradient, of.init(params), params)[0]) for of in (tx, alone))
    size = np.sqrt(np.mean(np.square(plain["kernel"]), axis=0)) if name == "edm2" else 1.0  # of an output's weights
    assert np.all(np.abs(np.sqrt(np.mean(np.square(plain["kernel"]), axis=0)) - 1) > 0.01)
    np.testing.assert_allclose(after["kernel"], plain["kernel"] / size, rtol=1e-3)
    np.testing.assert_allclose(after["bias"], plain["bias"], rtol=1e-6)


def test_decay_leaves_alone_what_is_never_trained():
    """Five updates with weight decay and no gradient: random waves stay bitwise, and they alone."""
    paths = []
    for name, labels in (("edm2", jnp.zeros(2, int)), ("ncsnpp", None)):
        network = c.build_network(small(name), None if labels is None else 3)
        shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES, jnp.ones(2), labels)
        paths += [tuple(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    waves = {("told", "fourier", "frequencies"), ("told", "fourier", "phases"), ("time_proj", "scale")}
    assert waves < set(paths)
    leaves = {path: np.ones(2, np.float32) for path in [*sorted(waves), *paths[::20]]}  # some: a test, not a run
    params = traverse_util.unflatten_dict(leaves)
    tx = c.build_optimiser(c.OptimiserConfig(weight_decay=0.1, warmup=0), 100)
    update, state, after = jax.jit(tx.update), tx.init(params), params
    for _ in range(5):
        updates, state = update(jax.tree.map(np.zeros_like, params), state, after)
        after = jax.tree.map(np.add, after, updates)
    moved = traverse_util.flatten_dict(after)
    assert {path for path, leaf in leaves.items() if np.array_equal(moved[path], leaf)} == waves
