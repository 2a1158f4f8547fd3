"""CFG++: DDIM that denoises with guidance and renoises without it.

    xs = alpha_s D + sigma_s (xt - alpha_t D_uncond)/sigma_t,      D = D_uncond + scale (D_cond - D_uncond)

It is not a denoiser: it changes the step. It is DDIM guided by D_uncond + w (D_cond - D_uncond) with a scale that
knows both ends of the step, w = scale/(1 - (sigma_s alpha_t)/(sigma_t alpha_s)), which is large where steps are
short: `scale`, between 0 and 1, is a strength *per step*, and there is no limit of infinitely many of them.

Source: Chung et al. 2024 (CFG++: manifold-constrained classifier free guidance), algorithm 2 (DDIM).
"""

from typing import ClassVar, NamedTuple

from diffjax._typing import Denoiser, Numbers, Sample
from diffjax.guidance import Guided
from diffjax.samplers._stepper import AbstractStepper, ScheduleOnGrid, Step


class CFGppWeights(NamedTuple):
    """xs = c_x xt + c_x0 D - c_uncond D_uncond, each [n]."""

    c_x: Numbers
    c_x0: Numbers
    c_uncond: Numbers


class CFGpp(AbstractStepper):
    """CFG++ for a guided denoiser, deterministic; one (guided) evaluation a step, of order 1 where the pair agrees.

    The denoiser must be a `guidance.Guided`, as `classifier_free` and `extrapolate` give; at scale 1 they give the
    plain denoiser, so there make it by `Guided(OnePass(denoiser, null), 1.0, Linear())`. Scale 0 is DDIM of the
    unconditional denoiser; the paper uses scales up to 1, where `sample`'s last denoise is the conditional one.

    Raises:
      ValueError: (by `step`) the denoiser is no `Guided`.

    Source: Chung et al. 2024 (CFG++: manifold-constrained classifier free guidance), algorithm 2 (DDIM).
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1

    def prepare(self, grid: ScheduleOnGrid) -> CFGppWeights:
        c_x = grid.sigma[1:] / grid.sigma[:-1]
        return CFGppWeights(c_x, grid.alpha[1:], c_x * grid.alpha[:-1])

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        if not isinstance(denoiser, Guided):
            raise ValueError(f"denoiser: CFG++ needs a guidance.Guided (two answers), got {type(denoiser).__name__}")
        w, (x0_hat, uncond) = at.weights, denoiser.with_base(x, at.t)
        return w.c_x * x + w.c_x0 * x0_hat - w.c_uncond * uncond, None
