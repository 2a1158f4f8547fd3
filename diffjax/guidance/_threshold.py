"""Thresholding: an x0_hat that leaves the range of the data is brought back.

    static:    clip(x0, low, high)
    dynamic:   clip(x0, -s, s) bound/s,    s = max(bound, min(largest, quantile of |x0| over a sample's features))

The average denoiser of a flow map is a mean of denoisers, in the range of the data as they are: a flow map stays one.

Source: Saharia et al. 2022 (Imagen), section 2.3, for data in [-1, 1].
"""

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import at_once, check
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, PerSample, Sample, Time
from diffjax.guidance._base import AbstractGuide, aligned, number, per_sample
from diffjax.parameterisation._denoiser import predict
from diffjax.process._flow_map import Known, known_pairs


class _Threshold(AbstractGuide):
    """`(xt [b, *d], t) -> [b, *d]`, and with s the average denoiser of a flow map, as the denoiser inside."""

    denoiser: eqx.AbstractVar[Denoiser]

    @property
    def knows(self) -> Known | None:
        """The pairs (t, s) that the denoiser knows; None where it is no flow map: then this is none either."""
        return known_pairs(self.denoiser)


class StaticThreshold(_Threshold):
    """Made by `static_threshold`."""

    denoiser: Denoiser
    low: PerSample
    high: PerSample

    def __call__(self, xt: Sample, t: Time, s: Time | None = None) -> Sample:
        x0 = predict(self.denoiser, xt, t, s).astype(xt.dtype)
        return jnp.clip(x0, aligned(self.low, xt), aligned(self.high, xt))


class DynamicThreshold(_Threshold):
    """Made by `dynamic_threshold`."""

    denoiser: Denoiser
    bound: PerSample
    largest: PerSample
    quantile: float = eqx.field(static=True)

    def __call__(self, xt: Sample, t: Time, s: Time | None = None) -> Sample:
        x0 = predict(self.denoiser, xt, t, s).astype(xt.dtype)
        bound = aligned(self.bound, xt)
        reach = jnp.quantile(jnp.abs(x0.reshape(x0.shape[0], -1)), self.quantile, axis=1)
        reach = jnp.maximum(jnp.minimum(aligned(reach, xt), aligned(self.largest, xt)), bound)
        return jnp.clip(x0, -reach, reach) * (bound / reach)


@checked_numbers
def static_threshold(denoiser: Denoiser, low: PerSample = -1.0, high: PerSample = 1.0) -> Denoiser:
    """The denoiser's x0_hat [b, *d] clipped to the range of the data: what other libraries call `clip_denoised`.

    For data of known range, such as pictures in [-1, 1]. It leaves an exact denoiser as it is, for E[x0 | xt] lies
    between the least and the largest value of the data, and cuts off what a trained one makes of its errors, above all
    `EpsPrediction` near pure noise. Give it to `sample`, `sample_n` or `integrate`, outside of any guidance; not to
    `log_likelihood`, which is that of the flow as it is.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> denoiser = dj.guidance.static_threshold(lambda xt, t: 3 * xt)  # any denoiser, guided or not
    >>> print(denoiser(jnp.array([[0.2, -0.5, 2.0]]), 0.5))
    [[ 0.6 -1.   1. ]]

    Args:
      denoiser: any; a flow map stays one.
      low: the lowest value, in the units of the data, [] or [b].
      high: the highest.

    Raises:
      ValueError: low is not below high.

    Source: Saharia et al. 2022 (Imagen), section 2.3.
    """
    low, high = number("low", low), number("high", high)
    check(low < high, f"low, high: low < high is needed, got {low} and {high}")
    return StaticThreshold(denoiser, low, high)


@checked_numbers
def dynamic_threshold(
    denoiser: Denoiser, quantile: float = 0.995, bound: PerSample = 1.0, *, largest: float | PerSample = float("inf")
) -> Denoiser:
    """Dynamic thresholding: x0_hat is clipped to [-s, s], s a quantile of |x0_hat|, then scaled back into the range.

    clip(x0_hat, -s, s) bound/s, with an s >= bound for each x0_hat [*d].

    >>> import jax.numpy as jnp
    >>> from diffjax.guidance import dynamic_threshold
    >>> denoiser = lambda xt, t: xt
    >>> print(dynamic_threshold(denoiser, quantile=1.0)(jnp.array([[0.5, -2.0, 4.0, 0.0]]), 0.5))
    [[ 0.125 -0.5    1.     0.   ]]

    Args:
      denoiser: any; a flow map stays one.
      quantile: s is this quantile of |x0_hat| over a sample's features; in (0, 1]. A Python number.
      bound: what the data stay within, in their units, [] or [b].
      largest: upper limit of s, in units of the data, [] or [b]. Equal to `bound` it makes the threshold static.

    Raises:
      ValueError: quantile is not in (0, 1], or bound is not positive, or largest is less.

    Source: Saharia et al. 2022 (Imagen), section 2.3.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: must lie in (0, 1], got {quantile}")
    bound = number("bound", bound)
    with at_once(bound):
        check(bound > 0, f"bound: must be positive, got {bound}")
    largest = per_sample("largest", largest)
    with at_once(bound, largest):
        check(largest >= bound, f"largest: at least bound = {bound} is needed, got {largest}")
    return DynamicThreshold(denoiser, bound, largest, float(quantile))
