"""The prediction types that need no scale of the data: eps, x0, score, v, velocity.

eps       (0, 1)                 Ho et al. 2020
x0        (1, 0)
score     (0, -1/sigma)          Tweedie: score = -E[eps | xt]/sigma
v         (-sigma, alpha)        Salimans & Ho 2022, section 4
velocity  (alpha', sigma')       the probability flow's dx/dt; Lipman et al. 2023
"""

import jax.numpy as jnp

from diffjax._typing import Time
from diffjax.parameterisation._base import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess, rates


class EpsPrediction(AbstractParameterisation):
    """The network predicts the noise, y = eps. Source: Ho et al. 2020, eq. 14."""

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return jnp.zeros_like(t), jnp.ones_like(t)


class X0Prediction(AbstractParameterisation):
    """The network predicts the data, y = x0."""

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return jnp.ones_like(t), jnp.zeros_like(t)


class ScorePrediction(AbstractParameterisation):
    """The network predicts the score, y = -eps/sigma. Source: Song & Ermon 2019, eq. 5; Tweedie's formula."""

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return jnp.zeros_like(t), -1 / process.sigma(t)


class VPrediction(AbstractParameterisation):
    """The network predicts v = alpha eps - sigma x0. Source: Salimans & Ho 2022, section 4."""

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return -process.sigma(t), process.alpha(t)


class VelocityPrediction(AbstractParameterisation):
    """The network predicts the velocity, y = alpha' x0 + sigma' eps. Source: Lipman et al. 2023, eq. 8."""

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return rates(process, t)
