"""The variance-exploding process with geometric noise, alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t.

Source: Song et al. 2021, eq. 30: NCSN's limit. This is the form whose noise at t = 0 is sigma_min, not 0.
"""

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, time_from_logsnr


class VarianceExploding(AbstractGaussianProcess):
    """The VE process, dx = sigma sqrt(2 log(sigma_max/sigma_min)) dw.

    Attributes:
      sigma_min: the noise's standard deviation at t = 0, in units of the data; positive.
      sigma_max: at t = 1; more than sigma_min, and large beside the data's diameter.

    Raises:
      ValueError: the numbers are not in that order.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), eq. 30.
    """

    sigma_min: Scalar = eqx.field(converter=as_scalar, default=0.01)
    sigma_max: Scalar = eqx.field(converter=as_scalar, default=50.0)

    def __check_init__(self):
        check(self.sigma_min > 0, f"sigma_min: must be positive, got {self.sigma_min}")
        check(
            (self.sigma_max > self.sigma_min) & (self.sigma_max < jnp.inf),
            f"sigma_max: must be finite and more than sigma_min = {self.sigma_min}, got {self.sigma_max}",
        )

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * jnp.exp(_log_ratio(self) * t)


def _log_ratio(process: VarianceExploding) -> Time:
    return jnp.log(process.sigma_max / process.sigma_min)


@logsnr.register(VarianceExploding)
def _(process: VarianceExploding, t: Time) -> Time:
    return -2 * (jnp.log(process.sigma_min) + _log_ratio(process) * t)


@time_from_logsnr.register(VarianceExploding)
def _(process: VarianceExploding, value: Time) -> Time:
    return -(0.5 * value + jnp.log(process.sigma_min)) / _log_ratio(process)


@conditional.register(VarianceExploding)
def _(process: VarianceExploding, t: Time, s: Time) -> tuple[Time, Time]:
    return jnp.ones_like(t), process.sigma(s) * jnp.sqrt(jnp.expm1(2 * (t - s) * _log_ratio(process)))
