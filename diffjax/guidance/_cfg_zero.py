"""CFG-Zero*: the unconditional velocity is scaled to fit the conditional one, and the first steps stand still.

    v = s v_bad + scale (v_good - s v_bad),   s = <v_good, v_bad>/||v_bad||^2
    v = 0                                     at the start, where a network's velocity is worse than none

Both are stated on the velocity: `OnPrediction(process, VelocityPrediction(), OptimalScale())`, then `zero_init`.

Source: Fan et al. 2025 (CFG-Zero*: improved classifier-free guidance for flow matching models), algorithm 1.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from diffjax._arrays import expand
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.guidance._base import AbstractRule, both
from diffjax.guidance._interval import within_interval
from diffjax.guidance._projected import projection
from diffjax.process import AbstractGaussianProcess, schedule_derivatives


class OptimalScale(AbstractRule):
    """cond + (scale - 1) (cond - s uncond), with s uncond the projection of cond on uncond; `cfg_zero` for the paper's.

    Source: Fan et al. 2025 (CFG-Zero*), algorithm 1 (its w is this scale).
    """

    def __call__(self, cond: Sample, uncond: Sample, scale: Array, xt: Sample, t: Time) -> Sample:
        cond, uncond = both(cond, uncond, xt)
        return cond + (scale - 1) * (cond - projection(cond, uncond))


class ZeroVelocity(eqx.Module):
    """The denoiser `(xt [b, *d], t) -> x0_hat [b, *d]` under which the probability flow stands still."""

    process: AbstractGaussianProcess

    def __call__(self, xt: Sample, t: Time) -> Sample:
        alpha_dot, sigma_dot = schedule_derivatives(self.process, t)
        # alpha' x0 + sigma' (xt - alpha x0)/sigma = 0
        factor = sigma_dot / (self.process.alpha(t) * sigma_dot - self.process.sigma(t) * alpha_dot)
        return expand(jnp.asarray(factor, xt.dtype), xt) * xt


@checked_numbers
def zero_init(process: AbstractGaussianProcess, denoiser: Denoiser, logsnr_start: Scalar) -> Denoiser:
    """Zero velocity below a logsnr, the denoiser `(xt [b, *d], t) -> [b, *d]` from there on: it skips the first steps.

    By `Euler`, and for `Rectified` and processes with alpha = 1 by `DDIM` too, the state then does not move at all.

    Args:
      process: the forward process that t refers to.
      denoiser: any, usually guided.
      logsnr_start: where it begins to be called, a scalar; for the paper's K steps of a grid `ts` one between the
        levels of ts[K - 1] and ts[K]. (At the very level of a time of the grid, rounding decides.)

    Source: Fan et al. 2025 (CFG-Zero*), algorithm 1.
    """
    return within_interval(process, denoiser, ZeroVelocity(process), logsnr_start, float("inf"))
