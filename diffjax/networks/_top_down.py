"""A hierarchical VAE's network, a small VDVAE: one pass from the top down, with or without data.

    x -> conv -> [block, halve] a resolution -> features e, one a resolution          bottom-up, with data only
                              |
    h = bias -> top-down blocks of this resolution -> enlarge, + bias -> top-down blocks -> ... -> norm -> conv -> y

    block   prior, residual = branch*(h)                 change = branch([h, e]) with data, None without
            z = draw(prior, change)                      h = h + residual + conv(z)/sqrt(n)
            h = h + branch(h)/sqrt(n)                    n blocks in all                         * last conv at zero

    branch  SiLU -> conv 1x1 -> SiLU -> conv 3x3 -> SiLU -> conv 1x1, of half the width inside

`draw` is the caller's: from the posterior it is inference, from the prior generation, and the network knows nothing of
distributions. The prior starts as N(0, I) at each level and does not change h.

Source: Child 2021 (VDVAE), section 3 and figure 3, arXiv:2011.10650; change relative to the prior: Vahdat & Kautz 2020
(NVAE), section 3.2, arXiv:2007.03898.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._blocks import ResidualBlock, check_channels, conv, enlarge
from diffjax.networks._coders import check_image_shape, label_embedding, level_sizes
from diffjax.networks._init import constant, normal
from diffjax.networks._layers import check_dropout, dense, float32_at_least
from diffjax.networks._norm import GroupNorm

DrawLevel: TypeAlias = Callable[[Array, Array | None], Array]
"""`(prior [n or 1, h, w, 2 k], change [n, h, w, 2 k] or None) -> z [n, h, w, k]`: means, then log standard deviations.

The top's prior is that of every sample, and has one row where there are neither data nor labels."""


@checked_numbers
class TopDown(nn.Module):
    """`(x [n, h, w, c] or None, cond, draw=...) -> y [n, h, w, outputs c]`, calling `draw` once a level.

    It is the network of `vae.HierarchicalVAE`, which gives it a `draw`. A level is one top-down block.

    Attributes:
      shape: (h, w, c) of the images.
      channels: of each resolution, finest first; each is half the one before, rounded up.
      blocks: top-down blocks of each resolution, finest first: together the number of levels.
      latents: channels of z in each block.
      outputs: numbers that the likelihood needs for each feature of an image.
      num_classes: cond is an integer label [n] in 0 .. num_classes, the last being the null label; None: no condition.
      dropout: of the bottom-up blocks, the probability of dropping a feature in training.
      dtype: of the computation; parameters, and what `draw` is given, are float32 at least.

    Raises:
      ValueError: a field that does not fit, such as a level without a latent, or an x of another shape.
    """

    shape: tuple[int, ...]
    channels: tuple[int, ...] = (32, 64)
    blocks: tuple[int, ...] = (2, 2)
    latents: int = 4
    outputs: int = 2
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        check_image_shape(self.shape)
        check_channels(self.channels)
        if len(self.blocks) != len(self.channels) or min(self.blocks) < 0 or sum(self.blocks) < 1:
            needed = f"a number for each of the {len(self.channels)} resolutions, at least one in all,"
            raise ValueError(f"blocks: {needed} is needed, got {self.blocks}")
        if self.latents < 1:
            raise ValueError(f"latents: at least one latent a level is needed, got {self.latents}")
        if self.outputs < 1:
            raise ValueError(f"outputs: at least 1 is needed, got {self.outputs}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"] | None,
        cond: Cond = None,
        *,
        draw: DrawLevel,
        deterministic: bool = True,
    ) -> Float[Array, "n h w k"]:
        if x is not None and x.shape[1:] != self.shape:
            raise ValueError(f"x: images of shape (n, {', '.join(map(str, self.shape))}) are needed, got {x.shape}")
        # Without data or labels nothing has a batch axis before the first draw.
        n = 1 if x is None and cond is None else (cond if x is None else x).shape[0]
        emb = label_embedding(cond, self.num_classes, self.channels[0], n)
        features = None if x is None else self._bottom_up(x, emb, deterministic)
        sizes, scale = level_sizes(self.shape, len(self.channels)), sum(self.blocks) ** -0.5
        h = None
        for level in reversed(range(len(self.channels))):
            channels = self.channels[level]
            if h is not None:
                h = enlarge(h, *sizes[level])
                h = conv(channels, 1, self.dtype, name=f"enter__{level}")(h) if h.shape[-1] != channels else h
            bias = self.param(f"bias__{level}", constant(0.0), (*sizes[level], channels), jnp.float32)
            bias = jnp.broadcast_to(bias.astype(self.dtype), (n, *bias.shape))
            h = bias if h is None else h + bias
            if emb is not None:
                h = h + dense(channels, self.dtype, name=f"label__{level}")(emb.astype(self.dtype))[:, None, None]
            for i in range(self.blocks[level]):
                block = _Block(channels, self.latents, scale, self.dtype, name=f"blocks__{level}__{i}")
                h = block(h, None if features is None else features[level], draw)
        assert h is not None
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm")(h))
        y = conv(self.outputs * self.shape[2], 3, self.dtype, name="out")(h)
        return y.astype(float32_at_least(self.dtype))

    def _bottom_up(self, x, emb, deterministic):
        """Features of x at each resolution, finest first."""
        h, features = conv(self.channels[0], 3, self.dtype, name="in")(x), []
        for level, channels in enumerate(self.channels):
            if level:
                h = conv(channels, 3, self.dtype, name=f"halve__{level}", stride=2)(h)
            h = ResidualBlock(channels, self.dropout, deterministic, self.dtype, name=f"up__{level}")(h, emb)
            features.append(h)
        return features


class _Block(nn.Module):
    """A level: `(h [n, h, w, c], features or None, draw) -> h`."""

    channels: int
    latents: int
    scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h, features, draw):
        wide, k = float32_at_least(self.dtype), self.latents
        given = _branch(self, h, 2 * k + self.channels, "prior", std=0.0)
        prior, residual = given[..., : 2 * k].astype(wide), given[..., 2 * k :]
        change = None
        if features is not None:
            joined = jnp.concatenate([h, features], axis=-1)
            change = _branch(self, joined, 2 * k, "posterior", std=None).astype(wide)
        z = draw(prior, change).astype(self.dtype)
        std = self.scale / k**0.5
        h = h + residual + _pointwise(self, self.channels, "latents", std)(z)
        return h + _branch(self, h, self.channels, "close", std=self.scale / max(self.channels // 2, 1) ** 0.5)


def _branch(block, x, features, name, *, std):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, each after SiLU; the last is drawn with `std` (None: 1/fan_in)."""
    inside = max(block.channels // 2, 1)
    x = conv(inside, 1, block.dtype, name=f"{name}__0")(nn.silu(x))
    x = conv(inside, 3, block.dtype, name=f"{name}__1")(nn.silu(x))
    return _pointwise(block, features, f"{name}__2", std)(nn.silu(x))


def _pointwise(block, features, name, std):
    """A 1 x 1 convolution whose kernel is drawn with a standard deviation, at zero where that is 0."""
    init = constant(0.0) if std == 0 else normal(std)
    return nn.Conv(features, (1, 1), kernel_init=init, bias_init=constant(0.0), dtype=block.dtype, name=name)
