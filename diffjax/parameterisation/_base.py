"""What a network regresses, in one formula.

    y = a(t) x0 + b(t) eps,    xt = alpha(t) x0 + sigma(t) eps

Every prediction type is a choice of (a, b), and both x0 and eps come back from the network's y by one 2x2 solve:

    x0 = (b xt - sigma y)/d,   eps = (alpha y - a xt)/d,   d = alpha b - sigma a

    xt, t --> input_scale(t) xt, noise_level(t) --> network --> y --> recover --> (x0, eps)
"""

import abc
from functools import partial
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_samples, check, check_time, expand, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Sample, Scalar, Time
from diffjax.parameterisation._clock import CLOCKS, clock_of_logsnr
from diffjax.process import AbstractGaussianProcess, angle


class AbstractParameterisation(eqx.Module):
    """A choice of what the network predicts.

    Attributes:
      data_std: standard deviation of the data, per feature; it scales the network's input to unit variance.
      clock: of `noise_level`, "logsnr" or "angle". It belongs to the network's weights: they know one clock.

    Raises:
      ValueError: data_std is not positive, or there is no such clock.
    """

    logsnr_range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))
    """The least and the largest logsnr that it is trained and sampled within by default; see `bounded`."""

    data_std: Scalar = eqx.field(converter=partial(as_scalar, "data_std"), default=1.0)
    clock: str = eqx.field(static=True, default="logsnr", kw_only=True)

    @values_at_once
    def __check_init__(self):
        check(self.data_std > 0, f"data_std: must be positive, got {self.data_std}")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock: one of {', '.join(CLOCKS)} is needed, got {self.clock!r}")

    @abc.abstractmethod
    def coefficients(self, process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
        """(a, b) of y = a x0 + b eps, each broadcasting with t."""

    def input_scale(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """c_in = 1/sqrt(alpha^2 data_std^2 + sigma^2), of the shape of t: it gives the network unit variance.

        Source: Karras et al. 2022, eq. 117, with alpha.
        """
        return 1 / jnp.sqrt((process.alpha(t) * self.data_std) ** 2 + process.sigma(t) ** 2)

    def noise_level(self, process: AbstractGaussianProcess, t: Time) -> Time:
        """c_noise, of the shape of t: -logsnr/8 (EDM's log(sigma)/4 where alpha = 1) with |logsnr| clipped to 30, or
        atan2(sigma, data_std alpha), as `clock` says.

        A function of logsnr alone, so that a network trained on one schedule can sample on another. A network with a
        second time is given c_noise [b, 2], this of t and this of s.
        """
        if self.clock == "angle":
            return angle(process, t, self.data_std)
        return clock_of_logsnr(process, t)


def target(
    parameterisation: AbstractParameterisation, process: AbstractGaussianProcess, x0: Sample, eps: Sample, t: Time
) -> Sample:
    """What the network should answer, y = a x0 + b eps, [b, *d], for x0, eps [b, *d] and t [] or [b].

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.parameterisation import target
    >>> x0, eps = jnp.full((1, 2), 2.0), jnp.ones((1, 2))
    >>> print(target(dj.VPrediction(), dj.Rectified(), x0, eps, 0.5))  # alpha eps - sigma x0
    [[-0.5 -0.5]]
    """
    x0 = as_samples("x0", x0)
    eps = as_samples("eps", eps, x0.shape)
    check_time(t, x0)
    a, b = parameterisation.coefficients(process, t)
    return expand(a, x0) * x0 + expand(b, eps) * eps


def recover(
    parameterisation: AbstractParameterisation, process: AbstractGaussianProcess, y: Sample, xt: Sample, t: Time
) -> tuple[Sample, Sample]:
    """(x0, eps), both [b, *d], from the network's answer y and xt [b, *d], by the 2x2 solve above.

    Exact up to conditioning: keep the pair you have rather than computing one from the other, for eps loses digits
    as sigma -> 0 and x0 as alpha -> 0.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.parameterisation import recover
    >>> xt, v = jnp.full((1, 2), 1.5), jnp.full((1, 2), -0.5)
    >>> x0, eps = recover(dj.VPrediction(), dj.Rectified(), v, xt, 0.5)
    >>> print(x0, eps)
    [[2. 2.]] [[1. 1.]]
    """
    xt = as_samples("xt", xt)
    y = as_samples("y", y, xt.shape)
    check_time(t, xt)
    a, b = (expand(c, xt) for c in parameterisation.coefficients(process, t))
    alpha, sigma = expand(process.alpha(t), xt), expand(process.sigma(t), xt)
    d = alpha * b - sigma * a
    return (b * xt - sigma * y) / d, (alpha * y - a * xt) / d


def eps_error_scale(parameterisation: AbstractParameterisation, process: AbstractGaussianProcess, t: Time) -> Time:
    """(alpha/(alpha b - sigma a))^2, of the shape of t: ||eps - eps_hat||^2 is this times ||y - y_hat||^2.

    >>> import diffjax as dj
    >>> from diffjax.parameterisation import eps_error_scale
    >>> print(eps_error_scale(dj.X0Prediction(), dj.Rectified(), 0.25))  # alpha^2/sigma^2
    9.0
    """
    a, b = parameterisation.coefficients(process, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    of_eps = (a == 0) & (b != 0)  # y = b eps: alpha cancels, also where it is 0
    d = jnp.where(of_eps, 1.0, alpha * b - sigma * a)
    return jnp.where(of_eps, 1 / jnp.where(of_eps, b, 1.0), alpha / d) ** 2
