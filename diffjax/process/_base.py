"""Forward processes: what every other module knows of noise.

    dx = f(x, t) dt + g(x, t) dw                                any process
    xt = alpha(t) x0 + sigma(t) eps,  eps ~ N(0, I)             a Gaussian one

A Gaussian process is given by alpha and sigma alone; the rest follows (Song et al. 2021, eqs. 5 and 29; Kingma et
al. 2021, section 3):

    lambda(t) = log(alpha^2 / sigma^2)                          logsnr, strictly falling
    f(x, t) = (alpha'/alpha) x,    g(t)^2 = -sigma^2 lambda'(t)
    xt | xs ~ N(a xs, v I),  a = alpha_t/alpha_s,  v = sigma_t^2 - a^2 sigma_s^2        for s < t

`logsnr`, `time_from_logsnr` and `conditional` are generic functions: what stands here holds for any alpha and sigma,
and a process registers its closed form where differences would cost digits.
"""

import abc
import warnings
from functools import singledispatch

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import check, default_index, expand, is_concrete, normal_like, on_host, sample_keys
from diffjax._typing import Index, Key, Sample, Scalar, Time

MAX_LOGSNR = 20.0
"""Times with a larger |logsnr| lie outside `interval`: e^20 is what float32 weights still bear."""


class AbstractProcess(eqx.Module):
    """A forward SDE dx = f(x, t) dt + g(x, t) dw on t in [0, 1], from data at 0 to noise at 1 (Ito)."""

    @abc.abstractmethod
    def drift(self, x: Sample, t: Time) -> Sample:
        """f(x, t), shape [b, *d]."""

    @abc.abstractmethod
    def diffusion(self, x: Sample, t: Time) -> Time | Sample:
        """g(x, t): shape [] or [b] where it is one number a sample, [b, *d] where the noise is diagonal.

        For matrices see `SDE` and `AbstractLinearProcess`.
        """


class AbstractGaussianProcess(AbstractProcess):
    """A process with xt | x0 ~ N(alpha(t) x0, sigma(t)^2 I). A member gives alpha and sigma; the SDE is derived.

    A process of one's own is a class with two methods:

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> class Quadratic(dj.AbstractGaussianProcess):
    ...     def alpha(self, t):
    ...         return 1 - t**2
    ...     def sigma(self, t):
    ...         return t * jnp.sqrt(2 - t**2)
    >>> print(f"{dj.logsnr(Quadratic(), 0.5):.4f}")
    0.2513

    Raises:
      ValueError: alpha or sigma is not positive and finite at one of the thousand times on [0, 1] that are looked at
        (alpha may be 0 at t = 1, sigma at t = 0), or logsnr does not fall between them. Nothing is looked at inside
        jit, and a class that registers its own `logsnr` answers for itself.

    Warns:
      UserWarning: alpha or sigma loses its digits in float32, as sqrt(1 - alpha^2) does near the data.
    """

    def __check_init__(self):
        if logsnr.dispatch(type(self)) is logsnr.dispatch(AbstractGaussianProcess) and is_concrete(self):
            _check_schedule(self)

    @abc.abstractmethod
    def alpha(self, t: Time) -> Time:
        """The scale of the data at time t, shape of t; positive before t = 1."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Time:
        """The standard deviation of the noise at time t, shape of t; positive after t = 0."""

    def drift(self, x: Sample, t: Time) -> Sample:
        """f(x, t) = (alpha'/alpha) x, shape [b, *d]."""
        alpha, alpha_dot = _value_and_rate(self.alpha, t)
        return expand(alpha_dot / alpha, x) * x

    def diffusion(self, x: Sample, t: Time) -> Time:
        """g(t) = sigma sqrt(-lambda'), shape of t."""
        return self.sigma(t) * jnp.sqrt(-logsnr_rate(self, t))


_LOOKED_AT = np.concatenate([[0.0, 1e-4], np.arange(1, 1000) / 1000, [1 - 1e-4, 1.0]])


def _check_schedule(process):
    """Looks at a schedule at a thousand times, in float64 on the host; not at all under a trace."""
    if not is_concrete(jnp.ones(())):
        return
    with on_host():
        alpha, sigma = _in_float64(process, _LOOKED_AT)
    name = type(process).__name__
    for what, values, end, where in (("alpha", alpha, -1, "alpha(1)"), ("sigma", sigma, 0, "sigma(0)")):
        right = (values > 0) & (values < np.inf)
        right[end] |= abs(values[end]) < 1e-12  # 0, to rounding
        i = int(np.argmin(right))
        check(
            right,
            f"{name}: {what} must be positive and finite (only {where} may be 0), got {values[i]} at "
            f"t = {_LOOKED_AT[i]}",
        )
    with np.errstate(divide="ignore"):
        value = 2 * (np.log(np.maximum(alpha, 0)) - np.log(np.maximum(sigma, 0)))
    falls = np.diff(value) < 0
    i = int(np.argmin(falls))
    first, second = (f"{value[k]} at t = {_LOOKED_AT[k]}" for k in (i, i + 1))
    check(falls, f"{name}: logsnr must fall, got {first} and {second}")
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        _check_float32(process, name)


def _in_float64(process, times):
    """alpha and sigma at times [n], [n] each, computed in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        exact = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), float) if eqx.is_inexact_array(x) else x, process)
        t = jnp.asarray(times, float)
        return [np.broadcast_to(function(t), t.shape) for function in (exact.alpha, exact.sigma)]


_NEAR = np.geomspace(1e-10, 0.1, 60)
_IN_FLOAT32 = np.unique(np.float32(np.concatenate([_NEAR, _LOOKED_AT[1:-1], 1 - _NEAR[_NEAR > 1e-7]])))


def _check_float32(process, name):
    """Compares a schedule in float32 with itself in float64, where |logsnr| is at most 20."""
    with on_host():
        t = jnp.asarray(_IN_FLOAT32)
        rough = [np.broadcast_to(function(t), t.shape) for function in (process.alpha, process.sigma)]
        fine = _in_float64(process, _IN_FLOAT32)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = abs(2 * np.log(fine[0] / fine[1])) <= MAX_LOGSNR
        for what, found, truth in zip(("alpha", "sigma"), rough, fine, strict=True):
            right = ~inside | (abs(found / truth - 1) < 0.05)
            if not right.all():
                i = int(np.argmin(right))
                warnings.warn(
                    f"{name}: {what} loses its digits in float32, got {found[i]} at t = {_IN_FLOAT32[i]} where float64 "
                    f"has {truth[i]}; write 1 - exp(-b) as -expm1(-b) and 1 - (1 - t)^k as -expm1(k log1p(-t)), "
                    f"and near t = 1 cos(pi t/2) as sin(pi (1 - t)/2)",
                    stacklevel=6,
                )


def root_from_zero(square: Time, t: Time) -> Time:
    """sqrt(square), of the shape of t, for a square that is 0 at one end of the clock whatever the process's numbers.

    There the slope in t is infinite, and that in the numbers is 0: infinity times 0, if nothing told them apart.
    """
    end = square == 0
    clock = jnp.asarray(t) - jax.lax.stop_gradient(t)  # 0, of slope 1 in t and of none in anything else
    return jnp.where(end, jnp.sqrt(jnp.where(end, clock, 1.0)), jnp.sqrt(jnp.where(end, 1.0, square)))


def _value_and_rate(function, t):
    """A schedule and its time derivative, elementwise in t, both of the shape of t."""
    t = jnp.asarray(t, jnp.result_type(float) if isinstance(t, float | int) else None)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))


@singledispatch
def logsnr(process: AbstractGaussianProcess, t: Time) -> Time:
    """lambda(t) = log(alpha^2/sigma^2), in nats, of the shape of t: large at data, strictly falling in t.

    Source: Kingma et al. 2021 (Variational Diffusion Models), eq. 5.
    """
    return 2 * (jnp.log(process.alpha(t)) - jnp.log(process.sigma(t)))


def logsnr_rate(process: AbstractGaussianProcess, t: Time) -> Time:
    """lambda'(t), negative, of the shape of t; by jvp. -lambda' = g^2/sigma^2 is the weight of the ELBO."""
    return _value_and_rate(lambda u: logsnr(process, u), t)[1]


def rates(process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
    """(alpha'(t), sigma'(t)), each of the shape of t; by jvp. They may be infinite at t = 0 and 1 themselves."""
    return _value_and_rate(process.alpha, t)[1], _value_and_rate(process.sigma, t)[1]


@singledispatch
def time_from_logsnr(process: AbstractGaussianProcess, value: Time) -> Time:
    """The t with logsnr(process, t) = value, of the shape of value; the end of [0, 1] where there is none.

    By bisection, exact to rounding in t, for a process without a closed form. Its derivative is the inverse
    function's, 1/lambda'. A closed form may answer beyond [0, 1], as far as its schedule goes.
    """
    value = jnp.asarray(value)
    still = jax.lax.stop_gradient(process)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        above = logsnr(still, middle) > value
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    steps = jnp.finfo(value.dtype).nmant + 30  # resolves times down to 1e-9 and every float below one
    low, high = jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(value), jnp.ones_like(value)))
    first, last = logsnr(still, jnp.zeros_like(value)), logsnr(still, jnp.ones_like(value))
    middle = 0.5 * (low + high)
    middle = jnp.where(jnp.isfinite(logsnr(still, middle)), middle, high)  # sigma may be 0 to rounding below it
    t = jnp.where(value >= first, 0.0, jnp.where(value <= last, 1.0, jax.lax.stop_gradient(middle)))
    # One Newton step of zero length: it moves nothing and carries the derivative to value and to the process. There is
    # none at an end that stands in for a value beyond it, and lambda(1) may be -inf.
    inside = jnp.minimum(t, 1 - jnp.finfo(value.dtype).epsneg)
    reached = (last < value) & (value < first)
    residual = value - logsnr(process, inside)
    step = jnp.where(reached, residual - jax.lax.stop_gradient(residual), 0.0)
    return t + step / jax.lax.stop_gradient(logsnr_rate(still, inside))


@singledispatch
def interval(process: AbstractProcess) -> tuple[Scalar, Scalar]:
    """(t_min, t_max), two scalars: the part of [0, 1] that training times, default grids and likelihood stay inside.

    For a Gaussian process it is where |logsnr| <= 20, so that values and gradients are finite: all of [0, 1] for
    `Karras`. For a process without a logsnr, such as `SDE`, it is all of [0, 1], unless its class registers its own.
    """
    return 0.0, 1.0


@interval.register(AbstractGaussianProcess)
def _(process: AbstractGaussianProcess) -> tuple[Scalar, Scalar]:
    ends = (time_from_logsnr(process, jnp.asarray(value)) for value in (MAX_LOGSNR, -MAX_LOGSNR))
    t_min, t_max = (jnp.clip(t, 0.0, 1.0) for t in ends)
    return t_min, t_max


def perturb(process: AbstractGaussianProcess, x0: Sample, eps: Sample, t: Time) -> Sample:
    """xt = alpha(t) x0 + sigma(t) eps, all samples [b, *d], t of shape [] or [b]."""
    return expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps


def prior(
    key: Key, process: AbstractGaussianProcess, shape: tuple[int, ...], *, index: Index | None = None
) -> Float[Array, "b *d"]:
    """Noise to start sampling from: N(0, sigma(1)^2 I), shape `shape` = (b, *d).

    Sample i is drawn from `fold_in(key, index_i)`: it depends on its global index (default 0 .. b - 1) alone.

    Raises:
      ValueError: `index` has not one entry a sample.
    """
    like = jnp.empty(shape, jnp.result_type(float))
    keys = sample_keys(key, default_index(shape[0], index))
    return jnp.asarray(process.sigma(1.0) * normal_like(keys, like), like.dtype)


def prior_log_prob(process: AbstractGaussianProcess, x: Sample, t: Time = 1.0) -> Float[Array, " b"]:
    """log N(x; 0, sigma(t)^2 I) in nats, [b]: the density that `prior` draws from (at t = 1)."""
    sigma = jnp.broadcast_to(jnp.asarray(process.sigma(t), x.dtype), x.shape[:1])
    z = x / expand(sigma, x)
    per_feature = -0.5 * (z**2 + jnp.log(2 * jnp.pi)) - jnp.log(expand(sigma, x))
    return jnp.sum(per_feature, axis=tuple(range(1, x.ndim)))


@singledispatch
def conditional(process: AbstractGaussianProcess, t: Time, s: Time) -> tuple[Time, Time]:
    """(alpha_{t|s}, sigma_{t|s}) of xt | xs ~ N(alpha_{t|s} xs, sigma_{t|s}^2 I) for s < t, of the shape of t.

    Without a closed form, sigma_{t|s}^2 = -sigma_t^2 expm1(lambda_t - lambda_s): in float32 its relative error is
    about 1e-6 over the gap t - s.
    """
    growth, sigma_t, sigma_s = process.alpha(t) / process.alpha(s), process.sigma(t), process.sigma(s)
    # Where alpha_t or sigma_s is 0 the difference is exact, and lambda, of infinite slope, is asked for elsewhere.
    ends, middle = (growth == 0) | (sigma_s == 0), 0.5 * (t + s)
    gap = logsnr(process, jnp.where(growth == 0, middle, t)) - logsnr(process, jnp.where(sigma_s == 0, middle, s))
    rest = jnp.sqrt(jnp.where(ends, sigma_t**2 - (growth * sigma_s) ** 2, 1.0))
    return growth, jnp.where(ends, rest, sigma_t * jnp.sqrt(-jnp.expm1(jnp.where(ends, -1.0, gap))))


def posterior_mean_std(
    process: AbstractGaussianProcess, x0: Sample, xt: Sample, s: Time, t: Time
) -> tuple[Sample, Time]:
    """Mean [b, *d] and standard deviation [] or [b] of q(xs | xt, x0) for s < t.

        mean = (a sigma_s^2/sigma_t^2) xt + (alpha_s v/sigma_t^2) x0,   std = sigma_s sqrt(v)/sigma_t

    with (a, sqrt v) = conditional(process, t, s). Source: Ho et al. 2020, eqs. 6-7; Kingma et al. 2021, eq. 25.
    """
    a, spread = conditional(process, t, s)
    sigma_s, sigma_t = process.sigma(s), process.sigma(t)
    keep, pull = a * (sigma_s / sigma_t) ** 2, process.alpha(s) * (spread / sigma_t) ** 2
    return expand(keep, xt) * xt + expand(pull, x0) * x0, sigma_s * spread / sigma_t
