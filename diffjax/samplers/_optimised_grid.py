"""A sampling grid fitted to a process, a denoiser, a method and a budget, by gradients through the sampler.

    gaps in logsnr = range x softmax(logits) --> ts --> sample(stepper) --> x -------+
    the same noise ------------------------> sample over a fine grid --> reference --+--> mean (x - reference)^2

The ends stay; Adam moves the logits. Compare Sabour et al. 2024 (Align your steps) and Xue et al. 2024 (Accelerating
diffusion sampling with optimized time steps), who minimise bounds where this minimises the error itself.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from diffjax._arrays import check, check_key, check_shape, is_concrete
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, Grid, Key, Scalar
from diffjax.process import AbstractGaussianProcess
from diffjax.process._gaussian import prior
from diffjax.samplers._base import check_grid, sample
from diffjax.samplers._dpm_solver import DPMSolver
from diffjax.samplers._stepper import AbstractStepper, namespace, on_grid


@checked_numbers
def optimise_grid(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    stepper: AbstractStepper,
    ts: Grid,
    *,
    reference_steps: int = 200,
    steps: int = 200,
    learning_rate: Scalar = 0.03,
) -> Float[Array, " points"]:
    """The grid with the ends and number of steps of `ts` at which a stepper comes closest to the exact flow.

    Adam on the mean squared error, over a batch of noise, of the state at ts[-1]. It costs about 3 x `steps` runs of
    the sampler, and its memory is that of a gradient through one.

    Args:
      key: for the noise that the grid is fitted to, from `prior`.
      process: the forward process; its numbers may be traced.
      denoiser: `(xt, t) -> x0_hat`.
      shape: the shape (b, *d) of that noise.
      stepper: a deterministic method.
      ts: the grid to start from, [n + 1], descending, of finite logsnr at both ends.
      reference_steps: of DPM-Solver-3, which stands for the exact flow: this many or a few more, equal in each gap.
      steps: of Adam, each on all the noise.
      learning_rate: Adam's, a scalar.

    Returns:
      The best grid that was seen, [n + 1]; `ts` itself where none was better.

    Raises:
      ValueError: the stepper is stochastic, ts does not descend or is traced or has no logsnr at an end, or a number of
        steps is not a positive integer.
    """
    check_key(key)
    check_shape(shape, 1)
    if stepper.stochastic:
        raise ValueError(f"stepper: only a deterministic one has a path to come close to, got {type(stepper).__name__}")
    if not is_concrete(ts):
        raise ValueError("ts: the grid to start from must be known, got a traced one")
    for name, value in (("reference_steps", reference_steps), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name}: must be a positive integer, got {value!r}")
    grid = check_grid(ts, jnp.result_type(float))
    values = on_grid(type(process).logsnr, process, grid)
    for i in (0, -1):
        finite = namespace(values).isfinite(values[i])
        check(finite, f"ts: logsnr is infinite at t = {grid[i]:.9g}; start and end inside process.interval()")
    xt = prior(key, process, shape)
    fine = _parts(process, grid, values, -(-reference_steps // (grid.size - 1)))
    truth: Any = sample(None, process, denoiser, xt, fine, DPMSolver(3), final_denoise=False)
    numbers = tuple(jnp.asarray(x, xt.dtype) for x in (grid, values, learning_rate))
    return _fit(process, denoiser, stepper, xt, truth, numbers, jnp.arange(steps))


def _parts(process, ts, values, parts):
    """A finer grid through ts, each gap in `parts` of equal logsnr."""
    n, xp = ts.size - 1, namespace(values)
    places, of_ts = np.arange(n * parts + 1), np.arange(n + 1, dtype=values.dtype)
    between = xp.interp((places / parts).astype(values.dtype), of_ts, values)
    fine = on_grid(type(process).time_from_logsnr, process, between)
    return xp.where(places % parts == 0, xp.asarray(ts, fine.dtype)[places // parts], fine)


@eqx.filter_jit
def _fit(process, denoiser, stepper, xt, truth, numbers, counter):
    ts, values, learning_rate = numbers
    first, span = values[0], values[-1] - values[0]
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, counter.size))

    def loss(logits):
        inner = process.time_from_logsnr(first + span * jnp.cumsum(jax.nn.softmax(logits))[:-1])
        grid = jnp.concatenate([ts[:1], inner, ts[-1:]])
        x = sample(None, process, denoiser, xt, grid, stepper, final_denoise=False)
        return jnp.mean((x - truth) ** 2), grid

    def body(carry, _):
        logits, state, least, best = carry
        (error, grid), slope = jax.value_and_grad(loss, has_aux=True)(logits)
        better = (error < least) & jnp.all(grid[1:] < grid[:-1])
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic mixes dtypes
            updates, state = optimiser.update(slope, state)
        logits = optax.apply_updates(logits, updates)
        return (logits, state, jnp.where(better, error, least), jnp.where(better, grid, best)), None

    logits = jnp.log(jnp.diff(values))
    start = (logits, optimiser.init(logits), jnp.asarray(jnp.inf, xt.dtype), ts)
    return jax.lax.scan(body, start, counter)[0][-1]
