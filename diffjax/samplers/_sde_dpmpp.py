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

from typing import Any, ClassVar

import equinox as eqx

from diffjax._arrays import as_scalar, check
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper
from diffjax.samplers._exponential_sde import (
    Stage,
    beside,
    end_of,
    exact,
    exact_to,
    non_negative,
    place_at,
    take_stages,
)
from diffjax.samplers._multistep import AbstractMultistep, Weights


class SDEDPMpp2M(AbstractMultistep):
    """SDE-DPM-Solver++ (2M), midpoint form: weak order 2, one evaluation a step. At eta = 0 it is `DPMpp2M`.

    Attributes:
      eta: how much noise, a scalar; 0 the flow, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: Lu et al. 2022b (DPM-Solver++), section 5; k-diffusion's `sample_dpmpp_2m_sde`.
    """

    order: ClassVar[int] = 2
    history: ClassVar[int] = 1

    eta: Scalar = eqx.field(converter=non_negative, default=1.0)

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Weights:
        family = exact(process, ts, self.eta)
        keep, data, noise = exact_to(family, end_of(family, ts))
        _, inverse = _before(family, 1)
        change = 0.5 * data * family.h * inverse
        return _weights(family, keep, (data + change, -change), noise)


class SDEDPMpp3M(AbstractMultistep):
    """SDE-DPM-Solver++ (3M), as published: weak order 2, one evaluation a step.

    Attributes:
      eta: how much noise, a scalar; 0 the flow, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: k-diffusion's `sample_dpmpp_3m_sde`.
    """

    order: ClassVar[int] = 2
    history: ClassVar[int] = 2

    eta: Scalar = eqx.field(converter=non_negative, default=1.0)

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Weights:
        family = exact(process, ts, self.eta)
        (before, inverse), (earlier, inverse_earlier) = _before(family, 1), _before(family, 2)
        phi2 = family.linear()
        phi3 = phi2 / ((1 + family.eta**2) * family.h) - 0.5
        bend = (phi2 * family.h * before - phi3 * family.h**2) / (before + earlier)
        one = (phi2 * family.h + family.xp.where(inverse_earlier > 0, bend, 0.0)) * inverse
        two = bend * inverse_earlier
        keep, data, noise = exact_to(family, end_of(family, ts))
        one, two = family.at.alpha[1:] * one, family.at.alpha[1:] * two
        return _weights(family, keep, (data + one, -one - two, two), noise)


class DPMppSDE(AbstractStepper):
    """SDE-DPM-Solver++, single step: weak order 2, two evaluations a step.

    A step from alpha = 0 or to sigma = 0 is exact for a constant x0_hat. The stage's noise and the step's are those of
    a Brownian path in sigma/alpha, as published; `SEEDS2` takes the SDE's own path, and a weight that is exact for
    x0_hat linear in l.

    Attributes:
      r: where the stage stands, as a fraction of the step in l; a scalar in (0, 1).
      eta: how much noise, a scalar; 0 the flow, 1 the reverse SDE.

    Raises:
      ValueError: r is not in (0, 1), or eta is negative.

    Source: k-diffusion's `sample_dpmpp_sde`, at eta = 1.
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
        xp, inside = family.xp, family.inside
        r = beside(self.r, family.at)
        keep_m, data_m, noise_m = exact_to(family, place := place_at(family, process, ts, r))
        keep, total, noise = exact_to(family, end_of(family, ts))
        second = total / (2 * r)
        # (rho_t - rho_m)/(rho_t - rho_s), the share of the path that the stage has seen.
        h = xp.where(inside, family.h, 1.0)
        share = xp.expm1(-r * h) / xp.expm1(-h)
        rest = xp.exp(-r * h) * xp.expm1(-(1 - r) * h) / xp.expm1(-h)  # 1 - share, of any size
        both = noise * xp.where(inside, xp.sqrt(share), 0.0), noise * xp.where(inside, xp.sqrt(rest), 1.0)
        middle = Stage(place.time, keep_m, (data_m,), (noise_m,))
        return middle, Stage(ts[1:], keep, (total - second, second), both)

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


def _before(family, k):
    """The step h that was k before and its inverse, each [n]; where there is none, or a step is infinite, (1, 0)."""
    xp, n = family.xp, family.inside.shape[0]
    there = xp.concatenate([xp.zeros(k, bool), family.inside])[:n] & family.inside
    h = xp.concatenate([xp.ones_like(family.h, shape=k), family.h])[:n]
    h = xp.where(there, h, 1.0)
    return h, xp.where(there, 1 / h, 0.0)


def _weights(family, keep, data, noise):
    zero = 0 * keep
    return Weights(zero, zero + 1, keep, zero, data[0], family.xp.stack(data[1:], axis=1), noise)
