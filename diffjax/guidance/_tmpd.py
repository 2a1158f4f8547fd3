"""Guidance with the denoiser's own covariance of x0 given xt, by Tweedie's second moment.

    D + C A' (A C A' + std^2)^-1 (y - A(D)),    C = Cov[x0 | xt] = (sigma^2/alpha) dD/dxt

It is E[x0 | xt, y] itself for Gaussian data of any covariance. C is never formed: conjugate gradients take products
with it, one vjp of the denoiser each. C is a covariance at the exact denoiser; a network's is one as far as conjugate
gradients find it to be (`TruncatedCG`).

Source: Boys et al. 2023 (Tweedie moment projected diffusions for inverse problems), eq. 11; Rozet et al. 2024 (Learning
diffusion priors from observations by expectation maximization), section 4.2: moment matching posterior sampling (MMPS).
"""

import equinox as eqx
import lineax as lx

from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, PerSample, Sample, Time
from diffjax.guidance._posterior import AbstractPosterior, ObservationLike, observation, observe, positive, whiten
from diffjax.guidance._truncated_cg import TruncatedCG
from diffjax.operators._base import Operator
from diffjax.process import AbstractGaussianProcess


class TMPD(AbstractPosterior):
    """A guided denoiser; made by `tmpd`. It evaluates the denoiser once, and a vjp an iteration."""

    std: PerSample
    solver: lx.AbstractLinearSolver = eqx.field(static=True)

    def __call__(self, xt: Sample, t: Time) -> Sample:
        at = observe(self.process, self.denoiser, self.operator, self.y, xt, t)
        covariance = lambda v: at.operator.push(at.covariance(at.operator.pull(v)))
        weighted = whiten(covariance, at.residual, self.std, self.solver)
        return at.x0_hat + at.covariance(at.operator.pull(weighted))


@checked_numbers
def tmpd(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    operator: Operator,
    y: ObservationLike,
    std: PerSample,
    *,
    solver: lx.AbstractLinearSolver = TruncatedCG(),
) -> Denoiser:
    """TMPD, which is MMPS, as a denoiser: xt [b, *d], t [] or [b] -> an estimate of E[x0 | xt, y], [b, *d].

    Args:
      process: the forward process.
      denoiser: the prior's.
      operator: A, x [b, *d] -> [b, *m]; where it is not linear, its derivative at D stands for it.
      y: what was observed, [b, *m], or [1, *m] for all samples.
      std: of the observation's noise, a scalar or [b], positive.
      solver: of lineax, for A C A' + std^2; `TruncatedCG(max_steps=3)`, say, ends after three iterations. Plain
        `lineax.CG` is for exact denoisers: of a trained network it lets half of the samples fall apart.

    Raises:
      ValueError: std is not positive or, when called, y has another shape than A(x).

    Source: Boys et al. 2023, eq. 11; Rozet et al. 2024, section 4.2.
    """
    return TMPD(process, denoiser, operator, observation(y), positive("std", std), solver)
