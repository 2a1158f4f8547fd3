"""A U-Net for images.

    x -> conv --> [block (attention)] x n --> halve --> ... --> block, attention, block     told -> every block
                        |                                              |
                       skips (every output on the way down)          double
                        v                                              v
    y <- conv* <- SiLU <- norm <- [concatenate skip, block (attention)] x (n + 1) <- ...       * starts at zero

Source: Ronneberger et al. 2015; Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._blocks import GroupNorm, ResidualBlock, SelfAttention, conv, enlarge
from diffjax.networks._embedding import Conditioning, broadcast_noise, check_dropout
from diffjax.networks._repeat import again
from diffjax.networks._text import check_label_or_text


class UNet(nn.Module):
    """A U-Net `(x [b, h, w, c], c_noise [b], cond) -> y [b, h, w, c]`, y in float32 (float64 for a float64 dtype).

    Any height and width will do: a size is halved rounding up, and doubled back to what it was.

    Attributes:
      channels: of the finest level, even.
      multipliers: channels of level i are `channels * multipliers[i]`; each level after the first halves the size.
      blocks: residual blocks a level on the way down; one more on the way up.
      attention: the levels with self-attention, 0 the finest; the middle always has it.
      head_channels: channels of an attention head.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label of classifier-free
        guidance. None: cond is a float vector [b, k], or None.
      text_width: cond is a `Text` of such embeddings, whose mean is told. A text without tokens is no condition. Not
        together with num_classes.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation (`jnp.bfloat16`); parameters, statistics and the output are float32.
      out_channels: channels of y, those of x where None.
      remat: keep only what enters each block for the backward pass, and compute the rest of it again: less memory, and
        about a third more time. The gradient is the same.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c], or a cond that does not fit.
    """

    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (2,)
    head_channels: int = 64
    num_classes: int | None = None
    text_width: int | None = None
    dropout: float = 0.0
    dtype: Any = jnp.float32
    out_channels: int | None = None
    remat: bool = False

    def __post_init__(self):
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"channels: an even number is needed, got {self.channels}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: one positive number a level is needed, got {self.multipliers}")
        if self.blocks < 1:
            raise ValueError(f"blocks: at least one a level is needed, got {self.blocks}")
        if self.head_channels < 1:
            raise ValueError(f"head_channels: at least 1 is needed, got {self.head_channels}")
        if not set(self.attention) <= set(range(len(self.multipliers))):
            raise ValueError(f"attention: levels are 0 .. {len(self.multipliers) - 1}, got {self.attention}")
        check_label_or_text(self.num_classes, self.text_width)
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Any, c_noise: Any, cond: Any = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        width = 4 * self.channels
        wide = jnp.promote_types(self.dtype, jnp.float32)
        conditioning = Conditioning(width, self.num_classes, self.text_width, wide, name="conditioning")
        told = conditioning(broadcast_noise(c_noise, x), cond)
        h = conv(self.channels, 3, self.dtype, name="in")(x)
        h, skips = self._down(h, told, deterministic)
        h = self._block(h, told, "middle_1", self.multipliers[-1], deterministic)
        h = self._attention(h, "middle_attention")
        h = self._block(h, told, "middle_2", self.multipliers[-1], deterministic)
        h = self._up(h, skips, told, deterministic)
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm")(h))
        out = x.shape[-1] if self.out_channels is None else self.out_channels
        return conv(out, 3, self.dtype, name="out", zero=True)(h).astype(wide)

    def _down(self, h, told, deterministic):
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = conv(h.shape[-1], 3, self.dtype, name=f"halve_{level}", stride=2)(h)
                skips.append(h)
            for i in range(self.blocks):
                h = self._stage(h, told, f"down_{level}_{i}", level, multiplier, deterministic)
                skips.append(h)
        return h, skips

    def _up(self, h, skips, told, deterministic):
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._stage(h, told, f"up_{level}_{i}", level, multiplier, deterministic)
            if level > 0:
                h = conv(h.shape[-1], 3, self.dtype, name=f"double_{level}")(enlarge(h, *skips[-1].shape[1:3]))
        return h

    def _stage(self, h, told, name, level, multiplier, deterministic):
        h = self._block(h, told, name, multiplier, deterministic)
        if level in self.attention:
            h = self._attention(h, f"{name}_attention")
        return h

    def _block(self, h, told, name, multiplier, deterministic):
        block = again(self, ResidualBlock, self.remat)
        return block(self.channels * multiplier, self.dropout, deterministic, self.dtype, name=name)(h, told)

    def _attention(self, h, name):
        attention = again(self, SelfAttention, self.remat)
        return attention(self.head_channels, self.dtype, name=name)(h)
