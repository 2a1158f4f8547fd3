"""The continuous engine: the same denoiser as an ODE or SDE for diffrax, and our steppers as diffrax solvers.

diffrax is given the clock r = -t, which increases from -1 (noise) to 0 (data): its stochastic Runge-Kutta solvers are
wrong when time falls, and unlike 1 - t it is exact in float32 near the data. With (alpha', sigma') the rates, D the
denoiser and eta >= 0 (0 the probability flow, 1 the reverse SDE):

    u(x, t) = alpha' D + sigma' (x - alpha D)/sigma                                 dx/dt of the flow
    dy = [ -u + (eta^2/2) g^2 score ] dr + eta g dw,      g^2 score = lambda' (y - alpha D)

    probability_flow -+                                                      +-> Solution(x0, nfe, ok)
    reverse_sde ------+--> terms --> integrate (diffrax.diffeqsolve, ts) ----+
    per_sample_path --+                  ^-- any diffrax solver, or as_diffrax_solver(stepper)

Source: Song et al. 2021, eqs. 6 and 13; Zhang & Chen 2023, eq. 4 (the family in eta).
"""

from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffjax._arrays import as_scalar, check, expand, time_dtype
from diffjax._typing import Denoiser, Sample, Scalar
from diffjax.process import AbstractGaussianProcess, PerSamplePath, diagonal_noise, logsnr_rate, rates
from diffjax.samplers._base import AbstractStepper, check_grid


class AbstractField(eqx.Module):
    """A vector field (r, y, args) -> dy/dr; `evaluates` names the callable in it whose calls are counted as nfe."""

    evaluates: eqx.AbstractClassVar[str]


class Flow(AbstractField):
    """-u(y, t): the probability flow on the clock r = -t, as diffrax calls it."""

    process: AbstractGaussianProcess
    denoiser: Any

    evaluates: ClassVar[str] = "denoiser"

    def __call__(self, r: Any, y: Sample, args: Any = None) -> Sample:
        return -velocity(self.process, self.denoiser, y, -r)


class ReverseDrift(AbstractField):
    """The drift of the eta family on the clock r = -t."""

    process: AbstractGaussianProcess
    denoiser: Any
    eta: Scalar

    evaluates: ClassVar[str] = "denoiser"

    def __call__(self, r: Any, y: Sample, args: Any = None) -> Sample:
        x0_hat = self.denoiser(y, -r).astype(y.dtype)
        alpha, pull = expand(self.process.alpha(-r), y), expand(logsnr_rate(self.process, -r), y)
        flow = _velocity_from(self.process, x0_hat, y, -r)
        return (0.5 * self.eta**2 * pull * (y - alpha * x0_hat) - flow).astype(y.dtype)


class ReverseDiffusion(eqx.Module):
    """eta g(t) as a diagonal operator, on the clock r = -t."""

    process: AbstractGaussianProcess
    eta: Scalar

    def __call__(self, r: Any, y: Sample, args: Any = None) -> Any:
        return diagonal_noise(self.eta * self.process.diffusion(y, -r), y)


def velocity(process: AbstractGaussianProcess, denoiser: Denoiser, xt: Sample, t: Any) -> Sample:
    """u = dx/dt of the probability flow, [b, *d], for xt [b, *d] and t [] or [b]. Source: Song et al. 2021, eq. 13."""
    return _velocity_from(process, denoiser(xt, t), xt, t)


def _velocity_from(process, x0_hat, xt, t):
    alpha, sigma = expand(process.alpha(t), xt), expand(process.sigma(t), xt)
    alpha_dot, sigma_dot = (expand(rate, xt) for rate in rates(process, t))
    return (alpha_dot * x0_hat + sigma_dot * (xt - alpha * x0_hat) / sigma).astype(xt.dtype)


def probability_flow(process: AbstractGaussianProcess, denoiser: Denoiser) -> diffrax.ODETerm:
    """The probability flow ODE as a diffrax term on the clock r = -t, for states [b, *d].

    Source: Song et al. 2021, eq. 13.
    """
    return diffrax.ODETerm(Flow(process, denoiser))


def reverse_sde(
    process: AbstractGaussianProcess, denoiser: Denoiser, path: diffrax.AbstractBrownianPath, eta: Scalar = 1.0
) -> diffrax.MultiTerm:
    """The reverse SDE as diffrax terms on the clock r = -t, for states [b, *d]; all share the process's marginals.

    Args:
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      path: the noise, usually `per_sample_path(key, b, shape)`.
      eta: how much noise, a scalar; 0 is the flow, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: Song et al. 2021, eq. 6; Zhang & Chen 2023, eq. 4.
    """
    eta = as_scalar(eta)
    check(eta >= 0, f"eta: must not be negative, got {eta}")
    drift = diffrax.ODETerm(ReverseDrift(process, denoiser, eta))
    return diffrax.MultiTerm(drift, diffrax.ControlTerm(ReverseDiffusion(process, eta), path))


class Solution(NamedTuple):
    """What `integrate` returns."""

    x0: Float[Array, "b *d"]
    """The state at ts[-1]; NaN where the solve failed."""
    nfe: Int[Array, ""]
    """Evaluations of the denoiser or score, those of rejected steps included: for Runge-Kutta methods, one a stage."""
    ok: Bool[Array, ""]
    """Whether the solve reached ts[-1]."""


def integrate(
    terms: Any,
    xt: Sample,
    ts: Any,
    *,
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int | None = None,
) -> Solution:
    """Solves `probability_flow`, `reverse_sde` or their like by diffrax, from noise to data. A jitted entry point.

    New weights, numbers and grids of the same length compile nothing.

    Args:
      terms: from `probability_flow` or `reverse_sde` (as those of `as_diffrax_solver`'s stepper, stochastic or not), or
        from `score_flow` or `score_reverse_sde`.
      xt: the state at ts[0], [b, *d].
      ts: a descending grid [n + 1] of times; without a controller it is the steps taken, with one only its ends count.
      solver: any diffrax solver for the terms, or `as_diffrax_solver(stepper)`.
      controller: a diffrax step-size controller, such as `diffrax.PIDController(rtol, atol)`; default: fixed steps.
      adjoint: how gradients pass; the default, `RecursiveCheckpointAdjoint`, keeps reverse mode cheap in memory.
        `diffrax.ForwardMode()` is the fastest where no reverse-mode gradient is needed and the network is tiny.
      max_steps: default n for fixed steps, 4096 with a controller.

    Returns:
      `Solution(x0, nfe, ok)`. A failure at run time is a value: ok is False and x0 NaN.

    Raises:
      ValueError: ts does not descend, or adaptive steps would draw from a path without a tree.
    """
    dtype = time_dtype(xt)
    ts = jnp.asarray(check_grid(ts, dtype), dtype)
    if controller is not None and _draws_each_step_anew(terms):
        raise ValueError(
            "controller: adaptive steps revisit the Brownian path, which needs a tree; "
            f"make it by per_sample_path(..., tolerance=1e-3), got tolerance=None and {type(controller).__name__}"
        )
    steps = ts.shape[0] - 1
    max_steps = (steps if controller is None else 4096) if max_steps is None else max_steps
    if adjoint is None:
        adjoint = diffrax.RecursiveCheckpointAdjoint(checkpoints=steps + 1 if controller is None else None)
    return _integrate(terms, xt, ts, solver, controller, adjoint, max_steps)


@eqx.filter_jit
def _integrate(terms, xt, ts, solver, controller, adjoint, max_steps):
    rs = -ts
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=rs[0],
        t1=rs[-1],
        dt0=None,
        y0=xt,
        stepsize_controller=diffrax.StepTo(rs) if controller is None else controller,
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )
    ok = solution.result == diffrax.RESULTS.successful
    calls: list = []
    per_step, once = count_evaluations(solver, _spied(terms, calls), calls, xt, rs[0], rs[1])
    nfe = jnp.asarray(solution.stats["num_steps"] * per_step + once)
    return Solution(jnp.where(ok, jnp.asarray(solution.ys)[-1], jnp.nan), nfe, ok)


def _draws_each_step_anew(terms):
    paths = jax.tree.leaves(terms, is_leaf=lambda leaf: isinstance(leaf, PerSamplePath | diffrax.UnsafeBrownianPath))
    return any(
        isinstance(path, diffrax.UnsafeBrownianPath) or (isinstance(path, PerSamplePath) and path.tolerance is None)
        for path in paths
    )


def count_evaluations(solver: diffrax.AbstractSolver, terms: Any, calls: list, y0: Any, t0: Any, t1: Any) -> Any:
    """How often a solver calls the vector field: (times a step, times at the start), Python integers.

    A Runge-Kutta tableau tells. Any other solver is traced, with terms whose field appends to `calls` when it runs;
    y0 is the state, t0 and t1 a step's ends (scalars).
    """
    tableau: Any = getattr(solver, "tableau", None)
    if hasattr(tableau, "b_sol"):
        first_is_last = bool(getattr(tableau, "fsal", False))
        return len(tableau.b_sol) - first_is_last, int(first_is_last)
    state = jax.eval_shape(lambda y: solver.init(terms, t0, t1, y, None), y0)
    once = len(calls)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    jax.eval_shape(lambda y, state: solver.step(terms, t0, t1, y, None, state, False)[0], y0, state)
    return len(calls) - once, once


def _spied(terms, calls):
    """The same terms, whose denoiser (or score) notes in `calls` that it was called."""

    def is_field(leaf):
        return isinstance(leaf, AbstractField)

    def spy(leaf):
        if not is_field(leaf):
            return leaf
        called = getattr(leaf, leaf.evaluates)
        noting = lambda x, t: calls.append(1) or called(x, t)
        return eqx.tree_at(lambda field: getattr(field, field.evaluates), leaf, noting)

    return jax.tree.map(spy, terms, is_leaf=is_field)


class _SolverState(NamedTuple):
    inner: Any
    r_before: Any
    first: Any


class StepperSolver(diffrax.AbstractItoSolver):
    """A stepper as a diffrax solver; made by `as_diffrax_solver`."""

    stepper: AbstractStepper

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        return self.stepper.order

    def strong_order(self, terms: Any) -> float:
        return 0.5 if self.stepper.stochastic else self.stepper.order

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> _SolverState:
        field, _ = self._parts(terms)
        # Before the first step, a step as long as this one is imagined; `first` keeps its weights from being used.
        return _SolverState(self.stepper.init(field.process, y0, -t0), t0 - (t1 - t0), jnp.asarray(True))

    def step(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any) -> Any:
        field, path = self._parts(terms)
        weights = self._weights(field.process, solver_state, -t0, -t1, y0.dtype)
        keys = None if path is None else _step_keys(path, t0)
        y1, inner = self.stepper.step(keys, field.process, field.denoiser, y0, -t0, -t1, weights, solver_state.inner)
        y1 = y1.astype(y0.dtype)
        state = _SolverState(inner, t0, jnp.asarray(False))
        return y1, None, {"y0": y0, "y1": y1}, state, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def _parts(self, terms):
        if not self.stepper.stochastic:
            return _unwrapped(terms).vector_field, None
        drift, noise = (_unwrapped(term) for term in _unwrapped(terms).terms)
        return drift.vector_field, noise.control

    def _weights(self, process, state, t, s, dtype):
        def last(*times):
            prepared = self.stepper.prepare(process, jnp.stack(times))
            return jax.tree.map(lambda w: jnp.asarray(w[-1], dtype), prepared)

        if self.stepper.history == 0:
            return last(t, s)
        # Not a select: the imagined step before the first may lie beyond t = 1, where gradients are NaN.
        return jax.lax.cond(state.first, lambda: last(t, s), lambda: last(-state.r_before, t, s))


def _unwrapped(term):
    """diffeqsolve wraps terms to flip time; ours never flips."""
    return getattr(term, "term", term)


def _step_keys(path, r):
    """A key for each sample and step, from the path's own keys and the bits of the time."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(r, jnp.float32), jnp.uint32)
    return jax.vmap(jax.random.fold_in, (0, None))(path.keys, bits)


def as_diffrax_solver(stepper: AbstractStepper) -> StepperSolver:
    """A stepper as a diffrax solver, for `integrate` at fixed steps: diffrax's adjoints and events, our methods.

    A deterministic stepper takes the terms of `probability_flow`; a stochastic one those of `reverse_sde`, whose
    per-sample path gives it keys (its own noise law holds, whatever that eta). Weights are computed step by step in
    the state's precision, for states [b, *d].

    Raises:
      ValueError: the stepper looks back on more than one earlier step.
    """
    if stepper.history > 1:
        raise ValueError(f"stepper: at most one earlier step can be looked back on here, got {type(stepper).__name__}")
    return StepperSolver(stepper)
