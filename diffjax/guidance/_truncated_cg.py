"""Conjugate gradients that end where a covariance ceases to be one.

The systems of posterior guidance are M w = b with M = I + A C A'/std^2. For a covariance C, M is symmetric and M >= I,
so that conjugate gradients have

    p'Mp >= p'p    and    r'Mp = p'Mp        for each direction p and residual r.

A trained network's Jacobian stands in for C and is neither symmetric nor without negative directions: a step along such
a direction has no bound and ruins the sample. Where either fails, the iterate before it is the answer. For a true
covariance these are conjugate gradients.

Source: Steihaug 1983 (The conjugate gradient method and trust regions in large scale optimization), section 2, has the
test of the curvature; that of symmetry is ours.
"""

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers


@checked_numbers
class TruncatedCG(lx.AbstractLinearSolver):
    """Solves M x = b, [*m], for M >= I; ends early where M proves not to be.

    Attributes:
      rtol, atol: it has converged where every |residual| <= atol + rtol |b|, scalars.
      max_steps: the most iterations, an integer; the last iterate is used.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 50

    def init(self, operator: lx.AbstractLinearOperator, options: dict) -> lx.AbstractLinearOperator:
        return operator

    def compute(
        self, state: lx.AbstractLinearOperator, vector: Float[Array, "*m"], options: dict
    ) -> tuple[Float[Array, "*m"], lx.RESULTS, dict]:
        tolerance = self.atol + self.rtol * jnp.abs(vector)

        def unfinished(carry):
            _, r, _, _, good, n = carry
            return good & (n < self.max_steps) & jnp.any(jnp.abs(r) > tolerance)

        def iterate(carry):
            x, r, p, square, _, n = carry
            image = state.mv(p)
            curvature = jnp.sum(p * image)
            # 0.1 is for rounding.
            skew = jnp.abs(jnp.sum(r * image) - curvature)
            good = (curvature > 0.9 * jnp.sum(p * p)) & (skew <= 0.1 * curvature)
            step = jnp.where(good, square / jnp.where(good, curvature, 1.0), 0.0)
            x, r = x + step * p, r - step * image
            after = jnp.sum(r * r)
            return x, r, r + after / square * p, after, good, n + 1

        start = (jnp.zeros_like(vector), vector, vector, jnp.sum(vector**2), jnp.array(True), 0)
        x, *_, n = jax.lax.while_loop(unfinished, iterate, start)
        return x, lx.RESULTS.successful, {"num_steps": n, "max_steps": self.max_steps}

    def transpose(self, state: lx.AbstractLinearOperator, options: dict) -> tuple[lx.AbstractLinearOperator, dict]:
        return state.transpose(), {}

    def conj(self, state: lx.AbstractLinearOperator, options: dict) -> tuple[lx.AbstractLinearOperator, dict]:
        return lx.conj(state), {}

    def assume_full_rank(self) -> bool:
        return True
