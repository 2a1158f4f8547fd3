"""The Ornstein-Uhlenbeck process on its own clock H t: dx = -H x dt + sqrt(2 H) dw, alpha = exp(-H t).

It is Langevin diffusion for a standard normal, and VP with the constant beta 2 H.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, root_from_zero, time_from_logsnr
from diffjax.process._scales import on_circle, scales


class OrnsteinUhlenbeck(AbstractGaussianProcess):
    """The Ornstein-Uhlenbeck process, run for the time `horizon`.

    Attributes:
      horizon: H, how long dx = -x dt + sqrt(2) dw runs; positive. 5 leaves alpha = exp(-5) = 0.007 of the data, as
        `VariancePreserving`'s defaults do.

    Raises:
      ValueError: the horizon is not positive and finite.

    Source: Uhlenbeck & Ornstein 1930; as a forward process, Chen et al. 2023 (Sampling is as easy as learning the
    score), section 2.
    """

    horizon: Scalar = eqx.field(converter=as_scalar, default=5.0)

    def __check_init__(self):
        check(
            (self.horizon > 0) & (self.horizon < jnp.inf),
            f"horizon: must be positive and finite, got {self.horizon}",
        )

    def alpha(self, t: Time) -> Time:
        return jnp.exp(-self.horizon * t)

    def sigma(self, t: Time) -> Time:
        return root_from_zero(-jnp.expm1(-2 * self.horizon * t), t)


@logsnr.register(OrnsteinUhlenbeck)
def _(process: OrnsteinUhlenbeck, t: Time) -> Time:
    b = 2 * process.horizon * t
    return -b - jnp.log(-jnp.expm1(-b))


@time_from_logsnr.register(OrnsteinUhlenbeck)
def _(process: OrnsteinUhlenbeck, value: Time) -> Time:
    return jax.nn.softplus(-jnp.asarray(value)) / (2 * process.horizon)


@conditional.register(OrnsteinUhlenbeck)
def _(process: OrnsteinUhlenbeck, t: Time, s: Time) -> tuple[Time, Time]:
    gap = process.horizon * (t - s)
    return jnp.exp(-gap), jnp.sqrt(-jnp.expm1(-2 * gap))


scales.register(OrnsteinUhlenbeck, on_circle)
