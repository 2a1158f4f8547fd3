"""Pairs of times (t, s), s < t, between which a consistency model is compared with itself.

The papers state them in EDM's clock, the noise-to-signal ratio rho = sigma/alpha (EDM's sigma, where alpha = 1):

    N levels      rho_i = (a + i/(N - 1) (b - a))^7,  a = 0.002^(1/7), b = 80^(1/7),  i = 0 .. N - 1
    CT, CD        (t, s) = (t_{i+1}, t_i), i uniform in 0 .. N - 2
    iCT           i with probability P(rho_i < rho < rho_{i+1}),  log rho ~ N(-1.1, 2.0^2) cut to the levels
    ECT           rho_s = max(0, rho_t (1 - n(rho_t)/q^(stage + 1))),  n(rho) = 1 + k/(1 + e^(b rho))

The lowest level stands for t = 0, where X(x, 0, 0) = x anchors the model, and the highest for t = 1, where sampling
starts; so a process with sigma(0) = 0 or alpha(1) = 0 has levels like any other. N and the stage may be traced: a
curriculum by the training step compiles once.

    CT      N(k) = ceil( sqrt( k/K ((s1 + 1)^2 - s0^2) + s0^2 ) - 1 ) + 1,  mu(k) = exp(s0 log(mu0)/N(k))
    iCT     N(k) = min(s0 2^floor(k/K'), s1) + 1,  K' = floor(K/(log2(s1/s0) + 1))

Source: Song et al. 2023 (Consistency models, arXiv 2303.01469), section 5 and appendix C; Song & Dhariwal 2023
(Improved techniques, arXiv 2310.14189), sections 3.4 and 3.5; Geng et al. 2024 (ECT, arXiv 2406.14548), section 3.
"""

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Int

from diffjax._arrays import at_once, check, check_times, is_concrete, values_at_once
from diffjax._numbers import as_leaf, as_scalar, checked_numbers
from diffjax._typing import Index, Key, Scalar, Time, WholeNumber
from diffjax.process import AbstractGaussianProcess, AbstractTimes, ImportanceTimes
from diffjax.process._times import independent


class GridLevels(eqx.Module):
    """Pairs of neighbours on a grid of times, each as likely: t = ts[i], s = ts[i + 1].

    Attributes:
      ts: descending times [n + 1] in [0, 1], such as `edm_grid(process, n, ends=(1.0, 0.0))`. The last is 0.

    Raises:
      ValueError: the grid does not descend in [0, 1], or does not end at 0, where the boundary condition is.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax.flow_maps import GridLevels
    >>> t, s = GridLevels(jnp.array([1.0, 0.25, 0.0]))(jax.random.key(0), 4)
    >>> print(t, s)
    [0.25 1.   0.25 1.  ] [0.   0.25 0.   0.25]
    """

    ts: Float[Array, " points"] = eqx.field(converter=partial(as_leaf, "ts"))

    def __check_init__(self):
        if is_concrete(self.ts):
            check_times(np.asarray(self.ts), "descend")
            check(
                self.ts[-1] == 0, f"ts: must end at 0, where X(x, 0, 0) = x anchors a consistency model: {self.ts[-1]}"
            )

    @checked_numbers
    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None) -> tuple[Time, Time]:
        """(t, s), each [n]."""
        i = _place(independent(key, n, index), self.ts.shape[0])
        return self.ts[i], self.ts[i + 1]


def _as_pair(pair: object) -> tuple[Scalar, Scalar] | None:
    if pair is None:
        return None
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(f"lognormal: (mean, standard deviation) is needed, or None, got {pair!r}")
    return as_scalar("lognormal", pair[0]), as_scalar("lognormal", pair[1])


class EDMLevels(eqx.Module):
    """Pairs of neighbours among N levels of EDM's spacing: uniform (CT, CD), or a discretised lognormal (iCT).

    Attributes:
      process: whose clock the times are on.
      n: N, the number of levels, at least 2; a scalar, which may be traced: see `ct_levels`, `ict_levels`.
      lognormal: (mean, standard deviation) of log(sigma/alpha), (-1.1, 2.0) in iCT; None: every pair is as likely.
      rho: of the spacing; 1 is uniform in sigma/alpha, larger is finer near the data.
      sigma_min: sigma/alpha at the lowest level (t = 0), or the process's own there, if larger.
      sigma_max: sigma/alpha at the highest level (t = 1), or the process's own there, if smaller.

    Raises:
      ValueError: a number is out of its range.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.flow_maps import EDMLevels
    >>> levels = EDMLevels(dj.EDM(), 11, lognormal=(-1.1, 2.0))
    >>> [f"{t:.2f}" for t in levels.time(jnp.array([0, 5, 10]))]  # uniform on EDM's own clock
    ['0.00', '0.50', '1.00']
    >>> t, s = levels(jax.random.key(0), 256)

    Source: Karras et al. 2022, eq. 5; Song et al. 2023, algorithm 3; Song & Dhariwal 2023, eq. 10 (section 3.5).
    """

    process: AbstractGaussianProcess
    n: Scalar = eqx.field(converter=partial(as_scalar, "n"))
    lognormal: tuple[Scalar, Scalar] | None = eqx.field(converter=_as_pair, default=None, kw_only=True)
    rho: Scalar = eqx.field(converter=partial(as_scalar, "rho"), default=7.0, kw_only=True)
    sigma_min: Scalar = eqx.field(converter=partial(as_scalar, "sigma_min"), default=0.002, kw_only=True)
    sigma_max: Scalar = eqx.field(converter=partial(as_scalar, "sigma_max"), default=80.0, kw_only=True)

    @values_at_once
    def __check_init__(self):
        check(self.n >= 2, f"n: at least 2 levels are needed, got {self.n}")
        check(self.rho > 0, f"rho: must be positive, got {self.rho}")
        check(
            (self.sigma_min > 0) & (self.sigma_min < self.sigma_max),
            f"sigma_min: must be positive and below sigma_max, got {self.sigma_min} and {self.sigma_max}",
        )
        if self.lognormal is not None:
            check(self.lognormal[1] > 0, f"lognormal: the standard deviation must be positive, got {self.lognormal[1]}")

    def time(self, i: Int[Array, "..."]) -> Time:
        """t of level i = 0 .. N - 1, of the shape of i: 0 for the lowest, 1 for the highest."""
        low, high = self._ends()
        i, last = jnp.asarray(i).astype(low.dtype), jnp.asarray(self.n).astype(low.dtype) - 1
        root = low + i / last * (high - low)
        t = jnp.clip(_still(self.process).time_from_logsnr(-2 * self.rho * jnp.log(root)), 0.0, 1.0)
        return jnp.where(i <= 0, 0.0, jnp.where(i >= last, 1.0, t))

    def quantile(self, u: Float[Array, " n"]) -> tuple[Time, Time]:
        """The pair (t, s), each [n], below which a fraction u [n] of the draws lies."""
        if self.lognormal is None:
            i = _place(u, self.n)
        else:
            mean, std = self.lognormal
            low, high = self._ends()
            first, last = (ndtr((self.rho * jnp.log(root) - mean) / std) for root in (low, high))
            root = jnp.exp((mean + std * ndtri(first + u * (last - first))) / self.rho)
            i = _place((root - low) / (high - low), self.n)
        return self.time(i + 1), self.time(i)

    def _ends(self):
        """(a, b): rho-th roots of sigma/alpha at the lowest level and at the highest."""
        first, last = (jnp.exp(-0.5 * _still(self.process).logsnr(jnp.asarray(t))) for t in (0.0, 1.0))
        return jnp.maximum(first, self.sigma_min) ** (1 / self.rho), jnp.minimum(last, self.sigma_max) ** (1 / self.rho)

    @checked_numbers
    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None) -> tuple[Time, Time]:
        """(t, s), each [n]."""
        return self.quantile(independent(key, n, index))


class ECTLevels(eqx.Module):
    """Pairs that close in on one another: s is a share of t that grows with the stage, from 0 to t.

    At stage 0 and q = 2 most of the s are 0, where the loss is the denoising one: start from a trained denoiser.

    Attributes:
      times: of t; ECT's are `LognormalTimes(process, -1.1, 2.0)`.
      stage: from 0, a scalar, which may be traced, such as `context.step // every`.
      q: the factor by which a stage narrows the gap; 2 (CIFAR-10) or 4 (ImageNet).
      k: how much wider the gap is near the data, n(0) = 1 + k/2.
      b: how fast that fades with sigma/alpha.

    Raises:
      ValueError: a number is out of its range, or the times have a correction.

    >>> import jax
    >>> import diffjax as dj
    >>> from diffjax.flow_maps import ECTLevels
    >>> t, s = ECTLevels(dj.process.LognormalTimes(dj.EDM(), -1.1, 2.0), stage=4)(jax.random.key(0), 256)
    >>> bool((s < t).all())
    True

    Source: Geng et al. 2024 (Consistency models made easy, arXiv 2406.14548), section 3.
    """

    times: AbstractTimes
    stage: Scalar = eqx.field(converter=partial(as_scalar, "stage"), default=0.0)
    q: Scalar = eqx.field(converter=partial(as_scalar, "q"), default=2.0, kw_only=True)
    k: Scalar = eqx.field(converter=partial(as_scalar, "k"), default=8.0, kw_only=True)
    b: Scalar = eqx.field(converter=partial(as_scalar, "b"), default=1.0, kw_only=True)

    @values_at_once
    def __check_init__(self):
        if isinstance(self.times, ImportanceTimes):
            raise ValueError("times: ECT's density is part of its objective; take LognormalTimes, without a correction")
        check(self.stage >= 0, f"stage: must be 0 or more, got {self.stage}")
        check(self.q > 1, f"q: must be above 1, got {self.q}")
        check(self.k >= 0, f"k: must be 0 or more, got {self.k}")
        check(self.b >= 0, f"b: must be 0 or more, got {self.b}")

    def second(self, t: Time) -> Time:
        """s, of the shape of t."""
        process: Any = _still(self.times.process)
        level = process.logsnr(t)
        gap = (1 + self.k * jax.nn.sigmoid(-self.b * jnp.exp(-0.5 * level))) / self.q ** (self.stage + 1)
        inside = gap < 1
        s = process.time_from_logsnr(level - 2 * jnp.log1p(-jnp.where(inside, gap, 0.5)))
        return jnp.where(inside, jnp.clip(s, 0.0, t), 0.0)

    @checked_numbers
    def __call__(self, key: Key, n: int, *, index: Index | None = None, total: int | None = None) -> tuple[Time, Time]:
        """(t, s), each [n]."""
        t = self.times(key, n, index=index, total=total)[0]
        return t, self.second(t)


def _place(share, n):
    """i = 0 .. n - 2 of a share [b] in [0, 1] of the way along n levels."""
    n = jnp.asarray(n).astype(share.dtype)
    return jnp.clip(jnp.floor(share * (n - 1)), 0, n - 2).astype(jnp.int32)


def _still(process):
    """The levels of a learned process are no part of what trains it."""
    return jax.lax.stop_gradient(process)


@checked_numbers
def ct_levels(step: WholeNumber, steps: int, *, s0: int = 2, s1: int = 150) -> Int[Array, ""]:
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1: consistency training's number of levels, a scalar.

    Args:
      step: k, from 0; it may be traced.
      steps: K, of the whole training.
      s0: N(0).
      s1: N(K) is s1 + 1.

    Raises:
      ValueError: steps is not positive, or not 2 <= s0 <= s1.

    >>> from diffjax.flow_maps import ct_levels
    >>> [int(ct_levels(step, 1000)) for step in (0, 100, 1000)]
    [2, 48, 151]

    Source: Song et al. 2023, appendix C.
    """
    _check_curriculum(steps, s0, s1)
    share = jnp.asarray(step) / steps
    return jnp.ceil(jnp.sqrt(share * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1).astype(jnp.int32) + 1


@checked_numbers
def ct_decay(levels: WholeNumber, *, s0: Scalar = 2.0, mu0: Scalar = 0.9) -> Float[Array, ""]:
    """mu(k) = exp(s0 log(mu0)/N(k)): the decay of consistency training's target average, a scalar.

    As an average of a training run: `lambda step, params, ema: make_ema(ct_decay(ct_levels(step, steps)),
    warmup=False)(step, params, ema)`.

    Args:
      levels: N(k), a scalar.
      s0: as in `ct_levels`.
      mu0: mu(0), where N(0) = s0.

    Raises:
      ValueError: mu0 is not in (0, 1).

    >>> from diffjax.flow_maps import ct_decay
    >>> print(f"{ct_decay(2):.3f}, {ct_decay(151):.3f}")
    0.900, 0.999

    Source: Song et al. 2023, appendix C.
    """
    with at_once(mu0):
        check((jnp.asarray(mu0) > 0) & (jnp.asarray(mu0) < 1), f"mu0: must lie between 0 and 1, got {mu0}")
    return jnp.exp(s0 * jnp.log(mu0) / jnp.asarray(levels))


@checked_numbers
def ict_levels(step: WholeNumber, steps: int, *, s0: int = 10, s1: int = 1280) -> Int[Array, ""]:
    """N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = floor(K/(log2(s1/s0) + 1)): iCT's number of levels, a scalar.

    Args:
      step: k, from 0; it may be traced.
      steps: K, of the whole training, at least log2(s1/s0) + 1.
      s0: N(0) is s0 + 1.
      s1: N(K) is s1 + 1.

    Raises:
      ValueError: there are fewer steps than doublings, or not 2 <= s0 <= s1.

    >>> from diffjax.flow_maps import ict_levels
    >>> [int(ict_levels(step, 8000)) for step in (0, 999, 1000, 7999, 8000)]
    [11, 11, 21, 1281, 1281]

    Source: Song & Dhariwal 2023, eq. 9 (section 3.4).
    """
    _check_curriculum(steps, s0, s1)
    doublings = math.log2(s1 / s0)
    each = math.floor(steps / (doublings + 1))
    if each < 1:
        raise ValueError(f"steps: at least {math.ceil(doublings + 1)} are needed to go from {s0} to {s1}, got {steps}")
    power = jnp.minimum(jnp.asarray(step) // each, math.ceil(doublings))
    return jnp.minimum(s0 * 2**power, s1).astype(jnp.int32) + 1


def _check_curriculum(steps, s0, s1):
    if steps < 1:
        raise ValueError(f"steps: a positive number is needed, got {steps}")
    if not 2 <= s0 <= s1:
        raise ValueError(f"s0: 2 <= s0 <= s1 is needed, got s0 = {s0}, s1 = {s1}")
