"""Euler's method in t on the probability flow.

    xs = xt + (s - t) u,   u = alpha' x0_hat + sigma' (xt - alpha x0_hat)/sigma        at t

For `Rectified`, u is the velocity eps_hat - x0_hat and this is DDIM. Source: Song et al. 2021, eq. 13; Lipman et al.
2023 (Flow matching).
"""

from typing import Any, ClassVar

from diffjax._arrays import is_concrete
from diffjax._typing import Denoiser, Sample, Time
from diffjax.process import AbstractGaussianProcess, rates
from diffjax.samplers._base import AbstractStepper, namespace, on_grid


class Euler(AbstractStepper):
    """Euler's method in t: order 1, one evaluation a step. On most grids `DDIM`, which solves the linear part of the
    flow exactly, is closer at the same cost; for `Rectified` the two are one.

    Raises:
      ValueError: (by `prepare`) a step starts where alpha' or sigma' is infinite.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), eq. 13.
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 0

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(keep, data), each [n]: xs = keep xt + data x0_hat."""
        keep, data = on_grid(_weights, process, ts)
        if is_concrete((keep, data)):
            xp = namespace(keep)
            singular = ~(xp.isfinite(keep) & xp.isfinite(data))
            if singular.any():
                raise ValueError(
                    f"ts: the velocity of {type(process).__name__} is singular at t = {ts[:-1][singular][0]:.9g}; "
                    "keep the grid inside interval(process), or take DDIM(), which needs no rates"
                )
        return keep, data

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
        keep, data = weights
        return keep * xt + data * denoiser(xt, t), None


def _weights(process, ts):
    t, gap = ts[:-1], ts[1:] - ts[:-1]
    alpha_dot, sigma_dot = rates(process, t)
    pull = sigma_dot / process.sigma(t)
    return 1 + gap * pull, gap * (alpha_dot - process.alpha(t) * pull)
