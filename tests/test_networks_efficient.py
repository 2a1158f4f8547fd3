"""Efficient U-Net does what its docstring says (float32); its parity is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import perturbed, quick_jit

from diffjax import Diffusion, VariancePreserving, classifier_free, from_linen, make_denoiser
from diffjax.interop import to_params, to_tensors
from diffjax.networks import Cascade, EfficientUNet, Text, draw_parameters
from diffjax.parameterisation import EDMPrediction

KEY = jax.random.key(0)
FIELDS = {
    "channels": (8, 16),
    "blocks": (1, 3),
    "strides": (2, 2),
    "attention": (1,),
    "text_attention": (1,),
    "head_channels": 8,
    "text_width": 5,
    "low_resolution": True,
    "num_classes": 3,
    "dropout": 0.3,
}
RNG = np.random.default_rng(3)
IMAGE = jnp.asarray(RNG.normal(size=(3, 7, 6, 2)), jnp.float32)  # odd sizes
C_NOISE = jnp.array([-1.0, 0.0, 1.0])
MASK = np.array([[True, True, False], [True, False, False], [False, False, False]])
TEXT = Text(jnp.asarray(RNG.normal(size=(3, 3, 5)), jnp.float32), jnp.asarray(MASK))
COND = Cascade(
    TEXT, jnp.asarray(RNG.normal(size=(3, 4, 3, 2)), jnp.float32), jnp.array([-0.5, 0.0, 0.5]), jnp.array([0, 1, 3])
)


@pytest.fixture(scope="module", name="made")
def _made():
    """The network with scan, its parameters off zero, and its compiled apply."""
    network = from_linen(EfficientUNet(**FIELDS, scan=True))
    params = perturbed(network.init(KEY, IMAGE, C_NOISE, COND), size=0.2)
    return network, params, quick_jit(network.apply)


def changes(a, b):
    return np.abs(np.asarray(a) - b).max(axis=(1, 2, 3))


@pytest.mark.slow
def test_every_condition_matters_sample_by_sample(made):
    _, params, apply = made
    y = np.asarray(apply(params, IMAGE, C_NOISE, COND))
    assert y.shape == IMAGE.shape
    words = COND._replace(text=TEXT._replace(embedding=TEXT.embedding.at[:, 0, 0].add(1.0)))
    moved = changes(apply(params, IMAGE, C_NOISE, words), y)
    assert np.all(moved[:2] > 1e-3)
    assert moved[2] == 0  # no token is there: the null token is all that is seen
    hidden = COND._replace(text=TEXT._replace(embedding=TEXT.embedding.at[:, 2].set(9.0)))
    np.testing.assert_array_equal(changes(apply(params, IMAGE, C_NOISE, hidden), y), 0)
    for cond in (
        COND._replace(low_resolution=COND.low_resolution.at[1, 0, 0].add(1.0)),
        COND._replace(noise_level=COND.noise_level.at[1].add(0.2)),
        COND._replace(label=jnp.array([0, 2, 3])),
    ):
        moved = changes(apply(params, IMAGE, C_NOISE, cond), y)
        assert moved[1] > 1e-3
        np.testing.assert_array_equal(moved[[0, 2]], 0)
    assert changes(apply(params, IMAGE, C_NOISE.at[1].add(0.2), COND), y)[1] > 1e-3
    renulled = params | {"text": jax.tree.map(lambda leaf: leaf.at[0].add(1.0), params["text"])}
    moved = changes(apply(renulled, IMAGE, C_NOISE, COND), y)
    assert moved[2] > 1e-3
    np.testing.assert_array_equal(moved[:2], 0)


def test_wrong_conditions_are_refused(made):
    network, params, _ = made
    for cond, message in [
        (None, "cond: a Cascade with text, label, low_resolution, noise_level is needed, got NoneType"),
        (TEXT, "cond: a Cascade.* got Text"),
        (COND._replace(label=None), "cond: labels are needed"),
        (COND._replace(label=jnp.array([0, 4, 0])), "cond: labels must be within 0 .. 3"),
        (COND._replace(text=None), "cond: a Text"),
        (COND._replace(noise_level=None), "cond: a Cascade"),
        (COND._replace(low_resolution=jnp.zeros((3, 8, 6, 2))), r"no larger than x \(3, 7, 6, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            network.apply(params, IMAGE, C_NOISE, cond)
    plain = EfficientUNet(**FIELDS | {"text_width": None, "low_resolution": False, "num_classes": None})
    for cond, message in [
        (TEXT, "text_width=None"),
        (COND, "low_resolution=False"),
        (Cascade(TEXT), "text_width=None"),
        (Cascade(label=COND.label), "num_classes=None"),
    ]:
        with pytest.raises(ValueError, match=message):
            plain.init(KEY, IMAGE, C_NOISE, cond)
    with pytest.raises(ValueError, match=r"x: images .* \(3, 4\)"):
        plain.init(KEY, jnp.zeros((3, 4)), C_NOISE)


def test_starts_at_zero_by_one_draw_and_bfloat16(monkeypatch):
    """One draw makes all parameters: the initialisation that runs the network is never called."""
    module = EfficientUNet(**FIELDS, dtype=jnp.bfloat16, remat=True, out_channels=5)
    monkeypatch.setattr(jax, "jit", None)
    params = draw_parameters(KEY, lambda *args: module.init(*args)["params"], IMAGE, C_NOISE, COND)
    monkeypatch.undo()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params["out"]))
    y = jax.eval_shape(module.apply, {"params": params}, IMAGE, C_NOISE, COND)
    assert (y.shape, y.dtype) == ((3, 7, 6, 5), jnp.float32)


def test_a_condition_alone_needs_no_cascade():
    alone = EfficientUNet(**FIELDS | {"text_width": None, "low_resolution": False})
    shapes = [jax.eval_shape(alone.init, KEY, IMAGE, C_NOISE, c) for c in (COND.label, Cascade(label=COND.label))]
    assert shapes[0] == shapes[1]
    both = alone.clone(text_width=5)
    with pytest.raises(ValueError, match=r"cond: integer labels of shape \(3,\) are needed, got Text"):
        alone.init(KEY, IMAGE, C_NOISE, TEXT)
    with pytest.raises(ValueError, match="cond: a Cascade with text, label is needed, got Text"):
        both.init(KEY, IMAGE, C_NOISE, TEXT)
    jax.eval_shape(both.init, KEY, IMAGE, C_NOISE, Cascade(TEXT, label=COND.label))


@pytest.mark.slow
def test_is_a_denoiser_with_guidance(made):
    """The null of the text, beside the same low-resolution image: at scale 0 it is the network without text."""
    network, params, _ = made
    diffusion = Diffusion(network, VariancePreserving(), EDMPrediction())
    null = COND._replace(text=Text(0.0, False))
    guided = classifier_free(make_denoiser(diffusion, params, COND), null, 0.0)
    empty = COND._replace(text=Text(TEXT.embedding, jnp.zeros((3, 3), bool)))
    t = jnp.array([0.3, 0.5, 0.7])
    run = quick_jit(lambda denoiser, x, t: denoiser(x, t))
    np.testing.assert_allclose(
        run(guided, IMAGE, t), run(make_denoiser(diffusion, params, empty), IMAGE, t), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_scan_and_remat_give_the_same_values_and_gradients(made):
    _, params, apply = made
    y = apply(params, IMAGE, C_NOISE, COND)
    written = from_linen(EfficientUNet(**FIELDS, remat=True))
    shapes = jax.eval_shape(written.init, KEY, IMAGE, C_NOISE, COND)
    out = jax.tree.map(jnp.asarray, to_params(to_tensors(params), shapes))
    loss = lambda n: lambda p: (jnp.sum((z := n.apply(p, IMAGE, C_NOISE, COND)) ** 2), z)
    again = from_linen(EfficientUNet(**FIELDS, scan=True))
    (_, z), slope = quick_jit(jax.value_and_grad(loss(written), has_aux=True))(out)
    np.testing.assert_allclose(z, y, rtol=1e-4, atol=1e-4)
    (_, _), expected = quick_jit(jax.value_and_grad(loss(again), has_aux=True))(params)
    expected, slope = to_tensors(expected), to_tensors(slope)
    assert set(slope) == set(expected)
    largest = {key: np.abs(value).max() for key, value in expected.items()}
    rounding = 1e-5 * max(largest.values())  # a bias of keys has no gradient at all: softmax takes no notice of it
    for key, value in slope.items():
        np.testing.assert_allclose(value, expected[key], rtol=2e-3, atol=2e-3 * largest[key] + rounding)
    assert max(largest[key] for key in largest if "text_kv" in key) > 10 * rounding


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": (7, 16)}, r"channels: .*\(7, 16\)"),
        ({"blocks": (1,)}, r"blocks: one number for each of 2 .* \(1,\)"),
        ({"strides": (1, 3)}, r"strides: 1 or 2 .* \(1, 3\)"),
        ({"attention": (2,)}, r"attention: levels are 0 \.\. 1"),
        ({"head_channels": 5}, "head_channels: a divisor of level 1's 16"),
        ({"dropout": 1.0}, r"dropout: .* 1\.0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EfficientUNet(**FIELDS | fields)
