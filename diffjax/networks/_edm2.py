"""EDM2: a U-Net whose activations, weights and updates keep their magnitude (configuration G of the paper).

    c_noise -> Fourier -> linear -> sum(label or text) -> SiLU -------------------> told
    x, 1 -> conv -> [encoder block] x n -> halve, encoder block -> ...  (and so on) --+
                 \\--------- skips ---------\\                                          v
    y <- gain* <- conv <- [concat skip, decoder block] x (n + 1) <- double, block <- decoder block, decoder block

    encoder block   x -> (1 x 1 where channels change) -> unit pixels -+-> branch -> sum 0.3 -> (attention, sum 0.3) ->
                                                                       +----------------^
    decoder block   x -+-> branch ------------------------> sum 0.3 -> (attention, sum 0.3) ->
                       +-> (1 x 1 where channels change) ------^
    branch          SiLU -> conv -> x (1 + gain* linear(told)) -> SiLU -> dropout -> conv
    attention       linear -> q, k, v, each unit -> softmax(q k'/sqrt(d)) v -> linear                * starts at zero

Every layer is one of `_magnitude`: no norms with statistics, no biases (the input's channel of ones takes their place).
Source: Karras et al. 2024 (Analyzing and improving the training dynamics of diffusion models), sections 2.2-2.5 and
appendix B. Its loss weights are `losses.uncertainty_loss`, its averages `training.PowerEMA`.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._attention import attention
from diffjax.networks._blocks import enlarge
from diffjax.networks._embedding import as_labels, as_vector, broadcast_noise, check_dropout
from diffjax.networks._init import constant
from diffjax.networks._magnitude import MPConv, MPFourier, MPLabels, mp_concatenate, mp_silu, mp_sum, unit
from diffjax.networks._repeat import again
from diffjax.networks._text import TextTokens, check_label_or_text, pooled


class EDM2UNet(nn.Module):
    """A magnitude-preserving U-Net `(x [b, h, w, c], c_noise [b], cond) -> y [b, h, w, c]`, y in float32.

    It is meant for `KarrasPrediction`, whose input has unit variance; call `normalise_weights` after each update.

    Attributes:
      channels: of the finest level; 128, 192, 256, 320, 384, 448 are the paper's XS, S, M, L, XL, XXL.
      multipliers: channels of level i are `channels * multipliers[i]`; each level after the first halves the size.
      blocks: encoder blocks a level; one more in the decoder.
      attention: the levels with self-attention, 0 the finest.
      head_channels: channels of an attention head, a divisor of the channels where there is attention.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label. None: cond is a
        vector [b, k] of features of order one, or None.
      text_width: cond is a `Text` of such embeddings, whose mean, of unit magnitude, is told. A text without tokens is
        no condition. Not together with num_classes.
      dropout: the probability of dropping a feature in training.
      residual_balance, attention_balance, skip_balance, label_balance: t of each sum or concatenation, in (0, 1).
      dtype: of the computation; parameters are float32, the output at least that.
      out_channels: channels of y, those of x where None.
      remat: keep only what enters each block for the backward pass, and compute the rest of it again.

    Raises:
      ValueError: a field that does not fit; an x that is not [b, h, w, c] with sizes that halve evenly; a cond that
        does not fit.
    """

    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (2, 3)
    head_channels: int = 64
    num_classes: int | None = None
    text_width: int | None = None
    dropout: float = 0.0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    skip_balance: float = 0.5
    label_balance: float = 0.5
    dtype: Any = jnp.float32
    out_channels: int | None = None
    remat: bool = False

    def __post_init__(self):
        if self.channels < 1:
            raise ValueError(f"channels: at least 1 is needed, got {self.channels}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: one positive number a level is needed, got {self.multipliers}")
        if self.blocks < 1:
            raise ValueError(f"blocks: at least one a level is needed, got {self.blocks}")
        if not set(self.attention) <= set(range(len(self.multipliers))):
            raise ValueError(f"attention: levels are 0 .. {len(self.multipliers) - 1}, got {self.attention}")
        for level in {*self.attention, len(self.multipliers) - 1}:
            width = self.channels * self.multipliers[level]
            if self.head_channels < 1 or width % self.head_channels:
                raise ValueError(f"head_channels: a divisor of level {level}'s {width} is needed, {self.head_channels}")
        check_label_or_text(self.num_classes, self.text_width)
        check_dropout(self.dropout)
        for name in ("residual_balance", "attention_balance", "skip_balance", "label_balance"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: between 0 and 1 is needed, got {getattr(self, name)}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Any, c_noise: Any, cond: Any = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        self._check(x)
        fields = self.channels, self._width(-1, max), self.num_classes, self.text_width, self.label_balance, self.dtype
        told = _Told(*fields, name="told")(broadcast_noise(c_noise, x), cond)
        x = x.astype(self.dtype)
        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        h = MPConv(self._width(0), 3, self.dtype, name="in")(h)
        h, skips = self._encode(h, told, deterministic)
        h = self._decode(h, skips, told, deterministic)
        out = x.shape[-1] if self.out_channels is None else self.out_channels
        y = MPConv(out, 3, self.dtype, name="out")(h).astype(jnp.promote_types(self.dtype, jnp.float32))
        return y * self.param("gain", constant(0.0), (), jnp.float32).astype(y.dtype)

    def _encode(self, h, told, deterministic):
        skips = [h]
        for level in range(len(self.multipliers)):
            if level > 0:
                h = self._block(f"halve__{level}", h.shape[-1], True, False, deterministic)(_halve(h), told)
                skips.append(h)
            for i in range(self.blocks):
                attend = level in self.attention
                block = self._block(f"encoder__{level}__{i}", self._width(level), True, attend, deterministic)
                h = block(h, told)
                skips.append(h)
        return h, skips

    def _decode(self, h, skips, told, deterministic):
        last = len(self.multipliers) - 1
        for i in range(2):
            h = self._block(f"middle__{i}", self._width(last), False, i == 0, deterministic)(h, told)
        for level in reversed(range(last + 1)):
            for i in range(self.blocks + 1):
                h = mp_concatenate(h, skips.pop(), self.skip_balance)
                attend = level in self.attention
                h = self._block(f"decoder__{level}__{i}", self._width(level), False, attend, deterministic)(h, told)
            if level > 0:
                h = enlarge(h, 2 * h.shape[1], 2 * h.shape[2])
                h = self._block(f"double__{level}", h.shape[-1], False, False, deterministic)(h, told)
        return h

    def _block(self, name, channels, encoder, attend, deterministic):
        block = again(self, _Block, self.remat)
        return block(
            channels=channels,
            encoder=encoder,
            head_channels=self.head_channels if attend else None,
            dropout=self.dropout,
            balances=(self.residual_balance, self.attention_balance),
            deterministic=deterministic,
            dtype=self.dtype,
            name=name,
        )

    def _width(self, level, pick=None):
        return self.channels * (pick(self.multipliers) if pick else self.multipliers[level])

    def _check(self, x):
        factor = 2 ** (len(self.multipliers) - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"x: images [b, height, width, channels] with sizes that are multiples of {factor} are needed for "
                f"{len(self.multipliers)} levels, got shape {x.shape}"
            )


class _Told(nn.Module):
    """`(c_noise [b], cond) -> [b, width]`."""

    features: int
    width: int
    num_classes: int | None
    text_width: int | None
    balance: float
    dtype: Any

    @nn.compact
    def __call__(self, c_noise, cond):
        wide = jnp.promote_types(self.dtype, jnp.float32)
        h = MPFourier(self.features, wide, name="fourier")(c_noise)
        h = MPConv(self.width, 0, wide, name="noise")(h)
        if self.num_classes is not None:
            labels = as_labels(cond, self.num_classes, c_noise.shape)
            h = mp_sum(h, MPLabels(self.num_classes + 1, self.width, wide, name="label")(labels), self.balance)
        elif self.text_width is not None:
            mean = unit(pooled(TextTokens(self.text_width, name="text_tokens")(cond), wide))
            h = mp_sum(h, MPConv(self.width, 0, wide, name="text_embedding")(mean), self.balance)
        elif cond is not None:
            h = mp_sum(h, MPConv(self.width, 0, wide, name="cond")(as_vector(cond)), self.balance)
        return mp_silu(h)


class _Block(nn.Module):
    channels: int
    encoder: bool
    head_channels: int | None
    dropout: float
    balances: tuple[float, float]
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], told: Float[Array, "b k"]) -> Float[Array, "b h w d"]:
        if self.encoder:
            x = unit(self._straight(x))
        h = MPConv(self.channels, 3, self.dtype, name="conv_1")(mp_silu(x))
        gain = self.param("gain", constant(0.0), (), jnp.float32).astype(told.dtype)
        scale = 1 + gain * MPConv(self.channels, 0, told.dtype, name="told")(told)
        h = mp_silu(h * scale.astype(self.dtype)[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        h = MPConv(self.channels, 3, self.dtype, name="conv_2")(h)
        h = mp_sum(x if self.encoder else self._straight(x), h, self.balances[0])
        if self.head_channels is None:
            return h
        return mp_sum(h, self._attend(h), self.balances[1])

    def _straight(self, x):
        return x if x.shape[-1] == self.channels else MPConv(self.channels, 1, self.dtype, name="skip")(x)

    def _attend(self, x):
        batch, height, width, channels = x.shape
        qkv = MPConv(3 * channels, 1, self.dtype, name="qkv")(x)
        qkv = unit(qkv.reshape(batch, height * width, -1, self.head_channels))
        h = attention(*jnp.split(qkv, 3, axis=2)).reshape(x.shape)
        return MPConv(channels, 1, self.dtype, name="attention_out")(h)


def _halve(x):
    """The mean of each 2 x 2 pixels."""
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
