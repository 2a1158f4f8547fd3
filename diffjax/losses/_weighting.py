"""Weightings, all stated on the eps-loss: E_t[ w(t) ||eps - eps_hat||^2 ], whatever the network predicts.

    constant       1                            Ho et al. 2020, eq. 14
    native         ((alpha b - sigma a)/alpha)^2, unit weight on the network's own answer y
    on_x0          e^-lambda                    unit weight on the error of x0; and so on, whatever is predicted:
    on_score       1/sigma^2                    Song & Ermon 2019, eq. 5
    on_v           1 + e^-lambda                Salimans & Ho 2022, section 4 (SNR + 1 on the x0-loss)
    flow_matching  (1 + e^(-lambda/2))^2        Lipman et al. 2023, eq. 23: the velocity of a rectified flow
    EDM            (e^-lambda + sd^2)/sd^2      Karras et al. 2022, table 1: unit weight on F
    min-SNR        min(snr, gamma)/snr          Hang et al. 2023, eq. 9: clipped weight on the x0-loss
    soft-min-SNR   gamma/(snr + gamma)          Crowson et al. 2024: 1/(sigma^2 + 1/gamma) on the x0-loss, alpha = 1
    sigmoid        1/(1 + e^(lambda - b))       Kingma & Gao 2023; Hoogeboom et al. 2024: soft-min-SNR at gamma = e^b
    P2             1/(k + snr)^gamma            Choi et al. 2022, eq. 8
    likelihood     -lambda'(t)                  Song et al. 2021b, eq. 8: the ELBO's (times 1/2, as a sum over features)
    OverLogsnr(w)  -lambda'(t) w                Kingma & Gao 2023, eq. 8: int w d lambda, the same for every schedule

A weighting is any callable `(process, parameterisation, t) -> w`, of the shape of t.
"""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import check, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Scalar, Time
from diffjax.parameterisation import AbstractParameterisation, eps_error_scale
from diffjax.process import AbstractGaussianProcess, logsnr_rate


def constant(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = 1: DDPM's simple loss. Of the shape of t. Source: Ho et al. 2020, eq. 14.

    >>> import diffjax as dj
    >>> from diffjax import losses
    >>> print(losses.constant(dj.Rectified(), dj.VPrediction(), 0.5))
    1.0
    """
    return jnp.ones_like(t)


def native(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """The weight that makes the loss the mean square of the error of the network's own output.

    Of the shape of t. With `VelocityPrediction` this is flow matching. `denoising_loss` computes that mean square.

    >>> import diffjax as dj
    >>> from diffjax import losses
    >>> round(float(losses.native(dj.Rectified(), dj.X0Prediction(), 0.25)), 3)  # sigma^2/alpha^2
    0.111
    """
    return 1 / eps_error_scale(parameterisation, process, t)


def on_x0(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = e^-lambda: unit weight on ||x0 - x0_hat||^2. Of the shape of t.

    >>> import diffjax as dj
    >>> from diffjax import losses
    >>> round(float(losses.on_x0(dj.Rectified(), dj.EpsPrediction(), 0.25)), 3)  # sigma^2/alpha^2
    0.111
    """
    return jnp.exp(-process.logsnr(t))


def on_score(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = 1/sigma^2: unit weight on the squared error of the score. Of the shape of t."""
    return process.sigma(t) ** -2.0


def on_v(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = 1 + e^-lambda: unit weight on the squared error of v, for a variance-preserving process.

    Of the shape of t. Source: Salimans & Ho 2022 (Progressive distillation), section 4.
    """
    return 1 + jnp.exp(-process.logsnr(t))


def flow_matching(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = (1 + e^(-lambda/2))^2: unit weight on the squared error of eps - x0, a rectified flow's velocity.

    Of the shape of t. On another process it is the weight that a rectified flow has at the same logsnr.

    >>> import diffjax as dj
    >>> from diffjax import losses
    >>> print(losses.flow_matching(dj.Rectified(), dj.VelocityPrediction(), 0.5))
    4.0

    Source: Lipman et al. 2023, eq. 23.
    """
    return (1 + jnp.exp(-0.5 * process.logsnr(t))) ** 2


def likelihood_weighting(process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
    """w = -lambda'(t) = g^2/sigma^2: the weight of the ELBO.

    Of the shape of t. Source: Song et al. 2021b (Maximum likelihood training of score-based diffusion models), eq. 8.

    >>> import diffjax as dj
    >>> from diffjax import losses
    >>> print(losses.likelihood_weighting(dj.Rectified(), dj.VPrediction(), 0.5))
    8.0
    """
    return -logsnr_rate(process, t)


class EDMWeighting(eqx.Module):
    """w = (e^-lambda + sd^2)/sd^2. Source: Karras et al. 2022, table 1 (lambda(sigma) there is on the x0-loss).

    Attributes:
      data_std: sd, the standard deviation of the data per feature; positive.
    """

    data_std: Scalar = eqx.field(converter=partial(as_scalar, "data_std"), default=0.5)

    @values_at_once
    def __check_init__(self):
        check(self.data_std > 0, f"data_std: must be positive, got {self.data_std}")

    def __call__(self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
        return jnp.exp(-process.logsnr(t)) / self.data_std**2 + 1


class MinSNR(eqx.Module):
    """w = min(snr, gamma)/snr. Source: Hang et al. 2023 (Efficient diffusion training via min-SNR), eq. 9.

    >>> import diffjax as dj
    >>> from diffjax import losses
    >>> weighting, process = losses.MinSNR(gamma=5.0), dj.Rectified()
    >>> [round(float(weighting(process, dj.EpsPrediction(), t)), 3) for t in (0.5, 0.25)]  # min(1, 5/snr)
    [1.0, 0.556]

    Attributes:
      gamma: the signal-to-noise ratio alpha^2/sigma^2 above which the weight of the x0-loss is constant; positive.
    """

    gamma: Scalar = eqx.field(converter=partial(as_scalar, "gamma"), default=5.0)

    @values_at_once
    def __check_init__(self):
        check(self.gamma > 0, f"gamma: must be positive, got {self.gamma}")

    def __call__(self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
        return jnp.minimum(1.0, self.gamma * jnp.exp(-process.logsnr(t)))


class SoftMinSNR(eqx.Module):
    """w = gamma/(snr + gamma): min-SNR without the kink at snr = gamma. It is `Sigmoid(log(gamma))`.

    Attributes:
      gamma: the signal-to-noise ratio around which the weight of the x0-loss levels off; positive. 4 is 1/sd^2 for
        EDM's sd = 0.5.

    Source: Crowson et al. 2024 (Hourglass diffusion transformers), section 4: 1/(sigma^2 + 1/gamma) on the x0-loss
    where alpha = 1.
    """

    gamma: Scalar = eqx.field(converter=partial(as_scalar, "gamma"), default=4.0)

    @values_at_once
    def __check_init__(self):
        check(self.gamma > 0, f"gamma: must be positive, got {self.gamma}")

    def __call__(self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
        return jax.nn.sigmoid(jnp.log(self.gamma) - process.logsnr(t))


class Sigmoid(eqx.Module):
    """w = 1/(1 + e^(lambda - bias)). In the papers the integral is over logsnr: `OverLogsnr(Sigmoid(bias))`.

    Attributes:
      bias: the logsnr at which the weight is one half; the lower, the more weight on noise.

    Source: Kingma & Gao 2023 (Understanding diffusion objectives as the ELBO), table 1; Hoogeboom et al. 2024 (Simpler
    diffusion), e^b sigmoid(lambda - b) on the x0-loss.
    """

    bias: Scalar = eqx.field(converter=partial(as_scalar, "bias"), default=0.0)

    def __call__(self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
        return jax.nn.sigmoid(self.bias - process.logsnr(t))


class P2(eqx.Module):
    """w = 1/(k + snr)^gamma. Source: Choi et al. 2022 (Perception prioritized training), eq. 8.

    Attributes:
      k: the weight at high noise is at most k^-gamma; positive.
      gamma: exponent, which says how fast the weight falls at high snr; 0 is `constant`.
    """

    k: Scalar = eqx.field(converter=partial(as_scalar, "k"), default=1.0)
    gamma: Scalar = eqx.field(converter=partial(as_scalar, "gamma"), default=1.0)

    @values_at_once
    def __check_init__(self):
        check(self.k > 0, f"k: must be positive, got {self.k}")

    def __call__(self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
        return jnp.exp(-self.gamma * jnp.logaddexp(jnp.log(self.k), process.logsnr(t)))


class OverLogsnr(eqx.Module):
    """w = -lambda'(t) inner(t): under uniform times the objective is int inner ||eps - eps_hat||^2 d lambda.

    With an inner weight that sees logsnr alone it depends on the schedule only through its end points.
    `OverLogsnr(constant)` is `likelihood_weighting`.

    Attributes:
      inner: a weighting.

    Source: Kingma & Gao 2023, eq. 8 (times 1/2, as a sum over features).
    """

    inner: Callable[..., Time]

    def __call__(self, process: AbstractGaussianProcess, parameterisation: AbstractParameterisation, t: Time) -> Time:
        return -logsnr_rate(process, t) * self.inner(process, parameterisation, t)
