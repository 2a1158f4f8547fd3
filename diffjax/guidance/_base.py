"""What guidance is made of: two answers, a scale, and a rule that puts them together.

    xt, t --> pair --> good, bad --> rule(good, bad, scale) --> x0_hat

    classifier_free: D(. | c) and D(. | null), one pass        Linear:        good + (scale - 1) (good - bad)
    extrapolate:     any two denoisers, two passes             Rescaled, Projected, OptimalScale, OnPrediction

Scale 1 is none, bit for bit, whatever the rule. All numbers are [] or one a sample, [b].
"""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import as_scalar, check, expand, is_concrete
from diffjax._typing import Sample, Time


class AbstractGuide(eqx.Module):
    """A denoiser or rule with numbers of its own, each a scalar or one a sample, [b]."""

    def per_sample(self) -> tuple[str, ...]:
        """The names of its numbers (or tuples of numbers) that are one a sample, [b]."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return tuple(name for name, value in fields.items() if _is_rows(value))


def _is_rows(value):
    parts = value if isinstance(value, tuple) else (value,)
    return bool(parts) and all(isinstance(part, jax.Array | np.ndarray) and part.ndim == 1 for part in parts)


def beside(value: Any, xt: Any) -> Any:
    """A number [] or [b] in the dtype of xt [b, *d], aligned with it."""
    return expand(jnp.asarray(value, xt.dtype), xt)


def number(name: str, value: Any) -> Any:
    """A number as a float leaf.

    Raises:
      ValueError: it is neither a scalar nor one a sample, [b], or it is not finite.
    """
    value = as_scalar(value)
    if jnp.ndim(value) > 1:
        raise ValueError(f"{name}: a scalar or one number a sample, [b], is needed, got shape {jnp.shape(value)}")
    check(jnp.isfinite(value), f"{name}: must be finite, got {value}")
    return value


def check_sign(name: str, value: Any, negative: bool) -> None:
    """Raises `ValueError` where a number is below 0 and that was not asked for."""
    check(
        jnp.logical_or(negative, value >= 0),
        f"{name}: below 0 it guides away from what it was given; pass negative=True if that is meant, got {value}",
    )


class AbstractRule(AbstractGuide):
    """How two answers become one. At scale 1 it gives the good one, bit for bit."""

    @abc.abstractmethod
    def __call__(self, good: Sample, bad: Sample, scale: Any, xt: Sample, t: Time) -> Sample:
        """The guided x0_hat [b, *d] from two, [b, *d], and a scale that broadcasts with them."""


class Linear(AbstractRule):
    """good + (scale - 1) (good - bad). The same for eps, score and velocity, all affine in x0_hat at fixed xt.

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), eq. 6, with w = scale - 1.
    """

    def __call__(self, good: Sample, bad: Sample, scale: Any, xt: Sample, t: Time) -> Sample:
        return good + (scale - 1) * (good - bad)


class Guided(AbstractGuide):
    """The guided denoiser `D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]`; made by `classifier_free`, `extrapolate`.

    Attributes:
      pair: `(xt, t) -> (good, bad)`, both [b, *d].
      scale: [] or [b].
      rule: how the two become one.
    """

    pair: Any
    scale: Any
    rule: AbstractRule

    def __call__(self, xt: Sample, t: Time) -> Sample:
        return self.with_base(xt, t)[0]

    def with_base(self, xt: Sample, t: Time) -> tuple[Sample, Sample]:
        """(guided, bad), both [b, *d]: for steppers that also need the answer without guidance (`CFGpp`)."""
        good, bad = (answer.astype(xt.dtype) for answer in self.pair(xt, t))
        return self.rule(good, bad, beside(self.scale, xt), xt, t), bad


def guided(pair: Any, plain: Any, scale: Any, rule: AbstractRule, negative: bool) -> Any:
    """`Guided`; or `plain`, the good denoiser itself, where the scale, [] or [b], can be seen to be 1.

    Raises:
      ValueError: the scale is not finite, has another shape, or is negative without `negative`.
    """
    scale = number("scale", scale)
    check_sign("scale", scale, negative)
    if is_concrete(scale) and np.all(np.asarray(scale) == 1):
        return plain
    return Guided(pair, scale, rule)
