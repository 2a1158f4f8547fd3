"""The parts that U-Nets and autoencoders are built of: residual block, resampling, the middle.

    ResidualBlock  x -> norm -> act -> [resample] -> conv -> norm (1 + s) + u -> act -> dropout -> conv* -> + -> /r -> y
                   |         emb [b, k] -> [act] -> Dense -> s, u -----^                                    ^
                   +--> [resample] --> (1 x 1 convolution where the channels change) -----------------------+

                    or, without scale and shift, h + Dense(act(emb)) before the second norm; or without emb

    MidBlock        ResidualBlock -> ImageAttention -> ResidualBlock
    Resample        convolution of stride 2, or every pixel twice and a convolution                 * starts at zero

Source: Ho et al. 2020, appendix B; scale and shift, resampling within a block: Dhariwal & Nichol 2021, section 3;
division by r: Song et al. 2021, appendix H.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax.networks._attention import ImageAttention
from diffjax.networks._convolution import convolution
from diffjax.networks._init import constant, normal
from diffjax.networks._layers import Function, dense
from diffjax.networks._norm import GroupNorm
from diffjax.networks._repeat import rematerialised
from diffjax.networks._text import Text


def conv(
    features: int,
    size: int,
    dtype: DTypeLike,
    *,
    name: str | None = None,
    stride: int = 1,
    padding: str | tuple[int, int] = "SAME",
    zero: bool = False,
) -> nn.Conv:
    """A square convolution [b, h, w, c] -> [b, h', w', features].

    Args:
      features: channels of the answer.
      size: of the kernel.
      dtype: of the computation.
      name: of the module.
      stride: along both axes.
      padding: "SAME" keeps the size (halves it, rounded up, at stride 2); (p, q) is p zeros before and q after, along
        both axes.
      zero: whether it starts at zero.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding if isinstance(padding, str) else (padding, padding),
        kernel_init=constant(0.0) if zero else normal(),
        bias_init=constant(0.0),
        dtype=dtype,
        conv_general_dilated=convolution,
        name=name,
    )


class BlockNames(NamedTuple):
    """The names of a `ResidualBlock`'s layers."""

    norm_1: str
    conv_1: str
    emb: str
    norm_2: str
    conv_2: str
    skip: str


PLAIN = BlockNames("norm_1", "conv_1", "modulate", "norm_2", "conv_2", "skip")
DIFFUSERS = BlockNames("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")


@checked_numbers
class ResidualBlock(nn.Module):
    """`(x [b, h, w, c], emb [b, k] or None) -> [b, h', w', channels]`; starts as the identity where channels stay.

    Attributes:
      channels: of the output.
      dropout, deterministic: before the second convolution.
      dtype: of the computation.
      groups: of the second norm, and of the first unless `groups_in`; `groups_of(channels)` where None.
      epsilon: of the norms.
      activation: after the norms.
      scale_shift: emb is a scale and a shift after the second norm, else a shift before it.
      activate_emb: the activation is applied to emb too; else it is activated already.
      resample: `(x) -> x` of another size, such as a partial `halve` or `double`; None keeps the size.
      shortcut: a convolution on the skip, also where channels stay.
      rescale: r, divides the sum.
      zero: the last convolution starts at zero.
      names: of the layers.
    """

    channels: int
    dropout: float
    deterministic: bool
    dtype: DTypeLike
    groups: int | None = None
    groups_in: int | None = None
    epsilon: float = 1e-5
    activation: Function = nn.silu
    scale_shift: bool = True
    activate_emb: bool = False
    resample: Function | None = None
    shortcut: bool = False
    rescale: float = 1.0
    zero: bool = True
    names: BlockNames = PLAIN

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Float[Array, "b k"] | None = None) -> Float[Array, "b h2 w2 d"]:
        names, groups_in = self.names, self.groups_in or self.groups
        h = self.activation(GroupNorm(self.epsilon, self.dtype, groups_in, name=names.norm_1)(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = conv(self.channels, 3, self.dtype, name=names.conv_1)(h)
        modulation = None
        if emb is not None:
            emb = self.activation(emb) if self.activate_emb else emb
            modulation = dense(self.channels * (1 + self.scale_shift), emb.dtype, name=names.emb)(emb)
            if not self.scale_shift:
                h, modulation = h + modulation[:, None, None].astype(h.dtype), None
        h = self.activation(GroupNorm(self.epsilon, self.dtype, self.groups, name=names.norm_2)(h, modulation))
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        h = conv(self.channels, 3, self.dtype, name=names.conv_2, zero=self.zero)(h)
        if self.shortcut or x.shape[-1] != self.channels:
            x = conv(self.channels, 1, self.dtype, name=names.skip)(x)
        return x + h if self.rescale == 1 else (x + h) / self.rescale


class MidBlock(nn.Module):
    """`(x [b, h, w, c], emb [b, k], text) -> [b, h, w, c]`: residual block, attention, residual block.

    Attributes:
      block: fields of the residual blocks, all but `channels`.
      attention: fields of the attention; None: there is none.
      remat: compute each again in the backward pass.
    """

    block: Mapping[str, Any]
    attention: Mapping[str, Any] | None
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b k"] | None = None, text: Text | None = None
    ) -> Float[Array, "b h w c"]:
        block = rematerialised(self, ResidualBlock, self.remat)
        x = block(channels=x.shape[-1], **self.block, name="resnets__0")(x, emb)
        if self.attention is not None:
            x = rematerialised(self, ImageAttention, self.remat)(**self.attention, name="attentions__0")(x, text)
        return block(channels=x.shape[-1], **self.block, name="resnets__1")(x, emb)


class Resample(nn.Module):
    """`[b, h, w, c] -> [b, h', w', c]`: half the size by a convolution of stride 2, or twice the size.

    Attributes:
      up: double the size, by repeating pixels before the convolution.
      dtype: of the computation.
      padding: zeros (before, after) of the convolution that halves.
    """

    up: bool
    dtype: DTypeLike
    padding: tuple[int, int] = (0, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        channels = x.shape[-1]
        if self.up:
            return conv(channels, 3, self.dtype, name="conv")(enlarge(x, 2 * x.shape[1], 2 * x.shape[2]))
        return conv(channels, 3, self.dtype, name="conv", stride=2, padding=self.padding)(x)


@checked_numbers
def enlarge(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Every pixel of x [b, h, w, c] twice along both axes, cut to height and width: undoes the halving of odd sizes."""
    b, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return doubled[:, :height, :width]


def check_channels(channels: tuple[int, ...], *, even_first: bool = False) -> None:
    """Raises `ValueError` where a field `channels` is not one positive number a level, or the first is to be even."""
    if not channels or min(channels) < 1:
        raise ValueError(f"channels: one positive number a level is needed, got {channels}")
    if even_first and channels[0] % 2:
        raise ValueError(f"channels: an even number is needed for the first level, got {channels}")


def check_sides(x: Array, unit: int, reason: str, remedy: str) -> None:
    """Raises `ValueError` where x is not [b, h, w, c], or `unit` does not divide both h and w.

    Args:
      x: images.
      unit: what must divide height and width.
      reason: the field that needs it, and why.
      remedy: values of the field that would do.
    """
    if x.ndim != 4:
        raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
    height, width = x.shape[1:3]
    if height % unit or width % unit:
        padded = " x ".join(str(-(-side // unit) * unit) for side in (height, width))
        raise ValueError(
            f"{reason}, got shape {x.shape}, images of {height} x {width}; take {remedy}, or pad the images to {padded}"
        )


def check_levels(x: Array, levels: int, field: str) -> None:
    """Raises `ValueError` where x [b, h, w, c] cannot be halved for each of `levels` levels, which a field gives."""
    unit, common = 2 ** (levels - 1), math.gcd(*x.shape[1:3]) if x.ndim == 4 else 1
    most = (common & -common).bit_length()
    reason = f"{field}: for {levels} levels height and width must be multiples of {unit}"
    check_sides(x, unit, reason, f"{most} level{'s' * (most > 1)} or fewer")
