"""DDPM's chain of K steps, embedded in continuous time without changing it.

    q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k I),   k = 1 .. K,   t_k = k/K
    alpha(t) = exp(-B(t)/2),  sigma(t) = sqrt(-expm1(-B(t))),   B(t_k) = -sum_{j <= k} log(1 - beta_j)

with B linear between the t_k: the transition over one cell has the variance beta_k, and a time k/K is a step of the
chain. A last beta of 1 (no signal at the end) makes B infinite there; in that cell alpha falls linearly to 0.
Source: Ho et al. 2020 (Denoising diffusion probabilistic models), eqs. 2 and 4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import as_value, at_once, check, is_concrete
from diffjax._numbers import as_leaf, checked_numbers
from diffjax._typing import Time
from diffjax.process._gaussian import AbstractGaussianProcess, on_circle, root_from_zero


class DiscreteChain(AbstractGaussianProcess):
    """A chain given by its own betas, as a process in continuous time: step k of K is the time k/K.

    The sums of -log(1 - beta) are kept in two parts, `high + low`, so that differences of them have all of float32's
    digits; `summed` are the betas that they are the sums of. These three have no gradient. What `betas` have moved away
    from `summed` is added, so that the chain is always that of its `betas`: they may be learned, be it as leaves of the
    process or with the chain built inside the loss. (Apply no weight decay to a process: it changes the other three.)

    Args:
      betas: the variance that each step adds, [k], in (0, 1); the last may be 1.

    Raises:
      ValueError: a beta lies outside; the message names its place and value.

    Source: Ho et al. 2020, eq. 2; zero signal at the end: Lin et al. 2023.
    """

    betas: Float[Array, " k"]
    high: Float[Array, " k"]
    low: Float[Array, " k"]
    summed: Float[Array, " k"]

    def __init__(self, betas: Any):
        self.betas = as_value(as_leaf("betas", betas), None if isinstance(betas, jax.Array) else float)
        if self.betas.ndim != 1 or self.betas.size == 0:
            raise ValueError(f"betas: one number a step is needed, shape [k], got shape {self.betas.shape}")
        with at_once(betas):
            self.summed = jnp.array(self.betas)
        if not is_concrete(betas):
            sums = jnp.cumsum(-jnp.log1p(-self.betas[:-1]))
            self.high = jnp.concatenate([jnp.zeros_like(self.betas[:1]), sums])
            self.low = jnp.zeros_like(self.high)
            return
        exact = np.asarray(betas, np.float64)
        right = (exact > 0) & (exact < 1)
        right[-1] |= exact[-1] == 1
        i = int(np.argmin(right))
        check(right, f"betas: must lie in (0, 1), of which only the last may be 1, got {exact[i]} at place {i}")
        sums = np.concatenate([[0.0], np.cumsum(-np.log1p(-exact[:-1]))])
        self.high = as_value(sums, self.betas.dtype)
        self.low = as_value(sums - np.asarray(self.high, np.float64), self.betas.dtype)

    def alpha(self, t: Time) -> Time:
        j, along, left, _ = self._cell(t)
        last, rate = self._rate(j, t)
        high, low = self._sums(rate.dtype)
        start = jnp.exp(-0.5 * high[j]) * jnp.exp(-0.5 * low[j])
        return start * jnp.where(last, left, jnp.exp(-0.5 * rate * along))

    def sigma(self, t: Time) -> Time:
        j, along, left, _ = self._cell(t)
        last, rate = self._rate(j, t)
        # Without signal B is infinite, and so is its slope, but that of sigma^2 = 1 - alpha^2 is 0.
        over = last & (left == 0)
        high, low = self._sums(rate.dtype)
        b = high[j] + (low[j] + _growth(last, rate, along, jnp.where(over, 1.0, left)))
        return root_from_zero(jnp.where(over, 1 - jnp.exp(-b) * left**2, -jnp.expm1(-b)), t)

    def logsnr(self, t: Time) -> Time:
        b = self._decay(t)
        return -b - jnp.log(-jnp.expm1(-b))

    def time_from_logsnr(self, value: Time) -> Time:
        b = jax.nn.softplus(-jnp.asarray(value))
        high, low = self._sums(b.dtype)
        j = jnp.searchsorted(jax.lax.stop_gradient((high + low)[1:]), jax.lax.stop_gradient(b), side="right")
        last, rate = self._rate(j, b)
        growth = (b - high[j]) - low[j]
        along = jnp.where(last, -jnp.expm1(-0.5 * growth), growth / jnp.where(last, 1.0, rate))
        return (j.astype(b.dtype) + along) / self.betas.shape[0]

    def conditional(self, t: Time, s: Time) -> tuple[Time, Time]:
        (j, along, left, width), (i, _, left_s, _) = self._cell(t), self._cell(s)
        (last, rate), (_, rate_s) = self._rate(j, t), self._rate(i, s)
        same = i == j
        high, low = self._sums(rate.dtype)
        after = jnp.minimum(i + 1, self.betas.shape[0] - 1)
        between = (high[j] - high[after]) + (low[j] - low[after])
        over_cells = between + rate_s * left_s  # from s to the beginning of t's cell
        within = (t - s) / width  # of t's own cell, where s lies in it too
        # Without signal at the end alpha falls along a line: by a part of what it is at s, or at the cell's beginning.
        start = jnp.where(same & last, left_s, 1.0)
        part, remaining = jnp.where(same, within / start, along), left / start
        growth, over_cells = rate * jnp.where(same, within, along), jnp.where(same, 0.0, over_cells)
        factor = jnp.where(last, remaining, jnp.exp(-0.5 * growth))  # alpha at t over alpha where t's part begins
        variance = jnp.where(last, part * (1 + factor), -jnp.expm1(-growth))  # 1 - factor^2
        square = -jnp.expm1(-over_cells) + jnp.exp(-over_cells) * variance
        return jnp.exp(-0.5 * over_cells) * factor, jnp.sqrt(square)

    def scales(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        return on_circle(alpha, sigma)

    def _cell(self, t: Time) -> tuple[Any, Any, Any, Any]:
        """The cell j of the time t, the parts of it passed and left, and its width.

        The knots are k/K as the dtype of t has it, so that the self's own times lie on them in float32 too.
        """
        t = jnp.asarray(t)
        k = self.betas.shape[0]
        knots = jnp.asarray((np.arange(k + 1) / k).astype(t.dtype))
        j = jnp.clip(jnp.floor(jax.lax.stop_gradient(t) * k).astype(int), 0, k - 1)
        width = knots[j + 1] - knots[j]
        return j, (t - knots[j]) / width, (knots[j + 1] - t) / width, width

    def _sums(self, dtype: Any) -> tuple[Any, Any]:
        """B at the beginning of each cell, [k], in two parts."""
        high, low, summed = (jax.lax.stop_gradient(x).astype(dtype) for x in (self.high, self.low, self.summed))
        moved = -jnp.log1p((summed - self.betas.astype(dtype))[:-1] / (1 - summed[:-1]))
        return high, low + jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(moved)])

    def _rate(self, j: Any, t: Time) -> tuple[Any, Any]:
        """Whether the cell j ends without signal, and by how much B grows over it (there: 0), in the dtype of t."""
        beta = self.betas.astype(jnp.asarray(t).dtype)[j]
        last = beta == 1
        return last, -jnp.log1p(-jnp.where(last, 0.0, beta))

    def _decay(self, t: Time) -> Any:
        """B(t) = -2 log alpha."""
        j, along, left, _ = self._cell(t)
        growth = _growth(*self._rate(j, t), along, left)
        high, low = self._sums(growth.dtype)
        return high[j] + (low[j] + growth)


def _growth(last: Any, rate: Any, along: Any, left: Any) -> Any:
    """B's growth from the beginning of a cell to where the part `along` of it is passed and `left` is left."""
    return jnp.where(last, -2 * jnp.log(jnp.where(last, left, 1.0)), rate * along)


def chain_times(process: DiscreteChain) -> Float[Array, " k"]:
    """The times of the chain's steps, k/K for k = 1 .. K, shape [k], ascending.

    >>> from diffjax.process import DiscreteChain, chain_times, linear_betas
    >>> print(chain_times(DiscreteChain(linear_betas(4))))
    [0.25 0.5  0.75 1.  ]
    """
    k = process.betas.shape[0]
    return jnp.asarray(np.arange(1, k + 1) / k)


@checked_numbers
def linear_betas(steps: int, start: float = 1e-4, stop: float = 0.02) -> Float[np.ndarray, " k"]:
    """DDPM's betas, equally spaced, [k]; start and stop in (0, 1). Source: Ho et al. 2020, section 4 (1000 steps).

    >>> from diffjax.process import linear_betas
    >>> print(linear_betas(3, 0.1, 0.3))
    [0.1 0.2 0.3]
    """
    _check_betas(steps, start, stop)
    return np.linspace(start, stop, steps)


@checked_numbers
def scaled_linear_betas(steps: int, start: float = 0.00085, stop: float = 0.012) -> Float[np.ndarray, " k"]:
    """Betas whose square roots are equally spaced, [k]. Source: Rombach et al. 2022 (latent diffusion), the released
    code and Stable Diffusion's numbers (1000 steps); start and stop in (0, 1).

    >>> from diffjax.process import scaled_linear_betas
    >>> print(scaled_linear_betas(3, 0.01, 0.09))
    [0.01 0.04 0.09]
    """
    _check_betas(steps, start, stop)
    return np.linspace(start**0.5, stop**0.5, steps) ** 2


@checked_numbers
def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> Float[np.ndarray, " k"]:
    """1 - f((k + 1)/K)/f(k/K) with f(t) = cos^2(pi/2 (t + offset)/(1 + offset)), at most `largest`, [k].

    >>> from diffjax.process import cosine_betas
    >>> print(cosine_betas(4)[-1])  # its largest
    0.999

    Source: Nichol & Dhariwal 2021 (Improved DDPM), eq. 17.
    """
    _check_steps(steps)
    angle = 0.5 * np.pi * (np.arange(steps + 1) / steps + offset) / (1 + offset)
    before, after = angle[:-1], angle[1:]
    return np.minimum(np.sin(after - before) * np.sin(after + before) / np.cos(before) ** 2, largest)


def zero_terminal_snr(betas: Any) -> Float[np.ndarray, " k"]:
    """The betas [k] changed so that the last step leaves no signal: sqrt(alpha_bar) is shifted to end at 0, and scaled
    so that its first stays what it was.

    >>> from diffjax.process import linear_betas, zero_terminal_snr
    >>> float(zero_terminal_snr(linear_betas(10))[-1])
    1.0

    Raises:
      ValueError: there are fewer than two betas, or one lies outside (0, 1).

    Source: Lin et al. 2023 (Common diffusion noise schedules and sample steps are flawed), algorithm 1.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size < 2:
        raise ValueError(f"betas: at least two in one dimension are needed, got shape {betas.shape}")
    right = (betas > 0) & (betas < 1)
    i = int(np.argmin(right))
    check(right, f"betas: must lie in (0, 1), got {betas[i]} at place {i}")
    root = np.exp(0.5 * np.cumsum(np.log1p(-betas)))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    before, after = root[:-1], root[1:]
    return np.concatenate([betas[:1], (before - after) * (before + after) / before**2])


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps: at least one is needed, got {steps}")


def _check_betas(steps: int, start: float, stop: float) -> None:
    _check_steps(steps)
    for name, value in (("start", start), ("stop", stop)):
        check(0 < value < 1, f"{name}: must lie in (0, 1), got {value}")
