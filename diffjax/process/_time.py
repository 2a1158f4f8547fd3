"""Training times: which noise levels a loss sees, and how often.

A member maps a uniform number u in [0, 1] to a time by its quantile function, so every density is exact and stays
inside `interval(process)`:

    key, index --> u_i --> t_i = quantile(u_i)        uniform, lognormal, logit-normal: u_i independent
                                                      stratified: u_i = (u + i/total) mod 1

Called as `times(key, n, *, index=None, total=None) -> (t [n], correction [n])`: `correction` multiplies the loss and
is 1 for all of these, whose density is part of the objective. `index` are the global indices of the n samples
(default 0 .. n - 1) and `total` the size of the global batch (default n): a sample's time depends on them and on the
key, not on the device that draws it.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from diffjax._arrays import as_scalar, check, default_index, sample_keys
from diffjax._typing import Index, Key, Scalar, Time
from diffjax.process._base import (
    AbstractGaussianProcess,
    AbstractProcess,
    interval,
    logsnr,
    logsnr_rate,
    time_from_logsnr,
)


class AbstractTimes(eqx.Module):
    """A distribution of training times on `interval(process)`."""

    process: eqx.AbstractVar[AbstractProcess]

    @abc.abstractmethod
    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """The time below which a fraction u [n] of the draws lies."""

    @abc.abstractmethod
    def density(self, t: Time) -> Time:
        """q(t) with respect to t, of the shape of t; it integrates to one over the interval."""

    @abc.abstractmethod
    def __call__(
        self, key: Key, n: int, *, index: Index | None = None, total: int | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """n times and their corrections, each [n]."""


def _independent(key, n, index):
    keys = sample_keys(key, default_index(n, index))
    return jax.vmap(jax.random.uniform)(keys)


def _uniform_quantile(process, u) -> Any:
    low, high = interval(process)
    return low + u * (high - low)


def _uniform_density(process, t):
    low, high = interval(process)
    return _truncated(process, t, 1 / (high - low))


def _truncated(process, t, density):
    low, high = interval(process)
    return jnp.where((t >= low) & (t <= high), density, 0.0)


class UniformTimes(AbstractTimes):
    """t ~ U(interval(process)), independently."""

    process: AbstractProcess

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return _uniform_quantile(self.process, u)

    def density(self, t: Time) -> Time:
        return _uniform_density(self.process, t)

    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        return self.quantile(_independent(key, n, index)), jnp.ones(n)


class StratifiedTimes(AbstractTimes):
    """Uniform times, one in each of `total` equal strata: t_i = quantile((u + i/total) mod 1), one u for the batch.

    Each time is uniform on the interval, so the objective is `UniformTimes`'; its variance is lower.
    Source: Kingma et al. 2021 (Variational Diffusion Models), appendix I.1.
    """

    process: AbstractProcess

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return _uniform_quantile(self.process, u)

    def density(self, t: Time) -> Time:
        return _uniform_density(self.process, t)

    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        place = default_index(n, index) / (n if total is None else total)
        u = (jax.random.uniform(key) + place) % 1.0
        return self.quantile(u), jnp.ones(n)


class LognormalTimes(AbstractTimes):
    """EDM's noise levels: log(sigma/alpha) ~ N(mean, std^2), truncated to the interval.

    Attributes:
      process: whose clock the times are on.
      mean: of log(sigma/alpha), for data of standard deviation about 0.5.
      std: its standard deviation; positive.

    Source: Karras et al. 2022, table 1 (there untruncated; the tails cut off hold 2e-5).
    """

    process: AbstractGaussianProcess
    mean: Scalar = eqx.field(converter=as_scalar, default=-1.2)
    std: Scalar = eqx.field(converter=as_scalar, default=1.2)

    def __check_init__(self):
        check(self.std > 0, f"std: must be positive, got {self.std}")

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        z = _truncated_normal(u, *self._ends())
        return _inside(self.process, time_from_logsnr(self.process, -2 * (self.mean + self.std * z)))

    def density(self, t: Time) -> Time:
        low, high = self._ends()
        z = (-0.5 * logsnr(self.process, t) - self.mean) / self.std
        jacobian = -0.5 * logsnr_rate(self.process, t) / self.std
        return _truncated(self.process, t, norm.pdf(z) * jacobian / (ndtr(high) - ndtr(low)))

    def _ends(self):
        return tuple((-0.5 * logsnr(self.process, t) - self.mean) / self.std for t in interval(self.process))

    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        return self.quantile(_independent(key, n, index)), jnp.ones(n)


class LogitNormalTimes(AbstractTimes):
    """logit(t) ~ N(mean, std^2), truncated to the interval: the middle of a rectified flow.

    Attributes:
      process: whose interval the times lie in.
      mean: of log(t/(1 - t)).
      std: its standard deviation; positive.

    Source: Esser et al. 2024 (Scaling rectified flow transformers), eq. 19.
    """

    process: AbstractGaussianProcess
    mean: Scalar = eqx.field(converter=as_scalar, default=0.0)
    std: Scalar = eqx.field(converter=as_scalar, default=1.0)

    def __check_init__(self):
        check(self.std > 0, f"std: must be positive, got {self.std}")

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        z = _truncated_normal(u, *self._ends())
        return _inside(self.process, jax.nn.sigmoid(self.mean + self.std * z))

    def density(self, t: Time) -> Time:
        low, high = self._ends()
        z = (jnp.log(t) - jnp.log1p(-t) - self.mean) / self.std
        return _truncated(self.process, t, norm.pdf(z) / (self.std * t * (1 - t)) / (ndtr(high) - ndtr(low)))

    def _ends(self):
        return tuple((jnp.log(t) - jnp.log1p(-t) - self.mean) / self.std for t in interval(self.process))

    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        return self.quantile(_independent(key, n, index)), jnp.ones(n)


def _truncated_normal(u, low, high):
    """The quantile of a standard normal cut to [low, high]; u = 0 and 1 give the ends (which may be infinite)."""
    p_low, p_high = ndtr(low), ndtr(high)
    return jnp.clip(ndtri(p_low + u * (p_high - p_low)), low, high)


def _inside(process, t):
    return jnp.clip(t, *interval(process))
