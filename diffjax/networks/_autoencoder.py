"""A variational autoencoder of images, as latent diffusion has it: 8 times smaller along both axes with four levels.

    x -> conv -> [block x n, halve] x (levels - 1) -> block x n -> block, attention, block -> norm -> SiLU -> conv
                                                                                       -> (1 x 1 conv) -> mean, logvar
    z -> (1 x 1 conv) -> conv -> block, attention, block -> [block x (n + 1), double] x (levels - 1)
                                                         -> block x (n + 1) -> norm -> SiLU -> conv -> x

    block      x -> norm -> SiLU -> conv -> norm -> SiLU -> dropout -> conv --> + --> y
               +--> (1 x 1 convolution where the channels change) --------------+

q(z | x) = N(mean, exp(logvar) I). Diffusion takes place in scaling_factor (z - shift_factor), see `LatentSpace`.
Modules carry the names of diffusers' AutoencoderKL. Source: Rombach et al. 2022 (High-resolution image synthesis with
latent diffusion models), section 3.1 and appendix G; Kingma & Welling 2014.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._attention import attention
from diffjax.networks._blocks import GroupNorm, conv, enlarge
from diffjax.networks._embedding import check_dropout, dense
from diffjax.networks._repeat import again

EPSILON = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


class AutoencoderKL(nn.Module):
    """Images [b, h, w, in_channels] <-> latents [b, h', w', latent_channels], h' = h / 2^(levels - 1).

    `encode(x) -> (mean, logvar)`, `decode(z) -> x`, and the call `x -> decode(mean)`; outputs are float32 at least. A
    size that is not a multiple of 2^(levels - 1) is halved rounding down, and what decodes from it is smaller. Use
    `LatentSpace` for the two as pure functions.

    Attributes:
      in_channels, out_channels: of the images that are encoded, and of those that are decoded.
      latent_channels: of z.
      channels: of each level, finest first, each a multiple of `groups`.
      blocks: residual blocks a level of the encoder; one more in the decoder.
      groups: of every group normalisation.
      attention: whether the middles have self-attention, of one head.
      moments_conv: whether a 1 x 1 convolution follows the encoder.
      latents_conv: whether one precedes the decoder.
      scaling_factor: one over the latents' standard deviation; with `shift_factor`, their mean, it is no part of
        the network but belongs to its weights.
      upcast: compute in float32 where `dtype` is of half precision; the published Stable Diffusion weights overflow.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation.
      remat: keep only what enters each level for the backward pass, and compute the rest of it again.

    Raises:
      ValueError: a field that does not fit, or an x or z that is not [b, h, w, c] with its channels, or too small.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    groups: int = 32
    attention: bool = True
    moments_conv: bool = True
    latents_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    upcast: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        for name in ("in_channels", "out_channels", "latent_channels", "blocks", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1 is needed, got {getattr(self, name)}")
        if not self.channels or any(c < 1 or c % self.groups for c in self.channels):
            raise ValueError(f"channels: a multiple of groups = {self.groups} a level is needed, got {self.channels}")
        if self.scaling_factor == 0:
            raise ValueError(f"scaling_factor: it must not be 0, got {self.scaling_factor}")
        check_dropout(self.dropout)
        super().__post_init__()

    def setup(self):
        dtype = jnp.promote_types(self.dtype, jnp.float32) if self.upcast else self.dtype
        shared = (self.channels, self.blocks, self.groups, self.attention, self.dropout, dtype, self.remat)
        self.encoder = Encoder(2 * self.latent_channels, *shared)
        self.decoder = Decoder(self.out_channels, *shared)
        self.quant_conv = conv(2 * self.latent_channels, 1, dtype) if self.moments_conv else None
        self.post_quant_conv = conv(self.latent_channels, 1, dtype) if self.latents_conv else None

    def __call__(self, x: Any, *, deterministic: bool = True) -> Float[Array, "b h w k"]:
        mean, _ = self.encode(x, deterministic=deterministic)
        return self.decode(mean, deterministic=deterministic)

    def encode(self, x: Any, *, deterministic: bool = True) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w k"]]:
        """(mean, logvar) of q(z | x), each [b, h', w', latent_channels], for x [b, h, w, in_channels]."""
        _check_images("x", x, self.in_channels, 2 ** (len(self.channels) - 1))
        h = self.encoder(x, deterministic)
        h = h if self.quant_conv is None else self.quant_conv(h)
        mean, logvar = jnp.split(h.astype(_wide(h)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, z: Any, *, deterministic: bool = True) -> Float[Array, "b h w k"]:
        """Images [b, h, w, out_channels] of latents z [b, h', w', latent_channels]."""
        _check_images("z", z, self.latent_channels, 1)
        h = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z), deterministic)
        return h.astype(_wide(h))


class Encoder(nn.Module):
    """`x [b, h, w, c] -> [b, h', w', out]`."""

    out: int
    channels: tuple[int, ...]
    blocks: int
    groups: int
    attention: bool
    dropout: float
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], deterministic: bool) -> Float[Array, "b h2 w2 k"]:
        rest = (self.dropout, deterministic, self.dtype)
        h = conv(self.channels[0], 3, self.dtype, name="conv_in")(x)
        level = again(self, Level, self.remat)
        for i, channels in enumerate(self.channels):
            end = "" if i == len(self.channels) - 1 else "downsamplers__0"
            h = level(channels, self.blocks, self.groups, end, *rest, name=f"down_blocks__{i}")(h)
        h = Middle(self.groups, self.attention, *rest, name="mid_block")(h)
        return _out(self, h)


class Decoder(nn.Module):
    """`z [b, h', w', c] -> [b, h, w, out]`."""

    out: int
    channels: tuple[int, ...]
    blocks: int
    groups: int
    attention: bool
    dropout: float
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"], deterministic: bool) -> Float[Array, "b h2 w2 k"]:
        rest = (self.dropout, deterministic, self.dtype)
        h = conv(self.channels[-1], 3, self.dtype, name="conv_in")(z)
        h = Middle(self.groups, self.attention, *rest, name="mid_block")(h)
        level = again(self, Level, self.remat)
        for i, channels in enumerate(reversed(self.channels)):
            end = "" if i == len(self.channels) - 1 else "upsamplers__0"
            h = level(channels, self.blocks + 1, self.groups, end, *rest, name=f"up_blocks__{i}")(h)
        return _out(self, h)


class Level(nn.Module):
    """Blocks of one size, [b, h, w, c] -> [b, h, w, channels], and then the size halved, doubled or left."""

    channels: int
    blocks: int
    groups: int
    end: str
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        rest = (self.dropout, self.deterministic, self.dtype)
        for i in range(self.blocks):
            x = Block(self.channels, self.groups, *rest, name=f"resnets__{i}")(x)
        return Resize(self.end, self.dtype, name=self.end)(x) if self.end else x


class Resize(nn.Module):
    """[b, h, w, c] -> half the size, rounded down, or twice: a convolution after padding or repeating."""

    end: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        _, height, width, channels = x.shape
        if self.end.startswith("up"):
            return conv(channels, 3, self.dtype, name="conv")(enlarge(x, 2 * height, 2 * width))
        # Zeros to the right and below alone.
        return conv(channels, 3, self.dtype, name="conv", stride=2, padding=(0, 1))(x)


class Middle(nn.Module):
    """Block, attention, block, on [b, h, w, c]."""

    groups: int
    attention: bool
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        rest = (self.dropout, self.deterministic, self.dtype)
        x = Block(x.shape[-1], self.groups, *rest, name="resnets__0")(x)
        if self.attention:
            x = Attention(self.groups, self.dtype, name="attentions__0")(x)
        return Block(x.shape[-1], self.groups, *rest, name="resnets__1")(x)


class Block(nn.Module):
    """The residual block, [b, h, w, c] -> [b, h, w, channels]."""

    channels: int
    groups: int
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
        h = nn.silu(_norm(self, "norm1")(x))
        h = conv(self.channels, 3, self.dtype, name="conv1")(h)
        h = nn.silu(_norm(self, "norm2")(h))
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        h = conv(self.channels, 3, self.dtype, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, 1, self.dtype, name="conv_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Attention of one head among all positions of [b, h, w, c], added to them."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        h = _norm(self, "group_norm")(x).reshape(batch, height * width, 1, channels)
        q, k, v = (dense(channels, self.dtype, name=name)(h) for name in ("to_q", "to_k", "to_v"))
        return x + dense(channels, self.dtype, name="to_out__0")(attention(q, k, v).reshape(x.shape))


def _out(module, h):
    h = nn.silu(_norm(module, "conv_norm_out")(h))
    return conv(module.out, 3, module.dtype, name="conv_out")(h)


def _norm(module, name):
    return GroupNorm(EPSILON, module.dtype, module.groups, name=name)


def _wide(h):
    return jnp.promote_types(h.dtype, jnp.float32)


def _check_images(name, x, channels, least):
    if x.ndim != 4 or x.shape[-1] != channels or min(x.shape[1:3]) < least:
        raise ValueError(
            f"{name}: [b, height, width, {channels}] with sides of at least {least} is needed, got {x.shape}"
        )
