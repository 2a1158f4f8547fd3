"""Heun's method in sigma/alpha: EDM's deterministic sampler, for any process.

With z = x/alpha and rho = sigma/alpha the probability flow is dz/drho = eps_hat(z, rho), and the trapezoidal rule is

    e_t = (xt - alpha_t D(xt, t))/sigma_t,   x' = (sigma_s/sigma_t) xt + (alpha_s - alpha_t sigma_s/sigma_t) D(xt, t)
    e_s = (x' - alpha_s D(x', s))/sigma_s,   xs = x' + (alpha_s/2) (rho_s - rho_t) (e_s - e_t)

Source: Karras et al. 2022, algorithm 1.
"""

from typing import Any, ClassVar

from diffjax._typing import Denoiser, Sample, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper, namespace, schedule


class Heun(AbstractStepper):
    """EDM's Heun sampler: order 2, two evaluations a step. A step to sigma = 0 is Euler's, as EDM has it, and so is
    one from alpha = 0, where sigma/alpha is infinite.

    Source: Karras et al. 2022, algorithm 1.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    history: ClassVar[int] = 0

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(keep, data, at_t, at_s, half), each [n]; at_ = (alpha, 1/sigma), half = alpha_s (rho_s - rho_t)/2."""
        at = schedule(process, ts)
        xp = namespace(at.sigma)
        keep = at.sigma[1:] / at.sigma[:-1]
        inverse = xp.where(at.sigma > 0, 1 / xp.where(at.sigma > 0, at.sigma, 1.0), 0.0)
        growth = at.alpha[1:] / xp.where(at.alpha[:-1] > 0, at.alpha[:-1], 1.0)
        inside = (at.alpha[:-1] > 0) & (at.sigma[1:] > 0)
        half = xp.where(inside, 0.5 * (at.sigma[1:] - at.sigma[:-1] * growth), 0.0)
        at_t, at_s = (at.alpha[:-1], inverse[:-1]), (at.alpha[1:], inverse[1:])
        return keep, at.alpha[1:] - keep * at.alpha[:-1], at_t, at_s, half

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
        keep, data, (alpha_t, inverse_t), (alpha_s, inverse_s), half = weights
        x0_hat = denoiser(xt, t)
        eps_t = (xt - alpha_t * x0_hat) * inverse_t
        guess = keep * xt + data * x0_hat
        eps_s = (guess - alpha_s * denoiser(guess, s)) * inverse_s
        return guess + half * (eps_s - eps_t), None
