"""Features of a noise level, before the two linear layers that every U-Net puts after them.

    Waves       cos, sin(2 pi f c)             f geometric from `low` to `high`             for c_noise of order one
    Positional  sin, cos(c f)                  f_i = 10000^(-i/(features/2 - shift))        for a clock 0 .. 1000
    Fourier     sin, cos(2 pi W c or log c)    W ~ N(0, std^2), drawn once                  for sigma, or its logarithm
    Learned     a row of a table               one for each whole c                         for a clock 0 .. count - 1

Source: Vaswani et al. 2017, section 3.5 and Ho et al. 2020, appendix B (positional); Song et al. 2021, appendix G and
Tancik et al. 2020, eq. 3 (Fourier). All `(c_noise [b], features) -> [b, k]`, in the dtype of c_noise.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._embedding import fourier_features, rows_of, timestep_features
from diffjax.networks._init import normal


class Waves(nn.Module):
    """Fixed waves, `fourier_features`, for the c_noise of diffjax's parameterisations."""

    low: float = 1 / 16
    high: float = 4.0

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], features: int) -> Float[Array, "b k"]:
        return fourier_features(c_noise, features, low=self.low, high=self.high)


class Positional(nn.Module):
    """Waves of periods 2 pi to 2 pi 10000.

    Attributes:
      cosine_first: cosines before sines.
      shift: 1 makes the slowest period exactly 2 pi 10000, as in DDPM.
    """

    cosine_first: bool = False
    shift: float = 1.0

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], features: int) -> Float[Array, "b k"]:
        return timestep_features(c_noise, features, shift=self.shift, sine_first=not self.cosine_first)


class Fourier(nn.Module):
    """Waves of random frequencies, 2 features of them; the frequencies are among the parameters but never trained.

    As `UNet2D`'s `time_proj` they are left out of weight decay by `optax.adamw(..., mask=trained)`.

    Attributes:
      std: standard deviation of the frequencies.
      log: of log c_noise, which must then be positive (a sigma).
    """

    std: float = 16.0
    log: bool = False

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], features: int) -> Float[Array, "b k"]:
        drawn = self.param("scale", normal(self.std), (features,), jnp.float32)
        frequencies = jax.lax.stop_gradient(drawn).astype(c_noise.dtype)
        level = jnp.log(c_noise) if self.log else c_noise
        angle = 2 * jnp.pi * level[:, None] * frequencies
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Learned(nn.Module):
    """A table of `count` rows; c_noise is rounded, and outside of the table the answer is NaN."""

    count: int

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], features: int) -> Float[Array, "b k"]:
        table = self.param("embedding", normal(1.0), (self.count, features), jnp.float32)
        row = jnp.round(c_noise).astype(jnp.int32)
        return rows_of(table, row).astype(c_noise.dtype)
