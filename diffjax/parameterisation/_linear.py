"""The prediction types that need no scale of the data: eps, x0, score, v, velocity.

eps       (0, 1)                 Ho et al. 2020
x0        (1, 0)
score     (0, -1/sigma)          Tweedie: score = -E[eps | xt]/sigma
v         (-sigma, alpha)        Salimans & Ho 2022, section 4
velocity  (alpha', sigma')       the probability flow's dx/dt; Lipman et al. 2023
"""

from typing import ClassVar

import jax.numpy as jnp

from diffjax._typing import Time
from diffjax.parameterisation._base import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess, schedule_derivatives


class EpsPrediction(AbstractParameterisation):
    """The network predicts the noise, y = eps.

    Train and sample it on `bounded(process, EpsPrediction())`, where |logsnr| <= 10: towards pure noise an error of eps
    is sigma/alpha times as large in x0 = (xt - sigma eps)/alpha, 22,026 times at logsnr -20, where `Cosine` and other
    processes end. The command line does so by itself. What remains at data of known range, such as pictures, is cut off
    by `static_threshold`.

    >>> import diffjax as dj
    >>> from diffjax.parameterisation import bounded
    >>> process = bounded(dj.Cosine(), dj.EpsPrediction())
    >>> [round(float(process.logsnr(t))) for t in (0.0, 1.0)]
    [10, -10]

    Source: Ho et al. 2020, eq. 14.
    """

    logsnr_range: ClassVar[tuple[float, float]] = (-10.0, 10.0)

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return jnp.zeros_like(t), jnp.ones_like(t)


class X0Prediction(AbstractParameterisation):
    """The network predicts the data, y = x0.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.parameterisation import target
    >>> x0, eps = jnp.full((1, 2), 2.0), jnp.ones((1, 2))
    >>> print(target(dj.X0Prediction(), dj.Rectified(), x0, eps, 0.5))
    [[2. 2.]]
    """

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return jnp.ones_like(t), jnp.zeros_like(t)


class ScorePrediction(AbstractParameterisation):
    """The network predicts the score, y = -eps/sigma.

    Train and sample it on `bounded(process, ScorePrediction())`, as eps; near the data the score itself is as large as
    1/sigma, 22,026 at logsnr 20.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.parameterisation import ScorePrediction, target
    >>> x0, eps = jnp.full((1, 2), 2.0), jnp.ones((1, 2))
    >>> print(target(ScorePrediction(), dj.Rectified(), x0, eps, 0.5))  # -eps/sigma
    [[-2. -2.]]

    Source: Song & Ermon 2019, eq. 5; Tweedie's formula.
    """

    logsnr_range: ClassVar[tuple[float, float]] = (-10.0, 10.0)

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return jnp.zeros_like(t), -1 / process.sigma(t)


class VPrediction(AbstractParameterisation):
    """The network predicts v = alpha eps - sigma x0. Source: Salimans & Ho 2022, section 4.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.parameterisation import target
    >>> x0, eps = jnp.full((1, 2), 2.0), jnp.ones((1, 2))
    >>> print(target(dj.VPrediction(), dj.Rectified(), x0, eps, 0.5))
    [[-0.5 -0.5]]
    """

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return -process.sigma(t), process.alpha(t)


class VelocityPrediction(AbstractParameterisation):
    """The network predicts the velocity, y = alpha' x0 + sigma' eps. Source: Lipman et al. 2023, eq. 8.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.parameterisation import target
    >>> x0, eps = jnp.full((1, 2), 2.0), jnp.ones((1, 2))
    >>> print(target(dj.VelocityPrediction(), dj.Rectified(), x0, eps, 0.5))
    [[-1. -1.]]
    """

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        return schedule_derivatives(process, t)
