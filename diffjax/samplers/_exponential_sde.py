"""The eta family with its linear part exact: what the stochastic methods in the data prediction share.

With l = log(alpha/sigma), h = l_s - l_t, eta >= 0 and x0_hat constant over the step (math: exponential Euler),

    xs = (sigma_s/sigma_t) e^(-eta^2 h) xt - alpha_s expm1(-(1 + eta^2) h) x0_hat + sigma_s sqrt(-expm1(-2 eta^2 h)) z

Runge-Kutta methods take stages x_j at l_t + c_j h, whose noises belong to one Brownian path where w_jk says so:

    x_j = x_weight_j xt + sum_(k < j) d_jk D(x_k, t_k) + sum_(k <= j) w_jk z_k,      the last of them being xs

Source: Zhang & Chen 2023 (Fast sampling of diffusion models with exponential integrator), eq. 4 (the family); Gonzalez
et al. 2023 (SEEDS), section 3 (the stages).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from diffjax._arrays import check, normal_like, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Denoiser, Numbers, OnGrid, Sample, Scalar
from diffjax.parameterisation._denoiser import predict
from diffjax.samplers._ddim import Coefficients
from diffjax.samplers._inside import ends_of, places_at
from diffjax.samplers._stepper import ScheduleOnGrid, Step

ALL_FORGOTTEN = 1e3
"""A step's h where it is infinite (from alpha = 0, or to sigma = 0): e^-h is then 0."""


@values_at_once
def non_negative(name: str, value: Any) -> Array:
    """The number `name` as a leaf, a scalar; ValueError where it is negative."""
    number = as_scalar(name, value)
    check((number >= 0) & (number < jnp.inf), f"{name}: must not be negative, got {number}")
    return number


class Family(NamedTuple):
    """The family on a grid of n steps: every field but the grid and eta is [n]."""

    grid: ScheduleOnGrid
    eta: Scalar
    l: OnGrid
    """l at each step's start; some finite value where that is infinite."""
    h: OnGrid
    inside: OnGrid
    """Whether h is finite."""

    def decay(self, sigma_s: OnGrid, sigma_t: OnGrid, h: OnGrid) -> OnGrid:
        """What x, and noise in it, is multiplied by over h from sigma_t to sigma_s, [n]."""
        return sigma_s / sigma_t * self.grid.xp.exp(-(self.eta**2) * h)

    def constant(self, h: OnGrid) -> OnGrid:
        """1 - e^-H, H = (1 + eta^2) h: alpha_s times it is the weight of an x0_hat that does not change, [n]."""
        return -self.grid.xp.expm1(-(1 + self.eta**2) * h)

    def linear(self, c: Scalar = 1.0) -> OnGrid:
        """c - (1 - e^-cH)/H: that of an x0_hat that grows as (l - l_t)/h, after the part c of the step, [n]."""
        H = (1 + self.eta**2) * self.h
        return c + self.grid.xp.expm1(-c * H) / H

    def noise(self, sigma_s: OnGrid, h: OnGrid) -> OnGrid:
        """The standard deviation that is added over h up to sigma_s, [n]: 0 at eta = 0, where its slope is finite."""
        xp, some = self.grid.xp, h > 0
        square = xp.maximum(self.eta**2, 1e-12)
        std = xp.sqrt(-xp.expm1(-2 * square * xp.where(some, h, 1.0)) / square)
        return sigma_s * self.eta * xp.where(some, std, 0.0)


def eta_family(grid: ScheduleOnGrid, eta: Scalar) -> Family:
    """The eta family (eta a scalar) on a descending grid of n steps."""
    inside = (grid.alpha[:-1] > 0) & (grid.sigma[1:] > 0)
    l_t, l_s = ends_of(grid, inside)
    return Family(grid, eta, l_t, grid.xp.where(inside, l_s - l_t, ALL_FORGOTTEN), inside)


class Stop(NamedTuple):
    """Where a stage stands, each [n]: its time, alpha, sigma, and the part of h that has gone by."""

    t: OnGrid
    alpha: OnGrid
    sigma: OnGrid
    gone: OnGrid


def stop_at(family: Family, c: Scalar) -> Stop:
    """Where l = l_t + c h in each step, c a scalar; the beginning of an infinite step."""
    gone = family.grid.xp.where(family.inside, c * family.h, 0.0)
    return Stop(*places_at(family.grid, family.inside, family.l + gone), gone)


def end_of(family: Family) -> Stop:
    """The end of each step."""
    grid = family.grid
    return Stop(grid.ts[1:], grid.alpha[1:], grid.sigma[1:], family.h)


def exact_to(family: Family, stop: Stop) -> Coefficients:
    """The exact step from t to a stop where x0_hat does not change, each [n]."""
    c_x = family.decay(stop.sigma, family.grid.sigma[:-1], stop.gone)
    return Coefficients(c_x, stop.alpha * family.constant(stop.gone), family.noise(stop.sigma, stop.gone))


def carry_on(family: Family, last: Stop, c_z: tuple, stop: Stop) -> tuple:
    """The weights [n] of z_1, z_2, ... at a stop, from those at the last one, with a new z: one path's noise."""
    gap = stop.gone - last.gone
    left = family.decay(stop.sigma, last.sigma, gap)
    return (*(left * c for c in c_z), family.noise(stop.sigma, gap))


class Stage(NamedTuple):
    """One row of the method above; fields [n], or scalars inside a step."""

    t: OnGrid
    c_x: Numbers
    c_x0: tuple
    c_z: tuple


class Stages(NamedTuple):
    """A method's stages in their order, the last of them the step itself."""

    stages: tuple[Stage, ...]


def take_stages(denoiser: Denoiser, x: Sample, at: Step) -> Sample:
    """xs [b, *d] from x [b, *d] by weights that are `Stages`: an evaluation for x and for each stage but the last."""
    stages, start = at.weights.stages, x
    answers, draws = [predict(denoiser, x, at.t)], []
    for j, stage in enumerate(stages):
        if j > 0:
            answers.append(predict(denoiser, x, stages[j - 1].t))
        while len(draws) < len(stage.c_z):
            draws.append(normal_like(at.keys_of(len(draws)), start))
        x = stage.c_x * start
        for weight, what in zip(stage.c_x0 + stage.c_z, answers + draws, strict=True):
            x = x + weight * what
        x = x.astype(start.dtype)
    return x
