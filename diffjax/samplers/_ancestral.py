"""Ancestral samplers: a deterministic step to less noise than wanted, then fresh noise.

With z = x/alpha and rho = sigma/alpha,

    rho_up = rho_s min(1, eta sigma_{t|s}/sigma_t),   rho_down^2 = rho_s^2 - rho_up^2,   p = sqrt(rho_down/rho_t)
    D = x0_hat(zt, rho_t),   zm = p zt + (1 - p) D,   Dm = x0_hat(zm, p rho_t)           halfway in log rho

    Euler        zs = p^2 zt + (1 - p^2) D + rho_up noise                      DDIM with this eta, exactly
    DPM-2        zs = zt + (p^2 - 1) (zm - Dm)/p + rho_up noise                midpoint rule for dz/drho = (z - D)/rho
    DPM++ 2S     zs = p^2 zt + (1 - p^2) Dm + rho_up noise                     midpoint rule in the data prediction

An exact deterministic step would carry the exact marginal for every eta: its order is the weak order of the whole.
Source: Karras et al. 2022 (the deterministic methods, up to the place of the midpoint); Song et al. 2021, eq. 16 (the
split); widely known as k-diffusion's `sample_euler_ancestral`, `sample_dpm_2_ancestral`, `sample_dpmpp_2s_ancestral`.
"""

from typing import Any, ClassVar

import equinox as eqx

from diffjax._typing import Denoiser, Sample, Scalar, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper, namespace, schedule
from diffjax.samplers._ddim import DDIM, noisy_split
from diffjax.samplers._exponential_sde import Stage, non_negative, take_stages
from diffjax.samplers._inside import ends_of, times_at


def euler_ancestral(eta: Scalar = 1.0) -> DDIM:
    """Euler ancestral: `DDIM(eta)` by its other name, for a scalar eta in [0, 1]; the two are equal step by step."""
    return DDIM(eta=eta)


class DPM2Ancestral(AbstractStepper):
    """DPM-2 ancestral: weak order 2, two evaluations a step.

    A step from alpha = 0 or to sigma = 0 is DDIM's.

    Attributes:
      eta: how much of the noise is fresh, a scalar; 0 none, 1 as much as DDPM's posterior.

    Raises:
      ValueError: eta is negative.

    Source: k-diffusion's `sample_dpm_2_ancestral`.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    history: ClassVar[int] = 0

    eta: Scalar = eqx.field(converter=non_negative, default=1.0)

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """A stage and the step, with fields [n]; see `Stage`."""
        middle, p, (keep, data, noise) = _split(process, ts, self.eta)
        return middle, Stage(ts[1:], keep, (-(1 - p) * data / p, data / p), (noise,))

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
        return take_stages(keys, denoiser, xt, t, weights), None


class DPMpp2SAncestral(AbstractStepper):
    """DPM-Solver++ (2S) ancestral: weak order 2, two evaluations a step.

    A step from alpha = 0 or to sigma = 0 is DDIM's.

    Attributes:
      eta: how much of the noise is fresh, a scalar; 0 none, 1 as much as DDPM's posterior.

    Raises:
      ValueError: eta is negative.

    Source: k-diffusion's `sample_dpmpp_2s_ancestral`; Lu et al. 2022b, algorithm 1, for its deterministic part.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 2
    history: ClassVar[int] = 0

    eta: Scalar = eqx.field(converter=non_negative, default=1.0)

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """A stage and the step, with fields [n]; see `Stage`."""
        middle, p, (keep, data, noise) = _split(process, ts, self.eta)
        return middle, Stage(ts[1:], keep, (0 * p, data), (noise,))

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
        return take_stages(keys, denoiser, xt, t, weights), None


def _split(process, ts, eta):
    """The stage in the middle, p, and (sigma_down/sigma_t, the weight of x0_hat, sigma_up), each [n].

    Where rho_down/rho_t = 0 the stage stays at t and p is 1, so that both methods become DDIM's step.
    """
    at = schedule(process, ts)
    keep, noise = noisy_split(at, eta)
    xp = namespace(keep)
    down = keep * at.alpha[:-1] / at.alpha[1:]  # rho_down/rho_t
    inside = down > 0
    p = xp.sqrt(xp.where(inside, down, 1.0))
    time, alpha, sigma = times_at(process, ts, inside, ends_of(process, ts, inside)[0] - xp.log(p))
    keep_m = sigma / at.sigma[:-1]
    middle = Stage(time, keep_m, (alpha - keep_m * at.alpha[:-1],), ())
    return middle, p, (keep, at.alpha[1:] - keep * at.alpha[:-1], noise)
