"""Gaussian processes: a schedule alpha, sigma, and all that follows from it.

    xt = alpha(t) x0 + sigma(t) eps,  eps ~ N(0, I)

A process is given by alpha and sigma alone; the rest follows (Song et al. 2021, eqs. 5 and 29; Kingma et al. 2021,
section 3):

    lambda(t) = log(alpha^2 / sigma^2)                          logsnr, strictly falling
    f(x, t) = (alpha'/alpha) x,    g(t)^2 = -sigma^2 lambda'(t)
    xt | xs ~ N(a xs, v I),  a = alpha_t/alpha_s,  v = sigma_t^2 - a^2 sigma_s^2        for s < t

The methods of `AbstractGaussianProcess` hold for any alpha and sigma; a class overrides one by its closed form where
differences would cost digits. What is derived from them alike for all is a function of the process.

A path is the curve that (alpha, sigma) runs along from (1, 0) towards noise; a ratio alpha : sigma picks a point of it:

    circle   alpha^2 + sigma^2 = 1     variance preserving
    line     alpha + sigma = 1         rectified flow, polynomial paths
    alpha = 1                          variance exploding
"""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    as_samples,
    check_key,
    check_shape,
    check_time,
    default_index,
    expand,
    is_concrete,
    normal_like,
    sample_keys,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Sample, Scalar, Time
from diffjax.process._base import MAX_LOGSNR, AbstractProcess
from diffjax.process._check_schedule import check_schedule


class AbstractGaussianProcess(AbstractProcess):
    """A process with xt | x0 ~ N(alpha(t) x0, sigma(t)^2 I). A class defines alpha and sigma; the SDE is derived.

    A class with two methods is a process:

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> class Quadratic(dj.process.AbstractGaussianProcess):
    ...     def alpha(self, t):
    ...         return 1 - t**2
    ...     def sigma(self, t):
    ...         return t * jnp.sqrt(2 - t**2)
    >>> print(f"{Quadratic().logsnr(0.5):.4f}")
    0.2513

    `logsnr`, `time_from_logsnr`, `conditional`, `scales` and `interval` have defaults for any alpha and sigma;
    override one where there is a closed form.

    Raises:
      ValueError: alpha or sigma is not positive and finite at one of the thousand times on [0, 1] that are checked
        (alpha may be 0 at t = 1, sigma at t = 0), or logsnr does not fall between them. Nothing is checked inside jit,
        nor for a class that overrides `logsnr`.

    Warns:
      UserWarning: alpha or sigma loses its digits in float32, as sqrt(1 - alpha^2) does near the data.
    """

    def __check_init__(self):
        if type(self).logsnr is AbstractGaussianProcess.logsnr and is_concrete(self):
            check_schedule(self)

    @abc.abstractmethod
    def alpha(self, t: Time) -> Time:
        """The scale of the data at time t, shape of t; positive before t = 1."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Time:
        """The standard deviation of the noise at time t, shape of t; positive after t = 0."""

    def logsnr(self, t: Time) -> Time:
        """lambda(t) = log(alpha^2/sigma^2), in nats, of the shape of t: large at data, strictly falling in t.

        Source: Kingma et al. 2021 (Variational Diffusion Models), eq. 5.
        """
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time_from_logsnr(self, value: Time) -> Time:
        """The t with logsnr(t) = value, of the shape of value; the end of [0, 1] where there is none.

        By bisection, exact to rounding in t, for a process without a closed form. Its derivative is the inverse
        function's, 1/lambda'. A closed form may answer beyond [0, 1], as far as its schedule goes.
        """
        value = jnp.asarray(value)
        fixed = jax.lax.stop_gradient(self)

        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            above = fixed.logsnr(middle) > value
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        steps = jnp.finfo(value.dtype).nmant + 30  # resolves times down to 1e-9 and every float below one
        low, high = jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(value), jnp.ones_like(value)))
        first, last = fixed.logsnr(jnp.zeros_like(value)), fixed.logsnr(jnp.ones_like(value))
        middle = 0.5 * (low + high)
        middle = jnp.where(jnp.isfinite(fixed.logsnr(middle)), middle, high)  # sigma may be 0 to rounding below it
        t = jnp.where(value >= first, 0.0, jnp.where(value <= last, 1.0, jax.lax.stop_gradient(middle)))
        # One Newton step of zero length: it moves nothing and carries the derivative to value and to the process. There
        # is none at an end that stands in for a value beyond it, and lambda(1) may be -inf.
        inside = jnp.minimum(t, 1 - jnp.finfo(value.dtype).epsneg)
        reached = (last < value) & (value < first)
        residual = value - self.logsnr(inside)
        step = jnp.where(reached, residual - jax.lax.stop_gradient(residual), 0.0)
        return t + step / jax.lax.stop_gradient(logsnr_rate(fixed, inside))

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        """(alpha_{t|s}, sigma_{t|s}) of xt | xs ~ N(alpha_{t|s} xs, sigma_{t|s}^2 I) for s < t, of the shape of t.

        Without a closed form, sigma_{t|s}^2 = -sigma_t^2 expm1(lambda_t - lambda_s): in float32 its relative error is
        about 1e-6 over the gap t - s.
        """
        growth, sigma_t, sigma_s = self.alpha(t) / self.alpha(s), self.sigma(t), self.sigma(s)
        # Where alpha_t or sigma_s is 0 the difference is exact, and lambda, of infinite slope, is taken elsewhere.
        ends, middle = (growth == 0) | (sigma_s == 0), 0.5 * (t + s)
        gap = self.logsnr(jnp.where(growth == 0, middle, t)) - self.logsnr(jnp.where(sigma_s == 0, middle, s))
        rest = jnp.sqrt(jnp.where(ends, sigma_t**2 - (growth * sigma_s) ** 2, 1.0))
        return growth, jnp.where(ends, rest, sigma_t * jnp.sqrt(-jnp.expm1(jnp.where(ends, -1.0, gap))))

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        """The point (alpha, sigma) of the process's path that has the ratio alpha : sigma, each of the shape of alpha.

        Inverting logsnr to t loses digits in float32, where a step of t near 1 is a large one of logsnr; a closed form
        does not. Without one the point comes from `time_from_logsnr`; past an end of the path the larger of the two
        stays what it is there, and the other has the ratio given.

        Args:
          alpha: scale of the data, of any shape; not negative.
          sigma: standard deviation of the noise, of the same shape; not negative, and not zero where alpha is.
        """
        t = jnp.clip(self.time_from_logsnr(2 * (jnp.log(alpha) - jnp.log(sigma))), 0.0, 1.0)
        own_alpha, own_sigma, clean = self.alpha(t), self.sigma(t), alpha >= sigma
        larger = jnp.where(clean, alpha, sigma)
        return (
            jnp.where(clean, own_alpha, own_sigma * (alpha / larger)),
            jnp.where(clean, own_alpha * (sigma / larger), own_sigma),
        )

    def interval(self) -> tuple[Scalar, Scalar]:
        """(t_min, t_max), two scalars: where |logsnr| <= 20, so that values and gradients are finite.

        Training times, default grids and likelihood stay inside. For `EDM` it is all of [0, 1].
        """
        ends = (self.time_from_logsnr(jnp.asarray(value)) for value in (MAX_LOGSNR, -MAX_LOGSNR))
        t_min, t_max = (jnp.clip(t, 0.0, 1.0) for t in ends)
        return t_min, t_max

    def drift(self, x: Sample, t: Time) -> Sample:
        """f(x, t) = (alpha'/alpha) x, shape [b, *d]."""
        x = as_samples("x", x)
        alpha, alpha_dot = _value_and_rate(self.alpha, t)
        return expand(alpha_dot / alpha, x) * x

    def diffusion(self, x: Sample, t: Time) -> Time:
        """g(t) = sigma sqrt(-lambda'), shape of t."""
        return self.sigma(t) * jnp.sqrt(-logsnr_rate(self, t))

    def noise_divergence(self, x: Sample, t: Time) -> Sample:
        """Zero, [b, *d]: g depends on the time alone."""
        return jnp.zeros_like(as_samples("x", x))


def on_circle(alpha: Time, sigma: Time) -> tuple[Time, Time]:
    """`scales` of a process that preserves variance, alpha^2 + sigma^2 = 1; each of the shape of alpha."""
    radius = jnp.sqrt(alpha**2 + sigma**2)
    return alpha / radius, sigma / radius


def on_line(alpha: Time, sigma: Time) -> tuple[Time, Time]:
    """`scales` of a process with alpha + sigma = 1; each of the shape of alpha."""
    return alpha / (alpha + sigma), sigma / (alpha + sigma)


def with_alpha_one(alpha: Time, sigma: Time) -> tuple[Time, Time]:
    """`scales` of a process with alpha = 1; each of the shape of alpha."""
    return jnp.ones_like(alpha), sigma / alpha


def root_from_zero(square: Time, t: Time) -> Time:
    """sqrt(square), of the shape of t, for a square that is 0 at one end of the clock whatever the process's numbers.

    There the slope in t is infinite and that in the numbers is 0, whose product would be NaN.
    """
    end = square == 0
    clock = jnp.asarray(t) - jax.lax.stop_gradient(t)  # 0, of slope 1 in t and of none in anything else
    return jnp.where(end, jnp.sqrt(jnp.where(end, clock, 1.0)), jnp.sqrt(jnp.where(end, 1.0, square)))


def logsnr_rate(process: AbstractGaussianProcess, t: Time) -> Time:
    """lambda'(t), negative, of the shape of t; by jvp. -lambda' = g^2/sigma^2 is the weight of the ELBO.

    >>> import diffjax as dj
    >>> from diffjax.process import logsnr_rate
    >>> print(logsnr_rate(dj.Rectified(), 0.5))  # -2/(t (1 - t))
    -8.0
    """
    return _value_and_rate(process.logsnr, t)[1]


def schedule_derivatives(process: AbstractGaussianProcess, t: Time) -> tuple[Time, Time]:
    """(alpha'(t), sigma'(t)), each of the shape of t; by jvp. They may be infinite at t = 0 and 1 themselves.

    >>> import diffjax as dj
    >>> from diffjax.process import schedule_derivatives
    >>> print(*schedule_derivatives(dj.Rectified(), 0.5))
    -1.0 1.0
    """
    return _value_and_rate(process.alpha, t)[1], _value_and_rate(process.sigma, t)[1]


def _value_and_rate(function: Callable[[Time], Time], t: Time) -> tuple[Time, Time]:
    """A schedule and its time derivative, elementwise in t, both of the shape of t."""
    t = jnp.asarray(t, jnp.result_type(float) if isinstance(t, float | int) else None)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))


def scales_from_logsnr(process: AbstractGaussianProcess, value: Time) -> tuple[Time, Time]:
    """The process's (alpha, sigma) where its logsnr is `value`, each of the shape of `value` (+-inf too).

    >>> import diffjax as dj
    >>> from diffjax.process import scales_from_logsnr
    >>> print(*scales_from_logsnr(dj.Rectified(), 0.0))
    0.5 0.5
    """
    value = jnp.asarray(value)
    # By `where`: in jit, `minimum` loses its derivative where the value is computed twice and rounded otherwise.
    noisy = value < 0
    signal, noise = jnp.where(noisy, value, 0.0), jnp.where(noisy, 0.0, value)
    return process.scales(jnp.exp(0.5 * signal), jnp.exp(-0.5 * noise))


def perturb(process: AbstractGaussianProcess, x0: Sample, eps: Sample, t: Time) -> Sample:
    """Noisy samples at t: xt = alpha(t) x0 + sigma(t) eps.

    >>> import jax.numpy as jnp
    >>> from diffjax import Rectified, perturb
    >>> print(perturb(Rectified(), jnp.array([[1.0]]), jnp.array([[-1.0]]), 0.25))
    [[0.5]]

    Args:
      process: the forward process.
      x0: data [b, *d].
      eps: standard normal noise [b, *d].
      t: [] or [b].

    Returns:
      xt, [b, *d].

    Raises:
      ValueError: a shape does not fit, or a number is not floating-point.
    """
    x0 = as_samples("x0", x0)
    eps = as_samples("eps", eps, x0.shape)
    check_time(t, x0)
    return expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps


@checked_numbers
def prior(
    key: Key, process: AbstractGaussianProcess, shape: tuple[int, ...], *, index: Index | None = None
) -> Float[Array, "b *d"]:
    """Noise to start sampling from, N(0, sigma(1)^2 I).

    >>> import jax
    >>> import diffjax as dj
    >>> xT = dj.prior(jax.random.key(0), dj.EDM(), (1000, 2))
    >>> xT.shape, round(float(xT.std()))
    ((1000, 2), 77)

    Args:
      key: sample i is drawn from `fold_in(key, index_i)`, and depends on its global index alone.
      process: the forward process.
      shape: (b, *d).
      index: global indices [b] of the samples; 0 .. b - 1 by default.

    Returns:
      x at t = 1, [b, *d].

    Raises:
      ValueError: `index` has not one entry a sample.
    """
    check_key(key)
    check_shape(shape)
    like = jnp.empty(shape, jnp.result_type(float))
    keys = sample_keys(key, default_index(shape[0], index))
    return jnp.asarray(process.sigma(1.0) * normal_like(keys, like), like.dtype)


def prior_log_prob(process: AbstractGaussianProcess, x: Sample, t: Time = 1.0) -> Float[Array, " b"]:
    """log N(x; 0, sigma(t)^2 I) in nats: the density that `prior` draws from, at t = 1.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.process import prior_log_prob
    >>> round(float(prior_log_prob(dj.Rectified(), jnp.zeros((1, 2)))[0]), 2)  # -log(2 pi)
    -1.84

    Args:
      process: the forward process.
      x: [b, *d].
      t: [] or [b].

    Returns:
      [b].
    """
    x = as_samples("x", x)
    check_time(t, x)
    sigma = jnp.broadcast_to(jnp.asarray(process.sigma(t), x.dtype), x.shape[:1])
    z = x / expand(sigma, x)
    per_feature = -0.5 * (z**2 + jnp.log(2 * jnp.pi)) - jnp.log(expand(sigma, x))
    return jnp.sum(per_feature, axis=tuple(range(1, x.ndim)))


def posterior_mean_std(
    process: AbstractGaussianProcess, x0: Sample, xt: Sample, s: Time, t: Time
) -> tuple[Sample, Time]:
    """Mean and standard deviation of q(xs | xt, x0) for s < t, one step of the chain backwards.

        mean = c_x xt + c_x0 x0,   std = sigma_s sigma_{t|s}/sigma_t
        c_x = alpha_{t|s} sigma_s^2/sigma_t^2,   c_x0 = alpha_s sigma_{t|s}^2/sigma_t^2

    with (alpha_{t|s}, sigma_{t|s}) = process.conditional(t, s).

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> x0, xt = jnp.zeros((1, 2)), jnp.ones((1, 2))
    >>> mean, std = dj.posterior_mean_std(dj.Rectified(), x0, xt, s=0.25, t=0.5)
    >>> print(mean.shape, round(float(std), 3))
    (1, 2) 0.236

    Args:
      process: the forward process.
      x0: data [b, *d].
      xt: noisy samples [b, *d] at t.
      s: [] or [b], less than t.
      t: [] or [b].

    Returns:
      The mean [b, *d], and the standard deviation [] or [b].

    Source: Ho et al. 2020, eqs. 6-7; Kingma et al. 2021, eq. 25.
    """
    x0 = as_samples("x0", x0)
    xt = as_samples("xt", xt, x0.shape)
    check_time(s, x0, "s")
    check_time(t, x0)
    alpha_ts, sigma_ts = process.conditional(t, s)
    sigma_s, sigma_t = process.sigma(s), process.sigma(t)
    c_x, c_x0 = alpha_ts * (sigma_s / sigma_t) ** 2, process.alpha(s) * (sigma_ts / sigma_t) ** 2
    return expand(c_x, xt) * xt + expand(c_x0, x0) * x0, sigma_s * sigma_ts / sigma_t
