"""EDM2's network keeps magnitudes, and does what its docstring says (float32); its parity is in tests/parity."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import perturbed, quick_jit

from diffjax import from_linen, training
from diffjax.networks import (
    EDM2UNet,
    MPConv,
    MPLabels,
    draw_parameters,
    mp_concatenate,
    mp_silu,
    mp_sum,
    normalise_weights,
    unit_rms,
)

KEY = jax.random.key(0)
FIELDS = {"channels": (8, 16), "blocks": 1, "attention": (1,), "head_channels": 8, "num_classes": 3}
IMAGE = jnp.asarray(np.random.default_rng(5).normal(size=(3, 8, 4, 2)), jnp.float32)
C_NOISE = jnp.array([-1.0, 0.0, 1.0])
LABELS = jnp.array([0, 1, 3])


def mean_square(x):
    return np.mean(np.square(np.asarray(x, np.float64)))


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_sums_and_concatenations_of_unit_parts_are_unit(t):
    a, b = np.array([[1.0, 1.0, -1.0, -1.0]]), np.array([[1.0, -1.0, 1.0, -1.0]])  # orthogonal
    np.testing.assert_allclose(mean_square(mp_sum(a, b, t)), 1, rtol=1e-6)
    both = mp_concatenate(a, np.tile(b, 3), t)
    np.testing.assert_allclose(mean_square(both), 1, rtol=1e-6)
    np.testing.assert_allclose(np.sum(both[:, :4] ** 2) / np.sum(both[:, 4:] ** 2), ((1 - t) / t) ** 2, rtol=1e-5)


def test_silu_of_a_standard_normal_is_unit():
    z = np.linspace(-12, 12, 4001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(np.trapezoid(density * np.asarray(mp_silu(z), float) ** 2, z), 1, atol=2e-3)


def test_layers_keep_magnitude_whatever_their_weights():
    """Averaged over inputs that are sqrt(n) times each unit vector, every output has mean square 1."""
    x = np.sqrt(6) * np.eye(6, dtype=np.float32)
    kernel = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * np.arange(1, 6)
    y = MPConv(5, 0, jnp.float32).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(np.mean(np.square(y), axis=0), 1, rtol=2e-3)
    y = MPLabels(6, 5, jnp.float32).apply({"params": {"kernel": kernel}}, np.arange(6))
    np.testing.assert_allclose(np.mean(np.square(y), axis=0), 1, rtol=2e-3)
    np.testing.assert_allclose(mean_square(unit_rms(jnp.asarray(kernel), (0, 1))), 1, rtol=1e-3)


@pytest.fixture(scope="module", name="made")
def _made():
    """The network, its parameters with all gains off zero, and its compiled apply."""
    network = from_linen(EDM2UNet(**FIELDS, dropout=0.3))
    params = network.init(KEY, IMAGE, C_NOISE, LABELS)
    params = jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.float32(0.7), params)
    return network, params, quick_jit(network.apply)


@pytest.mark.slow
def test_activations_stay_unit_through_the_network():
    """Untrained, on noise images: every layer's output has a root mean square from 1/2 to 2, over thirty layers.

    It is not quite 1: zeros beyond the border count, and attention averages. Plain SiLU would lose 0.6 a layer, weights
    that are not normalised gain 12.
    """
    module = EDM2UNet(channels=(16, 16), blocks=1, attention=(1,), head_channels=16)
    x, c_noise = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32), jnp.arange(4.0)
    params = from_linen(module).init(KEY, x, c_noise) | {"gain": jnp.ones(())}
    seen = quick_jit(lambda p: module.apply({"params": p}, x, c_noise, capture_intermediates=True)[1])(params)
    found = {
        jax.tree_util.keystr(path[1:-2], simple=True, separator="/"): np.sqrt(mean_square(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(seen)[0]
    }
    assert len(found) > 30  # layers
    outside = {name: rms for name, rms in found.items() if not 0.5 < rms < 2}
    assert outside == {}


@pytest.mark.slow
def test_weights_matter_by_direction_alone_and_are_put_back(made):
    _, params, apply = made
    y = np.asarray(apply(params, IMAGE, C_NOISE, LABELS))
    assert y.std() > 0.1
    kernels = lambda tree, f: jax.tree_util.tree_map_with_path(
        lambda path, leaf: f(leaf) if path[-1].key == "kernel" else leaf, tree
    )
    grown = kernels(params, lambda leaf: 5 * np.asarray(leaf))
    np.testing.assert_allclose(apply(grown, IMAGE, C_NOISE, LABELS), y, atol=3e-3)
    back = quick_jit(normalise_weights)(grown)
    np.testing.assert_allclose(apply(back, IMAGE, C_NOISE, LABELS), y, atol=3e-3)
    kernels(back, lambda leaf: np.testing.assert_allclose([mean_square(k) for k in np.asarray(leaf).T], 1, rtol=1e-3))
    np.testing.assert_array_equal(back["told"]["fourier"]["phases"], grown["told"]["fourier"]["phases"])
    np.testing.assert_array_equal(back["gain"], grown["gain"])


def test_projected_ends_every_update_on_the_set():
    """Two steps of momentum by hand, each followed by the projection."""
    project = lambda tree: {"w": tree["w"] / jnp.linalg.norm(tree["w"])}
    tx = training.projected(optax.sgd(0.5, momentum=0.9), project)
    params, gradients = {"w": jnp.array([0.6, 0.8])}, [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    state, w, m = tx.init(params), np.array([0.6, 0.8]), np.zeros(2)
    for gradient in gradients:
        updates, state = tx.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        m = 0.9 * m + gradient
        w = (w - 0.5 * m) / np.linalg.norm(w - 0.5 * m)
        np.testing.assert_allclose(params["w"], w, rtol=1e-6)


def test_conditions_matter_sample_by_sample(made):
    network, params, apply = made
    y = np.asarray(apply(params, IMAGE, C_NOISE, LABELS))
    for other in (
        apply(params, IMAGE, C_NOISE, jnp.array([0, 2, 3])),
        apply(params, IMAGE, jnp.array([-1.0, 0.2, 1.0]), LABELS),
    ):
        change = np.abs(other - y).max(axis=(1, 2, 3))
        assert change[1] > 1e-3
        np.testing.assert_array_equal(change[[0, 2]], 0)
    assert np.all(np.isnan(np.asarray(apply(params, IMAGE, C_NOISE, jnp.array([-1, 4, 5])))))
    with pytest.raises(ValueError, match=r"0 \.\. 3"):
        network.apply(params, IMAGE, C_NOISE, jnp.array([0, 1, 4]))
    with pytest.raises(ValueError, match="3 is the null label"):
        network.apply(params, IMAGE, C_NOISE)


def test_starts_at_zero_by_one_draw_and_bfloat16(monkeypatch):
    """One draw makes all parameters: the initialisation that runs the network is never called."""
    module = EDM2UNet(**FIELDS, dtype=jnp.bfloat16, remat=True, out_channels=5)
    monkeypatch.setattr(jax, "jit", None)
    params = draw_parameters(KEY, lambda *args: module.init(*args)["params"], IMAGE, C_NOISE, LABELS)
    monkeypatch.undo()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert params["gain"] == 0
    y = jax.eval_shape(module.apply, {"params": params}, IMAGE, C_NOISE, LABELS)
    assert (y.shape, y.dtype) == ((3, 8, 4, 5), jnp.float32)


@pytest.mark.slow
def test_dropout_and_gradients_with_and_without_remat(made):
    """The same gradient, which reaches all but the fixed waves, and is orthogonal to every kernel."""
    _, params, apply = made
    found = []
    for remat in (False, True):
        network = from_linen(EDM2UNet(**FIELDS, dropout=0.3, remat=remat))
        loss = lambda p, n=network: jnp.sum(n.apply(p, IMAGE, C_NOISE, LABELS, key=KEY) ** 2)
        found.append(quick_jit(jax.value_and_grad(loss))(params))
    (value, gradient), (_, again) = found
    assert abs(value - np.sum(np.square(apply(params, IMAGE, C_NOISE, LABELS)))) > 1e-2 * value
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), gradient, again)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.any(leaf) != (path[1].key == "fourier" if len(path) > 1 else False), path
        if path[-1].key == "kernel":
            kernel = params
            for entry in path:
                kernel = kernel[entry.key]
            axes = tuple(range(leaf.ndim - 1))
            inner, size = np.sum(leaf * kernel, axis=axes), np.linalg.norm(leaf) * np.linalg.norm(kernel)
            assert np.abs(inner).max() < 1e-3 * size


@pytest.mark.slow
def test_bfloat16_is_close_to_float32():
    exact, rough = (from_linen(EDM2UNet(**FIELDS, dtype=dtype)) for dtype in (jnp.float32, jnp.bfloat16))
    params = perturbed(exact.init(KEY, IMAGE, C_NOISE, LABELS))
    expected, y = (quick_jit(n.apply)(params, IMAGE, C_NOISE, LABELS) for n in (exact, rough))
    error = np.sqrt(mean_square(y - expected) / mean_square(expected))
    assert 1e-4 < error < 5e-2


@pytest.mark.slow
def test_a_vector_is_a_condition():
    network = from_linen(EDM2UNet(**FIELDS | {"num_classes": None}))
    cond = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    params = jax.tree.map(lambda a: a if a.ndim else a + 1, network.init(KEY, IMAGE, C_NOISE, cond))
    apply = quick_jit(network.apply)
    y = apply(params, IMAGE, C_NOISE, cond)
    change = np.abs(np.asarray(apply(params, IMAGE, C_NOISE, cond.at[1, 2].add(1.0)) - y)).max(axis=(1, 2, 3))
    assert change[1] > 1e-3
    np.testing.assert_array_equal(change[[0, 2]], 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": (0, 8)}, r"channels: .*\(0, 8\)"),
        ({"channels": ()}, "channels"),
        ({"blocks": 0}, r"blocks: .* 0"),
        ({"attention": (2,)}, r"attention: levels are 0 \.\. 1"),
        ({"head_channels": 5}, "head_channels: a divisor of level 1's 16"),
        ({"dropout": 1.0}, r"dropout: .* 1\.0"),
        ({"skip_balance": 1.0}, r"skip_balance: .* 1\.0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EDM2UNet(**FIELDS | fields)


def test_sizes_that_do_not_halve_are_refused():
    advice = r"take 1 level or fewer, or pad the images to 8 x 4"
    with pytest.raises(
        ValueError,
        match=rf"^channels: for 2 levels .* multiples of 2, got shape \(3, 7, 4, 2\), images of 7 x 4; {advice}",
    ):
        EDM2UNet(**FIELDS).init(KEY, jnp.zeros((3, 7, 4, 2)), C_NOISE, LABELS)
