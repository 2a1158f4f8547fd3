"""Small encoders and decoders of variational autoencoders: vectors, and images of 8 x 8 and 28 x 28.

    Perceptron     x [b, *d] -> flatten -> n x [ Dense -> SiLU -> dropout ] -> Dense -> [b, *shape]
    ImageEncoder   x [b, h, w, c] -> conv -> [block, halve] a level -> norm -> SiLU -> flatten -> Dense -> [b, 2 k]
    ImageDecoder   z [b, k] -> Dense -> [block, double] a level -> norm -> SiLU -> conv -> [b, h, w, outputs c]

Each is called as every other network, `(x, c_noise, cond)`, and ignores c_noise. A label is a condition: its embedding
is joined to x, or modulates every block. Last layers do not start at zero: encoder and decoder would then have no
gradient at all, as W = 0, V = 0 has none in probabilistic PCA.

Source: Kingma & Welling 2014, appendix C; blocks: He et al. 2016.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._blocks import ResidualBlock, check_channels, conv, enlarge
from diffjax.networks._embedding import as_labels, described
from diffjax.networks._layers import Table, check_dropout, dense, float32_at_least
from diffjax.networks._norm import GroupNorm


@checked_numbers
class Perceptron(nn.Module):
    """`(x [b, *d], c_noise, cond) -> y [b, *shape]`, float32 at least: an encoder or decoder of vectors.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen
    >>> encoder, x = from_linen(Perceptron((2 * 3,), width=16)), jnp.zeros((4, 5))
    >>> params = encoder.init(jax.random.key(0), x, jnp.zeros(4))
    >>> encoder.apply(params, x, jnp.zeros(4)).shape
    (4, 6)

    Attributes:
      shape: of one sample's y; an encoder of k latents has (2 k,), means and log standard deviations.
      width: features of the hidden layers.
      depth: number of hidden layers.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label; None: no condition.
      dropout: the probability of dropping a hidden feature in training.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, or a cond.
    """

    shape: tuple[int, ...]
    width: int = 128
    depth: int = 2
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape: positive sizes of one sample's y are needed, got {self.shape}")
        if self.width < 1 or self.depth < 0:
            raise ValueError(f"width, depth: at least 1 and 0 are needed, got {self.width} and {self.depth}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *d"],
        c_noise: ArrayLike | None = None,
        cond: Cond = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b *k"]:
        h = x.reshape(x.shape[0], -1).astype(self.dtype)
        emb = label_embedding(cond, self.num_classes, self.width, x.shape[0])
        if emb is not None:
            h = jnp.concatenate([h, emb.astype(self.dtype)], axis=-1)
        for i in range(self.depth):
            h = nn.silu(dense(self.width, self.dtype, name=f"hidden__{i}")(h))
            h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        y = dense(math.prod(self.shape), self.dtype, name="out")(h)
        return y.astype(float32_at_least(self.dtype)).reshape(x.shape[0], *self.shape)


@checked_numbers
class ImageEncoder(nn.Module):
    """`(x [b, h, w, c], c_noise, cond) -> y [b, 2 latents]`: means, then log standard deviations.

    Attributes:
      latents: k, numbers of z.
      channels: of each level, finest first; each level after the first halves the size, rounded up. The pixels of the
        last are flattened, so the parameters are those of one image size.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label; None: no condition.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, an x that is no batch of images, or a cond.
    """

    latents: int
    channels: tuple[int, ...] = (32, 64)
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.latents < 1:
            raise ValueError(f"latents: at least one latent is needed, got {self.latents}")
        check_channels(self.channels)
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c_noise: ArrayLike | None = None,
        cond: Cond = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b k"]:
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        emb = label_embedding(cond, self.num_classes, self.channels[0], x.shape[0])
        h = conv(self.channels[0], 3, self.dtype, name="in")(x)
        for level, channels in enumerate(self.channels):
            if level:
                h = conv(channels, 3, self.dtype, name=f"halve__{level}", stride=2)(h)
            h = ResidualBlock(channels, self.dropout, deterministic, self.dtype, name=f"blocks__{level}")(h, emb)
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm")(h)).reshape(x.shape[0], -1)
        return dense(2 * self.latents, self.dtype, name="out")(h).astype(float32_at_least(self.dtype))


@checked_numbers
class ImageDecoder(nn.Module):
    """`(z [b, k], c_noise, cond) -> y [b, h, w, outputs c]`.

    Attributes:
      shape: (h, w, c) of the images.
      channels: of each level, finest first; each level but the last is twice the size of the one after it.
      outputs: numbers that the likelihood needs for each feature of an image.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label; None: no condition.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, a z that is not [b, k], or a cond.
    """

    shape: tuple[int, ...]
    channels: tuple[int, ...] = (32, 64)
    outputs: int = 1
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        check_image_shape(self.shape)
        check_channels(self.channels)
        if self.outputs < 1:
            raise ValueError(f"outputs: at least 1 is needed, got {self.outputs}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, z: Float[Array, "b k"], c_noise: ArrayLike | None = None, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w c"]:
        if z.ndim != 2:
            raise ValueError(f"z: latents [b, k] are needed, got shape {z.shape}")
        emb = label_embedding(cond, self.num_classes, self.channels[0], z.shape[0])
        sizes = level_sizes(self.shape, len(self.channels))
        (height, width), channels = sizes[-1], self.channels[-1]
        h = dense(height * width * channels, self.dtype, name="in")(z).reshape(-1, height, width, channels)
        for level in reversed(range(len(self.channels))):
            if level < len(self.channels) - 1:
                h = enlarge(h, *sizes[level])
            name = f"blocks__{level}"
            h = ResidualBlock(self.channels[level], self.dropout, deterministic, self.dtype, name=name)(h, emb)
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm")(h))
        return conv(self.outputs * self.shape[2], 3, self.dtype, name="out")(h).astype(float32_at_least(self.dtype))


def label_embedding(cond: Cond, num_classes: int | None, width: int, n: int) -> Float[Array, "b k"] | None:
    """Rows [n, width] of a table of labels; None without them. To be called in a compact method: the table is there.

    Raises:
      ValueError: labels that are none, or a condition where there is no num_classes.
    """
    if num_classes is None:
        if cond is not None:
            raise ValueError(
                f"cond: none is taken without num_classes, got {described(cond)}; for labels set num_classes, "
                "else give None"
            )
        return None
    return Table(num_classes + 1, width, name="labels")(as_labels(cond, num_classes, (n,)))


def level_sizes(shape: tuple[int, ...], levels: int) -> list[tuple[int, int]]:
    """(height, width) of each level of images (h, w, c), finest first: each half the one before, rounded up."""
    sizes = [(shape[0], shape[1])]
    for _ in range(levels - 1):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def check_image_shape(shape: tuple[int, ...]) -> None:
    """Raises `ValueError` where a field `shape` is not (height, width, channels)."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: (height, width, channels) is needed, got {shape}")
