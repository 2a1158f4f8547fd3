"""Heun's method in sigma/alpha: EDM's deterministic sampler, for any process.

With z = x/alpha and rho = sigma/alpha the probability flow is dz/drho = eps_hat(z, rho), and the trapezoidal rule is

    e_t = (xt - alpha_t D(xt, t))/sigma_t,   x' = (sigma_s/sigma_t) xt + (alpha_s - alpha_t sigma_s/sigma_t) D(xt, t)
    e_s = (x' - alpha_s D(x', s))/sigma_s,   xs = x' + (alpha_s/2) (rho_s - rho_t) (e_s - e_t)

Source: Karras et al. 2022, algorithm 1.
"""

from typing import Any, ClassVar

import jax.numpy as jnp

from diffjax._typing import Denoiser, Sample, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractEmbeddedStepper, namespace, schedule


class Heun(AbstractEmbeddedStepper):
    """EDM's Heun sampler: order 2, two evaluations a step. A step to sigma = 0 is Euler's, as EDM has it, and so is
    one from alpha = 0, where sigma/alpha is infinite. The error estimate is the difference from Euler's step, DDIM's.

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
        return heun_weights((at.alpha[:-1], at.sigma[:-1]), (at.alpha[1:], at.sigma[1:]))

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
        keep, data, (alpha_t, inverse_t), (alpha_s, inverse_s), half = weights
        x0_hat = denoiser(xt, t)
        eps_t = (xt - alpha_t * x0_hat) * inverse_t
        guess = keep * xt + data * x0_hat
        # At sigma = 0, where its answer has no weight, the denoiser may be singular: there it is asked at t again.
        eps_s = (guess - alpha_s * denoiser(guess, jnp.where(inverse_s > 0, s, t))) * inverse_s
        error = half * (eps_s - eps_t)
        return guess + error, error, None


def heun_weights(start: Any, end: Any) -> Any:
    """Heun's weights (see `prepare`) for steps from start to end, each (alpha [n], sigma [n])."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = start, end
    xp = namespace(sigma_t)
    keep = sigma_s / sigma_t
    noisy = sigma_s > 0
    inverse_s = xp.where(noisy, 1 / xp.where(noisy, sigma_s, 1.0), 0.0)
    growth = alpha_s / xp.where(alpha_t > 0, alpha_t, 1.0)
    half = xp.where((alpha_t > 0) & noisy, 0.5 * (sigma_s - sigma_t * growth), 0.0)
    return keep, alpha_s - keep * alpha_t, (alpha_t, 1 / sigma_t), (alpha_s, inverse_s), half
