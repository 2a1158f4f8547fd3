"""Networks of generative adversarial networks: small, and without normalisation layers.

    Discriminator        x [b, *d] -> flatten -> [x, emb] -> n x [ Dense -> leaky ReLU ] -> Dense -> [b, 1]
    ImageDiscriminator   x [b, h, w, c] -> conv -> [block, halve] a level -> leaky ReLU -> flatten -> Dense -> [b, 1]
    ImageGenerator       z [b, k] -> Dense -> [block, double] a level -> leaky ReLU -> conv -> [b, h, w, c]
    LatentNetwork        (xt, c_noise, WithLatent(z, label)) -> emb = mapping(z) + table(label) -> any network(xt, emb)

    block                h -> leaky ReLU -> conv + Dense(emb) -> leaky ReLU -> conv* -> + h           * starts at zero

Norms of a batch would make a sample's logit depend on the others, where a gradient penalty needs its own. Each is
called as every other network, `(x, c_noise, cond)`: a discriminator of noisy pairs is given them along the last axis,
and their noise level. A label is a condition of the generator and of the discriminator.

Source: Huang et al. 2024 (R3GAN), section 3, arXiv:2501.05441, no norms and residual branches from zero; the latent by
a mapping network: Karras et al. 2019 (StyleGAN), section 2, and Xiao et al. 2022 (denoising diffusion GAN), appendix C,
arXiv:2112.07804.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._blocks import check_channels, conv, enlarge
from diffjax.networks._coders import check_image_shape, label_embedding, level_sizes
from diffjax.networks._embedding import ConditionEmbedding, as_labels, described
from diffjax.networks._layers import Table, dense, float32_at_least
from diffjax.networks._second_time import broadcast_times

LEAK = 0.2
"""Slope of leaky ReLUs below 0."""
GAIN = math.sqrt(2 / (1 + LEAK**2))
"""By which a leaky ReLU's answer is multiplied, so that layers keep the size of normal numbers: a latent would fade."""


class WithLatent(NamedTuple):
    """A condition with a latent: what the generator of a denoising diffusion GAN is given.

    >>> import jax.numpy as jnp
    >>> given = WithLatent(jnp.zeros((4, 8)), cond=jnp.arange(4))
    >>> print(given.z.shape, given.cond)
    (4, 8) [0 1 2 3]

    Attributes:
      z: the latent, [b, k].
      cond: the condition proper, such as labels [b], or None.
    """

    z: Any
    cond: Any = None


@checked_numbers
class Discriminator(nn.Module):
    """`(x [b, *d], c_noise [b], cond) -> logits [b, 1]` of vectors, float32 at least; positive for data.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen
    >>> network, x = from_linen(Discriminator(width=16, depth=2)), jnp.zeros((4, 2))
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(4), None)
    >>> network.apply(params, x, jnp.zeros(4), None).shape
    (4, 1)

    Attributes:
      width: features of the hidden layers, even.
      depth: number of hidden layers.
      num_classes: cond is an integer label [b] in 0 .. num_classes; None: cond is a float vector [b, k], or None.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field or a cond that does not fit.
    """

    width: int = 128
    depth: int = 3
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width: an even number is needed, got {self.width}")
        if self.depth < 1:
            raise ValueError(f"depth: at least 1 is needed, got {self.depth}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b *d"], c_noise: ArrayLike, cond: Cond = None) -> Float[Array, "b 1"]:
        wide = float32_at_least(self.dtype)
        embedding = ConditionEmbedding(self.width, self.num_classes, None, wide, name="conditioning")
        emb = embedding(broadcast_times(self, c_noise, x), cond)
        h = jnp.concatenate([x.reshape(x.shape[0], -1).astype(self.dtype), emb.astype(self.dtype)], axis=-1)
        for i in range(self.depth):
            h = _activate(dense(self.width, self.dtype, name=f"hidden__{i}")(h))
        return dense(1, wide, name="logits")(h.astype(wide))


@checked_numbers
class ImageDiscriminator(nn.Module):
    """`(x [b, h, w, c], c_noise [b], cond) -> logits [b, 1]`, float32 at least; positive for what looks like data.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen
    >>> network, x = from_linen(ImageDiscriminator(channels=(4, 8), num_classes=10)), jnp.zeros((2, 8, 8, 1))
    >>> labels = jnp.array([3, 7])
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(2), labels)
    >>> network.apply(params, x, jnp.zeros(2), labels).shape
    (2, 1)

    Attributes:
      channels: of each level, finest first; each level after the first halves the size, rounded up. The pixels of the
        last are flattened, so the parameters are those of one image size.
      num_classes: cond is an integer label [b] in 0 .. num_classes; None: cond is a float vector [b, k], or None.
      zero: whether residual branches start at zero; not with spectral norm, which would divide by that.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, an x that is no batch of images, or a cond.
    """

    channels: tuple[int, ...] = (32, 64)
    num_classes: int | None = None
    zero: bool = True
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        check_channels(self.channels, even_first=True)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], c_noise: ArrayLike, cond: Cond = None) -> Float[Array, "b 1"]:
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        wide = float32_at_least(self.dtype)
        embedding = ConditionEmbedding(2 * self.channels[0], self.num_classes, None, wide, name="conditioning")
        emb = embedding(broadcast_times(self, c_noise, x), cond)
        h = conv(self.channels[0], 3, self.dtype, name="in")(x)
        for level, channels in enumerate(self.channels):
            if level:
                h = conv(channels, 3, self.dtype, name=f"halve__{level}", stride=2)(h)
            h = _Block(channels, self.zero, self.dtype, name=f"blocks__{level}")(h, emb)
        h = _activate(h).reshape(x.shape[0], -1)
        return dense(1, wide, name="logits")(h.astype(wide))


@checked_numbers
class ImageGenerator(nn.Module):
    """`(z [b, k], c_noise, cond) -> x [b, h, w, c]`, float32 at least; c_noise is ignored.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen
    >>> network, z = from_linen(ImageGenerator((8, 8, 1), channels=(4, 8))), jnp.zeros((2, 16))
    >>> network.apply(network.init(jax.random.key(0), z, jnp.zeros(2), None), z, jnp.zeros(2), None).shape
    (2, 8, 8, 1)

    Attributes:
      shape: (h, w, c) of the images.
      channels: of each level, finest first; each level but the last is twice the size of the one after it.
      num_classes: cond is an integer label [b] in 0 .. num_classes; None: no condition.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, a z that is not [b, k], or a cond.
    """

    shape: tuple[int, ...]
    channels: tuple[int, ...] = (32, 64)
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        check_image_shape(self.shape)
        check_channels(self.channels)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, z: Float[Array, "b k"], c_noise: ArrayLike | None = None, cond: Cond = None
    ) -> Float[Array, "b h w c"]:
        if z.ndim != 2:
            raise ValueError(f"z: latents [b, k] are needed, got shape {z.shape}")
        emb = label_embedding(cond, self.num_classes, self.channels[-1], z.shape[0])
        sizes = level_sizes(self.shape, len(self.channels))
        (height, width), channels = sizes[-1], self.channels[-1]
        h = dense(height * width * channels, self.dtype, name="in")(z).reshape(-1, height, width, channels)
        for level in reversed(range(len(self.channels))):
            if level < len(self.channels) - 1:
                h = conv(self.channels[level], 3, self.dtype, name=f"double__{level}")(enlarge(h, *sizes[level]))
            h = _Block(self.channels[level], True, self.dtype, name=f"blocks__{level}")(h, emb)
        h = _activate(h)
        return conv(self.shape[2], 3, self.dtype, name="out")(h).astype(float32_at_least(self.dtype))


@checked_numbers
class LatentNetwork(nn.Module):
    """`(x [b, *d], c_noise [b], WithLatent(z [b, k], label)) -> y`: a network whose layers are modulated by a latent.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen, networks
    >>> network = from_linen(LatentNetwork(networks.MLP(width=16, depth=1), num_classes=3))
    >>> x, cond = jnp.zeros((4, 2)), WithLatent(jnp.zeros((4, 8)), jnp.arange(4) % 3)
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(4), cond)
    >>> network.apply(params, x, jnp.zeros(4), cond).shape
    (4, 2)

    Attributes:
      network: a module `(x, c_noise, vector [b, width]) -> y`, such as `MLP` or `UNet` without num_classes, whose last
        layer may start at zero.
      width: features of the mapping network.
      depth: its layers.
      num_classes: labels [b] are in 0 .. num_classes; None: there is no condition but z.
      dtype: of the mapping; parameters are float32.

    Raises:
      ValueError: a field that does not fit, or a cond that is no `WithLatent`.
    """

    network: nn.Module
    width: int = 64
    depth: int = 3
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"width, depth: at least 1 is needed, got {self.width} and {self.depth}")
        if not isinstance(self.network, nn.Module):
            raise ValueError(
                f"network: a Linen module is needed, got {type(self.network).__name__}; from_linen goes around the "
                "LatentNetwork"
            )
        if (classes := getattr(self.network, "num_classes", None)) is not None:
            raise ValueError(
                f"network: a module without num_classes is needed, got num_classes={classes}; give it to the "
                "LatentNetwork, which passes its network a vector"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b *d"], c_noise: ArrayLike, cond: Cond = None) -> Float[Array, "b *d"]:
        if not isinstance(cond, WithLatent):
            raise ValueError(f"cond: WithLatent(z, label) is needed, got {type(cond).__name__}")
        if self.num_classes is None and cond.cond is not None:
            raise ValueError(
                f"cond: no label is taken without num_classes, got {described(cond.cond)}; for labels set num_classes "
                "of the LatentNetwork"
            )
        h = cond.z.astype(self.dtype)
        for i in range(self.depth):
            h = _activate(dense(self.width, self.dtype, name=f"mapping__{i}")(h))
        if self.num_classes is not None:
            labels = as_labels(cond.cond, self.num_classes, (x.shape[0],))
            h = h + Table(self.num_classes + 1, self.width, name="labels")(labels).astype(h.dtype)
        return self.network(x, c_noise, h.astype(float32_at_least(self.dtype)))


class _Block(nn.Module):
    """A residual block `(h [b, h, w, c], emb [b, k] or None) -> h`, without norms."""

    channels: int
    zero: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Float[Array, "b k"] | None) -> Float[Array, "b h w c"]:
        h = conv(self.channels, 3, self.dtype, name="conv_1")(_activate(x))
        if emb is not None:
            h = h + dense(self.channels, self.dtype, name="modulate")(emb.astype(self.dtype))[:, None, None]
        return x + conv(self.channels, 3, self.dtype, name="conv_2", zero=self.zero)(_activate(h))


def _activate(h: Array) -> Array:
    """A leaky ReLU that keeps E[h^2] of normal numbers h of any shape."""
    return GAIN * nn.leaky_relu(h, LEAK)
