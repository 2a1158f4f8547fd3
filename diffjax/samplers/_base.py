"""The discrete engine: a stepper, a grid, one `lax.scan`.

    ts --> stepper.prepare: weights of every step, float64 on the host
    xT --> scan over (t, s, weights): stepper.step --> ... --> x at ts[-1] --> D(x, ts[-1]) = x0_hat

A stepper says what one step from t to s < t does; everything else (grid, noise by global index, saving, the last
denoise) is here, once. Noise of sample i at step k comes from `fold_in(fold_in(key, k), index_i)`.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import at_once, check_times, default_index, is_concrete, on_host, sample_keys, time_dtype
from diffjax._typing import Denoiser, Index, Key, Sample, Time
from diffjax.process import AbstractGaussianProcess, conditional, logsnr
from diffjax.samplers._calls import jit_leaves, remembered


class AbstractStepper(eqx.Module):
    """One step of a sampling method.

    A member declares what tests then measure, each by a class variable, a field or a property: its `order` of
    convergence (the weak order, where it is stochastic), its `evaluations_per_step` of the denoiser, how many earlier
    steps it looks back on (`history`, 0 for a one-step method), and whether it is `stochastic`.
    """

    @property
    @abc.abstractmethod
    def order(self) -> int:
        """The order of convergence."""

    @property
    @abc.abstractmethod
    def evaluations_per_step(self) -> int:
        """How often a step evaluates the denoiser."""

    @property
    @abc.abstractmethod
    def history(self) -> int:
        """How many earlier steps a step looks back on."""

    @property
    @abc.abstractmethod
    def stochastic(self) -> bool:
        """Whether `step` draws noise."""

    @abc.abstractmethod
    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """Weights of each step: a pytree of [n, ...] for a descending grid ts [n + 1]; see `schedule`."""

    @abc.abstractmethod
    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Any:
        """What the method remembers between steps (None, or a pytree)."""

    @abc.abstractmethod
    def step(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: Any,
    ) -> tuple[Sample, Any]:
        """From xt [b, *d] at t to xs [b, *d] at s < t (scalars).

        `keys` [b] holds a key for each sample, or is None where the method is not stochastic. Returns (xs, state).
        """


class AbstractEmbeddedStepper(AbstractStepper):
    """A one-step method that estimates its own error: the difference from a method of lower order inside it.

    Only diffrax's step-size controllers look at the estimate (`as_diffrax_solver`); `sample` never computes it.
    """

    @abc.abstractmethod
    def step_with_error(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: Any,
    ) -> tuple[Sample, Sample, Any]:
        """As `step`: (xs [b, *d], error [b, *d], state), the error being of the order below."""

    def step(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: Any,
    ) -> tuple[Sample, Any]:
        xs, _, state = self.step_with_error(keys, process, denoiser, xt, t, s, weights, state)
        return xs, state


class Schedule(NamedTuple):
    """A process on a grid ts [n + 1]: float64 NumPy on the host where both are concrete, jnp where one is traced."""

    alpha: Any
    sigma: Any
    half_logsnr: Any
    """l = log(alpha/sigma), [n + 1]."""
    spread: Any
    """sigma_{s'|s}, [n]: the standard deviation that the forward process adds over each gap of the grid."""


def schedule(process: AbstractGaussianProcess, ts: Any) -> Schedule:
    """alpha, sigma, l and the conditional spread of a process on a descending grid ts [n + 1]."""
    return on_grid(_schedule, process, ts)


def _schedule(process, ts):
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    # Where l is infinite so is its derivative: there it is not computed at all, so that gradients stay finite.
    finite = (alpha > 0) & (sigma > 0)
    l = 0.5 * logsnr(process, jnp.where(finite, ts, 0.5 * (ts[0] + ts[-1])))
    l = jnp.where(finite, l, jnp.where(alpha > 0, jnp.inf, -jnp.inf))
    return Schedule(alpha, sigma, l, conditional(process, ts[:-1], ts[1:])[1])


def on_grid(function: Callable[..., Any], process: Any, *arrays: Any) -> Any:
    """function(process, *arrays) in float64 NumPy on the host where all is concrete, in jnp where something is traced.

    How `prepare` should look at a process: weights keep their digits whatever the sampling precision, and a traced
    grid or schedule can be differentiated. `process` may be any pytree, arrays any shape; `function` should be one
    object (not a lambda made anew), for it is compiled once.
    """
    if not is_concrete((process, arrays)):
        return function(process, *(jnp.asarray(array) for array in arrays))
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), on_host():
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) if eqx.is_inexact_array(leaf) else leaf, process)
        arrays = tuple(np.asarray(array, np.float64) for array in arrays)
        return jax.tree.map(np.asarray, _compiled(function, exact, arrays))


@eqx.filter_jit
def _compiled(function, process, arrays):
    return function(process, *arrays)


def namespace(x: Any) -> Any:
    """`numpy` for what `schedule` computed on the host, `jax.numpy` for what is traced."""
    return jnp if isinstance(x, jax.Array) else np


def sample(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    xt: Sample,
    ts: Any,
    stepper: AbstractStepper,
    *,
    index: Index | None = None,
    denoise: bool = True,
    save: Sequence[int] | None = None,
) -> Sample | tuple[Sample, Float[Array, "k b *d"]]:
    """Samples from noise: steps xt through the grid, then denoises. A jitted entry point.

    New values of the key, the process's numbers, the denoiser's parameters and conditions, xt and ts compile nothing;
    a denoiser that is a plain function is static, so keep one object rather than make one per call.

    Args:
      key: for stochastic steppers.
      process: the forward process that the grid's times refer to.
      denoiser: `(xt, t) -> x0_hat`.
      xt: the state at ts[0], [b, *d], usually `prior(key, process, shape)`.
      ts: a descending grid [n + 1] of times, inside `interval(process)`.
      stepper: the method, such as `DDIM()` or `DPMpp2M()`.
      index: global indices [b] of the samples (default 0 .. b - 1): their noise depends on nothing else.
      denoise: whether to end with D(x, ts[-1]), at one more evaluation, rather than with x at ts[-1] itself.
      save: indices into ts of states to keep; none are kept otherwise.

    Returns:
      x0 [b, *d]; with `save`, also the states at those grid points, [k, b, *d], before any final denoise.

    Raises:
      ValueError: ts does not descend or leaves [0, 1], or `save` names a point beyond the grid.
    """
    dtype = time_dtype(xt)
    ts, weights = plan(process, stepper, ts, dtype)
    slots, kept = (None, 0) if save is None else _slots(save, ts.shape[0])
    index = None if index is None else default_index(xt.shape[0], index)
    x, saved = _scan(key, process, denoiser, xt, ts, stepper, weights, index, slots, kept, denoise)
    return x if save is None else (x, saved)


def prepared(stepper: AbstractStepper, process: AbstractGaussianProcess, ts: Any) -> Any:
    """`stepper.prepare(process, ts)` for a grid [n + 1], computed at once inside jit too, where nothing is traced."""
    with at_once(stepper, process, ts):
        return stepper.prepare(process, ts)


def plan(process: Any, stepper: AbstractStepper | None, ts: Any, dtype: Any) -> Any:
    """(ts, weights): a grid ts [n + 1], checked, and the weights [n, ...] of a stepper's steps, if any, in a dtype.

    NumPy on the host where all is concrete, for a jitted function to take as it is, and remembered by value.
    """

    def planned():
        grid = check_grid(ts, dtype)
        cast = lambda w: jnp.asarray(w, dtype) if isinstance(w, jax.Array) else np.asarray(w, dtype)
        return jax.tree.map(cast, (grid, None if stepper is None else prepared(stepper, process, grid)))

    return remembered(planned, plan, process, stepper, ts, dtype)


@jit_leaves
def _scan(key, process, denoiser, xt, ts, stepper, weights, index, slots, kept, denoise):
    index = default_index(xt.shape[0], index)

    def body(carry, inputs):
        x, state, saved = carry
        k, t, s, w, slot = inputs
        keys = sample_keys(jax.random.fold_in(key, k), index) if stepper.stochastic else None
        x, state = stepper.step(keys, process, denoiser, x, t, s, w, state)
        x = x.astype(xt.dtype)
        return (x, state, keep(saved, slot, x)), None

    def keep(saved, slot, x):
        return saved.at[slot].set(x, mode="drop") if kept else saved

    first, rest = (slots[0], slots[1:]) if kept else (None, None)
    saved = keep(jnp.zeros((kept, *xt.shape), xt.dtype), first, xt)
    steps = (jnp.arange(ts.shape[0] - 1), ts[:-1], ts[1:], weights, rest)
    (x, _, saved), _ = jax.lax.scan(body, (xt, stepper.init(process, xt, ts[0]), saved), steps)
    return (denoiser(x, ts[-1]).astype(xt.dtype) if denoise else x), saved


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


def check_grid(ts: Any, dtype: Any) -> Any:
    """A grid as float64 NumPy [n + 1], rounded to the state's dtype first so that weights and denoiser agree on t.

    A traced grid passes as it is.

    Raises:
      ValueError: ts is not one-dimensional with two points or more, does not descend, or leaves [0, 1].
    """
    if not is_concrete(ts):
        return ts
    grid = np.asarray(ts).astype(dtype).astype(np.float64)
    check_times(grid, "descend")
    return grid
