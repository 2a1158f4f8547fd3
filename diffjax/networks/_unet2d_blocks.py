"""One level of `UNet2D`, on the way down or up, with the names of diffusers.

    DownBlock   (ResidualBlock, ImageAttention) x n -> halve [-> join the shrinking input]      each output a skip
    UpBlock     (join a skip, ResidualBlock, ImageAttention) x n [-> add to the growing output] -> double

`_blocks` and `_attention` have the two modules. Source: Ho et al. 2020, appendix B; resampling within a block:
Dhariwal & Nichol 2021, section 3; FIR filters, shrinking input and growing output: Song et al. 2021, appendix H.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax.networks._attention import ImageAttention
from diffjax.networks._blocks import DIFFUSERS, Resample, ResidualBlock, conv
from diffjax.networks._init import constant, normal
from diffjax.networks._layers import Function
from diffjax.networks._norm import GroupNorm
from diffjax.networks._repeat import rematerialised
from diffjax.networks._resample import BOX, blur, double, halve
from diffjax.networks._text import Text

Image = Float[Array, "b h w c"]
Pyramid = Callable[..., tuple[Image, Any]]
"""`(stage, settings, h, image[, channels, last=]) -> (h, image)`."""


class Stage(NamedTuple):
    """The design of one level, on the way down or up.

    Attributes:
      attentions: number of residual blocks, the last of the level, that are followed by attention.
      residual: resampling by a residual block (as BigGAN and ADM do), not by a convolution.
      shortcut: a 1 x 1 convolution on the skip of that block.
      taps: of the filter that such a block resamples with.
      pyramid: `input_skip` or `input_residual` on the way down, `output_skip` or `output_residual` on the way up, or
        None.
      rescale: divisor of every sum of a branch and its skip.
      groups: of the residual blocks' norms; `groups_of(channels)` where None.
      attention_groups: of the attention's norm; `groups_of(channels)` where None, no norm where 0.
      joined_groups: on the way up, (channels from below, channels of the skip) -> groups of the norm of both; as
        `groups` where None.
    """

    attentions: int = 0
    residual: bool = False
    shortcut: bool = False
    taps: tuple[float, ...] = BOX
    pyramid: Pyramid | None = None
    rescale: float = 1.0
    groups: int | None = None
    attention_groups: int | None = None
    joined_groups: Callable[[int, int], int] | None = None


class Settings(NamedTuple):
    """What all blocks of a network share; see `UNet2D`."""

    epsilon: float
    dropout: float
    scale_shift: bool
    activation: Function
    head_channels: int | None
    padding: tuple[int, int]
    dtype: DTypeLike
    deterministic: bool
    remat: bool

    def block(self, stage: Stage) -> dict[str, Any]:
        """Fields of a stage's residual blocks, all but `channels`."""
        return {
            "dropout": self.dropout,
            "deterministic": self.deterministic,
            "dtype": self.dtype,
            "groups": stage.groups,
            "epsilon": self.epsilon,
            "activation": self.activation,
            "scale_shift": self.scale_shift,
            "activate_emb": True,
            "rescale": stage.rescale,
            "names": DIFFUSERS,
        }

    def attention(self, stage: Stage) -> dict[str, Any]:
        """Fields of a stage's attention."""
        return {
            "dtype": self.dtype,
            "head_channels": self.head_channels,
            "groups": stage.attention_groups,
            "epsilon": self.epsilon,
            "rescale": stage.rescale,
        }


class FilteredDouble(nn.Module):
    """A 3 x 3 convolution of x with zeros between pixels, then the filter: [b, h, w, c] -> [b, 2 h, 2 w, channels]."""

    channels: int
    taps: tuple[float, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        kernel = self.param("kernel", normal(), (3, 3, x.shape[-1], self.channels), jnp.float32)
        bias = self.param("bias", constant(0.0), (self.channels,), jnp.float32)
        layout, edge = ("NHWC", "HWIO", "NHWC"), len(self.taps) // 2 - 1
        doubled = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding=((2, 2), (2, 2)),
            lhs_dilation=(2, 2),
            dimension_numbers=layout,
        )
        return 4 * blur(doubled, self.taps, (edge, edge)) + bias.astype(self.dtype)


class DownBlock(nn.Module):
    """`(h [b, h, w, c], emb [b, k], text, image) -> (h, image, outputs)`.

    image is the shrinking input, and outputs are the skips.
    """

    stage: Stage
    settings: Settings
    channels: int
    blocks: int
    last: bool

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], emb: Float[Array, "b k"], text: Text | None, image: Image
    ) -> tuple[Float[Array, "b h2 w2 d"], Image, list[Array]]:
        stage, s, outputs = self.stage, self.settings, []
        block, attention = _modules(self, s.remat)
        first = self.blocks - stage.attentions
        for i in range(self.blocks):
            h = block(self.channels, **s.block(stage), name=f"resnets__{i}")(h, emb)
            if i >= first:
                h = attention(**s.attention(stage), name=f"attentions__{i - first}")(h, text)
            outputs.append(h)
        if not self.last:
            if stage.residual:
                name = "resnet_down" if stage.shortcut else "downsamplers__0"
                fields = s.block(stage) | {"resample": partial(halve, taps=stage.taps), "shortcut": stage.shortcut}
                h = block(self.channels, **fields, name=name)(h, emb)
            else:
                h = Resample(False, s.dtype, s.padding, name="downsamplers__0")(h)
            if stage.pyramid is not None:
                h, image = stage.pyramid(stage, s, h, image)
            outputs.append(h)
        return h, image, outputs


class UpBlock(nn.Module):
    """`(h [b, h, w, c], emb [b, k], text, image, skips) -> (h, image)`; pops its skips; image is the growing output."""

    stage: Stage
    settings: Settings
    channels: int
    out_channels: int
    blocks: int
    last: bool

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b h w c"],
        emb: Float[Array, "b k"],
        text: Text | None,
        image: Image | None,
        skips: list[Array],
    ) -> tuple[Float[Array, "b h2 w2 d"], Image | None]:
        stage, s = self.stage, self.settings
        block, attention = _modules(self, s.remat)
        first = self.blocks - stage.attentions
        for i in range(self.blocks):
            skip = skips.pop()
            groups = stage.joined_groups and stage.joined_groups(h.shape[-1], skip.shape[-1])
            h = jnp.concatenate([h, skip], axis=-1)
            h = block(self.channels, **s.block(stage), groups_in=groups, name=f"resnets__{i}")(h, emb)
            if i >= first:
                h = attention(**s.attention(stage), name=f"attentions__{i - first}")(h, text)
        if stage.pyramid is not None:
            h, image = stage.pyramid(stage, s, h, image, self.out_channels, last=self.last)
        if not self.last:
            if stage.residual:
                name = "resnet_up" if stage.shortcut else "upsamplers__0"
                fields = s.block(stage) | {"resample": partial(double, taps=stage.taps), "shortcut": stage.shortcut}
                h = block(self.channels, **fields, name=name)(h, emb)
            else:
                h = Resample(True, s.dtype, name="upsamplers__0")(h)
        return h, image


# --- the shrinking input and the growing output; each is called in its block's scope ------------------------------


def input_skip(stage: Stage, s: Settings, h: Image, image: Image) -> tuple[Image, Image]:
    """Adds the input, halved by the filter, to the features [b, h, w, c] by a 1 x 1 convolution.

    Args:
      stage, s: of the level.
      h: features [b, h, w, c], after the level has halved.
      image: the input [b, 2 h, 2 w, k] at the size before.

    Returns:
      The features and the input, both at the new size.
    """
    image = halve(image, stage.taps)
    return conv(h.shape[-1], 1, s.dtype, name="skip_conv")(image) + h, image


def input_residual(stage: Stage, s: Settings, h: Image, image: Image) -> tuple[Image, Image]:
    """Adds what the last level ended with, halved by the filter and a convolution: a residual network of the levels.

    Args:
      stage, s: of the level.
      h: features [b, h, w, c], after the level has halved.
      image: the features after the level before, or the input, [b, 2 h, 2 w, k].

    Returns:
      The sum [b, h, w, c], twice: it is the next level's `image` too.
    """
    edge = len(stage.taps) // 2
    blurred = blur(image.astype(s.dtype), stage.taps, (edge, edge))
    image = conv(h.shape[-1], 3, s.dtype, name="skip_conv", stride=2, padding=(0, 0))(blurred)
    h = _divide(image + h, stage.rescale)
    return h, h


@checked_numbers
def output_skip(
    stage: Stage, s: Settings, h: Image, image: Image | None, channels: int, *, last: bool
) -> tuple[Image, Image | None]:
    """Every level but the last adds to the output [b, h, w, channels] by a norm, SiLU and a 3 x 3 convolution.

    Args:
      stage, s: of the level.
      h: features [b, h, w, c], before the level doubles.
      image: the output so far [b, h/2, w/2, channels], None at the coarsest level.
      channels: of the output.
      last: whether it is the finest level, whose part is the network's last convolution.

    Returns:
      The features, and the output at this size or None.
    """
    image = None if image is None else double(image, stage.taps)
    if last:
        return h, image
    share = nn.silu(GroupNorm(s.epsilon, s.dtype, stage.groups, name="skip_norm")(h))
    share = conv(channels, 3, s.dtype, name="skip_conv", zero=True)(share)
    return h, share if image is None else image + share


@checked_numbers
def output_residual(
    stage: Stage, s: Settings, h: Image, image: Image | None, channels: int, *, last: bool
) -> tuple[Image, Image | None]:
    """Every level adds what the level before ended with, doubled by a convolution and the filter, [b, h, w, c].

    Args:
      stage, s, h, last: as of `output_skip`.
      image: the features after the level before [b, h/2, w/2, k], None at the coarsest level.
      channels: not used, since the network's last convolution makes the output.

    Returns:
      The sum [b, h, w, c], and the same for the next level, or None after the last.
    """
    if image is None and last:
        return h, None
    if image is None:
        share = nn.silu(GroupNorm(s.epsilon, s.dtype, stage.groups, name="skip_norm")(h))
        return h, conv(h.shape[-1], 3, s.dtype, name="skip_conv")(share)
    h = _divide(FilteredDouble(h.shape[-1], stage.taps, s.dtype, name="skip_conv")(image) + h, stage.rescale)
    return h, None if last else h


def _modules(level, remat):
    """The classes of a level's blocks and attention, under remat where it is on."""
    return rematerialised(level, ResidualBlock, remat), rematerialised(level, ImageAttention, remat)


def _divide(x, by):
    return x if by == 1 else x / by
