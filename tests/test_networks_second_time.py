"""A second time, c_noise [b, 2] = the clock at t and at s: every denoising network, from where it was trained without.

Networks are as small as they can be, and not compiled: a compiler may round the two programs otherwise (float32).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from nets import perturbed

from diffjax import from_equinox, from_linen, networks
from diffjax.interop import load_module, module_from_config, save_pretrained
from diffjax.networks import Stage, normalise_weights, with_second_time

KEY = jax.random.key(0)
W = 8
ONE_LEVEL = {"channels": (W,), "blocks": 1, "attention": (), "head_channels": W}
PER_BLOCK = {"width": W, "depth": 2, "heads": 1, "patch": 1, "emb_per_block": True}
NETWORKS = {
    "mlp": networks.MLP(W, 1),
    "plain-mlp": networks.PlainMLP(W, 1),
    "unet": networks.UNet(**ONE_LEVEL),
    "unet2d": networks.UNet2D((W,), (Stage(),), (Stage(),), None, 1),
    "edm2": networks.EDM2UNet(**ONE_LEVEL),
    "efficient": networks.EfficientUNet((W,), (1,), (1,), attention=(), text_attention=(), head_channels=W),
    "dit": networks.DiT(W, 1, 1, 1),
    "dit-told-per-block": networks.DiT(**PER_BLOCK),
    "dit-told-per-block-scan": networks.DiT(**PER_BLOCK, scan=True),
    "uvit": networks.UViT(W, 3, 1, 1),
}
EACH = [name if name in ("mlp", "dit") else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
GRADIENTS = [name if name == "mlp" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2, W)), jnp.float32)
T = jnp.array([-30 / 8, 30 / 8])  # the ends of the clock of logsnr
ENDS = jnp.array([[[-30 / 8, -30 / 8], [30 / 8, -30 / 8]], [[0.0, 0.0], [np.pi / 2, 0.0]]])  # and of the angle, with s
TS = ENDS[0]


def new(path):
    return "second_time" in jax.tree_util.keystr(path)


def student(name):
    """The network, parameters off zero, and those with a second time."""
    network = from_linen(NETWORKS[name])
    params = perturbed(network.init(KEY, X, T))
    return network, params, with_second_time(network, params, KEY, X)


def paths(tree):
    return dict(jax.tree_util.tree_leaves_with_path(tree))


@pytest.mark.parametrize("name", EACH)
def test_a_second_time_starts_without_effect_and_can_be_differentiated(name):
    network, params, both = student(name)
    fresh = network.init(KEY, X, TS)
    added = {path: leaf for path, leaf in paths(both).items() if path not in paths(params)}
    assert added
    assert all(map(new, added))
    for path, leaf in paths(params).items():
        np.testing.assert_array_equal(paths(both)[path], leaf)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, both)

    # of with_second_time, and of a network initialised with [b, 2] that has been trained but for the second time
    trained = lambda path, leaf: leaf if new(path) else paths(params)[path]
    y = network.apply(params, X, T)
    assert np.abs(y).max() > 0.01
    for start in (both, jax.tree_util.tree_map_with_path(trained, fresh)):
        np.testing.assert_array_equal(network.apply(start, X, TS), y)

    # trained, it matters: of the two samples, where its s is another one
    moved = perturbed(both, seed=1, size=0.5)
    derivative = lambda c: jax.jvp(lambda x, c: network.apply(moved, x, c), (X, c), (X, jnp.ones_like(c)))
    for ends in ENDS:
        y, slope = derivative(ends)
        assert np.all(np.isfinite(y))
        assert np.all(np.isfinite(slope))
        assert np.any(slope)
    y, other = (network.apply(moved, X, c) for c in (TS, TS.at[1, 1].add(0.5)))
    change = np.abs(other - y).max(axis=(1, 2, 3))
    assert change[0] == 0
    assert change[1] > 1e-6  # EDM2's gains make all changes small


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_at_the_start_are_those_of_one_time(name):
    network, params, both = student(name)
    slopes = jax.grad(lambda params, x, c: jnp.sum(network.apply(params, x, c) ** 2), argnums=(0, 1))
    (by_params, by_x), (by_both, by_x_of_both) = slopes(params, X, T), slopes(both, X, TS)
    np.testing.assert_array_equal(by_x, by_x_of_both)
    for path, leaf in paths(by_params).items():
        np.testing.assert_array_equal(paths(by_both)[path], leaf, err_msg=jax.tree_util.keystr(path))
    assert any(np.any(leaf) for path, leaf in paths(by_both).items() if new(path))  # and it will learn


def test_edm2_has_a_gain_where_others_have_a_layer_of_zeros():
    """Kernels are put back to magnitude 1 after every update: of zeros the first update would make a large step."""
    embed = networks.ConditionEmbedding(W, layers=networks.edm2_layers(W, 0.5))
    both = embed.init(KEY, TS, None)["params"]
    one = {name: leaf for name, leaf in both.items() if name != "second_time"}
    call = lambda params, c: embed.apply({"params": params}, c, None)
    np.testing.assert_array_equal(call(both, TS), call(one, T))
    slope = jax.grad(lambda params, c: jnp.sum(call(params, c)[:, 0]))
    slopes = slope(one, T), slope(both, TS)
    jax.tree.map(np.testing.assert_array_equal, slopes[0], {name: slopes[1][name] for name in one})
    assert np.any(slopes[1]["second_time"]["gain"])
    update = lambda params, slope: normalise_weights(jax.tree.map(lambda p, s: p - 1e-3 * s, params, slope))
    moved = call(update(both, slopes[1]), TS) - call(update(one, slopes[0]), T)
    assert 0 < np.abs(moved).max() < 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_another_number_of_times_is_refused(name):
    network = from_linen(NETWORKS[name])
    one, two = (jax.eval_shape(network.init, KEY, X, c) for c in (T, TS))
    assert not any(map(new, paths(one)))
    run = lambda params, shape: jax.eval_shape(network.apply, params, X, jax.ShapeDtypeStruct(shape, jnp.float32))
    for params, shape, message in (
        (one, (2, 2), r"c_noise: \[b\] is needed .* got \(2, 2\); `with_second_time`"),
        (two, (2,), r"c_noise: \[b, 2\], .* is needed .* got \(2,\)"),
        (two, (), r"c_noise: \[b, 2\], .* is needed .* got \(\)"),
        (one, (2, 3), r"c_noise: shape \(2,\), or \(2, 2\) for t and s, is needed, got shape \(2, 3\)"),
        (two, (3, 2), r"c_noise: shape \(2,\), or \(2, 2\) .* got shape \(3, 2\)"),
        (one, (3,), r"c_noise: a number or shape \(2,\) is needed, got shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run(params, shape)
    with pytest.raises(ValueError, match=r"got shape \(2, 3\)"):
        jax.eval_shape(network.init, KEY, X, jnp.zeros((2, 3)))


def test_what_takes_no_second_time_refuses_one():
    level = jnp.zeros((2, 2))
    cascade = networks.EfficientUNet((W,), (1,), (1,), low_resolution=True, attention=(), text_attention=())
    cond = networks.Cascade(low_resolution=X, noise_level=level)
    for call in (
        lambda: jax.eval_shape(networks.Classifier(3, channels=(W,)).init, KEY, X, level),
        lambda: jax.eval_shape(from_linen(cascade).init, KEY, X, T, cond),
    ):
        with pytest.raises(ValueError, match=r"c_noise: a number or shape \(2,\) is needed, got shape \(2, 2\)"):
            call()


def test_with_second_time_refuses_what_does_not_fit():
    network = from_linen(NETWORKS["mlp"])
    params = network.init(KEY, X, T)
    both = with_second_time(network, params, KEY, X)
    with pytest.raises(ValueError, match=r"params: .* no other parameters .* a second time already"):
        with_second_time(network, both, KEY, X)
    with pytest.raises(ValueError, match=r"params: blocks__0/close/bias of shape \(8,\) .* which has \(4,\)"):
        with_second_time(from_linen(networks.MLP(4, 1)), params, KEY, X)
    with pytest.raises(ValueError, match=r"params: wide of shape .* no such leaf"):
        with_second_time(network, params | {"wide": jnp.zeros(2)}, KEY, X)


def test_a_network_of_ones_own_is_given_both_times():
    """A Linen module may have more parameters for [b, 2]; one of Equinox has not, and `with_second_time` says so."""

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, c_noise, cond=None):
            times = c_noise.reshape(len(x), -1)
            gains = [self.param(f"gain_{i}", nn.initializers.zeros, ()) for i in range(times.shape[1])]
            return x + (times @ jnp.stack(gains))[:, None]

    network, x = from_linen(Own()), jnp.ones((2, 3))
    both = with_second_time(network, network.init(KEY, x, T), KEY, x)
    y = network.apply(both | {"gain_1": jnp.array(2.0)}, x, TS)
    np.testing.assert_array_equal(y[0], 1 + 2 * TS[0, 1] * jnp.ones(3))

    class Plain(eqx.Module):
        gain: jax.Array

        def __call__(self, x, c_noise, cond=None, *, key=None):
            return x + self.gain * c_noise.sum()

    network = from_equinox(lambda key: Plain(jnp.ones(())))
    params = network.init(KEY, x, T)
    np.testing.assert_array_equal(network.apply(params, x, TS)[1], 1 + TS[1].sum() * jnp.ones(3))
    with pytest.raises(ValueError, match="a network without one"):
        with_second_time(network, params, KEY, x)


def test_weights_of_a_file_take_a_second_time(tmp_path):
    """diffusers' U-Net, told the step 0 .. 999: as in the file at the start, and differences of steps tell apart."""
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": 2,
        "in_channels": W,
        "out_channels": W,
        "block_out_channels": [W],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    network = from_linen(module_from_config(config))
    save_pretrained(tmp_path, perturbed(network.init(KEY, X, T)), config)
    loaded = load_module(tmp_path)
    network = from_linen(loaded.module)
    params = with_second_time(network, loaded.params, KEY, X)
    steps = jnp.array([[999.0, 0.0], [500.0, 499.0]])
    np.testing.assert_array_equal(network.apply(params, X, steps), network.apply(loaded.params, X, steps[:, 0]))


def test_the_second_time_is_slow_and_tells_differences_of_any_clock_apart():
    module = networks.SecondTime(W, jnp.float32)
    differences = jnp.array([0.0, 1e-2, 0.1, 1.0, np.pi / 2, 7.5, 500.0, 999.0])
    params = perturbed(module.init(KEY, differences)["params"], size=0.5)
    seen = jnp.asarray(module.apply({"params": params}, differences))
    apart = jnp.abs(seen[:, None] - seen[None]).max(-1) + jnp.eye(len(seen))
    assert apart.min() > 1e-3

    waves = networks.SecondTime(W, jnp.float32, layers=lambda module, waves: waves)
    _, slopes = jax.jvp(lambda d: waves.apply({}, d), (differences,), (jnp.ones_like(differences),))
    assert 1 < np.abs(slopes).max() <= np.pi + 1e-5  # a period of 2 at s = t, slower further away
