"""EDM2: a U-Net whose activations, weights and updates keep their magnitude (configuration G of the paper).

    c_noise -> Fourier -> linear -> sum(label or text) -> SiLU --------------------> emb
    x, 1 -> conv -> [encoder block] x n -> halve, encoder block -> ...  (and so on) --+
                 \\--------- skips ---------\\                                          v
    y <- gain* <- conv <- [concat skip, decoder block] x (n + 1) <- double, block <- decoder block, decoder block

    encoder block   x -> (1 x 1 where channels change) -> unit pixels -+-> branch -> sum 0.3 -> (attention, sum 0.3) ->
                                                                       +----------------^
    decoder block   x -+-> branch ------------------------> sum 0.3 -> (attention, sum 0.3) ->
                       +-> (1 x 1 where channels change) ------^
    branch          SiLU -> conv -> x (1 + gain* linear(emb)) -> SiLU -> dropout -> conv
    attention       linear -> q, k, v, each unit -> softmax(q k'/sqrt(d)) v -> linear                * starts at zero

Every layer is one of `_magnitude`: no norms with statistics, no biases (the input's channel of ones takes their place).
Source: Karras et al. 2024 (Analyzing and improving the training dynamics of diffusion models), sections 2.2-2.5 and
appendix B. Its loss weights are `losses.uncertainty_loss`, its averages `training.PowerEMA`.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Params
from diffjax.networks._attention import attention
from diffjax.networks._blocks import check_channels, check_levels, enlarge
from diffjax.networks._embedding import ConditionEmbedding, EmbeddingLayers, as_vector
from diffjax.networks._init import constant
from diffjax.networks._layers import check_dropout, float32_at_least
from diffjax.networks._magnitude import (
    MPConv,
    MPFourier,
    MPLabels,
    mp_concatenate,
    mp_silu,
    mp_sum,
    mp_two_layers,
    normalise_weights,
    unit_rms,
)
from diffjax.networks._repeat import rematerialised
from diffjax.networks._second_time import broadcast_times
from diffjax.networks._text import Text, pooled

EMBEDDING = "told"
"""The embedding's name in trained parameters, and that of the layers in the blocks that take it."""


@checked_numbers
class EDM2UNet(nn.Module):
    """A magnitude-preserving U-Net `(x [b, h, w, c], c_noise [b] or [b, 2], cond) -> y [b, h, w, c]`, y in float32.

    It is meant for `EDMPrediction`, whose input has unit variance; call `normalise_weights` after each update.

    Attributes:
      channels: of each level, the finest first; each level after the first halves the size. The paper's are
        n, 2n, 3n, 4n with n = 128, 192, 256, 320, 384, 448 for XS, S, M, L, XL, XXL.
      blocks: encoder blocks a level; one more in the decoder.
      attention: the levels with self-attention, 0 the finest.
      head_channels: channels of an attention head, a divisor of the channels where there is attention.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label. None: cond is a
        vector [b, k] of features of order one, or None.
      text_width: cond is a `Text` of such embeddings, whose mean, of unit magnitude, is embedded. A text without
        tokens is no condition. With num_classes as well, cond is a `Cascade` of a text and a label.
      dropout: the probability of dropping a feature in training.
      residual_balance: the paper's t of a residual sum: weight of the block's output against its input, in (0, 1).
      attention_balance: weight of the attention's output against its input, in (0, 1).
      skip_balance: weight of the encoder's features where the decoder concatenates them, in (0, 1).
      label_balance: weight of the class embedding against that of the noise level, in (0, 1).
      dtype: of the computation; parameters are float32, the output at least that.
      out_channels: channels of y, those of x where None.
      remat: recompute each block in the backward pass instead of storing its activations.

    Raises:
      ValueError: a field that does not fit; an x that is not [b, h, w, c] with sizes that halve evenly; a cond that
        does not fit.
    """

    channels: tuple[int, ...] = (192, 384, 576, 768)
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
    dtype: DTypeLike = jnp.float32
    out_channels: int | None = None
    remat: bool = False
    after_update: ClassVar[Callable[[Params], Params]] = staticmethod(normalise_weights)

    def __post_init__(self):
        check_channels(self.channels)
        if self.blocks < 1:
            raise ValueError(f"blocks: at least one a level is needed, got {self.blocks}")
        if not set(self.attention) <= set(range(len(self.channels))):
            raise ValueError(f"attention: levels are 0 .. {len(self.channels) - 1}, got {self.attention}")
        for level in {*self.attention, len(self.channels) - 1}:
            width = self.channels[level]
            if self.head_channels < 1 or width % self.head_channels:
                raise ValueError(
                    f"head_channels: a divisor of level {level}'s {width} is needed, got {self.head_channels}"
                )
        check_dropout(self.dropout)
        for name in ("residual_balance", "attention_balance", "skip_balance", "label_balance"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: between 0 and 1 is needed, got {getattr(self, name)}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c_noise: ArrayLike, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        check_levels(x, len(self.channels), "channels")
        layers = edm2_layers(self.channels[0], self.label_balance)
        fields = max(self.channels), self.num_classes, self.text_width, float32_at_least(self.dtype), layers
        emb = ConditionEmbedding(*fields, name=EMBEDDING)(broadcast_times(self, c_noise, x), cond)
        x = x.astype(self.dtype)
        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        h = MPConv(self.channels[0], 3, self.dtype, name="in")(h)
        h, skips = self._encode(h, emb, deterministic)
        h = self._decode(h, skips, emb, deterministic)
        out = x.shape[-1] if self.out_channels is None else self.out_channels
        y = MPConv(out, 3, self.dtype, name="out")(h).astype(float32_at_least(self.dtype))
        return y * self.param("gain", constant(0.0), (), jnp.float32).astype(y.dtype)

    def _encode(self, h, emb, deterministic):
        skips = [h]
        for level in range(len(self.channels)):
            if level > 0:
                h = self._block(f"halve__{level}", h.shape[-1], True, False, deterministic)(_halve(h), emb)
                skips.append(h)
            for i in range(self.blocks):
                attend = level in self.attention
                block = self._block(f"encoder__{level}__{i}", self.channels[level], True, attend, deterministic)
                h = block(h, emb)
                skips.append(h)
        return h, skips

    def _decode(self, h, skips, emb, deterministic):
        last = len(self.channels) - 1
        for i in range(2):
            h = self._block(f"middle__{i}", self.channels[last], False, i == 0, deterministic)(h, emb)
        for level in reversed(range(last + 1)):
            for i in range(self.blocks + 1):
                h = mp_concatenate(h, skips.pop(), self.skip_balance)
                attend = level in self.attention
                h = self._block(f"decoder__{level}__{i}", self.channels[level], False, attend, deterministic)(h, emb)
            if level > 0:
                h = enlarge(h, 2 * h.shape[1], 2 * h.shape[2])
                h = self._block(f"double__{level}", h.shape[-1], False, False, deterministic)(h, emb)
        return h

    def _block(self, name, channels, encoder, attend, deterministic):
        block = rematerialised(self, _Block, self.remat)
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


@checked_numbers
def edm2_layers(frequencies: int, balance: float) -> EmbeddingLayers:
    """The magnitude-preserving layers of a `ConditionEmbedding`: linear(Fourier(c_noise)), blended with a condition.

    Args:
      frequencies: of the Fourier features.
      balance: the weight of the condition, in (0, 1).
    """

    def noise(module: ConditionEmbedding, c_noise: Float[Array, " b"]) -> Float[Array, "b width"]:
        h = MPFourier(frequencies, module.dtype, name="fourier")(c_noise)
        return MPConv(module.width, 0, module.dtype, name="noise")(h)

    def label(module: ConditionEmbedding, labels: Int[Array, " b"]) -> Float[Array, "b width"]:
        assert module.num_classes is not None
        return MPLabels(module.num_classes + 1, module.width, module.dtype, name="label")(labels)

    def text(module: ConditionEmbedding, text: Text) -> Float[Array, "b width"]:
        return MPConv(module.width, 0, module.dtype, name="text_embedding")(unit_rms(pooled(text, module.dtype)))

    def vector(module: ConditionEmbedding, cond: Cond) -> Float[Array, "b width"]:
        return MPConv(module.width, 0, module.dtype, name="cond")(as_vector(cond))

    add = partial(mp_sum, t=balance)
    return EmbeddingLayers(noise, label, text, vector, add=add, activation=mp_silu, second_time=mp_two_layers)


class _Block(nn.Module):
    """An encoder or a decoder block, `(x [b, h, w, c], emb [b, k]) -> [b, h, w, channels]`."""

    channels: int
    encoder: bool
    head_channels: int | None
    dropout: float
    balances: tuple[float, float]
    deterministic: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Float[Array, "b k"]) -> Float[Array, "b h w d"]:
        if self.encoder:
            x = unit_rms(self._straight(x))
        h = MPConv(self.channels, 3, self.dtype, name="conv_1")(mp_silu(x))
        gain = self.param("gain", constant(0.0), (), jnp.float32).astype(emb.dtype)
        scale = 1 + gain * MPConv(self.channels, 0, emb.dtype, name=EMBEDDING)(emb)
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
        qkv = unit_rms(qkv.reshape(batch, height * width, -1, self.head_channels))
        h = attention(*jnp.split(qkv, 3, axis=2)).reshape(x.shape)
        return MPConv(channels, 1, self.dtype, name="attention_out")(h)


def _halve(x):
    """The mean of each 2 x 2 pixels."""
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
