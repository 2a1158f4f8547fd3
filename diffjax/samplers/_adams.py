"""Adams-Bashforth methods in the noise: DEIS, LMS, iPNDM.

DEIS and LMS are exponential Adams methods (`ExponentialAdams(EpsPrediction(), order, clock=...)`): the flow is
d(x/alpha) = eps d(sigma/alpha), and eps is extrapolated by a polynomial in t (tAB-DEIS), or in sigma/alpha (rhoAB-DEIS,
which is the linear multistep method of k-diffusion). iPNDM takes the coefficients of equal steps on any grid:

    eps' = (55 e0 - 59 e1 + 37 e2 - 9 e3)/24,    xs = (alpha_s/alpha_t) xt + (sigma_s - sigma_t alpha_s/alpha_t) eps'

Sources: Zhang & Chen 2023 (DEIS), eqs. 14-15 and section 4; Liu et al. 2022 (PNDM), eq. 12.
"""

import equinox as eqx
import numpy as np

from diffjax._numbers import checked_numbers
from diffjax.parameterisation._linear import EpsPrediction
from diffjax.samplers._exponential_adams import (
    adams_weights,
    by_noise,
    by_time,
    check_order,
    ddim_at_the_ends,
    linear_part,
)
from diffjax.samplers._multistep import AbstractMultistep, MultistepWeights
from diffjax.samplers._stepper import ScheduleOnGrid


@checked_numbers
class DEIS(AbstractMultistep):
    """tAB-DEIS: eps extrapolated in the process's own time, one evaluation a step.

    Attributes:
      order: number of evaluations extrapolated from, which is the order of convergence, 1 to 8; 1 to 4 is usual.

    Raises:
      ValueError: order is not an integer from 1 to 8.

    Source: Zhang & Chen 2023, eq. 15; their tAB3 is order 4.
    """

    order: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        check_order(self.order)

    @property
    def history(self) -> int:
        return self.order - 1

    def prepare(self, grid: ScheduleOnGrid) -> MultistepWeights:
        return adams_weights(grid, EpsPrediction(), self.order, clock=by_time)


@checked_numbers
class LMS(AbstractMultistep):
    """The linear multistep method: eps extrapolated in sigma/alpha, one evaluation a step; rhoAB-DEIS is the same.

    Attributes:
      order: number of evaluations extrapolated from, which is the order of convergence, 1 to 8; 1 to 4 is usual.

    Raises:
      ValueError: order is not an integer from 1 to 8.

    Source: Zhang & Chen 2023, section 4; k-diffusion's LMS sampler.
    """

    order: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        check_order(self.order)

    @property
    def history(self) -> int:
        return self.order - 1

    def prepare(self, grid: ScheduleOnGrid) -> MultistepWeights:
        return adams_weights(grid, EpsPrediction(), self.order, clock=by_noise)


EQUAL_STEPS = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


@checked_numbers
class IPNDM(AbstractMultistep):
    """iPNDM: eps by the Adams-Bashforth coefficients of equal steps, one evaluation a step.

    Order 2 with two points or more, 4 only where the steps are equal in sigma/alpha; at few steps it is often the best
    of the peers all the same.

    Attributes:
      points: number of evaluations extrapolated from, 1 to 4.

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

    def prepare(self, grid: ScheduleOnGrid) -> MultistepWeights:
        xp, line = grid.xp, linear_part(grid, EpsPrediction())
        finite = xp.asarray(xp.isfinite(grid.half_logsnr[:-1]), int)
        row = xp.clip(xp.cumsum(finite), 1, self.points) - 1
        step = xp.sum(line.kernel, axis=1)
        weights = step[:, None] * xp.asarray(EQUAL_STEPS, step.dtype)[row]
        return ddim_at_the_ends(line, weights[:, 0], weights[:, 1 : self.points])
