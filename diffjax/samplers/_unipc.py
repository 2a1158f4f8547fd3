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

import equinox as eqx
import numpy as np

from diffjax._numbers import checked_numbers
from diffjax._typing import OnGrid
from diffjax.parameterisation._linear import X0Prediction
from diffjax.process import ddim_coefficients
from diffjax.samplers._exponential_adams import adams_weights
from diffjax.samplers._multistep import AbstractMultistep, MultistepWeights
from diffjax.samplers._stepper import ScheduleOnGrid, namespace


def bh1(h: OnGrid) -> OnGrid:
    """B(h) = h, of the shape of h."""
    return h


def bh2(h: OnGrid) -> OnGrid:
    """B(h) = 1 - e^{-h}, of the shape of h."""
    return -namespace(h).expm1(-h)


@checked_numbers
class UniPC(AbstractMultistep):
    """UniPC-p: order p + 1, one evaluation a step.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, xT = dj.VariancePreserving(), jnp.ones((1, 2))
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)  # whose flow does not move
    >>> print(dj.sample(None, process, denoiser, xT, dj.logsnr_grid(process, 40), dj.UniPC(2)).round(2))
    [[1. 1.]]

    Attributes:
      p: number of evaluations that the predictor interpolates, 1 to 3.
      scale: B(h), `bh1` or `bh2`, or a function of one's own with B(h) = h + O(h^2). None for varying coefficients,
        which is `ExponentialAdams(X0Prediction(), p + 1, corrector=True)`.

    Raises:
      ValueError: p is not 1, 2 or 3.

    Source: Zhao et al. 2023, algorithms 1 and 2.
    """

    p: int = eqx.field(static=True, default=3)
    scale: Callable[[OnGrid], OnGrid] | None = eqx.field(static=True, default=bh2)

    def __check_init__(self):
        if self.p not in (1, 2, 3):
            raise ValueError(f"p: must be 1, 2 or 3, got {self.p!r}; ExponentialAdams goes further")

    @property
    def order(self) -> int:
        return self.p + 1

    @property
    def history(self) -> int:
        return self.p

    @property
    def corrects(self) -> bool:
        return True

    def prepare(self, grid: ScheduleOnGrid) -> MultistepWeights:
        weights = adams_weights(grid, X0Prediction(), self.p, corrector=True)
        return weights if self.scale is None else _halved(weights, self.p, self.scale, grid)


def _halved(weights, p, scale, grid):
    """The weights with 1/2 where the authors put it."""
    xp, n = grid.xp, len(grid.sigma) - 1
    finite = xp.isfinite(grid.half_logsnr)
    l = xp.where(finite, grid.half_logsnr, 0.0)
    inside = finite[:-1] & finite[1:]
    h = xp.where(inside, l[1:] - l[:-1], 1.0)
    amount = 0.5 * grid.alpha[1:] * scale(h)
    _, exact = ddim_coefficients(grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:])
    # How many points each step has: as many as there are steps since l became finite.
    points = xp.minimum(xp.cumsum(xp.asarray(finite[:-1], int)), p)
    change = weights.correct
    if p >= 2:
        two = (points == 2) & inside
        before = xp.concatenate([xp.ones_like(h[:1]), h[:-1]])
        slope = amount * h / before
        now = xp.where(two, exact + slope, weights.c_now)
        past = xp.where(two[:, None] & (np.arange(p - 1) == 0), -slope[:, None], weights.c_past)
        weights = weights._replace(c_now=now, c_past=past)
    previous = np.maximum(np.arange(n) - 1, 0)
    one = (points[previous] == 1) & inside[previous] & (np.arange(n) > 0)
    now = xp.where(one, amount[previous], change.c_now)
    first = (exact - amount)[previous][:, None]
    past = xp.where(one[:, None] & (np.arange(p) == 0), first, change.c_past)
    return weights._replace(correct=change._replace(c_now=now, c_past=past))
