"""UniPC: a unified predictor and corrector, multistep, in the data prediction.

Its p-point predictor and its corrector integrate the polynomial through their points exactly, and so are exponential
Adams methods (`ExponentialAdams(X0Prediction(), p + 1, corrector=True)`), but for two cases in which its authors put
1/2 for the coefficient: the predictor through two points, and the corrector after a predictor through one,

    alpha_s B(h) (1/2) (D - D_{-1})/r0        alpha_t B(h) (1/2) (D_t - D_{-1}),       r0 h the step before

B(h) = h is their bh1, B(h) = 1 - e^{-h} their bh2; their varying coefficients have no such case. (In the authors' code
the last term of that variant's corrector is wrong, which makes it of first order; here it is right.)

Source: Zhao et al. 2023 (UniPC), section 3 and appendix.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np

from diffjax.parameterisation import X0Prediction
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import namespace, schedule
from diffjax.samplers._exponential_adams import ExponentialAdams
from diffjax.samplers._multistep import AbstractMultistep, Weights


def bh1(h: Any) -> Any:
    """B(h) = h, of the shape of h."""
    return h


def bh2(h: Any) -> Any:
    """B(h) = 1 - e^{-h}, of the shape of h."""
    return -namespace(h).expm1(-h)


class UniPC(AbstractMultistep):
    """UniPC-p: order p + 1, one evaluation a step.

    Attributes:
      p: how many points the predictor looks at, 1 to 3.
      scale: B(h), `bh1` or `bh2`, or a function of one's own with B(h) = h + O(h^2). None for varying coefficients,
        which is `ExponentialAdams(X0Prediction(), p + 1, corrector=True)`.

    Raises:
      ValueError: p is not 1, 2 or 3.

    Source: Zhao et al. 2023, algorithms 1 and 2.
    """

    p: int = eqx.field(static=True, default=3)
    scale: Callable[[Any], Any] | None = eqx.field(static=True, default=bh2)

    def __check_init__(self):
        if not isinstance(self.p, int) or self.p not in (1, 2, 3):
            raise ValueError(f"p: must be 1, 2 or 3, got {self.p!r}; ExponentialAdams goes further")

    @property
    def order(self) -> int:
        return self.p + 1

    @property
    def history(self) -> int:
        return self.p

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def corrects(self) -> bool:
        return True

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Weights:
        weights = ExponentialAdams(X0Prediction(), self.p + 1, corrector=True).prepare(process, ts)
        return weights if self.scale is None else _halved(weights, self.p, self.scale, schedule(process, ts))


def _halved(weights, p, scale, at):
    """The weights with 1/2 where the authors put it."""
    xp, n = namespace(at.sigma), len(at.sigma) - 1
    finite = xp.isfinite(at.half_logsnr)
    l = xp.where(finite, at.half_logsnr, 0.0)
    inside = finite[:-1] & finite[1:]
    h = xp.where(inside, l[1:] - l[:-1], 1.0)
    amount = 0.5 * at.alpha[1:] * scale(h)
    exact = at.alpha[1:] - at.sigma[1:] / at.sigma[:-1] * at.alpha[:-1]
    # How many points each step has: as many as there are steps since l became finite.
    points = xp.minimum(xp.cumsum(xp.asarray(finite[:-1], int)), p)
    change = weights.correct
    if p >= 2:
        two = (points == 2) & inside
        before = xp.concatenate([xp.ones_like(h[:1]), h[:-1]])
        slope = amount * h / before
        now = xp.where(two, exact + slope, weights.now)
        past = xp.where(two[:, None] & (np.arange(p - 1) == 0), -slope[:, None], weights.past)
        weights = weights._replace(now=now, past=past)
    previous = np.maximum(np.arange(n) - 1, 0)
    one = (points[previous] == 1) & inside[previous] & (np.arange(n) > 0)
    now = xp.where(one, amount[previous], change.now)
    first = (exact - amount)[previous][:, None]
    past = xp.where(one[:, None] & (np.arange(p) == 0), first, change.past)
    return weights._replace(correct=change._replace(now=now, past=past))
