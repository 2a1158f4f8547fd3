"""The clocks that a network may be given: its noise level as one number, c_noise.

    logsnr    -logsnr/8, |logsnr| clipped to 30       EDM's log(sigma)/4 where alpha = 1; tells every noise level apart
    angle     phi = atan2(sigma, data_std alpha)      in [0, pi/2]; smooth towards noise, for derivatives in time

Both are functions of logsnr alone, so that a network trained on one schedule can sample on another. A loss that
differentiates the network in time multiplies by the clock's derivative, which for `logsnr` grows without bound where
alpha(1) = 0; the angle does not tell sigma = 1e-3 from 1e-4. Both have finite derivatives in t on all of [0, 1], also
where logsnr or the derivative of sigma is infinite.
"""

import jax
import jax.numpy as jnp

from diffjax._typing import Time
from diffjax.process import AbstractGaussianProcess

CLOCKS = ("logsnr", "angle")

MAX_NOISE_LOGSNR = 30.0
"""The noise level given to a network is clipped to this |logsnr|, so that it is finite at t = 0 and 1."""


def clock_of_logsnr(process: AbstractGaussianProcess, t: Time) -> Time:
    """-logsnr/8, of the shape of t, |logsnr| clipped to 30."""
    t = jnp.asarray(t)
    value = jax.lax.stop_gradient(process.logsnr(t))
    inside = jnp.abs(value) <= MAX_NOISE_LOGSNR
    # Where it is clipped its derivative is 0, and that of logsnr, which may be infinite, is taken elsewhere.
    clipped = jnp.clip(value, -MAX_NOISE_LOGSNR, MAX_NOISE_LOGSNR)
    return -jnp.where(inside, process.logsnr(jnp.where(inside, t, 0.5)), clipped) / 8
