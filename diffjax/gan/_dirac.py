"""The Dirac-GAN, an oracle: one number generates, one discriminates, and gradient descent is a 2 x 2 matrix.

    data at 0,   G = theta,   D(x) = psi x,   slope c of the loss at logit 0

    one step of size h from (theta, psi) = (0, 0) + small:

        simultaneous    [ 1      h c     ]          alternating, D first    [ 1 - h^2 c^2    h c (1 - h g) ]
                        [ -h c   1 - h g ]                                  [ -h c           1 - h g       ]

with g the sum of the penalties' gammas, of R1 and of R2: both are psi^2/2 here. The flow's eigenvalues are
-g/2 +- sqrt(g^2/4 - c^2). Unregularised it turns for ever; simultaneous steps grow by sqrt(1 + h^2 c^2), alternating
ones stay on a cycle (h c < 2). With a penalty the flow converges, fastest at g = 2 c, where the two eigenvalues meet:
for logistic losses (c = 1/2) at gamma = 1 with R1, at gamma = 1/2 with R1 + R2. Steps converge where they are small:

        simultaneous    h c^2 < g < 2/h + h c^2/2,    fastest at g = 2 c
        alternating         0 < g < 2/h - h c^2/2,    fastest at g = 2 c - h c^2

Source: Mescheder et al. 2018 (Which training methods for GANs do actually converge?), sections 2-4, arXiv:1801.04406.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from diffjax._arrays import check, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Scalar
from diffjax.gan._penalties import check_nonnegative


class DiracGAN(eqx.Module):
    """The Dirac-GAN near its equilibrium, theta = psi = 0, for a loss and penalties.

        d theta/d time = c psi,   d psi/d time = -c theta - (r1 + r2) psi

    >>> from diffjax import gan
    >>> dirac = gan.DiracGAN(gan.NonSaturating().slope, r1=1.0)
    >>> print(dirac.eigenvalues().real, float(dirac.critical_gamma()))
    [-0.5 -0.5] 1.0
    >>> dirac = gan.DiracGAN(gan.NonSaturating().slope)  # without a penalty
    >>> print(dirac.spectral_radius(0.1), dirac.spectral_radius(0.1, simultaneous=True))
    1.0 1.0012492

    Attributes:
      slope: c, of the loss at logit 0 (`NonSaturating().slope`), positive, a scalar.
      r1: gamma of the penalty on data, at least 0, a scalar.
      r2: gamma of the penalty on samples, at least 0, a scalar.

    Raises:
      ValueError: a number is no scalar, not finite or out of range.

    Source: Mescheder et al. 2018, sections 2-4, arXiv:1801.04406.
    """

    slope: Float[Array, ""] = eqx.field(converter=partial(as_scalar, "slope"))
    r1: Float[Array, ""] = eqx.field(converter=partial(as_scalar, "r1"), default=0.0)
    r2: Float[Array, ""] = eqx.field(converter=partial(as_scalar, "r2"), default=0.0)

    @values_at_once
    def __check_init__(self):
        for name in ("slope", "r1", "r2"):
            check_nonnegative(name, getattr(self, name))
        check(self.slope > 0, f"slope: must be positive, got {self.slope}")

    def jacobian(self) -> Float[Array, "2 2"]:
        """The matrix of the flow d(theta, psi)/d time = -(gradients of the two losses) at the equilibrium, [2, 2]."""
        zero = jnp.zeros_like(self.slope)
        return jnp.array([[zero, self.slope], [-self.slope, -(self.r1 + self.r2)]])

    def eigenvalues(self) -> Complex[Array, " 2"]:
        """The eigenvalues of `jacobian`, [2], in closed form: with negative real parts training converges."""
        damping = 0.5 * (self.r1 + self.r2)
        square = damping**2 - self.slope**2
        root = jnp.sqrt(jax.lax.complex(square, jnp.zeros_like(square)))
        return jnp.stack([-damping + root, -damping - root])

    def critical_gamma(self) -> Float[Array, ""]:
        """The gamma at which the flow's two eigenvalues meet, a scalar: 2 c with one penalty, c with two equal ones.

        Below it training turns about the equilibrium, above it one direction is slow. Which penalties there are is
        seen by which gammas are positive; without any it is that of R1 alone.
        """
        return self.slope * jnp.where((self.r1 > 0) & (self.r2 > 0), 1.0, 2.0)

    @checked_numbers
    def update_matrix(self, step_size: Scalar, *, simultaneous: bool = False) -> Float[Array, "2 2"]:
        """The matrix by which one step of plain gradient descent multiplies (theta, psi), [2, 2].

        Args:
          step_size: h, the learning rate of both, finite and at least 0, a scalar.
          simultaneous: both move at once; otherwise the discriminator first, and the generator against what it became.

        Returns:
          [2, 2], as at the top of this file.

        Raises:
          ValueError: step_size is no scalar, not finite or negative.
        """
        check_nonnegative("step_size", step_size)
        h = jnp.asarray(step_size, jnp.result_type(self.slope))
        one, zero = jnp.ones_like(h), jnp.zeros_like(h)
        both = jnp.eye(2, dtype=h.dtype) + h * self.jacobian()
        if simultaneous:
            return both
        discriminator = jnp.stack([jnp.stack([one, zero]), both[1]])
        generator = jnp.stack([both[0], jnp.stack([zero, one])])
        return generator @ discriminator

    @checked_numbers
    def spectral_radius(self, step_size: Scalar, *, simultaneous: bool = False) -> Float[Array, ""]:
        """By how much a step shrinks the distance to the equilibrium in the long run, a scalar; above 1 it grows.

        From trace T and determinant of the update matrix: sqrt(det) where the eigenvalues are complex, else
        (|T| + sqrt(T^2 - 4 det))/2.

        Args:
          step_size, simultaneous: as of `update_matrix`, a scalar and a switch.

        Returns:
          The largest absolute value of an eigenvalue, a scalar.
        """
        matrix = self.update_matrix(step_size, simultaneous=simultaneous)
        trace, det = jnp.trace(matrix), matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
        inside = trace**2 - 4 * det
        turns = inside < 0  # complex eigenvalues; the branch that is not taken has a square root of 1, and a gradient
        real = 0.5 * (jnp.abs(trace) + jnp.where(turns, 0.0, jnp.sqrt(jnp.where(turns, 1.0, inside))))
        return jnp.where(turns, jnp.sqrt(jnp.where(turns, det, 1.0)), real)
