"""Processes made from processes: another schedule on the same path.

Shifted     lambda(t) = lambda_inner(t) + shift                on the inner process's path
Clipped     the part of a process between two values of lambda, its clock stretched onto [0, 1]
Retimed     lambda(t) = lambda_clock(t)                        on the path of another process

A path is the curve that alpha and sigma run along (see `scales`), so that alpha and sigma with a new lambda need no
inversion. Over a gap, sigma_{t|s}^2 = sigma_t^2 (1 - exp(lambda_t - lambda_s)): where the differences of lambda are
those of another process, sigma_{t|s} is that process's times the ratio of the two sigma_t.
"""

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check, is_concrete, on_host
from diffjax._typing import Scalar, Time
from diffjax.process._base import AbstractGaussianProcess, conditional, logsnr, time_from_logsnr
from diffjax.process._learned import check_ends
from diffjax.process._scales import scales


class Shifted(AbstractGaussianProcess):
    """A process whose logsnr is moved by `shift` at every time, for data of another resolution.

    Of `Cosine` it is `Cosine(shift)`. Of `Rectified` with shift = -2 log(s) it is the time shift
    t' = s t/(1 + (s - 1) t) of Esser et al. 2024 (Scaling rectified flow transformers), eq. 23.

    Attributes:
      process: the process to shift. One that begins with noise (VE, Karras) begins with exp(-shift/2) times as much.
      shift: added to logsnr, nats; negative for more noise; finite.

    Raises:
      ValueError: the shift is not finite.

    Source: Hoogeboom et al. 2023 (simple diffusion), eq. 3.
    """

    process: AbstractGaussianProcess
    shift: Scalar = eqx.field(converter=as_scalar)

    def __check_init__(self):
        check(jnp.isfinite(self.shift), f"shift: must be finite, got {self.shift}")

    def alpha(self, t: Time) -> Time:
        return _shifted(self, t)[0]

    def sigma(self, t: Time) -> Time:
        return _shifted(self, t)[1]


def _shifted(process: Shifted, t: Time) -> tuple[Time, Time]:
    inner = process.process
    # The larger of the two factors is one, so that nothing overflows.
    data, noise = (jnp.exp(jnp.minimum(0.0, sign * 0.5 * process.shift)) for sign in (1, -1))
    return scales(inner, inner.alpha(t) * data, inner.sigma(t) * noise)


@logsnr.register(Shifted)
def _(process: Shifted, t: Time) -> Time:
    return logsnr(process.process, t) + process.shift


@time_from_logsnr.register(Shifted)
def _(process: Shifted, value: Time) -> Time:
    return time_from_logsnr(process.process, jnp.asarray(value) - process.shift)


@conditional.register(Shifted)
def _(process: Shifted, t: Time, s: Time) -> tuple[Time, Time]:
    return _same_lambda(process, process.process, t, s)


@scales.register(Shifted)
def _(process: Shifted, data: Time, noise: Time) -> tuple[Time, Time]:
    return scales(process.process, data, noise)


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

    def __check_init__(self):
        if not is_concrete((self.process, self.clock)):
            return
        with on_host():
            ends = jnp.array([0.0, 1.0])
            for name, values in (("alpha", self.alpha(ends)), ("sigma", self.sigma(ends))):
                check(jnp.isfinite(values), f"{name}: must be finite at t = 0 and 1, got {values}: clip the clock")

    def alpha(self, t: Time) -> Time:
        return scales(self.process, self.clock.alpha(t), self.clock.sigma(t))[0]

    def sigma(self, t: Time) -> Time:
        return scales(self.process, self.clock.alpha(t), self.clock.sigma(t))[1]


@logsnr.register(Retimed)
def _(process: Retimed, t: Time) -> Time:
    return logsnr(process.clock, t)


@time_from_logsnr.register(Retimed)
def _(process: Retimed, value: Time) -> Time:
    return time_from_logsnr(process.clock, value)


@conditional.register(Retimed)
def _(process: Retimed, t: Time, s: Time) -> tuple[Time, Time]:
    return _same_lambda(process, process.clock, t, s)


@scales.register(Retimed)
def _(process: Retimed, data: Time, noise: Time) -> tuple[Time, Time]:
    return scales(process.process, data, noise)


def _same_lambda(process: Shifted | Retimed, other: AbstractGaussianProcess, t: Time, s: Time) -> tuple[Time, Time]:
    """The kernel of a process whose differences of lambda are the other's."""
    spread = conditional(other, t, s)[1] * (process.sigma(t) / other.sigma(t))
    return process.alpha(t) / process.alpha(s), spread


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
    logsnr_max: Scalar = eqx.field(converter=as_scalar)
    logsnr_min: Scalar = eqx.field(converter=as_scalar)

    def __check_init__(self):
        check_ends(self.logsnr_max, self.logsnr_min)
        if is_concrete(self):
            with on_host():
                first, last = (logsnr(self.process, jnp.asarray(t)) for t in (0.0, 1.0))
            slack = 1e-5 * (1 + abs(self.logsnr_max) + abs(self.logsnr_min))
            check(
                self.logsnr_max <= first + slack,
                f"logsnr_max: the process begins at {first}, got {self.logsnr_max}",
            )
            check(self.logsnr_min >= last - slack, f"logsnr_min: the process ends at {last}, got {self.logsnr_min}")

    def alpha(self, t: Time) -> Time:
        return self.process.alpha(_inner_time(self, t))

    def sigma(self, t: Time) -> Time:
        return self.process.sigma(_inner_time(self, t))


def _ends(process: Clipped) -> tuple[Time, Time]:
    ends = (time_from_logsnr(process.process, value) for value in (process.logsnr_max, process.logsnr_min))
    first, last = (jnp.clip(t, 0.0, 1.0) for t in ends)
    return first, last


def _inner_time(process: Clipped, t: Time) -> Time:
    first, last = _ends(process)
    return first + (last - first) * t


@logsnr.register(Clipped)
def _(process: Clipped, t: Time) -> Time:
    return logsnr(process.process, _inner_time(process, t))


@time_from_logsnr.register(Clipped)
def _(process: Clipped, value: Time) -> Time:
    first, last = _ends(process)
    return (time_from_logsnr(process.process, value) - first) / (last - first)


@conditional.register(Clipped)
def _(process: Clipped, t: Time, s: Time) -> tuple[Time, Time]:
    return conditional(process.process, _inner_time(process, t), _inner_time(process, s))


@scales.register(Clipped)
def _(process: Clipped, data: Time, noise: Time) -> tuple[Time, Time]:
    return scales(process.process, data, noise)
