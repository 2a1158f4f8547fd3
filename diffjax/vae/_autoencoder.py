"""Training of latent diffusion's autoencoder: reconstruction, a small divergence, features, and a critic of patches.

    x0 --encode--> q = N(mean, std^2) --draw--> z --decode--> y
    loss = mean |x0 - y| + kl_weight KL(q || N(0, I))/d
           + perceptual_weight mean (f(x0) - f(y))^2 - critic_weight mean D(y)

d is the number of features of x0, so the first two terms are those of the papers divided by d. The critic D learns
beside it, by `critic_loss`, the hinge loss mean max(0, 1 - D(x0)) + mean max(0, 1 + D(y)). The divergence is far too
light for a bound on the likelihood: it keeps latents near each other that decode alike, and `with_unit_latents` scales
them for diffusion.

Source: Rombach et al. 2022 (Latent diffusion), section 3.1 and appendix G; Esser et al. 2021 (VQGAN), eqs. 4-6, there
with a critic_weight that balances gradients; Lim & Ye 2017 (Geometric GAN), the hinge loss.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    at_once,
    check,
    check_key,
    default_index,
    mean_features,
    normal_like,
    sample_keys,
    sum_features,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Params, Sample, Scalar
from diffjax.networks import AutoencoderKL
from diffjax.vae._gaussian import DiagonalGaussian, StandardNormal

Critic: TypeAlias = Callable[[Sample], Float[Array, "b *m"]]
"""Images [b, h, w, c] -> logits [b, ...], positive for data."""
Features: TypeAlias = Callable[[Sample], Float[Array, "b *m"]]
"""Images [b, h, w, c] -> features [b, ...]."""


@checked_numbers
def autoencoder_loss(
    autoencoder: AutoencoderKL,
    params: Params,
    key: Key,
    x0: Sample,
    *,
    distance: str = "absolute",
    kl_weight: Scalar = 1e-6,
    perceptual: Features | None = None,
    perceptual_weight: Scalar = 1.0,
    critic: Critic | None = None,
    critic_weight: Scalar = 0.1,
    index: Index | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of an autoencoder whose latents diffusion is to model.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import networks
    >>> autoencoder = networks.AutoencoderKL(1, 1, 4, channels=(8, 16), blocks=1, groups=8)
    >>> x0 = jnp.zeros((2, 8, 8, 1))
    >>> params = autoencoder.init(jax.random.key(0), x0)["params"]
    >>> loss, aux = autoencoder_loss(autoencoder, params, jax.random.key(1), x0)
    >>> aux["reconstructed"].shape
    (2, 8, 8, 1)

    Args:
      autoencoder: the module.
      params: its parameters.
      key: for latents and dropout; the latents of sample i depend on (key, index_i) alone.
      x0: images [b, h, w, c], of as many channels as are decoded.
      distance: "absolute" for |x0 - y|, "squared" for (x0 - y)^2, the mean over the d features.
      kl_weight: of the divergence in nats over d, at least 0.
      perceptual: features, `x [b, h, w, c] -> [b, ...]`, differentiable and frozen, such as
        `functools.partial(classifier_features, classifier, classifier_params)`; None for no such term.
      perceptual_weight: of the mean square of their differences, at least 0.
      critic: `y [b, h, w, c] -> logits [b, ...]` with parameters that this loss does not train; None for no such term.
      critic_weight: of minus the mean logit, at least 0. 0 in the first steps lets the reconstruction settle.
      index: global indices [b] of the samples (default 0 .. b - 1).

    Returns:
      The loss, a scalar, and `per_sample` [b], its terms `reconstruction`, `kl` (nats), `perceptual` and `critic`, each
      [b] and unweighted, and `reconstructed` [b, h, w, c], y.

    Raises:
      ValueError: a weight is negative, distance is another word, perceptual or critic answers for another batch, or
        images of another shape are decoded.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    weights = {"kl_weight": kl_weight, "perceptual_weight": perceptual_weight, "critic_weight": critic_weight}
    for name, weight in weights.items():
        with at_once(weight):
            check(jnp.asarray(weight) >= 0, f"{name}: at least 0 is needed, got {weight}")
    if distance not in ("absolute", "squared"):
        raise ValueError(f"distance: absolute or squared is needed, got {distance!r}")
    index = default_index(x0.shape[0], index)
    y, posterior = _reconstruct(autoencoder, params, key, x0, index, train=True)
    error = jnp.abs(x0 - y) if distance == "absolute" else (x0 - y) ** 2
    n = x0.shape[0]
    features = lambda f, x: answered("perceptual", f(x), (n, ...))
    nothing = jnp.zeros(n, y.dtype)
    terms = {
        "reconstruction": mean_features(error),
        "kl": sum_features(StandardNormal().divergence(posterior)),
        "perceptual": nothing
        if perceptual is None
        else mean_features((features(perceptual, y) - features(perceptual, x0)) ** 2),
        "critic": nothing if critic is None else -mean_features(answered("critic", critic(y), (n, ...))),
    }
    per_sample = (
        terms["reconstruction"]
        + kl_weight / (x0.size // n) * terms["kl"]
        + perceptual_weight * terms["perceptual"]
        + critic_weight * terms["critic"]
    )
    return jnp.mean(per_sample), terms | {"per_sample": per_sample, "reconstructed": y}


def critic_loss(critic: Critic, x0: Sample, y: Sample) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The hinge loss of a critic that is to tell data from reconstructions.

        mean max(0, 1 - D(x0)) + mean max(0, 1 + D(y))

    >>> import jax.numpy as jnp
    >>> loss, aux = critic_loss(lambda x: jnp.mean(x, (1, 2, 3)), jnp.ones((2, 4, 4, 1)), -jnp.ones((2, 4, 4, 1)))
    >>> float(loss)
    0.0

    Args:
      critic: `x [b, h, w, c] -> logits [b, ...]`, with the parameters that are trained.
      x0: images [b, h, w, c].
      y: reconstructions of the same shape; no gradient passes through them.

    Returns:
      The loss, a scalar, 2 for a critic that is 0; `per_sample` [b], and `accuracy` [], the share of logits of the
      right sign.

    Raises:
      ValueError: x0 and y have different shapes.
    """
    x0 = as_samples("x0", x0)
    y = jax.lax.stop_gradient(as_samples("y", y, x0.shape))
    real, fake = (answered("critic", critic(x), (x0.shape[0], ...)) for x in (x0, y))
    per_sample = mean_features(jax.nn.relu(1 - real)) + mean_features(jax.nn.relu(1 + fake))
    accuracy = 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0))
    return jnp.mean(per_sample), {"per_sample": per_sample, "accuracy": accuracy}


def reconstruct(
    autoencoder: AutoencoderKL, params: Params, key: Key, x0: Sample, *, index: Index | None = None
) -> Sample:
    """Images y [b, h, w, c] decoded from a draw z ~ q(z | x0) for images x0 [b, h, w, c].

    Args:
      autoencoder: the module; dropout is off.
      params: its parameters.
      key: the latents of sample i depend on (key, index_i) alone.
      x0: images.
      index: global indices [b].
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    return _reconstruct(autoencoder, params, key, x0, default_index(x0.shape[0], index), train=False)[0]


def with_unit_latents(autoencoder: AutoencoderKL, params: Params, x0: Sample) -> AutoencoderKL:
    """The module with the `scaling_factor` and `shift_factor` that give latents of mean 0 and variance 1 on data.

        scaling_factor (z - shift_factor),   z ~ q(z | x0) over all images and positions

    Args:
      autoencoder: the module.
      params: its parameters.
      x0: images [b, h, w, c] of the training data; a thousand are enough.

    Returns:
      The module; its parameters are the same.

    Source: Rombach et al. 2022, appendix G, which scales without a shift.
    """
    x0 = as_samples("x0", x0)
    mean, logvar = jax.jit(lambda x: autoencoder.apply({"params": params}, x, method="encode"))(x0)
    mean, variance = np.asarray(mean, np.float64), np.exp(np.asarray(logvar, np.float64))
    total = np.mean(variance) + np.var(mean)
    return autoencoder.clone(scaling_factor=float(total**-0.5), shift_factor=float(np.mean(mean)))


def _reconstruct(
    autoencoder: AutoencoderKL, params: Params, key: Key, x0: Sample, index: Index, *, train: bool
) -> tuple[Sample, DiagonalGaussian]:
    """(y, q) of images, with dropout in training."""
    latent_key, dropout = jax.random.split(key)
    keys = jax.random.split(jax.random.fold_in(dropout, index[0]))

    def call(x: Array, method: str, key: Key) -> Any:
        given = {"deterministic": not train, "rngs": {"dropout": key}}
        return autoencoder.apply({"params": params}, x, method=method, **given)

    mean, logvar = call(x0, "encode", keys[0])
    posterior = DiagonalGaussian(mean, 0.5 * logvar)
    z = posterior.mean + jnp.exp(posterior.log_std) * normal_like(sample_keys(latent_key, index), posterior.mean)
    y = call(z, "decode", keys[1])
    if y.shape != x0.shape:
        raise ValueError(
            f"x0: images that are decoded in their own shape are needed, got {x0.shape} decoded as {y.shape}; sides "
            f"must be multiples of {2 ** (len(autoencoder.channels) - 1)}, and out_channels those of x0"
        )
    return y, posterior
