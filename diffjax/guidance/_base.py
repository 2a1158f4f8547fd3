"""What guidance is made of: two answers, a scale, and a rule that puts them together.

    xt, t --> pair --> cond, uncond --> rule(cond, uncond, scale) --> x0_hat

    classifier_free: D(. | c) and D(. | null), one pass        Linear:        cond + (scale - 1) (cond - uncond)
    extrapolate:     any two denoisers, two passes             Rescaled, Projected, OptimalScale, OnPrediction

Scale 1 is none, bit for bit, whatever the rule. All numbers are [] or one a sample, [b].
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from typing_extensions import TypeAliasType

from diffjax._arrays import answered, as_samples, check, check_time, expand, is_concrete, values_at_once
from diffjax._numbers import as_leaf, checked_numbers
from diffjax._typing import Denoiser, PerSample, Sample, Time

Pair = TypeAliasType("Pair", Callable[[Sample, Time], tuple[Sample, Sample]])
"""`(xt [b, *d], t) -> (cond, uncond)`, both [b, *d]."""


class AbstractGuide(eqx.Module):
    """A denoiser or rule with numbers of its own, each a scalar or one a sample, [b]."""

    def per_sample_fields(self) -> tuple[str, ...]:
        """The names of its numbers (or tuples of numbers) that are one a sample, [b]."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return tuple(name for name, value in fields.items() if _is_rows(value))


def _is_rows(value):
    parts = value if isinstance(value, tuple) else (value,)
    return bool(parts) and all(isinstance(part, jax.Array | np.ndarray) and part.ndim == 1 for part in parts)


def aligned(value: PerSample, xt: Sample) -> Array:
    """A number [] or [b] in the dtype of xt [b, *d], aligned with it."""
    return expand(jnp.asarray(value, xt.dtype), xt)


def per_sample(name: str, value: Any) -> Array:
    """A number as a float leaf; `ValueError` where it is neither a scalar nor one a sample, [b]."""
    value = as_leaf(name, value)
    if jnp.ndim(value) > 1:
        raise ValueError(f"{name}: a scalar or one number a sample, [b], is needed, got shape {jnp.shape(value)}")
    return value


@values_at_once
def number(name: str, value: Any) -> Array:
    """A number as a float leaf; `ValueError` where it is neither a scalar nor one a sample, [b], or not finite."""
    value = per_sample(name, value)
    check(jnp.isfinite(value), f"{name}: must be finite, got {value}")
    return value


@values_at_once
def check_sign(name: str, value: Array, negative: bool) -> None:
    """Raises `ValueError` where a number is below 0 and that was not requested."""
    check(
        jnp.logical_or(negative, value >= 0),
        f"{name}: below 0 it guides away from what it was given; pass negative=True if that is meant, got {value}",
    )


def both(cond: Sample, uncond: Sample, xt: Sample) -> tuple[Sample, Sample]:
    """Two answers [b, *d] to xt [b, *d], checked, for a rule to put together.

    Raises:
      ValueError: one is no array of floating-point numbers of the shape of xt, or xt is no batch of samples.
    """
    shape = as_samples("xt", xt).shape
    return as_samples("cond", cond, shape), as_samples("uncond", uncond, shape)


class AbstractRule(AbstractGuide):
    """How two answers become one. At scale 1 it gives `cond`, bit for bit."""

    @abc.abstractmethod
    def __call__(self, cond: Sample, uncond: Sample, scale: Array, xt: Sample, t: Time) -> Sample:
        """The guided x0_hat [b, *d] from two, [b, *d], and a scale that broadcasts with them."""


class Linear(AbstractRule):
    """cond + (scale - 1) (cond - uncond). The same for eps, score and velocity, all affine in x0_hat at fixed xt.

    >>> import jax.numpy as jnp
    >>> from diffjax import guidance
    >>> cond, uncond = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> print(guidance.Linear()(cond, uncond, jnp.asarray(3.0), xt=jnp.zeros((1, 2)), t=0.5))
    [[ 3. -2.]]

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), eq. 6, with w = scale - 1.
    """

    def __call__(self, cond: Sample, uncond: Sample, scale: Array, xt: Sample, t: Time) -> Sample:
        cond, uncond = both(cond, uncond, xt)
        return cond + (scale - 1) * (cond - uncond)


@checked_numbers
class Guided(AbstractGuide):
    """The guided denoiser `D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]`; made by `classifier_free`, `extrapolate`.

    Attributes:
      pair: `(xt, t) -> (cond, uncond)`, both [b, *d].
      scale: [] or [b].
      rule: how the two become one.
    """

    pair: Pair
    scale: PerSample
    rule: AbstractRule

    def __call__(self, xt: Sample, t: Time) -> Sample:
        return self.with_base(xt, t)[0]

    def with_base(self, xt: Sample, t: Time) -> tuple[Sample, Sample]:
        """(guided, uncond), both [b, *d]: for steppers that also need the answer without guidance (`CFGpp`)."""
        xt = as_samples("xt", xt)
        check_time(t, xt)
        cond, uncond = (answered("pair", answer, xt.shape).astype(xt.dtype) for answer in self.pair(xt, t))
        return self.rule(cond, uncond, aligned(self.scale, xt), xt, t), uncond


def guided(pair: Pair, plain: Denoiser, scale: PerSample, rule: AbstractRule, negative: bool) -> Denoiser:
    """`Guided`; or `plain`, the first denoiser itself, where the scale, [] or [b], can be seen to be 1.

    Raises:
      ValueError: the scale is not finite, has another shape, or is negative without `negative`.
    """
    scale = number("scale", scale)
    check_sign("scale", scale, negative)
    if is_concrete(scale) and np.all(np.asarray(scale) == 1):
        return plain
    return Guided(pair, scale, rule)
