"""Linear operators and their adjoints, <A x, y> = <x, A' y>; other operators by their derivative at a point.

An operator is a callable x [b, *d] -> y [b, *m] that treats each sample alone. A linear one of ours is an
`AbstractLinearOperator`; its adjoint is found by transposing its program, or is its own (`matrix_free`).
"""

import abc
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import check
from diffjax._typing import Key, Sample

Observation = Float[Array, "b *m"]


class AbstractLinearOperator(eqx.Module):
    """A linear map of each sample: x [b, *d] -> A x [b, *m], in the dtype of x."""

    @abc.abstractmethod
    def __call__(self, x: Sample) -> Observation:
        """A x, [b, *m]."""


@singledispatch
def adjoint(operator: Callable[..., Any], y: Observation, shape: tuple[int, ...]) -> Sample:
    """A' y, [b, *shape], of a linear operator: `jax.linear_transpose`, or the adjoint that `matrix_free` was given.

    Args:
      operator: linear; a plain function x [b, *d] -> [b, *m] will do.
      y: [b, *m].
      shape: of one sample x, [*d].

    Raises:
      ValueError: y has not the shape of A x, or the operator is not linear.
    """
    like = jax.ShapeDtypeStruct((y.shape[0], *shape), y.dtype)
    found = jax.eval_shape(operator, like).shape
    if found != y.shape:
        raise ValueError(f"y: shape {found} is needed, that of A x for x of shape {like.shape}, got {y.shape}")
    try:
        return jax.linear_transpose(operator, like)(y)[0]
    except NotImplementedError as error:
        raise ValueError(f"operator: {operator} is not linear and has no adjoint ({error})") from None


class Linearised(NamedTuple):
    """An operator near a point x [b, *d]; made by `linearise`. Arrays of shape [b, *m] are observations."""

    value: Observation
    """A(x), [b, *m]."""
    push: Callable[[Any], Any]
    """u [b, *d] -> A'(x) u, [b, *m]."""
    pull: Callable[[Any], Any]
    """v [b, *m] -> the adjoint of push, [b, *d]."""


@singledispatch
def linearise(operator: Callable[..., Any], x: Sample) -> Linearised:
    """A(x) with its derivative at x [b, *d] and the adjoint of that, by autodiff; a linear operator is its own."""
    value, pull = jax.vjp(operator, x)
    return Linearised(value, lambda u: jax.jvp(operator, (x,), (u,))[1], lambda v: pull(v)[0])


@linearise.register(AbstractLinearOperator)
def _(operator: AbstractLinearOperator, x: Sample) -> Linearised:
    return Linearised(operator(x), operator, lambda v: adjoint(operator, v, x.shape[1:]))


def dot_product_test(
    key: Key, operator: Callable[..., Any], shape: tuple[int, ...]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(<A x, y>, <x, A' y>), two scalars, for normal x of shape [1, *shape] and y; they must agree.

    Raises:
      ValueError: they differ by more than rounding, sqrt(eps) |A x| |y|, or A' y has not the shape of x. Under a trace
        the values are not looked at.
    """
    x_key, y_key = jax.random.split(key)
    x = jax.random.normal(x_key, (1, *shape))
    ax = operator(x)
    y = jax.random.normal(y_key, ax.shape, ax.dtype)
    aty = adjoint(operator, y, shape)
    if aty.shape != x.shape:
        raise ValueError(f"adjoint: shape {x.shape} is needed for A' y, that of x, got {aty.shape}")
    forward, backward = jnp.sum(ax * y), jnp.sum(x * aty)
    allowed = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.linalg.norm(ax) * jnp.linalg.norm(y)
    check(
        abs(forward - backward) <= allowed,
        f"adjoint: <A x, y> = {forward} but <x, A' y> = {backward}: it is not the adjoint",
    )
    return forward, backward
