"""Processes made from parts: a schedule from two functions, and another schedule on a given process's path.

Schedule    alpha(t), sigma(t) given as functions
Shifted     lambda(t) = lambda_inner(t) + shift                on the inner process's path
Clipped     the part of a process between two values of lambda, its clock stretched onto [0, 1]
Retimed     lambda(t) = lambda_clock(t)                        on the path of another process

A path is the curve that alpha and sigma run along (see `AbstractGaussianProcess.scales`), so that alpha and sigma with
a new lambda need no inversion. Over a gap, sigma_{t|s}^2 = sigma_t^2 (1 - exp(lambda_t - lambda_s)): where the
differences of lambda are those of another process, sigma_{t|s} is that process's times the ratio of the two sigma_t.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from diffjax._arrays import check, is_concrete, on_host, values_at_once
from diffjax._numbers import as_scalar
from diffjax._typing import Scalar, Time
from diffjax.process._gaussian import AbstractGaussianProcess
from diffjax.process._learned import check_ends


def _as_tree(name: str, function: Callable[[Time], Time]) -> Any:
    if not callable(function):
        raise ValueError(f"{name}: a function of the time is needed, got {function!r:.80}")
    return function if isinstance(function, eqx.Module | Partial) else Partial(function)


class Schedule(AbstractGaussianProcess):
    """A process from its alpha(t) and sigma(t), elementwise in t; the rest follows by differences and bisection.

    >>> from diffjax.process import Schedule
    >>> process = Schedule(lambda t: 1 - t**2, lambda t: t)
    >>> print(f"{process.logsnr(0.5):.4f}")
    0.8109

    Attributes:
      data_scale: alpha. A plain function is static: build it once, for it is compared by identity. An `eqx.Module`,
        or a `jax.tree_util.Partial` with numbers, has leaves that train.
      noise_scale: sigma, in the same way.

    Raises:
      ValueError: alpha or sigma is not positive and finite, but for alpha(1) and sigma(0), which may be 0; or logsnr
        does not fall.
    """

    data_scale: Callable[[Time], Time] = eqx.field(converter=partial(_as_tree, "data_scale"))
    noise_scale: Callable[[Time], Time] = eqx.field(converter=partial(_as_tree, "noise_scale"))

    def alpha(self, t: Time) -> Time:
        return self.data_scale(t)

    def sigma(self, t: Time) -> Time:
        return self.noise_scale(t)


class Shifted(AbstractGaussianProcess):
    """A process whose logsnr is moved by `shift` at every time, for data of another resolution.

    Of `Cosine` it is `Cosine(shift)`. Of `Rectified` with shift = -2 log(s) it is the time shift
    t' = s t/(1 + (s - 1) t) of Esser et al. 2024 (Scaling rectified flow transformers), eq. 23.

    Attributes:
      process: the process to shift. One that begins with noise (VE, EDM) begins with exp(-shift/2) times as much.
      shift: added to logsnr, nats; negative for more noise; finite.

    Raises:
      ValueError: the shift is not finite.

    Source: Hoogeboom et al. 2023 (simple diffusion), eq. 3.
    """

    process: AbstractGaussianProcess
    shift: Scalar = eqx.field(converter=partial(as_scalar, "shift"))

    @values_at_once
    def __check_init__(self):
        check(jnp.isfinite(self.shift), f"shift: must be finite, got {self.shift}")

    def alpha(self, t: Time) -> Time:
        return _finite_slope(lambda t: self._shifted(t)[0], self.process, t)

    def sigma(self, t: Time) -> Time:
        return self._shifted(t)[1]

    def logsnr(self, t: Time) -> Time:
        return self.process.logsnr(t) + self.shift

    def time_from_logsnr(self, value: Time) -> Time:
        return self.process.time_from_logsnr(jnp.asarray(value) - self.shift)

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        return _same_lambda(self, self.process, t, s)

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return self.process.scales(alpha, sigma)

    def _shifted(self, t: Time) -> tuple[Time, Time]:
        inner = self.process
        # The larger of the two factors is one, so that nothing overflows.
        signal, noise = (jnp.exp(jnp.minimum(0.0, sign * 0.5 * self.shift)) for sign in (1, -1))
        return inner.scales(inner.alpha(t) * signal, inner.sigma(t) * noise)


class Retimed(AbstractGaussianProcess):
    """The path of `process` on the schedule of `clock`: at every t its logsnr is the clock's.

    Attributes:
      process: gives the path (variance preserving, the line of rectified flow, alpha = 1, ...).
      clock: gives logsnr(t).

    Raises:
      ValueError: the path ends before the clock does, so that alpha or sigma is not finite at t = 0 or 1 (alpha = 1
        does, at logsnr -inf): clip the clock.
    """

    process: AbstractGaussianProcess
    clock: AbstractGaussianProcess

    @values_at_once
    def __check_init__(self):
        if not is_concrete((self.process, self.clock)):
            return
        with on_host():
            ends = jnp.array([0.0, 1.0])
            for name, values in (("alpha", self.alpha(ends)), ("sigma", self.sigma(ends))):
                check(jnp.isfinite(values), f"{name}: must be finite at t = 0 and 1, got {values}: clip the clock")

    def alpha(self, t: Time) -> Time:
        return self._scales(t, 0)

    def sigma(self, t: Time) -> Time:
        return self._scales(t, 1)

    def _scales(self, t: Time, which: int) -> Time:
        scales = lambda t: self.process.scales(self.clock.alpha(t), self.clock.sigma(t))[which]
        return _finite_slope(scales, self.clock, t)

    def logsnr(self, t: Time) -> Time:
        return self.clock.logsnr(t)

    def time_from_logsnr(self, value: Time) -> Time:
        return self.clock.time_from_logsnr(value)

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        return _same_lambda(self, self.clock, t, s)

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return self.process.scales(alpha, sigma)


class Clipped(AbstractGaussianProcess):
    """The part of a process between two values of logsnr, its clock stretched evenly onto [0, 1].

    In float32 the inner time is rounded once more, so that sigma_{t|s} over a gap is about 1e-7 over the gap off.

    Attributes:
      process: the process to clip.
      logsnr_max: where it begins, t = 0; the process must reach it.
      logsnr_min: where it ends, t = 1; less, and the process must reach it.

    Raises:
      ValueError: the end points are out of order, or the process does not reach one.
    """

    process: AbstractGaussianProcess
    logsnr_max: Scalar = eqx.field(converter=partial(as_scalar, "logsnr_max"))
    logsnr_min: Scalar = eqx.field(converter=partial(as_scalar, "logsnr_min"))

    @values_at_once
    def __check_init__(self):
        check_ends(self.logsnr_max, self.logsnr_min)
        if is_concrete(self):
            with on_host():
                first, last = (self.process.logsnr(jnp.asarray(t)) for t in (0.0, 1.0))
            slack = 1e-5 * (1 + abs(self.logsnr_max) + abs(self.logsnr_min))
            check(
                self.logsnr_max <= first + slack,
                f"logsnr_max: the process begins at {first}, got {self.logsnr_max}",
            )
            check(self.logsnr_min >= last - slack, f"logsnr_min: the process ends at {last}, got {self.logsnr_min}")

    def alpha(self, t: Time) -> Time:
        return self.process.alpha(self._inner_time(t))

    def sigma(self, t: Time) -> Time:
        return self.process.sigma(self._inner_time(t))

    def logsnr(self, t: Time) -> Time:
        return self.process.logsnr(self._inner_time(t))

    def time_from_logsnr(self, value: Time) -> Time:
        first, last = self._ends()
        return (self.process.time_from_logsnr(value) - first) / (last - first)

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        return self.process.conditional(self._inner_time(t), self._inner_time(s))

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return self.process.scales(alpha, sigma)

    def _ends(self) -> tuple[Time, Time]:
        ends = (self.process.time_from_logsnr(value) for value in (self.logsnr_max, self.logsnr_min))
        first, last = (jnp.clip(t, 0.0, 1.0) for t in ends)
        return first, last

    def _inner_time(self, t: Time) -> Time:
        first, last = self._ends()
        return first + (last - first) * t


_AFTER_DATA = 1e-15  # a time at which sigma is small, and its square no denormal number


def _finite_slope(scale: Callable[[Time], Time], inner: AbstractGaussianProcess, t: Time) -> Time:
    """alpha(t) or sigma(t), of the shape of t, with the slope of a time next to it where the sigma of `inner` is 0.

    It is made of that sigma, whose own slope may be infinite there, and then 0 times it is NaN.
    """
    clean = jax.lax.stop_gradient(inner.sigma(t)) == 0
    value = scale(jnp.where(clean, t + _AFTER_DATA, t))
    return jnp.where(clean, value + jax.lax.stop_gradient(scale(t) - value), value)


def _same_lambda(process: Shifted | Retimed, other: AbstractGaussianProcess, t: Time, s: Time) -> tuple[Time, Time]:
    """The kernel of a process whose differences of lambda are the other's."""
    cond_std = other.conditional(t, s)[1] * (process.sigma(t) / other.sigma(t))
    return process.alpha(t) / process.alpha(s), cond_std
