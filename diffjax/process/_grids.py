"""Sampling grids: n steps, n + 1 descending times, from `process.interval()`'s upper end to its lower one.

A grid is data: any descending array of times will do. These are the usual ones, each equal steps in a function of the
time, or of the noise-to-signal ratio rho = sigma/alpha = exp(-logsnr/2), so that any process can use it. `ends` =
(t_max, t_min) gives other ends: those where the ratio is 0.002 and 80, say, by `time_from_logsnr`.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import check, check_real, is_concrete, values_at_once
from diffjax._numbers import checked_numbers
from diffjax._typing import Scalar
from diffjax.process._flow_step import Circle, Line
from diffjax.process._gaussian import AbstractGaussianProcess

Ends = tuple[Scalar, Scalar] | None


@checked_numbers
@values_at_once
def uniform_grid(process: AbstractGaussianProcess, n: int, *, ends: Ends = None) -> Float[Array, " points"]:
    """n equal steps in t. Descending, shape [n + 1]. For `EDM` this is the paper's grid.

    >>> import diffjax as dj
    >>> print(dj.uniform_grid(dj.EDM(), 4))
    [1.   0.75 0.5  0.25 0.  ]

    Raises:
      ValueError: n is not a positive integer, or `ends` do not descend inside [0, 1].
    """
    t_max, t_min = _ends(process, n, ends)
    return jnp.linspace(t_max, t_min, n + 1)


@checked_numbers
@values_at_once
def quadratic_grid(process: AbstractGaussianProcess, n: int, *, ends: Ends = None) -> Float[Array, " points"]:
    """n equal steps in sqrt(t). Descending, shape [n + 1]. Source: Song et al. 2021 (DDIM), appendix D.2.

    >>> import diffjax as dj
    >>> from diffjax.process import quadratic_grid
    >>> print(quadratic_grid(dj.Rectified(), 4, ends=(1.0, 0.0)))
    [1.     0.5625 0.25   0.0625 0.    ]

    Raises:
      ValueError: n is not a positive integer, or `ends` do not descend inside [0, 1].
    """
    t_max, t_min = _ends(process, n, ends)
    ts = jnp.linspace(jnp.sqrt(t_max), jnp.sqrt(t_min), n + 1) ** 2
    return ts.at[0].set(t_max).at[-1].set(t_min)


@checked_numbers
@values_at_once
def logsnr_grid(process: AbstractGaussianProcess, n: int, *, ends: Ends = None) -> Float[Array, " points"]:
    """n equal steps in logsnr: sigma/alpha falls by equal factors (an exponential, or log-linear, grid).

    Descending in t, shape [n + 1]. Source: Lu et al. 2022 (DPM-Solver), section 3.2.

    >>> import diffjax as dj
    >>> process = dj.VariancePreserving()
    >>> [round(float(process.logsnr(t)), 1) for t in dj.logsnr_grid(process, 4, ends=(1.0, 0.01))]
    [-10.0, -6.0, -1.9, 2.1, 6.2]

    Raises:
      ValueError: n is not a positive integer, or `ends` do not descend inside [0, 1], or logsnr is infinite there.
    """
    t_max, t_min = _ends(process, n, ends)
    start, stop = (_finite_logsnr(process, t) for t in (t_max, t_min))
    return _from_logsnr(process, jnp.linspace(start, stop, n + 1), t_max, t_min)


@checked_numbers
@values_at_once
def edm_grid(
    process: AbstractGaussianProcess, n: int, rho: Scalar = 7.0, *, ends: Ends = None
) -> Float[Array, " points"]:
    """n equal steps in (sigma/alpha)^(1/rho). Descending in t, shape [n + 1]; t_min may be where sigma = 0.

    >>> import diffjax as dj
    >>> [round(float(dj.EDM().sigma(t)), 3) for t in dj.edm_grid(dj.EDM(), 4)]
    [80.0, 17.528, 2.515, 0.17, 0.002]

    Args:
      process: the forward process that the times are of.
      n: number of steps.
      rho: how strongly steps are shortened at low noise; positive. 1 is equal steps in sigma/alpha, EDM has 7.
      ends: (t_max, t_min); those of `process.interval()` by default.

    Source: Karras et al. 2022, eq. 5, stated for the noise-to-signal ratio so that any process can use it.

    Raises:
      ValueError: n is not a positive integer, rho is not positive, or `ends` do not descend inside [0, 1], or
        sigma/alpha is infinite at t_max.
    """
    check(rho > 0, f"rho: must be positive, got {rho}")
    t_max, t_min = _ends(process, n, ends)
    start, stop = (jnp.exp(-0.5 * value / rho) for value in (_finite_logsnr(process, t_max), process.logsnr(t_min)))
    return _from_logsnr(process, -2 * rho * jnp.log(jnp.linspace(start, stop, n + 1)), t_max, t_min)


@checked_numbers
@values_at_once
def snr_grid(
    process: AbstractGaussianProcess,
    n: int,
    data_std: Scalar = 0.5,
    width: Scalar = 1.2,
    *,
    ends: Ends = None,
) -> Float[Array, " points"]:
    """n equal steps in arcsinh(log(sigma/alpha/data_std)/width): short where sigma/alpha is near data_std.

    Descending in t, shape [n + 1]. Fine within `width` e-folds of the level where noise and data are as large as
    one another, where the denoiser changes most, and coarser by equal factors of the logarithm beyond.

    Args:
      process: the forward process that the times are of.
      n: number of steps.
      data_std: standard deviation of the data per feature, where the steps are the shortest; positive.
      width: half-width, in log(sigma/alpha), of the range around data_std within which steps are about equal; positive.
      ends: (t_max, t_min); those of `process.interval()` by default.

    Raises:
      ValueError: n is not a positive integer, data_std or width is not positive, or `ends` do not descend inside
        [0, 1], or logsnr is infinite there.
    """
    check(data_std > 0, f"data_std: must be positive, got {data_std}")
    check(width > 0, f"width: must be positive, got {width}")
    t_max, t_min = _ends(process, n, ends)
    middle = -2 * jnp.log(data_std)
    start, stop = (jnp.arcsinh((_finite_logsnr(process, t) - middle) / (2 * width)) for t in (t_max, t_min))
    values = middle + 2 * width * jnp.sinh(jnp.linspace(start, stop, n + 1))
    return _from_logsnr(process, values, t_max, t_min)


@checked_numbers
@values_at_once
def shifted_grid(
    process: AbstractGaussianProcess, n: int, shift: Scalar = 3.0, *, ends: Ends = None
) -> Float[Array, " points"]:
    """n equal steps in t, with sigma/alpha multiplied by `shift` at each point between the ends.

    Descending in t, shape [n + 1]. More than 1 for larger images, whose noise must be larger to hide as much. For
    `Rectified` with ends (1, 0) it is Stable Diffusion 3's t -> shift t/(1 + (shift - 1) t). The steps are equal
    between the times that shift to the ends; where there are none in [0, 1], the first or last step makes up for
    it. See `Shifted` for a process so shifted.

    >>> import diffjax as dj
    >>> from diffjax.process import shifted_grid
    >>> [round(float(t), 2) for t in shifted_grid(dj.Rectified(), 2, ends=(1.0, 0.0))]  # 3 t/(1 + 2 t)
    [1.0, 0.75, 0.0]

    Args:
      process: the forward process that the times are of.
      n: number of steps.
      shift: the factor on sigma/alpha; positive. More than 1 takes more steps at high noise, as larger images need.
      ends: (t_max, t_min); those of `process.interval()` by default.

    Raises:
      ValueError: n is not a positive integer, shift is not positive, or `ends` do not descend inside [0, 1].

    Source: Esser et al. 2024 (Scaling rectified flow transformers), eq. 23.
    """
    check(shift > 0, f"shift: must be positive, got {shift}")
    t_max, t_min = _ends(process, n, ends)
    move = 2 * jnp.log(shift)
    start, stop = (jnp.clip(process.time_from_logsnr(process.logsnr(t) + move), 0.0, 1.0) for t in (t_max, t_min))
    return _from_logsnr(process, process.logsnr(jnp.linspace(start, stop, n + 1)) - move, t_max, t_min)


@checked_numbers
@values_at_once
def angle_grid(
    process: AbstractGaussianProcess, n: int, data_std: Scalar = 1.0, *, ends: Ends = None
) -> Float[Array, " points"]:
    """n equal steps in the angle atan2(sigma, data_std alpha), from t = 1 to t = 0.

    Descending, shape [n + 1]. For few steps of a flow map, which ends at the data (`Jump`). It is t = i/n for
    `Cosine`, as progressive distillation has it, and the same noise levels for every other process; a grid of 2n
    steps has those of n.

    >>> from diffjax import Cosine
    >>> from diffjax.process import angle_grid
    >>> print(angle_grid(Cosine(), 2))
    [1.  0.5 0. ]

    Args:
      process: the forward process that the times are of.
      n: number of steps.
      data_std: standard deviation of the data per feature; positive.
      ends: (t_max, t_min); (1, 0) by default.

    Raises:
      ValueError: n is not a positive integer, data_std is not positive, or `ends` do not descend inside [0, 1].

    Source: Salimans & Ho 2022 (progressive distillation, arXiv 2202.00512), algorithm 2.
    """
    check(data_std > 0, f"data_std: must be positive, got {data_std}")
    return _on_clock(process, n, Circle(data_std), ends, jnp.tan)


@checked_numbers
@values_at_once
def line_grid(
    process: AbstractGaussianProcess, n: int, data_std: Scalar = 1.0, *, ends: Ends = None
) -> Float[Array, " points"]:
    """n equal steps in tau = sigma/(data_std alpha + sigma), from t = 1 to t = 0.

    Descending, shape [n + 1]. For few steps of a flow map, as `angle_grid`. It is t = i/n for `Rectified`, and the
    same noise levels for every other process; a grid of 2n steps has those of n.

    >>> from diffjax import Rectified
    >>> from diffjax.process import line_grid
    >>> print(line_grid(Rectified(), 2).round(4))
    [1.  0.5 0. ]

    Args:
      process: the forward process that the times are of.
      n: number of steps.
      data_std: standard deviation of the data per feature; positive.
      ends: (t_max, t_min); (1, 0) by default.

    Raises:
      ValueError: n is not a positive integer, data_std is not positive, or `ends` do not descend inside [0, 1].

    Source: Frans et al. 2024 (shortcut models, arXiv 2410.12557), section 3.
    """
    check(data_std > 0, f"data_std: must be positive, got {data_std}")
    return _on_clock(process, n, Line(data_std), ends, lambda tau: tau / (1 - tau))


def _on_clock(process, n, coordinates, ends, ratio):
    """Equal steps in the clock of coordinates; `ratio` of the clock is sigma/(alpha data_std)."""
    t_max, t_min = _ends(process, n, (1.0, 0.0) if ends is None else ends)
    start, stop = (coordinates.clock(process, t) for t in (t_max, t_min))
    clock = jnp.linspace(start, stop, n + 1)[1:-1]
    inner = process.time_from_logsnr(-2 * jnp.log(coordinates.data_std * ratio(clock)))
    return _apart(jnp.concatenate([t_max[None], jnp.clip(inner, t_min, t_max), t_min[None]]))


def _ends(process, n, ends):
    """(t_max, t_min) as arrays, after the checks that all grids share."""
    if n < 1:
        raise ValueError(f"n: the number of steps must be a positive integer, got {n!r}")
    if ends is not None and not (np.iterable(ends) and len(tuple(ends)) == 2):
        raise ValueError(f"ends: a pair (t_max, t_min) of times is needed, got {ends!r}")
    t_max, t_min = process.interval()[::-1] if ends is None else ends
    for t in (t_max, t_min):
        check_real("ends", t)
    t_max, t_min = (jnp.asarray(t, jnp.result_type(float) if isinstance(t, float) else None) for t in (t_max, t_min))
    check((t_min >= 0) & (t_min < t_max) & (t_max <= 1), f"ends: must be 1 >= t_max > t_min >= 0, got {(t_max, t_min)}")
    return t_max, t_min


def _finite_logsnr(process, t):
    value = process.logsnr(t)
    check(
        jnp.isfinite(value),
        f"ends: logsnr is infinite at t = {t}, so that no equal steps lead there; end inside process.interval()",
    )
    return value


def _from_logsnr(process, values, t_max, t_min):
    """Times of the given logsnr, with the ends exactly."""
    ts = jnp.clip(process.time_from_logsnr(values), t_min, t_max)
    return _apart(ts.at[0].set(t_max).at[-1].set(t_min))


def _apart(ts):
    """Times [n + 1], checked to descend."""
    if is_concrete(ts):
        check(ts[1:] < ts[:-1], f"n: {ts.size - 1} steps are too many here, for {ts.dtype} times coincide")
    return ts
