"""DPM-Solver++ multistep, as its authors publish it: 2M (midpoint) and 3M.

With l = log(alpha/sigma), h = l_s - l_t, D_j the denoiser's answers at the latest points and h r_j the steps before,

    2M:  xs = (sigma_s/sigma_t) xt - alpha_s expm1(-h) [ D0 + (D0 - D1)/(2 r0) ]
    3M:  xs = (sigma_s/sigma_t) xt - alpha_s [ expm1(-h) D0 - phi2 d1 + phi3 d2 ],   phi2 = expm1(-h)/h + 1
         phi3 = phi2/h - 1/2; d1, d2: first and second divided differences of D in (l - l_t)/h, d1 carried to l_t

d2 is half a second derivative, so that 2 phi3 d2 would be third order: as published 3M is of order 2 (at few steps no
worse for it). `DPMpp3M` is the corrected one, which is the exponential Adams method of order 3 in the data.

Sources: Lu et al. 2022b (DPM-Solver++), algorithm 2 and its multistep-3 code.
"""

from typing import Any, ClassVar

from diffjax.parameterisation import X0Prediction
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import namespace, schedule
from diffjax.samplers._exponential_adams import ExponentialAdams
from diffjax.samplers._multistep import AbstractMultistep, Weights


class DPMpp2M(AbstractMultistep):
    """DPM-Solver++ (2M), midpoint: order 2, one evaluation a step. A step to sigma = 0 is of first order.

    `ExponentialAdams(X0Prediction(), 2)` is its "heun" form.

    Source: Lu et al. 2022b (DPM-Solver++: fast solver for guided sampling), algorithm 2.
    """

    order: ClassVar[int] = 2
    history: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Weights:
        keep, data, _, ((known, r0), _) = _steps(process, ts)
        slope = namespace(keep).where(known, 0.5 * data / r0, 0.0)
        return _weights(keep, data, [(0, data), (0, slope), (1, -slope)], 1)


class DPMpp3MPublished(AbstractMultistep):
    """DPM-Solver++ (3M) as its authors' code and k-diffusion's have it: order 2, one evaluation a step.

    Source: Lu et al. 2022b, multistep-3 in the authors' code; `DPMpp3M` corrects it.
    """

    order: ClassVar[int] = 2
    history: ClassVar[int] = 2

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Weights:
        keep, data, (phi2, phi3), ((known, r0), (both, r1)) = _steps(process, ts)
        xp = namespace(keep)
        # d1 = f0 + (f0 - f1) r0/(r0 + r1) and d2 = (f0 - f1)/(r0 + r1) of f0 = (D0 - D1)/r0, f1 = (D1 - D2)/r1.
        bend = xp.where(both, (phi2 * r0 - phi3) / (r0 + r1), 0.0)
        f0 = xp.where(both, phi2 + bend, xp.where(known, 0.5 * data, 0.0)) / r0
        f1 = -bend / r1
        return _weights(keep, data, [(0, data), (0, f0), (1, -f0), (1, f1), (2, -f1)], 2)


def DPMpp3M() -> ExponentialAdams:
    """DPM-Solver++ (3M), corrected: order 3, one evaluation a step, for any shape [b, *d].

    Source: Lu et al. 2022b, with 2 phi3 where the published code has phi3.
    """
    return ExponentialAdams(X0Prediction(), 3)


def _steps(process, ts):
    """keep and data of DDIM's step, (phi2, phi3) alpha_s, and (whether known, r) for r0 and r1, all [n]."""
    at = schedule(process, ts)
    xp = namespace(at.sigma)
    keep = at.sigma[1:] / at.sigma[:-1]
    finite = xp.isfinite(at.half_logsnr)
    l = xp.where(finite, at.half_logsnr, 0.0)
    h = l[1:] - l[:-1]
    inside = finite[:-1] & finite[1:]
    h = xp.where(inside, h, 1.0)
    ratios, known = [], inside
    for back in (1, 2):
        known = known & xp.concatenate([xp.zeros_like(inside[:1])] * back + [inside[:-back]])[: len(h)]
        before = xp.concatenate([h[:1]] * back + [h[:-back]])[: len(h)]
        ratios.append((known, before / h))
    phi2 = xp.expm1(-h) / h + 1
    phi3 = phi2 / h - 0.5
    return keep, at.alpha[1:] - keep * at.alpha[:-1], (at.alpha[1:] * phi2, at.alpha[1:] * phi3), tuple(ratios)


def _weights(keep, data, terms, history):
    """The sum over terms (j, weight) of weight D_j, D_0 being the latest."""
    xp = namespace(keep)
    total = [sum((w for j, w in terms if j == k), start=xp.zeros_like(keep)) for k in range(history + 1)]
    zero, one = xp.zeros_like(keep), xp.ones_like(keep)
    return Weights(zero, one, keep, zero, total[0], xp.stack(total[1:], axis=1))
