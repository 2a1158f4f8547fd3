"""Training times: which noise levels a loss sees, and how often.

A class maps a uniform number u in [0, 1] to a time by its quantile function, so every density is exact and stays
inside `process.interval()`:

    key, index --> u_i --> t_i = quantile(u_i)        independent: u_i from fold_in(key, i)
                                                      stratified: u_i = (u + i/total) mod 1
                                                      low-discrepancy: u_i = (u + i/golden ratio) mod 1

    uniform                                           E_t[ loss(t) ]
    lognormal, logit-normal, mode, uniform in logsnr  E_{t~q}[ loss(t) ]: q says which noise levels matter
    importance(q)                                     E_{t~q}[ p(t)/q(t) loss(t) ], the uniform objective by other times

Called as `times(key, n, *, index=None, total=None) -> (t [n], correction [n])`: `correction` multiplies the loss and
is 1 for all but `ImportanceTimes`; what is not uniform is part of the objective. `index` are the global indices of the
n samples (default 0 .. n - 1) and `total` the size of the global batch (default n): a sample's time depends on them and
on the key, not on the device that draws it.
"""

import abc
import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from diffjax._arrays import check, check_key, default_index, sample_keys, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Index, Key, Scalar, Time
from diffjax.process._base import AbstractProcess
from diffjax.process._gaussian import AbstractGaussianProcess, logsnr_rate


class AbstractTimes(eqx.Module):
    """A distribution of training times on `process.interval()`."""

    process: eqx.AbstractVar[AbstractProcess]

    @abc.abstractmethod
    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """The time below which a fraction u [n] of the draws lies."""

    @abc.abstractmethod
    def density(self, t: Time) -> Time:
        """q(t) with respect to t, of the shape of t; it integrates to one over the interval."""

    @checked_numbers
    def __call__(
        self, key: Key, n: int, *, index: Index | None = None, total: int | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """n times and their corrections, each [n]; drawn independently unless overridden, with corrections of 1.

        Args:
          key: one key for the batch.
          n: number of samples here.
          index: their global indices [n]; 0 .. n - 1 by default.
          total: size of the global batch; n by default.
        """
        return self.quantile(independent(key, n, index)), jnp.ones(n)


class UniformTimes(AbstractTimes):
    """Independent uniform times on `process.interval()`.

    >>> import jax
    >>> import diffjax as dj
    >>> t, correction = dj.UniformTimes(dj.Cosine())(jax.random.key(0), 4)
    >>> print(t.shape, correction)
    (4,) [1. 1. 1. 1.]
    """

    process: AbstractProcess

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return uniform_quantile(self.process, u)

    def density(self, t: Time) -> Time:
        return uniform_density(self.process, t)


class StratifiedTimes(AbstractTimes):
    """Uniform times, one in each of as many equal strata as there are samples in the batch.

    t_i = quantile((u + i/total) mod 1), one u for the batch, `total` strata.

    Each time is uniform on the interval, so the objective is `UniformTimes`'; its variance is lower.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> t, _ = dj.StratifiedTimes(dj.Rectified())(jax.random.key(0), 4)
    >>> print(jnp.sort(jnp.floor(4 * t)))  # one in each quarter
    [0. 1. 2. 3.]

    Source: Kingma et al. 2021 (Variational Diffusion Models), appendix I.1.
    """

    process: AbstractProcess

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return uniform_quantile(self.process, u)

    def density(self, t: Time) -> Time:
        return uniform_density(self.process, t)

    @checked_numbers
    def __call__(
        self, key: Key, n: int, *, index: Index | None = None, total: int | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        check_key(key)
        place = default_index(n, index) / (n if total is None else total)
        u = (jax.random.uniform(key) + place) % 1.0
        return self.quantile(u), jnp.ones(n)


class LowDiscrepancyTimes(AbstractTimes):
    """Uniform times, a golden-ratio sequence over the batch that covers the interval evenly.

    t_i = quantile((u + i (sqrt(5) - 1)/2) mod 1), one u for the batch.

    Each time is uniform on the interval, so the objective is `UniformTimes`'. Unlike `StratifiedTimes` it need not
    know the size of the batch: consecutive indices are even, with gaps of at most three lengths, on every device.
    Over the whole batch stratified times are closer to even by a constant.
    The sequence is computed in 32 bits, where it is exact for any index.

    Source: Weyl 1916; as a quasi-random sequence with a random shift, Cranley & Patterson 1976.
    """

    process: AbstractProcess

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return uniform_quantile(self.process, u)

    def density(self, t: Time) -> Time:
        return uniform_density(self.process, t)

    @checked_numbers
    def __call__(
        self, key: Key, n: int, *, index: Index | None = None, total: int | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        check_key(key)
        place = default_index(n, index).astype(jnp.uint32) * jnp.uint32(_GOLDEN)
        u = (jax.random.bits(key, dtype=jnp.uint32) + place).astype(jnp.result_type(float)) * 2.0**-32
        return self.quantile(u), jnp.ones(n)


_GOLDEN = 2654435769
"""(sqrt(5) - 1)/2 in units of 2^-32, to the nearest integer; it is odd, so that 2^32 indices differ."""


def _with_logsnr(process: AbstractProcess) -> AbstractGaussianProcess:
    if not isinstance(process, AbstractGaussianProcess):
        raise ValueError(
            f"process: these times need a logsnr, so a Gaussian process; got {type(process).__name__}, for which there "
            "are UniformTimes and their like"
        )
    return process


class LogsnrTimes(AbstractTimes):
    """Uniform in logsnr, q(t) = -lambda'(t)/(lambda_max - lambda_min): the likelihood weighting's own density.

    With `ImportanceTimes` and the likelihood weighting -lambda' of `losses`, each sample's weight is the same.

    Attributes:
      process: whose clock the times are on.

    Raises:
      ValueError: the process has no logsnr.

    Source: Kingma et al. 2021 (Variational Diffusion Models), section 5.1; Song et al. 2021b, section 5.1, draw from
    g^2/sigma^2 = -lambda'.
    """

    process: AbstractGaussianProcess = eqx.field(converter=_with_logsnr)

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        high, low = self._ends()
        return _inside(self.process, self.process.time_from_logsnr(high - u * (high - low)))

    def density(self, t: Time) -> Time:
        high, low = self._ends()
        return truncated(self.process, t, -logsnr_rate(self.process, t) / (high - low))

    def _ends(self):
        return tuple(self.process.logsnr(t) for t in self.process.interval())


class LognormalTimes(AbstractTimes):
    """EDM's noise levels: log(sigma/alpha) ~ N(mean, std^2), truncated to the interval.

    Attributes:
      process: whose clock the times are on.
      mean: mean of log(sigma/alpha); the default is EDM's, for data of standard deviation about 0.5.
      std: standard deviation of log(sigma/alpha); positive.

    Raises:
      ValueError: the process has no logsnr, or std is not positive.

    Source: Karras et al. 2022, table 1 (there untruncated; the tails cut off hold 2e-5).
    """

    process: AbstractGaussianProcess = eqx.field(converter=_with_logsnr)
    mean: Scalar = eqx.field(converter=partial(as_scalar, "mean"), default=-1.2)
    std: Scalar = eqx.field(converter=partial(as_scalar, "std"), default=1.2)

    @values_at_once
    def __check_init__(self):
        check(self.std > 0, f"std: must be positive, got {self.std}")

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        z = _truncated_normal(u, *self._ends())
        return _inside(self.process, self.process.time_from_logsnr(-2 * (self.mean + self.std * z)))

    def density(self, t: Time) -> Time:
        low, high = self._ends()
        z = (-0.5 * self.process.logsnr(t) - self.mean) / self.std
        jacobian = -0.5 * logsnr_rate(self.process, t) / self.std
        return truncated(self.process, t, norm.pdf(z) * jacobian / (ndtr(high) - ndtr(low)))

    def _ends(self):
        return tuple((-0.5 * self.process.logsnr(t) - self.mean) / self.std for t in self.process.interval())


class LogitNormalTimes(AbstractTimes):
    """logit(t) ~ N(mean, std^2), truncated to the interval: the middle of a rectified flow.

    Attributes:
      process: whose interval the times lie in.
      mean: mean of log(t/(1 - t)).
      std: standard deviation of log(t/(1 - t)); positive.

    Source: Esser et al. 2024 (Scaling rectified flow transformers), eq. 19.
    """

    process: AbstractProcess
    mean: Scalar = eqx.field(converter=partial(as_scalar, "mean"), default=0.0)
    std: Scalar = eqx.field(converter=partial(as_scalar, "std"), default=1.0)

    @values_at_once
    def __check_init__(self):
        check(self.std > 0, f"std: must be positive, got {self.std}")

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        z = _truncated_normal(u, *self._ends())
        return _inside(self.process, jax.nn.sigmoid(self.mean + self.std * z))

    def density(self, t: Time) -> Time:
        low, high = self._ends()
        inside = (t > 0) & (t < 1)
        inner = jnp.where(inside, t, 0.5)
        z = (_logit(inner) - self.mean) / self.std
        density = norm.pdf(z) / (self.std * inner * (1 - inner)) / (ndtr(high) - ndtr(low))
        return truncated(self.process, t, jnp.where(inside, density, 0.0))

    def _ends(self):
        return tuple((_logit(t) - self.mean) / self.std for t in self.process.interval())


class ModeTimes(AbstractTimes):
    """Times towards the middle or the ends: t = m(u) on [0, 1], truncated to the interval.

        m(u) = u - scale (sin^2(pi u/2) - u),     density 1/m'(u),   m' = 1 + scale (1 - pi/2 sin(pi u))

    Attributes:
      process: whose interval the times lie in.
      scale: s; 0 is uniform, positive favours the middle, negative the ends. In [-1, 2/(pi - 2)], where m rises; at
        these two the density is infinite at the ends or in the middle.

    Raises:
      ValueError: the scale is not in that range.

    Source: Esser et al. 2024 (Scaling rectified flow transformers), eq. 20, in which u is 1 - u here.
    """

    process: AbstractProcess
    scale: Scalar = eqx.field(converter=partial(as_scalar, "scale"), default=1.29)

    @values_at_once
    def __check_init__(self):
        most = 2 / (math.pi - 2)
        check(
            (self.scale >= -1) & (self.scale <= most),
            f"scale: must lie in [-1, {most:.6f}], where the map of u to t rises, got {self.scale}",
        )

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        low, high = self._ends()
        return _inside(self.process, _mode(self.scale, low + u * (high - low)))

    def density(self, t: Time) -> Time:
        low, high = self._ends()
        return truncated(self.process, t, 1 / (_mode_rate(self.scale, _mode_inverse(self.scale, t)) * (high - low)))

    def _ends(self):
        return tuple(_mode_inverse(self.scale, t) for t in self.process.interval())


class ImportanceTimes(AbstractTimes):
    """The times of another density q, with the correction p/q to the uniform p: the objective is `UniformTimes`'.

        E_{t~q}[ p(t)/q(t) loss(t) ] = E_{t~p}[ loss(t) ]

    The variance is finite only where p/q is bounded: a lognormal or logit-normal q, whose tails fall faster than any
    power, gives a few samples nearly all of the weight, and is refused. Useful with `LogsnrTimes`.

    Attributes:
      q: any other times.

    Raises:
      ValueError: q is `ImportanceTimes` itself, lognormal or logit-normal, or p/q exceeds 1000 somewhere on the
        interval (where q's numbers are known, that is, outside jit).

    Source: Song et al. 2021b (Maximum likelihood training of score-based diffusion models), section 5.1.
    """

    q: AbstractTimes

    @values_at_once
    def __check_init__(self):
        if isinstance(self.q, ImportanceTimes):
            raise ValueError("q: ImportanceTimes are corrected already, and twice is once too many; give their own q")
        if isinstance(self.q, LognormalTimes | LogitNormalTimes):
            raise ValueError(
                f"q: under {type(self.q).__name__} the correction to uniform times has no bound, and the loss no "
                "variance; take LogsnrTimes or ModeTimes, or the density itself as the objective"
            )
        t = uniform_quantile(self.process, jnp.linspace(0, 1, 257))
        ratio = self._correction(t)
        largest = jnp.max(ratio)
        check(largest <= 1e3, f"q: uniform over q must be at most 1000, got {largest} at t = {t[jnp.argmax(ratio)]}")

    @property
    def process(self) -> AbstractProcess:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.q.process

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.q.quantile(u)

    def density(self, t: Time) -> Time:
        return self.q.density(t)

    def _correction(self, t):
        return uniform_density(self.process, t) / self.q.density(t)

    @checked_numbers
    def __call__(
        self, key: Key, n: int, *, index: Index | None = None, total: int | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        t, correction = self.q(key, n, index=index, total=total)
        return t, correction * self._correction(t)


def independent(key: Key, n: int, index: Index | None) -> Float[Array, " n"]:
    """u [n], uniform in [0, 1), each from its own key, folded from its global index."""
    check_key(key)
    keys = sample_keys(key, default_index(n, index))
    return jax.vmap(jax.random.uniform)(keys)


def uniform_quantile(process: AbstractProcess, u: Float[Array, " n"]) -> Float[Array, " n"]:
    """The time below which a fraction u [n] of the interval lies, [n]."""
    low, high = process.interval()
    return jnp.asarray(low + u * (high - low))


def uniform_density(process: AbstractProcess, t: Time) -> Time:
    """One over the length of the interval, of the shape of t; zero outside it."""
    low, high = process.interval()
    return truncated(process, t, 1 / (high - low))


def truncated(process: AbstractProcess, t: Time, density: Time) -> Time:
    """A density of the shape of t; zero outside the interval."""
    low, high = process.interval()
    return jnp.where((t >= low) & (t <= high), density, 0.0)


def _inside(process: AbstractProcess, t: Time) -> Float[Array, " n"]:
    return jnp.clip(t, *process.interval())


def _truncated_normal(u, low, high):
    """The quantile of a standard normal cut to [low, high]; u = 0 and 1 give the ends (which may be infinite)."""
    p_low, p_high = ndtr(low), ndtr(high)
    return jnp.clip(ndtri(p_low + u * (p_high - p_low)), low, high)


def _logit(t):
    """log(t/(1 - t)), and 1e6 for infinity, so that gradients are finite: a normal density is 0 there."""
    t = jnp.asarray(t)
    inside = (t > 0) & (t < 1)
    inner = jnp.where(inside, t, 0.5)
    return jnp.where(inside, jnp.log(inner) - jnp.log1p(-inner), jnp.where(t > 0, 1e6, -1e6))


def _mode(scale, u):
    return u - scale * (jnp.sin(0.5 * jnp.pi * u) ** 2 - u)


def _mode_rate(scale, u):
    return 1 + scale * (1 - 0.5 * jnp.pi * jnp.sin(jnp.pi * u))


def _mode_inverse(scale, t):
    """u with _mode(scale, u) = t, by bisection; its derivatives are the inverse function's."""
    t, fixed = jnp.asarray(t), jax.lax.stop_gradient(scale)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        below = _mode(fixed, middle) < t
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    steps = jnp.finfo(t.dtype).nmant + 30  # as `time_from_logsnr`
    low, high = jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
    u = jax.lax.stop_gradient(0.5 * (low + high))
    # One Newton step of zero length carries the derivatives.
    residual = t - _mode(scale, u)
    rate = jnp.maximum(jax.lax.stop_gradient(_mode_rate(scale, u)), jnp.finfo(t.dtype).eps)
    return u + (residual - jax.lax.stop_gradient(residual)) / rate
