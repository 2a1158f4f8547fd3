"""A discriminator of patches: each output pixel judges the part of the image that it sees.

    x [b, h, w, c] -> conv 4 x 4, halve -> leaky ReLU -> [conv 4 x 4, halve -> norm -> leaky ReLU] x (levels - 1)
                                                                       -> conv 3 x 3 -> logits [b, h', w', 1]

Few pixels decide each logit, so it judges texture, and leaves what the image shows to other losses. Groups in place of
the paper's batch normalisation keep the samples of a batch apart. Source: Isola et al. 2017 (pix2pix), section 3.2.2;
in an autoencoder, Esser et al. 2021 (VQGAN), section 3.1.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax.networks._blocks import check_channels, conv
from diffjax.networks._layers import float32_at_least
from diffjax.networks._norm import GroupNorm


@checked_numbers
class PatchDiscriminator(nn.Module):
    """Images [b, h, w, c] -> logits [b, h', w', 1], float32 at least; positive for what looks like data.

    h' is h halved `len(channels)` times, rounded up, and w' likewise.

    >>> import jax, jax.numpy as jnp
    >>> discriminator, x = PatchDiscriminator((8, 16)), jnp.zeros((2, 28, 28, 1))
    >>> params = discriminator.init(jax.random.key(0), x)["params"]
    >>> discriminator.apply({"params": params}, x).shape
    (2, 7, 7, 1)

    Attributes:
      channels: of each level, the finest first; each halves the size.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a level without channels, or an x that is not [b, h, w, c].
    """

    channels: tuple[int, ...] = (64, 128)
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        check_channels(self.channels)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 1"]:
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        for level, channels in enumerate(self.channels):
            x = conv(channels, 4, self.dtype, name=f"halve__{level}", stride=2)(x)
            x = GroupNorm(dtype=self.dtype, name=f"norm__{level}")(x) if level else x
            x = nn.leaky_relu(x, 0.2)
        return conv(1, 3, float32_at_least(self.dtype), name="logits")(x.astype(float32_at_least(self.dtype)))
