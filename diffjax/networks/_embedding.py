"""What a network is told beside the sample: the noise level and the condition.

    c_noise [b] -> fourier_features -> Dense -> SiLU -> Dense --+
                                                                +--> SiLU --> [b, width]
    cond: label [b] -> table of num_classes + 1 rows -----------+
          or text -> mean of its tokens [b, k] -> Dense
          or vector [b, k] -> Dense

The last row of the table, label num_classes, is the null label: "no condition" in classifier-free guidance
(Ho & Salimans 2022). A text without tokens is told as its learned null token.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from diffjax._arrays import check
from diffjax.networks._init import constant, normal
from diffjax.networks._text import Text, TextTokens, pooled


def fourier_features(
    c_noise: Float[Array, " b"], features: int, *, low: float = 1 / 16, high: float = 4.0
) -> Float[Array, "b features"]:
    """[cos(2 pi f c), sin(2 pi f c)] for features/2 frequencies f, geometric from `low` to `high`.

    The default range is for c_noise of order one (-logsnr/8, within [-4, 4]): the slowest wave is longer than that
    range, so no two levels look alike, and the fastest has a period of 2 in logsnr, so the network stays smooth in t.
    float32, or float64 for a float64 c_noise. Source: Tancik et al. 2020, eq. 3, with fixed frequencies.
    """
    dtype = jnp.promote_types(c_noise.dtype, jnp.float32)
    frequencies = jnp.geomspace(low, high, features // 2, dtype=dtype)
    angle = 2 * jnp.pi * c_noise.astype(dtype)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def timestep_features(
    c_noise: Float[Array, " b"], features: int, *, shift: float = 0.0, sine_first: bool = False
) -> Float[Array, "b features"]:
    """[cos(f_i c), sin(f_i c)] with f_i = 10000^(-i / (features/2 - shift)): for a c_noise that counts steps to 1000.

    Args:
      c_noise: [b], such as 0 .. 999.
      features: how many; a zero fills up an odd number.
      shift: 0, or 1 where the slowest frequency is 1/10000 itself.
      sine_first: the sines before the cosines.

    float32, or float64 for a float64 c_noise. Source: Ho et al. 2020, appendix B; Vaswani et al. 2017, section 3.5.
    """
    dtype = jnp.promote_types(c_noise.dtype, jnp.float32)
    half = features // 2
    frequencies = jnp.asarray(10000.0 ** (-np.arange(half) / (half - shift)), dtype)
    angle = c_noise.astype(dtype)[:, None] * frequencies
    waves = [jnp.sin(angle), jnp.cos(angle)] if sine_first else [jnp.cos(angle), jnp.sin(angle)]
    return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, features % 2)))


def check_dropout(value: float) -> None:
    """Raises `ValueError` where a field `dropout` is no probability in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"dropout: a probability in [0, 1) is needed, got {value}")


def dense(features: int, dtype: Any = jnp.float32, *, name: str, zero: bool = False, bias: bool = True) -> nn.Dense:
    """A linear layer, drawn with variance 1/fan_in, or starting at zero."""
    return nn.Dense(
        features,
        kernel_init=constant(0.0) if zero else normal(),
        bias_init=constant(0.0),
        use_bias=bias,
        dtype=dtype,
        dot_general=matrix_product,
        name=name,
    )


def matrix_product(x: Any, kernel: Any, dimension_numbers: Any = None, **options: Any) -> Any:
    """x [..., k] times kernel [k, n], as one product of two matrices.

    Left with all its axes, XLA's CPU code takes twice as long for the gradient: a DiT's step 1.7 times.
    """
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class Conditioning(nn.Module):
    """`(c_noise [b], cond) -> [b, width]`.

    Attributes:
      width: even number of features.
      num_classes: cond is then an integer label [b] in 0 .. num_classes, the last being the null label. A label out
        of range is an error where it can be seen, and gives NaN under jit.
      text_width: cond is then a `Text` of such embeddings. Both None: cond is a vector [b, k] or None.
      dtype: of the computation; float32 at least is meant, as it is little work.
    """

    width: int
    num_classes: int | None = None
    text_width: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], cond: Any = None) -> Float[Array, "b width"]:
        h = fourier_features(c_noise, self.width).astype(self.dtype)
        h = dense(self.width, self.dtype, name="noise_in")(h)
        h = dense(self.width, self.dtype, name="noise_out")(nn.silu(h))
        if self.num_classes is not None:
            labels = as_labels(cond, self.num_classes, c_noise.shape)
            table = self.param("classes", normal(1.0), (self.num_classes + 1, self.width), jnp.float32)
            h = h + rows_of(table, labels).astype(h.dtype)
        elif self.text_width is not None:
            text = TextTokens(self.text_width, name="text_tokens")(cond)
            h = h + dense(self.width, self.dtype, name="text_embedding")(pooled(text, h.dtype))
        elif cond is not None:
            h = h + dense(self.width, self.dtype, name="cond")(as_vector(cond))
        return nn.silu(h)


def as_labels(cond: Any, num_classes: int, shape: tuple[int, ...]) -> Int[Array, " b"]:
    """A condition as labels [b] in 0 .. num_classes, or ValueError."""
    if cond is None:
        raise ValueError(f"cond: labels are needed with num_classes={num_classes}; {num_classes} is the null label")
    if isinstance(cond, Text):
        raise ValueError(f"cond: integer labels of shape {shape} are needed, got Text")
    labels = jnp.asarray(cond)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != shape:
        raise ValueError(f"cond: integer labels of shape {shape} are needed, got {labels.dtype} {labels.shape}")
    in_range = (labels >= 0) & (labels <= num_classes)
    check(in_range, f"cond: labels must be within 0 .. {num_classes} (the last is the null label), got {cond}")
    return labels


def rows_of(table: Float[Array, "n k"], indices: Int[Array, " b"]) -> Float[Array, "b k"]:
    """Rows of a table; NaN for one that it has not."""
    return table.at[indices].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def as_vector(cond: Any) -> Float[Array, "b k"]:
    """A condition as a vector [b, k], or ValueError."""
    if isinstance(cond, Text):
        raise ValueError("cond: a float vector [b, k] is needed without text_width, got Text; set text_width")
    vector = jnp.asarray(cond)
    if not jnp.issubdtype(vector.dtype, jnp.floating) or vector.ndim != 2:
        raise ValueError(
            f"cond: a float vector [b, k] is needed without num_classes, got {vector.dtype} {vector.shape}; "
            "for integer labels set num_classes"
        )
    return vector


def broadcast_noise(c_noise: Any, x: Float[Array, "b *d"]) -> Float[Array, " b"]:
    """c_noise for each sample: a number or [b] becomes [b]."""
    return jnp.broadcast_to(jnp.asarray(c_noise), x.shape[:1])
