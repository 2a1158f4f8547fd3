"""The pseudo-Huber penalty: quadratic for small errors, linear for large ones.

    sqrt(m + c^2) - c = m/(sqrt(m + c^2) + c),   m = mean_features(error^2)

The right-hand side has no cancellation for small errors, and its gradient at 0 is 0. It is 1/sqrt(d) of Song &
Dhariwal's sqrt(||error||^2 + C^2) - C with C = c sqrt(d): their C = 0.00054 sqrt(d) is c = 0.00054 here.

Source: Charbonnier et al. 1997; Song & Dhariwal 2023 (Improved techniques for training consistency models), eq. 7.
"""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import as_samples, check, mean_features, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Sample, Scalar


class PseudoHuber(eqx.Module):
    """A `penalty` of `denoising_loss`: m/(2c) for errors far below c, sqrt(m) for errors far above it.

    It acts on the error of the network's own answer, y_hat - y, and the weighting multiplies it as it would multiply
    the square; with `native` the loss is the penalty itself.

    >>> import jax.numpy as jnp
    >>> from diffjax import losses
    >>> print(losses.PseudoHuber(c=3.0)(jnp.array([[4.0, 4.0]])))  # sqrt(16 + 9) - 3
    [2.]

    Attributes:
      c: the root-mean-square error per feature at which the two regimes meet; positive.
    """

    c: Scalar = eqx.field(converter=partial(as_scalar, "c"), default=0.00054)

    @values_at_once
    def __check_init__(self):
        check(self.c > 0, f"c: must be positive, got {self.c}")

    def __call__(self, error: Sample) -> Float[Array, " b"]:
        """error [b, *d] -> [b]."""
        error = as_samples("error", error)
        m = mean_features(error**2)
        return m / (jnp.sqrt(m + self.c**2) + self.c)
