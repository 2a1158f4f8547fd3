"""Our steppers as diffrax solvers: its adjoints, step-size control and dense output for our methods.

On the clock r = -t a step from r0 to r1 is the stepper's step from t = -r0 to s = -r1. Its weights are

    bound      prepared once for a grid, in float64 on the host, row k for step k: any stepper, fixed steps
    unbound    prepared inside the step for (t, s): one-step methods, any steps

`integrate` binds to its grid wherever the steps are fixed, so that it takes the very steps that `sample` takes.
Between two states the method is taken to follow a straight line in the process's own coordinates:

    y0 = alpha_0 D + sigma_0 E,   y1 = alpha_1 D + sigma_1 E    -->    y(t) = alpha(t) D + sigma(t) E

which is DDIM's own path.
"""

from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from diffjax._arrays import time_dtype
from diffjax._typing import GridLike, Sample, Scalar, State, Weights
from diffjax.process import AbstractGaussianProcess, PerSamplePath
from diffjax.samplers._stepper import AbstractEmbeddedStepper, AbstractStepper, Step, step_weights


class MarginalInterpolation(diffrax.AbstractLocalInterpolation):
    """y(t) = alpha(t) D + sigma(t) E through two states [b, *d] at r = t0 and t1, as diffrax calls it."""

    t0: Scalar
    t1: Scalar
    y0: PyTree
    y1: PyTree
    process: AbstractGaussianProcess

    def evaluate(self, t0: Scalar, t1: Scalar | None = None, left: bool = True) -> Sample:
        """The state at r = t0, [b, *d]; or its change from t0 to t1."""
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        at = [(self.process.alpha(-r), self.process.sigma(-r)) for r in (self.t0, self.t1, t0)]
        (alpha_0, sigma_0), (alpha_1, sigma_1), (alpha, sigma) = at
        area = alpha_0 * sigma_1 - alpha_1 * sigma_0
        late = jnp.where(area == 0, 1.0, (alpha_0 * sigma - alpha * sigma_0) / jnp.where(area == 0, 1.0, area))
        early = (sigma - late * sigma_1) / sigma_0  # of sigma, not of alpha: exact where alpha_0 or sigma_1 is 0
        return early.astype(self.y0.dtype) * self.y0 + late.astype(self.y0.dtype) * self.y1


class _SolverState(NamedTuple):
    inner: State
    k: Array


class StepperSolver(diffrax.AbstractItoSolver):
    """A stepper as a diffrax solver; made by `as_diffrax_solver`."""

    stepper: AbstractStepper
    weights: Weights = None
    ts: GridLike | None = None

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = MarginalInterpolation

    def order(self, terms: diffrax.AbstractTerm) -> int:
        return self.stepper.order

    def strong_order(self, terms: diffrax.AbstractTerm) -> float:
        return 0.5 if self.stepper.stochastic else self.stepper.order

    def init(self, terms: diffrax.AbstractTerm, t0: Scalar, t1: Scalar, y0: Sample, args: PyTree) -> _SolverState:
        if self.ts is None and self.stepper.history > 0:
            raise ValueError(
                f"stepper: {type(self.stepper).__name__} looks back on earlier steps, so it must know its grid: use "
                "`integrate` without a controller, or `as_diffrax_solver(stepper, process=..., ts=...)` and "
                "`diffrax.StepTo(-ts)`"
            )
        return _SolverState(self.stepper.init(y0), jnp.asarray(0))

    def step(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar,
        t1: Scalar,
        y0: Sample,
        args: PyTree,
        solver_state: _SolverState,
        made_jump: bool | Bool[Array, ""],
    ) -> tuple:
        field, path = parts(self.stepper, terms)
        keys = None if path is None else path.step_keys(t0)
        weights = self._weights(field.process, solver_state.k, -t0, -t1, time_dtype(y0))
        at = Step(-t0, -t1, weights, keys)
        if isinstance(self.stepper, AbstractEmbeddedStepper) and self.estimates:
            y1, error, inner = self.stepper.step_with_error(field.denoiser, y0, at, solver_state.inner)
            error = error.astype(y0.dtype)
        else:
            (y1, inner), error = self.stepper.step(field.denoiser, y0, at, solver_state.inner), None
        y1 = y1.astype(y0.dtype)
        dense = {"y0": y0, "y1": y1, "process": field.process}
        return y1, error, dense, _SolverState(inner, solver_state.k + 1), diffrax.RESULTS.successful

    def func(self, terms: diffrax.AbstractTerm, t0: Scalar, y0: Sample, args: PyTree) -> Sample:
        return terms.vf(t0, y0, args)

    @property
    def estimates(self) -> bool:
        """Whether a step comes with an estimate of its error: an embedded method that is not bound to a grid."""
        return isinstance(self.stepper, AbstractEmbeddedStepper) and not self.stepper.stochastic and self.ts is None

    def _weights(self, process, k, t, s, dtype):
        if self.ts is None:
            weights = step_weights(self.stepper, process, jnp.stack([t, s]))
            return jax.tree.map(lambda w: jnp.asarray(w[0], dtype), weights)
        return jax.tree.map(lambda w: jnp.asarray(w, dtype)[k], self.weights)


def parts(stepper: AbstractStepper, terms: diffrax.AbstractTerm) -> tuple[Any, Any]:
    """The field (process, denoiser) of our terms, and the Brownian path where the stepper is stochastic, else None.

    Raises:
      ValueError: the terms are not those of a denoiser, or a stochastic stepper is given no path, or one without keys.
    """
    unwrapped = lambda term: getattr(term, "term", term)  # diffeqsolve wraps terms to flip time; ours never flips
    terms = unwrapped(terms)
    if stepper.stochastic:
        if not isinstance(terms, diffrax.MultiTerm):
            raise ValueError(f"terms: {type(stepper).__name__} is stochastic: `reverse_sde` is needed, got {terms}")
        drift, noise = (unwrapped(term) for term in terms.terms)
        field, path = drift.vector_field, noise.control
        if not isinstance(path, PerSamplePath):
            raise ValueError(
                f"path: {type(stepper).__name__} draws its own noise, a key for each sample: `per_sample_path` is "
                f"needed, got {type(path).__name__}"
            )
    else:
        field, path = getattr(terms, "vector_field", None), None
    if not hasattr(field, "denoiser"):
        needed = "reverse_sde" if stepper.stochastic else "probability_flow"
        raise ValueError(f"terms: {type(stepper).__name__} needs those of `{needed}`, got {type(terms).__name__}")
    return field, path


def as_diffrax_solver(
    stepper: AbstractStepper, *, process: AbstractGaussianProcess | None = None, ts: GridLike | None = None
) -> StepperSolver:
    """A stepper as a diffrax solver: diffrax's adjoints, events and dense output, our methods, for states [b, *d].

    A deterministic stepper takes the terms of `probability_flow`; a stochastic one those of `reverse_sde`, whose
    per-sample path gives it keys (its own noise law holds, whatever that eta).

    - In `integrate` at fixed steps: any stepper; the result is that of `sample`.
    - Under a step-size controller: steppers that estimate their error, such as `Heun`. Any other deterministic
      one-step method does so inside `diffrax.HalfSolver`, at three times the evaluations.
    - In `diffrax.diffeqsolve` itself: one-step methods at any steps, on the clock r = -t; a multistep method at the
      fixed steps `stepsize_controller=diffrax.StepTo(-ts)` of the grid that it is given here.

    Args:
      stepper: the method.
      process: only with ts: the process that the grid's times refer to.
      ts: a descending grid [n + 1] to bind the method to, its weights computed once, in float64 on the host; only for
        direct use in `diffeqsolve`, which must then take the steps of this grid: nothing checks that it does.

    Raises:
      ValueError: one of process and ts comes without the other, or the stepper is `Jump`, which solves no equation.
    """
    if stepper.order < 1:
        raise ValueError(f"stepper: {type(stepper).__name__} steps a flow map, and solves no equation: use `sample`")
    if (process is None) != (ts is None):
        given, missing = ("ts", "process") if process is None else ("process", "ts")
        raise ValueError(f"{missing}: binding to a grid needs process and ts, got only {given}")
    if process is None or ts is None:
        return StepperSolver(stepper)
    return StepperSolver(stepper, step_weights(stepper, process, ts), ts)
