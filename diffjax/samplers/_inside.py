"""Times inside the steps of a grid: where l = log(alpha/sigma) has given values.

Only steps with a finite l at both ends have an inside. What is given for others is finite, and so are its gradients: a
process is never evaluated for l at alpha = 0 or sigma = 0, where the slope of l is infinite.
"""

from typing import NamedTuple

import jax.numpy as jnp

from diffjax._typing import OnGrid
from diffjax.samplers._stepper import ScheduleOnGrid


class Place(NamedTuple):
    """A place within each step of a grid, each [n]."""

    t: OnGrid
    alpha: OnGrid
    sigma: OnGrid


def ends_of(grid: ScheduleOnGrid, inside: OnGrid) -> tuple[OnGrid, OnGrid]:
    """(l_t, l_s), each [n], at both ends of each step; where not `inside` [n], that of its middle."""
    return grid.evaluate(_ends_of, grid.ts, inside)


def _ends_of(process, ts, inside):
    middle = 0.5 * (ts[:-1] + ts[1:])
    return tuple(0.5 * process.logsnr(jnp.where(inside.astype(bool), t, middle)) for t in (ts[:-1], ts[1:]))


def places_at(grid: ScheduleOnGrid, inside: OnGrid, half_logsnr: OnGrid) -> Place:
    """Where l has the values given within each step, [n]; where not `inside`, the step's beginning."""
    return grid.evaluate(_places_at, grid.ts, inside, grid.xp.where(inside, half_logsnr, 0.0))


def _places_at(process, ts, inside, half_logsnr):
    t = jnp.clip(process.time_from_logsnr(2 * half_logsnr), ts[1:], ts[:-1])
    t = jnp.where(inside.astype(bool), t, ts[:-1])
    return Place(t, process.alpha(t), process.sigma(t))
