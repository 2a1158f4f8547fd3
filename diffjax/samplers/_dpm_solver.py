"""Singlestep DPM-Solver: exponential Runge-Kutta methods in l = log(alpha/sigma), in the noise or the data prediction.

With h = l_s - l_t, intermediate times t_j where l = l_t + r_j h, DDIM's step `ddim_j` from t to t_j, and E_j, F_j the
changes of eps_hat, x0_hat from t to t_j:

    DPM-Solver-2      x1 = ddim_1,  xs = ddim - sigma_s (e^h - 1)/(2 r1) E_1
    DPM-Solver-3      x1 = ddim_1,  x2 = ddim_2 - (r2/r1) sigma_2 ((e^(r2 h) - 1)/(r2 h) - 1) E_1
                      xs = ddim - (sigma_s/r2) ((e^h - 1)/h - 1) E_2,   r2 = 2/3
    DPM-Solver++ 2S   x1 = ddim_1,  xs = ddim + alpha_s (1 - e^-h)/(2 r1) F_1

DPM-Solver-1 is DDIM. Source: Lu et al. 2022 (DPM-Solver), algorithms 1, 2 and 4 to 6; Lu et al. 2022b
(DPM-Solver++), algorithm 1.
"""

from functools import partial
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import check, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Denoiser, Numbers, Sample, Scalar
from diffjax.parameterisation._denoiser import predict
from diffjax.process import ddim_coefficients
from diffjax.samplers._inside import ends_of, places_at
from diffjax.samplers._stepper import AbstractEmbeddedStepper, ScheduleOnGrid, Step


class NoiseStage(NamedTuple):
    """x_j = c_x xt + c_x0 D + c_change E, at t_j; each [n], E the change of eps_hat at the stage before."""

    t: Numbers
    c_x: Numbers
    c_x0: Numbers
    c_change: Numbers
    alpha: Numbers
    inverse_sigma: Numbers


class DPMSolverWeights(NamedTuple):
    """xs = c_x xt + c_x0 D + c_change E, each [n], E the change of eps_hat at the last stage."""

    alpha_t: Numbers
    inverse_sigma_t: Numbers
    stages: tuple[NoiseStage, ...]
    c_x: Numbers
    c_x0: Numbers
    c_change: Numbers
    c_lower: Numbers
    """The weight of the E before the last, by the method one order below."""


@checked_numbers
class DPMSolver(AbstractEmbeddedStepper):
    """Singlestep DPM-Solver-1, -2 and -3: of that order, with as many evaluations a step. A step from alpha = 0 or to
    sigma = 0 is DDIM's.

    The error estimate is that of the paper's adaptive pairs, DPM-Solver-12 and -23: the difference from the order below
    inside the step. Order 1 has nothing better to compare with than standing still: give adaptive steps 2 or 3.

    Attributes:
      order: 1 (which is DDIM), 2 or 3.
      r1: where the first intermediate evaluation stands, as a fraction of the step in logsnr, in (0, 1); by
        default 1/2 for order 2, 1/3 for order 3. None for order 1. Order 3's second one stands at r2 = 2/3: the
        published formula takes any, but is of second order at any other.

    Raises:
      ValueError: the order is not 1, 2 or 3, or r1 is not in (0, 1) or has no place in order 1.

    Source: Lu et al. 2022 (DPM-Solver), algorithms 1, 2 and 4 to 6.
    """

    order: int = eqx.field(static=True, default=2)
    r1: Scalar | None = None

    def __init__(self, order: int = 2, r1: Scalar | None = None):
        if order not in (1, 2, 3):
            raise ValueError(f"order: singlestep DPM-Solver has orders 1, 2 and 3, got {order}")
        if order == 1 and r1 is not None:
            raise ValueError(f"r1: order 1 has no intermediate evaluation, got {r1}")
        self.order = order
        self.r1 = None if order == 1 else as_scalar("r1", (1 / order) if r1 is None else r1)
        _check_fraction(self.r1)

    @property
    def evaluations_per_step(self) -> int:
        return self.order

    def prepare(self, grid: ScheduleOnGrid) -> DPMSolverWeights:
        xp, start = grid.xp, (grid.alpha[:-1], grid.sigma[:-1])
        fractions: tuple = ((), (self.r1,), (self.r1, 2 / 3))[self.order - 1]
        inside, h, places = _places(grid, fractions)
        stages, c_change = [], xp.zeros_like(h)
        for j, (r, place) in enumerate(zip(fractions, places, strict=True)):
            if j == 1:
                span = _span(xp, *start, place.alpha, place.sigma)
                c_change = -(r / fractions[0]) * xp.where(inside, span / (r * h) - place.sigma, 0.0)
            c_x, c_x0 = ddim_coefficients(*start, place.alpha, place.sigma)
            stages.append(NoiseStage(place.t, c_x, c_x0, c_change, place.alpha, 1 / place.sigma))
        span = _span(xp, *start, grid.alpha[1:], grid.sigma[1:])
        second = xp.where(inside, -span / (2 * fractions[0]), 0.0) if self.order > 1 else c_change
        if self.order < 3:
            c_change, c_lower = second, xp.zeros_like(second)
        else:
            c_change, c_lower = xp.where(inside, -(span / h - grid.sigma[1:]) / fractions[1], 0.0), second
        c_x, c_x0 = ddim_coefficients(*start, grid.alpha[1:], grid.sigma[1:])
        return DPMSolverWeights(start[0], 1 / start[1], tuple(stages), c_x, c_x0, c_change, c_lower)

    def step_with_error(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, Sample, None]:
        w, x0_hat = at.weights, predict(denoiser, x, at.t)
        eps_hat = (x - w.alpha_t * x0_hat) * w.inverse_sigma_t
        before = now = jnp.zeros_like(eps_hat)
        for stage in w.stages:
            x_j = stage.c_x * x + stage.c_x0 * x0_hat + stage.c_change * now
            eps_j = (x_j - stage.alpha * predict(denoiser, x_j, stage.t)) * stage.inverse_sigma
            before, now = now, eps_j - eps_hat
        xs = w.c_x * x + w.c_x0 * x0_hat + w.c_change * now
        return xs, xs - x if self.order == 1 else w.c_change * now - w.c_lower * before, None


class DPMpp2SWeights(NamedTuple):
    """x1 = middle_c_x xt + middle_c_x0 D,  xs = c_x xt + c_x0 D + c_change F_1; each [n]."""

    middle_t: Numbers
    middle_c_x: Numbers
    middle_c_x0: Numbers
    c_x: Numbers
    c_x0: Numbers
    c_change: Numbers


class DPMpp2S(AbstractEmbeddedStepper):
    """DPM-Solver++ (2S): order 2, two evaluations a step, in the data prediction. A step from alpha = 0 or to sigma = 0
    is DDIM's. The error estimate is the difference from DDIM.

    Attributes:
      r1: where the intermediate evaluation stands, as a fraction of the step in logsnr, in (0, 1); a scalar.

    Raises:
      ValueError: r1 is not in (0, 1).

    Source: Lu et al. 2022b (DPM-Solver++: fast solver for guided sampling), algorithm 1.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    r1: Scalar = eqx.field(converter=partial(as_scalar, "r1"), default=0.5)

    @values_at_once
    def __check_init__(self):
        _check_fraction(self.r1)

    def prepare(self, grid: ScheduleOnGrid) -> DPMpp2SWeights:
        start = grid.alpha[:-1], grid.sigma[:-1]
        inside, _, (middle,) = _places(grid, (self.r1,))
        c_x, c_x0 = ddim_coefficients(*start, grid.alpha[1:], grid.sigma[1:])
        c_change = grid.xp.where(inside, c_x0 / (2 * self.r1), 0.0)
        middle_c = ddim_coefficients(*start, middle.alpha, middle.sigma)
        return DPMpp2SWeights(middle.t, *middle_c, c_x, c_x0, c_change)

    def step_with_error(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, Sample, None]:
        w, x0_hat = at.weights, predict(denoiser, x, at.t)
        error = w.c_change * (predict(denoiser, w.middle_c_x * x + w.middle_c_x0 * x0_hat, w.middle_t) - x0_hat)
        return w.c_x * x + w.c_x0 * x0_hat + error, error, None


def _places(grid, fractions):
    """Whether h is finite, h, and the places at fractions of each step, all [n]; of an infinite step its beginning."""
    inside = (grid.alpha[:-1] > 0) & (grid.sigma[1:] > 0)
    start, end = ends_of(grid, inside)
    h = grid.xp.where(inside, end - start, 1.0)
    return inside, h, [places_at(grid, inside, start + r * h) for r in fractions]


def _span(xp, alpha_t, sigma_t, alpha_s, sigma_s):
    """sigma_s (e^h - 1) = alpha_s (sigma/alpha at t) - sigma_s; 0 at alpha_t = 0."""
    signal = alpha_t > 0
    return xp.where(signal, alpha_s / xp.where(signal, alpha_t, 1.0) * sigma_t - sigma_s, 0.0)


def _check_fraction(r1):
    if r1 is not None:
        check((r1 > 0) & (r1 < 1), f"r1: the intermediate evaluation must stand inside (0, 1), got {r1}")
