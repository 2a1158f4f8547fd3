"""Features of a noise level, before the two linear layers that every network puts after them.

    Waves       cos, sin(2 pi f c)             f geometric from `low` to `high`             for c_noise of order one
    Positional  sin, cos(c f)                  f_i = 10000^(-i/(features/2 - shift))        for a clock 0 .. 1000
    Fourier     sin, cos(2 pi W c or log c)    W ~ N(0, std^2), drawn once                  for sigma, or its logarithm
    Learned     a row of a table               one for each whole c                         for a clock 0 .. count - 1

All are `(c_noise [b], features) -> [b, k]`, in the dtype of c_noise; `fourier_features` and `timestep_features` are the
functions behind the first two. Source: Vaswani et al. 2017, section 3.5 and Ho et al. 2020, appendix B (positional);
Song et al. 2021, appendix G and Tancik et al. 2020, eq. 3 (Fourier).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.networks._init import normal
from diffjax.networks._layers import rows_of


@checked_numbers
def fourier_features(
    c_noise: Float[Array, " b"], features: int, *, low: float = 1 / 16, high: float = 4.0
) -> Float[Array, "b features"]:
    """[cos(2 pi f c), sin(2 pi f c)] for features/2 frequencies f, geometric from `low` to `high`.

    The default range is for c_noise of order one (-logsnr/8, within [-4, 4]): the slowest wave is longer than that
    range, so no two levels look alike, and the fastest has a period of 2 in logsnr, so the network stays smooth in t.

    Args:
      c_noise: noise levels [b].
      features: how many, even.
      low, high: the smallest and the largest frequency, in periods per unit of c_noise.

    Returns:
      [b, features], float32, or float64 for a float64 c_noise.

    Source: Tancik et al. 2020, eq. 3, with fixed frequencies.
    """
    dtype = jnp.promote_types(c_noise.dtype, jnp.float32)
    frequencies = jnp.geomspace(low, high, features // 2, dtype=dtype)
    angle = 2 * jnp.pi * c_noise.astype(dtype)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


@checked_numbers
def timestep_features(
    c_noise: Float[Array, " b"], features: int, *, shift: float = 0.0, sine_first: bool = False
) -> Float[Array, "b features"]:
    """[cos(f_i c), sin(f_i c)] with f_i = 10000^(-i / (features/2 - shift)): for a c_noise that counts steps to 1000.

    Args:
      c_noise: [b], such as 0 .. 999.
      features: how many; a zero fills up an odd number.
      shift: 0, or 1 where the slowest frequency is 1/10000 itself.
      sine_first: the sines before the cosines.

    Returns:
      [b, features], float32, or float64 for a float64 c_noise.

    Source: Ho et al. 2020, appendix B; Vaswani et al. 2017, section 3.5.
    """
    dtype = jnp.promote_types(c_noise.dtype, jnp.float32)
    half = features // 2
    frequencies = jnp.asarray(10000.0 ** (-np.arange(half) / (half - shift)), dtype)
    angle = c_noise.astype(dtype)[:, None] * frequencies
    waves = [jnp.sin(angle), jnp.cos(angle)] if sine_first else [jnp.cos(angle), jnp.sin(angle)]
    return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, features % 2)))


@checked_numbers
class Waves(nn.Module):
    """Fixed waves, `fourier_features`, for the c_noise of diffjax's parameterisations."""

    low: float = 1 / 16
    high: float = 4.0

    @checked_numbers
    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], features: int) -> Float[Array, "b k"]:
        return fourier_features(c_noise, features, low=self.low, high=self.high)


@checked_numbers
class Positional(nn.Module):
    """Waves of periods 2 pi to 2 pi 10000.

    Attributes:
      cosine_first: cosines before sines.
      shift: 1 makes the slowest period exactly 2 pi 10000, as in DDPM.
    """

    cosine_first: bool = False
    shift: float = 1.0

    @checked_numbers
    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], features: int) -> Float[Array, "b k"]:
        return timestep_features(c_noise, features, shift=self.shift, sine_first=not self.cosine_first)


@checked_numbers
class Fourier(nn.Module):
    """Waves of random frequencies, 2 features of them; the frequencies are among the parameters but never trained.

    As `UNet2D`'s `noise_features` they are left out of weight decay by `optax.adamw(..., mask=trained)`.

    Attributes:
      std: standard deviation of the frequencies.
      log: of log c_noise, which must then be positive (a sigma).
    """

    std: float = 16.0
    log: bool = False

    @checked_numbers
    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], features: int) -> Float[Array, "b k"]:
        drawn = self.param("scale", normal(self.std), (features,), jnp.float32)
        frequencies = jax.lax.stop_gradient(drawn).astype(c_noise.dtype)
        level = jnp.log(c_noise) if self.log else c_noise
        angle = 2 * jnp.pi * level[:, None] * frequencies
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


@checked_numbers
class Learned(nn.Module):
    """A table of `count` rows; c_noise is rounded, and outside of the table the answer is NaN."""

    count: int

    @checked_numbers
    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], features: int) -> Float[Array, "b k"]:
        table = self.param("embedding", normal(1.0), (self.count, features), jnp.float32)
        row = jnp.round(c_noise).astype(jnp.int32)
        return rows_of(table, row).astype(c_noise.dtype)


UNTRAINED = ("time_proj/scale", "fourier/frequencies", "fourier/phases")
"""Where `Fourier` (of `UNet2D`) and `MPFourier` (of `EDM2UNet`) have what was drawn: the last two names of a path."""


def trained(params: Params) -> PyTree[bool]:
    """A bool for each parameter, a pytree like `params`: False for the frequencies and phases of random waves.

    Their gradient is zero, but an optimiser's weight decay would shrink them all the same.

    >>> import optax
    >>> tx = optax.adamw(1e-4, weight_decay=0.1, mask=trained)
    >>> trained({"time_proj": {"scale": 1.0}, "norm": {"scale": 1.0}})
    {'norm': {'scale': True}, 'time_proj': {'scale': False}}
    """
    last = lambda path: jax.tree_util.keystr(path[-2:], simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: last(path) not in UNTRAINED, params)
