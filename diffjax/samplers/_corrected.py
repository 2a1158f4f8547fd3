"""Any stepper, then Langevin steps of a known size at the noise level it has reached: for composed densities.

    x <- x + tau score + sqrt(2 tau) z = x + r (alpha_s x0_hat - x) + sqrt(2 r) sigma_s z,     tau = r sigma_s^2

as in `annealed_langevin`, whose levels are here bridged by the predictor. `PredictorCorrector` chooses each sample's
tau by its own score, which keeps no density exactly and in few dimensions is far off; a tau that depends on the level
alone keeps p_s up to O(r), for any denoiser whose alpha x0_hat = x + sigma^2 grad log p: that of `guidance.product`,
too, whose p_s is no diffusion of p_0. There the predictor follows `normalised()` weights, which keeps it near p_s.

Source: Du et al. 2023 (Reduce, reuse, recycle), algorithm 1 with unadjusted Langevin; Song et al. 2021, algorithm 1.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_scalar, check, normal_like
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.guidance import Product
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper, schedule


class LangevinCorrected(AbstractStepper):
    """A predictor, then `corrections` Langevin steps of size tau = step_size sigma_s^2; none at sigma = 0.

    The number of steps and corrections decides how far the walk mixes, step_size how biased its law is. A product of k
    densities is up to k times as peaked as one: step_size < 2/k, and 0.1 or less to be near its law.

    Attributes:
      predictor: any stepper, with or without noise.
      corrections: Langevin steps after each of its steps, each an evaluation, at least 1.
      step_size: r, a scalar in (0, 2).

    Raises:
      ValueError: corrections is not a positive integer, or step_size is not in (0, 2).

    Source: Du et al. 2023 (Reduce, reuse, recycle), algorithm 1.
    """

    predictor: AbstractStepper
    corrections: int = eqx.field(static=True, default=4)
    step_size: Scalar = eqx.field(converter=as_scalar, default=0.1)

    def __check_init__(self):
        if not isinstance(self.corrections, int) or self.corrections < 1:
            raise ValueError(f"corrections: must be a positive integer, got {self.corrections!r}")
        check((self.step_size > 0) & (self.step_size < 2), f"step_size: must lie in (0, 2), got {self.step_size}")

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
        """(the predictor's, (alpha_s, sigma_s)), each [n]."""
        at = schedule(process, ts)
        return self.predictor.prepare(process, ts), (at.alpha[1:], at.sigma[1:])

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
        first, (alpha, sigma) = weights
        split = jax.vmap(jax.random.fold_in, (0, None))
        own = split(keys, self.corrections) if self.predictor.stochastic else None
        flow = denoiser.normalised() if isinstance(denoiser, Product) else denoiser
        xs, state = self.predictor.step(own, process, flow, xt, t, s, first, state)
        r = jnp.where(sigma > 0, self.step_size, 0.0).astype(sigma.dtype)
        place = jnp.where(sigma > 0, s, t)  # a denoiser need not answer at sigma = 0

        def correct(j, x):
            pull = alpha * denoiser(x, place) - x
            return (x + r * pull + jnp.sqrt(2 * r) * sigma * normal_like(split(keys, j), x)).astype(x.dtype)

        return jax.lax.fori_loop(0, self.corrections, correct, xs.astype(xt.dtype)), state
