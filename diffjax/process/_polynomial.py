"""Polynomial paths of flow matching: alpha = (1 - t)^n, sigma = 1 - (1 - t)^n.

The line from x0 to eps, as `Rectified`, on another clock: the data's weight falls as a power.
Source: Lipman et al. 2024 (Flow matching guide and code), its polynomial convex scheduler with t reversed.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, time_from_logsnr
from diffjax.process._scales import on_line, scales


class Polynomial(AbstractGaussianProcess):
    """Flow matching's polynomial path.

    Attributes:
      power: n; positive. 1 is `Rectified`; more spends more of the clock on noise.

    Raises:
      ValueError: the power is not positive and finite.

    Source: Lipman et al. 2024 (Flow matching guide and code).
    """

    power: Scalar = eqx.field(converter=as_scalar, default=2.0)

    def __check_init__(self):
        check((self.power > 0) & (self.power < jnp.inf), f"power: must be positive and finite, got {self.power}")

    def alpha(self, t: Time) -> Time:
        return (1.0 - t) ** self.power

    def sigma(self, t: Time) -> Time:
        return _lost(self, t)


def _log_alpha(process: Polynomial, t: Time) -> Time:
    return process.power * jnp.log1p(-t)


def _lost(process: Polynomial, part: Time) -> Time:
    """1 - (1 - part)^n; the logarithm, which keeps its digits, has no slope at part = 1."""
    whole = jnp.asarray(part) == 1
    inner = -jnp.expm1(process.power * jnp.log1p(-jnp.where(whole, 0.5, part)))
    return jnp.where(whole, 1 - jnp.where(whole, 1.0 - part, 1.0) ** process.power, inner)


@logsnr.register(Polynomial)
def _(process: Polynomial, t: Time) -> Time:
    log_alpha = _log_alpha(process, t)
    return 2 * (log_alpha - jnp.log(-jnp.expm1(log_alpha)))


@time_from_logsnr.register(Polynomial)
def _(process: Polynomial, value: Time) -> Time:
    t = -jnp.expm1(jax.nn.log_sigmoid(0.5 * jnp.asarray(value)) / process.power)
    # A power below one can put it so near to 1 that floats do not tell; logsnr is infinite there.
    return jnp.where(t < 1, t, 1 - jnp.finfo(t.dtype).epsneg)


@conditional.register(Polynomial)
def _(process: Polynomial, t: Time, s: Time) -> tuple[Time, Time]:
    a = ((1 - t) / (1 - s)) ** process.power
    lost = _lost(process, (t - s) / (1 - s))  # 1 - a = sigma_t - a sigma_s
    return a, jnp.sqrt(lost * (process.sigma(t) + a * process.sigma(s)))


scales.register(Polynomial, on_line)
