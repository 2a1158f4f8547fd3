"""EDM's preconditioned output F, for any alpha and sigma.

    x0 = c_skip xt + c_out F,   c_skip = alpha sd^2/q^2,   c_out = sigma sd/q,   q^2 = alpha^2 sd^2 + sigma^2
    which is y = a x0 + b eps with  a = sigma/(sd q),  b = -alpha sd/q

Source: Karras et al. 2022, eq. 7 and table 1 (there alpha = 1).
"""

from functools import partial

import equinox as eqx
import jax.numpy as jnp

from diffjax._numbers import as_scalar
from diffjax._typing import Scalar, Time
from diffjax.parameterisation._base import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess


class EDMPrediction(AbstractParameterisation):
    """The network predicts EDM's F, of unit variance at every noise level.

    Attributes:
      data_std: standard deviation of the data, per feature (EDM's sigma_data); 0.5 for images in [-1, 1].

    Source: Karras et al. 2022, eq. 7.
    """

    data_std: Scalar = eqx.field(converter=partial(as_scalar, "data_std"), default=0.5)

    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        alpha, sigma = process.alpha(t), process.sigma(t)
        q = jnp.sqrt((alpha * self.data_std) ** 2 + sigma**2)
        return sigma / (self.data_std * q), -alpha * self.data_std / q
