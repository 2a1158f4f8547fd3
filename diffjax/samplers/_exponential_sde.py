"""The eta family with its linear part exact: what the stochastic methods in the data prediction share.

With l = log(alpha/sigma), h = l_s - l_t, eta >= 0 and x0_hat constant over the step (math: exponential Euler),

    xs = (sigma_s/sigma_t) e^(-eta^2 h) xt - alpha_s expm1(-(1 + eta^2) h) x0_hat + sigma_s sqrt(-expm1(-2 eta^2 h)) z

Runge-Kutta methods take stages x_j at l_t + c_j h, whose noises belong to one Brownian path where w_jk says so:

    x_j = keep_j xt + sum_(k < j) d_jk D(x_k, t_k) + sum_(k <= j) w_jk z_k,      the last of them being xs

Source: Zhang & Chen 2023 (Fast sampling of diffusion models with exponential integrator), eq. 4 (the family); Gonzalez
et al. 2023 (SEEDS), section 3 (the stages).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import as_scalar, check, is_concrete, normal_like
from diffjax._typing import Denoiser, Sample, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import Schedule, namespace, schedule
from diffjax.samplers._inside import ends_of, times_at

ALL_FORGOTTEN = 1e3
"""A step's h where it is infinite (from alpha = 0, or to sigma = 0): e^-h is then 0."""


def non_negative(value: Any) -> Any:
    """An eta as a leaf, a scalar; ValueError where it is negative."""
    eta = as_scalar(value)
    check((eta >= 0) & (eta < jnp.inf), f"eta: must not be negative, got {eta}")
    return eta


def beside(value: Any, at: Schedule) -> Any:
    """A stepper's number, a scalar, in float64 where the schedule is; traced where either is."""
    return np.asarray(value, np.float64) if is_concrete((value, at)) else jnp.asarray(value)


class Exact(NamedTuple):
    """The family on a grid of n steps: every field but eta is [n], and xp is the namespace to compute in."""

    at: Schedule
    eta: Any
    l: Any
    """l at each step's start; some finite value where that is infinite."""
    h: Any
    inside: Any
    """Whether h is finite."""
    xp: Any

    def decay(self, sigma_s: Any, sigma_t: Any, h: Any) -> Any:
        """What x, and noise in it, is multiplied by over h from sigma_t to sigma_s, [n]."""
        return sigma_s / sigma_t * self.xp.exp(-(self.eta**2) * h)

    def constant(self, h: Any) -> Any:
        """1 - e^-H, H = (1 + eta^2) h: alpha_s times it is the weight of an x0_hat that does not change, [n]."""
        return -self.xp.expm1(-(1 + self.eta**2) * h)

    def linear(self, c: Any = 1.0) -> Any:
        """c - (1 - e^-cH)/H: that of an x0_hat that grows as (l - l_t)/h, after the part c of the step, [n]."""
        H = (1 + self.eta**2) * self.h
        return c + self.xp.expm1(-c * H) / H

    def noise(self, sigma_s: Any, h: Any) -> Any:
        """The standard deviation that is added over h up to sigma_s, [n]: 0 at eta = 0, where its slope is finite."""
        xp, square, some = self.xp, self.xp.maximum(self.eta**2, 1e-12), h > 0
        spread = xp.sqrt(-xp.expm1(-2 * square * xp.where(some, h, 1.0)) / square)
        return sigma_s * self.eta * xp.where(some, spread, 0.0)


def exact(process: AbstractGaussianProcess, ts: Any, eta: Any) -> Exact:
    """The eta family (eta a scalar) on a descending grid ts [n + 1]."""
    at = schedule(process, ts)
    eta = beside(eta, at)
    xp = namespace(eta * at.sigma)
    inside = (at.alpha[:-1] > 0) & (at.sigma[1:] > 0)
    l_t, l_s = ends_of(process, ts, inside)
    return Exact(at, eta, l_t, xp.where(inside, l_s - l_t, ALL_FORGOTTEN), inside, xp)


class Place(NamedTuple):
    """Where a stage stands, each [n]: its time, alpha, sigma, and the part of h that has gone by."""

    time: Any
    alpha: Any
    sigma: Any
    gone: Any


def place_at(family: Exact, process: AbstractGaussianProcess, ts: Any, c: Any) -> Place:
    """Where l = l_t + c h in each step of ts [n + 1], c a scalar; the beginning of an infinite step."""
    xp, inside = family.xp, family.inside
    gone = xp.where(inside, c * family.h, 0.0)
    time, alpha, sigma = times_at(process, ts, inside, family.l + gone)
    return Place(time, alpha, sigma, gone)


def end_of(family: Exact, ts: Any) -> Place:
    """The end of each step of ts [n + 1]."""
    return Place(ts[1:], family.at.alpha[1:], family.at.sigma[1:], family.h)


def exact_to(family: Exact, place: Place) -> tuple[Any, Any, Any]:
    """(keep, data, noise), each [n]: the exact step from t to a place where x0_hat does not change."""
    keep = family.decay(place.sigma, family.at.sigma[:-1], place.gone)
    return keep, place.alpha * family.constant(place.gone), family.noise(place.sigma, place.gone)


def carry_on(family: Exact, last: Place, noise: tuple, place: Place) -> tuple:
    """The weights [n] of z_1, z_2, ... at a place, from those at the last one, with a new z: one path's noise."""
    gap = place.gone - last.gone
    left = family.decay(place.sigma, last.sigma, gap)
    return (*(left * w for w in noise), family.noise(place.sigma, gap))


class Stage(NamedTuple):
    """One row of the method above; fields [n], or scalars inside a step."""

    time: Any
    keep: Any
    data: tuple
    noise: tuple


def take_stages(keys: Any, denoiser: Denoiser, xt: Sample, t: Time, stages: tuple[Stage, ...]) -> Sample:
    """xs [b, *d] from xt [b, *d] at t (scalar): one evaluation for xt and for each stage but the last, xs itself."""
    answers, draws, x = [denoiser(xt, t)], [], xt
    for j, stage in enumerate(stages):
        if j > 0:
            answers.append(denoiser(x, stages[j - 1].time))
        while len(draws) < len(stage.noise):
            draws.append(normal_like(jax.vmap(jax.random.fold_in, (0, None))(keys, len(draws)), xt))
        x = stage.keep * xt
        for weight, what in zip(stage.data + stage.noise, answers + draws, strict=True):
            x = x + weight * what
        x = x.astype(xt.dtype)
    return x
