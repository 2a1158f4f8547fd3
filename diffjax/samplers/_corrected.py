"""Any stepper, then Langevin steps of a known size at the noise level it has reached: for composed densities.

    x <- x + tau score + sqrt(2 tau) z = x + r (alpha_s x0_hat - x) + sqrt(2 r) sigma_s z,     tau = r sigma_s^2

as in `annealed_langevin`, whose levels are here bridged by the predictor. `PredictorCorrector` chooses each sample's
tau by its own score, which keeps no density exactly and in few dimensions is far off; a tau that depends on the level
alone keeps p_s up to O(r), for any denoiser whose alpha x0_hat = x + sigma^2 grad log p: that of `guidance.product`,
too, whose p_s is no diffusion of p_0. There the predictor follows `normalised()` weights, which keeps it near p_s.

Source: Du et al. 2023 (Reduce, reuse, recycle), algorithm 1 with unadjusted Langevin; Song et al. 2021, algorithm 1.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import check, normal_like, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Denoiser, Numbers, Sample, Scalar
from diffjax.guidance import Product
from diffjax.parameterisation._denoiser import predict
from diffjax.samplers._predictor_corrector import AbstractCorrected, check_corrections
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class LevelWeights(NamedTuple):
    """alpha and sigma at the end of each step, [n]."""

    alpha: Numbers
    sigma: Numbers


@checked_numbers
class LangevinCorrected(AbstractCorrected):
    """A predictor, then `corrections` Langevin steps of size tau = step_size sigma_s^2; none at sigma = 0.

    The number of steps and corrections decides how far the walk mixes, step_size how biased its law is. A product of k
    densities is up to k times as peaked as one: step_size < 2/k, and 0.1 or less to be near its law. A product inside
    another guide (an interval, a threshold) is followed by the predictor as it is, not by its normalised weights.

    Attributes:
      predictor: any stepper, with or without noise.
      corrections: Langevin steps after each step of the predictor, each an evaluation, at least 1.
      step_size: r, the size of a Langevin step relative to sigma_s^2; a scalar in (0, 2).

    Raises:
      ValueError: corrections is not a positive integer, or step_size is not in (0, 2).

    Source: Du et al. 2023 (Reduce, reuse, recycle), algorithm 1.
    """

    predictor: AbstractStepper
    corrections: int = eqx.field(static=True, default=4)
    step_size: Scalar = eqx.field(converter=partial(as_scalar, "step_size"), default=0.1)

    @values_at_once
    def __check_init__(self):
        check_corrections(self.corrections)
        check((self.step_size > 0) & (self.step_size < 2), f"step_size: must lie in (0, 2), got {self.step_size}")

    def correction(self, grid: ScheduleOnGrid) -> LevelWeights:
        return LevelWeights(grid.alpha[1:], grid.sigma[1:])

    def follow(self, denoiser: Denoiser) -> Denoiser:
        return denoiser.normalised() if isinstance(denoiser, Product) else denoiser

    def correct(self, denoiser: Denoiser, x: Sample, at: Step) -> Sample:
        alpha, sigma = at.weights
        r = jnp.where(sigma > 0, self.step_size, 0.0).astype(sigma.dtype)
        return x + r * (alpha * predict(denoiser, x, at.s) - x) + jnp.sqrt(2 * r) * sigma * normal_like(at.keys, x)
