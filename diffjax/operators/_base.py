"""Linear operators and their adjoints, <A x, y> = <x, A' y>; other operators by their derivative at a point.

An operator is a callable x [b, *d] -> y [b, *m] that treats each sample alone. A linear one of ours is an
`AbstractLinearOperator`, whose method `adjoint` transposes its program unless the class has one of its own.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from typing_extensions import TypeAliasType

from diffjax._arrays import answered, as_samples, check, check_key, check_shape
from diffjax._numbers import checked_numbers
from diffjax._typing import Key, Sample

Observation = TypeAliasType("Observation", Float[Array, "b *m"])
Operator = TypeAliasType("Operator", Callable[[Sample], Observation])
"""x [b, *d] -> A(x) [b, *m], each sample alone: an `AbstractLinearOperator` or a plain function."""


class AbstractLinearOperator(eqx.Module):
    """A linear map of each sample: x [b, *d] -> A x [b, *m], in the dtype of x."""

    @abc.abstractmethod
    def __call__(self, x: Sample) -> Observation:
        """A x, [b, *m], for x [b, *d].

        Raises:
          ValueError: a shape does not fit, or a number is not floating-point.
        """

    @checked_numbers
    def adjoint(self, y: Observation, shape: tuple[int, ...]) -> Sample:
        """A' y, [b, *shape], for y [b, *m] and the shape [*d] of one sample x.

        Raises:
          ValueError: y has not the shape of A x.
        """
        return transpose(self, y, shape)


@checked_numbers
def transpose(operator: Operator, y: Observation, shape: tuple[int, ...]) -> Sample:
    """A' y of a linear function A, by `jax.linear_transpose`: the adjoint of one that is no `AbstractLinearOperator`.

    >>> import jax.numpy as jnp
    >>> from diffjax.operators import transpose
    >>> print(transpose(lambda x: 2 * x[:, :1], jnp.ones((1, 1)), (3,)))
    [[2. 0. 0.]]

    Args:
      operator: x [b, *d] -> A x [b, *m], linear.
      y: [b, *m].
      shape: of one sample x, [*d].

    Returns:
      A' y, [b, *d].

    Raises:
      ValueError: y has not the shape of A x, or the operator is not linear.
    """
    y, like = check_observation(operator, y, shape)
    try:
        return jax.linear_transpose(operator, like)(y)[0]
    except NotImplementedError as error:
        raise ValueError(f"operator: {operator} is not linear and has no adjoint ({error})") from None


def check_observation(
    operator: Operator, y: Observation, shape: tuple[int, ...]
) -> tuple[Observation, jax.ShapeDtypeStruct]:
    """y [b, *m] as an array of floats, and the shape and dtype of its x [b, *shape].

    Raises:
      ValueError: y has not the shape of A x.
    """
    y = as_samples("y", y)
    like = jax.ShapeDtypeStruct((y.shape[0], *shape), y.dtype)
    needed = jax.eval_shape(operator, like).shape
    if needed != y.shape:
        raise ValueError(f"y: shape {needed} is needed, that of A x for x of shape {like.shape}, got {y.shape}")
    return y, like


def observed(operator: Operator, x: Sample) -> Observation:
    """A(x), [b, *m], for x [b, *d].

    Raises:
      ValueError: the operator does not return floating-point numbers with one row a sample.
    """
    return answered("operator", operator(x), (x.shape[0], ...))


class Linearised(NamedTuple):
    """An operator near a point x [b, *d]; made by `linearise`. Arrays of shape [b, *m] are observations."""

    value: Observation
    """A(x), [b, *m]."""
    push: Callable[[Sample], Observation]
    """u [b, *d] -> A'(x) u, [b, *m]."""
    pull: Callable[[Observation], Sample]
    """v [b, *m] -> the adjoint of push, [b, *d]."""


def linearise(operator: Operator, x: Sample) -> Linearised:
    """A(x) with its derivative at x and the adjoint of that; a linear operator is its own derivative.

    >>> import jax.numpy as jnp
    >>> from diffjax import operators
    >>> near = operators.linearise(lambda x: x**2, jnp.array([[1.0, 3.0]]))
    >>> print(near.value, near.push(jnp.ones((1, 2))))
    [[1. 9.]] [[2. 6.]]

    Args:
      operator: x [b, *d] -> [b, *m], an `AbstractLinearOperator` or any function that JAX can differentiate.
      x: [b, *d].

    Returns:
      A(x) [b, *m], and the two maps.

    Raises:
      ValueError: the operator does not return floating-point numbers with one row a sample.
    """
    if isinstance(operator, AbstractLinearOperator):
        return Linearised(observed(operator, x), operator, lambda v: operator.adjoint(v, x.shape[1:]))
    x = as_samples("x", x)
    value, pull = jax.vjp(lambda x: observed(operator, x), x)
    return Linearised(value, lambda u: jax.jvp(operator, (x,), (u,))[1], lambda v: pull(v)[0])


@checked_numbers
def dot_product_test(key: Key, operator: Operator, shape: tuple[int, ...]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(<A x, y>, <x, A' y>), two scalars, for normal x and y; they must agree.

    >>> import jax
    >>> from diffjax import operators
    >>> ax_y, x_aty = operators.dot_product_test(jax.random.key(0), operators.Downsample((2,)), (4,))
    >>> abs(float(ax_y - x_aty)) < 1e-5
    True

    Args:
      key: for x and y.
      operator: an `AbstractLinearOperator`, or any linear function x [b, *d] -> [b, *m].
      shape: of one sample x, [*d].

    Raises:
      ValueError: they differ by more than rounding, sqrt(eps) |A x| |y|, or A' y has not the shape of x. Under a trace
        the values are not checked.
    """
    check_key(key)
    check_shape(shape, 0)
    x_key, y_key = jax.random.split(key)
    x = jax.random.normal(x_key, (1, *shape))
    ax = observed(operator, x)
    y = jax.random.normal(y_key, ax.shape, ax.dtype)
    ours = isinstance(operator, AbstractLinearOperator)
    aty = operator.adjoint(y, shape) if ours else transpose(operator, y, shape)
    if aty.shape != x.shape:
        raise ValueError(f"adjoint: shape {x.shape} is needed for A' y, that of x, got {aty.shape}")
    forward, backward = jnp.sum(ax * y), jnp.sum(x * aty)
    allowed = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.linalg.norm(ax) * jnp.linalg.norm(y)
    check(
        abs(forward - backward) <= allowed,
        f"adjoint: <A x, y> = {forward} but <x, A' y> = {backward}: it is not the adjoint",
    )
    return forward, backward
