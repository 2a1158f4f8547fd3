"""The parts of a U-Net: group normalisation, the residual block, self-attention, resampling.

    residual block    x -> norm -> SiLU -> conv -> norm (1 + s) + u -> SiLU -> dropout -> conv* --> + --> y
                      |    told -> Dense -> s, u ---------------^                                   ^
                      +--> (1 x 1 convolution where the channels change) ---------------------------+

    attention         x -> norm -> q, k, v -> softmax(q k'/sqrt(n)) v -> Dense* --> + --> y
                      +-------------------------------------------------------------+         * starts at zero

Source: Ho et al. 2020, appendix B; scale and shift as in Dhariwal & Nichol 2021, section 3.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._attention import attention
from diffjax.networks._convolution import convolution
from diffjax.networks._embedding import dense
from diffjax.networks._init import constant, normal


def groups_of(channels: int) -> int:
    """Number of groups: at most 32, at least four channels each where there are as many, and a divisor of channels."""
    return math.gcd(channels, max(1, min(32, channels // 4)))


class GroupNorm(nn.Module):
    """Group normalisation of [b, h, w, c], with an optional scale and shift [b, c] from outside.

        y = A x + B,   A = (1 + s) w / sqrt(var + eps),   B = (1 + s) (bias - w mean / sqrt(var + eps)) + u

    Moments are taken per channel and merged into groups on [b, c], and everything after them is one affine map, so
    the image is read twice and written once: measured on CPU, a U-Net's gradient takes 0.95 of the time with Flax's.
    Statistics and the map are float32. A channel's variance is E[x^2] - E[x]^2, which is good while its mean is not
    hundreds of times its spread; differences between channels cost no digits. Source: Wu & He 2018, eq. 7.

    Attributes:
      epsilon: added to the variance.
      dtype: of y; statistics and the map are float32 (float64 for a float64 x).
      groups: how many, a divisor of c; `groups_of(c)` where None.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    groups: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], modulation: Any = None) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        weight = self.param("scale", constant(1.0), (channels,), jnp.float32)
        bias = self.param("bias", constant(0.0), (channels,), jnp.float32)
        groups = groups_of(channels) if self.groups is None else self.groups
        if groups < 1 or channels % groups:
            raise ValueError(f"groups: a divisor of {channels} channels is needed, got {groups}")
        return _group_norm(x, weight, bias, modulation, self.epsilon, groups, jnp.dtype(self.dtype))


@partial(jax.jit, static_argnums=(4, 5, 6))  # traced once a shape, however many layers there are
def _group_norm(x, weight, bias, modulation, epsilon, groups, dtype):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, variance = _group_moments(wide, groups)
    slope = weight * jax.lax.rsqrt(variance + epsilon)
    offset = bias - mean * slope
    if modulation is not None:
        scale, shift = jnp.split(modulation.astype(wide.dtype), 2, axis=-1)
        slope, offset = slope * (1 + scale), offset * (1 + scale) + shift
    return (wide * slope[:, None, None] + offset[:, None, None]).astype(dtype)


def _group_moments(x, groups):
    """Mean and variance of each channel's group, [b, c], from the moments of single channels."""
    mean = jnp.mean(x, axis=(1, 2))
    variance = jnp.maximum(jnp.mean(jnp.square(x), axis=(1, 2)) - jnp.square(mean), 0)
    split = mean.shape[0], groups, -1
    mean, variance = mean.reshape(split), variance.reshape(split)
    group_mean = jnp.mean(mean, axis=-1, keepdims=True)
    group_variance = jnp.mean(variance + jnp.square(mean - group_mean), axis=-1, keepdims=True)
    merged = (jnp.broadcast_to(moment, mean.shape) for moment in (group_mean, group_variance))
    return tuple(moment.reshape(x.shape[0], x.shape[-1]) for moment in merged)


def conv(
    features: int,
    size: int,
    dtype: Any,
    *,
    name: str | None = None,
    stride: int = 1,
    padding: Any = "SAME",
    zero: bool = False,
) -> nn.Conv:
    """A square convolution, padded to keep the size (halved, rounded up, at stride 2) unless said.

    `padding` (p, q) is that many zeros before and after, along both axes.
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


class ResidualBlock(nn.Module):
    """`(x [b, h, w, c], told [b, k]) -> [b, h, w, channels]`; starts as the identity where channels stay."""

    channels: int
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], told: Float[Array, "b k"]) -> Float[Array, "b h w d"]:
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm_1")(x))
        h = conv(self.channels, 3, self.dtype, name="conv_1")(h)
        modulation = dense(2 * self.channels, told.dtype, name="modulate")(told)
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm_2")(h, modulation))
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        h = conv(self.channels, 3, self.dtype, name="conv_2", zero=True)(h)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, 1, self.dtype, name="skip")(x)
        return x + h


class SelfAttention(nn.Module):
    """Attention among all positions of [b, h, w, c]; starts as the identity.

    Source: Vaswani et al. 2017, eq. 1. The number of heads is the largest divisor of c with at least `head_channels`
    channels each, at least one.
    """

    head_channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        heads = math.gcd(channels, max(1, channels // self.head_channels))
        h = GroupNorm(dtype=self.dtype, name="norm")(x)
        qkv = dense(3 * channels, self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(batch, height * width, 3 * heads, channels // heads), 3, axis=2)
        h = attention(q, k, v).reshape(x.shape)
        return x + dense(channels, self.dtype, name="out", zero=True)(h)


def enlarge(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Every pixel twice along both axes, cut to (height, width): undoes the halving of odd sizes too."""
    b, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return doubled[:, :height, :width]
