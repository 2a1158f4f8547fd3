"""EDM's stochastic sampler: each step first adds noise, then takes Heun's step from the raised noise level.

With z = x/alpha, rho = sigma/alpha and N steps, the last of them to rho = 0,

    gamma = min(s_churn/N, sqrt(2) - 1) where s_min <= rho_t <= s_max, else 0;    rho_hat = (1 + gamma) rho_t
    z_hat = z_t + s_noise sqrt(rho_hat^2 - rho_t^2) xi,   xi ~ N(0, I)
    zs = Heun's step of dz/drho = eps_hat from rho_hat to rho_s

N is the number of grid points with sigma > 0, as in EDM: a grid that stops above sigma = 0 is followed by the step to 0
that `sample` ends with (`denoise`), which counts although it adds no noise here (in EDM it does where s_min lets it).
t_hat is where sigma/alpha = rho_hat; added in x, the noise is the forward process's own from t to t_hat, times s_noise.
Source: Karras et al. 2022, algorithm 2.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check, normal_like
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.process import AbstractGaussianProcess, conditional, interval, logsnr, time_from_logsnr
from diffjax.samplers._base import AbstractStepper, on_grid
from diffjax.samplers._heun import Heun, heun_weights


class Churn(AbstractStepper):
    """EDM's stochastic sampler for any process: weak order 2, two evaluations a step. At s_churn = 0 it is `Heun`.

    A raised level beyond the end of `interval(process)` stops there, and no more noise is added than leads to it (EDM's
    code goes beyond sigma_max). Through `as_diffrax_solver` each step is a grid of its own, of N = 2 (1 to sigma = 0).

    Attributes:
      s_churn: noise over the whole path, not negative: s_churn/N more noise level at each of N steps, N being how
        many points of the grid have sigma > 0 (EDM's number of steps). All are scalars.
      s_min, s_max: the range of sigma/alpha where noise is added.
      s_noise: a factor on the added noise; 1 keeps the marginals, EDM takes up to 1.007 against networks that blur.

    Raises:
      ValueError: a number is negative, or s_max is less than s_min.

    Source: Karras et al. 2022, algorithm 2.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    history: ClassVar[int] = 0

    s_churn: Scalar = eqx.field(converter=as_scalar)
    s_min: Scalar = eqx.field(converter=as_scalar, default=0.0)
    s_max: Scalar = eqx.field(converter=as_scalar, default=jnp.inf)
    s_noise: Scalar = eqx.field(converter=as_scalar, default=1.0)

    def __check_init__(self):
        for name in ("s_churn", "s_min", "s_noise"):
            value = getattr(self, name)
            check(value >= 0, f"{name}: must not be negative, got {value}")
        check(self.s_max >= self.s_min, f"s_max: must be at least s_min = {self.s_min}, got {self.s_max}")

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(t_hat, grow, noise, weights of Heun's step from t_hat to s), each [n]: x_hat = grow xt + noise z."""
        numbers = (self.s_churn, self.s_min, self.s_max, self.s_noise)
        t_hat, grow, noise, start, end = on_grid(_raised, process, ts, *numbers)
        return t_hat, grow, noise, heun_weights(start, end)

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
        t_hat, grow, noise, inner = weights
        x_hat = grow * xt + noise * normal_like(keys, xt)
        return Heun().step(keys, process, denoiser, x_hat, t_hat, s, inner, None)


def _raised(process, ts, s_churn, s_min, s_max, s_noise):
    """(t_hat, grow, noise), each [n], and (alpha, sigma) at t_hat and at s."""
    t, s = ts[:-1], ts[1:]
    signal = process.alpha(t) > 0
    value = jnp.where(signal, logsnr(process, t), 0.0)
    rho = jnp.where(signal, jnp.exp(-0.5 * value), jnp.inf)
    steps = jnp.where(process.sigma(s[-1]) > 0, t.size + 1.0, float(t.size))
    gamma = jnp.where((rho >= s_min) & (rho <= s_max), jnp.minimum(s_churn / steps, 2**0.5 - 1), 0.0)
    raised = jnp.minimum(time_from_logsnr(process, value - 2 * jnp.log1p(gamma)), interval(process)[1])
    up = signal & (gamma > 0) & (raised > t)
    t_hat = jnp.where(up, raised, t)
    # Where nothing is raised, the kernel from s to t stands in for that of a gap of zero, whose gradient is infinite.
    grow, spread = conditional(process, t_hat, jnp.where(up, t, s))
    grow, noise = jnp.where(up, grow, 1.0), jnp.where(up, s_noise * spread, 0.0)
    return t_hat, grow, noise, (process.alpha(t_hat), process.sigma(t_hat)), (process.alpha(s), process.sigma(s))
