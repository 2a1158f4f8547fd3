"""Variance-exploding processes with geometric noise, alpha = 1, L = log(sigma_max/sigma_min).

from sigma_min    sigma = sigma_min exp(L t)
from zero         sigma = sigma_min sqrt(expm1(2 L t))      the same SDE, begun at the data themselves

Source: Song et al. 2021, eq. 30 (NCSN's limit), and eq. 29 for its kernel, which begins at zero.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, root_from_zero, time_from_logsnr
from diffjax.process._scales import scales, with_alpha_one


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
        _check_sigmas(self.sigma_min, self.sigma_max)

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * jnp.exp(_log_ratio(self) * t)


class VarianceExplodingFromZero(AbstractGaussianProcess):
    """The same SDE begun without noise: sigma = sigma_min sqrt(expm1(2 L t)), which is 0 at t = 0.

    At t = 1 its noise is sqrt(sigma_max^2 - sigma_min^2).

    Attributes:
      sigma_min: what `VarianceExploding` begins with, in units of the data; positive.
      sigma_max: what it ends with; more than sigma_min, and large beside the data's diameter.

    Raises:
      ValueError: the numbers are not in that order.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), eq. 29.
    """

    sigma_min: Scalar = eqx.field(converter=as_scalar, default=0.01)
    sigma_max: Scalar = eqx.field(converter=as_scalar, default=50.0)

    def __check_init__(self):
        _check_sigmas(self.sigma_min, self.sigma_max)

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * root_from_zero(jnp.expm1(2 * _log_ratio(self) * t), t)


def _check_sigmas(sigma_min: Scalar, sigma_max: Scalar) -> None:
    check(sigma_min > 0, f"sigma_min: must be positive, got {sigma_min}")
    check(
        (sigma_max > sigma_min) & (sigma_max < jnp.inf),
        f"sigma_max: must be finite and more than sigma_min = {sigma_min}, got {sigma_max}",
    )


def _log_ratio(process: VarianceExploding | VarianceExplodingFromZero) -> Time:
    return jnp.log(process.sigma_max / process.sigma_min)


@logsnr.register(VarianceExploding)
def _(process: VarianceExploding, t: Time) -> Time:
    return -2 * (jnp.log(process.sigma_min) + _log_ratio(process) * t)


@logsnr.register(VarianceExplodingFromZero)
def _(process: VarianceExplodingFromZero, t: Time) -> Time:
    return -2 * jnp.log(process.sigma_min) - jnp.log(jnp.expm1(2 * _log_ratio(process) * t))


@time_from_logsnr.register(VarianceExploding)
def _(process: VarianceExploding, value: Time) -> Time:
    return -(0.5 * value + jnp.log(process.sigma_min)) / _log_ratio(process)


@time_from_logsnr.register(VarianceExplodingFromZero)
def _(process: VarianceExplodingFromZero, value: Time) -> Time:
    return jax.nn.softplus(-value - 2 * jnp.log(process.sigma_min)) / (2 * _log_ratio(process))


@conditional.register(VarianceExploding)
def _(process: VarianceExploding, t: Time, s: Time) -> tuple[Time, Time]:
    return _step(process, t, s)


@conditional.register(VarianceExplodingFromZero)
def _(process: VarianceExplodingFromZero, t: Time, s: Time) -> tuple[Time, Time]:
    return _step(process, t, s)


def _step(process: VarianceExploding | VarianceExplodingFromZero, t: Time, s: Time) -> tuple[Time, Time]:
    """sigma_t^2 - sigma_s^2 = sigma_min^2 exp(2 L s) expm1(2 L (t - s)), of both forms."""
    rate = _log_ratio(process)
    start = process.sigma_min * jnp.exp(rate * s)
    return jnp.ones_like(t), start * jnp.sqrt(jnp.expm1(2 * (t - s) * rate))


scales.register(VarianceExploding, with_alpha_one)
scales.register(VarianceExplodingFromZero, with_alpha_one)
