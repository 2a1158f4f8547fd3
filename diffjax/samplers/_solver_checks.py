"""What is looked at before a solve: does this solver, on these terms, between these times, make sense?"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffjax._arrays import at_once, is_concrete
from diffjax._typing import GridLike, Sample
from diffjax.process import PerSamplePath
from diffjax.samplers._calls import remembered
from diffjax.samplers._stepper_solver import StepperSolver, parts


class AbstractField(eqx.Module):
    """A vector field (r, y, args) -> dy/dr; `evaluates` names the callable in it whose calls are counted as nfe."""

    evaluates: eqx.AbstractClassVar[str]


def with_denoiser(terms: diffrax.AbstractTerm, change: Callable[[Callable], Callable]) -> diffrax.AbstractTerm:
    """The same terms, a pytree, with change(f) for the denoiser (or score) f of each field."""
    is_field = lambda leaf: isinstance(leaf, AbstractField)

    def changed(leaf):
        if not is_field(leaf):
            return leaf
        return eqx.tree_at(lambda field: getattr(field, field.evaluates), leaf, change(getattr(leaf, leaf.evaluates)))

    return jax.tree.map(changed, terms, is_leaf=is_field)


def check_solver(
    terms: diffrax.AbstractTerm, solver: diffrax.AbstractSolver, controller: diffrax.AbstractStepSizeController | None
) -> None:
    """Checks a solver, its terms (a pytree) and a step-size controller (or None for fixed steps) against each other.

    Raises:
      ValueError: adaptive steps on a path without a tree, or by a stepper without an error estimate; a solver whose
        Levy area the path lacks.
    """
    leaves, layout = jax.tree.flatten((terms, solver, controller))
    leaves = [0.0 if isinstance(leaf, jax.Array | np.ndarray) else leaf for leaf in leaves]  # whatever the numbers
    remembered(lambda: _check_solver(*jax.tree.unflatten(layout, leaves)), check_solver, layout, leaves)


def _check_solver(terms, solver, controller):
    is_path = lambda leaf: isinstance(leaf, diffrax.AbstractBrownianPath)
    paths = [leaf for leaf in jax.tree.leaves(terms, is_leaf=is_path) if is_path(leaf)]
    solver = getattr(solver, "solver", solver) if (halved := isinstance(solver, diffrax.HalfSolver)) else solver
    if isinstance(solver, StepperSolver):
        parts(solver.stepper, terms)
        if controller is not None:
            _check_adaptive(solver, type(controller).__name__, halved)
    needed = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    for path in paths:
        given = getattr(path, "levy_area", needed)
        if not issubclass(given, needed):
            right = needed.__name__.removeprefix("Abstract")
            raise ValueError(
                f"solver: {type(solver).__name__} needs the path's Levy area, got levy_area={given.__name__}; make it "
                f"by per_sample_path(..., levy_area=diffrax.{right})"
            )
        anew = isinstance(path, diffrax.UnsafeBrownianPath) or (
            isinstance(path, PerSamplePath) and path.tolerance is None
        )
        if controller is not None and anew:
            raise ValueError(
                "controller: adaptive steps revisit the Brownian path, which needs a tree; make it by "
                f"per_sample_path(..., tolerance=1e-3), got tolerance=None and {type(controller).__name__}"
            )


def _check_adaptive(solver, controller, halved):
    """A stepper's steps can only be chosen by its own error, and only while nothing but the state is carried on."""
    name = type(solver.stepper).__name__
    if solver.stepper.history > 0 or solver.stepper.stochastic or solver.ts is not None:
        why = (
            "looks back on earlier steps"
            if solver.stepper.history
            else "draws noise anew at each step"
            if solver.stepper.stochastic
            else "is bound to a grid"
        )
        raise ValueError(
            f"controller: {name} {why}, so its steps are fixed: leave the controller out, and ts is the steps taken; "
            f"got {controller}"
        )
    if not (solver.estimates or halved):
        raise ValueError(
            f"controller: {name} does not estimate its error; use a stepper that does, such as Heun(), or "
            f"diffrax.HalfSolver(as_diffrax_solver({name}())); got {controller}"
        )


def check_ends(
    terms: diffrax.AbstractTerm,
    xt: Sample,
    ts: GridLike,
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController | None,
    dtype: DTypeLike,
) -> None:
    """Checks that the terms are finite at the ends of ts [n + 1] where the solver evaluates them, for xt [b, *d].

    Only the ends of time itself, 0 and 1, can be singular: sigma' of VP is infinite at 0, g of Rectified at 1.

    Raises:
      ValueError: they are not; the message names the end.
    """
    if not is_concrete((terms, xt, ts)):
        return
    first, last = _looks_at_ends(solver, controller)
    ends = [t for t, looked, end in ((ts[0], first, 1.0), (ts[-1], last, 0.0)) if looked and t == end]
    for t in ends:
        by = (_without_denoisers(terms), xt.shape, dtype, float(t))
        if not remembered(lambda t=t: _is_finite(terms, xt, t, dtype), check_ends, *by):
            process = _fields(terms)[0].process
            with at_once(process):
                low, high = (float(end) for end in process.interval())
            raise ValueError(
                f"ts: {type(process).__name__} is singular at its end t = {t:g}, where {type(solver).__name__} "
                f"evaluates it; stay inside process.interval() = ({low:.3g}, {high:.3g})"
            )


def _without_denoisers(terms):
    """What the values of terms consist of, but for denoisers, scores and Brownian paths."""
    fields = [getattr(term, "vector_field", term) for term in getattr(terms, "terms", (terms,))]
    silent = lambda f: (type(f), {k: v for k, v in vars(f).items() if k != f.evaluates})
    return [silent(f) if isinstance(f, AbstractField) else f for f in fields]


def _is_finite(terms, xt, t, dtype):
    if not _fields(terms):  # terms of the user's own
        return True
    quiet = with_denoiser(terms, lambda called: _zero)
    return bool(_finite(quiet, jnp.ones_like(xt[:1]), jnp.asarray(-t, dtype)))


def _zero(x, t):
    return jnp.zeros_like(x)


@eqx.filter_jit
def _finite(terms, x, r):
    values = terms.vf(r, x, None)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(values)]))


def _looks_at_ends(solver, controller):
    """Whether a solver evaluates the terms at the first time, and at the last."""
    if isinstance(solver, StepperSolver):  # its weights are finite at both; a controller looks at the first
        return controller is not None, False
    tableau: Any = getattr(solver, "tableau", None)
    if isinstance(solver, diffrax.Euler):
        return True, False
    last = not isinstance(solver, diffrax.AbstractERK) or bool(np.any(np.asarray(tableau.c) == 1))
    return True, last


def _fields(terms):
    is_field = lambda leaf: isinstance(leaf, AbstractField)
    return [leaf for leaf in jax.tree.leaves(terms, is_leaf=is_field) if is_field(leaf)]
