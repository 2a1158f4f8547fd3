"""Pairs of training times s <= t (to rounding), for flow maps: how long are the steps of a loss, and where.

    SortedPairs     t = max, s = min of two draws        2 q(t) q(s), or q(t) r(s) + r(t) q(s)
    UniformPairs    uniform on the triangle              2/(high - low)^2
    PartlyEqual     another's, but s = t in a share      (1 - share) of its density, and an atom on s = t

Called as `pairs(key, n, *, index=None, total=None) -> (t [n], s [n], correction [n])`, as training times are
(`diffjax.process.AbstractTimes`): `correction` multiplies the loss, and a pair depends on the key and on the sample's
global index, not on the device that draws it.
"""

import abc
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import check, check_key, default_index, sample_keys, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Index, Key, Scalar, Time
from diffjax.process import AbstractProcess, AbstractTimes, LowDiscrepancyTimes
from diffjax.process._times import StratifiedTimes


class AbstractPairs(eqx.Module):
    """A distribution of pairs of training times s <= t."""

    @abc.abstractmethod
    def density(self, t: Time, s: Time) -> Time:
        """The density of (t, s) where s < t, of the shape of t and s; 0 elsewhere."""

    @abc.abstractmethod
    def __call__(
        self, key: Key, n: int, *, index: Index | None = None, total: int | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
        """(t, s, correction), each [n], of the n samples of global indices `index` in a batch of `total`."""


class SortedPairs(AbstractPairs):
    """Two independent draws of training times, the later as t and the earlier as s.

        density(t, s) = q(t) r(s) + r(t) q(s),   s < t

    >>> import jax
    >>> import diffjax as dj
    >>> from diffjax.flow_maps import SortedPairs
    >>> pairs = SortedPairs(dj.process.LogitNormalTimes(dj.Rectified(), -0.4, 1.0))  # MeanFlow's
    >>> t, s, correction = pairs(jax.random.key(0), 4)
    >>> bool((s <= t).all())
    True

    Attributes:
      times: q, of one draw.
      other: r, of the other; None: q as well.

    Raises:
      ValueError: the times are spread over the batch by one shared number (stratified, low-discrepancy): then t - s of
        a whole batch takes two values.

    Source: Geng et al. 2025 (MeanFlow, arXiv 2505.13447), section 4.3.
    """

    times: AbstractTimes
    other: AbstractTimes | None = None

    def __check_init__(self):
        for name, times in (("times", self.times), ("other", self.other)):
            if isinstance(times, StratifiedTimes | LowDiscrepancyTimes):
                raise ValueError(
                    f"{name}: two draws of {type(times).__name__} differ by one number for the whole batch; take "
                    "times that are independent, such as UniformTimes"
                )

    def density(self, t: Time, s: Time) -> Time:
        q, r = self.times.density, (self.times if self.other is None else self.other).density
        return jnp.where(s < t, q(t) * r(s) + r(t) * q(s), 0.0)

    @checked_numbers
    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        check_key(key)
        first_key, second_key = jax.random.split(key)
        first, c = self.times(first_key, n, index=index, total=total)
        second, d = (self.times if self.other is None else self.other)(second_key, n, index=index, total=total)
        return jnp.maximum(first, second), jnp.minimum(first, second), c * d


class UniformPairs(AbstractPairs):
    """Pairs uniform on the triangle low <= s <= t <= high of the process's interval.

    The distribution of `SortedPairs(UniformTimes(process))`.

    Attributes:
      process: whose interval the times lie in.
    """

    process: AbstractProcess

    def density(self, t: Time, s: Time) -> Time:
        low, high = self.process.interval()
        return jnp.where((low <= s) & (s < t) & (t <= high), 2 / (high - low) ** 2, 0.0)

    @checked_numbers
    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        check_key(key)
        keys = sample_keys(key, default_index(n, index))
        u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        low, high = self.process.interval()
        t = low + jnp.sqrt(u[:, 0]) * (high - low)
        return t, low + u[:, 1] * (t - low), jnp.ones(n)


class PartlyEqual(AbstractPairs):
    """Other pairs, but with s = t in a share of the batch: there a loss trains the denoiser.

        equal_i = (u + i share) mod 1 < share,    u ~ U[0, 1), one for the batch

    Each sample is of the share with that probability, and any m consecutive global indices, such as the whole batch or
    a device's part of it, hold share m of them to within one. A part of an accumulated batch takes every k-th index,
    and may hold more or fewer of them: the mean over the parts is that of the batch.

    >>> import jax
    >>> import diffjax as dj
    >>> from diffjax.flow_maps import PartlyEqual, UniformPairs
    >>> t, s, correction = PartlyEqual(UniformPairs(dj.Rectified()), 0.75)(jax.random.key(0), 8)
    >>> int((s == t).sum())
    6

    Attributes:
      pairs: the others; where s = t, t is theirs.
      share: in [0, 1].

    Raises:
      ValueError: the share is not in [0, 1].

    Source: Geng et al. 2025 (MeanFlow, arXiv 2505.13447), section 4.3; the places, systematic sampling.
    """

    pairs: AbstractPairs
    share: Scalar = eqx.field(converter=partial(as_scalar, "share"), default=0.75)

    @values_at_once
    def __check_init__(self):
        check((self.share >= 0) & (self.share <= 1), f"share: must lie in [0, 1], got {self.share}")

    def density(self, t: Time, s: Time) -> Time:
        return (1 - self.share) * self.pairs.density(t, s)

    @checked_numbers
    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None):
        check_key(key)
        pairs_key, place_key = jax.random.split(key)
        t, s, correction = self.pairs(pairs_key, n, index=index, total=total)
        # In 32 bits, where it is exact for any index; the upper 24 are exact in float32.
        step = (jnp.minimum(self.share, 1 - 2.0**-24) * 2.0**32).astype(jnp.uint32)
        bits = jax.random.bits(place_key, dtype=jnp.uint32)
        place = (bits + default_index(n, index).astype(jnp.uint32) * step) >> 8
        equal = place.astype(jnp.float32) * 2.0**-24 < self.share
        return t, jnp.where(equal, t, s), correction
