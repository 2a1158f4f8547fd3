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

from typing import Any, ClassVar

import equinox as eqx

from diffjax._arrays import as_scalar, check
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper
from diffjax.samplers._exponential_sde import (
    Stage,
    beside,
    carry_on,
    end_of,
    exact,
    exact_to,
    non_negative,
    place_at,
    take_stages,
)


class SEEDS2(AbstractStepper):
    """SEEDS-2: weak order 2, two evaluations a step.

    Attributes:
      r: where the stage stands, as a fraction of the step in l; a scalar in (0, 1).
      eta: how much noise, a scalar; 0 the flow, 1 the reverse SDE.

    Raises:
      ValueError: r is not in (0, 1), or eta is negative.

    Source: Gonzalez et al. 2023 (SEEDS), section 3, with the weight above.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    history: ClassVar[int] = 0

    r: Scalar = eqx.field(converter=as_scalar, default=0.5)
    eta: Scalar = eqx.field(converter=non_negative, default=1.0)

    def __check_init__(self):
        check((self.r > 0) & (self.r < 1), f"r: must lie in (0, 1), got {self.r}")

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """A stage and the step, with fields [n]; see `Stage`."""
        family = exact(process, ts, self.eta)
        r = beside(self.r, family.at)
        first, end = place_at(family, process, ts, r), end_of(family, ts)
        keep_1, data_1, noise_1 = exact_to(family, first)
        keep, data, _ = exact_to(family, end)
        change = family.at.alpha[1:] * family.linear() / r
        stage = Stage(first.time, keep_1, (data_1,), (noise_1,))
        return stage, Stage(end.time, keep, (data - change, change), carry_on(family, first, stage.noise, end))

    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> None:
        return None

    def step(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: None,
    ) -> tuple[Sample, None]:
        return take_stages(keys, denoiser, xt, t, weights), None


class SEEDS3(AbstractStepper):
    """SEEDS-3: weak order 2 (3 at eta = 0), three evaluations a step, stages at a third and two thirds of it in l.

    Attributes:
      eta: how much noise, a scalar; 0 the flow, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: Gonzalez et al. 2023 (SEEDS), section 3.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 3
    history: ClassVar[int] = 0

    eta: Scalar = eqx.field(converter=non_negative, default=1.0)

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """Two stages and the step, with fields [n]; see `Stage`."""
        family, c1, c2 = exact(process, ts, self.eta), 1 / 3, 2 / 3
        places = place_at(family, process, ts, c1), place_at(family, process, ts, c2), end_of(family, ts)
        (keep_1, data_1, noise_1), (keep_2, data_2, _), (keep, data, _) = (exact_to(family, place) for place in places)
        seen = (noise_1,), carry_on(family, places[0], (noise_1,), places[1])
        change_2 = places[1].alpha * family.linear(c2) / c1
        change = family.at.alpha[1:] * family.linear() / c2
        return (
            Stage(places[0].time, keep_1, (data_1,), seen[0]),
            Stage(places[1].time, keep_2, (data_2 - change_2, change_2), seen[1]),
            Stage(ts[1:], keep, (data - change, 0 * change, change), carry_on(family, places[1], seen[1], places[2])),
        )

    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> None:
        return None

    def step(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: None,
    ) -> tuple[Sample, None]:
        return take_stages(keys, denoiser, xt, t, weights), None
