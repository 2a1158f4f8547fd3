"""A variational autoencoder of images, as latent diffusion has it: 8 times smaller along both axes with four levels.

    x -> conv -> [block x n, halve] x (levels - 1) -> block x n -> block, attention, block -> norm -> SiLU -> conv
                                                                                       -> (1 x 1 conv) -> mean, logvar
    z -> (1 x 1 conv) -> conv -> block, attention, block -> [block x (n + 1), double] x (levels - 1)
                                                         -> block x (n + 1) -> norm -> SiLU -> conv -> x

    block      x -> norm -> SiLU -> conv -> norm -> SiLU -> dropout -> conv --> + --> y
               +--> (1 x 1 convolution where the channels change) --------------+

q(z | x) = N(mean, exp(logvar) I). Diffusion takes place in scaling_factor (z - shift_factor), by `LatentSpace`:

    x0 --encode--> z = scaling_factor (mean + std eps - shift_factor) ---> training, sampling ---> z --decode--> x0

Modules carry the names of diffusers' AutoencoderKL. Source: Rombach et al. 2022 (High-resolution image synthesis with
latent diffusion models), section 3.1 and appendix G; Kingma & Welling 2014.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffjax._arrays import as_samples, check_key, default_index, normal_like, sample_keys
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Params, Sample
from diffjax.networks._blocks import DIFFUSERS, MidBlock, Resample, ResidualBlock, conv
from diffjax.networks._layers import check_dropout, float32_at_least
from diffjax.networks._norm import GroupNorm
from diffjax.networks._repeat import rematerialised

EPSILON = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@checked_numbers
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
      middle_attention: whether the middles have self-attention, of one head.
      moments_conv: whether a 1 x 1 convolution follows the encoder.
      latents_conv: whether one precedes the decoder.
      scaling_factor: one over the latents' standard deviation; with `shift_factor`, their mean, it is no part of
        the network but belongs to its weights.
      upcast: compute in float32 where `dtype` is of half precision; the published Stable Diffusion weights overflow.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation.
      remat: recompute each level in the backward pass instead of storing its activations.

    Raises:
      ValueError: a field that does not fit, or an x or z that is not [b, h, w, c] with its channels, or too small.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    groups: int = 32
    middle_attention: bool = True
    moments_conv: bool = True
    latents_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    upcast: bool = True
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
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
        dtype = float32_at_least(self.dtype) if self.upcast else self.dtype
        shared = (self.channels, self.blocks, self.groups, self.middle_attention, self.dropout, dtype, self.remat)
        self.encoder = Encoder(2 * self.latent_channels, *shared)
        self.decoder = Decoder(self.out_channels, *shared)
        self.quant_conv = conv(2 * self.latent_channels, 1, dtype) if self.moments_conv else None
        self.post_quant_conv = conv(self.latent_channels, 1, dtype) if self.latents_conv else None

    def __call__(self, x: Float[Array, "b h w c"], *, deterministic: bool = True) -> Float[Array, "b h w k"]:
        mean, _ = self.encode(x, deterministic=deterministic)
        return self.decode(mean, deterministic=deterministic)

    def encode(
        self, x: Float[Array, "b h w c"], *, deterministic: bool = True
    ) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w k"]]:
        """(mean, logvar) of q(z | x), each [b, h', w', latent_channels], for x [b, h, w, in_channels]."""
        _check_images("x", x, self.in_channels, 2 ** (len(self.channels) - 1))
        h = self.encoder(x, deterministic)
        h = h if self.quant_conv is None else self.quant_conv(h)
        mean, logvar = jnp.split(h.astype(float32_at_least(h.dtype)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, z: Float[Array, "b h w c"], *, deterministic: bool = True) -> Float[Array, "b h w k"]:
        """Images [b, h, w, out_channels] of latents z [b, h', w', latent_channels]."""
        _check_images("z", z, self.latent_channels, 1)
        h = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z), deterministic)
        return h.astype(float32_at_least(h.dtype))


class LatentSpace(eqx.Module):
    """Images <-> latents of about unit variance, by an autoencoder with its parameters.

        latents = LatentSpace(params, autoencoder)
        source = data.encoded(images, latents.encode)     # train on these: any network, loss and process
        z = sample(key, process, denoiser, zT, ts, stepper)
        x0 = latents.decode(z)

    Attributes:
      params: of the autoencoder, a tree; leaves of this.
      autoencoder: an `AutoencoderKL`.
    """

    params: Params
    autoencoder: AutoencoderKL = eqx.field(static=True)

    def encode(self, key: Key, x0: Sample, *, index: Index | None = None) -> Float[Array, "b h w c"]:
        """A draw z [b, h', w', latent_channels] from q(z | x0) for images x0 [b, h, w, c].

        The draw of image i depends on the key and its global index alone (default 0 .. b - 1).
        """
        check_key(key)
        x0 = as_samples("x0", x0)
        mean, std = self.moments(x0)
        return mean + std * normal_like(sample_keys(key, default_index(x0.shape[0], index)), mean)

    def moments(self, x0: Sample) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """(mean, std) of q(z | x0), each [b, h', w', latent_channels], for images x0 [b, h, w, c]."""
        x0 = as_samples("x0", x0)
        mean, logvar = self._call(x0, method="encode")
        scale, shift = self.autoencoder.scaling_factor, self.autoencoder.shift_factor
        return scale * (mean - shift), abs(scale) * jnp.exp(0.5 * logvar)

    def decode(self, z: Float[Array, "b h w c"]) -> Sample:
        """Images x0 [b, h, w, c] of latents z [b, h', w', latent_channels]."""
        z = as_samples("z", z)
        return self._call(z / self.autoencoder.scaling_factor + self.autoencoder.shift_factor, method="decode")

    def _call(self, x: Array, method: str) -> Any:
        return self.autoencoder.apply({"params": self.params}, x, method=method)


class Encoder(nn.Module):
    """`x [b, h, w, c] -> [b, h', w', out]`."""

    out: int
    channels: tuple[int, ...]
    blocks: int
    groups: int
    attention: bool
    dropout: float
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], deterministic: bool) -> Float[Array, "b h2 w2 k"]:
        rest = (self.dropout, deterministic, self.dtype)
        h = conv(self.channels[0], 3, self.dtype, name="conv_in")(x)
        level = rematerialised(self, Level, self.remat)
        for i, channels in enumerate(self.channels):
            end = "" if i == len(self.channels) - 1 else "downsamplers__0"
            h = level(channels, self.blocks, self.groups, end, *rest, name=f"down_blocks__{i}")(h)
        h = _middle(self, deterministic)(h)
        return _out(self, h)


class Decoder(nn.Module):
    """`z [b, h', w', c] -> [b, h, w, out]`."""

    out: int
    channels: tuple[int, ...]
    blocks: int
    groups: int
    attention: bool
    dropout: float
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"], deterministic: bool) -> Float[Array, "b h2 w2 k"]:
        rest = (self.dropout, deterministic, self.dtype)
        h = conv(self.channels[-1], 3, self.dtype, name="conv_in")(z)
        h = _middle(self, deterministic)(h)
        level = rematerialised(self, Level, self.remat)
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
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        fields = _block(self, self.deterministic)
        for i in range(self.blocks):
            x = ResidualBlock(self.channels, **fields, name=f"resnets__{i}")(x)
        # Zeros to the right and below alone, where the size is halved.
        resample = Resample(self.end.startswith("up"), self.dtype, (0, 1), name=self.end) if self.end else None
        return x if resample is None else resample(x)


def _block(module, deterministic):
    """Fields of the residual blocks."""
    return {
        "dropout": module.dropout,
        "deterministic": deterministic,
        "dtype": module.dtype,
        "groups": module.groups,
        "epsilon": EPSILON,
        "zero": False,
        "names": DIFFUSERS,
    }


def _middle(module, deterministic):
    attention = {"dtype": module.dtype, "groups": module.groups, "epsilon": EPSILON, "zero": False}
    return MidBlock(_block(module, deterministic), attention if module.attention else None, name="mid_block")


def _out(module, h):
    h = nn.silu(_norm(module, "conv_norm_out")(h))
    return conv(module.out, 3, module.dtype, name="conv_out")(h)


def _norm(module, name):
    return GroupNorm(EPSILON, module.dtype, module.groups, name=name)


def _check_images(name, x, channels, least):
    if x.ndim != 4 or x.shape[-1] != channels or min(x.shape[1:3]) < least:
        raise ValueError(
            f"{name}: [b, height, width, {channels}] with sides of at least {least} is needed, got {x.shape}"
        )
