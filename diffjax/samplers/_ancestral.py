"""Ancestral samplers: a deterministic step to less noise than wanted, then fresh noise.

With z = x/alpha and rho = sigma/alpha,

    rho_up = rho_s min(1, eta sigma_{t|s}/sigma_t),   rho_down^2 = rho_s^2 - rho_up^2,   p = sqrt(rho_down/rho_t)
    D = x0_hat(zt, rho_t),   zm = p zt + (1 - p) D,   Dm = x0_hat(zm, p rho_t)           halfway in log rho

    Euler        zs = p^2 zt + (1 - p^2) D + rho_up noise                      DDIM with this eta, exactly
    DPM-2        zs = zt + (p^2 - 1) (zm - Dm)/p + rho_up noise                midpoint rule for dz/drho = (z - D)/rho
    DPM++ 2S     zs = p^2 zt + (1 - p^2) Dm + rho_up noise                     midpoint rule in the data prediction

An exact deterministic step would carry the exact marginal for every eta: its order is the weak order of the whole.
Source: Karras et al. 2022 (the deterministic methods, up to the place of the midpoint); Song et al. 2021, eq. 16 (the
split); widely known as k-diffusion's `sample_euler_ancestral`, `sample_dpm_2_ancestral`, `sample_dpmpp_2s_ancestral`.
"""

from functools import partial
from typing import ClassVar, NamedTuple

import equinox as eqx

from diffjax._arrays import check, normal_like, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Denoiser, Numbers, Sample, Scalar
from diffjax.parameterisation._denoiser import predict
from diffjax.process import ddim_coefficients
from diffjax.samplers._ddim import Coefficients, ddim_step, ddim_weights
from diffjax.samplers._exponential_sde import non_negative
from diffjax.samplers._inside import ends_of, places_at
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class EulerAncestral(AbstractStepper):
    """Euler ancestral: weak order 1, one evaluation a step; equal to `DDIM(eta)` step by step.

    Attributes:
      eta: noise of a step, a scalar in [0, 1]; 0 is deterministic, 1 is DDPM's ancestral step.

    Raises:
      ValueError: eta is not in [0, 1].

    Source: k-diffusion's `sample_euler_ancestral`.
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    eta: Scalar = eqx.field(converter=partial(as_scalar, "eta"), default=1.0)

    @values_at_once
    def __check_init__(self):
        check((self.eta >= 0) & (self.eta <= 1), f"eta: must lie in [0, 1], got {self.eta}")

    def prepare(self, grid: ScheduleOnGrid) -> Coefficients:
        return ddim_weights(grid, self.eta)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return ddim_step(denoiser, x, at), None


class MidpointWeights(NamedTuple):
    """Of a stage and of the step, each [n].

    xm = middle_c_x xt + middle_c_x0 D,    xs = c_x xt + c_x0 D + c_x0_middle Dm + c_z z
    """

    middle_t: Numbers
    middle_c_x: Numbers
    middle_c_x0: Numbers
    c_x: Numbers
    c_x0: Numbers
    c_x0_middle: Numbers
    c_z: Numbers | None


class DPM2Ancestral(AbstractStepper):
    """DPM-2 ancestral: weak order 2, two evaluations a step.

    A step from alpha = 0 or to sigma = 0 is DDIM's.

    Attributes:
      eta: noise of a step, a scalar; 0 is deterministic, 1 as much as DDPM's ancestral step.

    Raises:
      ValueError: eta is negative.

    Source: k-diffusion's `sample_dpm_2_ancestral`.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    eta: Scalar = eqx.field(converter=partial(non_negative, "eta"), default=1.0)

    def prepare(self, grid: ScheduleOnGrid) -> MidpointWeights:
        middle, p, (c_x, c_x0, c_z) = _split(grid, self.eta)
        return MidpointWeights(*middle, c_x, -(1 - p) * c_x0 / p, c_x0 / p, c_z)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return _midpoint_step(denoiser, x, at), None


class DPMpp2SAncestral(AbstractStepper):
    """DPM-Solver++ (2S) ancestral: weak order 2, two evaluations a step.

    A step from alpha = 0 or to sigma = 0 is DDIM's.

    Attributes:
      eta: noise of a step, a scalar; 0 is deterministic, 1 as much as DDPM's ancestral step.

    Raises:
      ValueError: eta is negative.

    Source: k-diffusion's `sample_dpmpp_2s_ancestral`; Lu et al. 2022b, algorithm 1, for its deterministic part.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    eta: Scalar = eqx.field(converter=partial(non_negative, "eta"), default=1.0)

    def prepare(self, grid: ScheduleOnGrid) -> MidpointWeights:
        middle, _, (c_x, c_x0, c_z) = _split(grid, self.eta)
        return MidpointWeights(*middle, c_x, 0 * c_x0, c_x0, c_z)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return _midpoint_step(denoiser, x, at), None


def _split(grid, eta):
    """(t, c_x, c_x0) of the stage in the middle, p, and the `Coefficients` of DDIM's step, each [n].

    Where rho_down/rho_t = 0 the stage stays at t and p is 1, so that both methods become DDIM's step.
    """
    xp, alpha_t, sigma_t = grid.xp, grid.alpha[:-1], grid.sigma[:-1]
    whole = ddim_weights(grid, eta)
    down = whole.c_x * alpha_t / grid.alpha[1:]  # rho_down/rho_t
    inside = down > 0
    p = xp.sqrt(xp.where(inside, down, 1.0))
    middle = places_at(grid, inside, ends_of(grid, inside)[0] - xp.log(p))
    return (middle.t, *ddim_coefficients(alpha_t, sigma_t, middle.alpha, middle.sigma)), p, whole


def _midpoint_step(denoiser, x, at):
    w, D = at.weights, predict(denoiser, x, at.t)
    middle = (w.middle_c_x * x + w.middle_c_x0 * D).astype(x.dtype)
    Dm = predict(denoiser, middle, w.middle_t)
    z = normal_like(at.keys_of(0), x)  # the first draw of those by stages
    return w.c_x * x + w.c_x0 * D + w.c_x0_middle * Dm + w.c_z * z
