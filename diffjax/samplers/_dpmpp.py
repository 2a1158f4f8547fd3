"""DPM-Solver++ (2M): the second-order multistep method in the data prediction.

With l = log(alpha/sigma), h = l_s - l_t and h' the step before:

    xs = (sigma_s/sigma_t) xt - alpha_s expm1(-h) [ D + (h/2h') (D - D') ]

D' being the denoiser at the step before; the first step has no D' and is DDIM's. Source: Lu et al. 2022b
(DPM-Solver++), algorithm 2.
"""

from typing import Any, ClassVar

import jax.numpy as jnp

from diffjax._typing import Denoiser, Sample, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper, namespace, schedule


class DPMpp2M(AbstractStepper):
    """DPM-Solver++ (2M): order 2, one evaluation a step. A step to sigma = 0 is of first order.

    Source: Lu et al. 2022b (DPM-Solver++: fast solver for guided sampling), algorithm 2.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(keep, data, extrapolate), each [n]: xs = keep xt + data (D + extrapolate (D - D'))."""
        at = schedule(process, ts)
        xp = namespace(at.sigma)
        keep = at.sigma[1:] / at.sigma[:-1]
        h = at.half_logsnr[1:] - at.half_logsnr[:-1]
        half_ratio = xp.concatenate([xp.zeros_like(h[:1]), 0.5 * h[1:] / h[:-1]])
        return keep, at.alpha[1:] - keep * at.alpha[:-1], xp.where(xp.isfinite(half_ratio), half_ratio, 0.0)

    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        """The denoiser's answer at the step before, [b, *d]."""
        return jnp.zeros_like(xt)

    def step(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: Sample,
    ) -> tuple[Sample, Sample]:
        keep, data, extrapolate = weights
        x0_hat = denoiser(xt, t)
        return keep * xt + data * (x0_hat + extrapolate * (x0_hat - state)), x0_hat
