"""Guidance at some noise levels only: where logsnr lies in [low, high].

At high noise guidance throws modes away, at low noise it does nothing but cost; in between it helps. EDM's sigma is
exp(-logsnr/2): the interval (sigma_low, sigma_high] of the paper has low = -2 log sigma_high, high = -2 log sigma_low.

Source: Kynkaanniemi et al. 2024 (Applying guidance in a limited interval).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffjax._arrays import as_samples, check, expand
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, PerSample, Sample, Time
from diffjax.guidance._base import AbstractGuide, per_sample
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess


class Interval(AbstractGuide):
    """One denoiser inside the interval, another outside; made by `within_interval`.

    Where t is one for the whole batch, only one of the two is evaluated (`lax.cond`; under `vmap` over t both are).
    """

    process: AbstractGaussianProcess
    inside: Denoiser
    outside: Denoiser
    low: Array
    high: Array

    def __call__(self, xt: Sample, t: Time) -> Sample:
        xt = as_samples("xt", xt)
        level = jnp.asarray(self.process.logsnr(t))
        within = (self.low.astype(level.dtype) <= level) & (level <= self.high.astype(level.dtype))
        inside, outside = (lambda xt, d=d: predict(d, xt, t).astype(xt.dtype) for d in (self.inside, self.outside))
        if within.ndim == 0:
            return jax.lax.cond(within, inside, outside, xt)
        return jnp.where(expand(within, xt), inside(xt), outside(xt))


@checked_numbers
def within_interval(
    process: AbstractGaussianProcess, guided: Denoiser, plain: Denoiser, low: PerSample, high: PerSample
) -> Denoiser:
    """`guided` where low <= logsnr <= high, `plain` elsewhere: a denoiser `(xt [b, *d], t) -> [b, *d]`.

    For a t [] only one of the two is evaluated; for t [b] both are. An adaptive solver steps over the edges with small
    steps, for the denoiser jumps there. At a time whose logsnr is an edge itself, rounding decides.

    Args:
      process: the forward process that t refers to.
      guided: any denoiser, such as `classifier_free`'s.
      plain: what takes its place outside, usually the conditional denoiser without guidance.
      low: lowest logsnr (most noise), in nats, [] or [b]; may be -inf.
      high: highest, above low; may be inf.

    Raises:
      ValueError: the interval is empty.

    Source: Kynkaanniemi et al. 2024 (Applying guidance in a limited interval).
    """
    low, high = per_sample("low", low), per_sample("high", high)
    check(low < high, f"low, high: an interval of logsnr needs low < high, got the empty [{low}, {high}]")
    return Interval(process, guided, plain, low, high)
