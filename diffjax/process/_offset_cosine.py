"""Nichol & Dhariwal's cosine schedule, whose offset is one of time.

    alpha = cos(u)/cos(u0),   u = (pi/2) (t + offset)/(1 + offset),   u0 = u(0),   alpha^2 + sigma^2 = 1
    sigma^2 = sin(u - u0) sin(u + u0)/cos(u0)^2

`Cosine`'s shift moves logsnr instead. Offset 0 is `Cosine()`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, root_from_zero, time_from_logsnr
from diffjax.process._scales import on_circle, scales


class OffsetCosine(AbstractGaussianProcess):
    """The cosine process of Improved DDPM; its beta is singular at t = 1.

    Attributes:
      offset: s in the paper, of the time; not negative. It keeps the noise from growing too slowly near t = 0.

    Raises:
      ValueError: the offset is negative or not finite.

    Source: Nichol & Dhariwal 2021 (Improved denoising diffusion probabilistic models), eq. 17.
    """

    offset: Scalar = eqx.field(converter=as_scalar, default=0.008)

    def __check_init__(self):
        check((self.offset >= 0) & (self.offset < jnp.inf), f"offset: must be 0 or more and finite, got {self.offset}")

    def alpha(self, t: Time) -> Time:
        data = _cos(self, t)
        return data / jnp.sqrt(data**2 + _lean(self, t, jnp.zeros_like(t)))

    def sigma(self, t: Time) -> Time:
        square = _lean(self, t, jnp.zeros_like(t))
        straight = (square == 0) & (self.offset == 0)  # then sigma begins along a line, not as a root
        root = root_from_zero(jnp.where(straight, 1.0, square), t)
        root = jnp.where(straight, _quarter(self) * (t - jax.lax.stop_gradient(t)), root)
        return root / jnp.sqrt(_cos(self, t) ** 2 + square)


def _quarter(process: OffsetCosine) -> Time:
    return 0.5 * jnp.pi / (1 + process.offset)


def _cos(process: OffsetCosine, t: Time) -> Time:
    """cos(u), as the sine of what is left of it: cos loses 0.5 % near t = 1 in float32."""
    return jnp.sin(_quarter(process) * (1 - t))


def _lean(process: OffsetCosine, t: Time, s: Time) -> Time:
    """sin(u_t - u_s) sin(u_t + u_s) = cos^2(u_s) - cos^2(u_t); near pi, of what is left of the sum."""
    # By `where`: the derivative of `minimum` asks whether a number equals itself computed again, which jit may round
    # otherwise, and is 0 then.
    total = jnp.where(t + s < 1, t + s + 2 * process.offset, (1 - t) + (1 - s))
    return jnp.sin(_quarter(process) * (t - s)) * jnp.sin(_quarter(process) * total)


@logsnr.register(OffsetCosine)
def _(process: OffsetCosine, t: Time) -> Time:
    return 2 * jnp.log(_cos(process, t)) - jnp.log(_lean(process, t, jnp.zeros_like(t)))


@time_from_logsnr.register(OffsetCosine)
def _(process: OffsetCosine, value: Time) -> Time:
    # tan(u - u0), from cos(u) = cos(u0) alpha and sin^2(u) = sigma^2 + sin^2(u0) alpha^2, without a difference.
    value = jnp.asarray(value)
    alpha, variance = jnp.sqrt(jax.nn.sigmoid(value)), jax.nn.sigmoid(-value)
    cos, sin = _cos(process, jnp.zeros_like(value)), jnp.sin(_quarter(process) * process.offset)
    sin_u = jnp.sqrt(variance + (sin * alpha) ** 2)
    angle = jnp.arctan2(variance * cos, (sin_u + sin * alpha) * (cos**2 * alpha + sin_u * sin))
    return angle / _quarter(process)


@conditional.register(OffsetCosine)
def _(process: OffsetCosine, t: Time, s: Time) -> tuple[Time, Time]:
    return _cos(process, t) / _cos(process, s), jnp.sqrt(_lean(process, t, s)) / _cos(process, s)


scales.register(OffsetCosine, on_circle)
