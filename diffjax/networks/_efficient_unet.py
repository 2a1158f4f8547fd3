"""Efficient U-Net: most of the parameters at the low resolutions; told a text, a label and a low-resolution image.

    told   c_noise, noise level of the low resolution, pooled text -> linear, SiLU, linear of each -> sum -> SiLU
           and, of a label, its row of a table -----------------------------------------------------^
    x, low resolution enlarged -> conv -> DBlock 0 -> ... -> DBlock n --+
                                            \\-- skips/sqrt(2) --\\       v
    y <- linear* <----------------------- UBlock 0 <- ... <- UBlock n <-+                       * starts at zero

    DBlock      conv (stride 2) -> residual block x k -> (attention)             halves first, works on fewer pixels
    UBlock      [concat skip] -> residual block x k -> (attention) -> enlarge -> conv         enlarges last
    residual    x -> norm -> SiLU -> conv -> norm (1 + s) + u -> SiLU -> dropout -> conv* -> + x;     s, u from told
    attention   x -> norm -> q; keys and values from x, from norm(text), or both -> softmax(q k') v -> linear* -> + x

Source: Saharia et al. 2022 (Photorealistic text-to-image diffusion models with deep language understanding), appendix
B.1 and F, figures A.27-A.30; section 2.3 for conditions: attention pooling of the text, and its layer norms.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._attention import attention
from diffjax.networks._blocks import GroupNorm, ResidualBlock, conv, enlarge
from diffjax.networks._embedding import (
    as_labels,
    broadcast_noise,
    check_dropout,
    dense,
    fourier_features,
    rows_of,
)
from diffjax.networks._init import constant, normal
from diffjax.networks._repeat import again, repeat
from diffjax.networks._text import Text, TextTokens


class Cascade(NamedTuple):
    """The conditions of a network that has several, each None where it has not.

    No condition, for guidance, is one too: the text `Text(0.0, False)`, the null label, the same low resolution.

    Attributes:
      text: a `Text`.
      low_resolution: images [b, h, w, c] no larger than x; noised to `noise_level` by whoever makes them
        (conditioning augmentation, Ho et al. 2022).
      noise_level: [b], of the low-resolution images, on the scale of c_noise.
      label: [b], of classes.
    """

    text: Any = None
    low_resolution: Any = None
    noise_level: Any = None
    label: Any = None


class EfficientUNet(nn.Module):
    """Imagen's Efficient U-Net `(x [b, h, w, c], c_noise [b], cond) -> y [b, h, w, c]`, y in float32.

    cond is a `Cascade` of what the fields ask for; a `Text` will do where that is all, a label where that is, and None
    where they ask for nothing. Sizes are halved rounding up, and doubled back to what they were.

    Attributes:
      channels: of the outermost level, even.
      multipliers: channels of block i are `channels * multipliers[i]`.
      blocks: residual blocks of block i.
      strides: 1 or 2, by how much block i shrinks its input.
      self_attention, text_attention: the blocks that attend to all positions, and to the text.
      head_channels: channels of an attention head, a divisor of the channels where there is attention.
      text_width: features of the text's embedding; None where there is no text.
      low_resolution: whether cond has a low-resolution image and its noise level.
      num_classes: cond has an integer label [b] in 0 .. num_classes, the last being the null label of classifier-free
        guidance; None where it has no label.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation; parameters are float32, the output at least that.
      out_channels: channels of y, those of x where None.
      remat: keep only what enters each residual block or attention for the backward pass.
      scan: a block's residual blocks by `lax.scan`, which compiles one of them.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c], or a cond that does not fit the fields.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: tuple[int, ...] = (2, 4, 8, 8)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    self_attention: tuple[int, ...] = (3,)
    text_attention: tuple[int, ...] = (3,)
    head_channels: int = 128
    text_width: int | None = None
    low_resolution: bool = False
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: Any = jnp.float32
    out_channels: int | None = None
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        levels = len(self.multipliers)
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"channels: an even number is needed, got {self.channels}")
        for name, least in (("multipliers", 1), ("blocks", 1), ("strides", 1)):
            values = getattr(self, name)
            if not values or len(values) != levels or min(values) < least:
                raise ValueError(f"{name}: one number for each of {levels} blocks is needed, at least 1, got {values}")
        if max(self.strides) > 2:
            raise ValueError(f"strides: 1 or 2 is needed, got {self.strides}")
        for name in ("self_attention", "text_attention"):
            if not set(getattr(self, name)) <= set(range(levels)):
                raise ValueError(f"{name}: blocks are 0 .. {levels - 1}, got {getattr(self, name)}")
        for level in {*self.self_attention, *self._text_levels()}:
            width = self.channels * self.multipliers[level]
            if self.head_channels < 1 or width % self.head_channels:
                raise ValueError(f"head_channels: a divisor of block {level}'s {width}, got {self.head_channels}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Any, c_noise: Any, cond: Any = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        text, small, level, label = self._conditions(cond, x)
        tokens = None if self.text_width is None else TextTokens(self.text_width, name="text")(text)
        told = _Told(4 * self.channels, self.num_classes, self.dtype, name="told")
        told = told(broadcast_noise(c_noise, x), level, tokens, label)
        h = x.astype(self.dtype)
        if small is not None:
            shape = (*x.shape[:3], small.shape[-1])
            h = jnp.concatenate([h, jax.image.resize(small.astype(self.dtype), shape, "linear")], axis=-1)
        h = conv(self.channels, 3, self.dtype, name="in")(h)
        sizes, skips = [], []
        for i in range(len(self.multipliers)):
            sizes.append(h.shape[1:3])
            h = _Down(**self._fields(i, deterministic), stride=self.strides[i], name=f"down__{i}")(h, told, tokens)
            skips.append(h / math.sqrt(2))
        for i in reversed(range(len(self.multipliers))):
            h = jnp.concatenate([h, skips[i]], axis=-1)
            out = self.channels * (self.multipliers[i - 1] if i else 1)
            h = _Up(**self._fields(i, deterministic), out=out, size=sizes[i], name=f"up__{i}")(h, told, tokens)
        out = x.shape[-1] if self.out_channels is None else self.out_channels
        y = dense(out, self.dtype, name="out", zero=True)(h)
        return y.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _fields(self, i, deterministic):
        return {
            "channels": self.channels * self.multipliers[i],
            "blocks": self.blocks[i],
            "own": i in self.self_attention,
            "text": i in self._text_levels(),
            "head_channels": self.head_channels,
            "block": {"dropout": self.dropout, "deterministic": deterministic, "dtype": self.dtype},
            "scan": self.scan,
            "remat": self.remat,
        }

    def _text_levels(self):
        return self.text_attention if self.text_width is not None else ()

    def _conditions(self, cond, x):
        """(text, low-resolution images, their noise level, label), each None where the fields do not ask for it."""
        if not isinstance(cond, Cascade):
            cond = self._alone(cond)
        small, level = cond.low_resolution, cond.noise_level
        if not self.low_resolution and (small is not None or level is not None):
            raise ValueError("cond: a network with low_resolution=False takes no low-resolution image")
        if self.text_width is None and cond.text is not None:
            raise ValueError("cond: a network with text_width=None takes no text")
        if self.num_classes is None and cond.label is not None:
            raise ValueError("cond: a network with num_classes=None takes no label")
        if not self.low_resolution:
            return cond.text, None, None, cond.label
        if small is None or level is None:
            raise ValueError("cond: a Cascade with low_resolution and noise_level is needed, got None for one of them")
        small = jnp.asarray(small)
        if small.ndim != 4 or len(small) != len(x) or small.shape[1] > x.shape[1] or small.shape[2] > x.shape[2]:
            raise ValueError(f"cond: low_resolution [b, h, w, c] no larger than x {x.shape}, got {small.shape}")
        return cond.text, small, broadcast_noise(level, x), cond.label

    def _alone(self, cond):
        """The `Cascade` of a condition that is the only one."""
        asked = {"text": self.text_width is not None, "label": self.num_classes is not None}
        names = [name for name, needed in asked.items() if needed]
        if self.low_resolution or len(names) > 1:
            needed = [*names, *["low_resolution", "noise_level"][: 2 * self.low_resolution]]
            raise ValueError(f"cond: a Cascade with {', '.join(needed)} is needed, got {type(cond).__name__}")
        if not names and cond is not None:
            kind = type(cond).__name__
            raise ValueError(f"cond: a network with text_width=None and num_classes=None takes no {kind}")
        return Cascade(**dict.fromkeys(names, cond))


class _Told(nn.Module):
    """`(c_noise [b], noise_level [b], tokens, label [b]) -> [b, width]`, float32 at least."""

    width: int
    num_classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, c_noise, noise_level, tokens, label):
        wide = jnp.promote_types(self.dtype, jnp.float32)
        h = self._two_layers("noise", fourier_features(c_noise.astype(wide), self.width), wide)
        if noise_level is not None:
            h = h + self._two_layers("low", fourier_features(noise_level.astype(wide), self.width), wide)
        if tokens is not None:
            h = h + self._two_layers("text", self._pool(tokens, wide), wide)
        if self.num_classes is not None:
            table = self.param("classes", normal(1.0), (self.num_classes + 1, self.width), jnp.float32)
            h = h + rows_of(table, as_labels(label, self.num_classes, c_noise.shape)).astype(wide)
        return nn.silu(h)

    def _two_layers(self, name, h, dtype):
        h = nn.silu(dense(self.width, dtype, name=f"{name}_in")(h))
        return dense(self.width, dtype, name=f"{name}_out")(h)

    def _pool(self, tokens, dtype):
        """The tokens' mean by the attention of one learned query."""
        h = _text_norm("pool_norm", dtype)(tokens.embedding)
        q = self.param("pool_query", normal(1.0), (1, h.shape[-1]), jnp.float32).astype(dtype)
        k = dense(h.shape[-1], dtype, name="pool_key")(h)
        q = jnp.broadcast_to(q, (len(h), 1, h.shape[-1]))
        return attention(q[:, :, None], k[:, :, None], h[:, :, None], mask=tokens.mask)[:, 0, 0]


class _Down(nn.Module):
    channels: int
    blocks: int
    own: bool
    text: bool
    head_channels: int
    block: Any
    scan: bool
    remat: bool
    stride: int

    @nn.compact
    def __call__(self, h, told, tokens):
        h = conv(self.channels, 3, self.block["dtype"], name="conv", stride=self.stride)(h)
        fields = {"channels": self.channels, **self.block}
        h = repeat(self, ResidualBlock, fields, "resnets", self.blocks, h, told, scan=self.scan, remat=self.remat)
        return _attend(self, h, tokens)


class _Up(nn.Module):
    channels: int
    blocks: int
    own: bool
    text: bool
    head_channels: int
    block: Any
    scan: bool
    remat: bool
    out: int
    size: tuple[int, int]

    @nn.compact
    def __call__(self, h, told, tokens):
        fields = {"channels": self.channels, **self.block}
        h = again(self, ResidualBlock, self.remat)(**fields, name="enter")(h, told)
        rest = self.blocks - 1
        h = repeat(self, ResidualBlock, fields, "resnets", rest, h, told, scan=self.scan, remat=self.remat)
        h = _attend(self, h, tokens)
        return conv(self.out, 3, self.block["dtype"], name="conv")(self._enlarged(h))

    def _enlarged(self, h):
        return h if h.shape[1:3] == self.size else enlarge(h, *self.size)


def _attend(block, h, tokens):
    if not (block.own or block.text):
        return h
    module = again(block, _Attention, block.remat)
    return module(block.own, block.text, block.head_channels, block.block["dtype"], name="attention")(h, tokens)


class _Attention(nn.Module):
    """Attention of every position to the positions, to the text, or to both side by side."""

    own: bool
    text: bool
    head_channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], tokens: Text | None) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        heads = (batch, -1, channels // self.head_channels, self.head_channels)
        h = GroupNorm(dtype=self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        q = dense(channels, self.dtype, name="q")(h).reshape(heads)
        pairs, masks = [], []
        if self.own:
            pairs.append(dense(2 * channels, self.dtype, name="kv")(h))
            masks.append(jnp.ones((batch, height * width), bool))
        if self.text:
            assert tokens is not None
            told = _text_norm("text_norm", self.dtype)(tokens.embedding)
            pairs.append(dense(2 * channels, self.dtype, name="text_kv")(told))
            masks.append(tokens.mask)
        k, v = (z.reshape(heads) for z in jnp.split(jnp.concatenate(pairs, axis=1), 2, axis=-1))
        h = attention(q, k, v, mask=jnp.concatenate(masks, axis=1) if self.text else None).reshape(x.shape)
        return x + dense(channels, self.dtype, name="out", zero=True)(h)


def _text_norm(name, dtype):
    return nn.LayerNorm(1e-5, dtype=dtype, scale_init=constant(1.0), bias_init=constant(0.0), name=name)
