"""EDM's stochastic sampler: each step first adds noise, then takes Heun's step from the raised noise level.

With z = x/alpha, rho = sigma/alpha and N steps, the last of them to rho = 0,

    gamma = min(s_churn/N, sqrt(2) - 1) where s_min <= rho_t <= s_max, else 0;    rho_hat = (1 + gamma) rho_t
    z_hat = z_t + s_noise sqrt(rho_hat^2 - rho_t^2) xi,   xi ~ N(0, I)
    zs = Heun's step of dz/drho = eps_hat from rho_hat to rho_s

N is the number of grid points with sigma > 0, as in EDM: a grid that stops above sigma = 0 is followed by the step to 0
that `sample` ends with (`final_denoise`), which counts although it adds no noise here (in EDM it does where s_min lets
it).
t_hat is where sigma/alpha = rho_hat; added in x, the noise is the forward process's own from t to t_hat, times s_noise.
Source: Karras et al. 2022, algorithm 2.
"""

from functools import partial
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import check, normal_like, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Denoiser, Numbers, Sample, Scalar
from diffjax.samplers._heun import HeunWeights, heun_step, heun_weights
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class ChurnWeights(NamedTuple):
    """x_hat = c_x xt + c_z z at t_hat, then Heun's step from there; each [n]."""

    t_hat: Numbers
    c_x: Numbers
    c_z: Numbers
    heun: HeunWeights


class Churn(AbstractStepper):
    """EDM's stochastic sampler for any process: weak order 2, two evaluations a step. At s_churn = 0 it is `Heun`.

    A raised level beyond the end of `process.interval()` stops there, and no more noise is added than leads to it
    (EDM's code goes beyond sigma_max). Through `as_diffrax_solver` each step is a grid of its own, of N = 2 (1 to
    sigma = 0).

    Attributes:
      s_churn: noise over the whole path, not negative: each of N steps raises the noise level by a share s_churn/N, N
        being how many points of the grid have sigma > 0 (EDM's number of steps). All are scalars.
      s_min: the least sigma/alpha at which noise is added.
      s_max: the largest sigma/alpha at which noise is added.
      s_noise: a factor on the added noise; 1 keeps the marginals, EDM takes up to 1.007 against networks that blur.

    Raises:
      ValueError: a number is negative, or s_max is less than s_min.

    Source: Karras et al. 2022, algorithm 2.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    s_churn: Scalar = eqx.field(converter=partial(as_scalar, "s_churn"))
    s_min: Scalar = eqx.field(converter=partial(as_scalar, "s_min"), default=0.0)
    s_max: Scalar = eqx.field(converter=partial(as_scalar, "s_max"), default=jnp.inf)
    s_noise: Scalar = eqx.field(converter=partial(as_scalar, "s_noise"), default=1.0)

    @values_at_once
    def __check_init__(self):
        for name in ("s_churn", "s_min", "s_noise"):
            value = getattr(self, name)
            check(value >= 0, f"{name}: must not be negative, got {value}")
        check(self.s_max >= self.s_min, f"s_max: must be at least s_min = {self.s_min}, got {self.s_max}")

    def prepare(self, grid: ScheduleOnGrid) -> ChurnWeights:
        numbers = self.s_churn, self.s_min, self.s_max, self.s_noise
        end = grid.alpha[1:], grid.sigma[1:]
        t_hat, c_x, c_z, start = grid.evaluate(_raised, grid.ts, *numbers)
        return ChurnWeights(t_hat, c_x, c_z, heun_weights(grid.xp, start, end))

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        w = at.weights
        x_hat = w.c_x * x + w.c_z * normal_like(at.keys, x)
        return heun_step(denoiser, x_hat, Step(w.t_hat, at.s, w.heun))[0], None


def _raised(process, ts, s_churn, s_min, s_max, s_noise):
    """(t_hat, c_x, c_z), each [n], and (alpha, sigma) at t_hat."""
    t, s = ts[:-1], ts[1:]
    signal = process.alpha(t) > 0
    value = jnp.where(signal, process.logsnr(t), 0.0)
    rho = jnp.where(signal, jnp.exp(-0.5 * value), jnp.inf)
    steps = jnp.where(process.sigma(s[-1]) > 0, t.size + 1.0, float(t.size))
    gamma = jnp.where((rho >= s_min) & (rho <= s_max), jnp.minimum(s_churn / steps, 2**0.5 - 1), 0.0)
    raised = jnp.minimum(process.time_from_logsnr(value - 2 * jnp.log1p(gamma)), process.interval()[1])
    up = signal & (gamma > 0) & (raised > t)
    t_hat = jnp.where(up, raised, t)
    # Where nothing is raised, the kernel from s to t stands in for that of a gap of zero, whose gradient is infinite.
    c_x, cond_std = process.conditional(t_hat, jnp.where(up, t, s))
    c_x, c_z = jnp.where(up, c_x, 1.0), jnp.where(up, s_noise * cond_std, 0.0)
    return t_hat, c_x, c_z, (process.alpha(t_hat), process.sigma(t_hat))
