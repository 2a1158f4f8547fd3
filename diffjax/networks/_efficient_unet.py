"""Efficient U-Net: most of the parameters at the low resolutions; conditioned on a text, a label and an image.

    emb    c_noise, noise level of the low resolution, pooled text -> linear, SiLU, linear of each -> sum -> SiLU
           a label -> its row of a table -----------------------------------------------------------^
    x, low resolution enlarged -> conv -> DBlock 0 -> ... -> DBlock n --+
                                            \\-- skips/sqrt(2) --\\       v
    y <- linear* <----------------------- UBlock 0 <- ... <- UBlock n <-+                       * starts at zero

    DBlock      conv (stride 2) -> residual block x k -> (attention)             halves first, works on fewer pixels
    UBlock      [concat skip] -> residual block x k -> (attention) -> enlarge -> conv         enlarges last
    residual    x -> norm -> SiLU -> conv -> norm (1 + s) + u -> SiLU -> dropout -> conv* -> + x;     s, u from emb
    attention   x -> norm -> q; keys and values from x, from norm(text), or both -> softmax(q k') v -> linear* -> + x

Source: Saharia et al. 2022 (Photorealistic text-to-image diffusion models with deep language understanding), appendix
B.1 and F, figures A.27-A.30; section 2.3 for conditions: attention pooling of the text, and its layer norms.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cascade as Cascade, Cond, Text
from diffjax.networks._attention import attention
from diffjax.networks._blocks import ResidualBlock, check_channels, conv, enlarge
from diffjax.networks._embedding import ConditionEmbedding, EmbeddingLayers, two_dense
from diffjax.networks._init import normal
from diffjax.networks._layers import check_dropout, dense, float32_at_least, layer_norm
from diffjax.networks._noise_features import fourier_features
from diffjax.networks._norm import GroupNorm
from diffjax.networks._repeat import rematerialised, repeat
from diffjax.networks._second_time import broadcast_noise, broadcast_times
from diffjax.networks._text import TextTokens

TEXT_NORM: dict[str, Any] = {"epsilon": 1e-5, "affine": True, "fast": True}


@checked_numbers
class EfficientUNet(nn.Module):
    """Imagen's Efficient U-Net `(x [b, h, w, c], c_noise [b] or [b, 2], cond) -> y [b, h, w, c]`, y in float32.

    cond is a `Cascade` of the conditions that the fields name; a `Text` or a label by itself where it is the only one,
    and None where there is none. Sizes are halved rounding up, and doubled back to what they were.

    Attributes:
      channels: of each level, the outermost first, whose number is even.
      blocks: residual blocks of each level.
      strides: 1 or 2, by how much each level shrinks its input.
      attention, text_attention: the levels that attend to all positions, and to the text.
      head_channels: channels of an attention head, a divisor of the channels where there is attention.
      text_width: features of the text's embedding; None where there is no text.
      low_resolution: whether cond has a low-resolution image and its noise level.
      num_classes: cond has an integer label [b] in 0 .. num_classes, the last being the null label of classifier-free
        guidance; None where it has no label.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation; parameters are float32, the output at least that.
      out_channels: channels of y, those of x where None.
      remat: recompute each residual block and attention in the backward pass instead of storing its activations.
      scan: a block's residual blocks by `lax.scan`, which compiles one of them.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c], or a cond that does not fit the fields.
    """

    channels: tuple[int, ...] = (128, 256, 512, 1024)
    blocks: tuple[int, ...] = (2, 4, 8, 8)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    attention: tuple[int, ...] = (3,)
    text_attention: tuple[int, ...] = (3,)
    head_channels: int = 128
    text_width: int | None = None
    low_resolution: bool = False
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    out_channels: int | None = None
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        levels = len(self.channels)
        check_channels(self.channels, even_first=True)
        for name in ("blocks", "strides"):
            values = getattr(self, name)
            if len(values) != levels or min(values) < 1:
                raise ValueError(f"{name}: one number for each of {levels} levels is needed, at least 1, got {values}")
        if max(self.strides) > 2:
            raise ValueError(f"strides: 1 or 2 is needed, got {self.strides}")
        for name in ("attention", "text_attention"):
            if not set(getattr(self, name)) <= set(range(levels)):
                raise ValueError(f"{name}: levels are 0 .. {levels - 1}, got {getattr(self, name)}")
        for level in {*self.attention, *self._text_levels()}:
            width = self.channels[level]
            if self.head_channels < 1 or width % self.head_channels:
                raise ValueError(f"head_channels: a divisor of level {level}'s {width}, got {self.head_channels}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c_noise: ArrayLike, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        text, small, level, label = self._conditions(cond, x)
        tokens = None if self.text_width is None else TextTokens(self.text_width, name="text")(text)
        wide = float32_at_least(self.dtype)
        # "told" is its name in trained parameters.
        embedding = ConditionEmbedding(4 * self.channels[0], self.num_classes, dtype=wide, layers=LAYERS, name="told")
        emb = embedding(broadcast_times(self, c_noise, x), label, text=tokens, noise_level=level)
        h = x.astype(self.dtype)
        if small is not None:
            shape = (*x.shape[:3], small.shape[-1])
            h = jnp.concatenate([h, jax.image.resize(small.astype(self.dtype), shape, "linear")], axis=-1)
        h = conv(self.channels[0], 3, self.dtype, name="in")(h)
        sizes, skips = [], []
        for i in range(len(self.channels)):
            sizes.append(h.shape[1:3])
            h = _Down(**self._fields(i, deterministic), stride=self.strides[i], name=f"down__{i}")(h, emb, tokens)
            skips.append(h / math.sqrt(2))
        for i in reversed(range(len(self.channels))):
            h = jnp.concatenate([h, skips[i]], axis=-1)
            out = self.channels[max(i - 1, 0)]
            h = _Up(**self._fields(i, deterministic), out=out, size=sizes[i], name=f"up__{i}")(h, emb, tokens)
        out = x.shape[-1] if self.out_channels is None else self.out_channels
        y = dense(out, self.dtype, name="out", zero=True)(h)
        return y.astype(wide)

    def _fields(self, i, deterministic):
        return {
            "channels": self.channels[i],
            "blocks": self.blocks[i],
            "self_attention": i in self.attention,
            "text_attention": i in self._text_levels(),
            "head_channels": self.head_channels,
            "block": {"dropout": self.dropout, "deterministic": deterministic, "dtype": self.dtype},
            "scan": self.scan,
            "remat": self.remat,
        }

    def _text_levels(self):
        return self.text_attention if self.text_width is not None else ()

    def _conditions(self, cond, x):
        """(text, low-resolution images, their noise level, label), each None where the fields do not name it."""
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
        named = {"text": self.text_width is not None, "label": self.num_classes is not None}
        names = [name for name, needed in named.items() if needed]
        if self.low_resolution or len(names) > 1:
            needed = [*names, *["low_resolution", "noise_level"][: 2 * self.low_resolution]]
            raise ValueError(f"cond: a Cascade with {', '.join(needed)} is needed, got {type(cond).__name__}")
        if not names and cond is not None:
            kind = type(cond).__name__
            raise ValueError(f"cond: a network with text_width=None and num_classes=None takes no {kind}")
        return Cascade(**dict.fromkeys(names, cond))


def embed_low_resolution(module: ConditionEmbedding, noise_level: Float[Array, " b"]) -> Float[Array, "b width"]:
    """Two layers of the Fourier features of the low resolution's noise level [b]."""
    return two_dense(module, "low", fourier_features(noise_level.astype(module.dtype), module.width))


def embed_pooled_text(module: ConditionEmbedding, text: Text) -> Float[Array, "b width"]:
    """Two layers of the tokens' mean by the attention of one learned query."""
    h = layer_norm(module.dtype, name="pool_norm", **TEXT_NORM)(text.embedding)
    q = module.param("pool_query", normal(1.0), (1, h.shape[-1]), jnp.float32).astype(module.dtype)
    k = dense(h.shape[-1], module.dtype, name="pool_key")(h)
    q = jnp.broadcast_to(q, (len(h), 1, h.shape[-1]))
    pooled = attention(q[:, :, None], k[:, :, None], h[:, :, None], mask=text.mask)[:, 0, 0]
    return two_dense(module, "text", pooled)


LAYERS = EmbeddingLayers(text=embed_pooled_text, noise_level=embed_low_resolution)


class _Down(nn.Module):
    """A DBlock, `(h [b, h, w, c], emb [b, k], tokens) -> [b, h/stride, w/stride, channels]`."""

    channels: int
    blocks: int
    self_attention: bool
    text_attention: bool
    head_channels: int
    block: Mapping[str, Any]
    scan: bool
    remat: bool
    stride: int

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], emb: Float[Array, "b k"], tokens: Text | None
    ) -> Float[Array, "b h2 w2 d"]:
        h = conv(self.channels, 3, self.block["dtype"], name="conv", stride=self.stride)(h)
        fields = {"channels": self.channels, **self.block}
        h = repeat(self, ResidualBlock, fields, "resnets", self.blocks, h, emb, scan=self.scan, remat=self.remat)
        return _attend(self, h, tokens)


class _Up(nn.Module):
    """A UBlock, `(h [b, h, w, c], emb [b, k], tokens) -> [b, *size, out]`."""

    channels: int
    blocks: int
    self_attention: bool
    text_attention: bool
    head_channels: int
    block: Mapping[str, Any]
    scan: bool
    remat: bool
    out: int
    size: tuple[int, int]

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], emb: Float[Array, "b k"], tokens: Text | None
    ) -> Float[Array, "b h2 w2 d"]:
        fields = {"channels": self.channels, **self.block}
        h = rematerialised(self, ResidualBlock, self.remat)(**fields, name="enter")(h, emb)
        rest = self.blocks - 1
        h = repeat(self, ResidualBlock, fields, "resnets", rest, h, emb, scan=self.scan, remat=self.remat)
        h = _attend(self, h, tokens)
        return conv(self.out, 3, self.block["dtype"], name="conv")(self._enlarged(h))

    def _enlarged(self, h):
        return h if h.shape[1:3] == self.size else enlarge(h, *self.size)


def _attend(block, h, tokens):
    if not (block.self_attention or block.text_attention):
        return h
    fields = block.self_attention, block.text_attention, block.head_channels, block.block["dtype"]
    return rematerialised(block, _TextAttention, block.remat)(*fields, name="attention")(h, tokens)


class _TextAttention(nn.Module):
    """Attention of every position to all positions, to the text, or to both in one softmax."""

    self_attention: bool
    text_attention: bool
    head_channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], tokens: Text | None) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        heads = (batch, -1, channels // self.head_channels, self.head_channels)
        h = GroupNorm(dtype=self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        q = dense(channels, self.dtype, name="q")(h).reshape(heads)
        pairs, masks = [], []
        if self.self_attention:
            pairs.append(dense(2 * channels, self.dtype, name="kv")(h))
            masks.append(jnp.ones((batch, height * width), bool))
        if self.text_attention:
            assert tokens is not None
            text = layer_norm(self.dtype, name="text_norm", **TEXT_NORM)(tokens.embedding)
            pairs.append(dense(2 * channels, self.dtype, name="text_kv")(text))
            masks.append(tokens.mask)
        k, v = (z.reshape(heads) for z in jnp.split(jnp.concatenate(pairs, axis=1), 2, axis=-1))
        h = attention(q, k, v, mask=jnp.concatenate(masks, axis=1) if self.text_attention else None).reshape(x.shape)
        return x + dense(channels, self.dtype, name="out", zero=True)(h)
