"""Training of AutoencoderKL: each term against its formula, the critic, unit latents, a folder of diffusers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import interop, networks, training, vae

KEY = jax.random.key(0)
AUTOENCODER = networks.AutoencoderKL(1, 1, 2, channels=(8, 16), blocks=1, groups=4)
X0 = jnp.tanh(jax.random.normal(jax.random.key(7), (4, 8, 8, 1)))


@pytest.fixture(scope="module")
def params():
    """Away from the first values."""
    start = jax.jit(AUTOENCODER.init)(KEY, X0)["params"]
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), start)


def critic(x):
    return x[:, ::4, ::4] * 3 - 0.5


def features(x):
    return jnp.stack([jnp.mean(x, (1, 2, 3)), jnp.sum(x[:, 0], (1, 2))], axis=1)


@functools.partial(jax.jit, static_argnames=("distance", "terms"))
def loss_of(params, x0, index=None, *, distance="absolute", terms=True, **weights):
    given = {"perceptual": features, "critic": critic} if terms else {}
    return vae.autoencoder_loss(AUTOENCODER, params, KEY, x0, distance=distance, index=index, **given, **weights)


@pytest.mark.parametrize("distance", ["absolute", "squared"])
def test_every_term_is_its_formula(params, distance):
    loss, aux = loss_of(params, X0, distance=distance, kl_weight=0.3, perceptual_weight=0.7, critic_weight=0.2)
    mean, logvar = (np.asarray(part, np.float64) for part in AUTOENCODER.apply({"params": params}, X0, method="encode"))
    x, y = np.asarray(X0, np.float64), np.asarray(aux["reconstructed"], np.float64)
    error = np.abs(x - y) if distance == "absolute" else (x - y) ** 2
    rec = error.mean((1, 2, 3))
    kl = 0.5 * np.sum(mean**2 + np.exp(logvar) - 1 - logvar, axis=(1, 2, 3))
    far = np.mean((np.asarray(features(y)) - np.asarray(features(x))) ** 2, axis=1)
    fooled = -np.mean(3 * y[:, ::4, ::4] - 0.5, axis=(1, 2, 3))
    for name, value in {"reconstruction": rec, "kl": kl, "perceptual": far, "critic": fooled}.items():
        np.testing.assert_allclose(aux[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    total = rec + 0.3 * kl / 64 + 0.7 * far + 0.2 * fooled
    np.testing.assert_allclose(aux["per_sample"], total, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, total.mean(), rtol=1e-4)


def test_the_defaults_are_those_of_the_docstring(params):
    loss, aux = loss_of(params, X0, terms=False)
    np.testing.assert_allclose(loss, jnp.mean(aux["reconstruction"] + 1e-6 * aux["kl"] / 64), rtol=1e-6)
    assert float(jnp.max(jnp.abs(aux["perceptual"]) + jnp.abs(aux["critic"]))) == 0
    loss, aux = loss_of(params, X0)
    by_hand = aux["reconstruction"] + 1e-6 * aux["kl"] / 64 + aux["perceptual"] + 0.1 * aux["critic"]
    np.testing.assert_allclose(loss, jnp.mean(by_hand), rtol=1e-6)


def test_what_is_decoded_is_a_draw_of_the_posterior(params):
    space = networks.LatentSpace(params, AUTOENCODER)
    y = vae.reconstruct(AUTOENCODER, params, KEY, X0)
    np.testing.assert_allclose(y, loss_of(params, X0)[1]["reconstructed"], rtol=1e-4, atol=1e-5)
    mean, std = space.moments(X0)
    latent_key, _ = jax.random.split(KEY)
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(latent_key, i), mean.shape[1:]) for i in range(len(X0))])
    np.testing.assert_allclose(y, space.decode(mean + std * noise), rtol=1e-4, atol=1e-5)
    assert float(jnp.max(jnp.abs(y - space.decode(mean)))) > 1e-3


def test_a_sample_depends_on_its_index_and_on_no_neighbour(params):
    whole = loss_of(params, X0)[1]["per_sample"]
    part = loss_of(params, X0[2:], jnp.array([2, 3]))[1]["per_sample"]
    np.testing.assert_allclose(part, whole[2:], rtol=1e-5)
    assert float(jnp.max(jnp.abs(loss_of(params, X0[2:])[1]["per_sample"] - whole[2:]))) > 1e-5


def test_dropout_is_on_in_training_alone(params):
    dropped = AUTOENCODER.clone(dropout=0.5)
    y = vae.reconstruct(dropped, params, KEY, X0)
    np.testing.assert_allclose(y, vae.reconstruct(AUTOENCODER, params, KEY, X0), rtol=1e-4, atol=1e-5)
    _, aux = jax.jit(lambda: vae.autoencoder_loss(dropped, params, KEY, X0))()
    assert float(jnp.max(jnp.abs(aux["reconstructed"] - y))) > 1e-2


def test_the_critics_loss_is_the_hinge():
    real, fake = jnp.array([[2.0, 0.5], [-1.0, 0.0]]), jnp.array([[-3.0, 0.5], [1.0, -0.25]])
    pixels = lambda x: x[..., None, None]
    loss, aux = vae.critic_loss(lambda x: x[..., 0, 0], pixels(real), pixels(fake))
    np.testing.assert_allclose(aux["per_sample"], [(0 + 0.5) / 2 + (0 + 1.5) / 2, (2 + 1) / 2 + (2 + 0.75) / 2])
    np.testing.assert_allclose(loss, jnp.mean(aux["per_sample"]))
    assert float(aux["accuracy"]) == 0.5 * (2 / 4 + 2 / 4)
    slope = jax.grad(lambda y: vae.critic_loss(lambda x: jnp.sum(x, (1, 2, 3)), pixels(real), y)[0])(pixels(fake))
    assert float(jnp.max(jnp.abs(slope))) == 0  # the critic's loss trains no autoencoder


def test_a_critic_of_patches_sees_patches():
    discriminator = networks.PatchDiscriminator((8,))
    start = discriminator.init(KEY, X0)["params"]
    call = lambda x: discriminator.apply({"params": start}, x)
    assert call(X0).shape == (4, 4, 4, 1)
    slope = jax.grad(lambda x: call(x)[0, 0, 0, 0])(X0)
    seen = np.abs(np.asarray(slope[..., 0])) > 0
    assert not seen[1:].any()  # no other sample
    assert seen[0, :5, :5].all()
    assert not seen[0, 6:].any()
    assert not seen[0, :, 6:].any()  # 4 x 4, and twice the 3 x 3 of half the size, from the corner
    low = networks.PatchDiscriminator((8,), dtype=jnp.bfloat16).apply({"params": start}, X0)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, call(X0), atol=0.05)


def test_latents_have_mean_0_and_variance_1_where_scaled_so(params):
    x0 = jnp.concatenate([X0, 0.3 * X0 + 0.2])
    scaled = vae.with_unit_latents(AUTOENCODER, params, x0)
    mean, std = networks.LatentSpace(params, scaled).moments(x0)
    z = mean + std * jax.random.normal(KEY, (200, *mean.shape))
    assert abs(float(jnp.mean(z))) < 0.02
    assert abs(float(jnp.std(z)) - 1) < 0.02
    assert scaled.clone(scaling_factor=0.18215, shift_factor=0.0) == AUTOENCODER
    np.testing.assert_allclose(  # the decoder undoes it
        vae.reconstruct(scaled, params, KEY, X0), vae.reconstruct(AUTOENCODER, params, KEY, X0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_a_folder_of_diffusers_is_read_back(params, tmp_path, shift):
    module = AUTOENCODER.clone(scaling_factor=0.5, shift_factor=shift, upcast=False, moments_conv=True)
    interop.save_pretrained(tmp_path, params, interop.autoencoder_config(module))
    again = interop.load_module(tmp_path)
    assert again.module == module
    jax.tree.map(np.testing.assert_array_equal, dict(again.params), dict(params))


@pytest.mark.slow
def test_autoencoder_and_critic_train_in_one_step(params):
    """Two objectives: the reconstruction gets better, and the critic moves by its own loss alone."""
    discriminator = networks.PatchDiscriminator((8,))
    judge = lambda params: lambda x: discriminator.apply({"params": params["critic"]}, x)

    def learn(params, batch, context):
        return vae.autoencoder_loss(
            AUTOENCODER,
            params["vae"],
            context.key,
            batch[0],
            critic=judge(params),
            critic_weight=0.01,
            index=context.index,
        )

    def judged(params, batch, context):
        y = vae.reconstruct(AUTOENCODER, params["vae"], context.key, batch[0], index=context.index)
        return vae.critic_loss(judge(params), batch[0], y)

    tx = optax.adam(3e-3)
    objectives = [training.Objective(learn, tx, of="vae"), training.Objective(judged, tx, of="critic")]
    start = {"vae": params, "critic": discriminator.init(KEY, X0)["params"]}
    state = training.state_from_params(KEY, start, objectives)
    step = jax.jit(training.make_train_step(objectives, ema=training.make_ema(0.9)))
    errors = []
    for _ in range(150):
        state, metrics = step(state, (X0, None))
        errors.append(
            float(metrics["vae/reconstruction"]) if "vae/reconstruction" in metrics else float(metrics["loss"])
        )
    assert np.mean(errors[-10:]) < 0.4 * np.mean(errors[:10])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kl_weight": -1.0}, "kl_weight: at least 0"),
        ({"perceptual_weight": -1.0}, "perceptual_weight: at least 0"),
        ({"critic_weight": -1.0}, "critic_weight: at least 0"),
        ({"distance": "l1"}, "distance: absolute or squared is needed, got 'l1'"),
        ({"perceptual": lambda x: x[:1]}, r"perceptual: must answer shape \(4, ...\)"),
        ({"critic": jnp.mean}, r"critic: must answer shape \(4, ...\)"),
        ({"x0": X0[:, :7]}, "multiples of 2"),
        ({"x0": X0[0]}, r"x"),
    ],
)
def test_what_cannot_be_trained_is_named(params, arguments, words):
    with pytest.raises(ValueError, match=words):
        vae.autoencoder_loss(AUTOENCODER, params, KEY, arguments.pop("x0", X0), **arguments)


def test_a_negative_weight_is_seen_within_jit_too(params):
    with pytest.raises(ValueError, match="kl_weight: at least 0 is needed, got -1"):
        jax.eval_shape(lambda p: vae.autoencoder_loss(AUTOENCODER, p, KEY, X0, kl_weight=-1.0)[0], params)


def test_unit_latents_need_an_image(params):
    with pytest.raises(ValueError, match="x0: at least one sample"):
        vae.with_unit_latents(AUTOENCODER, params, X0[:0])
