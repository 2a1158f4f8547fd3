"""Euler's method in t on the probability flow.

    xs = xt + (s - t) u,   u = alpha' x0_hat + sigma' (xt - alpha x0_hat)/sigma        at t

For `Rectified`, u is the velocity eps_hat - x0_hat and this is DDIM. Source: Song et al. 2021, eq. 13; Lipman et al.
2023 (Flow matching).
"""

from typing import ClassVar

from diffjax._arrays import is_concrete
from diffjax._typing import Denoiser, Sample
from diffjax.process import schedule_derivatives
from diffjax.samplers._ddim import Coefficients, ddim_step
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class Euler(AbstractStepper):
    """Euler's method in t: order 1, one evaluation a step. On most grids `DDIM`, which solves the linear part of the
    flow exactly, is closer at the same cost; for `Rectified` the two are one.

    Raises:
      ValueError: (by `prepare`) a step starts where alpha' or sigma' is infinite.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), eq. 13.
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1

    def prepare(self, grid: ScheduleOnGrid) -> Coefficients:
        c_x, c_x0 = grid.evaluate(_weights, grid.ts)
        if is_concrete((c_x, c_x0)):
            singular = ~(grid.xp.isfinite(c_x) & grid.xp.isfinite(c_x0))
            if singular.any():
                raise ValueError(
                    f"ts: the velocity of {type(grid.process).__name__} is singular at t = "
                    f"{grid.ts[:-1][singular][0]:.9g}; keep the grid inside process.interval(), or take DDIM(), which "
                    "needs no rates"
                )
        return Coefficients(c_x, c_x0)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return ddim_step(denoiser, x, at), None


def _weights(process, ts):
    t, gap = ts[:-1], ts[1:] - ts[:-1]
    alpha_dot, sigma_dot = schedule_derivatives(process, t)
    pull = sigma_dot / process.sigma(t)
    return 1 + gap * pull, gap * (alpha_dot - process.alpha(t) * pull)
