"""DDIM, deterministic and with noise.

    xs = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,   c = eta sigma_s sigma_{t|s}/sigma_t,   z ~ N(0, I)

with eps_hat = (xt - alpha_t x0_hat)/sigma_t. eta = 0 is Euler's method in sigma/alpha; eta = 1 is DDPM's ancestral step
with the posterior's variance. Source: Song et al. 2021 (Denoising diffusion implicit models), eqs. 12 and 16.
"""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
from jaxtyping import Array

from diffjax._arrays import check, normal_like, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Denoiser, Numbers, OnGrid, Sample, Scalar
from diffjax.parameterisation._denoiser import predict
from diffjax.process import ddim_coefficients
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class Coefficients(NamedTuple):
    """xs = c_x xt + c_x0 x0_hat + c_z z, each [n]."""

    c_x: Numbers
    c_x0: Numbers
    c_z: Numbers | None = None
    """None where nothing is drawn."""


def optional_eta(name: str, value: Any) -> Array | None:
    """The number 0 stays out of the pytree: then no noise is drawn at all. Any other eta is a leaf, a scalar."""
    if value is None or (isinstance(value, float | int) and value == 0 and not isinstance(value, bool)):
        return None
    return as_scalar(name, value)


class DDIM(AbstractStepper):
    """DDIM: order 1, one evaluation a step.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> process = dj.Cosine()
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)
    >>> xT, ts = jnp.ones((1, 2)), dj.uniform_grid(process, 10)
    >>> print(dj.sample(None, process, denoiser, xT, ts, dj.DDIM()).shape)
    (1, 2)
    >>> dj.sample(jax.random.key(0), process, denoiser, xT, ts, dj.DDIM(eta=1.0)).shape  # with noise
    (1, 2)

    Attributes:
      eta: noise of a step, 0 to 1; 0 is deterministic, 1 is DDPM's ancestral step. An array is a leaf: it
        can change without compiling, and draws noise even if it holds 0.

    Raises:
      ValueError: eta is not in [0, 1].

    Source: Song et al. 2021 (Denoising diffusion implicit models), eq. 12.
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1

    eta: Scalar | None = eqx.field(converter=partial(optional_eta, "eta"), default=0.0)

    @values_at_once
    def __check_init__(self):
        if self.eta is not None:
            check((self.eta >= 0) & (self.eta <= 1), f"eta: must lie in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta is not None

    def prepare(self, grid: ScheduleOnGrid) -> Coefficients:
        return ddim_weights(grid, self.eta)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return ddim_step(denoiser, x, at), None


def ddim_weights(grid: ScheduleOnGrid, eta: Scalar | None = None) -> Coefficients:
    """DDIM's weights for an eta (scalar) of 0 or more, or None; beyond 1 no more noise is added than there may be."""
    ends = grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:]
    if eta is None:
        return Coefficients(*ddim_coefficients(*ends))
    share, c_z = noisy_split(grid, eta)
    return Coefficients(*ddim_coefficients(*ends, share), c_z)


def ddim_step(denoiser: Denoiser, x: Sample, at: Step) -> Sample:
    """c_x x + c_x0 x0_hat + c_z z, [b, *d], for x [b, *d] and weights that are `Coefficients`."""
    w = at.weights
    xs = w.c_x * x + w.c_x0 * predict(denoiser, x, at.t)
    return xs if w.c_z is None else xs + w.c_z * normal_like(at.keys, x)


def noisy_split(grid: ScheduleOnGrid, eta: Scalar | OnGrid) -> tuple[OnGrid, OnGrid]:
    """(sqrt(sigma_s^2 - c^2)/sigma_s, c), each [n], for an eta (scalar) of 0 or more, with c no greater than sigma_s;
    slopes are finite where a grid touches alpha = 0 or sigma = 0."""
    xp = grid.xp
    ratio, part = grid.sigma[1:] / grid.sigma[:-1], eta * grid.cond_std / grid.sigma[:-1]
    # sigma_s^2 - c^2 without the difference, which rounding makes negative; with a = alpha_t/alpha_s,
    # sigma_t^2 = cond_std^2 + (a sigma_s)^2 and rest = a sigma_s/sigma_t.
    rest = ratio * grid.alpha[:-1] / grid.alpha[1:]
    square = (1 - eta**2) + (eta * rest) ** 2
    share = xp.sqrt(xp.where(square > 0, square, 1.0))
    share = xp.where(square > 0, share, xp.where(eta == 1, rest, 0.0))  # at eta = 1 it is rest, with the slope of rest
    return share, grid.sigma[1:] * xp.where(part > 1, 1.0, part)
