"""Unadjusted Langevin: a noisy climb on a log density by its score, every step accepted.

    x <- x + tau score(x) + sqrt(2 tau) z

The Langevin diffusion dx = score dt + sqrt(2) dw by Euler-Maruyama. Its stationary law is off by O(tau): on N(0, s^2)
the variance is s^2/(1 - tau/(2 s^2)), and it diverges from tau = 2 s^2 on.

Source: Parisi 1981; Roberts & Tweedie 1996.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import answered, as_samples, check_key, normal_like
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Keys, Sample, Scalar, Score, Statistic
from diffjax.samplers._chains import Chains, StepSize, run_chains, step_sizes


def langevin_step(keys: Keys, x: Sample, slope: Sample, tau: Scalar) -> Sample:
    """x + tau slope + sqrt(2 tau) z, [b, *d], for a key a chain [b] and a scalar tau."""
    return x + tau * slope.astype(x.dtype) + jnp.sqrt(2 * tau) * normal_like(keys, x)


class AbstractUnadjusted(eqx.Module):
    """A kernel whose state is x itself and that accepts every step."""

    @abc.abstractmethod
    def step(self, keys: Keys, x: Sample, tau: Scalar) -> Sample:
        """From x [b, *d] to the next, by keys [b] and a scalar tau."""

    def init(self, x):
        return x

    def position(self, x):
        return x

    def acceptance(self, x):
        return None


class Unadjusted(AbstractUnadjusted):
    """The kernel of `langevin`."""

    score: Score

    def step(self, keys, x, tau):
        return langevin_step(keys, x, answered("score", self.score(x), x.shape), tau)


@checked_numbers
def langevin(
    key: Key,
    score: Score,
    x: Sample,
    *,
    steps: int,
    step_size: StepSize,
    index: Index | None = None,
    save: Sequence[int] | None = None,
    average: Statistic | None = None,
    burn_in: int = 0,
) -> Chains:
    """Unadjusted Langevin: x + tau score(x) + sqrt(2 tau) z, one score evaluation a step. A jitted entry point.

    Args:
      key: for the noise.
      score: `x [b, *d] -> grad log p(x) [b, *d]`. A pytree's arrays are arguments of jit; a plain function is static,
        so keep one object rather than make one per call.
      x: where the chains start, [b, *d].
      steps: how many.
      step_size: tau, a scalar or one a step, [steps] (`polynomial_decay`). In the literature that writes
        x + (e/2) score + sqrt(e) z, tau = e/2.
      index: global indices [b] of the chains (default 0 .. b - 1): their noise depends on nothing else.
      save: numbers of steps (0 the start, -1 the end) after which states are kept; none are otherwise.
      average: a statistic `x [b, *d] -> pytree of [b, ...]`, averaged along each chain with weights tau.
      burn_in: how many steps the average leaves out at the beginning.

    Returns:
      `Chains`; its acceptance is None.

    Raises:
      ValueError: steps is below 1, step_size not positive or of another shape, burn_in or `save` outside the steps.
    """
    check_key(key)
    x = as_samples("x", x)
    taus = step_sizes(step_size, steps, x.dtype)
    return run_chains(key, Unadjusted(score), x, taus, taus, index, save, average, burn_in)
