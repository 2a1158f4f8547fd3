"""A U-Net for images.

    x -> conv --> [block (attention)] x n --> halve --> ... --> block, attention, block      emb -> every block
                        |                                              |
                       skips (every output on the way down)          double
                        v                                              v
    y <- conv* <- SiLU <- norm <- [concatenate skip, block (attention)] x (n + 1) <- ...       * starts at zero

A text as condition: its mean is embedded, and every attention attends to it after the image.

Source: Ronneberger et al. 2015; Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._attention import FUSED, ImageAttention
from diffjax.networks._blocks import ResidualBlock, check_channels, conv, enlarge
from diffjax.networks._embedding import ConditionEmbedding
from diffjax.networks._layers import check_dropout, float32_at_least
from diffjax.networks._norm import GroupNorm
from diffjax.networks._repeat import rematerialised
from diffjax.networks._second_time import broadcast_times
from diffjax.networks._text import TextTokens, check_text_use, split_text


@checked_numbers
class UNet(nn.Module):
    """A U-Net `(x [b, h, w, c], c_noise [b] or [b, 2], cond) -> y [b, h, w, c]`, y in float32, or in float64 for
    a float64 dtype.

    Any height and width will do: a size is halved rounding up, and doubled back to what it was.

    Attributes:
      channels: of each level, the finest first, whose number is even; each level after the first halves the size.
      blocks: residual blocks a level on the way down; one more on the way up.
      attention: the levels with self-attention, 0 the finest; the middle always has it.
      head_channels: channels of an attention head, at least: the number of heads is the largest divisor of a level's
        channels that leaves as many to each, and 1 where none does.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label of classifier-free
        guidance. None: cond is a float vector [b, k], or None.
      text_width: cond is a `Text` of such embeddings: its mean is embedded, and every attention attends to it as well.
        A text without tokens is no condition. With num_classes as well, cond is a `Cascade` of a text and a label.
      text_use: "both", "pooled" (the mean alone) or "attention" (without it).
      dropout: the probability of dropping a feature in training.
      dtype: of the computation (`jnp.bfloat16`); parameters, statistics and the output are float32.
      out_channels: channels of y, those of x where None.
      remat: recompute each block in the backward pass instead of storing its activations: less memory, and about a
        third more time. The gradient is the same.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c], or a cond that does not fit.
    """

    channels: tuple[int, ...] = (64, 128, 128)
    blocks: int = 2
    attention: tuple[int, ...] = (2,)
    head_channels: int = 64
    num_classes: int | None = None
    text_width: int | None = None
    text_use: str = "both"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    out_channels: int | None = None
    remat: bool = False

    def __post_init__(self):
        check_channels(self.channels, even_first=True)
        if self.blocks < 1:
            raise ValueError(f"blocks: at least one a level is needed, got {self.blocks}")
        if self.head_channels < 1:
            raise ValueError(f"head_channels: at least 1 is needed, got {self.head_channels}")
        if not set(self.attention) <= set(range(len(self.channels))):
            raise ValueError(f"attention: levels are 0 .. {len(self.channels) - 1}, got {self.attention}")
        check_text_use(self.text_use)
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c_noise: ArrayLike, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        width = 4 * self.channels[0]
        wide = float32_at_least(self.dtype)
        text, cond = split_text(cond, self.num_classes, self.text_width)
        tokens = None if self.text_width is None else TextTokens(self.text_width, name="text_tokens")(text)
        pooled = None if self.text_use == "attention" else tokens
        attended = None if self.text_use == "pooled" else tokens
        embedding = ConditionEmbedding(width, self.num_classes, dtype=wide, name="conditioning")
        emb = embedding(broadcast_times(self, c_noise, x), cond, text=pooled)
        h = conv(self.channels[0], 3, self.dtype, name="in")(x)
        h, skips = self._down(h, emb, attended, deterministic)
        h = self._block(h, emb, "middle_1", self.channels[-1], deterministic)
        h = self._attention(h, attended, "middle_attention")
        h = self._block(h, emb, "middle_2", self.channels[-1], deterministic)
        h = self._up(h, skips, emb, attended, deterministic)
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm")(h))
        out = x.shape[-1] if self.out_channels is None else self.out_channels
        return conv(out, 3, self.dtype, name="out", zero=True)(h).astype(wide)

    def _down(self, h, emb, text, deterministic):
        skips = [h]
        for level, channels in enumerate(self.channels):
            if level > 0:
                h = conv(h.shape[-1], 3, self.dtype, name=f"halve_{level}", stride=2)(h)
                skips.append(h)
            for i in range(self.blocks):
                h = self._stage(h, emb, text, f"down_{level}_{i}", level, channels, deterministic)
                skips.append(h)
        return h, skips

    def _up(self, h, skips, emb, text, deterministic):
        for level, channels in reversed(list(enumerate(self.channels))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._stage(h, emb, text, f"up_{level}_{i}", level, channels, deterministic)
            if level > 0:
                h = conv(h.shape[-1], 3, self.dtype, name=f"double_{level}")(enlarge(h, *skips[-1].shape[1:3]))
        return h

    def _stage(self, h, emb, text, name, level, channels, deterministic):
        h = self._block(h, emb, name, channels, deterministic)
        if level in self.attention:
            h = self._attention(h, text, f"{name}_attention")
        return h

    def _block(self, h, emb, name, channels, deterministic):
        block = rematerialised(self, ResidualBlock, self.remat)
        return block(channels, self.dropout, deterministic, self.dtype, name=name)(h, emb)

    def _attention(self, h, text, name):
        channels = h.shape[-1]
        heads = math.gcd(channels, max(1, channels // self.head_channels))
        attention = rematerialised(self, ImageAttention, self.remat)
        return attention(self.dtype, channels // heads, FUSED, "norm", name=name)(h, text)
