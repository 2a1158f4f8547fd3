"""A text as the condition of a network, whichever it is: its tokens matter, padding does not, no token is the null.

Together with a label, both matter, and each has a null of its own.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import perturbed, quick_jit
from texts import C_NOISE, IMAGE, KEY, TEXT, TINY, WITH_TEXT

from diffjax import from_linen
from diffjax.losses import drop_condition
from diffjax.networks import (
    MLP,
    Cascade,
    ConditionEmbedding,
    DiT,
    EDM2UNet,
    PlainMLP,
    Stage,
    Text,
    UNet,
    UNet2D,
    adm,
    ddpm,
    ddpmpp,
    draw_parameters,
    edm2_layers,
    ncsnpp,
    normalise_weights,
)

LEVELS = {"channels": (8,), "blocks": 1, "attention": (), "head_channels": 8}
NETWORKS = {
    "mlp": partial(MLP, width=16, depth=1),
    "plain": partial(PlainMLP, width=16, depth=1),
    "unet": partial(UNet, **LEVELS),
    "edm2": partial(EDM2UNet, **LEVELS),
    "unet2d": partial(UNet2D, channels=(8,), blocks=1, down=(Stage(),), up=(Stage(),), groups=4),
    "pooled": partial(UNet, **LEVELS, text_use="pooled"),
    "attention": partial(UNet, **LEVELS, text_use="attention"),
    "unet2d_attention": partial(
        UNet2D, channels=(8,), blocks=1, down=(Stage(),), up=(Stage(),), groups=4, text_use="attention"
    ),
    "ddpm": partial(ddpm, (8,), attention=(0,), blocks=1, dropout=0.0),
}
BOTH = {name: make for name, make in NETWORKS.items() if name not in ("pooled", "unet2d_attention")}
BOTH["cross"] = partial(DiT, **{name: value for name, value in TINY.items() if name != "text_width"})
BOTH["joint"] = partial(BOTH["cross"], joint=True, rope=100.0)
ALL = {name: partial(make, text_width=5) for name, make in NETWORKS.items()}
ALL |= {name: partial(make, scan=True) for name, make in WITH_TEXT.items()}
SLOW = ("plain", "unet2d", "joint", "uvit", "pooled", "attention", "unet2d_attention", "ddpm", "edm2", "cross")
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ALL]


def changes(a, b):
    return np.abs(np.asarray(a) - b).max(axis=(1, 2, 3))


def raised(*index):
    """TEXT with one added to the embedding at an index (on the host: no compiling)."""
    embedding = np.array(TEXT.embedding)
    embedding[index] += 1
    return TEXT._replace(embedding=embedding)


@pytest.mark.parametrize("name", EACH)
def test_text_matters_where_there_is_one(name):
    network = from_linen(ALL[name]())
    params = perturbed(network.init(KEY, IMAGE, C_NOISE, TEXT), size=0.2)
    apply = quick_jit(network.apply)
    y = apply(params, IMAGE, C_NOISE, TEXT)
    assert y.shape == IMAGE.shape
    for sample in range(2):
        moved = changes(apply(params, IMAGE, C_NOISE, raised(sample, 0)), y)
        assert moved[sample] > 1e-3
        assert np.count_nonzero(moved) == 1
    for unseen in (raised(slice(None), 2), raised(2)):  # padding; no token is there
        np.testing.assert_array_equal(apply(params, IMAGE, C_NOISE, unseen), y)

    if name not in ("joint", "uvit"):  # whose tokens have places; elsewhere the mean is what counts
        twice = Text(np.array(TEXT.embedding), TEXT.mask)
        twice.embedding[0, 1] = twice.embedding[0, 0]
        once = twice._replace(mask=jnp.asarray(TEXT.mask).at[0, 1].set(False))
        repeated, single = (apply(params, IMAGE, C_NOISE, text) for text in (twice, once))
        np.testing.assert_allclose(repeated[0], single[0], atol=1e-5)

    dropped = apply(params, IMAGE, C_NOISE, drop_condition(KEY, TEXT, Text(0.0, False), 1.0))
    assert np.all(changes(dropped, y)[:2] > 1e-3)
    np.testing.assert_array_equal(dropped[2], y[2])  # it had none before
    move = lambda path, leaf: leaf + 1 if path[-1].key == "null" else leaf
    renulled = jax.tree_util.tree_map_with_path(move, params)
    other = changes(apply(renulled, IMAGE, C_NOISE, TEXT), y)
    assert other[2] > 1e-3
    np.testing.assert_array_equal(other[:2], 0)
    assert changes(apply(params, IMAGE, np.asarray(C_NOISE) + np.float32([0, 0, 0.2]), TEXT), y)[2] > 1e-3

    with pytest.raises(ValueError, match="cond: a Text"):
        network.apply(params, IMAGE, C_NOISE)
    with pytest.raises(ValueError, match=r"float array \[b, n, 5\], got float32 \(3, 3, 4\)"):
        network.apply(params, IMAGE, C_NOISE, TEXT._replace(embedding=TEXT.embedding[..., :4]))
    with pytest.raises(ValueError, match=r"boolean array \(3, 3\), got float32"):
        network.apply(params, IMAGE, C_NOISE, TEXT._replace(mask=jnp.ones((3, 3))))


NO_PLACES = [name for name in ALL if name != "uvit"]  # which has a table of as many places as it is initialised for


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n != "mlp" else n for n in NO_PLACES])
def test_padding_and_the_order_of_tokens_change_nothing(name):
    network = from_linen(ALL[name]())
    params = perturbed(network.init(KEY, IMAGE, C_NOISE, TEXT), size=0.2)
    apply = quick_jit(network.apply)
    y, wide = apply(params, IMAGE, C_NOISE, TEXT), ((0, 0), (0, 4))
    longer = Text(np.pad(TEXT.embedding, (*wide, (0, 0)), constant_values=7.0), np.pad(TEXT.mask, wide))
    np.testing.assert_allclose(apply(params, IMAGE, C_NOISE, longer), y, atol=2e-5)
    nothing = longer._replace(embedding=np.where(longer.mask[..., None], longer.embedding, np.nan))
    np.testing.assert_allclose(apply(params, IMAGE, C_NOISE, nothing), y, atol=2e-5)
    turned = Text(np.asarray(TEXT.embedding)[:, ::-1], np.asarray(TEXT.mask)[:, ::-1])
    np.testing.assert_allclose(apply(params, IMAGE, C_NOISE, turned), y, atol=2e-5)


@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("unet", "cross", "joint"))]
)
def test_in_half_precision_padding_and_no_token_are_what_they_are_in_full(name):
    """A mask's large negative number is one of bfloat16, too: rounding alone tells the answers apart."""
    full, half = (from_linen(BOTH[name](text_width=5, dtype=dtype)) for dtype in (jnp.float32, jnp.bfloat16))
    params = perturbed(full.init(KEY, IMAGE, C_NOISE, TEXT), size=0.2)
    narrow = TEXT._replace(embedding=jnp.asarray(TEXT.embedding, jnp.bfloat16))
    apply, wide = quick_jit(half.apply), ((0, 0), (0, 4))
    y = np.asarray(apply(params, IMAGE, C_NOISE, narrow), np.float32)
    want = np.asarray(full.apply(params, IMAGE, C_NOISE, TEXT))
    assert np.abs(y - want).max() < 0.05 * np.abs(want).max()
    padded = np.pad(np.asarray(narrow.embedding), (*wide, (0, 0)), constant_values=1e30)
    longer = Text(padded, np.pad(narrow.mask, wide))
    got = np.asarray(apply(params, IMAGE, C_NOISE, longer), np.float32)
    np.testing.assert_allclose(got, y, atol=0.02 * np.abs(want).max())


@pytest.mark.parametrize("name", ["mlp", "plain", "unet", "edm2"])
def test_a_text_needs_its_width(name):
    with pytest.raises(ValueError, match=r"cond: .* set text_width"):
        jax.eval_shape(NETWORKS[name]().init, KEY, IMAGE, C_NOISE, TEXT)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in BOTH])
def test_a_text_and_a_label_both_matter_and_each_has_a_null(name):
    network = from_linen(BOTH[name](num_classes=4, text_width=5))
    label = jnp.array([0, 1, 2])
    cond = Cascade(text=TEXT, label=label)
    params = perturbed(network.init(KEY, IMAGE, C_NOISE, cond), size=0.2)
    apply = quick_jit(network.apply)
    y = apply(params, IMAGE, C_NOISE, cond)
    moved = changes(apply(params, IMAGE, C_NOISE, cond._replace(text=raised(0, 0))), y)
    assert moved[0] > 1e-3
    np.testing.assert_array_equal(moved[1:], 0)
    moved = changes(apply(params, IMAGE, C_NOISE, cond._replace(label=label.at[1].set(3))), y)
    assert moved[1] > 1e-3
    np.testing.assert_array_equal(moved[[0, 2]], 0)
    null = Cascade(text=Text(0.0, False), label=4)
    dropped = drop_condition(KEY, cond, null, 1.0)
    assert not dropped.text.mask.any()
    np.testing.assert_array_equal(dropped.label, 4)
    unconditional = apply(params, IMAGE, C_NOISE, dropped)
    other = Cascade(text=TEXT._replace(mask=jnp.zeros_like(TEXT.mask)), label=jnp.full(3, 4))
    np.testing.assert_array_equal(unconditional, apply(params, IMAGE, C_NOISE, other))
    for half in (cond._replace(text=dropped.text), cond._replace(label=dropped.label)):
        assert np.abs(apply(params, IMAGE, C_NOISE, half) - unconditional)[:2].max() > 1e-3
    for wrong, got in ((TEXT, "Text"), (label, ""), (Cascade(text=TEXT), "Cascade"), (Cascade(label=label), "Cascade")):
        with pytest.raises(ValueError, match=f"cond: a Cascade with text and label is needed, got .*{got}"):
            network.apply(params, IMAGE, C_NOISE, wrong)
    with pytest.raises(ValueError, match="cond: this network takes no low-resolution image"):
        network.apply(params, IMAGE, C_NOISE, cond._replace(low_resolution=IMAGE))


def test_how_a_text_is_used():
    """Pooled alone has no layer of attention to the text, attention alone no layer of its mean."""
    names = lambda **given: {
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(UNet(**LEVELS, text_width=5, **given).init, KEY, IMAGE, C_NOISE, TEXT)
        )
    }
    pooled, attention, both = (names(text_use=use) for use in ("pooled", "attention", "both"))
    assert pooled | attention == both == names()
    assert pooled & attention == {name for name in both if "text_" not in name or "text_tokens" in name}
    assert all("text_embedding" in name for name in pooled - attention)
    assert all("middle_attention" in name for name in attention - pooled)
    for make in (UNet, UNet2D):
        with pytest.raises(ValueError, match="text_use: one of both, pooled, attention is needed, got 'mean'"):
            make(text_width=5, text_use="mean")


@pytest.mark.parametrize(
    "make", [ddpm, adm, *(pytest.param(make, marks=pytest.mark.slow) for make in (ddpmpp, ncsnpp))]
)
def test_papers_networks_have_a_text(make):
    module = make((64, 64), attention=(1,), blocks=1, text_width=5, num_classes=3)
    cond = Cascade(text=TEXT, label=jnp.zeros(3, int))
    shapes = jax.eval_shape(module.init, KEY, IMAGE, C_NOISE, cond)["params"]
    without = make((64, 64), attention=(1,), blocks=1, num_classes=3)
    plain = jax.eval_shape(without.init, KEY, IMAGE, C_NOISE, cond.label)["params"]
    names = lambda tree: {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
    assert names(plain) < names(shapes)
    assert all("text_" in name for name in names(shapes) - names(plain))


def test_edm2_is_told_a_text_by_its_direction_alone():
    """Neither the size of the text nor that of its weights counts, and these are put back to unit magnitude."""
    module = ConditionEmbedding(16, text_width=5, layers=edm2_layers(8, 0.5))
    params = draw_parameters(KEY, lambda *args: module.init(*args)["params"], C_NOISE, TEXT)
    grown = params | {"text_embedding": {"kernel": 5 * np.asarray(params["text_embedding"]["kernel"])}}
    zero = Text(jnp.zeros((3, 3, 5)), jnp.ones((3, 3), bool))  # no direction

    @quick_jit
    def found(params, grown, embedding):
        tell = lambda params, text: module.apply({"params": params}, C_NOISE, text)
        told = [tell(params, TEXT), tell(params, TEXT._replace(embedding=30 * embedding)), tell(grown, TEXT)]
        return told, normalise_weights(grown), jax.grad(lambda params: jnp.sum(tell(params, zero)))(params)

    (told, *others), back, gradient = found(params, grown, TEXT.embedding)
    for other in others:
        np.testing.assert_allclose(other, told, atol=2e-3)
    np.testing.assert_allclose(np.mean(np.square(back["text_embedding"]["kernel"]), axis=0), 1, rtol=1e-3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
