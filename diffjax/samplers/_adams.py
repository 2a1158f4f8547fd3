"""Adams-Bashforth methods in the noise: DEIS, LMS, iPNDM.

DEIS and LMS are settings of `ExponentialAdams(EpsPrediction(), order, clock=...)`: the probability flow is
d(x/alpha) = eps d(sigma/alpha), and eps is extrapolated by a polynomial in t (tAB-DEIS), or in sigma/alpha (rhoAB-DEIS,
which is the linear multistep method of k-diffusion). iPNDM takes the coefficients of equal steps on any grid:

    eps' = (55 e0 - 59 e1 + 37 e2 - 9 e3)/24,    xs = (alpha_s/alpha_t) xt + (sigma_s - sigma_t alpha_s/alpha_t) eps'

Sources: Zhang & Chen 2023 (DEIS), eqs. 14-15 and section 4; Liu et al. 2022 (PNDM), eq. 12.
"""

from typing import Any

import equinox as eqx
import numpy as np

from diffjax.parameterisation import EpsPrediction
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import namespace
from diffjax.samplers._exponential_adams import (
    ExponentialAdams,
    by_noise,
    by_time,
    ddim_at_the_ends,
    grid_of,
)
from diffjax.samplers._multistep import AbstractMultistep, Weights


def DEIS(order: int = 4) -> ExponentialAdams:
    """tAB-DEIS: eps extrapolated in the process's own time, for any shape [b, *d]; order 1 to 4 is usual.

    Source: Zhang & Chen 2023, eq. 15; their tAB3 is order 4.
    """
    return ExponentialAdams(EpsPrediction(), order, clock=by_time)


def LMS(order: int = 4) -> ExponentialAdams:
    """The linear multistep method: eps extrapolated in sigma/alpha, for any shape [b, *d]; rhoAB-DEIS is the same.

    Source: Zhang & Chen 2023, section 4; k-diffusion's LMS sampler.
    """
    return ExponentialAdams(EpsPrediction(), order, clock=by_noise)


_EQUAL_STEPS = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


class IPNDM(AbstractMultistep):
    """iPNDM: eps by the Adams-Bashforth coefficients of equal steps, one evaluation a step.

    Order 2 with two points or more, 4 only where the steps are equal in sigma/alpha; at few steps it is often the best
    of the peers all the same.

    Attributes:
      points: how many evaluations it looks at, 1 to 4.

    Raises:
      ValueError: points is not 1, 2, 3 or 4.

    Source: Liu et al. 2022 (PNDM), eq. 12, without its Runge-Kutta start (Zhang & Chen 2023, section 4).
    """

    points: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        if self.points not in (1, 2, 3, 4):
            raise ValueError(f"points: must be 1, 2, 3 or 4, got {self.points!r}")

    @property
    def order(self) -> int:
        return min(self.points, 2)

    @property
    def history(self) -> int:
        return self.points - 1

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Weights:
        grid = grid_of(process, EpsPrediction(), ts)
        xp = namespace(grid.l)
        finite = xp.asarray(xp.isfinite(grid.l[:-1]), int)
        row = xp.clip(xp.cumsum(finite), 1, self.points) - 1
        step = xp.sum(grid.kernel, axis=1)
        weights = step[:, None] * xp.asarray(_EQUAL_STEPS, step.dtype)[row]
        return ddim_at_the_ends(grid, weights[:, 0], weights[:, 1 : self.points])
