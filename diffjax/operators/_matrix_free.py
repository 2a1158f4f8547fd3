"""Any linear operator, given as two functions: what it does, and what its adjoint does."""

from collections.abc import Callable

import jax

from diffjax._arrays import as_samples
from diffjax._numbers import checked_numbers
from diffjax._typing import Sample
from diffjax.operators._base import AbstractLinearOperator, Observation, Operator, check_observation, dot_product_test


class MatrixFree(AbstractLinearOperator):
    """A linear operator by its program and its adjoint's; made by `matrix_free`, which tests them."""

    forward: Operator
    backward: Callable[[Observation], Sample]

    def __call__(self, x: Sample) -> Observation:
        x = as_samples("x", x)
        return self.forward(x)

    @checked_numbers
    def adjoint(self, y: Observation, shape: tuple[int, ...]) -> Sample:
        return self.backward(check_observation(self, y, shape)[0])


@checked_numbers
def matrix_free(forward: Operator, backward: Callable[[Observation], Sample], shape: tuple[int, ...]) -> MatrixFree:
    """A linear operator from two functions, after the dot-product test <A x, y> = <x, A' y>.

    A function whose adjoint JAX can find needs none of this: it is an operator as it is.

    >>> import jax.numpy as jnp
    >>> from diffjax import operators
    >>> flip = lambda x: jnp.flip(x, axis=1)
    >>> print(operators.matrix_free(flip, flip, (3,))(jnp.array([[1.0, 2.0, 3.0]])))
    [[3. 2. 1.]]

    Args:
      forward: x [b, *d] -> A x [b, *m]; a pytree's arrays are leaves, a plain function is static.
      backward: y [b, *m] -> A' y [b, *d].
      shape: of one sample x, [*d], for the test.

    Raises:
      ValueError: backward is not the adjoint of forward; the message gives both products.
    """
    operator = MatrixFree(forward, backward)
    dot_product_test(jax.random.key(0), operator, shape)
    return operator
