"""A network that is told the step of its chain, as it was trained: 0 .. K - 1 for the times 1/K .. 1."""

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._typing import Time
from diffjax.parameterisation import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess


class OnSteps(AbstractParameterisation):
    """Another parameterisation, whose network is told t K - 1 (0 before the first step) and xt as it is.

    diffusers counts steps from 0: its step n is the time (n + 1)/K of our `DiscreteChain`.

    Attributes:
      inner: what the network predicts.
      steps: K.
      first: the number of the first step less one: -1 for a chain, 0 where the network is told t K.
    """

    inner: AbstractParameterisation = eqx.field(kw_only=True)
    steps: int = eqx.field(static=True, kw_only=True)
    first: int = eqx.field(static=True, kw_only=True, default=-1)

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        """Those of what the network predicts, each of the shape of t."""
        return self.inner.coefficients(process, t)

    def input_scale(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """1, of the shape of t: the network is given xt as it is."""
        return jnp.ones_like(t)

    def noise_level(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """The file's own step of t, [] or [b]: t K + first, at least 0, without a rounding error at its own times."""
        level = jnp.asarray(t) * self.steps
        whole = jnp.round(level)
        # Exactly the file's number at its own times, which rounding of k/K would miss by some 1e-4.
        near = jnp.abs(whole - level) < 8 * jnp.finfo(level.dtype).eps * self.steps
        level = level + jax.lax.stop_gradient(jnp.where(near, whole - level, 0.0))
        return jnp.maximum(level + self.first, 0.0)


class OnSigma(AbstractParameterisation):
    """Another parameterisation, whose network is told sigma and given xt as it is: that of NCSN++ at alpha = 1.

    Attributes:
      inner: what the network predicts.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), appendix H.
    """

    inner: AbstractParameterisation = eqx.field(kw_only=True)

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        """Those of what the network predicts, each of the shape of t."""
        return self.inner.coefficients(process, t)

    def input_scale(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """1, of the shape of t: the network is given xt as it is."""
        return jnp.ones_like(t)

    def noise_level(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """sigma, of the shape of t."""
        return process.sigma(t)
