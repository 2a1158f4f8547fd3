"""Paths of flow matching: the straight line from x0 to eps, alpha + sigma = 1.

Rectified    xt = (1 - t) x0 + t eps                        Liu et al. 2023, eq. 1; Lipman et al. 2023, eq. 22
Polynomial   alpha = (1 - t)^n,  sigma = 1 - (1 - t)^n      Lipman et al. 2024, with t reversed

Rectified flow's SDE form is singular at t = 1 (f = -1/(1 - t)); its velocity, eps - x0, is regular everywhere.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import check, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Scalar, Time
from diffjax.process._gaussian import AbstractGaussianProcess, on_line


class Rectified(AbstractGaussianProcess):
    """Rectified flow, alpha = 1 - t, sigma = t; the process of flow matching with a linear path.

    >>> import diffjax as dj
    >>> print(dj.Rectified().alpha(0.25), dj.Rectified().sigma(0.25))
    0.75 0.25

    Source: Liu et al. 2023 (Flow straight and fast), eq. 1.
    """

    def alpha(self, t: Time) -> Time:
        return 1.0 - t

    def sigma(self, t: Time) -> Time:
        return 1.0 * t

    def logsnr(self, t: Time) -> Time:
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time_from_logsnr(self, value: Time) -> Time:
        return jax.nn.sigmoid(-0.5 * jnp.asarray(value))

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        return (1 - t) / (1 - s), jnp.sqrt((t - s) * (t * (1 - s) + s * (1 - t))) / (1 - s)

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_line(alpha, sigma)


class Polynomial(AbstractGaussianProcess):
    """Flow matching's polynomial path.

    Attributes:
      power: n of alpha = (1 - t)^n; positive: 1 is `Rectified`, more spends more of the time on noise.

    Raises:
      ValueError: the power is not positive and finite.

    Source: Lipman et al. 2024 (Flow matching guide and code).
    """

    power: Scalar = eqx.field(converter=partial(as_scalar, "power"), default=2.0)

    @values_at_once
    def __check_init__(self):
        check((self.power > 0) & (self.power < jnp.inf), f"power: must be positive and finite, got {self.power}")

    def alpha(self, t: Time) -> Time:
        return (1.0 - t) ** self.power

    def sigma(self, t: Time) -> Time:
        return self._one_minus_power(t)

    def logsnr(self, t: Time) -> Time:
        log_alpha = self._log_alpha(t)
        return 2 * (log_alpha - jnp.log(-jnp.expm1(log_alpha)))

    def time_from_logsnr(self, value: Time) -> Time:
        t = -jnp.expm1(jax.nn.log_sigmoid(0.5 * jnp.asarray(value)) / self.power)
        # With a power below one it may round to 1, where logsnr is infinite.
        return jnp.where(t < 1, t, 1 - jnp.finfo(t.dtype).epsneg)

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        a = ((1 - t) / (1 - s)) ** self.power
        rest = self._one_minus_power((t - s) / (1 - s))  # 1 - a = sigma_t - a sigma_s
        return a, jnp.sqrt(rest * (self.sigma(t) + a * self.sigma(s)))

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_line(alpha, sigma)

    def _log_alpha(self, t: Time) -> Time:
        return self.power * jnp.log1p(-t)

    def _one_minus_power(self, part: Time) -> Time:
        """1 - (1 - part)^n; the logarithm, which keeps its digits, has no slope at part = 1."""
        end = jnp.asarray(part) == 1
        inner = -jnp.expm1(self.power * jnp.log1p(-jnp.where(end, 0.5, part)))
        return jnp.where(end, 1 - jnp.where(end, 1.0 - part, 1.0) ** self.power, inner)
