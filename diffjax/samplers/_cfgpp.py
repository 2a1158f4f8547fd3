"""CFG++: DDIM that denoises with guidance and renoises without it.

    xs = alpha_s D + sigma_s (xt - alpha_t D_bad)/sigma_t,      D = D_bad + scale (D_good - D_bad)

It is not a denoiser: it changes the step. It is DDIM guided by D_bad + w (D_good - D_bad) with a scale that knows both
ends of the step, w = scale/(1 - (sigma_s alpha_t)/(sigma_t alpha_s)), which is large where steps are short: `scale`,
between 0 and 1, is a strength *per step*, and there is no limit of infinitely many of them.

Source: Chung et al. 2024 (CFG++: manifold-constrained classifier free guidance), algorithm 2 (DDIM).
"""

from typing import Any, ClassVar

from diffjax._typing import Denoiser, Sample, Time
from diffjax.guidance import Guided
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper, schedule


class CFGpp(AbstractStepper):
    """CFG++ for a guided denoiser, deterministic; one (guided) evaluation a step, of order 1 where the pair agrees.

    The denoiser must be a `guidance.Guided`, as `classifier_free` and `extrapolate` give; at scale 1 they give the
    plain denoiser, so there make it by `Guided(OnePass(denoiser, null), 1.0, Linear())`. Scale 0 is DDIM of the bad
    denoiser; the paper uses scales up to 1, where `sample`'s last denoise is the conditional one.

    Raises:
      ValueError: (by `step`) the denoiser is no `Guided`.

    Source: Chung et al. 2024 (CFG++: manifold-constrained classifier free guidance), algorithm 2 (DDIM).
    """

    order: ClassVar[int] = 1
    evaluations_per_step: ClassVar[int] = 1
    history: ClassVar[int] = 0

    @property
    def stochastic(self) -> bool:
        return False

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Any:
        """(keep, data, renoise), each [n]: xs = keep xt + data D - renoise D_bad."""
        at = schedule(process, ts)
        keep = at.sigma[1:] / at.sigma[:-1]
        return keep, at.alpha[1:], keep * at.alpha[:-1]

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
        if not isinstance(denoiser, Guided):
            raise ValueError(f"denoiser: CFG++ needs a guidance.Guided (good and bad), got {type(denoiser).__name__}")
        keep, data, renoise = weights
        x0, bad = denoiser.with_base(xt, t)
        return keep * xt + data * x0 - renoise * bad, None
