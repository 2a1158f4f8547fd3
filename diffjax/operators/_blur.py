"""Blur: convolution with any kernel, the boundary stated.

    y_i = sum_k kernel_k x_(i + c - k),    c = (size - 1) // 2 the kernel's centre on each axis

What lies beyond the border is made by a function (x, widths) -> x padded: `zero`, `periodic`, `reflecting` (about the
border's pixels) and `edge`, or another function, which must be linear.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import as_samples
from diffjax._numbers import as_leaf
from diffjax._typing import Sample
from diffjax.operators._base import AbstractLinearOperator, Observation

Widths: TypeAlias = Sequence[tuple[int, int]]
"""(before, after) for each axis."""
Boundary: TypeAlias = Callable[[Float[Array, "..."], Widths], Float[Array, "..."]]


def zero(x: Float[Array, "..."], widths: Widths) -> Float[Array, "..."]:
    """Nothing beyond the border; x of any shape, widths (before, after) for each axis."""
    return jnp.pad(x, widths)


def periodic(x: Float[Array, "..."], widths: Widths) -> Float[Array, "..."]:
    """The opposite side again; x of any shape, widths (before, after) for each axis."""
    return jnp.pad(x, widths, mode="wrap")


def reflecting(x: Float[Array, "..."], widths: Widths) -> Float[Array, "..."]:
    """A mirror on the border's pixels, which are not repeated; x of any shape, widths for each axis."""
    return jnp.pad(x, widths, mode="reflect")


def edge(x: Float[Array, "..."], widths: Widths) -> Float[Array, "..."]:
    """The border's pixels for ever; x of any shape, widths (before, after) for each axis."""
    return jnp.pad(x, widths, mode="edge")


class Blur(AbstractLinearOperator):
    """Convolution over the leading feature axes, each channel alone; y has the shape of x, [b, *d].

    >>> import jax.numpy as jnp
    >>> from diffjax import operators
    >>> blur = operators.Blur([0.25, 0.5, 0.25], boundary=operators.periodic)
    >>> print(blur(jnp.array([[0.0, 4.0, 0.0, 0.0]])))
    [[1. 2. 1. 0.]]

    Args:
      kernel: [k] for vectors, [kh, kw] for images [b, h, w, c].
      boundary: what lies beyond the border: `zero`, `periodic`, `reflecting` or `edge`.

    Raises:
      ValueError: the kernel has no axis, or, when called, more than the samples or larger ones.
    """

    kernel: Float[Array, "..."] = eqx.field(converter=partial(as_leaf, "kernel"))
    boundary: Boundary = eqx.field(kw_only=True)

    def __check_init__(self):
        if self.kernel.ndim == 0:
            raise ValueError("kernel: at least one axis is needed, got a number")

    def __call__(self, x: Sample) -> Observation:
        x = as_samples("x", x)
        k, sizes = self.kernel.ndim, self.kernel.shape
        if x.ndim - 1 < k or any(n < s for n, s in zip(x.shape[1:], sizes, strict=False)):
            raise ValueError(f"kernel: no larger than samples of shape {x.shape[1:]} is needed, got shape {sizes}")
        channels = int(np.prod(x.shape[k + 1 :]))
        images = jnp.moveaxis(x.reshape(*x.shape[: k + 1], channels), -1, 1).reshape(-1, 1, *x.shape[1 : k + 1])
        widths = [(0, 0), (0, 0), *((s - 1 - (s - 1) // 2, (s - 1) // 2) for s in sizes)]
        weights = jnp.flip(self.kernel).astype(x.dtype)[None, None]
        y = jax.lax.conv_general_dilated(self.boundary(images, widths), weights, (1,) * k, "VALID")
        return jnp.moveaxis(y.reshape(x.shape[0], channels, *x.shape[1 : k + 1]), 1, -1).reshape(x.shape)
