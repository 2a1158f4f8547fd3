"""Guidance that takes the covariance of x0 given xt to be r^2 I: pseudoinverse guidance, and DiffPIR's data step.

    pigdm      D + C A' (r^2 A A' + std^2)^-1 (y - A(D)),      r^2 = c sigma^2/(c alpha^2 + sigma^2),  c = data_std^2
    proximal   D + r^2 A' (r^2 A A' + std^2)^-1 (y - A(D)),    r^2 = (sigma/alpha)^2/strength

PiGDM is E[x0 | xt, y] itself for data N(m, c I). The proximal step is argmin |y - A x|^2/(2 std^2) + |x - D|^2/(2 r^2)
over x: no gradient of the denoiser is taken.

Source: Song et al. 2023 (Pseudoinverse-guided diffusion models), eqs. 7-8; Zhu et al. 2023 (Denoising
diffusion models for plug-and-play image restoration), eq. 12b.
"""

import equinox as eqx
import jax.numpy as jnp
import lineax as lx

from diffjax._arrays import expand
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, PerSample, Sample, Scalar, Time
from diffjax.guidance._posterior import (
    CONJUGATE_GRADIENTS,
    AbstractPosterior,
    ObservationLike,
    compare,
    isotropic,
    observation,
    observe,
    positive,
    whiten,
)
from diffjax.operators._base import Operator
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess

LEAST_SNR = 1e-9
"""alpha^2/sigma^2 is taken to be no less: a proximal step there is the one without a prior, to rounding."""


class PiGDM(AbstractPosterior):
    """A guided denoiser; made by `pigdm`. It evaluates the denoiser once, and its vjp."""

    std: PerSample
    data_std: PerSample
    solver: lx.AbstractLinearSolver = eqx.field(static=True)

    def __call__(self, xt: Sample, t: Time) -> Sample:
        at = observe(self.process, self.denoiser, self.operator, self.y, xt, t)
        square = isotropic(self.process, self.data_std, xt, t)
        weighted = whiten(lambda v: at.operator.push(square * at.operator.pull(v)), at.residual, self.std, self.solver)
        return at.x0_hat + at.covariance(at.operator.pull(weighted))


class Proximal(AbstractPosterior):
    """A guided denoiser; made by `proximal`. It evaluates the denoiser once."""

    std: PerSample
    strength: PerSample
    solver: lx.AbstractLinearSolver = eqx.field(static=True)

    def __call__(self, xt: Sample, t: Time) -> Sample:
        x0_hat = predict(self.denoiser, xt, t).astype(xt.dtype)
        operator, residual = compare(self.operator, self.y, x0_hat)
        noise = self.process.sigma(t) ** 2
        signal = jnp.maximum(self.process.alpha(t) ** 2, LEAST_SNR * noise)
        square = expand(noise / (signal * self.strength), xt).astype(xt.dtype)
        weighted = whiten(lambda v: operator.push(square * operator.pull(v)), residual, self.std, self.solver)
        return x0_hat + square * operator.pull(weighted)


@checked_numbers
def pigdm(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    operator: Operator,
    y: ObservationLike,
    std: PerSample,
    *,
    data_std: Scalar = 1.0,
    solver: lx.AbstractLinearSolver = CONJUGATE_GRADIENTS,
) -> Denoiser:
    """Pseudoinverse guidance as a denoiser: xt [b, *d], t [] or [b] -> an estimate of E[x0 | xt, y], [b, *d].

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import guidance, operators
    >>> process = dj.Rectified()
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)
    >>> y, observed = jnp.array([[2.0, 0.0]]), operators.Mask([1, 0])
    >>> guidance.pigdm(process, denoiser, observed, y, 0.5)(jnp.zeros((1, 2)), 0.5).shape
    (1, 2)

    Args:
      process: the forward process.
      denoiser: the prior's.
      operator: A, x [b, *d] -> [b, *m]; where it is not linear, its derivative at D stands for it.
      y: what was observed, [b, *m], or [1, *m] for all samples.
      std: of the observation's noise, a scalar or [b], positive.
      data_std: of the data, a scalar, of which r^2 is made.
      solver: of lineax, for r^2 A A' + std^2.

    Raises:
      ValueError: std or data_std is not positive or, when called, y has another shape than A(x).

    Source: Song et al. 2023 (Pseudoinverse-guided diffusion models for inverse problems), eqs. 7-8.
    """
    std, data_std = positive("std", std), positive("data_std", data_std)
    return PiGDM(process, denoiser, operator, observation(y), std, data_std, solver)


@checked_numbers
def proximal(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    operator: Operator,
    y: ObservationLike,
    std: PerSample,
    *,
    strength: Scalar = 1.0,
    solver: lx.AbstractLinearSolver = CONJUGATE_GRADIENTS,
) -> Denoiser:
    """DiffPIR's data step as a denoiser: xt [b, *d], t [] or [b] -> an estimate of x0, [b, *d].

    Args:
      process: the forward process.
      denoiser: the prior's.
      operator: A, x [b, *d] -> [b, *m]; where it is not linear, its derivative at D stands for it.
      y: what was observed, [b, *m], or [1, *m] for all samples.
      std: of the observation's noise, a scalar or [b], positive.
      strength: DiffPIR's lambda, a scalar: how much the prior counts against y.
      solver: of lineax, for r^2 A A' + std^2.

    Raises:
      ValueError: std or strength is not positive or, when called, y has another shape than A(x).

    Source: Zhu et al. 2023, eq. 12b and algorithm 1, line 6, with rho_t = strength std^2 alpha^2/sigma^2.
    """
    std, strength = positive("std", std), positive("strength", strength)
    return Proximal(process, denoiser, operator, observation(y), std, strength, solver)
