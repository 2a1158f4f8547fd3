"""DDIM, deterministic and with noise.

    xs = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,   c = eta sigma_s sigma_{t|s}/sigma_t,   z ~ N(0, I)

with eps_hat = (xt - alpha_t x0_hat)/sigma_t. eta = 0 is Euler's method in sigma/alpha; eta = 1 is DDPM's ancestral step
with the posterior's variance. Source: Song et al. 2021 (Denoising diffusion implicit models), eqs. 12 and 16.
"""

from typing import Any, ClassVar

import equinox as eqx
import numpy as np

from diffjax._arrays import as_scalar, check, is_concrete, normal_like
from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper, Schedule, namespace, schedule


def optional_eta(value: Any) -> Any:
    """The number 0 stays out of the pytree: then no noise is drawn at all. Any other eta is a leaf, a scalar."""
    return None if value is None or (isinstance(value, float | int) and value == 0) else as_scalar(value)


class DDIM(AbstractStepper):
    """DDIM: order 1, one evaluation a step.

    Attributes:
      eta: 0 (the number) for the deterministic method; up to 1 for noise, 1 being DDPM's ancestral step. An array is
        a leaf: it can change without compiling.

    Raises:
      ValueError: eta is not in [0, 1].

    Source: Song et al. 2021 (Denoising diffusion implicit models), eq. 12.
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 0

    eta: Scalar | None = eqx.field(converter=optional_eta, default=None)

    def __check_init__(self):
        if self.eta is not None:
            check((self.eta >= 0) & (self.eta <= 1), f"eta: must lie in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta is not None

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(keep, data, noise), each [n]: xs = keep xt + data x0_hat + noise z."""
        at = schedule(process, ts)
        if self.eta is None:
            keep = at.sigma[1:] / at.sigma[:-1]
            noise = 0 * keep
        else:
            keep, noise = noisy_split(at, self.eta)
        return keep, at.alpha[1:] - keep * at.alpha[:-1], noise

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
        keep, data, noise = weights
        xs = keep * xt + data * denoiser(xt, t)
        return (xs if keys is None else xs + noise * normal_like(keys, xt)), None


def noisy_split(at: Schedule, eta: Any) -> tuple[Any, Any]:
    """(keep, noise), each [n]: DDIM's sqrt(sigma_s^2 - c^2)/sigma_t and c for an eta (scalar) of 0 or more, with c no
    greater than sigma_s; slopes are finite where a grid touches alpha = 0 or sigma = 0."""
    eta = np.asarray(eta, np.float64) if is_concrete((eta, at)) else eta
    xp = namespace(eta * at.sigma)
    ratio, part = at.sigma[1:] / at.sigma[:-1], eta * at.spread / at.sigma[:-1]
    # sigma_s^2 - c^2 without the difference, which rounding makes negative; with a = alpha_t/alpha_s,
    # sigma_t^2 = spread^2 + (a sigma_s)^2 and rest = a sigma_s/sigma_t.
    rest = ratio * at.alpha[:-1] / at.alpha[1:]
    square = (1 - eta**2) + (eta * rest) ** 2
    down = xp.sqrt(xp.where(square > 0, square, 1.0))
    down = xp.where(square > 0, down, xp.where(eta == 1, rest, 0.0))  # at eta = 1 it is rest, with the slope of rest
    return ratio * down, at.sigma[1:] * xp.where(part > 1, 1.0, part)
