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

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import as_scalar, check, is_concrete
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractEmbeddedStepper, namespace, schedule
from diffjax.samplers._inside import ends_of, times_at


class DPMSolver(AbstractEmbeddedStepper):
    """Singlestep DPM-Solver-1, -2 and -3: of that order, with as many evaluations a step. A step from alpha = 0 or to
    sigma = 0 is DDIM's.

    The error estimate is that of the paper's adaptive pairs, DPM-Solver-12 and -23: the difference from the order below
    inside the step. Order 1 has nothing better to compare with than standing still: give adaptive steps 2 or 3.

    Attributes:
      order: 1 (which is DDIM), 2 or 3.
      r1: where the first intermediate evaluation stands, as a fraction of the step in l, in (0, 1); a scalar. Default:
        1/2 for order 2, 1/3 for order 3; None for order 1. Order 3's second one stands at r2 = 2/3: the published
        formula takes any, but is of second order at any other.

    Raises:
      ValueError: the order is not 1, 2 or 3, or r1 is not in (0, 1) or has no place in order 1.

    Source: Lu et al. 2022 (DPM-Solver), algorithms 1, 2 and 4 to 6.
    """

    order: int = eqx.field(static=True, default=2)
    r1: Scalar | None = None

    history: ClassVar[int] = 0

    def __init__(self, order: int = 2, r1: Scalar | None = None):
        if order not in (1, 2, 3):
            raise ValueError(f"order: singlestep DPM-Solver has orders 1, 2 and 3, got {order}")
        if order == 1 and r1 is not None:
            raise ValueError(f"r1: order 1 has no intermediate evaluation, got {r1}")
        self.order = int(order)
        self.r1 = None if order == 1 else as_scalar((1 / order) if r1 is None else r1)
        _check_fraction(self.r1)

    @property
    def evaluations_per_step(self) -> int:
        return self.order

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(start, stages, end): start (alpha_t, 1/sigma_t), a stage (t_j, keep, data, change, alpha_j, 1/sigma_j), end
        (keep, data, change, lower), each [n]; `change` multiplies the E before, `lower` that of the order below."""
        grid = _Grid(process, ts, ((), (self.r1,), (self.r1, 2 / 3))[self.order - 1])
        at, xp = grid.at, grid.xp
        stages, change = [], xp.zeros_like(grid.h)
        for j, (r, t, alpha, sigma) in enumerate(zip(grid.r, grid.t, grid.alpha, grid.sigma, strict=True)):
            keep, data, span = _ddim(at.alpha[:-1], at.sigma[:-1], alpha, sigma, xp)
            if j == 1:
                change = -(r / grid.r[0]) * xp.where(grid.inside, span / (r * grid.h) - sigma, 0.0)
            stages.append((t, keep, data, change, alpha, 1 / sigma))
        keep, data, span = _ddim(at.alpha[:-1], at.sigma[:-1], at.alpha[1:], at.sigma[1:], xp)
        second = xp.where(grid.inside, -span / (2 * grid.r[0]), 0.0) if self.order > 1 else change
        if self.order < 3:
            change, lower = second, xp.zeros_like(second)
        else:
            change, lower = xp.where(grid.inside, -(span / grid.h - at.sigma[1:]) / grid.r[1], 0.0), second
        return (at.alpha[:-1], 1 / at.sigma[:-1]), tuple(stages), (keep, data, change, lower)

    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> None:
        return None

    def step_with_error(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: None,
    ) -> tuple[Sample, Sample, None]:
        (alpha, inverse), stages, (keep, data, last, lower) = weights
        x0_hat = denoiser(xt, t)
        eps_hat = (xt - alpha * x0_hat) * inverse
        before = now = jnp.zeros_like(eps_hat)
        for t_j, keep_j, data_j, change, alpha_j, inverse_j in stages:
            x_j = keep_j * xt + data_j * x0_hat + change * now
            before, now = now, (x_j - alpha_j * denoiser(x_j, t_j)) * inverse_j - eps_hat
        xs = keep * xt + data * x0_hat + last * now
        return xs, xs - xt if self.order == 1 else last * now - lower * before, None


class DPMpp2S(AbstractEmbeddedStepper):
    """DPM-Solver++ (2S): order 2, two evaluations a step, in the data prediction. A step from alpha = 0 or to sigma = 0
    is DDIM's. The error estimate is the difference from DDIM.

    Attributes:
      r1: where the intermediate evaluation stands, as a fraction of the step in l, in (0, 1); a scalar.

    Raises:
      ValueError: r1 is not in (0, 1).

    Source: Lu et al. 2022b (DPM-Solver++: fast solver for guided sampling), algorithm 1.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    history: ClassVar[int] = 0

    r1: Scalar = eqx.field(converter=as_scalar, default=0.5)

    def __check_init__(self):
        _check_fraction(self.r1)

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """((t_1, keep, data), (keep, data, change)), each [n]; `change` multiplies F_1."""
        grid = _Grid(process, ts, (self.r1,))
        at, xp = grid.at, grid.xp
        keep_1, data_1, _ = _ddim(at.alpha[:-1], at.sigma[:-1], grid.alpha[0], grid.sigma[0], xp)
        keep, data, _ = _ddim(at.alpha[:-1], at.sigma[:-1], at.alpha[1:], at.sigma[1:], xp)
        return (grid.t[0], keep_1, data_1), (keep, data, xp.where(grid.inside, data / (2 * grid.r[0]), 0.0))

    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> None:
        return None

    def step_with_error(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: None,
    ) -> tuple[Sample, Sample, None]:
        (t_1, keep_1, data_1), (keep, data, change) = weights
        x0_hat = denoiser(xt, t)
        error = change * (denoiser(keep_1 * xt + data_1 * x0_hat, t_1) - x0_hat)
        return keep * xt + data * x0_hat + error, error, None


class _Grid:
    """A schedule with the times inside each step; where a step leaves alpha = 0 or reaches sigma = 0 they stay at t."""

    def __init__(self, process, ts, fractions):
        at = schedule(process, ts)
        self.at = at = at if is_concrete(fractions) else jax.tree.map(jnp.asarray, at)
        self.xp = xp = namespace(at.sigma)
        self.r = [np.asarray(r, np.float64) if is_concrete((r, at.sigma)) else r for r in fractions]
        self.inside = (at.alpha[:-1] > 0) & (at.sigma[1:] > 0)
        start, end = ends_of(process, ts, self.inside)
        self.h = xp.where(self.inside, end - start, 1.0)
        found = [times_at(process, ts, self.inside, start + r * self.h) for r in self.r]
        columns: Any = zip(*found, strict=True) if found else ((), (), ())
        self.t, self.alpha, self.sigma = columns


def _ddim(alpha_t, sigma_t, alpha_s, sigma_s, xp):
    """(keep, data) of DDIM's step, and sigma_s (e^h - 1) = alpha_s (sigma/alpha at t) - sigma_s (0 at alpha_t = 0)."""
    keep = sigma_s / sigma_t
    open_ = alpha_t > 0
    span = xp.where(open_, alpha_s / xp.where(open_, alpha_t, 1.0) * sigma_t - sigma_s, 0.0)
    return keep, alpha_s - keep * alpha_t, span


def _check_fraction(r1):
    if r1 is not None:
        check((r1 > 0) & (r1 < 1), f"r1: the intermediate evaluation must stand inside (0, 1), got {r1}")
