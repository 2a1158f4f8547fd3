"""Heun's method in sigma/alpha: EDM's deterministic sampler, for any process.

With z = x/alpha and rho = sigma/alpha the probability flow is dz/drho = eps_hat(z, rho), and the trapezoidal rule is

    e_t = (xt - alpha_t D(xt, t))/sigma_t,   x' = (sigma_s/sigma_t) xt + (alpha_s - alpha_t sigma_s/sigma_t) D(xt, t)
    e_s = (x' - alpha_s D(x', s))/sigma_s,   xs = x' + (alpha_s/2) (rho_s - rho_t) (e_s - e_t)

Source: Karras et al. 2022, algorithm 1.
"""

from types import ModuleType
from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from diffjax._typing import Denoiser, Numbers, OnGrid, Sample
from diffjax.parameterisation._denoiser import predict
from diffjax.process import ddim_coefficients
from diffjax.samplers._stepper import AbstractEmbeddedStepper, ScheduleOnGrid, Step


class HeunWeights(NamedTuple):
    """Of the two formulas above, each [n]; 1/sigma_s is 0 where sigma_s is."""

    c_x: Numbers
    c_x0: Numbers
    alpha_t: Numbers
    inverse_sigma_t: Numbers
    alpha_s: Numbers
    inverse_sigma_s: Numbers
    c_change: Numbers
    """alpha_s (rho_s - rho_t)/2."""


class Heun(AbstractEmbeddedStepper):
    """EDM's Heun sampler: order 2, two evaluations a step. A step to sigma = 0 is Euler's, as EDM has it, and so is
    one from alpha = 0, where sigma/alpha is infinite. The error estimate is the difference from Euler's step, DDIM's.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, xT = dj.EDM(), jnp.full((1, 2), 80.0)
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)
    >>> print(dj.sample(None, process, denoiser, xT, dj.edm_grid(process, 40), dj.Heun()).round(2))
    [[1.01 1.01]]

    Source: Karras et al. 2022, algorithm 1.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2

    def prepare(self, grid: ScheduleOnGrid) -> HeunWeights:
        return heun_weights(grid.xp, (grid.alpha[:-1], grid.sigma[:-1]), (grid.alpha[1:], grid.sigma[1:]))

    def step_with_error(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, Sample, None]:
        xs, error = heun_step(denoiser, x, at)
        return xs, error, None


def heun_weights(xp: ModuleType, start: tuple[OnGrid, OnGrid], end: tuple[OnGrid, OnGrid]) -> HeunWeights:
    """Heun's weights for steps from start to end, each (alpha [n], sigma [n])."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = start, end
    noisy = sigma_s > 0
    inverse_s = xp.where(noisy, 1 / xp.where(noisy, sigma_s, 1.0), 0.0)
    growth = alpha_s / xp.where(alpha_t > 0, alpha_t, 1.0)
    c_change = xp.where((alpha_t > 0) & noisy, 0.5 * (sigma_s - sigma_t * growth), 0.0)
    c_x, c_x0 = ddim_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    return HeunWeights(c_x, c_x0, alpha_t, 1 / sigma_t, alpha_s, inverse_s, c_change)


def heun_step(denoiser: Denoiser, x: Sample, at: Step) -> tuple[Sample, Sample]:
    """(xs, xs - x'), both [b, *d], for x [b, *d] and weights that are `HeunWeights`: numbers, or [b, 1, ...] with
    times `at.t`, `at.s` [b]."""
    w = at.weights
    x0_hat = predict(denoiser, x, at.t)
    eps_t = (x - w.alpha_t * x0_hat) * w.inverse_sigma_t
    guess = w.c_x * x + w.c_x0 * x0_hat
    # At sigma = 0, where its answer has no weight, the denoiser may be singular: there it is evaluated at t again.
    noisy = jnp.reshape(w.inverse_sigma_s > 0, jnp.shape(at.s))
    eps_s = (guess - w.alpha_s * predict(denoiser, guess, jnp.where(noisy, at.s, at.t))) * w.inverse_sigma_s
    error = w.c_change * (eps_s - eps_t)
    return guess + error, error
