"""Every network that a configuration can name is built, trains under the loss of a run, and is told the class."""

import dataclasses
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diffjax import config as c, networks
from diffjax.config._networks import build_network

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
SMALL = c.NetworkConfig(channels=8, multipliers=(1, 2), head_channels=8, width=16, heads=2)
NAMES = ("unet", "ddpm", "ddpmpp", "ncsnpp", "adm", "edm2", "dit", "uvit")


def small(name, **changes):
    return dataclasses.replace(SMALL, name=name, **changes)


@pytest.mark.parametrize(
    "name",
    [name if name in ("unet", "edm2", "dit") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_network_by_name_computes_as_it_was_told(name):
    plain, again = (build_network(small(name, remat=remat, dtype="bfloat16"), 3) for remat in (False, True))
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


@pytest.mark.parametrize("name", ["mlp", "dit", "uvit"])
def test_blocks_are_stacked_where_scan_is_asked_for(name):
    for scan in (False, True):
        network = build_network(small(name, scan=scan), 3)
        params = jax.eval_shape(network.init, jax.random.key(0), IMAGES, jnp.zeros(2), jnp.zeros(2, int))
        assert any(key.endswith("__") for key in params) == scan


def test_names_are_all_there():
    assert set(get_args(get_type_hints(c.NetworkConfig)["name"])) == {"mlp", *NAMES}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "dit", "heads": 3}, r"width: a multiple of 4 and of heads=3 is needed, got 16"),
        ({"name": "uvit", "depth": 2}, r"depth: an odd number"),
        ({"name": "adm", "attention": (5,)}, r"attention: levels are 0 .. 1, got \(5,\)"),
        ({"name": "edm2", "head_channels": 7}, r"head_channels: a divisor"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build_network(dataclasses.replace(SMALL, **changes), None)


@pytest.mark.slow
def test_edm2s_weights_are_normalised_after_an_update():
    """From the configuration to the optimiser: the weights' norms stay where one update would have moved them."""
    digits = c.PRESETS["digits"]
    optimiser = dataclasses.replace(digits.optimiser, learning_rate=1.0, warmup=0)
    config = dataclasses.replace(digits, network=small("edm2"), optimiser=optimiser)
    parts = c.build(config, None)
    shapes = jax.eval_shape(parts.network.init, jax.random.key(0), IMAGES, jnp.zeros(2))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32), shapes)

    @jax.jit
    def updated(params):
        gradient = jax.tree.map(jnp.ones_like, params)
        after = jax.tree.map(jnp.add, params, parts.tx.update(gradient, parts.tx.init(params), params)[0])
        return after, networks.normalise_weights(after)

    after, again = updated(params)
    jax.tree.map(lambda new, same: np.testing.assert_allclose(new, same, rtol=1e-4, atol=1e-5), after, again)
    moved = jax.tree.leaves(jax.tree.map(lambda new, old: float(np.abs(new - old).max()), after, params))
    assert max(moved) > 0.01


def test_decay_leaves_alone_what_is_never_trained():
    """Five updates with weight decay and no gradient: random waves stay bitwise, and they alone."""
    paths = []
    for name, labels in (("edm2", jnp.zeros(2, int)), ("ncsnpp", None)):
        network = build_network(small(name), None if labels is None else 3)
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
