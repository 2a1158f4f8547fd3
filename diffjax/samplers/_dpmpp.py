"""DPM-Solver++ multistep, as its authors publish it: 2M (midpoint) and 3M.

With l = log(alpha/sigma), h = l_s - l_t, D_j the denoiser's answers at the latest points and h r_j the steps before,

    2M:  xs = (sigma_s/sigma_t) xt - alpha_s expm1(-h) [ D0 + (D0 - D1)/(2 r0) ]
    3M:  xs = (sigma_s/sigma_t) xt - alpha_s [ expm1(-h) D0 - phi2 d1 + phi3 d2 ],   phi2 = expm1(-h)/h + 1
         phi3 = phi2/h - 1/2; d1, d2: first and second divided differences of D in (l - l_t)/h, d1 carried to l_t

d2 is half a second derivative, so that 2 phi3 d2 would be third order: as published 3M is of order 2 (at few steps no
worse for it). `DPMpp3M` is the corrected one, which is the exponential Adams method of order 3 in the data.

Sources: Lu et al. 2022b (DPM-Solver++), algorithm 2 and its multistep-3 code.
"""

from typing import ClassVar, NamedTuple

from diffjax._typing import Denoiser, Numbers, Sample
from diffjax.parameterisation._denoiser import predict
from diffjax.parameterisation._linear import X0Prediction
from diffjax.process import ddim_coefficients
from diffjax.samplers._exponential_adams import adams_weights
from diffjax.samplers._multistep import AbstractMultistep, MultistepWeights
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step, memory_like


class DPMpp2MWeights(NamedTuple):
    """xs = c_x xt + c_x0 D0 + c_change (D0 - D1) (+ c_z z), each [n]; c_change is 0 where D1 is not known."""

    c_x: Numbers
    c_x0: Numbers
    c_change: Numbers
    c_z: Numbers | None = None


class DPMpp2M(AbstractStepper):
    """DPM-Solver++ (2M), midpoint: order 2, one evaluation a step. A step to sigma = 0 is of first order.

    `ExponentialAdams(X0Prediction(), 2)` is its "heun" form.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, xT = dj.VariancePreserving(), jnp.ones((1, 2))
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)  # whose flow does not move
    >>> print(dj.sample(None, process, denoiser, xT, dj.logsnr_grid(process, 40), dj.DPMpp2M()).round(2))
    [[1.01 1.01]]

    Source: Lu et al. 2022b (DPM-Solver++: fast solver for guided sampling), algorithm 2.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 1

    def prepare(self, grid: ScheduleOnGrid) -> DPMpp2MWeights:
        c_x, c_x0 = ddim_coefficients(grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:])
        _, ((known, r0), _) = _steps(grid)
        return DPMpp2MWeights(c_x, c_x0, grid.xp.where(known, c_x0 / (2 * r0), 0.0))

    def init(self, x: Sample) -> Sample:
        """D1, [b, *d]."""
        return memory_like(x)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: Sample) -> tuple[Sample, Sample]:
        w, D0, D1 = at.weights, predict(denoiser, x, at.t).astype(state.dtype), state
        return w.c_x * x + w.c_x0 * D0 + w.c_change * (D0 - D1), D0


class DPMpp3MWeights(NamedTuple):
    """xs = c_x xt + c_x0 D0 + c_change (D0 - D1) + c_earlier (D1 - D2) (+ c_z z), each [n]."""

    c_x: Numbers
    c_x0: Numbers
    c_change: Numbers
    c_earlier: Numbers
    c_z: Numbers | None = None


class DPMpp3MPublished(AbstractStepper):
    """DPM-Solver++ (3M) as its authors' code and k-diffusion's have it: order 2, one evaluation a step.

    Source: Lu et al. 2022b, multistep-3 in the authors' code; `DPMpp3M` corrects it.
    """

    order: ClassVar[int] = 2
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 2

    def prepare(self, grid: ScheduleOnGrid) -> DPMpp3MWeights:
        xp, alpha_s = grid.xp, grid.alpha[1:]
        c_x, c_x0 = ddim_coefficients(grid.alpha[:-1], grid.sigma[:-1], alpha_s, grid.sigma[1:])
        h, ((known, r0), (both, r1)) = _steps(grid)
        phi2 = xp.expm1(-h) / h + 1
        phi3 = phi2 / h - 0.5
        # d1 = f0 + (f0 - f1) r0/(r0 + r1) and d2 = (f0 - f1)/(r0 + r1) of f0 = (D0 - D1)/r0, f1 = (D1 - D2)/r1.
        bend = xp.where(both, alpha_s * (phi2 * r0 - phi3) / (r0 + r1), 0.0)
        c_change = xp.where(both, alpha_s * phi2 + bend, xp.where(known, 0.5 * c_x0, 0.0)) / r0
        return DPMpp3MWeights(c_x, c_x0, c_change, -bend / r1)

    def init(self, x: Sample) -> tuple[Sample, Sample]:
        """(D1, D2), each [b, *d]."""
        return memory_like(x), memory_like(x)

    def step(
        self, denoiser: Denoiser, x: Sample, at: Step, state: tuple[Sample, Sample]
    ) -> tuple[Sample, tuple[Sample, Sample]]:
        w, (D1, D2) = at.weights, state
        D0 = predict(denoiser, x, at.t).astype(D1.dtype)
        return w.c_x * x + w.c_x0 * D0 + w.c_change * (D0 - D1) + w.c_earlier * (D1 - D2), (D0, D1)


class DPMpp3M(AbstractMultistep):
    """DPM-Solver++ (3M), with corrected coefficients: order 3, one evaluation a step.

    It is `ExponentialAdams(X0Prediction(), 3)`.

    Source: Lu et al. 2022b, with 2 phi3 where the published code has phi3.
    """

    order: ClassVar[int] = 3
    history: ClassVar[int] = 2

    def prepare(self, grid: ScheduleOnGrid) -> MultistepWeights:
        return adams_weights(grid, X0Prediction(), 3)


def _steps(grid):
    """h, and (whether known, r) for r0 and r1, all [n]; h is 1 where a step is infinite."""
    xp = grid.xp
    finite = xp.isfinite(grid.half_logsnr)
    l = xp.where(finite, grid.half_logsnr, 0.0)
    inside = finite[:-1] & finite[1:]
    h = xp.where(inside, l[1:] - l[:-1], 1.0)
    ratios, known = [], inside
    for back in (1, 2):
        known = known & xp.concatenate([xp.zeros_like(inside[:1])] * back + [inside[:-back]])[: len(h)]
        before = xp.concatenate([h[:1]] * back + [h[:-back]])[: len(h)]
        ratios.append((known, before / h))
    return h, tuple(ratios)
