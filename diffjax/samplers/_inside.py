"""Times inside the steps of a grid: where l = log(alpha/sigma) has given values.

Only steps with a finite l at both ends have an inside. What is given for others is finite, and so are its gradients: a
process is never asked for l at alpha = 0 or sigma = 0, where the slope of l is infinite.
"""

from typing import Any

import jax.numpy as jnp

from diffjax.process import AbstractGaussianProcess, logsnr, time_from_logsnr
from diffjax.samplers._base import namespace, on_grid


def ends_of(process: AbstractGaussianProcess, ts: Any, inside: Any) -> Any:
    """(l_t, l_s), each [n], at both ends of each step of ts [n + 1]; where not `inside`, that of its middle."""
    return on_grid(_ends_of, process, ts, inside)


def _ends_of(process, ts, inside):
    middle = 0.5 * (ts[:-1] + ts[1:])
    return tuple(0.5 * logsnr(process, jnp.where(inside.astype(bool), t, middle)) for t in (ts[:-1], ts[1:]))


def times_at(process: AbstractGaussianProcess, ts: Any, inside: Any, half_logsnr: Any) -> Any:
    """(t, alpha, sigma), each [n], where l has the values given within each step of ts [n + 1]; where not `inside`,
    those of the step's beginning."""
    xp = namespace(half_logsnr)
    return on_grid(_times_at, process, ts, inside, xp.where(inside, half_logsnr, 0.0))


def _times_at(process, ts, inside, half_logsnr):
    t = jnp.clip(time_from_logsnr(process, 2 * half_logsnr), ts[1:], ts[:-1])
    t = jnp.where(inside.astype(bool), t, ts[:-1])
    return t, process.alpha(t), process.sigma(t)
