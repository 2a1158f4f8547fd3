"""Sampling grids: descending times from `interval(process)`'s upper end to its lower one, n steps, n + 1 points.

A grid is data: any descending array of times will do. These are the usual ones.
"""

from numbers import Integral

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import check, is_concrete
from diffjax._typing import Scalar
from diffjax.process._base import AbstractGaussianProcess, interval, logsnr, time_from_logsnr


def uniform_grid(process: AbstractGaussianProcess, n: int) -> Float[Array, " points"]:
    """n equal steps in t, shape [n + 1], descending. For `Karras` this is EDM's grid.

    Raises:
      ValueError: n is not a positive integer.
    """
    _check_steps(n)
    t_min, t_max = interval(process)
    return jnp.linspace(t_max, t_min, n + 1)


def logsnr_grid(process: AbstractGaussianProcess, n: int) -> Float[Array, " points"]:
    """n equal steps in logsnr, shape [n + 1], descending in t. Source: Lu et al. 2022 (DPM-Solver), section 3.2.

    Raises:
      ValueError: n is not a positive integer.
    """
    _check_steps(n)
    t_min, t_max = interval(process)
    return _from_logsnr(process, jnp.linspace(logsnr(process, t_max), logsnr(process, t_min), n + 1))


def karras_grid(process: AbstractGaussianProcess, n: int, rho: Scalar = 7.0) -> Float[Array, " points"]:
    """n equal steps in (sigma/alpha)^(1/rho), shape [n + 1], descending in t.

    Source: Karras et al. 2022, eq. 5, stated for the noise-to-signal ratio so that any process can use it.

    Raises:
      ValueError: n is not a positive integer, or rho is not positive.
    """
    _check_steps(n)
    check(rho > 0, f"rho: must be positive, got {rho}")
    t_min, t_max = interval(process)
    start, stop = (jnp.exp(-0.5 * logsnr(process, t) / rho) for t in (t_max, t_min))
    return _from_logsnr(process, -2 * rho * jnp.log(jnp.linspace(start, stop, n + 1)))


def _from_logsnr(process, values):
    """Times of the given logsnr, with the interval's own ends exactly."""
    t_min, t_max = interval(process)
    ts = jnp.clip(time_from_logsnr(process, values), t_min, t_max)
    ts = ts.at[0].set(t_max).at[-1].set(t_min)
    if is_concrete(ts):
        apart = ts[1:] < ts[:-1]
        check(apart, f"n: {values.size - 1} steps are too many here, for {ts.dtype} times coincide")
    return ts


def _check_steps(n):
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"n: the number of steps must be a positive integer, got {n!r}")
