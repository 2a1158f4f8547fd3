"""The dynamic threshold of a scheduler file whose `sample_max_value` s is below 1: clip(x0, -s, s)/s.

diffusers' s = min(max(quantile, 1), sample_max_value) is then sample_max_value for every sample, below the range of the
data: what `dynamic_threshold`, whose s is never below the range, refuses. Source: Saharia et al. 2022, section 2.3.
"""

import jax.numpy as jnp

from diffjax._typing import Denoiser, Sample, Time
from diffjax.guidance._base import AbstractGuide, aligned, number
from diffjax.parameterisation._denoiser import predict


class ClippedAndScaled(AbstractGuide):
    """Made by `clipped_and_scaled`."""

    denoiser: Denoiser
    limit: Time

    def __call__(self, xt: Sample, t: Time) -> Sample:
        x0, limit = predict(self.denoiser, xt, t).astype(xt.dtype), aligned(self.limit, xt)
        return jnp.clip(x0, -limit, limit) / limit


def clipped_and_scaled(denoiser: Denoiser, limit: Time) -> Denoiser:
    """The denoiser's x0_hat [b, *d] clipped to [-limit, limit] and divided by limit, [] or [b]."""
    return ClippedAndScaled(denoiser, number("limit", limit))
