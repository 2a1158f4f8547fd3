"""DDPM's ancestral step, with either variance or one between them.

    xs = mean of q(xs | xt, x0_hat) + sigma_{t|s} (sigma_s/sigma_t)^(1 - v) z,   z ~ N(0, I)

v = 0 is the posterior's own variance (beta tilde, "fixed small"), v = 1 the forward step's (beta, "fixed large"), and
between them log variances are interpolated. Source: Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, eq. 15.
"""

from functools import partial
from typing import ClassVar

import equinox as eqx

from diffjax._arrays import check, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Denoiser, Sample, Scalar
from diffjax.samplers._ddim import Coefficients, ddim_step, ddim_weights
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class DDPM(AbstractStepper):
    """DDPM: weak order 1, one evaluation a step. A step to sigma = 0 adds no noise: it gives x0_hat.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> process = dj.Cosine()
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)
    >>> xT, ts = jnp.ones((1, 2)), dj.uniform_grid(process, 10)
    >>> dj.sample(jax.random.key(0), process, denoiser, xT, ts, dj.DDPM()).shape
    (1, 2)

    Attributes:
      interpolation: v, which interpolates the log variance of a step: 0 is the posterior's variance (that of
        `DDIM(eta=1.0)`), 1 that of the forward step; a scalar in [0, 1].

    Raises:
      ValueError: interpolation is not in [0, 1].

    Source: Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, eq. 15.
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    interpolation: Scalar = eqx.field(converter=partial(as_scalar, "interpolation"), default=0.0)

    @values_at_once
    def __check_init__(self):
        v = self.interpolation
        check((v >= 0) & (v <= 1), f"interpolation: must lie in [0, 1], got {v}")

    def prepare(self, grid: ScheduleOnGrid) -> Coefficients:
        c_x, c_x0, c_z = ddim_weights(grid, 1.0)
        growth = grid.sigma[:-1] / grid.xp.where(grid.sigma[1:] > 0, grid.sigma[1:], grid.sigma[:-1])
        return Coefficients(c_x, c_x0, c_z * growth**self.interpolation)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return ddim_step(denoiser, x, at), None
