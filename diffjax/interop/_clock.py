"""Parameterisations whose c_noise is a published network's own clock.

    OnSteps    c_noise = t K + first, at least 0: the step 0 .. K - 1 of a chain, at the times 1/K .. 1
    OnSigma    c_noise = sigma(t): NCSN++

The network is given xt as it is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._numbers import checked_numbers
from diffjax._typing import Time
from diffjax.parameterisation import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess


@checked_numbers
class OnSteps(AbstractParameterisation):
    """Another parameterisation, whose network has c_noise = t K - 1 (0 before the first step) and is given xt as it is.

    diffusers counts steps from 0: its step n is the time (n + 1)/K of our `DiscreteChain`.

    Attributes:
      inner: what the network predicts.
      steps: K.
      first: the number of the first step less one: -1 for a chain, 0 where c_noise is t K.
    """

    inner: AbstractParameterisation = eqx.field(kw_only=True)
    steps: int = eqx.field(static=True, kw_only=True)
    first: int = eqx.field(static=True, kw_only=True, default=-1)

    def __check_init__(self):
        _refuse_clock(self)

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
    """Another parameterisation, whose network has c_noise = sigma and is given xt as it is: NCSN++'s at alpha = 1.

    Attributes:
      inner: what the network predicts.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), appendix H.
    """

    inner: AbstractParameterisation = eqx.field(kw_only=True)

    def __check_init__(self):
        _refuse_clock(self)

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        """Those of what the network predicts, each of the shape of t."""
        return self.inner.coefficients(process, t)

    def input_scale(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """1, of the shape of t: the network is given xt as it is."""
        return jnp.ones_like(t)

    def noise_level(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """sigma, of the shape of t."""
        return process.sigma(t)


def _refuse_clock(parameterisation: OnSteps | OnSigma) -> None:
    """Raises `ValueError` for a `clock`: the clock is the file's."""
    if (clock := parameterisation.clock) != "logsnr":
        raise ValueError(f"clock: {type(parameterisation).__name__} has a fixed clock, got {clock!r}; leave it out")
