"""Weightings, all stated on the eps-loss: E_t[ w(t) ||eps - eps_hat||^2 ], whatever the network predicts.

    constant    1                            Ho et al. 2020, eq. 14
    native      ((alpha b - sigma a)/alpha)^2, unit weight on the network's own answer y
    EDM         (e^-lambda + sd^2)/sd^2      Karras et al. 2022, table 1: unit weight on F
    min-SNR     min(snr, gamma)/snr          Hang et al. 2023, eq. 9: clipped weight on the x0-loss
    likelihood  -lambda'(t)                  Song et al. 2021b, eq. 8: the ELBO's (times 1/2, as a sum over features)

A weighting is any callable `(process, parameterisation, t) -> w`, of the shape of t.
"""

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Scalar, Time
from diffjax.parameterisation import AbstractParameterisation, eps_error_scale
from diffjax.process import AbstractGaussianProcess, logsnr, logsnr_rate


def constant(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = 1, of the shape of t: DDPM's simple loss. Source: Ho et al. 2020, eq. 14."""
    return jnp.ones_like(t)


def native(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """The weight, of the shape of t, that makes the loss a plain mean square of the network's own answer.

    With `VelocityPrediction` this is flow matching. `denoising_loss` knows it and computes it as such.
    """
    return 1 / eps_error_scale(parameterisation, process, t)


def likelihood(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = -lambda'(t) = g^2/sigma^2, of the shape of t: the ELBO's.

    Source: Song et al. 2021b (Maximum likelihood training of score-based diffusion models), eq. 8.
    """
    return -logsnr_rate(process, t)


class EDMWeighting(eqx.Module):
    """w = (e^-lambda + sd^2)/sd^2. Source: Karras et al. 2022, table 1 (lambda(sigma) there is on the x0-loss).

    Attributes:
      data_std: sd, the standard deviation of the data per feature; positive.
    """

    data_std: Scalar = eqx.field(converter=as_scalar, default=0.5)

    def __check_init__(self):
        check(self.data_std > 0, f"data_std: must be positive, got {self.data_std}")

    def __call__(self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
        return jnp.exp(-logsnr(process, t)) / self.data_std**2 + 1


class MinSNR(eqx.Module):
    """w = min(snr, gamma)/snr. Source: Hang et al. 2023 (Efficient diffusion training via min-SNR), eq. 9.

    Attributes:
      gamma: the signal-to-noise ratio (of variances) above which the x0-loss's weight stops growing; positive.
    """

    gamma: Scalar = eqx.field(converter=as_scalar, default=5.0)

    def __check_init__(self):
        check(self.gamma > 0, f"gamma: must be positive, got {self.gamma}")

    def __call__(self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
        return jnp.minimum(1.0, self.gamma * jnp.exp(-logsnr(process, t)))
