"""Guidance rescale: the guided answer with the spread of the unguided one.

    x_cfg = rule(cond, uncond, scale),   x = (1 - phi + phi std(cond)/std(x_cfg)) x_cfg

std over the features of each sample. The paper does so to its network's output, v; here it is done to x0_hat, where
overexposure shows; `OnPrediction(process, VPrediction(), Rescaled())` is the paper's.

Source: Lin et al. 2023 (Common diffusion noise schedules and sample steps are flawed), section 3.4.
"""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from diffjax._arrays import as_accumulators, check, values_at_once
from diffjax._typing import Sample, Scalar, Time
from diffjax.guidance._base import AbstractRule, Linear, aligned, both, number


class Rescaled(AbstractRule):
    """Guidance rescale: the guided x0_hat, rescaled by a share phi to the standard deviation of the conditional one.

    >>> import jax.numpy as jnp
    >>> from diffjax.guidance import Rescaled, extrapolate
    >>> cond, uncond, xt = lambda xt, t: xt, lambda xt, t: 0.5 * xt, jnp.array([[1.0, -1.0]])
    >>> print(extrapolate(cond, uncond, 3.0)(xt, 0.5))
    [[ 2. -2.]]
    >>> print(extrapolate(cond, uncond, 3.0, rule=Rescaled(1.0))(xt, 0.5))
    [[ 1. -1.]]

    Attributes:
      phi: how far to rescale, from 0 (not at all) to 1 (fully), [] or [b]; the paper has 0.7.
      rule: the rule whose answer is rescaled.

    Raises:
      ValueError: phi is not in [0, 1].

    Source: Lin et al. 2023 (Common diffusion noise schedules and sample steps are flawed), section 3.4.
    """

    phi: Scalar = eqx.field(converter=partial(number, "phi"), default=0.7)
    rule: AbstractRule = Linear()

    @values_at_once
    def __check_init__(self):
        check((self.phi >= 0) & (self.phi <= 1), f"phi: must lie in [0, 1], got {self.phi}")

    def __call__(self, cond: Sample, uncond: Sample, scale: Array, xt: Sample, t: Time) -> Sample:
        cond, uncond = both(cond, uncond, xt)
        x0 = self.rule(cond, uncond, scale, xt, t)
        before, after = _variance(cond), _variance(x0)
        same = (after == before) | (after == 0) | (before == 0)  # also where a root would have no slope
        ratio = jnp.where(same, 1.0, jnp.sqrt(jnp.where(same, 1.0, before) / jnp.where(same, 1.0, after)))
        return x0 * (1 + aligned(self.phi, xt) * (ratio - 1)).astype(x0.dtype)


def _variance(x):
    return jnp.var(as_accumulators(x), axis=tuple(range(1, x.ndim)), keepdims=True)
