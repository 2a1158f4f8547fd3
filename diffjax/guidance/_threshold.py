"""Thresholding: an x0_hat that leaves the range of the data is brought back.

    static:    clip(x0, low, high)
    dynamic:   clip(x0, -s, s) bound/s,    s = max(bound, min(largest, quantile of |x0| over a sample's features))

Source: Saharia et al. 2022 (Imagen), section 2.3, for data in [-1, 1].
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check
from diffjax._typing import Denoiser, Sample, Time
from diffjax.guidance._base import AbstractGuide, beside, number


class StaticThreshold(AbstractGuide):
    """Made by `static_threshold`."""

    denoiser: Any
    low: Any
    high: Any

    def __call__(self, xt: Sample, t: Time) -> Sample:
        x0 = self.denoiser(xt, t).astype(xt.dtype)
        return jnp.clip(x0, beside(self.low, xt), beside(self.high, xt))


class DynamicThreshold(AbstractGuide):
    """Made by `dynamic_threshold`."""

    denoiser: Any
    bound: Any
    largest: Any
    quantile: float = eqx.field(static=True)

    def __call__(self, xt: Sample, t: Time) -> Sample:
        x0 = self.denoiser(xt, t).astype(xt.dtype)
        bound = beside(self.bound, xt)
        s = jnp.quantile(jnp.abs(x0.reshape(x0.shape[0], -1)), self.quantile, axis=1)
        s = jnp.maximum(jnp.minimum(beside(s, xt), beside(self.largest, xt)), bound)
        return jnp.clip(x0, -s, s) * (bound / s)


def static_threshold(denoiser: Denoiser, low: Any = -1.0, high: Any = 1.0) -> Denoiser:
    """The denoiser's x0_hat [b, *d] clipped to the range of the data.

    Args:
      denoiser: any.
      low: the lowest value, in the units of the data, [] or [b].
      high: the highest.

    Raises:
      ValueError: low is not below high.

    Source: Saharia et al. 2022 (Imagen), section 2.3.
    """
    low, high = number("low", low), number("high", high)
    check(low < high, f"low, high: low < high is needed, got {low} and {high}")
    return StaticThreshold(denoiser, low, high)


def dynamic_threshold(
    denoiser: Denoiser, quantile: float = 0.995, bound: Any = 1.0, *, largest: Any = float("inf")
) -> Denoiser:
    """The denoiser's x0_hat [b, *d], each sample that leaves [-bound, bound] clipped at a quantile and scaled back.

    Args:
      denoiser: any.
      quantile: of |x0_hat| over a sample's features, in (0, 1]; linear between them. A Python number.
      bound: what the data stay within, in their units, [] or [b].
      largest: the largest s, in the same units, [] or [b]; at `bound` the threshold is static.

    Raises:
      ValueError: quantile is not in (0, 1], or bound is not positive, or largest is less.

    Source: Saharia et al. 2022 (Imagen), section 2.3.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: must lie in (0, 1], got {quantile}")
    bound = number("bound", bound)
    check(bound > 0, f"bound: must be positive, got {bound}")
    largest = as_scalar(largest)
    check(largest >= bound, f"largest: at least bound = {bound} is needed, got {largest}")
    return DynamicThreshold(denoiser, bound, largest, float(quantile))
