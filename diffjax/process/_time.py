"""Training times: which noise levels a loss sees, and how often.

A member maps a uniform number u in [0, 1] to a time by its quantile function, so every density is exact and stays
inside `interval(process)`:

    key, index --> u_i --> t_i = quantile(u_i)        independent: u_i from fold_in(key, i)
                                                      stratified: u_i = (u + i/total) mod 1
                                                      low-discrepancy: u_i = (u + i/golden ratio) mod 1

Called as `times(key, n, *, index=None, total=None) -> (t [n], correction [n])`: `correction` multiplies the loss and
is 1 for all but `ImportanceTimes`; what is not uniform is part of the objective. `index` are the global indices of the
n samples (default 0 .. n - 1) and `total` the size of the global batch (default n): a sample's time depends on them and
on the key, not on the device that draws it. Here are the uniform times; the others are in `_time_density`.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import default_index, sample_keys
from diffjax._typing import Index, Key, Time
from diffjax.process._base import AbstractProcess, interval


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


def independent(key, n, index):
    """u [n], each from its own key."""
    keys = sample_keys(key, default_index(n, index))
    return jax.vmap(jax.random.uniform)(keys)


def uniform_quantile(process, u) -> Any:
    """The time below which a fraction u of the interval lies, of the shape of u."""
    low, high = interval(process)
    return low + u * (high - low)


def uniform_density(process, t):
    """One over the length of the interval, of the shape of t; zero outside it."""
    low, high = interval(process)
    return truncated(process, t, 1 / (high - low))


def truncated(process, t, density):
    """A density, and zero outside the interval."""
    low, high = interval(process)
    return jnp.where((t >= low) & (t <= high), density, 0.0)


class UniformTimes(AbstractTimes):
    """t ~ U(interval(process)), independently."""

    process: AbstractProcess

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return uniform_quantile(self.process, u)

    def density(self, t: Time) -> Time:
        return uniform_density(self.process, t)

    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        return self.quantile(independent(key, n, index)), jnp.ones(n)


class StratifiedTimes(AbstractTimes):
    """Uniform times, one in each of `total` equal strata: t_i = quantile((u + i/total) mod 1), one u for the batch.

    Each time is uniform on the interval, so the objective is `UniformTimes`'; its variance is lower.
    Source: Kingma et al. 2021 (Variational Diffusion Models), appendix I.1.
    """

    process: AbstractProcess

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return uniform_quantile(self.process, u)

    def density(self, t: Time) -> Time:
        return uniform_density(self.process, t)

    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        place = default_index(n, index) / (n if total is None else total)
        u = (jax.random.uniform(key) + place) % 1.0
        return self.quantile(u), jnp.ones(n)


class LowDiscrepancyTimes(AbstractTimes):
    """Uniform times along the golden ratio: t_i = quantile((u + i (sqrt(5) - 1)/2) mod 1), one u for the batch.

    Each time is uniform on the interval, so the objective is `UniformTimes`'. Unlike `StratifiedTimes` it need not know
    the size of the batch: any run of indices is spread evenly, with gaps of at most three lengths, on every device and
    in every part of an accumulated batch. Over the whole batch stratified times are closer to even by a constant.

    The sequence is kept in 32 bits, where it is exact for any index.

    Source: Weyl 1916; as a quasi-random sequence with a random shift, Cranley & Patterson 1976.
    """

    process: AbstractProcess

    def quantile(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        return uniform_quantile(self.process, u)

    def density(self, t: Time) -> Time:
        return uniform_density(self.process, t)

    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        place = default_index(n, index).astype(jnp.uint32) * jnp.uint32(_GOLDEN)
        u = (jax.random.bits(key, dtype=jnp.uint32) + place).astype(jnp.result_type(float)) * 2.0**-32
        return self.quantile(u), jnp.ones(n)


_GOLDEN = 2654435769
"""(sqrt(5) - 1)/2 in units of 2^-32, to the nearest integer; it is odd, so that 2^32 indices differ."""
