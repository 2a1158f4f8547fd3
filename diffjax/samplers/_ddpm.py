"""DDPM's ancestral step, with either variance or one between them.

    xs = mean of q(xs | xt, x0_hat) + sigma_{t|s} (sigma_s/sigma_t)^(1 - v) z,   z ~ N(0, I)

v = 0 is the posterior's own variance (beta tilde, "fixed small"), v = 1 the forward step's (beta, "fixed large"), and
between them log variances are interpolated. Source: Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, eq. 15.
"""

from typing import Any, ClassVar

import equinox as eqx

from diffjax._arrays import as_scalar, check
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper, namespace, schedule
from diffjax.samplers._ddim import DDIM
from diffjax.samplers._exponential_sde import beside


class DDPM(AbstractStepper):
    """DDPM: weak order 1, one evaluation a step. A step to sigma = 0 adds no noise: it gives x0_hat.

    Attributes:
      interpolation: v above, a scalar in [0, 1]: 0 for the small variance, which is `DDIM(eta=1.0)`, 1 for the large.

    Raises:
      ValueError: interpolation is not in [0, 1].

    Source: Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, eq. 15.
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 0

    interpolation: Scalar = eqx.field(converter=as_scalar, default=0.0)

    def __check_init__(self):
        v = self.interpolation
        check((v >= 0) & (v <= 1), f"interpolation: must lie in [0, 1], got {v}")

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(keep, data, noise), each [n]: `DDIM(eta=1.0)`'s, with more noise."""
        keep, data, noise = DDIM(eta=1.0).prepare(process, ts)
        at = schedule(process, ts)
        v = beside(self.interpolation, at)
        xp = namespace(v * at.sigma)
        growth = at.sigma[:-1] / xp.where(at.sigma[1:] > 0, at.sigma[1:], at.sigma[:-1])
        return keep, data, noise * growth**v

    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> None:
        return None

    def step(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Any,
        state: None,
    ) -> tuple[Sample, None]:
        return DDIM().step(keys, process, denoiser, xt, t, s, weights, state)
