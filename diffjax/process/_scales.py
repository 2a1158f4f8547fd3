"""Where on its own path a process has a given signal-to-noise ratio, without a detour through the time.

A path is a curve (alpha, sigma) from (1, 0) towards noise; a ratio alpha : sigma picks one point of it:

    circle   alpha^2 + sigma^2 = 1     variance preserving
    line     alpha + sigma = 1         rectified flow, polynomial paths
    alpha = 1                          variance exploding

Inverting logsnr to t loses digits in float32, where a step of t near 1 is a large one of logsnr; this does not.
"""

from functools import singledispatch

import jax.numpy as jnp

from diffjax._typing import Time
from diffjax.process._base import AbstractGaussianProcess, time_from_logsnr


@singledispatch
def scales(process: AbstractGaussianProcess, data: Time, noise: Time) -> tuple[Time, Time]:
    """The process's own (alpha, sigma), of the shape of `data`, with alpha : sigma = data : noise.

    Args:
      process: whose path it is.
      data, noise: the ratio, two numbers of one shape, not negative and not both zero.

    Without a closed form the point is found by `time_from_logsnr`; past an end of the path the larger of the two
    stays what it is there, and the other has the ratio asked for.
    """
    t = jnp.clip(time_from_logsnr(process, 2 * (jnp.log(data) - jnp.log(noise))), 0.0, 1.0)
    alpha, sigma, clean = process.alpha(t), process.sigma(t), data >= noise
    larger = jnp.where(clean, data, noise)
    return jnp.where(clean, alpha, sigma * (data / larger)), jnp.where(clean, alpha * (noise / larger), sigma)


def scales_from_logsnr(process: AbstractGaussianProcess, value: Time) -> tuple[Time, Time]:
    """The process's own (alpha, sigma) where its logsnr is `value`, each of the shape of `value` (+-inf too)."""
    value = jnp.asarray(value)
    # By `where`: in jit, `minimum` loses its derivative where the value is computed twice and rounded otherwise.
    noisy = value < 0
    data, noise = jnp.where(noisy, value, 0.0), jnp.where(noisy, 0.0, value)
    return scales(process, jnp.exp(0.5 * data), jnp.exp(-0.5 * noise))


def on_circle(process: AbstractGaussianProcess, data: Time, noise: Time) -> tuple[Time, Time]:
    """`scales` of a process that preserves variance, alpha^2 + sigma^2 = 1; each of the shape of `data`."""
    radius = jnp.sqrt(data**2 + noise**2)
    return data / radius, noise / radius


def on_line(process: AbstractGaussianProcess, data: Time, noise: Time) -> tuple[Time, Time]:
    """`scales` of a process with alpha + sigma = 1; each of the shape of `data`."""
    return data / (data + noise), noise / (data + noise)


def with_alpha_one(process: AbstractGaussianProcess, data: Time, noise: Time) -> tuple[Time, Time]:
    """`scales` of a process with alpha = 1; each of the shape of `data`."""
    return jnp.ones_like(data), noise / data
