"""Restart sampling: a deterministic solve that goes back up, by the forward process's noise, and down again.

    xT --> stepper to `lower` --+--> forward noise to `upper` --> stepper, `steps` steps down --+--> ... --> x0
                                ^---------------------------- times ----------------------------+

Each round carries the marginal of `lower` to itself and shrinks an error made before it, by the forward kernel's
mixing; the solves in between stay as accurate as those of an ODE. Source: Xu et al. 2023 (Restart sampling),
algorithms 1 and 2.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import (
    as_samples,
    check,
    check_key,
    default_index,
    is_concrete,
    normal_like,
    sample_keys,
    time_dtype,
)
from diffjax._typing import Denoiser, GridLike, Index, Key, Sample, Scalar
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess
from diffjax.process._grids import edm_grid
from diffjax.samplers._base import _scan, check_grid, sample
from diffjax.samplers._stepper import AbstractStepper, on_grid, step_weights


class Restart(NamedTuple):
    """One place to restart: times `lower` < `upper` (scalars), and `times` rounds of `steps` steps down."""

    lower: Scalar
    upper: Scalar
    steps: int
    times: int


def sample_with_restarts(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    xt: Sample,
    ts: GridLike,
    stepper: AbstractStepper,
    *,
    restarts: Sequence[Restart],
    index: Index | None = None,
    final_denoise: bool | None = None,
) -> Sample:
    """`sample`, with restarts on the way. A jitted entry point; what it compiles does not grow with `times`.

    Evaluations: those of `sample`, and `steps * times` steps for each restart.

    Args:
      key: for the forward noise, and for stochastic steppers.
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      xt: the state at ts[0], [b, *d], usually `prior(key, process, shape)`.
      ts: a descending grid [n + 1] of times.
      stepper: the method of all solves, such as `Heun()`, the paper's. A multistep one begins anew in each.
      restarts: where and how often; without any it is `sample`. `lower` moves to the nearest point of ts, and the steps
        down from `upper` to it are those of `edm_grid`. Times of a given sigma/alpha come from `time_from_logsnr`.
      index: global indices [b] of the samples (default 0 .. b - 1): their noise depends on nothing else.
      final_denoise: whether to end with D(x, ts[-1]), at one more evaluation; by default as in `sample`.

    Returns:
      x0 [b, *d].

    Raises:
      ValueError: ts does not descend, or a restart leaves the grid, does not go up, or has no steps or times.

    Source: Xu et al. 2023 (Restart sampling for improving generative processes), algorithms 1 and 2.
    """
    check_key(key)
    xt = as_samples("xt", xt)
    if not is_concrete((ts, restarts)):
        raise ValueError("ts, restarts: restarts are placed on a grid whose values are known, got traced ones")
    grid = check_grid(ts, time_dtype(xt))
    index = default_index(xt.shape[0], index)
    placed = sorted(((_place(restart, grid), restart) for restart in restarts), key=lambda pair: pair[0])
    x: Any = xt
    start = 0
    for k, (place, restart) in enumerate(placed):
        path_key, round_key = jax.random.split(jax.random.fold_in(key, k))
        if place > start:
            part = grid[start : place + 1]
            x = sample(path_key, process, denoiser, x, part, stepper, index=index, final_denoise=False)
        x = _restart(round_key, process, denoiser, x, restart, grid[place], stepper, index)
        start = place
    if start < grid.size - 1:
        last_key = jax.random.fold_in(key, len(placed)) if placed else key
        x = sample(last_key, process, denoiser, x, grid[start:], stepper, index=index, final_denoise=False)
    if final_denoise is None:
        final_denoise = stepper.final_denoise
    return _denoise(denoiser, x, jnp.asarray(grid[-1], time_dtype(xt))) if final_denoise else x


def _place(restart, grid):
    """The grid point that a restart goes up from."""
    lower, upper, steps, times = restart
    if not grid[-1] <= lower < upper <= grid[0]:
        raise ValueError(f"restarts: {grid[-1]:.9g} <= lower < upper <= {grid[0]:.9g} on this grid, got {restart}")
    for name, value in (("steps", steps), ("times", times)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"restarts: {name} must be a positive integer, got {restart}")
    place = int(np.argmin(np.abs(grid - lower)))
    if grid[place] >= upper:
        raise ValueError(f"restarts: the grid's point nearest lower, {grid[place]:.9g}, is not below it, got {restart}")
    return place


def _restart(key, process, denoiser, x, restart, lower, stepper, index):
    dtype = time_dtype(x)
    check(process.alpha(restart.upper) > 0, f"restarts: upper must keep some of the data, alpha > 0, got {restart}")
    ts = check_grid(edm_grid(process, restart.steps, ends=(restart.upper, lower)), dtype)
    weights = step_weights(stepper, process, ts)
    stepper.check_denoiser(denoiser, process, ts, weights)
    numbers = (ts, weights, on_grid(type(process).conditional, process, ts[0], ts[-1]))
    numbers = jax.tree.map(lambda w: jnp.asarray(w, dtype), numbers)
    return _rounds(key, process, denoiser, x, stepper, numbers, index, jnp.arange(restart.times))


@eqx.filter_jit
def _rounds(key, process, denoiser, xt, stepper, numbers, index, rounds):
    ts, weights, (x_weight, noise_std) = numbers
    saved_nowhere = jnp.zeros(ts.shape, int), 0

    def body(x, k):
        up_key, down_key = jax.random.split(jax.random.fold_in(key, k))
        x = (x_weight * x + noise_std * normal_like(sample_keys(up_key, index), x)).astype(xt.dtype)
        x, _ = _scan(down_key, denoiser, x, ts, stepper, weights, index, *saved_nowhere, False, False)
        return x, None

    return jax.lax.scan(body, xt, rounds)[0]


@eqx.filter_jit
def _denoise(denoiser, x, t):
    return predict(denoiser, x, t).astype(x.dtype)
