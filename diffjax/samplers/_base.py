"""The discrete engine: a stepper, a grid, one `lax.scan`.

    ts --> step_weights: weights of every step, float64 on the host
    xT --> scan over (t, s, weights): stepper.step --> ... --> x at ts[-1] --> D(x, ts[-1]) = x0_hat

A stepper says what one step from t to s < t does; everything else (grid, noise by global index, saving, the last
denoise) is here, once. Noise of sample i at step k comes from `fold_in(fold_in(key, k), index_i)`.
"""

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffjax._arrays import (
    answered,
    as_samples,
    check_key,
    check_times,
    default_index,
    is_concrete,
    sample_keys,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, FlowMap, Grid, GridLike, Index, Key, Sample, Saved, Weights
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._calls import jit_leaves, remembered
from diffjax.samplers._progress import step_meter
from diffjax.samplers._stepper import AbstractStepper, Step, step_weights


@checked_numbers
def sample(
    key: Key | None,
    process: AbstractGaussianProcess,
    denoiser: Denoiser | FlowMap,
    xt: Sample,
    ts: GridLike,
    stepper: AbstractStepper,
    *,
    index: Index | None = None,
    final_denoise: bool | None = None,
    save: Sequence[int] | None = None,
    progress: bool = False,
) -> Sample | tuple[Sample, Saved]:
    """Samples from noise: steps xt through the grid, then denoises. A jitted entry point.

    New values of the key, the process's numbers, the denoiser's parameters and conditions, xt and ts compile nothing;
    a denoiser that is a plain function is static, so keep one object rather than make one per call.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, data = dj.Cosine(), dj.Gaussian(jnp.array([3.0, -1.0]), 0.01)
    >>> denoiser, ts = dj.exact_denoiser(data, process), dj.logsnr_grid(process, 20)
    >>> xT = dj.prior(jax.random.key(0), process, (1000, 2))
    >>> x0 = dj.sample(None, process, denoiser, xT, ts, dj.DPMpp2M())
    >>> print(x0.mean(0).round(1), x0.std(0).round(1))
    [ 3. -1.] [0.1 0.1]

    Args:
      key: for stochastic steppers; may be None where the stepper is not.
      process: the forward process that the grid's times refer to.
      denoiser: `(xt, t) -> x0_hat`, or for `Jump` a flow map `(xt, t, s) -> A`; `static_threshold(denoiser)` clips
        it, for pictures in [-1, 1].
      xt: the state at ts[0], [b, *d], usually `prior(key, process, shape)`.
      ts: a descending grid [n + 1] of times, inside `process.interval()`.
      stepper: the method, such as `DDIM()` or `DPMpp2M()`.
      index: global indices [b] of the samples (default 0 .. b - 1): their noise depends on nothing else.
      final_denoise: whether to end with D(x, ts[-1]), at one more evaluation, rather than with x at ts[-1] itself; by
        default yes, but for `Jump`, whose last step is the sample, corrected or not.
      save: indices into ts of states to keep; none are kept otherwise.
      progress: whether to show a bar over the steps, which the program then reports to the host as it goes.

    Returns:
      x0 [b, *d]; with `save`, also the states at those grid points, [k, b, *d], before any final denoise.

    Raises:
      ValueError: ts does not descend or leaves [0, 1], `save` names a point beyond the grid, a stochastic stepper is
        given no key, xt is no batch of floating-point samples, the stepper is none, its weights have not a row for each
        step, or the denoiser answers another shape, also one that would broadcast.
    """
    check_stepper(stepper)
    check_noise_key(key, stepper)
    xt = as_samples("xt", xt)
    dtype = time_dtype(xt)
    ts, weights = plan(process, stepper, ts, dtype)
    type(stepper).check_denoiser(stepper, denoiser, process, ts, weights)  # no bound method, which costs 50 us to make
    if final_denoise is None:
        final_denoise = stepper.final_denoise
    slots, kept = (None, 0) if save is None else _slots(save, ts.shape[0])
    index = None if index is None else default_index(xt.shape[0], index)
    x, saved = _scan(key, denoiser, xt, ts, stepper, weights, index, slots, kept, final_denoise, progress)
    return x if save is None else (x, saved)


def plan(
    process: AbstractGaussianProcess | None, stepper: AbstractStepper | None, ts: GridLike, dtype: DTypeLike
) -> tuple[Grid, Weights]:
    """(ts, weights): a grid ts [n + 1], checked, and the weights [n, ...] of a stepper's steps, if any, in a dtype.

    NumPy on the host where all is concrete, for a jitted function to take as it is, and remembered by value.
    """

    def planned():
        grid = check_grid(ts, dtype)
        cast = lambda w: jnp.asarray(w, dtype) if isinstance(w, jax.Array) else np.asarray(w, dtype)
        weights = None if stepper is None or process is None else step_weights(stepper, process, grid)
        check_rows(stepper, weights, jnp.shape(grid)[0] - 1)
        return jax.tree.map(cast, (grid, weights))

    return remembered(planned, plan, process, stepper, ts, dtype)


def check_stepper(stepper: object) -> None:
    """Raises `ValueError` where something else than a stepper is given, such as its class."""
    if not isinstance(stepper, AbstractStepper):
        what = f"the class {stepper.__name__}" if isinstance(stepper, type) else type(stepper).__name__
        raise ValueError(f"stepper: a sampling method such as DDIM() is needed, got {what}")


def check_rows(stepper: AbstractStepper | None, weights: Weights, steps: int) -> None:
    """Raises `ValueError` where what a stepper's `prepare` gave are not arrays [steps, ...]."""
    for leaf in jax.tree.leaves(weights):
        if jnp.shape(leaf)[:1] != (steps,):
            name = type(stepper).__name__
            raise ValueError(f"stepper: {name}.prepare must give arrays [{steps}, ...], got shape {jnp.shape(leaf)}")


def check_noise_key(key: Key | None, stepper: AbstractStepper) -> None:
    """Raises `ValueError` where a stochastic stepper is given no key (a scalar)."""
    if not stepper.stochastic:
        return
    if key is not None:
        check_key(key)
    else:
        name = type(stepper).__name__
        raise ValueError(f"key: one key is needed, such as jax.random.key(0), for {name} draws noise, got None")


@jit_leaves
def _scan(key, denoiser, xt, ts, stepper, weights, index, slots, kept, final_denoise, progress):
    index = default_index(xt.shape[0], index)
    steps = ts.shape[0] - 1
    bar = step_meter(steps, progress)

    def body(carry, inputs):
        x, state, saved, shown = carry
        k, t, s, w, slot = inputs
        keys = sample_keys(jax.random.fold_in(key, k), index) if stepper.stochastic else None
        x, state = stepper.step(denoiser, x, Step(t, s, w, keys), state)
        x = answered("stepper", x, xt.shape).astype(xt.dtype)
        return (x, state, keep(saved, slot, x), bar.step(shown, (k + 1) / steps)), None

    def keep(saved, slot, x):
        return saved.at[slot].set(x, mode="drop") if kept else saved

    first, rest = (slots[0], slots[1:]) if kept else (None, None)
    saved = keep(jnp.zeros((kept, *xt.shape), xt.dtype), first, xt)
    inputs = (jnp.arange(steps), ts[:-1], ts[1:], weights, rest)
    (x, _, saved, shown), _ = jax.lax.scan(body, (xt, stepper.init(xt), saved, bar.init()), inputs)
    bar.close(shown)
    return (predict(denoiser, x, ts[-1]).astype(xt.dtype) if final_denoise else x), saved


def _slots(save, points):
    """Where the state at each grid point is kept: its place in `save`, or one past the end (dropped)."""
    save = [] if save is None else [range(points)[i] if -points <= i < points else _beyond(i, points) for i in save]
    if len(set(save)) != len(save):
        raise ValueError(f"save: a grid point is named twice, got {save}")
    slots = np.full(points, len(save))
    slots[save] = np.arange(len(save))
    return jnp.asarray(slots), len(save)


def _beyond(i, points):
    raise ValueError(f"save: the grid has points 0 .. {points - 1}, got {i}")


def check_grid(ts: GridLike, dtype: DTypeLike) -> Grid:
    """A grid as float64 NumPy [n + 1], rounded to the state's dtype first so that weights and denoiser agree on t.

    A traced grid passes as it is.

    Raises:
      ValueError: ts is not one-dimensional with two points or more, does not descend, or leaves [0, 1].
    """
    if not is_concrete(ts):
        return cast(Grid, ts)
    grid = np.asarray(ts).astype(dtype).astype(np.float64)
    check_times(grid, "descend")
    return grid
