"""Networks of GANs: shapes, labels and latents, samples apart from each other, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import perturbed, quick_jit

from diffjax import from_linen, networks
from diffjax.networks._adversarial import GAIN, _activate

KEY = jax.random.key(0)
POINTS = jax.random.normal(KEY, (5, 2))
PICTURES = jax.random.normal(KEY, (5, 7, 7, 2))
LABELS = jnp.array([0, 1, 2, 3, 1])
MEMBERS = {
    "Discriminator": (networks.Discriminator(8, 2, num_classes=3), POINTS, (5, 1)),
    "ImageDiscriminator": (networks.ImageDiscriminator((4, 6), num_classes=3), PICTURES, (5, 1)),
    "ImageGenerator": (networks.ImageGenerator((7, 7, 2), (4, 6), num_classes=3), POINTS, (5, 7, 7, 2)),
    "LatentNetwork": (networks.LatentNetwork(networks.MLP(8, 1), 8, num_classes=3), POINTS, (5, 2)),
    "LatentNetwork of a UNet": (
        networks.LatentNetwork(networks.UNet((4, 6), blocks=1, attention=()), 8, num_classes=3),
        PICTURES,
        (5, 7, 7, 2),
    ),
}


def with_latent(name, cond, scale=1.0):
    if not name.startswith("LatentNetwork"):
        return cond
    return networks.WithLatent(scale * jax.random.normal(jax.random.key(1), (len(LABELS), 3))[: len(cond)], cond)


@pytest.fixture(scope="module")
def trained():
    """name -> (apply, its parameters moved off zero), each once."""
    found = {}

    def make(name):
        if name not in found:
            module, x, _ = MEMBERS[name]
            network = from_linen(module)
            params = network.init(KEY, x, jnp.zeros(5), with_latent(name, LABELS))
            found[name] = quick_jit(network.apply), perturbed(params)
        return found[name]

    return make


QUICK = [pytest.param(n, marks=[] if "UNet" not in n else pytest.mark.slow) for n in MEMBERS]


@pytest.mark.parametrize("name", QUICK)
def test_each_sample_has_an_answer_of_its_own_that_depends_on_its_label(name, trained):
    """Without the others: as a gradient penalty needs it."""
    apply, params = trained(name)
    _, x, shape = MEMBERS[name]
    call = lambda x, cond: apply(params, x, jnp.zeros(5), cond)
    y = call(x, with_latent(name, LABELS))
    assert y.shape == shape
    assert y.dtype == jnp.float32
    moved = call(x.at[0].add(1.0), with_latent(name, LABELS))
    changed = np.abs(np.asarray(moved - y)).reshape(5, -1).max(axis=1)
    assert changed[0] > 1e-5
    np.testing.assert_array_equal(changed[1:], 0)
    other = call(x, with_latent(name, LABELS.at[1].set(2)))
    changed = np.abs(np.asarray(other - y)).reshape(5, -1).max(axis=1)
    assert changed[1] > 1e-5
    np.testing.assert_array_equal(np.delete(changed, 1), 0)


@pytest.mark.parametrize("name", QUICK)
def test_every_parameter_is_of_use(name, trained):
    """All have a gradient, but the clock's of those that ignore it, and the rows of labels that are not there."""
    module, x, shape = MEMBERS[name]
    apply, params = from_linen(module).apply, trained(name)[1]
    weights = jax.random.normal(jax.random.key(2), shape)
    loss = lambda p: jnp.sum(weights * apply(p, x, jnp.linspace(-1, 1, 5), with_latent(name, LABELS)))
    gradient = quick_jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(np.asarray(leaf)).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["Discriminator", "ImageDiscriminator"])
def test_a_discriminator_knows_the_noise_level(name, trained):
    apply, params = trained(name)
    x = MEMBERS[name][1]
    logits = [apply(params, x, jnp.full(5, level), LABELS) for level in (0.0, 1.0)]
    assert np.abs(np.asarray(logits[0] - logits[1])).min() > 1e-5


@pytest.mark.parametrize("name", QUICK[-2:])
def test_a_latent_network_is_its_network_conditioned_on_a_vector(name, trained):
    """That of a mapping of z, plus the label's row."""
    apply, params = trained(name)
    module, x, _ = MEMBERS[name]
    cond = with_latent(name, LABELS)
    h = cond.z
    for i in range(3):
        layer = params[f"mapping__{i}"]
        h = _activate(h @ layer["kernel"] + layer["bias"])
    h = h + params["labels"]["embedding"][LABELS]
    wanted = from_linen(module.network).apply(params["network"], x, jnp.full(5, 0.3), h)
    np.testing.assert_allclose(apply(params, x, jnp.full(5, 0.3), cond), wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(apply(params, x, jnp.full(5, 0.3), with_latent(name, LABELS, 2.0)) - wanted)).max() > 1e-4


def test_the_gain_keeps_the_size_of_normal_numbers():
    h = jnp.asarray(np.random.default_rng(0).normal(size=(200_000,)), jnp.float32)
    assert float(jnp.mean(_activate(h) ** 2)) == pytest.approx(1.0, abs=0.02)
    assert pytest.approx((1 + 0.2**2) / 2) == GAIN**-2


def test_residual_branches_start_at_zero_unless_told_otherwise():
    kernels = {}
    for given in ((), (None, False)):
        params = from_linen(networks.ImageDiscriminator((4,), *given)).init(KEY, PICTURES, jnp.zeros(5))
        kernels[given] = np.asarray(params["blocks__0"]["conv_2"]["kernel"])
    assert np.abs(kernels[()]).max() == 0
    assert np.abs(kernels[None, False]).min() > 0
    assert params["blocks__0"]["modulate"]["kernel"].shape == (2 * 4, 4)  # of an embedding twice the finest channels


@pytest.mark.parametrize("name", QUICK[:-1])
def test_bfloat16_answers_in_float32(name):
    module, x, shape = MEMBERS[name]
    cond = with_latent(name, LABELS)
    params = from_linen(module).init(KEY, x, jnp.zeros(5), cond)
    inner = {"network": module.network.clone(dtype=jnp.bfloat16)} if name == "LatentNetwork" else {}
    low = from_linen(module.clone(dtype=jnp.bfloat16, **inner))
    found = jax.eval_shape(low.apply, params, x, jnp.zeros(5), cond)
    assert (found.shape, found.dtype) == (shape, jnp.float32)


@pytest.mark.parametrize(
    ("make", "x", "cond", "message"),
    [
        (lambda: networks.Discriminator(width=5), POINTS, None, "width: an even number is needed, got 5"),
        (lambda: networks.Discriminator(depth=0), POINTS, None, "depth: at least 1 is needed, got 0"),
        (lambda: networks.ImageDiscriminator(()), PICTURES, None, "channels: one positive number a level"),
        (lambda: networks.ImageDiscriminator((3,)), PICTURES, None, "channels: an even number is needed"),
        (lambda: networks.ImageDiscriminator((4,)), POINTS, None, r"x: images \[b, height, width, channels\]"),
        (lambda: networks.ImageGenerator((8, 8)), POINTS, None, r"shape: \(height, width, channels\) is needed"),
        (lambda: networks.ImageGenerator((8, 8, 1)), PICTURES, None, r"z: latents \[b, k\] are needed"),
        (
            lambda: networks.ImageGenerator((8, 8, 1)),
            POINTS,
            LABELS,
            r"cond: none is taken without num_classes, got int32 \(5,\); for labels set num_classes, else give None",
        ),
        (lambda: networks.LatentNetwork(networks.MLP(4), depth=0), POINTS, None, "width, depth: at least 1 is needed"),
        (lambda: networks.LatentNetwork(networks.MLP(4)), POINTS, LABELS, r"cond: WithLatent\(z, label\) is needed"),
        (
            lambda: networks.LatentNetwork(networks.MLP(4)),
            POINTS,
            networks.WithLatent(POINTS, LABELS),
            r"cond: no label is taken without num_classes, got int32 \(5,\); for labels set num_classes",
        ),
        (
            lambda: networks.LatentNetwork(from_linen(networks.MLP(4))),
            POINTS,
            networks.WithLatent(POINTS),
            r"network: a Linen module is needed, got Network; from_linen goes around the LatentNetwork",
        ),
        (
            lambda: networks.LatentNetwork(networks.MLP(4, num_classes=2)),
            POINTS,
            networks.WithLatent(POINTS, LABELS),
            r"network: a module without num_classes is needed, got num_classes=2; give it to the LatentNetwork",
        ),
        (
            lambda: networks.MLP(4, num_classes=2),
            POINTS,
            networks.WithLatent(POINTS, LABELS),
            r"cond: integer labels of shape \(5,\) are needed, got WithLatent; wrap the network in LatentNetwork",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, x, cond, message):
    with pytest.raises(ValueError, match=message):
        from_linen(make()).init(KEY, x, jnp.zeros(5), cond)


def test_the_smallest_mapping_has_one_layer_of_one_number():
    network = from_linen(networks.LatentNetwork(networks.MLP(4, 1), width=1, depth=1))
    params = network.init(KEY, POINTS, jnp.zeros(5), networks.WithLatent(POINTS))
    assert params["mapping__0"]["kernel"].shape == (2, 1)
