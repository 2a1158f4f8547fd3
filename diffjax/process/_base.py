"""Forward processes, from data at t = 0 to noise at t = 1.

    dx = f(x, t) dt + G dw,    G = g(x, t): a number, a diagonal, or a matrix        (Ito, t from 0 to 1)

A class gives f and g. `noise_operator` is G as the linear operator that multiplies an increment of the Brownian path;
`noise_divergence` is div(G G')_i = sum_j d(G G')_ij/dx_j, which the reverse SDE of a state-dependent g needs.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from diffjax._arrays import as_samples, check_real, expand
from diffjax._typing import Sample, Scalar, Time

MAX_LOGSNR = 20.0
"""Times with a larger |logsnr| lie outside `interval`: float32 can hold weights up to about e^20 with enough digits."""


class AbstractProcess(eqx.Module):
    """A forward SDE dx = f(x, t) dt + g(x, t) dw on t in [0, 1], from data at 0 to noise at 1 (Ito).

    A class defines `drift` and `diffusion`; the other methods follow from them, and are there to be overridden.
    """

    @abc.abstractmethod
    def drift(self, x: Sample, t: Time) -> Sample:
        """f(x, t), shape [b, *d], for x [b, *d] and t [] or [b]."""

    @abc.abstractmethod
    def diffusion(self, x: Sample, t: Time) -> Time | Sample:
        """g(x, t): shape [] or [b] where it is one number a sample, [b, *d] where the noise is diagonal.

        For matrices see `SDE` and `AbstractLinearProcess`.
        """

    def interval(self) -> tuple[Scalar, Scalar]:
        """(t_min, t_max), two scalars: where training times, default grids and likelihood stay.

        All of [0, 1], for a process without a logsnr.
        """
        return 0.0, 1.0

    def noise_operator(self, x: Sample, t: Time) -> lx.AbstractLinearOperator:
        """G at (x [b, *d], t [] or [b]) as a linear operator on increments of the shape of x.

        What `diffusion` gives of shape [], [b] or [b, *d] is the diagonal; for vectors x [b, d] one axis more,
        [b, d, d], is a full matrix for each sample.
        """
        x = as_samples("x", x)
        g = jnp.asarray(self.diffusion(x, t))
        return matrix_noise(g, x) if g.ndim == 3 and x.ndim == 2 else diagonal_noise(g, x)

    def noise_divergence(self, x: Sample, t: Time) -> Sample:
        """div(G G') at (x [b, *d], t [] or [b]), [b, *d]: the gradient of g^2 where g is one number a sample.

        Exact, by forward mode: zero where one g serves the whole batch, one gradient where it is one number a sample,
        else a derivative along each feature in turn, as many evaluations of g as there are features.
        """
        x = as_samples("x", x)
        g = jax.eval_shape(self.diffusion, x, t)
        if g.ndim == 0:
            return jnp.zeros_like(x)
        if g.ndim == 1:
            return jax.grad(lambda y: jnp.sum(self.diffusion(y, t) ** 2))(x).astype(x.dtype)
        size = x[0].size

        def add(total, j):
            along = jnp.zeros(size, x.dtype).at[j].set(1).reshape(x.shape[1:])
            along = jnp.broadcast_to(along, x.shape)

            def column(y):
                operator = self.noise_operator(y, t)
                return operator.mv(operator.transpose().mv(along))

            return total + jax.jvp(column, (x,), (along,))[1], None

        return jax.lax.scan(add, jnp.zeros_like(x), jnp.arange(size))[0]


def diagonal_noise(g: Scalar | Float[Array, "..."], x: Sample) -> lx.DiagonalLinearOperator:
    """g of shape [], [b] or [b, *d] as the diagonal operator that diffrax multiplies a path's increment with.

    Args:
      g: the standard deviation of the noise, per root of time.
      x: states [b, *d], for their shape and dtype.

    Returns:
      The operator on increments [b, *d].
    """
    x = as_samples("x", x)
    check_real("g", g, one=False)
    return lx.DiagonalLinearOperator(jnp.broadcast_to(expand(g, x), x.shape).astype(x.dtype))


class MatrixNoise(lx.AbstractLinearOperator):
    """A matrix, [m, m] or [b, m, m], as the operator on increments that acts on axis 1 of x [b, m, *d].

    Its one leaf is the matrix, so that diffrax's stochastic Runge-Kutta methods may stack it over stages.
    """

    matrix: Any
    shape: tuple[int, ...] = eqx.field(static=True)

    def mv(self, vector: Any) -> Any:
        return apply_matrix(self.matrix, vector)

    def transpose(self) -> "MatrixNoise":
        return MatrixNoise(jnp.swapaxes(self.matrix, -1, -2), self.shape)

    def as_matrix(self) -> Any:
        return jax.jacfwd(lambda v: self.mv(v.reshape(self.shape)).ravel())(
            jnp.zeros(self.in_size(), self.matrix.dtype)
        )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.matrix.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


for _structure in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):
    _structure.register(MatrixNoise)(lambda operator: False)  # lineax queries every operator; none is promised


def matrix_noise(g: Float[Array, "*b m m"], x: Sample) -> MatrixNoise:
    """A matrix g of shape [m, m] or [b, m, m] as the operator on increments that acts on axis 1 of x [b, m, *d]."""
    return MatrixNoise(jnp.asarray(g).astype(x.dtype), x.shape)


def apply_matrix(matrix: Float[Array, "*b m m"], x: Sample) -> Sample:
    """A matrix [m, m] or [b, m, m] times axis 1 of x [b, m, *d], the same for each of the features *d."""
    x = as_samples("x", x)
    batch = "b" if matrix.ndim == 3 else ""
    return jnp.einsum(f"{batch}ij,bj...->bi...", matrix, x)
