"""Variance-exploding processes, alpha = 1: the data stay as they are, and noise is added.

    L = log(sigma_max/sigma_min),   a = sigma_min^(1/rho),   b = sigma_max^(1/rho)

VarianceExploding          sigma = sigma_min exp(L t)                       Song et al. 2021, eq. 30: NCSN's limit
VarianceExplodingFromZero  sigma = sigma_min sqrt(expm1(2 L t))             the same SDE begun at the data: eq. 29
Karras                     sigma = (a + t (b - a))^rho                      Karras et al. 2022, eq. 5

EDM's sampling grid is uniform in its t. Its last step, to sigma = 0, is the terminal denoise, off this clock.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import check, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Scalar, Time
from diffjax.process._gaussian import AbstractGaussianProcess, root_from_zero, with_alpha_one


class VarianceExploding(AbstractGaussianProcess):
    """The VE process, dx = sigma sqrt(2 log(sigma_max/sigma_min)) dw.

    >>> import diffjax as dj
    >>> process = dj.VarianceExploding()
    >>> print(process.alpha(1.0), process.sigma(1.0).round(2))
    1.0 50.0

    Attributes:
      sigma_min: the noise's standard deviation at t = 0, in units of the data; positive.
      sigma_max: the noise's standard deviation at t = 1; more than sigma_min, and large against the data's diameter.

    Raises:
      ValueError: the numbers are not in that order.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), eq. 30.
    """

    sigma_min: Scalar = eqx.field(converter=partial(as_scalar, "sigma_min"), default=0.01)
    sigma_max: Scalar = eqx.field(converter=partial(as_scalar, "sigma_max"), default=50.0)

    @values_at_once
    def __check_init__(self):
        _check_sigmas(self.sigma_min, self.sigma_max)

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * jnp.exp(_log_ratio(self) * t)

    def logsnr(self, t: Time) -> Time:
        return -2 * (jnp.log(self.sigma_min) + _log_ratio(self) * t)

    def time_from_logsnr(self, value: Time) -> Time:
        return -(0.5 * value + jnp.log(self.sigma_min)) / _log_ratio(self)

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        return _step(self, t, s)

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return with_alpha_one(alpha, sigma)


class VarianceExplodingFromZero(AbstractGaussianProcess):
    """The same SDE begun without noise: sigma = sigma_min sqrt(expm1(2 L t)), which is 0 at t = 0.

    At t = 1 its noise is sqrt(sigma_max^2 - sigma_min^2).

    Attributes:
      sigma_min: where `VarianceExploding` begins, in units of the data; positive.
      sigma_max: sets the noise's standard deviation at t = 1, sqrt(sigma_max^2 - sigma_min^2); more than sigma_min, and
        large against the data's diameter.

    Raises:
      ValueError: the numbers are not in that order.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), eq. 29.
    """

    sigma_min: Scalar = eqx.field(converter=partial(as_scalar, "sigma_min"), default=0.01)
    sigma_max: Scalar = eqx.field(converter=partial(as_scalar, "sigma_max"), default=50.0)

    @values_at_once
    def __check_init__(self):
        _check_sigmas(self.sigma_min, self.sigma_max)

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_min * root_from_zero(jnp.expm1(2 * _log_ratio(self) * t), t)

    def logsnr(self, t: Time) -> Time:
        return -2 * jnp.log(self.sigma_min) - jnp.log(jnp.expm1(2 * _log_ratio(self) * t))

    def time_from_logsnr(self, value: Time) -> Time:
        return jax.nn.softplus(-value - 2 * jnp.log(self.sigma_min)) / (2 * _log_ratio(self))

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        return _step(self, t, s)

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return with_alpha_one(alpha, sigma)


def _check_sigmas(sigma_min: Scalar, sigma_max: Scalar) -> None:
    check(sigma_min > 0, f"sigma_min: must be positive, got {sigma_min}")
    check(
        (sigma_max > sigma_min) & (sigma_max < jnp.inf),
        f"sigma_max: must be finite and more than sigma_min = {sigma_min}, got {sigma_max}",
    )


def _log_ratio(process: VarianceExploding | VarianceExplodingFromZero) -> Time:
    return jnp.log(process.sigma_max / process.sigma_min)


def _step(process: VarianceExploding | VarianceExplodingFromZero, t: Time, s: Time) -> tuple[Time, Time]:
    """sigma_t^2 - sigma_s^2 = sigma_min^2 exp(2 L s) expm1(2 L (t - s)), of both forms."""
    rate = _log_ratio(process)
    start = process.sigma_min * jnp.exp(rate * s)
    return jnp.ones_like(t), start * jnp.sqrt(jnp.expm1(2 * (t - s) * rate))


class EDM(AbstractGaussianProcess):
    """EDM's process and clock.

    >>> import diffjax as dj
    >>> [round(float(dj.EDM().sigma(t)), 3) for t in (1.0, 0.5, 0.0)]
    [80.0, 2.515, 0.002]

    Attributes:
      sigma_min: the noise's standard deviation at t = 0, in units of the data; positive.
      sigma_max: the noise's standard deviation at t = 1; more than sigma_min.
      rho: how much of the clock goes to small noise; positive.

    Raises:
      ValueError: a number is out of its range.

    Source: Karras et al. 2022, eq. 5.
    """

    sigma_min: Scalar = eqx.field(converter=partial(as_scalar, "sigma_min"), default=0.002)
    sigma_max: Scalar = eqx.field(converter=partial(as_scalar, "sigma_max"), default=80.0)
    rho: Scalar = eqx.field(converter=partial(as_scalar, "rho"), default=7.0)

    @values_at_once
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
        low, width = self._line()
        return (low + t * width) ** self.rho

    def logsnr(self, t: Time) -> Time:
        low, width = self._line()
        return -2 * self.rho * jnp.log(low + t * width)

    def time_from_logsnr(self, value: Time) -> Time:
        low, width = self._line()
        return (jnp.exp(-0.5 * value / self.rho) - low) / width

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        low, width = self._line()
        growth = 2 * self.rho * jnp.log1p((t - s) * width / (low + s * width))
        return jnp.ones_like(t), self.sigma(s) * jnp.sqrt(jnp.expm1(growth))

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return with_alpha_one(alpha, sigma)

    def _line(self) -> tuple[Time, Time]:
        """sigma^(1/rho) at t = 0 and its constant rate."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low, high - low
