"""SDE-DPM-Solver++: single step, and the multistep 2M and 3M, for the whole eta family.

With H = (1 + eta^2) h, h = l_s - l_t, E(D) the exact step where x0_hat stays D (`exact`), and D', D'' the denoiser one
and two steps before, h', h'' those steps:

    2M    xs = E(D) + (1/2) alpha_s (1 - e^-H) (h/h') (D - D')
    3M    xs = E(D) + alpha_s [ phi2 F1 - phi3 F2 ],    phi2 = 1 - (1 - e^-H)/H,  phi3 = phi2/H - 1/2
          F2 = (d - d')/(h' + h''),  d = (D - D')/h',  d' = (D' - D'')/h'',  F1 = d + h' F2     (times h^2 and h)
    SDE   xs = E(D + (Dm - D)/(2r)),   Dm at the stage xm of l_t + r h, itself an exact step from t

The first step of 2M and 3M is E(D), and the second of 3M has phi2 d in its bracket. 3M is as published: a parabola
through the three would have 2 phi3 F2; that, and 2M with a line in l, are `ExponentialAdams` in the data prediction
with an eta. The step to sigma = 0 gives x0_hat itself. k-diffusion's eta for 2M and 3M is the square of this one.

Source: Lu et al. 2022b (DPM-Solver++), section 5, for 2M; k-diffusion's `sample_dpmpp_3m_sde`, `sample_dpmpp_sde`.
"""

from functools import partial
from typing import ClassVar

import equinox as eqx

from diffjax._arrays import check, normal_like, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Denoiser, Sample, Scalar
from diffjax.parameterisation._denoiser import predict
from diffjax.samplers._dpmpp import DPMpp2MWeights, DPMpp3MWeights
from diffjax.samplers._exponential_sde import (
    Stage,
    Stages,
    end_of,
    eta_family,
    exact_to,
    non_negative,
    stop_at,
    take_stages,
)
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step, memory_like


class SDEDPMpp2M(AbstractStepper):
    """SDE-DPM-Solver++ (2M), midpoint form: weak order 2, one evaluation a step. At eta = 0 it is `DPMpp2M`.

    Attributes:
      eta: amount of noise, a scalar; 0 is the probability-flow ODE, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: Lu et al. 2022b (DPM-Solver++), section 5; k-diffusion's `sample_dpmpp_2m_sde`.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    eta: Scalar = eqx.field(converter=partial(non_negative, "eta"), default=1.0)

    def prepare(self, grid: ScheduleOnGrid) -> DPMpp2MWeights:
        family = eta_family(grid, self.eta)
        c_x, c_x0, c_z = exact_to(family, end_of(family))
        _, inverse = _before(family, 1)
        return DPMpp2MWeights(c_x, c_x0, 0.5 * c_x0 * family.h * inverse, c_z)

    def init(self, x: Sample) -> Sample:
        """D', [b, *d]."""
        return memory_like(x)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: Sample) -> tuple[Sample, Sample]:
        w, D0, D1 = at.weights, predict(denoiser, x, at.t).astype(state.dtype), state
        return w.c_x * x + w.c_x0 * D0 + w.c_change * (D0 - D1) + w.c_z * normal_like(at.keys, x), D0


class SDEDPMpp3M(AbstractStepper):
    """SDE-DPM-Solver++ (3M), as published: weak order 2, one evaluation a step.

    Attributes:
      eta: amount of noise, a scalar; 0 is the probability-flow ODE, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: k-diffusion's `sample_dpmpp_3m_sde`.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    eta: Scalar = eqx.field(converter=partial(non_negative, "eta"), default=1.0)

    def prepare(self, grid: ScheduleOnGrid) -> DPMpp3MWeights:
        family = eta_family(grid, self.eta)
        (before, inverse), (earlier, inverse_earlier) = _before(family, 1), _before(family, 2)
        phi2 = family.linear()
        phi3 = phi2 / ((1 + family.eta**2) * family.h) - 0.5
        bend = (phi2 * family.h * before - phi3 * family.h**2) / (before + earlier)
        one = (phi2 * family.h + grid.xp.where(inverse_earlier > 0, bend, 0.0)) * inverse
        c_x, c_x0, c_z = exact_to(family, end_of(family))
        return DPMpp3MWeights(c_x, c_x0, grid.alpha[1:] * one, -grid.alpha[1:] * bend * inverse_earlier, c_z)

    def init(self, x: Sample) -> tuple[Sample, Sample]:
        """(D', D''), each [b, *d]."""
        return memory_like(x), memory_like(x)

    def step(
        self, denoiser: Denoiser, x: Sample, at: Step, state: tuple[Sample, Sample]
    ) -> tuple[Sample, tuple[Sample, Sample]]:
        w, (D1, D2) = at.weights, state
        D0 = predict(denoiser, x, at.t).astype(D1.dtype)
        xs = w.c_x * x + w.c_x0 * D0 + w.c_change * (D0 - D1) + w.c_earlier * (D1 - D2)
        return xs + w.c_z * normal_like(at.keys, x), (D0, D1)


class DPMppSDE(AbstractStepper):
    """SDE-DPM-Solver++, single step: weak order 2, two evaluations a step.

    A step from alpha = 0 or to sigma = 0 is exact for a constant x0_hat. The stage's noise and the step's are those of
    a Brownian path in sigma/alpha, as published; `SEEDS2` takes the SDE's own path, and a weight that is exact for
    x0_hat linear in l.

    Attributes:
      r: where the intermediate evaluation stands, as a fraction of the step in logsnr; a scalar in (0, 1).
      eta: amount of noise, a scalar; 0 is the probability-flow ODE, 1 the reverse SDE.

    Raises:
      ValueError: r is not in (0, 1), or eta is negative.

    Source: k-diffusion's `sample_dpmpp_sde`, at eta = 1.
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
        xp, r, family = grid.xp, self.r, eta_family(grid, self.eta)
        middle = stop_at(family, r)
        first, whole = exact_to(family, middle), exact_to(family, end_of(family))
        second = whole.c_x0 / (2 * r)
        # (rho_t - rho_m)/(rho_t - rho_s), the share of the path that the stage has seen.
        h = xp.where(family.inside, family.h, 1.0)
        share = xp.expm1(-r * h) / xp.expm1(-h)
        rest = xp.exp(-r * h) * xp.expm1(-(1 - r) * h) / xp.expm1(-h)  # 1 - share, of any size
        shares = xp.where(family.inside, xp.sqrt(share), 0.0), xp.where(family.inside, xp.sqrt(rest), 1.0)
        c_z = tuple(whole.c_z * share for share in shares)
        stage = Stage(middle.t, first.c_x, (first.c_x0,), (first.c_z,))
        return Stages((stage, Stage(grid.ts[1:], whole.c_x, (whole.c_x0 - second, second), c_z)))

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return take_stages(denoiser, x, at), None


def _before(family, k):
    """The step h that was k before and its inverse, each [n]; where there is none, or a step is infinite, (1, 0)."""
    xp, n = family.grid.xp, family.inside.shape[0]
    there = xp.concatenate([xp.zeros(k, bool), family.inside])[:n] & family.inside
    h = xp.concatenate([xp.ones_like(family.h, shape=k), family.h])[:n]
    h = xp.where(there, h, 1.0)
    return h, xp.where(there, 1 / h, 0.0)
