"""The parts of `UNet2D`, with the names of diffusers: residual block, attention, one level on the way down or up.

    ResnetBlock      x -> norm1 -> act -> [resample] -> conv1 -> norm2, told -> act -> dropout -> conv2* -> + -> /r -> y
                     x -> [resample] -> [conv_shortcut] ----------------------------------------------------^
                     told: h + Dense(act(told)) before norm2, or norm2(h) (1 + s) + u, (s, u) = Dense(act(told))

    AttentionBlock   x -> group_norm -> to_q, to_k, to_v -> softmax(q k'/sqrt(n)) v -> to_out* -> + x -> /r -> y
                     and once more, with text_... in the place of to_..., where the keys and values come from a text

    DownBlock        (ResnetBlock, AttentionBlock) x n -> halve [-> join the shrinking input]      each output a skip
    UpBlock          (join a skip, ResnetBlock, AttentionBlock) x n [-> add to the growing output] -> double

* starts at zero. Source: Ho et al. 2020, appendix B; scale and shift, resampling within a block: Dhariwal & Nichol
2021, section 3; division by r, FIR filters, shrinking input and growing output: Song et al. 2021, appendix H.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._attention import attention
from diffjax.networks._blocks import GroupNorm, conv, enlarge
from diffjax.networks._embedding import dense
from diffjax.networks._init import constant, normal
from diffjax.networks._resample import BOX, blur, double, halve
from diffjax.networks._text import Text


class Stage(NamedTuple):
    """What a level is made of, on its way down or up.

    Attributes:
      attentions: attention after the last so many residual blocks.
      residual: resampling by a residual block (as BigGAN and ADM do), not by a convolution.
      shortcut: a 1 x 1 convolution on the skip of that block.
      taps: of the filter that such a block resamples with.
      pyramid: `input_skip` or `input_residual` on the way down, `output_skip` or `output_residual` on the way up, or
        None.
      rescale: what every sum of a branch and its skip is divided by.
      groups: of the residual blocks' norms; `groups_of(channels)` where None.
      attention_groups: of the attention's norm; `groups_of(channels)` where None, no norm where 0.
      joined_groups: on the way up, (channels that come, channels of the skip) -> groups of the norm of both; as
        `groups` where None.
    """

    attentions: int = 0
    residual: bool = False
    shortcut: bool = False
    taps: tuple[float, ...] = BOX
    pyramid: Callable[..., Any] | None = None
    rescale: float = 1.0
    groups: int | None = None
    attention_groups: int | None = None
    joined_groups: Callable[[int, int], int] | None = None


class Told(NamedTuple):
    """What blocks are told: a vector [b, k], and the tokens of a text or None."""

    vector: Any
    text: Text | None = None


class Settings(NamedTuple):
    """What all blocks of a network share; see `UNet2D`."""

    epsilon: float
    dropout: float
    scale_shift: bool
    activation: Callable[[Any], Any]
    head_channels: int | None
    padding: tuple[int, int]
    dtype: Any
    deterministic: bool
    again: bool  # rematerialise

    def resnet(self, stage: Stage, **fields: Any) -> nn.Module:
        block = nn.remat(ResnetBlock) if self.again else ResnetBlock
        return block(**{"settings": self, "groups": stage.groups, "rescale": stage.rescale, **fields})

    def attention(self, stage: Stage, name: str) -> nn.Module:
        block = nn.remat(AttentionBlock) if self.again else AttentionBlock
        return block(self, stage.attention_groups, stage.rescale, name=name)


class ResnetBlock(nn.Module):
    """`(x [b, h, w, c], told [b, k] or None) -> [b, h', w', channels]`.

    Attributes:
      settings: of the network.
      channels: of the output.
      groups: of norm2, and of norm1 unless `groups_in`.
      rescale: divides the sum.
      resample: `halve` or `double`, with its filter; None keeps the size.
      shortcut: a convolution on the skip, also where channels stay.
    """

    settings: Settings
    channels: int
    groups: int | None = None
    rescale: float = 1.0
    groups_in: int | None = None
    resample: Callable[[Any], Any] | None = None
    shortcut: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], told: Any = None) -> Float[Array, "b h2 w2 c2"]:
        s = self.settings
        h = s.activation(GroupNorm(s.epsilon, s.dtype, self.groups_in or self.groups, name="norm1")(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = conv(self.channels, 3, s.dtype, name="conv1")(h)
        modulation = None
        if told is not None:
            features = self.channels * (1 + s.scale_shift)
            modulation = dense(features, told.dtype, name="time_emb_proj")(s.activation(told))
            if not s.scale_shift:
                h, modulation = h + modulation[:, None, None].astype(h.dtype), None
        h = s.activation(GroupNorm(s.epsilon, s.dtype, self.groups, name="norm2")(h, modulation))
        h = nn.Dropout(s.dropout, deterministic=s.deterministic)(h)
        h = conv(self.channels, 3, s.dtype, name="conv2", zero=True)(h)
        if self.shortcut or x.shape[-1] != self.channels:
            x = conv(self.channels, 1, s.dtype, name="conv_shortcut")(x)
        return _divide(x + h, self.rescale)


class AttentionBlock(nn.Module):
    """Attention among all positions of [b, h, w, c], then to a text where there is one.

    c // head_channels heads; one of all c where that is None.
    """

    settings: Settings
    groups: int | None = None
    rescale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], text: Text | None = None) -> Float[Array, "b h w c"]:
        h = self._attend(self._norm(x, "group_norm"), None, None, "to_", "to_out__0")
        x = _divide(x + h, self.rescale)
        if text is None:
            return x
        tokens = text.embedding.astype(self.settings.dtype)
        h = self._attend(self._norm(x, "text_norm"), tokens, text.mask, "text_", "text_out")
        return _divide(x + h, self.rescale)

    def _norm(self, x, name):
        if self.groups == 0:
            return x
        return GroupNorm(self.settings.epsilon, self.settings.dtype, self.groups, name=name)(x)

    def _attend(self, h, tokens, mask, prefix, out):
        s, (batch, height, width, channels) = self.settings, h.shape
        features = channels if s.head_channels is None else s.head_channels
        heads = channels // features
        sources = h, *((h, h) if tokens is None else (tokens, tokens))
        q, k, v = (
            dense(heads * features, s.dtype, name=f"{prefix}{n}")(source).reshape(batch, -1, heads, features)
            for n, source in zip("qkv", sources, strict=True)
        )
        h = attention(q, k, v, mask=mask).reshape(batch, height, width, heads * features)
        return dense(channels, s.dtype, name=out, zero=True)(h)


class Resample(nn.Module):
    """A convolution of stride 2, or every pixel twice and a convolution."""

    up: bool
    settings: Settings

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        channels, s = x.shape[-1], self.settings
        if self.up:
            return conv(channels, 3, s.dtype, name="conv")(enlarge(x, 2 * x.shape[1], 2 * x.shape[2]))
        return conv(channels, 3, s.dtype, name="conv", stride=2, padding=s.padding)(x)


class FilteredDouble(nn.Module):
    """A 3 x 3 convolution among pixels spread by zeros, then the filter: [b, h, w, c] -> [b, 2 h, 2 w, channels]."""

    channels: int
    taps: tuple[float, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        kernel = self.param("kernel", normal(), (3, 3, x.shape[-1], self.channels), jnp.float32)
        bias = self.param("bias", constant(0.0), (self.channels,), jnp.float32)
        layout, edge = ("NHWC", "HWIO", "NHWC"), len(self.taps) // 2 - 1
        spread = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding=((2, 2), (2, 2)),
            lhs_dilation=(2, 2),
            dimension_numbers=layout,
        )
        return 4 * blur(spread, self.taps, (edge, edge)) + bias.astype(self.dtype)


class DownBlock(nn.Module):
    """`(h, told, image) -> (h, image, outputs)`; image is the shrinking input, outputs become skips."""

    stage: Stage
    settings: Settings
    channels: int
    layers: int
    last: bool

    @nn.compact
    def __call__(self, h: Any, told: Told, image: Any) -> tuple[Any, Any, list[Any]]:
        stage, s, outputs = self.stage, self.settings, []
        first = self.layers - stage.attentions
        for i in range(self.layers):
            h = s.resnet(stage, channels=self.channels, name=f"resnets__{i}")(h, told.vector)
            if i >= first:
                h = s.attention(stage, name=f"attentions__{i - first}")(h, told.text)
            outputs.append(h)
        if not self.last:
            if stage.residual:
                h = _resampling(stage, s, self.channels, "downsamplers__0", "resnet_down", _halving(stage))(
                    h, told.vector
                )
            else:
                h = Resample(up=False, settings=s, name="downsamplers__0")(h)
            if stage.pyramid is not None:
                h, image = stage.pyramid(stage, s, h, image)
            outputs.append(h)
        return h, image, outputs


class UpBlock(nn.Module):
    """`(h, told, image, skips) -> (h, image)`; pops its skips; image is the growing output."""

    stage: Stage
    settings: Settings
    channels: int
    out_channels: int
    layers: int
    last: bool

    @nn.compact
    def __call__(self, h: Any, told: Told, image: Any, skips: list[Any]) -> tuple[Any, Any]:
        stage, s = self.stage, self.settings
        first = self.layers - stage.attentions
        for i in range(self.layers):
            skip = skips.pop()
            groups = stage.joined_groups and stage.joined_groups(h.shape[-1], skip.shape[-1])
            h = jnp.concatenate([h, skip], axis=-1)
            h = s.resnet(stage, channels=self.channels, groups_in=groups, name=f"resnets__{i}")(h, told.vector)
            if i >= first:
                h = s.attention(stage, name=f"attentions__{i - first}")(h, told.text)
        if stage.pyramid is not None:
            h, image = stage.pyramid(stage, s, h, image, self.out_channels, last=self.last)
        if not self.last:
            if stage.residual:
                h = _resampling(stage, s, self.channels, "upsamplers__0", "resnet_up", _doubling(stage))(h, told.vector)
            else:
                h = Resample(up=True, settings=s, name="upsamplers__0")(h)
        return h, image


class MidBlock(nn.Module):
    """`(h, told) -> h`: a residual block, attention unless `stage.attentions` is 0, a residual block."""

    stage: Stage
    settings: Settings

    @nn.compact
    def __call__(self, h: Any, told: Told) -> Any:
        stage, s, channels = self.stage, self.settings, h.shape[-1]
        h = s.resnet(stage, channels=channels, name="resnets__0")(h, told.vector)
        if stage.attentions:
            h = s.attention(stage, name="attentions__0")(h, told.text)
        return s.resnet(stage, channels=channels, name="resnets__1")(h, told.vector)


# --- the shrinking input and the growing output; each is called in its block's scope ------------------------------


def input_skip(stage: Stage, s: Settings, h: Any, image: Any) -> tuple[Any, Any]:
    """The input, filtered to this size [b, h, w, c], joins by a 1 x 1 convolution."""
    image = halve(image, stage.taps)
    return conv(h.shape[-1], 1, s.dtype, name="skip_conv")(image) + h, image


def input_residual(stage: Stage, s: Settings, h: Any, image: Any) -> tuple[Any, Any]:
    """What joined before, halved by a filter and a convolution, joins again: one residual network [b, h, w, c]."""
    edge = len(stage.taps) // 2
    blurred = blur(image.astype(s.dtype), stage.taps, (edge, edge))
    image = conv(h.shape[-1], 3, s.dtype, name="skip_conv", stride=2, padding=(0, 0))(blurred)
    h = _divide(image + h, stage.rescale)
    return h, h


def output_skip(stage: Stage, s: Settings, h: Any, image: Any, channels: int, *, last: bool) -> tuple[Any, Any]:
    """Every level adds its share of the output [b, h, w, channels]; the last one's is the network's own end."""
    image = None if image is None else double(image, stage.taps)
    if last:
        return h, image
    share = nn.silu(GroupNorm(s.epsilon, s.dtype, stage.groups, name="skip_norm")(h))
    share = conv(channels, 3, s.dtype, name="skip_conv", zero=True)(share)
    return h, share if image is None else image + share


def output_residual(stage: Stage, s: Settings, h: Any, image: Any, channels: int, *, last: bool) -> tuple[Any, Any]:
    """Features, doubled by a convolution and a filter, join each level [b, h, w, c]; the end is the network's own."""
    if image is None and last:
        return h, None
    if image is None:
        share = nn.silu(GroupNorm(s.epsilon, s.dtype, stage.groups, name="skip_norm")(h))
        return h, conv(h.shape[-1], 3, s.dtype, name="skip_conv")(share)
    h = _divide(FilteredDouble(h.shape[-1], stage.taps, s.dtype, name="skip_conv")(image) + h, stage.rescale)
    return h, None if last else h


def _resampling(stage, settings, channels, plain, shortcut, resample):
    name = shortcut if stage.shortcut else plain
    return settings.resnet(stage, channels=channels, resample=resample, shortcut=stage.shortcut, name=name)


def _halving(stage):
    return lambda x: halve(x, stage.taps)


def _doubling(stage):
    return lambda x: double(x, stage.taps)


def _divide(x, by):
    return x if by == 1 else x / by
