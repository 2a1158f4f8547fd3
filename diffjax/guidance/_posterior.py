"""What the posterior methods share: y = A(x0) + std n, n ~ N(0, I), is known of x0.

By Tweedie's formula, with J the denoiser's Jacobian and C = (sigma^2/alpha) J = Cov[x0 | xt],

    E[x0 | xt, y] = D + (sigma^2/alpha) grad log p(y | xt),     p(y | xt) ~ N(A(D), S)
    guided D      = D + C A' S^-1 (y - A(D))                    S held fixed in the gradient

| method     | S                | before A' S^-1                       | evaluations                  |
| dps        | std^2 I          | C                                    | 1 and its vjp                |
| pigdm      | r^2 A A' + std^2 | C                                    | 1 and its vjp                |
| tmpd       | A C A' + std^2   | C                                    | 1 and a vjp per CG iteration |
| proximal   | r^2 A A' + std^2 | r^2, so nothing is differentiated    | 1                            |

r^2 is a guess of the variance of x0 given xt. Systems are solved in units of std, (I + K/std^2) w = residual/std, by
conjugate gradients, each sample's its own. For an A that is not linear, A' is its derivative at D.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array
from typing_extensions import TypeAliasType

from diffjax._arrays import as_numbers, as_samples, check, expand, values_at_once
from diffjax._typing import Denoiser, PerSample, Sample, Scalar, Time
from diffjax.guidance._base import AbstractGuide, per_sample
from diffjax.operators import Linearised, linearise
from diffjax.operators._base import Observation, Operator
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess

CONJUGATE_GRADIENTS = lx.CG(rtol=1e-5, atol=1e-5, max_steps=50)
"""The default solver of methods whose covariance is assumed. Where max_steps stops it, its last iterate is used."""

ObservationLike = TypeAliasType("ObservationLike", Array | np.ndarray | list | tuple)
"""What was observed, as an array or in lists, [b, *m] or [1, *m]; `observation` reads it."""


class AbstractPosterior(AbstractGuide):
    """A denoiser that knows of y: [b, *m], of which each sample has its row, or [1, *m] for all."""

    process: AbstractGaussianProcess
    denoiser: Denoiser
    operator: Operator
    y: Array

    def per_sample_fields(self) -> tuple[str, ...]:
        """The names of its fields that have one row a sample, [b, ...]."""
        numbers = (name for name in super().per_sample_fields() if name != "y")
        return (*numbers, *(("y",) if self.y.shape[0] > 1 else ()))


class Observed(NamedTuple):
    """A denoiser and an operator near xt [b, *d]; observations are [b, *m]."""

    x0_hat: Sample
    covariance: Callable[[Sample], Sample]
    """u [b, *d] -> C u, [b, *d], by the denoiser's vjp."""
    operator: Linearised
    residual: Observation
    """y - A(x0_hat), [b, *m]."""


def observation(y: ObservationLike) -> Array:
    """y as an array [b, *m], or [1, *m] for all samples.

    Raises:
      ValueError: it has no numbers, or is an array of others than floating-point ones.
    """
    return as_samples("y", as_numbers("y", y, whole=True, finite=False) if isinstance(y, list | tuple) else y)


def observe(
    process: AbstractGaussianProcess, denoiser: Denoiser, operator: Operator, y: Array, xt: Sample, t: Time
) -> Observed:
    """The denoiser at xt [b, *d] and t [] or [b], with what it leaves of y [b, *m] or [1, *m] unexplained."""
    xt = as_samples("xt", xt)
    x0_hat, pull = jax.vjp(lambda x: predict(denoiser, x, t).astype(x.dtype), xt)
    alpha, sigma = process.alpha(t), process.sigma(t)
    # At alpha = 0, xt says nothing of x0 and a guided denoiser is the plain one: J = 0.
    gain = jnp.where(alpha > 0, sigma**2 / jnp.where(alpha > 0, alpha, 1.0), 0.0)
    gain = expand(gain, xt).astype(xt.dtype)
    return Observed(x0_hat, lambda u: gain * pull(u)[0], *compare(operator, y, x0_hat))


def compare(operator: Operator, y: Array, x0_hat: Sample) -> tuple[Linearised, Array]:
    """The operator near x0_hat [b, *d], and the residual y - A(x0_hat), [b, *m], for y [b, *m] or [1, *m].

    Raises:
      ValueError: y has another shape.
    """
    near = linearise(operator, x0_hat)
    shape = near.value.shape
    if y.shape[1:] != shape[1:] or y.shape[0] not in (1, shape[0]):
        raise ValueError(f"y: shape {shape} is needed, that of A(x0), or (1, {str(shape[1:])[1:]}, got {y.shape}")
    return near, y.astype(x0_hat.dtype) - near.value


def whiten(
    covariance: Callable[[Observation], Observation],
    residual: Observation,
    std: PerSample,
    solver: lx.AbstractLinearSolver,
) -> Observation:
    """(covariance + std^2 I)^-1 residual, all [b, *m]; covariance, on [b, *m], is positive and of each sample alone."""
    std = expand(std, residual).astype(residual.dtype)

    def solve(matrix, rhs):
        return jax.vmap(lambda one: _solve_one(matrix, one, solver), axis_name="samples")(rhs)

    # Implicit derivatives, forwards and backwards, whatever loop the solver runs.
    apply = lambda w: w + covariance(w) / std**2
    return jax.lax.custom_linear_solve(apply, residual / std, solve, symmetric=True) / std


def _solve_one(matrix, rhs, solver):
    """One sample's system, [*m], inside a vmap: its product is taken with all others', [b, *m], since denoiser and
    operator see their whole batch; so no sample's iterations depend on another's."""

    def apply(w):
        every = jax.lax.all_gather(w, "samples")
        return matrix(every)[jax.lax.axis_index("samples")]

    operator = lx.FunctionLinearOperator(apply, jax.eval_shape(lambda: rhs), lx.positive_semidefinite_tag)
    return solver.compute(solver.init(operator, {}), rhs, {})[0]


def isotropic(process: AbstractGaussianProcess, data_std: Scalar, x: Sample, t: Time) -> Array:
    """r^2 = c sigma^2/(c alpha^2 + sigma^2), [] or [b, 1, ...]: the variance of x0 given xt for N(0, c I) data.

    x [b, *d] gives axes and dtype; c = data_std^2, a scalar.
    """
    alpha, sigma, c = process.alpha(t), process.sigma(t), data_std**2
    return expand(c * sigma**2 / (c * alpha**2 + sigma**2), x).astype(x.dtype)


@values_at_once
def positive(name: str, value: Any) -> Array:
    """A number as a leaf, scalar or [b]; ValueError where it has another shape or is not positive."""
    value = per_sample(name, value)
    check((value > 0) & (value < jnp.inf), f"{name}: must be positive, got {value}")
    return value
