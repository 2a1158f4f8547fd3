"""The Karras (EDM) process: alpha = 1, sigma = (a + t (b - a))^rho, a = sigma_min^(1/rho), b = sigma_max^(1/rho).

EDM's sampling grid is uniform in this t. Its last step, to sigma = 0, is the terminal denoise, off this clock.
Source: Karras et al. 2022 (Elucidating the design space of diffusion-based generative models), eq. 5.
"""

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, time_from_logsnr
from diffjax.process._scales import scales, with_alpha_one


class Karras(AbstractGaussianProcess):
    """EDM's process and clock.

    Attributes:
      sigma_min: the noise's standard deviation at t = 0, in units of the data; positive.
      sigma_max: at t = 1; more than sigma_min.
      rho: how much of the clock goes to small noise; positive.

    Raises:
      ValueError: a number is out of its range.

    Source: Karras et al. 2022, eq. 5.
    """

    sigma_min: Scalar = eqx.field(converter=as_scalar, default=0.002)
    sigma_max: Scalar = eqx.field(converter=as_scalar, default=80.0)
    rho: Scalar = eqx.field(converter=as_scalar, default=7.0)

    def __check_init__(self):
        check(self.sigma_min > 0, f"sigma_min: must be positive, got {self.sigma_min}")
        check(
            (self.sigma_max > self.sigma_min) & (self.sigma_max < jnp.inf),
            f"sigma_max: must be finite and more than sigma_min = {self.sigma_min}, got {self.sigma_max}",
        )
        check((self.rho > 0) & (self.rho < jnp.inf), f"rho: must be positive and finite, got {self.rho}")

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        low, width = _line(self)
        return (low + t * width) ** self.rho


def _line(process: Karras) -> tuple[Time, Time]:
    """sigma^(1/rho) at t = 0 and its constant rate."""
    low, high = process.sigma_min ** (1 / process.rho), process.sigma_max ** (1 / process.rho)
    return low, high - low


@logsnr.register(Karras)
def _(process: Karras, t: Time) -> Time:
    low, width = _line(process)
    return -2 * process.rho * jnp.log(low + t * width)


@time_from_logsnr.register(Karras)
def _(process: Karras, value: Time) -> Time:
    low, width = _line(process)
    return (jnp.exp(-0.5 * value / process.rho) - low) / width


@conditional.register(Karras)
def _(process: Karras, t: Time, s: Time) -> tuple[Time, Time]:
    low, width = _line(process)
    growth = 2 * process.rho * jnp.log1p((t - s) * width / (low + s * width))
    return jnp.ones_like(t), process.sigma(s) * jnp.sqrt(jnp.expm1(growth))


scales.register(Karras, with_alpha_one)
