"""Guidance by two denoisers: away from the worse one.

    D = good + (scale - 1) (good - bad)

Autoguidance (bad is a smaller network, or an earlier or longer average of the same weights), negative conditions (bad
is told what is not wanted). If the densities are p and q, the score is that of p^scale q^(1 - scale) at each level.

Source: Karras et al. 2024 (Guiding a diffusion model with a bad version of itself).
"""

from typing import Any

import equinox as eqx

from diffjax._typing import Denoiser, Sample, Time
from diffjax.guidance._base import AbstractRule, Linear, guided


class TwoPasses(eqx.Module):
    """`(xt [b, *d], t) -> (good, bad)`, one evaluation of each denoiser."""

    good: Any
    bad: Any

    def __call__(self, xt: Sample, t: Time) -> tuple[Sample, Sample]:
        return self.good(xt, t), self.bad(xt, t)


def extrapolate(
    good: Denoiser,
    bad: Denoiser,
    scale: Any,
    *,
    rule: AbstractRule = Linear(),  # noqa: B008 - it is immutable
    negative: bool = False,
) -> Denoiser:
    """Any two denoisers as a guided one, `(xt [b, *d], t) -> [b, *d]`, at an evaluation of each.

    Args:
      good: what to go towards.
      bad: what to go away from. Where it is the same network with another condition, `classifier_free` does both in
        one pass.
      scale: [] or [b]; 1 is `good` alone, and then, where the value can be seen, `good` itself is returned.
      rule: how the two answers become one; see `classifier_free`.
      negative: whether a scale below 0 is meant.

    Raises:
      ValueError: the scale is not finite, or below 0.

    Source: Karras et al. 2024 (Guiding a diffusion model with a bad version of itself).
    """
    return guided(TwoPasses(good, bad), good, scale, rule, negative)
