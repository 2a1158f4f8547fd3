"""Networks: adapters give the module's own function; MLP and U-Net do what their docstrings say (float32)."""

import types
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx
from nets import perturbed, quick_jit

from diffjax import from_equinox, from_linen, from_nnx
from diffjax.losses import prediction_only
from diffjax.networks import (
    MLP,
    DiT,
    GroupNorm,
    ImageAttention,
    PlainMLP,
    ResidualBlock,
    UNet,
    UViT,
    attention,
    enlarge,
    layer_norm,
    rms_norm,
    unit_rms,
)

KEY = jax.random.key(0)

# --- adapters ---------------------------------------------------------------------------------------------------------


def test_init_is_traced_once_for_shapes_and_values():
    traced = []

    class Counted(PlainMLP):
        def __call__(self, x, c_noise, cond=None):
            traced.append(x.shape)
            return super().__call__(x, c_noise, cond)

    network = from_linen(Counted(width=4, depth=1))
    make = lambda d: network.init(KEY, jnp.zeros((1, d)), jnp.zeros(1))
    shapes = jax.eval_shape(partial(make, 2))
    assert jax.tree.map(lambda leaf: leaf.shape, make(2)) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert make(3)["out"]["kernel"].shape == (4, 3)
    assert traced == [(1, 2), (1, 3)]


def test_other_initialisers_are_the_modules_own_init():
    """A plain `nn.Dense`, alone or with a layer of ours, is drawn as Flax draws it; ours alone come from one draw."""

    class Mixed(nn.Module):
        ours: bool
        flax: bool

        @nn.compact
        def __call__(self, x, c_noise, cond=None):
            x = GroupNorm()(PlainMLP(width=4, depth=1, name="ours")(x, c_noise)) if self.ours else x
            return nn.Dense(5, name="flax")(x) if self.flax else x

    x, c_noise = jnp.ones((2, 3, 3, 2)), jnp.zeros(2)
    for ours, flax in ((False, True), (True, True), (True, False)):
        module = Mixed(ours, flax)
        params = from_linen(module).init(KEY, x, c_noise)
        by_flax = jax.jit(module.init)(KEY, x, c_noise)["params"]
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, by_flax)
        equal = jax.tree.leaves(jax.tree.map(np.array_equal, params, by_flax))
        assert all(equal) == flax


class Holds(nn.Module):
    what: object

    @nn.compact
    def __call__(self, x, c_noise, cond=None):
        return nn.Dense(x.shape[-1])(x)


def test_networks_of_equal_modules_are_equal():
    """By all fields and their types, however deep; a module that has no hash is equal to itself."""
    network = lambda what: from_linen(Holds(what))
    for what in (lambda: 2, lambda: (1, ("a", None)), lambda: nn.Dense(3), lambda: jnp.float32):
        one, other = network(what()), network(what())
        assert one == other
        assert hash(one) == hash(other)
        assert one.init != one.apply
        assert prediction_only(one) == prediction_only(other) != one
    for one, other in [(1, 2), (1, 1.0), (1, True), ((0, (1,)), (0, (1.0,))), (nn.Dense(3), nn.Dense(4))]:
        assert network(one) != network(other)
    for one, other in [(1, 1.0), (0.0, -0.0)]:  # of a module inside
        assert network(Holds((one,))) == network(Holds((one,))) != network(Holds((other,)))
    assert from_linen(Holds(4)) != from_linen(MLP(4))
    for wrong, got in ((MLP, "MLP"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"module: a Linen module, .* is needed, got {got}"):
            from_linen(wrong)
    for what in ([1], jnp.ones(2), np.ones(2)):
        module = Holds(what)
        assert from_linen(module) == from_linen(module) != network(what)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, c_noise, cond, deterministic=True):
        h = nn.Dense(8)(jnp.concatenate([x, c_noise[:, None], cond], axis=-1))
        return nn.Dense(x.shape[-1])(nn.Dropout(0.5, deterministic=deterministic)(h))


class LinenNormed(nn.Module):
    @nn.compact
    def __call__(self, x, c_noise, cond):
        return nn.BatchNorm(use_running_average=False)(x)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, c_noise, cond):
        h = self.layers[0](jnp.concatenate([x, c_noise[:, None], cond], axis=-1))
        return self.layers[1](self.drop(h))


class NNXNormed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x, c_noise, cond):
        return self.norm(x)


class NNXDropouts(nnx.Module):
    """Two dropout layers and no parameters: x -> (drop x, drop x)."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, c_noise, cond):
        return jnp.concatenate([self.first(x), self.second(x)], axis=-1)


class EquinoxNet(eqx.Module):
    layers: list
    drop: eqx.nn.Dropout

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.layers = [eqx.nn.Linear(5, 8, key=first), eqx.nn.Linear(8, 2, key=second)]
        self.drop = eqx.nn.Dropout(0.5)

    def __call__(self, x, c_noise, cond, *, key):
        h = self.layers[0](jnp.concatenate([x, c_noise[None], cond]))
        return self.layers[1](self.drop(h, key=key))


class EquinoxNormed(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        self.norm = eqx.nn.BatchNorm(2, "batch", mode="batch")


def inputs(b=64):
    x, cond = np.random.default_rng(7).normal(size=(2, b, 2)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.linspace(-1, 1, b), jnp.float32), jnp.asarray(cond)


def raw_linen(params, x, c_noise, cond):
    return LinenNet().apply({"params": params}, x, c_noise, cond)


def raw_nnx(params, x, c_noise, cond):
    module = NNXNet(nnx.Rngs(0))
    for i, layer in enumerate(module.layers):
        layer.kernel.set_value(params[f"layers.{i}.kernel"])
        layer.bias.set_value(params[f"layers.{i}.bias"])
    module.eval()
    return module(x, c_noise, cond)


def raw_equinox(params, x, c_noise, cond):
    h = jnp.concatenate([x, c_noise[:, None], cond], axis=-1)
    for i in range(2):
        h = h @ params[f"layers.{i}.weight"].T + params[f"layers.{i}.bias"]
    return h


LIBRARIES = {
    "linen": (lambda: from_linen(LinenNet()), raw_linen),
    "nnx": (lambda: from_nnx(NNXNet), raw_nnx),
    "equinox": (lambda: from_equinox(EquinoxNet), raw_equinox),
}


@pytest.fixture(params=list(LIBRARIES), name="library", scope="module")
def _library(request):
    make, raw = LIBRARIES[request.param]
    network = make()
    return network, raw, network.init(KEY, *inputs())


def test_adapter_without_key_is_the_raw_module(library):
    network, raw, params = library
    expected = quick_jit(raw)(params, *inputs())
    np.testing.assert_allclose(quick_jit(network.apply)(params, *inputs()), expected, rtol=2e-5, atol=1e-6)


def test_adapter_parameters_are_a_plain_tree_of_float32(library):
    network, _, params = library
    nodes = jax.tree.leaves(params, is_leaf=lambda node: not isinstance(node, dict))
    assert all(isinstance(node, jax.Array) and node.dtype == jnp.float32 for node in nodes)
    assert sum(node.size for node in nodes) == 5 * 8 + 8 + 8 * 2 + 2
    again, other = network.init(KEY, *inputs()), network.init(jax.random.key(1), *inputs())
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert any(np.any(np.asarray(a) != b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True))


def test_adapter_dropout_has_the_mean_of_the_deterministic_output(library):
    network, raw, params = library
    keys = jax.random.split(jax.random.key(3), 1000)
    draws = quick_jit(jax.vmap(lambda k: network.apply(params, *inputs(4), key=k)))(keys)
    draws = np.asarray(draws)
    spread = draws.std(axis=0) / np.sqrt(len(keys))
    # The last layer is linear in the dropped features, so the mean over masks is the function without dropout.
    assert spread.min() > 1e-4
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - raw(params, *inputs(4))) / spread, 5.0)


def test_adapter_dropout_follows_the_key_and_differs_between_samples(library):
    network, _, params = library
    same = tuple(jnp.asarray(np.broadcast_to(np.asarray(a)[:1], a.shape)) for a in inputs())
    apply = quick_jit(network.apply)
    first, again, other = (np.asarray(apply(params, *same, key=jax.random.key(i))) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.any(first[0] != first[1:])


def test_adapter_gradient_reaches_every_parameter(library):
    network, _, params = library
    gradient = quick_jit(jax.grad(lambda p: jnp.sum(network.apply(p, *inputs(), key=KEY) ** 2)))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_adapter_takes_raw_integer_keys(library):
    network, _, _ = library
    params = network.init(jax.random.PRNGKey(0), *inputs())
    assert jax.eval_shape(network.apply, params, *inputs(), key=jax.random.PRNGKey(1)).shape == (64, 2)


def test_nnx_dropout_layers_do_not_share_a_mask():
    network = from_nnx(NNXDropouts)
    first, second = jnp.split(network.apply({}, jnp.ones((32, 32)), jnp.zeros(32), key=KEY), 2, axis=-1)
    assert abs(float(jnp.mean(first == second)) - 0.5) < 0.1


def test_adapters_refuse_state():
    with pytest.raises(ValueError, match="batch_stats"):
        from_linen(LinenNormed()).init(KEY, *inputs())
    with pytest.raises(ValueError, match="BatchStat"):
        from_nnx(NNXNormed)
    with pytest.raises(ValueError, match=r"StateIndex.*in place of BatchNorm"):
        from_equinox(lambda key: eqx.nn.make_with_state(EquinoxNormed)(key)[0])
    with pytest.raises(ValueError, match=r"Counts.*count.*without state") as refused:
        from_nnx(Counts)
    assert "BatchNorm" not in str(refused.value)


class Counts(nnx.Module):
    def __init__(self, rngs):
        self.count = nnx.Variable(jnp.zeros(()))


class NNXConstants(nnx.Module):
    """Frequencies of its own and of a part's, in JAX and in NumPy, which do not train."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 6, rngs=rngs)
        self.freq, self.shift = jnp.arange(6.0), np.arange(6.0, dtype=np.float32)
        self.parts = nnx.List([nnx.Linear(6, 2, rngs=rngs)])
        self.parts[0].scale = 2 * jnp.ones(())

    def __call__(self, x, c_noise, cond):
        waves = jnp.sin(c_noise[:, None] * self.freq + self.shift)
        return self.parts[0].scale * self.parts[0](self.first(waves))


def test_arrays_of_an_nnx_module_that_are_no_variables_are_constants():
    network, c_noise = from_nnx(NNXConstants), jnp.array([0.3, -0.7])
    params = network.init(KEY, jnp.ones((2, 2)), c_noise)
    assert set(params) == {f"{layer}.{leaf}" for layer in ("first", "parts.0") for leaf in ("kernel", "bias")}
    h = np.sin(np.outer(c_noise, np.arange(6.0)) + np.arange(6.0))
    for layer in ("first", "parts.0"):
        h = h @ np.asarray(params[f"{layer}.kernel"]) + np.asarray(params[f"{layer}.bias"])
    apply = jax.jit(lambda params: network.apply(params, jnp.ones((2, 2)), c_noise))
    for answer in (apply(params), network.apply(params, jnp.ones((2, 2)), c_noise)):
        np.testing.assert_allclose(answer, 2 * h, rtol=1e-4, atol=1e-5)
    inside = jax.jit(lambda params: from_nnx(NNXConstants).apply(params, jnp.ones((2, 2)), c_noise))(params)
    np.testing.assert_allclose(inside, 2 * h, rtol=1e-4, atol=1e-5)


class NNXStack(nnx.Module):
    """Three layers, a dropout with a gain each, made by `nnx.vmap` and run by `nnx.scan`."""

    def __init__(self, rngs):
        make = nnx.vmap(lambda rngs: (nnx.Linear(1, 1, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)))
        self.linear, self.drop = nnx.split_rngs(splits=3)(make)(rngs)

    def __call__(self, x, c_noise, cond):
        def one(x, layer):
            linear, drop = layer
            kept = drop(jnp.ones_like(x))
            return x + 0 * linear(x[..., :1]), kept

        return nnx.scan(one, out_axes=(nnx.Carry, 0))(x, (self.linear, self.drop))[1]


class NNXListedConstants(nnx.Module):
    """Arrays in nnx.List, nnx.Dict, plain containers, and the layers of a stack."""

    def __init__(self, rngs):
        self.listed = nnx.List([jnp.arange(2.0), np.ones(2, np.float32)])
        self.named = nnx.Dict(more=jnp.ones(()))
        self.plain = nnx.data([{"most": jnp.full(2, 0.5)}])

    def __call__(self, x, c_noise, cond):
        return x * self.listed[0] + self.listed[1] + self.named["more"] + self.plain[0]["most"]


def test_arrays_in_containers_of_an_nnx_module_are_constants():
    network, x = from_nnx(NNXListedConstants), jnp.array([[1.0, 2.0]])
    assert network.init(KEY, x, jnp.zeros(1)) == {}
    np.testing.assert_array_equal(network.apply({}, x, jnp.zeros(1)), [[2.5, 4.5]])
    np.testing.assert_array_equal(jax.jit(network.apply)({}, x, jnp.zeros(1)), [[2.5, 4.5]])


def test_stacked_nnx_layers_drop_each_by_a_key_of_its_own():
    network, x = from_nnx(NNXStack), jnp.ones((8, 64))
    params = network.init(KEY, x, jnp.zeros(8))
    assert params["linear.kernel"].shape == (3, 1, 1)
    kept = np.asarray(network.apply(params, x, jnp.zeros(8), key=KEY))
    assert set(np.unique(kept)) == {0.0, 2.0}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.mean(kept[i] == kept[j]) - 0.5) < 0.1
    np.testing.assert_array_equal(network.apply(params, x, jnp.zeros(8)), 1.0)


class LinenTrain(nn.Module):
    """Dropout behind flax's own switch, and noise from a collection of its own."""

    noisy: bool = False

    @nn.compact
    def __call__(self, x, c_noise, cond, train: bool = False):
        x = nn.Dropout(0.5)(x, deterministic=not train)
        return jnp.stack([x, jax.random.normal(self.make_rng("noise"), x.shape)]) if self.noisy else x


def test_linen_modules_with_a_train_switch_drop_where_there_is_a_key():
    network, x = from_linen(LinenTrain()), jnp.ones((32, 32))
    params = network.init(KEY, x, jnp.zeros(32))
    assert abs(float(jnp.mean(network.apply(params, x, jnp.zeros(32), key=KEY) == 0)) - 0.5) < 0.1
    np.testing.assert_array_equal(network.apply(params, x, jnp.zeros(32)), x)


class LinenKeywordTrain(nn.Module):
    @nn.compact
    def __call__(self, *inputs, train: bool = False):
        return nn.Dropout(0.5)(inputs[0], deterministic=not train)


def test_a_switch_that_is_a_keyword_alone_is_given_too():
    network, x = from_linen(LinenKeywordTrain()), jnp.ones((32, 32))
    assert abs(float(jnp.mean(network.apply({}, x, jnp.zeros(32), key=KEY) == 0)) - 0.5) < 0.1


class LinenOwnSwitch(nn.Module):
    """Dropout behind switches of other names, and an option that has nothing to do with it."""

    rate: float = 0.5
    always: bool = False

    @nn.compact
    def __call__(self, x, c_noise, cond, enable_dropout: bool = False, frozen: bool = True, gated: bool = False):
        x = nn.Dropout(self.rate)(x, deterministic=not (enable_dropout or self.always))
        x = x if frozen else nn.Dropout(self.rate)(x, deterministic=False)
        return nn.tanh(x) if gated else x


class LinenWrapped(nn.Module):
    @nn.compact
    def __call__(self, x, c_noise, cond, train: bool = False):
        return LinenOwnSwitch()(x, c_noise, cond, enable_dropout=train, frozen=not train)


def test_dropout_behind_a_switch_of_another_name_is_refused_in_training():
    """Only where it would be off without a word: options of a module without dropout, or with it on, are harmless."""
    network, x = from_linen(LinenOwnSwitch()), jnp.ones((4, 4))
    np.testing.assert_array_equal(network.apply({}, x, jnp.zeros(4)), x)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"module: LinenOwnSwitch .*enable_dropout=True.*enable_dropout=train"):
            network.apply({}, x, jnp.zeros(4), key=KEY)
    np.testing.assert_array_equal(from_linen(LinenOwnSwitch(rate=0.0)).apply({}, x, jnp.zeros(4), key=KEY), x)
    for module in (LinenOwnSwitch(always=True), LinenWrapped()):
        assert (from_linen(module).apply({}, x, jnp.zeros(4), key=KEY) == 0).any()


class LinenWords(nn.Module):
    """Dropout behind a word, and behind a number; a rate is no switch."""

    by_word: bool

    @nn.compact
    def __call__(self, x, c_noise, cond, mode: str = "eval", drop: int = 0, rate: float = 0.0):
        x = nn.Dropout(rate)(x, deterministic=False)
        return nn.Dropout(0.5)(x, deterministic=mode != "train" if self.by_word else not drop)


@pytest.mark.parametrize(
    ("by_word", "message"),
    [(True, "unless mode='train', .*mode='train' if train else 'eval'"), (False, "drop=1, .*drop=1 if train else 0")],
)
def test_dropout_behind_a_word_or_a_number_is_refused_in_training(by_word, message):
    network, x = from_linen(LinenWords(by_word)), jnp.ones((4, 4))
    np.testing.assert_array_equal(network.apply({}, x, jnp.zeros(4)), x)
    with pytest.raises(ValueError, match=f"module: LinenWords .*{message}"):
        network.apply({}, x, jnp.zeros(4), key=KEY)


def test_linen_modules_draw_from_collections_of_their_own():
    """With a key, and as much dropout as without them; without a key they are refused."""
    network, plain, x = from_linen(LinenTrain(noisy=True)), from_linen(LinenTrain()), jnp.ones((32, 32))
    params = network.init(KEY, x, jnp.zeros(32))
    for _ in range(2):
        dropped, noise = network.apply(params, x, jnp.zeros(32), key=KEY)
        np.testing.assert_array_equal(dropped, plain.apply({}, x, jnp.zeros(32), key=KEY))
        assert abs(np.std(noise) - 1) < 0.1
    with pytest.raises(ValueError, match=r"key: LinenTrain draws.*noise"):
        network.apply(params, x, jnp.zeros(32))


class EquinoxConstants(eqx.Module):
    weight: jax.Array
    freq: np.ndarray
    index: np.ndarray

    def __init__(self, key):
        self.weight, self.freq, self.index = jnp.ones(2), np.arange(2.0, dtype=np.float32), np.arange(2)

    def __call__(self, x, c_noise, cond, *, key):
        return self.weight * self.freq * x[self.index]


def test_numpy_arrays_of_an_equinox_module_are_constants():
    network, x = from_equinox(EquinoxConstants), jnp.ones((3, 2))
    params = network.init(KEY, x, jnp.zeros(3))
    assert list(params) == ["weight"]
    np.testing.assert_array_equal(network.apply({"weight": jnp.full(2, 3.0)}, x, jnp.zeros(3)), [[0.0, 3.0]] * 3)


# --- the networks we ship ---------------------------------------------------------------------------------------------


def small_unet(**changes):
    fields = {"channels": (8, 16), "blocks": 1, "attention": (1,), "head_channels": 8} | changes
    return from_linen(UNet(**fields))


IMAGE = jnp.asarray(np.random.default_rng(5).normal(size=(3, 7, 5, 2)), jnp.float32)  # odd sizes throughout
C_NOISE = jnp.array([-1.0, 0.0, 1.0])
LABELS = jnp.array([0, 1, 3])
NETWORKS = {
    "mlp": lambda **k: from_linen(MLP(width=16, depth=2, **k)),
    "unet": small_unet,
    "dit": lambda **k: from_linen(DiT(width=16, depth=1, heads=2, patch=1, qk_norm=True, **k)),
    "uvit": lambda **k: from_linen(UViT(width=16, depth=3, heads=2, patch=1, **k)),
}
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in ("dit", "uvit") else name for name in NETWORKS]
FIRST = ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "dit", "uvit"))]


@pytest.fixture(scope="module", name="labelled")
def _labelled():
    """By name, a network with labels and dropout, its parameters off zero, and its compiled apply."""

    @cache
    def found(name):
        network = NETWORKS[name](num_classes=3, dropout=0.3)
        params = perturbed(network.init(KEY, IMAGE, C_NOISE, LABELS))
        return network, params, quick_jit(network.apply)

    return found


@pytest.mark.parametrize("name", EACH)
def test_network_uses_label_and_noise_level_sample_by_sample(labelled, name):
    _, params, apply = labelled(name)
    y = apply(params, IMAGE, C_NOISE, LABELS)
    relabelled = apply(params, IMAGE, C_NOISE, jnp.array([0, 2, 3]))
    renoised = apply(params, IMAGE, jnp.array([-1.0, 0.1, 1.0]), LABELS)
    for other in (relabelled, renoised):
        change = np.abs(np.asarray(other) - y).max(axis=(1, 2, 3))
        assert change[1] > 1e-3
        np.testing.assert_array_equal(change[[0, 2]], 0)


@pytest.mark.parametrize("name", FIRST)
def test_network_is_the_same_one_sample_at_a_time(labelled, name):
    network, params, apply = labelled(name)
    single = jax.vmap(lambda x, c, k: network.apply(params, x[None], c[None], k[None])[0])
    np.testing.assert_allclose(
        quick_jit(single)(IMAGE, C_NOISE, LABELS), apply(params, IMAGE, C_NOISE, LABELS), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", FIRST)
def test_network_dropout_and_gradients(labelled, name):
    network, params, apply = labelled(name)
    y = apply(params, IMAGE, C_NOISE, LABELS)

    def loss(p, key):
        out = network.apply(p, IMAGE, C_NOISE, LABELS, key=key)
        return jnp.sum(out**2), out

    gradient, dropped = quick_jit(jax.grad(loss, has_aux=True))(params, KEY)
    assert np.abs(np.asarray(dropped) - y).max() > 1e-2
    flat, _ = jax.tree_util.tree_flatten_with_path(gradient)
    unreached = [jax.tree_util.keystr(path) for path, leaf in flat if not np.any(leaf)]
    assert unreached == []


@pytest.mark.parametrize("name", EACH)
def test_labels_out_of_range_are_refused_or_nan(labelled, name):
    network, params, apply = labelled(name)
    with pytest.raises(ValueError, match=r"cond: .* 0 \.\. 3"):
        network.apply(params, IMAGE, C_NOISE, jnp.array([0, 1, 4]))
    hidden = np.asarray(apply(params, IMAGE, C_NOISE, jnp.array([0, -1, 4])))
    assert np.all(np.isfinite(hidden[0]))
    assert np.all(np.isnan(hidden[1:]))
    with pytest.raises(ValueError, match="3 is the null label"):
        network.apply(params, IMAGE, C_NOISE)
    with pytest.raises(ValueError, match="integer labels"):
        network.apply(params, IMAGE, C_NOISE, jnp.zeros(3))


def test_mlp_takes_a_vector_condition():
    network = from_linen(MLP(width=16, depth=1))
    x, cond = jnp.ones((3, 2)), jnp.eye(3)
    params = perturbed(network.init(KEY, x, C_NOISE, cond))
    y = np.asarray(quick_jit(network.apply)(params, x, jnp.zeros(3), cond))
    assert y.std(axis=0).min() > 1e-3  # only the condition differs between the samples
    with pytest.raises(ValueError, match="set num_classes"):
        network.init(KEY, x, C_NOISE, LABELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_bfloat16_is_close_to_float32_and_both_start_as_zero(name):
    exact, rough = (NETWORKS[name](dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    start = rough.init(KEY, IMAGE, C_NOISE)
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    outputs = []
    for network in (exact, rough):
        apply = quick_jit(network.apply)
        np.testing.assert_array_equal(apply(start, IMAGE, C_NOISE), np.zeros(IMAGE.shape))
        outputs.append(apply(perturbed(start), IMAGE, C_NOISE))
    expected, y = map(np.asarray, outputs)
    assert y.dtype == np.float32
    error = np.sqrt(np.mean((y - expected) ** 2) / np.mean(expected**2))
    assert 1e-4 < error < 3e-2  # bfloat16 has 8 bits: 4e-3 a rounding; and it must really have been used


@pytest.mark.slow
def test_initial_parameters_follow_their_law():
    """The one draw gives every kernel variance 1/fan_in, leaves independent, as the module's own init does."""
    module = UNet(channels=(32, 64), blocks=1, attention=())
    params = from_linen(module).init(KEY, IMAGE, C_NOISE)
    names, shapes = [], jax.eval_shape(module.init, KEY, IMAGE, C_NOISE)["params"]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("kernel") and np.any(leaf):
            names.append(name)
            z = np.asarray(leaf).ravel() * np.sqrt(np.prod(leaf.shape[:-1]))
            assert abs(z.mean()) < 5 / np.sqrt(z.size)
            assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / z.size)
        elif name.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
        else:
            np.testing.assert_array_equal(leaf, 0)
    assert "down_1_0/conv_1/kernel" in names
    a, b = (np.asarray(params[f"middle_{i}"]["conv_1"]["kernel"]).ravel() for i in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)


def test_init_under_jit_agrees_with_init():
    network = from_linen(MLP(width=8, depth=1))
    args = jnp.ones((2, 3)), jnp.zeros(2)
    for path, leaf in jax.tree_util.tree_flatten_with_path(network.init(KEY, *args))[0]:
        compiled = jax.jit(network.init)(KEY, *args)
        for entry in path:
            compiled = compiled[entry.key]
        np.testing.assert_allclose(compiled, leaf, rtol=1e-5)


def test_attention_mixes_positions_and_convolution_alone_does_not():
    """A far corner is felt at the first pixel through attention; without it, only as far as the kernels reach."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 24, 24, 8)), jnp.float32)

    class Probe(nn.Module):
        attention: bool

        @nn.compact
        def __call__(self, x, c_noise, cond):
            h = nn.Conv(8, (3, 3), name="conv")(x)
            return ImageAttention(jnp.float32, 4, name="attention")(h) if self.attention else h

    reach = {}
    for attends in (True, False):
        network = from_linen(Probe(attends))
        params = perturbed(network.init(KEY, x, jnp.zeros(1)), size=0.5)
        first = quick_jit(jax.grad(lambda x, n=network, p=params: jnp.sum(n.apply(p, x, jnp.zeros(1))[0, 0, 0])))
        reach[attends] = np.abs(np.asarray(first(x))[0, 20:, 20:]).max()
    assert reach[True] > 1e-5
    assert reach[False] == 0


@pytest.mark.parametrize(
    ("capability", "lengths", "options", "chosen"),
    [
        ("9.0", (4, 6), {}, "cudnn"),
        ("8.0", (4, 4), {"scale": 0.5}, "cudnn"),
        ("7.5", (4, 4), {}, None),
        ("gfx942", (4, 4), {}, None),  # AMD
        (None, (4, 4), {}, None),  # not a GPU
        ("9.0", (4, 5), {}, None),
        ("9.0", (1, 4), {}, None),
        ("9.0", (4, 4), {"dtype": jnp.float32}, None),
        ("9.0", (4, 4), {"features": 12}, None),
        ("9.0", (4, 4), {"features": 136}, None),
        ("9.0", (4, 4), {"mask": jax.ShapeDtypeStruct((2, 4), bool)}, None),
        ("9.0", (4, 4), {"bias": jax.ShapeDtypeStruct((1, 3, 4, 4), jnp.bfloat16)}, None),
    ],
)
def test_flash_attention_is_asked_for_only_where_it_works(monkeypatch, capability, lengths, options, chosen):
    device = types.SimpleNamespace() if capability is None else types.SimpleNamespace(compute_capability=capability)
    asked = []

    def product(q, k, v, *, implementation, **others):
        asked.append(implementation)
        return q

    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax.nn, "dot_product_attention", product)
    dtype, features = options.pop("dtype", jnp.bfloat16), options.pop("features", 16)
    q, k = (jax.ShapeDtypeStruct((2, n, 3, features), dtype) for n in lengths)
    arrays = {name: options.pop(name) for name in ("mask", "bias") if name in options}
    jax.eval_shape(lambda q, k, arrays: attention(q, k, k, **arrays, **options), q, k, arrays)
    assert asked == [chosen]


def test_group_norm_is_its_definition():
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * rng.normal(size=(2, 5, 4, 16)) * np.arange(1, 17), jnp.float32)
    modulation = jnp.asarray(rng.normal(size=(2, 32)), jnp.float32)
    params = perturbed(GroupNorm().init(KEY, x)["params"])
    groups = np.asarray(x, np.float64).reshape(2, 20, 4, 4)
    mean, std = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.std))
    weight, bias = (np.asarray(params[name]) for name in ("scale", "bias"))
    plain = ((groups - mean) / np.sqrt(std**2 + 1e-5)).reshape(x.shape) * weight + bias
    scale, shift = (m[:, None, None] for m in np.split(np.asarray(modulation), 2, axis=-1))
    apply = quick_jit(GroupNorm().apply)
    np.testing.assert_allclose(apply({"params": params}, x), plain, atol=1e-5)
    np.testing.assert_allclose(apply({"params": params}, x, modulation), plain * (1 + scale) + shift, atol=2e-5)


def test_norms_take_their_moments_in_float32():
    """Of bfloat16 features of mean 8: in float32 each norm is its definition to 1e-5, where bfloat16 moments are off by
    up to 0.3; in bfloat16 it is that, rounded once."""
    x = jnp.asarray(8 + np.random.default_rng(1).normal(size=(2, 5, 4, 8)), jnp.bfloat16)

    @quick_jit
    def norms(x):
        found = {}
        for dtype in ("float32", "bfloat16"):
            modules = {
                "group": GroupNorm(dtype=dtype, groups=2),
                "layer": layer_norm(dtype, name="norm"),
                "text": layer_norm(dtype, name="norm", epsilon=1e-5, affine=True, fast=True),
                "t5": rms_norm(dtype, name="norm"),
            }
            found[dtype] = {name: module.init_with_output(KEY, x)[0] for name, module in modules.items()}
        found["bfloat16"]["unit"] = unit_rms(x)
        return found

    def over_root(z, axes, epsilon):
        return z / np.sqrt(np.mean(z**2, axes, keepdims=True) + epsilon)

    z = np.asarray(x, np.float64)
    split, centred = z.reshape(2, 20, 2, 4), z - z.mean(-1, keepdims=True)
    truths = {
        "group": over_root(split - split.mean((1, 3), keepdims=True), (1, 3), 1e-5).reshape(z.shape),
        "layer": over_root(centred, -1, 1e-6),
        "text": over_root(centred, -1, 1e-5),
        "t5": over_root(z, -1, 1e-6),
        "unit": z / (np.sqrt(np.mean(z**2, -1, keepdims=True)) + 1e-4),
    }
    for dtype, found in norms(x).items():
        for name, answer in found.items():
            assert answer.dtype == dtype
            rounding = 2**-8 if dtype == "bfloat16" else 0
            np.testing.assert_allclose(
                np.asarray(answer, np.float64), truths[name], rtol=rounding, atol=1e-5, err_msg=name
            )


def test_residual_block_and_attention_are_their_definitions():
    """By NumPy, with other channels and two heads; at the start they are the identity, up to the change of channels."""
    rng = np.random.default_rng(2)
    x, emb = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 4, 3, 4), (2, 5)))
    block, attend = ResidualBlock(8, 0.0, True, jnp.float32), ImageAttention(jnp.float32, 4)

    @quick_jit
    def start(x, emb):
        y, first = block.init_with_output(KEY, x, emb)
        z, second = attend.init_with_output(KEY, y)
        return (y, z), first["params"], second["params"]

    @quick_jit
    def apply(first, second, x, emb):
        y = block.apply({"params": first}, x, emb)
        return y, attend.apply({"params": second}, y)

    def convolved(x, layer):
        kernel = np.asarray(layer["kernel"], np.float64)
        size, (h, w) = len(kernel), x.shape[1:3]
        padded = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
        return layer["bias"] + sum(
            padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(size) for j in range(size)
        )

    def normed(x, layer, groups):
        split = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
        split = split - split.mean((1, 3), keepdims=True)
        split = split / np.sqrt(np.mean(split**2, (1, 3), keepdims=True) + 1e-5)
        return split.reshape(x.shape) * layer["scale"] + layer["bias"]

    dense = lambda x, layer: x @ np.asarray(layer["kernel"], np.float64) + layer["bias"]
    silu = lambda x: x / (1 + np.exp(-x))

    (y, z), first, second = start(x, emb)
    np.testing.assert_allclose(y, convolved(np.asarray(x), first["skip"]), atol=1e-5)
    np.testing.assert_array_equal(z, y)
    kernel = np.asarray(first["conv_1"]["kernel"])
    assert abs(np.sqrt(np.mean(kernel**2) * 36) - 1) < 5 / np.sqrt(2 * kernel.size)  # of variance 1/fan_in

    first, second = (jax.tree.map(np.asarray, perturbed(params, size=0.3)) for params in (first, second))
    y, z = apply(first, second, x, emb)
    h = convolved(silu(normed(np.asarray(x, np.float64), first["norm_1"], 1)), first["conv_1"])
    scale, shift = np.split(dense(np.asarray(emb), first["modulate"])[:, None, None], 2, axis=-1)
    h = silu(normed(h, first["norm_2"], 2) * (1 + scale) + shift)
    by_hand = convolved(np.asarray(x, np.float64), first["skip"]) + convolved(h, first["conv_2"])
    np.testing.assert_allclose(y, by_hand, rtol=1e-4, atol=1e-4)
    h = normed(by_hand, second["group_norm"], 2)
    q, k, v = (dense(h, second[f"to_{name}"]).reshape(2, 12, 2, 4) for name in "qkv")
    weights = np.exp(np.einsum("bnhc,bmhc->bhnm", q, k) / 2)
    weights = weights / weights.sum(-1, keepdims=True)
    attended = np.einsum("bhnm,bmhc->bnhc", weights, v).reshape(y.shape)
    np.testing.assert_allclose(z, by_hand + dense(attended, second["to_out__0"]), rtol=1e-4, atol=1e-4)


def test_enlarge_repeats_pixels_and_cuts():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(enlarge(x, 3, 5)[0, :, :, 0], np.repeat(np.repeat(x[0, :, :, 0], 2, 0), 2, 1)[:3, :5])


def test_unet_takes_other_output_channels_and_single_pixels():
    network = small_unet(channels=(8, 8, 8), attention=(), out_channels=5)
    for size in ((7, 5), (1, 1)):
        x = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
        y = jax.eval_shape(lambda x: network.apply(network.init(KEY, x, jnp.zeros(2)), x, jnp.zeros(2)), x)
        assert y.shape == (2, *size, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": (7, 8)}, r"channels: .*\(7, 8\)"),
        ({"channels": ()}, "channels"),
        ({"blocks": 0}, "blocks: .* 0"),
        ({"attention": (2,)}, r"attention: levels are 0 \.\. 1"),
        ({"dropout": 1.0}, r"dropout: .* 1\.0"),
    ],
)
def test_unet_refuses_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        small_unet(**fields)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match=r"x: images .* \(3, 4\)"):
        small_unet().init(KEY, jnp.ones((3, 4)), C_NOISE)
    with pytest.raises(ValueError, match=r"width: .* 5"):
        MLP(width=5)
    with pytest.raises(ValueError, match="dropout"):
        MLP(dropout=-0.1)
