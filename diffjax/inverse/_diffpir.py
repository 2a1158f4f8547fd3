"""DiffPIR: the data step at every noise level, then noise again, part old and part new.

    x0' = proximal step at D(xt)                                        diffjax.guidance.proximal
    xs = alpha_s x0' + sigma_s (sqrt(1 - zeta) eps' + sqrt(zeta) z),    eps' = (xt - alpha_t x0')/sigma_t

Source: Zhu et al. 2023 (Denoising diffusion models for plug-and-play image restoration), eq. 15, algorithm 1.
"""

from typing import Any, ClassVar

import equinox as eqx
import lineax as lx
import numpy as np

from diffjax._arrays import as_scalar, check, is_concrete
from diffjax._typing import Denoiser, Index, Key, Sample, Scalar, Time
from diffjax.guidance import proximal
from diffjax.guidance._posterior import CONJUGATE_GRADIENTS
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers import DDIM, AbstractStepper, sample, schedule
from diffjax.samplers._base import namespace


class Renoise(AbstractStepper):
    """DiffPIR's step back to noise: order 1, one evaluation a step; `DDIM()` at zeta = 0, all new noise at 1.

    Attributes:
      zeta: the share of new noise, a scalar in [0, 1].

    Raises:
      ValueError: zeta is not in [0, 1].
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 0

    zeta: Scalar = eqx.field(converter=as_scalar, default=0.5)

    def __check_init__(self):
        check((self.zeta >= 0) & (self.zeta <= 1), f"zeta: must lie in [0, 1], got {self.zeta}")

    @property
    def stochastic(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(keep, data, noise), each [n]: xs = keep xt + data x0' + noise z."""
        at = schedule(process, ts)
        zeta = np.asarray(self.zeta, np.float64) if is_concrete((self.zeta, at)) else self.zeta
        xp = namespace(zeta * at.sigma)
        keep = xp.sqrt(1 - zeta) * at.sigma[1:] / at.sigma[:-1]
        return keep, at.alpha[1:] - keep * at.alpha[:-1], xp.sqrt(zeta) * at.sigma[1:]

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


def diffpir(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    xt: Sample,
    ts: Any,
    operator: Any,
    y: Any,
    std: Any,
    *,
    strength: Scalar = 1.0,
    zeta: Scalar = 0.5,
    solver: lx.AbstractLinearSolver = CONJUGATE_GRADIENTS,
    index: Index | None = None,
) -> Sample:
    """DiffPIR: `sample` with the denoiser `guidance.proximal` and the stepper `Renoise`.

    Args:
      key: for the noise.
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`; it is not differentiated.
      xt: noise to start from, [b, *d].
      ts: a descending grid [n + 1] of times.
      operator: A, x [b, *d] -> [b, *m].
      y: what was observed, [b, *m], or [1, *m] for all samples.
      std: of the observation's noise, a scalar or [b], positive.
      strength: the paper's lambda, a scalar: how much the prior counts beside y.
      zeta: the share of new noise at each step, a scalar in [0, 1].
      solver: of lineax, for the data step.
      index: global indices [b] of the samples (default 0 .. b - 1): their noise depends on nothing else.

    Returns:
      x0 [b, *d].

    Raises:
      ValueError: a number is out of its range, or a shape does not fit.
    """
    data_step = proximal(process, denoiser, operator, y, std, strength=strength, solver=solver)
    x0: Any = sample(key, process, data_step, xt, ts, Renoise(zeta), index=index)
    return x0
