"""Predictor-corrector: any stepper, then Langevin steps at the noise level it has reached.

With g = grad log p_s(x) = (alpha_s x0_hat - x)/sigma_s^2 and z ~ N(0, I), a correction is

    x <- x + e g + sqrt(2 e) z,     e = 2 snr^2 min(d/||g||^2, alpha_s^2 + sigma_s^2)

so that the signal e g has the norm of the noise times snr. Where the paper has means over the batch, ||z|| is its
expectation sqrt(d), d the number of features, and ||g|| each sample's own: a sample depends on its own index alone. The
bound, what the ratio is for Gaussian data of unit variance, keeps e finite where g is close to 0.
Source: Song et al. 2021, algorithms 4 and 5.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check, expand, mean_features, normal_like
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper, Schedule, namespace, schedule


class AbstractCorrected(AbstractStepper):
    """A predictor, then corrections at the level it has reached, an evaluation each; a member says what one is."""

    predictor: eqx.AbstractVar[AbstractStepper]
    corrections: eqx.AbstractVar[int]

    @abstractmethod
    def correction(self, at: Schedule) -> Any:
        """Weights of the correction at the end of each step, a pytree of [n]."""

    @abstractmethod
    def correct(self, keys: Any, denoiser: Denoiser, x: Sample, s: Time, weights: Any) -> Sample:
        """One correction of x [b, *d] at time s, which leaves it as it is where sigma is 0."""

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

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(the predictor's, sigma_s, the correction's), each [n]."""
        at = schedule(process, ts)
        return self.predictor.prepare(process, ts), at.sigma[1:], self.correction(at)

    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Any:
        """The predictor's memory."""
        return self.predictor.init(process, xt, t)

    def step(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: Any,
    ) -> tuple[Sample, Any]:
        first, sigma, own = weights
        split = jax.vmap(jax.random.fold_in, (0, None))
        drawn = split(keys, 0) if self.predictor.stochastic else None
        xs, state = self.predictor.step(drawn, process, self.follow(denoiser), xt, t, s, first, state)
        place = jnp.where(sigma > 0, s, t)  # a denoiser need not answer at sigma = 0
        again = lambda j, x: self.correct(split(keys, j + 1), denoiser, x, place, own).astype(x.dtype)
        return jax.lax.fori_loop(0, self.corrections, again, xs), state


def check_corrections(corrections: Any) -> None:
    """Raises `ValueError` where a number of corrections, a scalar, is not a positive integer."""
    if not isinstance(corrections, int) or corrections < 1:
        raise ValueError(f"corrections: must be a positive integer, got {corrections!r}")


class PredictorCorrector(AbstractCorrected):
    """A predictor, then corrections: as many more evaluations a step. There is no correction at sigma = 0.

    Its order is the predictor's, down to the corrections' own bias, which no number of steps removes: for isotropic
    Gaussian data many of them leave a variance about 1 + snr^2 + 2/d times what it should be. It is meant for images.

    Attributes:
      predictor: any stepper, with or without noise.
      corrections: Langevin steps after each of its steps, at least 1.
      snr: the ratio above, a scalar, positive; the paper has 0.16 for VE and CIFAR-10.

    Raises:
      ValueError: corrections is not a positive integer, or snr is not positive.

    Source: Song et al. 2021, algorithms 2 to 5.
    """

    predictor: AbstractStepper
    corrections: int = eqx.field(static=True, default=1)
    snr: Scalar = eqx.field(converter=as_scalar, default=0.16)

    def __check_init__(self):
        check_corrections(self.corrections)
        check(self.snr > 0, f"snr: must be positive, got {self.snr}")

    def correction(self, at: Schedule) -> Any:
        """(alpha_s, sigma_s^-2 or 0, 1 or 0, bound), each [n]."""
        xp = namespace(at.sigma)
        alpha, sigma = at.alpha[1:], at.sigma[1:]
        noisy = sigma > 0
        inverse = xp.where(noisy, 1 / xp.where(noisy, sigma, 1.0) ** 2, 0.0)
        return alpha, inverse, xp.where(noisy, 1.0, 0.0), alpha**2 + sigma**2

    def correct(self, keys: Any, denoiser: Denoiser, x: Sample, s: Time, weights: Any) -> Sample:
        alpha, inverse, noisy, bound = weights
        pull = (alpha * denoiser(x, s) - x) * inverse
        snr = jnp.asarray(self.snr, bound.dtype)
        root = expand(snr / jnp.sqrt(jnp.maximum(mean_features(pull**2), 1 / bound)), x)  # sqrt(e/2)
        return x + noisy * (2 * root**2 * pull + 2 * root * normal_like(keys, x))
