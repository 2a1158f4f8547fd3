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

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from diffjax._arrays import as_samples, at_once, check, expand, is_concrete, nan_unless, time_dtype
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Denoiser, Grid, GridLike, Sample, Saved, Scalar, State, Time
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess, diagonal_noise, logsnr_rate, schedule_derivatives
from diffjax.samplers._base import plan
from diffjax.samplers._batch import check_batch, over_devices, split_batch
from diffjax.samplers._calls import jit_leaves
from diffjax.samplers._solver_checks import AbstractField, check_ends, check_solver, with_denoiser
from diffjax.samplers._stepper_solver import StepperSolver, parts

SavedTimes: TypeAlias = Float[Array, "..."] | Float[np.ndarray, "..."] | Sequence[float | int]
"""Descending times [k]; another shape is refused by name, not by its type."""


class Flow(AbstractField):
    """-u(y, t): the probability flow on the clock r = -t, as diffrax calls it."""

    process: AbstractGaussianProcess
    denoiser: Denoiser

    evaluates: ClassVar[str] = "denoiser"

    def __call__(self, r: Scalar, y: Sample, args: PyTree = None) -> Sample:
        return -velocity(self.process, self.denoiser, y, -r)


class ReverseDrift(AbstractField):
    """The drift of the eta family on the clock r = -t."""

    process: AbstractGaussianProcess
    denoiser: Denoiser
    eta: Scalar

    evaluates: ClassVar[str] = "denoiser"

    def __call__(self, r: Scalar, y: Sample, args: PyTree = None) -> Sample:
        x0_hat = predict(self.denoiser, y, -r).astype(y.dtype)
        alpha, pull = expand(self.process.alpha(-r), y), expand(logsnr_rate(self.process, -r), y)
        flow = _velocity_from(self.process, x0_hat, y, -r)
        return (0.5 * self.eta**2 * pull * (y - alpha * x0_hat) - flow).astype(y.dtype)


class ReverseDiffusion(eqx.Module):
    """eta g(t) as a diagonal operator, on the clock r = -t."""

    process: AbstractGaussianProcess
    eta: Scalar

    def __call__(self, r: Scalar, y: Sample, args: PyTree = None) -> lx.AbstractLinearOperator:
        return diagonal_noise(self.eta * self.process.diffusion(y, -r), y)


def velocity(process: AbstractGaussianProcess, denoiser: Denoiser, xt: Sample, t: Time) -> Sample:
    """u = dx/dt of the probability flow, [b, *d], for xt [b, *d] and t [] or [b]. Source: Song et al. 2021, eq. 13."""
    return _velocity_from(process, predict(denoiser, xt, t), xt, t)


def _velocity_from(process, x0_hat, xt, t):
    alpha, sigma = expand(process.alpha(t), xt), expand(process.sigma(t), xt)
    alpha_dot, sigma_dot = (expand(rate, xt) for rate in schedule_derivatives(process, t))
    return (alpha_dot * x0_hat + sigma_dot * (xt - alpha * x0_hat) / sigma).astype(xt.dtype)


def probability_flow(process: AbstractGaussianProcess, denoiser: Denoiser) -> diffrax.ODETerm:
    """The probability flow ODE as a diffrax term on the clock r = -t, for states [b, *d].

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> process = dj.Rectified()
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)
    >>> term = dj.probability_flow(process, denoiser)
    >>> print(term.vf(-0.75, jnp.ones((1, 2)), None).round(3))  # -dx/dt at t = 0.75
    [[-0.8 -0.8]]

    Source: Song et al. 2021, eq. 13.
    """
    return diffrax.ODETerm(Flow(process, denoiser))


@checked_numbers
def reverse_sde(
    process: AbstractGaussianProcess, denoiser: Denoiser, path: diffrax.AbstractBrownianPath, eta: Scalar = 1.0
) -> diffrax.MultiTerm:
    """The reverse SDE as diffrax terms on the clock r = -t, for states [b, *d]; all share the process's marginals.

    >>> import diffrax
    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> process = dj.VariancePreserving()
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)
    >>> path = dj.per_sample_path(jax.random.key(1), 4, (2,))
    >>> xT = dj.prior(jax.random.key(0), process, (4, 2))
    >>> terms, ts = dj.reverse_sde(process, denoiser, path), dj.uniform_grid(process, 20)
    >>> dj.integrate(terms, xT, ts, solver=diffrax.Euler()).x0.shape
    (4, 2)

    Args:
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      path: the noise, usually `per_sample_path(key, b, shape)`.
      eta: how much noise, a scalar; 0 is the flow, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: Song et al. 2021, eq. 6; Zhang & Chen 2023, eq. 4.
    """
    eta = as_scalar("eta", eta)
    with at_once(eta):
        check(eta >= 0, f"eta: must not be negative, got {eta}")
    drift = diffrax.ODETerm(ReverseDrift(process, denoiser, eta))
    return diffrax.MultiTerm(drift, diffrax.ControlTerm(ReverseDiffusion(process, eta), path))


class Solution(NamedTuple):
    """What `integrate` and `integrate_each` return; the latter's nfe and ok are [b], one for each sample."""

    x0: Float[Array, "b *d"]
    """The state at ts[-1]; NaN where the solve failed."""
    nfe: Int[Array, ""] | Int[Array, " b"]
    """Evaluations of the denoiser or score, those of rejected steps included: for Runge-Kutta methods, one a stage."""
    ok: Bool[Array, ""] | Bool[Array, " b"]
    """Whether the solve reached ts[-1]."""
    saved: Saved | None = None
    """The states at the times `save`; None where none were requested."""


@checked_numbers
def integrate(
    terms: diffrax.AbstractTerm,
    xt: Sample,
    ts: GridLike,
    *,
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int | None = None,
    save: SavedTimes | None = None,
    mesh: Mesh | None = None,
) -> Solution:
    """Solves `probability_flow`, `reverse_sde` or their like by diffrax, from noise to data. A jitted entry point.

    New weights, numbers and grids of the same length compile nothing. A controller sees the batch as one state: all
    samples take the same steps; `integrate_each` lets each take its own.

    >>> import diffrax
    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, xT = dj.VariancePreserving(), jnp.ones((1, 2))
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)  # whose flow does not move
    >>> terms, ts = dj.probability_flow(process, denoiser), dj.uniform_grid(process, 20)
    >>> solution = dj.integrate(terms, xT, ts, solver=diffrax.Heun())
    >>> print(solution.x0.round(2), solution.nfe)
    [[1. 1.]] 40

    Args:
      terms: from `probability_flow` or `reverse_sde` (as those of `as_diffrax_solver`'s stepper, stochastic or not), or
        from `score_flow` or `score_reverse_sde`.
      xt: the state at ts[0], [b, *d].
      ts: a descending grid [n + 1] of times; without a controller it is the steps taken, with one only its ends count.
      solver: any diffrax solver for the terms, or `as_diffrax_solver(stepper)`.
      controller: a diffrax step-size controller, such as `diffrax.PIDController(rtol, atol)`; default: fixed steps.
      adjoint: how gradients pass. The default, `RecursiveCheckpointAdjoint(checkpoints=16)`, keeps at most 16 states
        and one step's activations, whatever the number of steps, and runs a step forward three times (up to n = 152;
        four times up to 968). `RecursiveCheckpointAdjoint(checkpoints=n + 1)` keeps all n states and runs a step
        forward twice; `DirectAdjoint()` keeps every activation. `ForwardMode()` is the fastest where no reverse-mode
        gradient is needed and the network is tiny.
      max_steps: default n for fixed steps, 4096 with a controller.
      save: descending times [k] within the ends of ts at which to keep the state, or None. Between steps it comes from
        the solver's interpolation; between steps of an SDE that has too little noise: name times of the grid.
      mesh: devices to split the batch over, or None. Only at fixed steps: a controller would have to wait for all
        samples at each step. Gradients then pass by `adjoint=diffrax.DirectAdjoint()`; without a mesh the compiler
        splits a placed xt itself, and any adjoint will do.

    Returns:
      `Solution(x0, nfe, ok, saved)`. A failure at run time is a value: ok is False and x0 NaN.

    Raises:
      ValueError: ts or save does not descend; the process is singular at an end where the solver looks at it; adaptive
        steps would draw from a path without a tree, or need an error estimate that the stepper does not have; the
        solver needs Levy areas that the path does not give; a path or a condition is of another batch; the mesh does
        not divide the batch, or has a controller.
    """
    xt = as_samples("xt", xt)
    if mesh is not None and controller is not None:
        raise ValueError(
            "mesh: with a controller devices would wait for each other at each step; use `integrate_each`, whose "
            f"samples take their own steps, or fixed steps; got {type(controller).__name__}"
        )
    setup = _checked(terms, xt, ts, solver, controller, adjoint, max_steps, save)
    return _integrate(terms, xt, *setup, mesh)


@checked_numbers
def integrate_each(
    terms: diffrax.AbstractTerm,
    xt: Sample,
    ts: GridLike,
    *,
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int | None = None,
    save: SavedTimes | None = None,
    mesh: Mesh | None = None,
) -> Solution:
    """`integrate` with a step size for each sample, whose result does not depend on its batch. A jitted entry point.

    All samples run until the slowest is done. Over a mesh each device runs until its own slowest is done: the compiled
    loop holds no collective.

    Args:
      terms: as in `integrate`, [b, *d]. Conditions and keys of paths are sliced with the samples (`per_sample_fields`).
      xt: the state at ts[0], [b, *d].
      ts: descending times; only its two ends count.
      solver: as in `integrate`.
      controller: a step-size controller, such as `diffrax.PIDController(rtol, atol)`.
      adjoint: as in `integrate`.
      max_steps: of each sample, default 4096.
      save: descending times [k] at which to keep the states, or None.
      mesh: devices to split the batch over, such as `jax.make_mesh((8,), ("data",))`, or None.

    Returns:
      `Solution(x0, nfe, ok, saved)` with nfe and ok of shape [b].

    Raises:
      ValueError: as `integrate`; or a condition has not one row for each sample.
    """
    xt = as_samples("xt", xt)
    setup = _checked(terms, xt, ts, solver, controller, adjoint, max_steps, save)
    check_batch(split_batch(terms)[0], xt.shape[0])
    return _integrate_each(terms, xt, *setup, mesh)


_CHECKPOINTED = diffrax.RecursiveCheckpointAdjoint(checkpoints=16)


def _checked(terms, xt, ts, solver, controller, adjoint, max_steps, save):
    """What a solve is made of, looked at before any tracing: (ts, save, solver, controller, adjoint, max_steps)."""
    dtype, fixed = time_dtype(xt), controller is None
    check_solver(terms, solver, controller)
    bound = type(solver) is StepperSolver and fixed and solver.ts is None
    process, stepper = (parts(solver.stepper, terms)[0].process, solver.stepper) if bound else (None, None)
    grid, weights = plan(process, stepper, ts, dtype)
    check_ends(terms, xt, grid, solver, controller, dtype)
    if bound:
        solver = StepperSolver(solver.stepper, weights, grid)
    if save is not None and is_concrete(save):
        save = np.asarray(save).astype(dtype)
    if save is not None and is_concrete((grid, save)):
        inside = (
            save.ndim == 1 and save.size and np.all(np.diff(save) < 0) and grid[0] >= save[0] and save[-1] >= grid[-1]
        )
        check(inside, f"save: descending times from {grid[0]} to {grid[-1]} are needed, got {save}")
    adjoint = _CHECKPOINTED if adjoint is None else adjoint
    max_steps = (grid.shape[0] - 1 if fixed else 4096) if max_steps is None else max_steps
    return grid, save, solver, controller, adjoint, max_steps


@jit_leaves
def _integrate(terms, xt, ts, save, solver, controller, adjoint, max_steps, mesh):
    def run(rows, shared):
        (terms_rows, xt), (terms_rest, *setup) = rows, shared
        return _solve(eqx.combine(terms_rows, terms_rest), xt, *setup)

    rows, rest = split_batch(terms)
    check_batch(rows, xt.shape[0])
    shared = (rest, ts, save, solver, controller, adjoint, max_steps)
    return over_devices(run, mesh, (rows, xt), shared, _layout(-1, save))


@jit_leaves
def _integrate_each(terms, xt, ts, save, solver, controller, adjoint, max_steps, mesh):
    def run(rows, shared):
        def one(row):
            terms_row, x = jax.tree.map(lambda leaf: leaf[None], row)
            solution = _solve(eqx.combine(terms_row, rest), x, *setup)
            saved = None if solution.saved is None else solution.saved[:, 0]
            return solution._replace(x0=solution.x0[0], saved=saved)

        rest, *setup = shared
        return jax.vmap(one, out_axes=out)(rows)

    out = _layout(0, save)
    rows, rest = split_batch(terms)
    return over_devices(run, mesh, (rows, xt), (rest, ts, save, solver, controller, adjoint, max_steps), out)


def _layout(each: int, save: Grid | None) -> Solution:
    """The batch axis of each part of a solution; -1 for one that all samples share."""
    axes: Any = (0, each, each, None if save is None else 1)
    return Solution(*axes)


def _solve(terms, xt, ts, save, solver, controller, adjoint, max_steps):
    rs = -ts
    last = diffrax.SubSaveAt(t1=True)
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=rs[0],
        t1=rs[-1],
        dt0=None,
        y0=xt,
        saveat=diffrax.SaveAt(subs=last if save is None else (last, diffrax.SubSaveAt(ts=-save))),
        stepsize_controller=diffrax.StepTo(rs) if controller is None else controller,
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )
    ok = solution.result == diffrax.RESULTS.successful
    calls: list = []
    per_step, once = count_evaluations(solver, _spied(terms, calls), calls, xt, rs[0], rs[1])
    nfe = jnp.asarray(solution.stats["num_steps"] * per_step + once)
    ys: Any = solution.ys
    ends, saved = (ys, None) if save is None else ys
    x0 = nan_unless(ok, jnp.asarray(ends)[-1])
    return Solution(x0, nfe, ok, None if saved is None else nan_unless(ok, saved))


@checked_numbers
def count_evaluations(
    solver: diffrax.AbstractSolver, terms: diffrax.AbstractTerm, calls: list, y0: State, t0: Scalar, t1: Scalar
) -> tuple[int, int]:
    """How often a solver calls the vector field: (times a step, times at the start), Python integers.

    A Runge-Kutta tableau tells, and so does a stepper. Any other solver is traced, with terms whose field appends to
    `calls` when it runs; y0 is the state, t0 and t1 a step's ends (scalars).
    """
    if type(solver) is StepperSolver:  # `HalfSolver` of one is an instance of it, too, and takes three of its steps
        return solver.stepper.evaluations_per_step, 0
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
    return with_denoiser(terms, lambda called: lambda x, t: calls.append(1) or called(x, t))
