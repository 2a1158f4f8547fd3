"""The rectified-flow process: the straight line xt = (1 - t) x0 + t eps.

Its SDE form is singular at t = 1 (f = -1/(1 - t)); its velocity, eps - x0, is regular everywhere.
Source: Liu et al. 2023 (Flow straight and fast), eq. 1; Lipman et al. 2023 (Flow matching), eq. 22.
"""

import jax
import jax.numpy as jnp

from diffjax._typing import Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, time_from_logsnr
from diffjax.process._scales import on_line, scales


class Rectified(AbstractGaussianProcess):
    """Rectified flow, alpha = 1 - t, sigma = t; the process of flow matching with a linear path.

    Source: Liu et al. 2023 (Flow straight and fast), eq. 1.
    """

    def alpha(self, t: Time) -> Time:
        return 1.0 - t

    def sigma(self, t: Time) -> Time:
        return 1.0 * t


@logsnr.register(Rectified)
def _(process: Rectified, t: Time) -> Time:
    return 2 * (jnp.log1p(-t) - jnp.log(t))


@time_from_logsnr.register(Rectified)
def _(process: Rectified, value: Time) -> Time:
    return jax.nn.sigmoid(-0.5 * jnp.asarray(value))


@conditional.register(Rectified)
def _(process: Rectified, t: Time, s: Time) -> tuple[Time, Time]:
    return (1 - t) / (1 - s), jnp.sqrt((t - s) * (t * (1 - s) + s * (1 - t))) / (1 - s)


scales.register(Rectified, on_line)
