"""A few-step model: a denoiser with a second time.

    F(xt, t)      = D(xt, t)       the denoiser, E[x0 | xt]
    F(xt, t, s)   = A(xt, t, s)    the average denoiser over the step from t to s (`_flow_step`)
    F.move(xt, t, s) = X(xt, t, s) the flow map: where the probability flow from xt at t is at s

X(xt, t, 0) is the sample. A(xt, t, 0) is it only where sigma(0) = 0 and alpha(0) = 1: elsewhere (EDM, VE) it is the
chord prolonged to sigma = 0, and its standard deviation is wrong by up to a tenth.

A map knows the pairs of times that it was trained on, and refuses others: a consistency model never saw s = t, so that
as a denoiser, in a likelihood or under guidance its outputs would be wrong without any warning.
"""

import abc
import inspect
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import numpy as np

from diffjax._arrays import answered, as_real, as_samples, check_time, is_concrete
from diffjax._typing import Sample, Time
from diffjax.process._flow_step import move
from diffjax.process._gaussian import AbstractGaussianProcess


class Dyadic(NamedTuple):
    """The pairs (grid[i], grid[i + 2^k]) with i a multiple of 2^k: what a shortcut model is trained on.

    Attributes:
      grid: descending times [n + 1] with n a power of two.
    """

    grid: tuple[float, ...]


Known: TypeAlias = str | tuple[float, ...] | Dyadic
"""Pairs (t, s) that a map knows: "any" (0 <= s <= t), "zero" (s = 0 alone), a descending grid of times, of which it
knows the steps from each to the next, or `Dyadic(grid)`, of which it knows 1, 2, 4, ... steps at once."""

_SAME = 1e-5  # times of a grid are compared in float32


class AbstractFlowMap(eqx.Module):
    """`F(xt [b, *d], t, s) -> A [b, *d]`, and `F(xt, t) -> x0_hat [b, *d]` where it knows s = t.

    A subclass has these two fields and defines `_average`.
    """

    process: eqx.AbstractVar[AbstractGaussianProcess]
    knows: eqx.AbstractVar[Known]

    @abc.abstractmethod
    def _average(self, xt: Sample, t: Time, s: Time) -> Sample:
        """A(xt, t, s), [b, *d], where the pair is known; t and s are [] or [b]."""

    def __call__(self, xt: Sample, t: Time, s: Time | None = None) -> Sample:
        """The denoiser D(xt, t), or with s the average denoiser A(xt, t, s), [b, *d]; t and s are [] or [b].

        Raises:
          ValueError: a shape does not fit, or the map does not know the pair (t, s).
        """
        xt = as_samples("xt", xt)
        check_time(t, xt)
        if s is not None:
            check_time(s, xt, "s")
        check_known(self.knows, t, t if s is None else s)
        return answered("flow map", self._average(xt, t, t if s is None else s), xt.shape)

    def move(self, xt: Sample, t: Time, s: Time) -> Sample:
        """The flow map X(xt, t, s), [b, *d], for xt [b, *d] and s <= t, each [] or [b].

        Raises:
          ValueError: a shape does not fit, or the map does not know the pair (t, s).
        """
        return move(self.process, xt, t, s, self(xt, t, s))


def check_known(knows: Known, t: Time, s: Time) -> None:
    """Raises `ValueError` where a map does not know a pair of times (t, s), each [] or [b].

    Traced times have no values to check: there only s = t (given as the same object) is refused.

    >>> from diffjax.process import check_known
    >>> check_known("zero", 0.5, 0.0)
    >>> check_known((1.0, 0.5, 0.0), 1.0, 0.5)
    """
    if knows == "any":
        if is_concrete((t, s)) and not np.all(np.asarray(s) <= np.asarray(t) + _SAME):
            raise ValueError(f"s: a flow map goes from t to s <= t, got t = {t}, s = {s}")
        return
    remedy = 'a map trained on all pairs (knows="any") is one'
    if s is t:
        raise ValueError(f"flow map: it was trained on {described(knows)}, and is no denoiser: {remedy}")
    if not is_concrete((t, s)):
        return
    t, s = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(s, np.float64))
    if isinstance(knows, str):
        known = np.abs(s) <= _SAME
    elif isinstance(knows, Dyadic):
        grid = np.asarray(knows.grid)
        i, j = (np.argmin(np.abs(grid - time[..., None]), axis=-1) for time in (t, s))
        n = np.maximum(j - i, 1)
        aligned = (j > i) & (n & (n - 1) == 0) & (i % n == 0)
        known = aligned & (np.abs(grid[i] - t) + np.abs(grid[j] - s) <= 2 * _SAME)
    else:
        grid = np.asarray(knows)
        ends = np.abs(grid[:-1] - t[..., None]) + np.abs(grid[1:] - s[..., None])
        known = np.any(ends <= 2 * _SAME, axis=-1)
    if not np.all(known):
        first = int(np.argmin(known))
        raise ValueError(
            f"flow map: it was trained on {described(knows)}, and does not know the step from "
            f"t = {t.flat[first]:.6g} to s = {s.flat[first]:.6g}; {remedy}"
        )


def described(knows: Known) -> str:
    """The pairs that a map knows, in words."""
    if isinstance(knows, str):
        return "steps to s = 0 alone" if knows == "zero" else "all pairs s <= t"
    grid = knows.grid if isinstance(knows, Dyadic) else knows
    times = [f"{time:.6g}" for time in grid]
    shown = ", ".join(times if len(times) <= 5 else [*times[:2], "...", *times[-2:]])
    kind = "the dyadic pairs among the" if isinstance(knows, Dyadic) else "the"
    n = len(times) - 1
    return f"{kind} {n} step{'s' if n > 1 else ''} of the grid {shown}"


def as_known(knows: Any) -> Known:
    """`knows` as a static field: "any", "zero", a tuple of floats or `Dyadic` of one.

    Raises:
      ValueError: it is something else, or a grid that does not descend in [0, 1], or one for `Dyadic` whose number of
        steps is no power of two.
    """
    if isinstance(knows, Dyadic):
        times = as_known(knows.grid)
        n = len(times) - 1
        if isinstance(times, str | Dyadic) or n & (n - 1):
            raise ValueError(f"knows: Dyadic needs a grid of 1, 2, 4, ... steps, got {knows.grid!r}")
        return Dyadic(times)
    if isinstance(knows, str):
        if knows in ("any", "zero"):
            return knows
        raise ValueError(f'knows: "any", "zero" or a grid of times is needed, got {knows!r}')
    if not is_concrete(knows):
        raise ValueError("knows: the grid must be known before tracing")
    grid = as_real("knows", knows)
    if grid.ndim != 1 or grid.size < 2 or not np.all(np.diff(grid) < 0) or grid[0] > 1 or grid[-1] < 0:
        raise ValueError(f"knows: a grid of two or more times that descends in [0, 1] is needed, got {knows!r}")
    return tuple(float(time) for time in grid)


def is_flow_map(denoiser: Any) -> bool:
    """True if a callable takes (xt, t, s): a flow map, or a plain function whose third argument is named s.

    A wrapper, such as `static_threshold`, is one where the denoiser inside is: its `knows` is None where it is not.

    >>> from diffjax.process import is_flow_map
    >>> is_flow_map(lambda xt, t, s: xt), is_flow_map(lambda xt, t: xt), is_flow_map(lambda xt, t, cond=None: xt)
    (True, False, False)
    """
    try:
        given = inspect.signature(denoiser).bind(None, None, None).arguments
    except (TypeError, ValueError):
        return False
    return list(given)[2:] == ["s"] and getattr(denoiser, "knows", "any") is not None


def known_pairs(denoiser: Any) -> Known | None:
    """The pairs that a denoiser knows as a flow map ("any" if it has no such field); None if it is no flow map."""
    return getattr(denoiser, "knows", "any") if is_flow_map(denoiser) else None
