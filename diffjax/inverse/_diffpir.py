"""DiffPIR: the data step at every noise level, then noise again, part old and part new.

    x0' = proximal step at D(xt)                                        diffjax.guidance.proximal
    xs = alpha_s x0' + sigma_s (sqrt(1 - zeta) eps' + sqrt(zeta) z),    eps' = (xt - alpha_t x0')/sigma_t

Source: Zhu et al. 2023 (Denoising diffusion models for plug-and-play image restoration), eq. 15, algorithm 1.
"""

from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import lineax as lx

from diffjax._arrays import as_samples, check, check_key, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Denoiser, GridLike, Index, Key, PerSample, Sample, Scalar
from diffjax.guidance import proximal
from diffjax.guidance._posterior import CONJUGATE_GRADIENTS, ObservationLike
from diffjax.operators._base import Operator
from diffjax.process import AbstractGaussianProcess, ddim_coefficients
from diffjax.samplers import AbstractStepper, Coefficients, ScheduleOnGrid, Step
from diffjax.samplers._base import sample
from diffjax.samplers._ddim import ddim_step


class Renoise(AbstractStepper):
    """DiffPIR's step back to noise: order 1, one evaluation a step; `DDIM()` at zeta = 0, all new noise at 1.

    Attributes:
      zeta: the share of new noise, a scalar in [0, 1].

    Raises:
      ValueError: zeta is not in [0, 1].
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    zeta: Scalar = eqx.field(converter=partial(as_scalar, "zeta"), default=0.5)

    @values_at_once
    def __check_init__(self):
        check((self.zeta >= 0) & (self.zeta <= 1), f"zeta: must lie in [0, 1], got {self.zeta}")

    def prepare(self, grid: ScheduleOnGrid) -> Coefficients:
        ends = grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:]
        old, new = grid.xp.sqrt(1 - self.zeta), grid.xp.sqrt(self.zeta)
        return Coefficients(*ddim_coefficients(*ends, old), new * grid.sigma[1:])

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        return ddim_step(denoiser, x, at), None


@checked_numbers
def diffpir(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    xt: Sample,
    ts: GridLike,
    operator: Operator,
    y: ObservationLike,
    std: PerSample,
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
      strength: the paper's lambda, a scalar: how much the prior counts against y.
      zeta: the share of new noise at each step, a scalar in [0, 1]. At a posterior's far modes old noise can
        lead to a wrong one: in README's example, with 20 steps, 7 of 64 samples at 0.5 and none at 1.
      solver: of lineax, for the data step.
      index: global indices [b] of the samples (default 0 .. b - 1): their noise depends on nothing else.

    Returns:
      x0 [b, *d].

    Raises:
      ValueError: a number is out of its range, or a shape does not fit.
    """
    check_key(key)
    xt = as_samples("xt", xt)
    data_step = proximal(process, denoiser, operator, y, std, strength=strength, solver=solver)
    x0: Any = sample(key, process, data_step, xt, ts, Renoise(zeta), index=index)
    return x0
