"""Guidance by two denoisers: away from the worse one.

    D = cond + (scale - 1) (cond - uncond)

Autoguidance (uncond is a smaller network, or an earlier or longer average of the same weights), negative conditions
(uncond is given what is not wanted). If the densities are p and q, the score is that of p^scale q^(1 - scale) at each
level.

Source: Karras et al. 2024 (Guiding a diffusion model with a bad version of itself).
"""

import equinox as eqx

from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, PerSample, Sample, Time
from diffjax.guidance._base import AbstractRule, Linear, guided
from diffjax.parameterisation._denoiser import predict


class TwoPasses(eqx.Module):
    """`(xt [b, *d], t) -> (cond, uncond)`, one evaluation of each denoiser."""

    cond: Denoiser
    uncond: Denoiser

    def __call__(self, xt: Sample, t: Time) -> tuple[Sample, Sample]:
        return predict(self.cond, xt, t), predict(self.uncond, xt, t)


@checked_numbers
def extrapolate(
    cond: Denoiser,
    uncond: Denoiser,
    scale: PerSample,
    *,
    rule: AbstractRule = Linear(),  # noqa: B008 - it is immutable
    negative: bool = False,
) -> Denoiser:
    """Any two denoisers as a guided one, `(xt [b, *d], t) -> [b, *d]`, at an evaluation of each.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.guidance import extrapolate
    >>> process, xt = dj.Rectified(), jnp.zeros((1, 2))
    >>> good, bad = (dj.exact_denoiser(dj.Gaussian(jnp.full(2, m), 1.0), process) for m in (1.0, 0.5))
    >>> print(good(xt, 0.5), extrapolate(good, bad, 2.0)(xt, 0.5))
    [[0.5 0.5]] [[0.75 0.75]]

    Args:
      cond: what to go towards.
      uncond: what to go away from. Where it is the same network with another condition, `classifier_free` does both in
        one pass.
      scale: [] or [b]; 1 is `cond` alone, and then, where the value can be seen, `cond` itself is returned.
      rule: how the two answers become one; see `classifier_free`.
      negative: whether a scale below 0 is meant.

    Raises:
      ValueError: the scale is not finite, or below 0.

    Source: Karras et al. 2024 (Guiding a diffusion model with a bad version of itself).
    """
    return guided(TwoPasses(cond, uncond), cond, scale, rule, negative)
