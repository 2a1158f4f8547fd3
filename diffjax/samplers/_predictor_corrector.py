"""Predictor-corrector: any stepper, then Langevin steps at the noise level it has reached.

With g = grad log p_s(x) = (alpha_s x0_hat - x)/sigma_s^2 and z ~ N(0, I), a correction is

    x <- x + e g + sqrt(2 e) z,     e = 2 snr^2 min(d/||g||^2, alpha_s^2 + sigma_s^2)

so that the signal e g has the norm of the noise times snr. Where the paper has means over the batch, ||z|| is its
expectation sqrt(d), d the number of features, and ||g|| each sample's own: a sample depends on its own index alone. The
bound, what the ratio is for Gaussian data of unit variance, keeps e finite where g is close to 0.
Source: Song et al. 2021, algorithms 4 and 5.
"""

from abc import abstractmethod
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import check, expand, mean_features, normal_like, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Denoiser, FlowMap, GridLike, Numbers, Sample, Scalar, State, Weights
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class CorrectedWeights(NamedTuple):
    """The predictor's weights, sigma_s and the correction's weights, each [n]."""

    predictor: Weights
    sigma_s: Numbers
    correction: Weights


class AbstractCorrected(AbstractStepper):
    """A predictor, then corrections at the level it has reached, an evaluation each; a member says what one is."""

    predictor: eqx.AbstractVar[AbstractStepper]
    corrections: eqx.AbstractVar[int]

    @abstractmethod
    def correction(self, grid: ScheduleOnGrid) -> Weights:
        """Weights of the correction at the end of each step, a NamedTuple of [n]."""

    @abstractmethod
    def correct(self, denoiser: Denoiser, x: Sample, at: Step) -> Sample:
        """One correction of x [b, *d] at time `at.s`, which leaves it as it is where sigma is 0."""

    def follow(self, denoiser: Denoiser) -> Denoiser:
        """What the predictor follows: (xt [b, *d], t) -> x0_hat."""
        return denoiser

    @property
    def order(self) -> int:
        return self.predictor.order

    @property
    def evaluations_per_step(self) -> int:
        return self.predictor.evaluations_per_step + self.corrections

    @property
    def history(self) -> int:
        return self.predictor.history

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def final_denoise(self) -> bool:
        return self.predictor.final_denoise

    def prepare(self, grid: ScheduleOnGrid) -> CorrectedWeights:
        return CorrectedWeights(self.predictor.prepare(grid), grid.sigma[1:], self.correction(grid))

    def check_denoiser(
        self, denoiser: Denoiser | FlowMap, process: AbstractGaussianProcess, ts: GridLike, weights: Weights
    ) -> None:
        """As the predictor's."""
        self.predictor.check_denoiser(self.follow(denoiser), process, ts, weights.predictor)

    def init(self, x: Sample) -> State:
        """The predictor's memory."""
        return self.predictor.init(x)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: State) -> tuple[Sample, State]:
        w = at.weights
        keys = at.keys_of(0) if self.predictor.stochastic else None
        predict = Step(at.t, at.s, w.predictor, keys)
        xs, state = self.predictor.step(self.follow(denoiser), x, predict, state)
        place = jnp.where(w.sigma_s > 0, at.s, at.t)  # a denoiser need not answer at sigma = 0

        def again(j, x):
            return self.correct(denoiser, x, Step(at.t, place, w.correction, at.keys_of(j + 1))).astype(x.dtype)

        return jax.lax.fori_loop(0, self.corrections, again, xs), state


def check_corrections(corrections: int) -> None:
    """Raises `ValueError` where a number of corrections, a scalar, is not a positive integer."""
    if corrections < 1:
        raise ValueError(f"corrections: must be a positive integer, got {corrections!r}")


class LangevinWeights(NamedTuple):
    """At the end of each step, [n]: alpha, 1/sigma^2 (or 0), whether sigma > 0 (1 or 0), alpha^2 + sigma^2."""

    alpha: Numbers
    inverse_variance: Numbers
    noisy: Numbers
    bound: Numbers


@checked_numbers
class PredictorCorrector(AbstractCorrected):
    """A predictor, then corrections: as many more evaluations a step. There is no correction at sigma = 0.

    Its order is the predictor's, down to the corrections' own bias, which no number of steps removes: for isotropic
    Gaussian data many of them leave a variance about 1 + snr^2 + 2/d times what it should be. It is meant for images.

    Attributes:
      predictor: any stepper, with or without noise.
      corrections: Langevin steps after each step of the predictor, at least 1.
      snr: signal-to-noise ratio of a correction, a scalar, positive; the paper has 0.16 for VE and CIFAR-10.

    Raises:
      ValueError: corrections is not a positive integer, or snr is not positive.

    Source: Song et al. 2021, algorithms 2 to 5.
    """

    predictor: AbstractStepper
    corrections: int = eqx.field(static=True, default=1)
    snr: Scalar = eqx.field(converter=partial(as_scalar, "snr"), default=0.16)

    @values_at_once
    def __check_init__(self):
        check_corrections(self.corrections)
        check(self.snr > 0, f"snr: must be positive, got {self.snr}")

    def correction(self, grid: ScheduleOnGrid) -> LangevinWeights:
        alpha, sigma = grid.alpha[1:], grid.sigma[1:]
        xp, noisy = grid.xp, sigma > 0
        inverse = xp.where(noisy, 1 / xp.where(noisy, sigma, 1.0) ** 2, 0.0)
        return LangevinWeights(alpha, inverse, xp.where(noisy, 1.0, 0.0), alpha**2 + sigma**2)

    def correct(self, denoiser: Denoiser, x: Sample, at: Step) -> Sample:
        w = at.weights
        score = (w.alpha * predict(denoiser, x, at.s) - x) * w.inverse_variance
        snr = jnp.asarray(self.snr, w.bound.dtype)
        root = expand(snr / jnp.sqrt(jnp.maximum(mean_features(score**2), 1 / w.bound)), x)  # sqrt(e/2)
        return x + w.noisy * (2 * root**2 * score + 2 * root * normal_like(at.keys, x))
