"""UNet2D beyond what the parity tests compare: filters, presets, conditions, rematerialisation, dtypes, refusals."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import perturbed, quick_jit

from diffjax import from_linen
from diffjax.interop import module_from_config, parameter_shapes
from diffjax.networks import (
    BINOMIAL,
    BOX,
    Fourier,
    Learned,
    Stage,
    Text,
    UNet2D,
    adm,
    blur,
    ddpm,
    ddpmpp,
    double,
    draw_parameters,
    halve,
    input_residual,
    input_skip,
    ncsnpp,
    output_residual,
    output_skip,
)

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 4, 3)), jnp.float32)
LEVEL = jnp.array([-0.5, 1.0])
LABELS = jnp.array([1, 3])
TINY = {"channels": (8, 16), "blocks": 1, "down": (Stage(), Stage(1)), "up": (Stage(1), Stage()), "groups": 4}


# --- filters ----------------------------------------------------------------------------------------------------------


def filtered(x, taps, before, after, stride=1):
    """One axis of n pixels, by the definition: a matrix, from convolution with each unit vector."""
    taps = np.asarray(taps) / np.sum(taps)
    columns = [np.convolve(np.pad(unit, (before, after)), taps, "valid")[::stride] for unit in np.eye(len(x))]
    return np.einsum("ij,j...->i...", np.stack(columns, axis=1), x)


def spread(x):
    """Zeros after every pixel of the first axis."""
    return np.stack([x, np.zeros_like(x)], axis=1).reshape(2 * len(x), *x.shape[1:])


def both_axes(f, x):
    """f of the first axis, along height and width of [b, h, w, c]."""
    x = np.moveaxis(f(np.moveaxis(x, 1, 0)), 0, 1)
    return np.moveaxis(f(np.moveaxis(x, 2, 0)), 0, 2)


@pytest.mark.parametrize("taps", [BOX, BINOMIAL, (1.0, 2.0, 5.0, 5.0, 2.0, 1.0)])
def test_filters_are_convolutions(taps):
    x, m = np.asarray(X, np.float64), len(taps) // 2
    halved, doubled, blurred = quick_jit(lambda x: (halve(x, taps), double(x, taps), blur(x, taps, (m, m))))(X)
    np.testing.assert_allclose(halved, both_axes(lambda x: filtered(x, taps, m - 1, m - 1, 2), x), atol=1e-6)
    np.testing.assert_allclose(doubled, both_axes(lambda x: 2 * filtered(spread(x), taps, m, m - 1), x), atol=1e-6)
    np.testing.assert_allclose(blurred, both_axes(lambda x: filtered(x, taps, m, m), x), atol=1e-6)


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (ddpm, 35.7),  # Ho et al. 2020, appendix B
        pytest.param(partial(ddpm, (128, 128, 256, 256, 512, 512), attention=(4,)), 114, marks=pytest.mark.slow),
        pytest.param(ddpmpp, 61.8, marks=pytest.mark.slow),  # as published weights have
        pytest.param(ncsnpp, 62.8, marks=pytest.mark.slow),
        pytest.param(adm, 296, marks=pytest.mark.slow),  # Dhariwal & Nichol 2021, table 4
    ],
)
def test_presets_have_the_papers_number_of_parameters(make, millions):
    module = make()
    cond = None if module.num_classes is None else jnp.zeros(1, int)
    shapes = jax.eval_shape(module.init, KEY, jnp.zeros((1, 32, 32, 3)), jnp.zeros(1), cond)
    digits = max(0, 2 - math.floor(math.log10(millions)))
    assert round(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6, digits) == millions


WITH_SKIPS = partial(ncsnpp, input_pyramid=input_skip, output_pyramid=output_skip)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ddpm, ddpmpp, WITH_SKIPS, adm])
def test_presets_in_small_start_as_zero_and_then_answer(make):
    fields = {"head_channels": 8} if make is adm else {}
    module = make((8, 16), attention=(1,), blocks=1, num_classes=3, **fields)
    network = from_linen(module)
    params, apply = network.init(KEY, X, LEVEL, LABELS), quick_jit(network.apply)
    np.testing.assert_array_equal(apply(params, X, LEVEL, LABELS), 0)
    y = apply(perturbed(params), X, LEVEL, LABELS)
    assert y.shape == X.shape
    assert 1e-2 < float(jnp.std(y)) < 1e2


# --- what every network does ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="tiny")
def _tiny():
    network = from_linen(UNet2D(**TINY, num_classes=3))
    return network, perturbed(network.init(KEY, X, LEVEL, LABELS)), quick_jit(network.apply)


def test_label_and_noise_level_matter_sample_by_sample(tiny):
    _, params, apply = tiny
    y = apply(params, X, LEVEL, LABELS)
    for other in (apply(params, X, LEVEL, jnp.array([1, 0])), apply(params, X, jnp.array([-0.5, 0.0]), LABELS)):
        change = np.abs(np.asarray(other - y)).max(axis=(1, 2, 3))
        assert change[0] == 0
        assert change[1] > 1e-3
    assert np.all(np.isnan(apply(params, X, LEVEL, jnp.array([1, 4]))[1]))


def test_parameters_come_from_one_draw():
    """The initialisers say their law, so `init` is traced once and never run: a second call would be compiling it."""
    residual = {"residual": True, "shortcut": True, "taps": BINOMIAL}
    down = (Stage(**residual, pyramid=input_residual), Stage(**residual, pyramid=input_skip))
    up = (Stage(1, **residual, pyramid=output_residual), Stage(**residual, pyramid=output_residual))
    for changes in ({"noise_features": Fourier()}, {"down": down, "up": up, "noise_features": Learned(10)}):
        calls = []
        module = UNet2D(**{**TINY, "num_classes": 3, "scale_shift": True, **changes})

        def init(key, module=module, calls=calls):
            calls.append(key)
            return module.init(key, X, LEVEL, LABELS)["params"]

        params = draw_parameters(KEY, init)
        assert len(calls) == 1
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_frequencies_are_never_trained():
    network = from_linen(
        UNet2D(channels=(8,), blocks=1, down=(Stage(),), up=(Stage(),), middle=None, noise_features=Fourier())
    )
    params = perturbed(network.init(KEY, X, LEVEL))
    gradient = quick_jit(jax.grad(lambda p: jnp.sum(network.apply(p, X, LEVEL) ** 2)))(params)
    assert not np.any(gradient["time_proj"]["scale"])
    assert np.any(gradient["time_embedding"]["linear_1"]["kernel"])
    assert np.std(network.init(KEY, X, LEVEL)["time_proj"]["scale"]) > 4  # 16 in law


@pytest.mark.slow
def test_remat_changes_neither_parameters_nor_gradient():
    fields = {"channels": (8,), "blocks": 1, "down": (Stage(1),), "up": (Stage(),), "middle": None, "dropout": 0.2}
    plain, again = (from_linen(UNet2D(**fields, remat=remat)) for remat in (False, True))
    params = perturbed(plain.init(KEY, X, LEVEL))
    assert jax.tree.structure(again.init(KEY, X, LEVEL)) == jax.tree.structure(params)
    losses = [lambda p, n=n: jnp.mean(n.apply(p, X, LEVEL, key=KEY) ** 2) for n in (plain, again)]
    first, second = (quick_jit(jax.grad(loss))(params) for loss in losses)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), second, first)
    assert ["remat" in str(jax.make_jaxpr(loss)(params)) for loss in losses] == [False, True]


@pytest.mark.slow
def test_a_text_is_attended_to_token_by_token():
    network = from_linen(UNet2D(channels=(8,), blocks=1, down=(Stage(),), up=(Stage(),), groups=4, text_width=6))
    words = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 6)), jnp.float32)
    mask = jnp.array([[True, True, False], [False, False, False]])
    params = perturbed(network.init(KEY, X, LEVEL, Text(words, mask)))
    apply = quick_jit(lambda words, mask: network.apply(params, X, LEVEL, Text(words, mask)))
    y = apply(words, mask)
    # Padding does not matter, tokens do; without any, no word matters: the null token takes their place.
    np.testing.assert_allclose(apply(words.at[0, 2].add(9.0).at[1].add(9.0), mask), y, atol=1e-6)
    assert np.abs(apply(words.at[0, 1].add(1.0), mask) - y)[0].max() > 1e-2
    # The order of tokens does not matter, which of their features go together does: a mean alone would not see it.
    np.testing.assert_allclose(apply(words[:, jnp.array([1, 0, 2])], mask), y, atol=1e-5)
    mixed = words.at[0, 0, 0].set(words[0, 1, 0]).at[0, 1, 0].set(words[0, 0, 0])
    assert np.abs(apply(mixed, mask) - y)[0].max() > 1e-3


@pytest.mark.slow
def test_bfloat16_is_close_and_the_output_float32(tiny):
    _, params, apply = tiny
    rough = from_linen(UNet2D(**TINY, num_classes=3, dtype=jnp.bfloat16))
    y, expected = quick_jit(rough.apply)(params, X, LEVEL, LABELS), apply(params, X, LEVEL, LABELS)
    assert y.dtype == jnp.float32
    assert 1e-4 < float(jnp.sqrt(jnp.mean((y - expected) ** 2) / jnp.mean(expected**2))) < 3e-2


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ()}, "channels: .* got"),
        ({"channels": (8,)}, "down: one stage a level is needed, 1, got 2"),
        ({"down": (Stage(), Stage(2))}, "down: at most one attention a block, 1, got 2"),
        ({"up": (Stage(3), Stage())}, "up: at most one attention a block, 2, got 3"),
        ({"blocks": 0}, "blocks|attention"),
        ({"head_channels": 17}, r"head_channels: 1 \.\. 16"),
        ({"dropout": 1.0}, "dropout"),
        ({"text_width": 8, "text_use": "mean"}, "text_use: one of both, pooled, attention is needed, got .mean."),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        UNet2D(**{**TINY, **changes})


def test_bad_arguments_are_named(tiny):
    network, params, _ = tiny
    init = lambda x, cond=None, **fields: jax.eval_shape(UNet2D(**{**TINY, **fields}).init, KEY, x, LEVEL, cond)
    with pytest.raises(ValueError, match=r"channels: for 2 levels .* multiples of 2, got shape \(2, 7, 4, 3\)"):
        init(X[:, :7])
    with pytest.raises(ValueError, match=r"x: images"):
        init(X[0])
    with pytest.raises(ValueError, match=r"cond: a float \[b\] or a vector \[b, 32\]"):
        init(X, jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="set num_classes"):
        init(X, LABELS)
    with pytest.raises(ValueError, match="3 is the null label"):
        network.apply(params, X, LEVEL)
    with pytest.raises(ValueError, match=r"groups: a divisor of 8 channels .* 3"):
        init(X, down=(Stage(groups=3), Stage()))
    with pytest.raises(ValueError, match=r"attention: levels are 0 \.\. 1, got \(2,\)"):
        ddpm((8, 16), attention=(2,))


CONFIG = {
    "_class_name": "UNet2DModel",
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"down_block_types": ["KDownBlock2D"]},
            "f.json: down_block_types has 'KDownBlock2D'; diffjax has DownBlock2D",
        ),
        ({"up_block_types": ["DownBlock2D"]}, "f.json: up_block_types has 'DownBlock2D'"),
        ({"up_block_types": ["UpBlock2D"] * 2}, "f.json: up_block_types has 2 entries, block_out_channels 1"),
        ({"act_fn": "tanh"}, "f.json: act_fn is 'tanh'; diffjax has 'silu'"),
        ({"downsample_padding": 2}, "f.json: downsample_padding is 2"),
        ({"resnet_time_scale_shift": "spatial"}, "f.json: resnet_time_scale_shift is 'spatial'"),
        ({"time_embedding_type": "learned"}, "f.json: time_embedding_type 'learned' needs num_train_timesteps"),
        ({"attention_head_dim": 9}, "f.json: head_channels"),
        ({"cross_attention_dim": 8}, "f.json: unknown key cross_attention_dim"),
    ],
)
def test_configurations_that_we_do_not_have_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        module_from_config({**CONFIG, **changes}, where="f.json")


def test_an_old_spelling_of_blocks_and_a_writers_note_are_read():
    config = {**CONFIG, "down_block_types": ["UNetResDownBlock2D"], "sample_size": 32}
    assert module_from_config(config) == module_from_config(CONFIG)
    config |= {"norm_num_groups": 4}
    assert set(parameter_shapes(module_from_config(config), config)) >= {"conv_in", "conv_out"}
