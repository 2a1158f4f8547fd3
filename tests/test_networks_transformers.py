"""DiT, U-ViT and T5: what their docstrings say (float32); that they equal torch's is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import dropouts, perturbed, quick_jit
from texts import C_NOISE, IMAGE, KEY, RNG, TEXT, WITH_TEXT

from diffjax import from_linen
from diffjax.interop import to_params, to_tensors
from diffjax.networks import (
    DiT,
    T5Encoder,
    UViT,
    dit_b,
    dit_l,
    dit_s,
    dit_xl,
    draw_parameters,
    relative_buckets,
    rotate,
    rotation_angles,
)


@pytest.mark.parametrize("name", list(WITH_TEXT))
def test_start_at_zero_by_one_draw_and_bfloat16(name, monkeypatch):
    """One draw makes all parameters: the initialisation that runs the network is never called."""
    module = WITH_TEXT[name](dtype=jnp.bfloat16, remat=True)
    monkeypatch.setattr(jax, "jit", None)
    params = draw_parameters(KEY, lambda *args: module.init(*args)["params"], IMAGE, C_NOISE, TEXT)
    monkeypatch.undo()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = jax.eval_shape(module.apply, {"params": params}, IMAGE, C_NOISE, TEXT)
    assert (y.shape, y.dtype) == (IMAGE.shape, jnp.float32)
    ends = ["final_layer"] if name == "uvit" else ["proj_out_1", "proj_out_2"]
    assert not any(np.any(leaf) for end in ends for leaf in jax.tree.leaves(params[end]))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WITH_TEXT))
def test_scan_and_remat_change_neither_value_nor_gradient(name):
    found = []
    for options in ({}, {"scan": True, "remat": True}):
        network = from_linen(WITH_TEXT[name](**options))
        shapes = jax.eval_shape(network.init, KEY, IMAGE, C_NOISE, TEXT)
        if not found:
            tensors = to_tensors(perturbed(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), size=0.3))
        params = jax.tree.map(jnp.asarray, to_params(tensors, shapes))
        loss = lambda params, network=network: jnp.sum(network.apply(params, IMAGE, C_NOISE, TEXT) ** 2)
        value, gradient = quick_jit(jax.value_and_grad(loss))(params)
        found.append((value, to_tensors(gradient)))
    (value, gradient), (same_value, same_gradient) = found
    np.testing.assert_allclose(same_value, value, rtol=1e-5)
    assert gradient.keys() == same_gradient.keys()
    for key, expected in gradient.items():
        assert np.any(expected), key
        np.testing.assert_allclose(same_gradient[key], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def residual_bytes(module, images):
    """Bytes that a gradient keeps for the backward pass beside the parameters, for so many 32 x 32 x 4 latents."""

    def total(n):
        x, c_noise = jax.ShapeDtypeStruct((n, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.float32)
        params = jax.eval_shape(module.init, KEY, x, c_noise)
        kept = jax.eval_shape(lambda *args: jax.vjp(module.apply, *args)[1], params, x, c_noise)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))

    return total(2 * images) - total(images)


def test_remat_of_dit_b2_keeps_less_than_half_of_the_activations():
    """Abstract: nothing is compiled. 3.3 GiB of 8 images become 0.1; compiled, 3.4 become 0.4."""
    plain, again = (residual_bytes(dit_b(2, remat=remat), 8) for remat in (False, True))
    assert plain > 12 * 8 * 256 * 768 * 4  # it does count: at least what enters each block
    assert again < 0.5 * plain


@pytest.mark.slow
def test_remat_of_dit_b2_halves_what_the_compiled_gradient_needs():
    found = []
    for remat in (False, True):
        module = dit_b(2, remat=remat)
        x, c_noise = jax.ShapeDtypeStruct((8, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.float32)
        params = jax.eval_shape(module.init, KEY, x, c_noise)
        loss = lambda params, x, c_noise, module=module: jnp.sum(module.apply(params, x, c_noise) ** 2)
        memory = quick_jit(jax.grad(loss)).lower(params, x, c_noise).compile().memory_analysis()
        found.append(memory.temp_size_in_bytes)
    assert found[1] < 0.5 * found[0]


@pytest.mark.parametrize(("make", "millions"), [(dit_s, 32.96), (dit_b, 130.51), (dit_l, 458.10), (dit_xl, 675.13)])
def test_sizes_are_those_of_the_paper(make, millions):
    """Peebles & Xie 2023, table 4: /2, a thousand classes, 8 channels out; their fixed positions are counted."""
    module = make(2, num_classes=1000, out_channels=8)
    x, c_noise, label = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(module.init, KEY, x, c_noise, label)
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) + 256 * module.width
    assert abs(count / 1e6 - millions) < 0.01 * millions


def test_rotation_knows_distances_alone():
    rows, columns, k = 4, 5, 8
    q, key = (np.asarray(RNG.normal(size=k), np.float32) for _ in range(2))
    angles = jnp.asarray(rotation_angles(rows, columns, k, 100.0), jnp.float32)
    turned_q, turned_k = (np.asarray(rotate(jnp.tile(v, (1, rows * columns, 1, 1)), angles))[0, :, 0] for v in (q, key))
    logits = (turned_q @ turned_k.T).reshape(rows, columns, rows, columns)
    np.testing.assert_allclose(logits[1:, 2:, 1:, 2:], logits[:-1, :-2, :-1, :-2], atol=1e-5)
    assert np.abs(logits[0, 0] - logits[0, 0, 0, 0]).max() > 0.1
    np.testing.assert_allclose(logits[0, 0, 0, 0], q @ key, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 18, "heads": 3}, "width: a multiple of 4 .* 18"),
        ({"heads": 5}, "width: .* heads=5"),
        ({"depth": 0}, "depth: .* 0"),
        ({"patch": 0}, "patch: .* 0"),
        ({"rope": 0.5}, "rope: a base above 1"),
        ({"width": 24, "heads": 4, "rope": 100.0}, "rope: .* 24/4"),
        ({"joint": True}, "joint: two streams need a text_width"),
        ({"joint": True, "text_width": 5, "emb_per_block": True}, "joint: .* emb_per_block"),
        ({"dropout": 1.0}, r"dropout: .* 1\.0"),
    ],
)
def test_dit_refuses_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        DiT(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 15, "heads": 3}, "width: an even multiple .* 15"),
        ({"depth": 4}, "depth: an odd number .* 4"),
        ({"num_classes": 3, "text_width": 5}, "num_classes=3"),
    ],
)
def test_uvit_refuses_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        UViT(**fields)


def test_a_patch_that_does_not_divide_the_image_is_named_with_those_that_do():
    for module in (DiT(width=8, depth=1, heads=1, patch=3), UViT(width=8, depth=3, heads=1, patch=3)):
        advice = "images of 8 x 8; take a patch of 1 or 2 or 4 or 8, or pad the images to 9 x 9"
        with pytest.raises(ValueError, match=rf"^patch: .* multiples of patch=3, got shape \(1, 8, 8, 2\), {advice}"):
            jax.eval_shape(module.init, KEY, jnp.zeros((1, 8, 8, 2)), C_NOISE[:1])


def test_sizes_that_do_not_fit_are_refused():
    for module in (DiT(width=8, depth=1, heads=1, learned_positions=True), UViT(width=8, depth=3, heads=1)):
        params = jax.eval_shape(module.init, KEY, IMAGE, C_NOISE)
        with pytest.raises(ValueError, match=r"^patch: .* multiples of patch=2, got shape \(3, 5, 6, 2\), .* of 5 x 6"):
            jax.eval_shape(module.apply, params, jnp.ones((3, 5, 6, 2)), C_NOISE)
        with pytest.raises(ValueError, match="the learned positions are for"):
            jax.eval_shape(module.apply, params, jnp.ones((3, 8, 6, 2)), C_NOISE)
        with pytest.raises(ValueError, match="x: images"):
            module.init(KEY, jnp.ones((3, 4)), C_NOISE)
    with pytest.raises(ValueError, match="cond: None is needed"):
        UViT(width=8, depth=3, heads=1).init(KEY, IMAGE, C_NOISE, jnp.ones((3, 2)))


# --- T5 ---------------------------------------------------------------------------------------------------------------


def test_t5_does_not_see_padding_and_knows_its_ids():
    module = T5Encoder(vocabulary=7, width=8, depth=2, heads=2, head_channels=3, hidden=5, gated=True)
    ids = jnp.array([[1, 2, 3, 0], [4, 5, 6, 1]])
    mask = jnp.array([[True, True, True, False], [True, True, True, True]])
    params = perturbed(draw_parameters(KEY, module.init, ids, mask))
    apply = quick_jit(module.apply)
    y = apply(params, ids, mask)
    assert (y.shape, y.dtype) == ((2, 4, 8), jnp.float32)
    padded = np.asarray(apply(params, ids.at[0, 3].set(6), mask)) - y
    np.testing.assert_array_equal(padded[0, :3], 0)
    assert np.abs(padded[0, 3]).max() > 1e-3
    assert np.abs(np.asarray(apply(params, ids.at[1, 3].set(6), mask)) - y)[1, 0].max() > 1e-5
    unknown = np.asarray(apply(params, ids.at[0, 0].set(7), mask))
    assert np.all(np.isnan(unknown[0]))
    assert np.all(np.isfinite(unknown[1]))
    rough = jax.eval_shape(module.clone(dtype=jnp.bfloat16, remat=True).apply, params, ids, mask)
    assert rough.dtype == jnp.float32
    with pytest.raises(ValueError, match="ids: integers"):
        module.init(KEY, jnp.ones((2, 4)), mask)
    with pytest.raises(ValueError, match="mask: booleans"):
        module.init(KEY, ids, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"buckets: .* 3"):
        T5Encoder(buckets=3)
    with pytest.raises(ValueError, match=r"distance: .* 8"):
        T5Encoder(distance=8)


def test_t5_drops_features_where_it_says():
    module = T5Encoder(vocabulary=7, width=8, depth=2, heads=2, head_channels=3, hidden=5, dropout=0.3)
    ids = jnp.array([[1, 2, 3], [1, 2, 3]])
    params = perturbed(draw_parameters(KEY, module.init, ids))
    train = lambda key: module.apply(params, ids, deterministic=False, rngs={"dropout": key})

    with dropouts() as places:
        jax.eval_shape(train, KEY)
    stack = (("encoder", 0), ("encoder", 1))  # after the table and the last norm
    assert places == {*stack, ("layer__0", 0), ("layer__1", 0), ("layer__1/DenseReluDense", 0)}

    first, again, other = map(quick_jit(train), (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - other).max() > 1e-2
    assert np.abs(np.asarray(first)[0] - first[1]).max() > 1e-2  # each sample its own
    with dropouts() as places:
        jax.eval_shape(module.apply, params, ids)
    assert places == set()
    with pytest.raises(ValueError, match=r"dropout: .* 1\.0"):
        T5Encoder(dropout=1.0)


def test_t5_buckets_are_the_formula():
    """Raffel et al. 2020, section 2.1: one by one to 8, then logarithmic to 128, each sign its own half."""
    table = relative_buckets(200, 32, 128)
    for row, column in [(0, 0), (5, 0), (0, 5), (9, 0), (0, 15), (50, 0), (0, 127), (199, 0), (0, 199)]:
        d = abs(column - row)
        expected = d if d < 8 else min(15, 8 + int(np.floor(8 * np.log(d / 8) / np.log(16) + 1e-6)))
        assert table[row, column] == expected + (16 if column > row else 0)
