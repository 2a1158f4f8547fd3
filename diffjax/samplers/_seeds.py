"""SEEDS: exponential stochastic Runge-Kutta methods in the data prediction, of weak order 2 for every eta.

With c_j the places of the stages in the step (in l), H = (1 + eta^2) h, E_j the exact step to l_j where x0_hat stays
D_0 = x0_hat(xt), and psi(c) = c - (1 - e^-cH)/H the weight of an x0_hat that is linear in l,

    SEEDS-2    x1 = E_1 + n_1,   xs = E + (alpha_s psi(1)/c1) (D_1 - D_0) + n
    SEEDS-3    x1 = E_1 + n_1,   x2 = E_2 + (alpha_2 psi(c2)/c1) (D_1 - D_0) + n_2
               xs = E + (alpha_s psi(1)/c2) (D_2 - D_0) + n

The noises are one path's: n_(j+1) = (what is left of n_j) + fresh noise, so that E[n_j n] is what the SDE's is. With
noise that does not depend on the state, that and sum b_j = 1, sum b_j c_j = 1/2 make weak order 2. SEEDS-3 is of order
3 at eta = 0. An infinite step (from alpha = 0, or to sigma = 0) is the exact one for a constant x0_hat.

Source: Gonzalez et al. 2023 (SEEDS: exponential SDE solvers), section 3. Its SEEDS-2 has (1 - e^-H)/2 for psi(1), equal
to leading order, and its noise is ours at c1 = 1/2.
"""

from functools import partial
from typing import ClassVar

import equinox as eqx

from diffjax._arrays import check, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Denoiser, Sample, Scalar
from diffjax.samplers._exponential_sde import (
    Stage,
    Stages,
    carry_on,
    end_of,
    eta_family,
    exact_to,
    non_negative,
    stop_at,
    take_stages,
)
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class SEEDS2(AbstractStepper):
    """SEEDS-2: weak order 2, two evaluations a step.

    Attributes:
      r: where the intermediate evaluation stands, as a fraction of the step in logsnr; a scalar in (0, 1).
      eta: amount of noise, a scalar; 0 is the probability-flow ODE, 1 the reverse SDE.

    Raises:
      ValueError: r is not in (0, 1), or eta is negative.

    Source: Gonzalez et al. 2023 (SEEDS), section 3, with the weight above.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    r: Scalar = eqx.field(converter=partial(as_scalar, "r"), default=0.5)
    eta: Scalar = eqx.field(converter=partial(non_negative, "eta"), default=1.0)

    @values_at_once
    def __check_init__(self):
        check((self.r > 0) & (self.r < 1), f"r: must lie in (0, 1), got {self.r}")

    def prepare(self, grid: ScheduleOnGrid) -> Stages:
        family = eta_family(grid, self.eta)
        middle, end = stop_at(family, self.r), end_of(family)
        first, whole = exact_to(family, middle), exact_to(family, end)
        change = grid.alpha[1:] * family.linear() / self.r
        stage = Stage(middle.t, first.c_x, (first.c_x0,), (first.c_z,))
        last = Stage(end.t, whole.c_x, (whole.c_x0 - change, change), carry_on(family, middle, stage.c_z, end))
        return Stages((stage, last))

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return take_stages(denoiser, x, at), None


class SEEDS3(AbstractStepper):
    """SEEDS-3: weak order 2 (3 at eta = 0), three evaluations a step, stages at a third and two thirds of it in logsnr.

    Attributes:
      eta: amount of noise, a scalar; 0 is the probability-flow ODE, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: Gonzalez et al. 2023 (SEEDS), section 3.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 3
    stochastic: ClassVar[bool] = True

    eta: Scalar = eqx.field(converter=partial(non_negative, "eta"), default=1.0)

    def prepare(self, grid: ScheduleOnGrid) -> Stages:
        family, c1, c2 = eta_family(grid, self.eta), 1 / 3, 2 / 3
        one, two, end = stop_at(family, c1), stop_at(family, c2), end_of(family)
        first, second, whole = (exact_to(family, stop) for stop in (one, two, end))
        c_z1 = (first.c_z,)
        c_z2 = carry_on(family, one, c_z1, two)
        change_2 = two.alpha * family.linear(c2) / c1
        change = grid.alpha[1:] * family.linear() / c2
        return Stages(
            (
                Stage(one.t, first.c_x, (first.c_x0,), c_z1),
                Stage(two.t, second.c_x, (second.c_x0 - change_2, change_2), c_z2),
                Stage(end.t, whole.c_x, (whole.c_x0 - change, 0 * change, change), carry_on(family, two, c_z2, end)),
            )
        )

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return take_stages(denoiser, x, at), None
