"""What a sampling method says of itself: its weights on a grid, and one step.

process, ts --> ScheduleOnGrid --> stepper.prepare --> weights [n, ...], a row for each step
x at t, row k ------------------> stepper.step -----> x at s < t

class DDIM(AbstractStepper):                                   the whole of a method
    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1

    def prepare(self, grid):
        return Coefficients(*ddim_coefficients(...))           NumPy in float64, or jnp where traced: `grid.xp`

    def step(self, denoiser, x, at, state):
        return at.weights.c_x * x + at.weights.c_x0 * denoiser(x, at.t), None
"""

import abc
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from diffjax._arrays import at_once, is_concrete, on_host, time_dtype
from diffjax._typing import Denoiser, FlowMap, GridLike, Keys, OnGrid, Sample, Scalar, State, Time, Weights
from diffjax.process import AbstractGaussianProcess


class ScheduleOnGrid(NamedTuple):
    """A process on a descending grid of n steps: what the weights of a method are made of."""

    process: AbstractGaussianProcess
    ts: OnGrid
    """The grid, [n + 1]."""
    alpha: OnGrid
    """[n + 1]."""
    sigma: OnGrid
    """[n + 1]."""
    half_logsnr: OnGrid
    """l = log(alpha/sigma), [n + 1]; infinite where alpha or sigma is 0."""
    cond_std: OnGrid
    """sigma_{t|s}, [n]: the standard deviation that the forward process adds over each step, from s up to t."""

    @property
    def xp(self) -> ModuleType:
        """The namespace to compute in: `numpy` (float64, on the host) where all is known, `jax.numpy` where traced."""
        return namespace(self.alpha)

    def evaluate(self, function: Callable[..., PyTree], *arrays: OnGrid | Scalar) -> PyTree:
        """function(process, *arrays) in this namespace; arrays of any shape; see `on_grid`."""
        return jax.tree.map(self.xp.asarray, on_grid(function, self.process, *arrays))


class Step(NamedTuple):
    """One step of a grid, as a method's `step` sees it: a pytree of arrays."""

    t: Time
    """Where it starts, a scalar."""
    s: Time
    """Where it ends, a scalar, s < t."""
    weights: Weights
    """The method's weights: one row of what `prepare` gave."""
    keys: Keys | None = None
    """A key for each sample, [b], for `process.normal_like`; None where the method is not stochastic."""

    def keys_of(self, draw: int | Array) -> Keys:
        """A key for each sample, [b], for the draw of this number, where a step draws more than once."""
        return jax.vmap(jax.random.fold_in, (0, None))(cast(Array, self.keys), draw)


class AbstractStepper(eqx.Module):
    """One step of a sampling method.

    A member declares what tests then measure, each by a class variable, or by a property where it depends on a field:
    its `order` of convergence (the weak order, where it is stochastic), its `evaluations_per_step` of the denoiser, how
    many earlier steps it looks back on (`history`), and whether it draws noise (`stochastic`). Its numbers are scalar
    leaves: `step_weights` gives them to `prepare` in the precision of the grid.
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
    def history(self) -> int:
        """How many earlier steps a step looks back on."""
        return 0

    @property
    def stochastic(self) -> bool:
        """Whether `step` draws noise."""
        return False

    @property
    def final_denoise(self) -> bool:
        """Whether `sample` ends with D(x, ts[-1]) by default."""
        return True

    def check_denoiser(
        self, denoiser: Denoiser | FlowMap, process: AbstractGaussianProcess, ts: GridLike, weights: Weights
    ) -> None:
        """Raises `ValueError` where the method cannot step a denoiser on a grid ts [n + 1]; called before tracing."""

    @abc.abstractmethod
    def prepare(self, grid: ScheduleOnGrid) -> Weights:
        """The weights of each step, a NamedTuple (of NamedTuples) of arrays [n, ...], for a grid of n steps.

        Call it by `step_weights`, which decides between NumPy on the host and jnp.
        """

    def init(self, x: Sample) -> State:
        """What the method remembers between steps: None, or a pytree, for a first state x [b, *d].

        `step` must return it in the same shapes and dtypes: `memory_like` fits what weights are multiplied with.
        """
        return None

    @abc.abstractmethod
    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: State) -> tuple[Sample, State]:
        """From x [b, *d] at `at.t` to (x [b, *d] at `at.s`, state)."""


class AbstractEmbeddedStepper(AbstractStepper):
    """A one-step method that estimates its own error: the difference from a method of lower order inside it.

    Only diffrax's step-size controllers look at the estimate (`as_diffrax_solver`); `sample` never computes it.
    """

    @abc.abstractmethod
    def step_with_error(self, denoiser: Denoiser, x: Sample, at: Step, state: State) -> tuple[Sample, Sample, State]:
        """As `step`: (x [b, *d] at `at.s`, error [b, *d], state), the error being of the order below."""

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: State) -> tuple[Sample, State]:
        x, _, state = self.step_with_error(denoiser, x, at, state)
        return x, state


def memory_like(x: Sample) -> Sample:
    """Zeros of the shape of x [b, *d] in which a method remembers: at least float32."""
    return jnp.zeros(x.shape, jnp.result_type(x, time_dtype(x)))


def step_weights(stepper: AbstractStepper, process: AbstractGaussianProcess, ts: GridLike) -> Weights:
    """The weights of a method's steps on a grid, as `stepper.prepare` gives them: a pytree of [n, ...].

    In float64 NumPy on the host where the stepper's numbers, the process and the grid are concrete, inside jit too; in
    jnp where one of them is traced, so that a grid, a schedule or an eta can be differentiated.

    Args:
      stepper: the method.
      process: the forward process that the grid's times refer to.
      ts: a descending grid of times, [n + 1].
    """
    numbers, rest = eqx.partition(stepper, lambda leaf: eqx.is_inexact_array(leaf) and jnp.ndim(leaf) == 0)
    with at_once(numbers, process, ts):
        grid = schedule_on_grid(process, ts)
        if is_concrete((numbers, process, ts)):
            numbers = jax.tree.map(lambda number: np.asarray(number, np.float64), numbers)
        else:
            grid = ScheduleOnGrid(process, *(jnp.asarray(values) for values in grid[1:]))
        return eqx.combine(numbers, rest).prepare(grid)


def schedule_on_grid(process: AbstractGaussianProcess, ts: GridLike) -> ScheduleOnGrid:
    """alpha, sigma, l and the conditional standard deviation of a process on a descending grid ts [n + 1]."""
    ts = np.asarray(ts, np.float64) if is_concrete((process, ts)) else jnp.asarray(ts)
    return ScheduleOnGrid(process, ts, *on_grid(_schedule, process, ts))


def _schedule(process, ts):
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    # Where l is infinite so is its derivative: there it is not computed at all, so that gradients stay finite.
    finite = (alpha > 0) & (sigma > 0)
    l = 0.5 * process.logsnr(jnp.where(finite, ts, 0.5 * (ts[0] + ts[-1])))
    l = jnp.where(finite, l, jnp.where(alpha > 0, jnp.inf, -jnp.inf))
    return alpha, sigma, l, process.conditional(ts[:-1], ts[1:])[1]


def on_grid(function: Callable[..., PyTree], process: PyTree, *arrays: OnGrid | Scalar) -> PyTree:
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


def namespace(x: object) -> ModuleType:
    """`numpy` for what was computed on the host, `jax.numpy` for what is traced; x of any shape."""
    return jnp if isinstance(x, jax.Array) else np
