"""The sub-variance-preserving process: VP's mean, and less noise on the way, alpha = exp(-B/2), sigma = -expm1(-B).

    dx = -beta(t) x/2 dt + sqrt(beta(t) (1 - exp(-2 B(t)))) dw,    B(t) = beta_min t + (beta_max - beta_min) t^2/2
    sigma/alpha = 2 sinh(B/2),   so that   B = 2 asinh(exp(-lambda/2)/2)

Source: Song et al. 2021 (Score-based generative modeling through SDEs), eqs. 28 and 29.
"""

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_scalar
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, time_from_logsnr
from diffjax.process._scales import scales
from diffjax.process._vp import check_betas, integrated_beta, time_from_integrated_beta


class SubVP(AbstractGaussianProcess):
    """The sub-VP process with linear beta; alpha^2 + sigma^2 is less than 1 between the ends.

    Attributes:
      beta_min: beta at t = 0, per unit of time; positive.
      beta_max: beta at t = 1; at least beta_min.

    Raises:
      ValueError: the numbers are not in that order.

    Source: Song et al. 2021, eq. 28.
    """

    beta_min: Scalar = eqx.field(converter=as_scalar, default=0.1)
    beta_max: Scalar = eqx.field(converter=as_scalar, default=20.0)

    def __check_init__(self):
        check_betas(self.beta_min, self.beta_max)

    def alpha(self, t: Time) -> Time:
        return jnp.exp(-0.5 * integrated_beta(self, t))

    def sigma(self, t: Time) -> Time:
        return -jnp.expm1(-integrated_beta(self, t))


@logsnr.register(SubVP)
def _(process: SubVP, t: Time) -> Time:
    b = integrated_beta(process, t)
    return -b - 2 * jnp.log(-jnp.expm1(-b))


@time_from_logsnr.register(SubVP)
def _(process: SubVP, value: Time) -> Time:
    return time_from_integrated_beta(process, 2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * value)))


@conditional.register(SubVP)
def _(process: SubVP, t: Time, s: Time) -> tuple[Time, Time]:
    gap = integrated_beta(process, t, s)
    both = integrated_beta(process, t) + integrated_beta(process, s)
    return jnp.exp(-0.5 * gap), jnp.sqrt(jnp.expm1(-gap) * jnp.expm1(-both))


@scales.register(SubVP)
def _(process: SubVP, data: Time, noise: Time) -> tuple[Time, Time]:
    # With u = noise/(2 data), alpha = exp(-asinh u) = 1/(u + sqrt(1 + u^2)) and sigma = 2 u alpha.
    whole = 0.5 * noise + jnp.sqrt(data**2 + 0.25 * noise**2)
    return data / whole, noise / whole
