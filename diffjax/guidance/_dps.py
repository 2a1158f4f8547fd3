"""Diffusion posterior sampling: the observation's likelihood at the denoiser's estimate.

    D + scale C A' (y - A(D))/std^2          p(y | xt) ~ p(y | x0 = D)
    D - scale (sigma^2/alpha) grad_xt |y - A(D)|          the paper's loop, whose step is in units of |y - A(D)|

The first is its equation 16; it forgets that x0 is uncertain given xt, so its samples lie too near to y.

Source: Chung et al. 2023 (Diffusion posterior sampling for general noisy inverse problems), eqs. 10 and 16,
algorithm 1.
"""

import jax.numpy as jnp

from diffjax._arrays import check, expand, sum_features, values_at_once
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, PerSample, Sample, Time
from diffjax.guidance._base import number
from diffjax.guidance._posterior import AbstractPosterior, ObservationLike, observation, observe, positive
from diffjax.operators._base import Operator
from diffjax.process import AbstractGaussianProcess


class DPS(AbstractPosterior):
    """A guided denoiser; made by `dps`. It evaluates the denoiser once, and its vjp."""

    std: PerSample
    scale: PerSample

    def __call__(self, xt: Sample, t: Time) -> Sample:
        at = observe(self.process, self.denoiser, self.operator, self.y, xt, t)
        weight = expand(self.scale / self.std**2, at.residual).astype(xt.dtype)
        return at.x0_hat + at.covariance(at.operator.pull(weight * at.residual))


class DPSNormalised(AbstractPosterior):
    """A guided denoiser; made by `dps_normalised`."""

    scale: PerSample

    def __call__(self, xt: Sample, t: Time) -> Sample:
        at = observe(self.process, self.denoiser, self.operator, self.y, xt, t)
        square = sum_features(at.residual**2)
        length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), jnp.inf)
        weight = expand(self.scale / length, at.residual).astype(xt.dtype)
        return at.x0_hat + at.covariance(at.operator.pull(weight * at.residual))


@checked_numbers
def dps(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    operator: Operator,
    y: ObservationLike,
    std: PerSample,
    *,
    scale: PerSample = 1.0,
) -> Denoiser:
    """DPS as a denoiser: xt [b, *d], t [] or [b] -> an estimate of E[x0 | xt, y], [b, *d].

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import guidance, operators
    >>> process = dj.Rectified()
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)
    >>> y, observed = jnp.array([[2.0, 0.0]]), operators.Mask([1, 0])
    >>> answer = guidance.dps(process, denoiser, observed, y, 0.5)(jnp.zeros((1, 2)), 0.5)
    >>> bool(answer[0, 0] > 0), float(answer[0, 1])
    (True, 0.0)

    Args:
      process: the forward process.
      denoiser: the prior's.
      operator: A, linear or not: x [b, *d] -> [b, *m].
      y: what was observed, [b, *m], or [1, *m] for all samples.
      std: of the observation's noise, a scalar or [b], positive.
      scale: of the guidance, a scalar or [b]; 1 is the likelihood's gradient itself.

    Raises:
      ValueError: std is not positive, scale is below 0 or not finite or, when called, y has another shape than A(x).

    Source: Chung et al. 2023, eq. 16 with rho = scale/std^2, on half the squared norm.
    """
    return DPS(process, denoiser, operator, observation(y), positive("std", std), _not_negative(scale))


@values_at_once
def _not_negative(scale):
    scale = number("scale", scale)
    check(scale >= 0, f"scale: below 0 it would lead away from y, got {scale}")
    return scale


@checked_numbers
def dps_normalised(
    process: AbstractGaussianProcess, denoiser: Denoiser, operator: Operator, y: ObservationLike, *, scale: PerSample
) -> Denoiser:
    """DPS with a step in units of the residual, for noise of unknown size: shapes as in `dps`.

    The paper's loop takes it off xs at each of its steps: there, scale is zeta' divided by that step's beta, so that
    one number stands for another zeta' on another grid.

    Args:
      process: the forward process.
      denoiser: the prior's.
      operator: A, linear or not: x [b, *d] -> [b, *m].
      y: what was observed, [b, *m], or [1, *m] for all samples.
      scale: of the guidance, a scalar or [b].

    Raises:
      ValueError: scale is below 0 or not finite or, when called, y has another shape than A(x).

    Source: Chung et al. 2023, eq. 16 and appendix C.2, rho = scale/|y - A(D)|.
    """
    return DPSNormalised(process, denoiser, operator, observation(y), _not_negative(scale))
