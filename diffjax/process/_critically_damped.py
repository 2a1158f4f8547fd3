"""Critically damped Langevin diffusion: noise drives a velocity, and the velocity the data, which so stay smooth.

    dx = beta M^-1 v dt,    dv = -beta x dt - Gamma beta M^-1 v dt + sqrt(2 Gamma beta) dw,    Gamma^2 = 4 M

State u = (x, v), [b, 2, *d]; data x_0, velocity v_0 ~ N(0, gamma M I); stationary N(0, I) x N(0, M I). With M = mass,
w = v/sqrt(M) and the clock s = B(t)/sqrt(M), B the integral of beta, there is one equation without parameters,

    dx = w ds,   dw = (-x - 2 w) ds + 2 dW,    Phi = exp(-s) [[1 + s, s], [-s, 1 - s]],   Sigma = I - Phi Phi'

for N(0, I) is stationary. In z = 2 s, free of cancellation,

    Sigma_xx = 1 - e^-z (1 + z + z^2/2) = P(3, z),   Sigma_xw = e^-z z^2/2,   Sigma_ww = (1 - e^-z) + e^-z (z - z^2/2)

P(3, z) the regularised incomplete gamma function. Given x_0 alone, the velocity's start adds gamma c c' with
c = Phi_{.w}, and the determinant is det Sigma + gamma (Sigma_ww c_x^2 - 2 Sigma_xw c_x c_w + Sigma_xx c_w^2).

Source: Dockhorn et al. 2022 (Score-based generative modeling with critically-damped Langevin diffusion), section 3
and appendix B.1 (the moments, in other variables).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.process._base import MAX_LOGSNR, interval
from diffjax.process._linear import AbstractLinearProcess, Matrices, check_rates, linear_kernel, moments, rate
from diffjax.process._vp import integrated_beta, time_from_integrated_beta


class CriticallyDamped(AbstractLinearProcess):
    """Critically damped Langevin on states (x, v) [b, 2, *d], with beta linear in t.

    Attributes:
      beta_min: beta at t = 0, per unit of time; positive. The data are forgotten as (1 + s) exp(-s) with
        s = B(1)/sqrt(mass): 3e-3 for the defaults, which are the paper's.
      beta_max: beta at t = 1; positive.
      mass: M, the velocity's stationary variance; positive.
      gamma: velocities start with variance gamma M; positive.

    Raises:
      ValueError: one of them is not positive and finite.

    Source: Dockhorn et al. 2022, eq. 5.
    """

    beta_min: Scalar = eqx.field(converter=as_scalar, default=4.0)
    beta_max: Scalar = eqx.field(converter=as_scalar, default=4.0)
    mass: Scalar = eqx.field(converter=as_scalar, default=0.25)
    gamma: Scalar = eqx.field(converter=as_scalar, default=0.04)

    def __check_init__(self):
        check_rates(self)
        for name in ("mass", "gamma"):
            value = getattr(self, name)
            check((value > 0) & (value < jnp.inf), f"{name}: must be positive and finite, got {value}")

    def drift_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        one = jnp.ones_like(self.mass)
        return jnp.asarray(rate(self, t)) * _matrix(0 * one, 1 / self.mass, -one, -2 / jnp.sqrt(self.mass))

    def noise_matrix(self, t: Scalar) -> Float[Array, "m m"]:
        zero = jnp.zeros_like(self.mass)
        return jnp.sqrt(rate(self, t)) * _matrix(zero, zero, zero, 2 * self.mass**0.25)


def _matrix(xx, xv, vx, vv):
    """[..., 2, 2] of its four entries."""
    entries = jnp.broadcast_arrays(*(jnp.asarray(entry) for entry in (xx, xv, vx, vv)))
    return jnp.stack([jnp.stack(entries[:2], -1), jnp.stack(entries[2:], -1)], -2)


def _scaled(process, t, s: Time = 0.0):
    """The clock s, Phi's four entries and Sigma's three, for w = v/sqrt(M): dimensionless."""
    clock = jnp.asarray(integrated_beta(process, t, s)) / jnp.sqrt(process.mass)
    decay, z = jnp.exp(-clock), 2 * clock
    phi = decay * (1 + clock), decay * clock, -decay * clock, decay * (1 - clock)
    e = jnp.exp(-z)
    return phi, (_gamma3(z), 0.5 * e * z**2, -jnp.expm1(-z) + e * (z - 0.5 * z**2))


def _gamma3(z):
    """P(3, z) = 1 - e^-z (1 + z + z^2/2), about z^3/6 for small z; by its series below 2, where that would cancel."""
    small, series = jnp.minimum(z, 2.0), jnp.ones_like(z)
    for n in range(22, 3, -1):
        series = 1 + small / n * series
    large = -jnp.expm1(-z) - jnp.exp(-z) * (z + 0.5 * z**2)
    return jnp.where(z < 2, jnp.exp(-small) * small**3 / 6 * series, large)


@moments.register(CriticallyDamped)
def _(process: CriticallyDamped, t: Time, s: Time = 0.0) -> tuple[Matrices, Matrices]:
    (xx, xw, wx, ww), (s_xx, s_xw, s_ww) = _scaled(process, t, s)
    root = jnp.sqrt(process.mass)
    phi = _matrix(xx, xw / root, wx * root, ww)
    return phi, _matrix(s_xx, root * s_xw, root * s_xw, process.mass * s_ww)


@linear_kernel.register(CriticallyDamped)
def _(process: CriticallyDamped, t: Time) -> tuple[Matrices, Matrices]:
    (_, c_x, _, c_w), (s_xx, s_xw, s_ww) = _scaled(process, t)
    gamma, root = process.gamma, jnp.sqrt(process.mass)
    xx, xw = s_xx + gamma * c_x**2, s_xw + gamma * c_x * c_w
    determinant = s_xx * s_ww - s_xw**2 + gamma * (s_ww * c_x**2 - 2 * s_xw * c_x * c_w + s_xx * c_w**2)
    std_x = jnp.sqrt(xx)
    chol = _matrix(std_x, jnp.zeros_like(xx), root * xw / std_x, root * jnp.sqrt(determinant / xx))
    return moments(process, t)[0], chol


@interval.register(CriticallyDamped)
def _(process: CriticallyDamped) -> tuple[Scalar, Scalar]:
    """From where the data's logsnr is 20, as for a Gaussian process: C_xx^2 = gamma s^2 + 4 s^3/3 = e^-20, the larger
    of the two terms; the velocity's share of noise is still C_vv = sqrt(4 s M/3), 2 % of its scale at the defaults."""
    noise = jnp.exp(-MAX_LOGSNR)
    clock = jnp.minimum(jnp.sqrt(noise / process.gamma), (0.75 * noise) ** (1 / 3))
    t_min = time_from_integrated_beta(process, clock * jnp.sqrt(process.mass))
    return jnp.minimum(t_min, 1.0), jnp.ones_like(t_min)
