"""The linear operators of every inverse problem: mask, average, colour to grey, and a matrix."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from diffjax._arrays import as_numbers, as_samples, check, is_concrete
from diffjax._numbers import checked_numbers
from diffjax._typing import Sample
from diffjax.operators._base import AbstractLinearOperator, Observation


def as_mask(mask: Shaped[Array, "..."] | Shaped[np.ndarray, "..."] | list | tuple) -> Bool[Array, "..."]:
    """A mask of any shape as booleans; ValueError where it is neither boolean nor of zeros and ones."""
    try:
        mask = jnp.asarray(mask)
    except (TypeError, ValueError) as error:  # words, None, or lists of different lengths
        raise ValueError(f"mask: an array of 0 (hidden) and 1 (observed) is needed, got {mask!r:.80}") from error
    if mask.dtype == bool:
        return mask
    known = (mask == 0) | (mask == 1)
    if is_concrete(known):
        check(known.all(), f"mask: only 0 (hidden) and 1 (observed) are known, got {mask[~known][:1]}")
    return mask.astype(bool)


def check_mask(mask: Bool[Array, "..."], shape: tuple[int, ...]) -> None:
    """Raises `ValueError` where a mask does not broadcast to one sample's shape with as many axes."""
    fits = mask.ndim == len(shape) and all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True))
    if not fits:
        raise ValueError(f"mask: shape {shape}, that of one sample, is needed (an axis may be 1), got {mask.shape}")


class Mask(AbstractLinearOperator):
    """A x = mask x: hidden features become 0, and y [b, *d] keeps the shape of x.

    >>> import jax.numpy as jnp
    >>> from diffjax import operators
    >>> print(operators.Mask([1, 0, 1])(jnp.array([[2.0, 3.0, 4.0]])))
    [[2. 0. 4.]]

    Args:
      mask: [*d], 1 or True where observed; an axis of length 1 is shared, as by the colours of an image.

    Raises:
      ValueError: the mask holds other values, or, when called, its shape does not fit the samples'.
    """

    mask: Bool[Array, "..."] = eqx.field(converter=as_mask)

    def __call__(self, x: Sample) -> Observation:
        x = as_samples("x", x)
        check_mask(self.mask, x.shape[1:])
        return jnp.where(self.mask, x, jnp.zeros((), x.dtype))


@checked_numbers
class Downsample(AbstractLinearOperator):
    """Averages over blocks: [b, h, w, c] -> [b, h/p, w/q, c] for factors (p, q).

    >>> import jax.numpy as jnp
    >>> from diffjax import operators
    >>> print(operators.Downsample((2,))(jnp.array([[0.0, 2.0, 4.0, 6.0]])))
    [[1. 5.]]

    Args:
      factors: one for each leading feature axis, such as (2, 2) for images and (4,) for vectors.

    Raises:
      ValueError: a factor is not positive, or, when called, does not divide its axis.
    """

    factors: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        if not self.factors or min(self.factors) < 1:
            raise ValueError(f"factors: positive integers, one an axis, are needed, got {self.factors}")

    def __call__(self, x: Sample) -> Observation:
        x = as_samples("x", x)
        k = len(self.factors)
        sizes, rest = x.shape[1 : k + 1], x.shape[k + 1 :]
        if len(sizes) < k or any(n % f for n, f in zip(sizes, self.factors, strict=True)):
            raise ValueError(f"factors: {self.factors} must divide the axes of samples of shape {x.shape[1:]}")
        blocks = [part for n, f in zip(sizes, self.factors, strict=True) for part in (n // f, f)]
        return jnp.mean(x.reshape(x.shape[0], *blocks, *rest), axis=tuple(range(2, 2 * k + 1, 2)))


class Grey(AbstractLinearOperator):
    """Colour to grey: the weighted sum over the last axis, [b, h, w, 3] -> [b, h, w, 1].

    >>> import jax.numpy as jnp
    >>> from diffjax import operators
    >>> operators.Grey()(jnp.ones((1, 8, 8, 3))).shape
    (1, 8, 8, 1)

    Args:
      weights: one a colour, [c]; by default the luma of ITU-R BT.601.

    Raises:
      ValueError: the weights are no list of finite numbers, or, when called, the samples' last axis has another length.
    """

    weights: Float[Array, " c"] = eqx.field(
        converter=partial(as_numbers, "weights", whole=True), default=(0.299, 0.587, 0.114)
    )

    def __check_init__(self):
        if self.weights.ndim != 1 or self.weights.size == 0:
            raise ValueError(f"weights: one number a colour, shape [c], is needed, got shape {self.weights.shape}")

    def __call__(self, x: Sample) -> Observation:
        x = as_samples("x", x)
        if x.shape[-1:] != self.weights.shape:
            raise ValueError(f"weights: one for each of the last axis is needed, {x.shape}, got {self.weights.shape}")
        return jnp.sum(x * self.weights.astype(x.dtype), axis=-1, keepdims=True)


class Matrix(AbstractLinearOperator):
    """A matrix [m, D] on the flattened features: x [b, *d] -> y [b, m], with D the product of d.

    >>> import jax.numpy as jnp
    >>> from diffjax import operators
    >>> print(operators.Matrix([[1.0, 1.0]])(jnp.array([[2.0, 3.0]])))
    [[5.]]

    Raises:
      ValueError: it is no matrix of finite numbers, or, when called, D is another number.
    """

    matrix: Float[Array, "m D"] = eqx.field(converter=partial(as_numbers, "matrix", whole=True))

    def __check_init__(self):
        if self.matrix.ndim != 2:
            raise ValueError(f"matrix: two axes are needed, got shape {self.matrix.shape}")

    def __call__(self, x: Sample) -> Observation:
        x = as_samples("x", x)
        flat = x.reshape(x.shape[0], -1)
        if flat.shape[1] != self.matrix.shape[1]:
            raise ValueError(
                f"matrix: {flat.shape[1]} columns are needed for samples of shape {x.shape[1:]}, "
                f"got shape {self.matrix.shape}"
            )
        return flat @ self.matrix.T.astype(x.dtype)
