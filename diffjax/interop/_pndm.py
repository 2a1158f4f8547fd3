"""PNDM as diffusers takes it: Adams-Bashforth in eps with the coefficients of equal steps, and two ways to begin.

    e_k = eps_hat at the k-th point of the grid, x -> (alpha_s/alpha_t) x + h e,   h = sigma_s - sigma_t alpha_s/alpha_t

    Heun          t0   t1   t1'   t2 ..            x1' from e_0; x1 from (e_0 + e_1)/2; then from e_0, e_2, e_3, ..
    Runge-Kutta   t0   m  m'  t1  t1'   ..         m half way; (e_0 + 2 e_1 + 2 e_2 + e_3)/6; thrice, then from
                                                   e_0, e_4, e_8, e_12, ..

A point that is evaluated twice is in the grid twice, t' = t (1 - 2^-20) after t: the second state is the first one and
a sum of what was evaluated, so that the start is a multistep method, too. Source: Liu et al. 2022 (PNDM), eqs. 11-13.
"""

from typing import Any

import equinox as eqx
import numpy as np

from diffjax._arrays import check
from diffjax.samplers import AbstractMultistep, MultistepWeights, ScheduleOnGrid
from diffjax.samplers._adams import EQUAL_STEPS

CLOSE = 2.0**-20
"""Relative difference of two times that are one for the solution, but still two in float32."""


class PNDM(AbstractMultistep):
    """Made for a grid by `grid_of_pndm`.

    Attributes:
      thrice: how many steps are Runge-Kutta's, 1 to 3; 0: the first is Heun's.
    """

    thrice: int = eqx.field(static=True, default=0)

    @property
    def order(self) -> int:
        return 2

    @property
    def history(self) -> int:
        return 4 * self.thrice or 4

    def prepare(self, grid: ScheduleOnGrid) -> MultistepWeights:
        alpha, sigma, xp, n = grid.alpha, grid.sigma, grid.xp, len(grid.ts) - 1
        check(alpha[:-1] > 0, "ts: eps says nothing of the data where alpha = 0; begin later")

        def move(i, j):
            c_x = alpha[j] / alpha[i]
            return c_x, sigma[j] - sigma[i] * c_x

        rows: list[tuple[Any, dict[int, Any]]] = []  # c_x, the factor of the state, and {k: weight of e_k}
        used = [0]
        for first in range(0, 4 * self.thrice, 4):
            (half, h), (c_x, whole) = move(first, first + 1), move(first, first + 3)
            e = range(first, first + 4)
            rows.append((half, {e[0]: h}))
            rows.append((1.0, {e[1]: h, e[0]: -h}))
            rows.append((c_x / half, {e[2]: whole, e[1]: -h * c_x / half}))
            rows.append((1.0, {e[3]: whole / 6, e[2]: -2 * whole / 3, e[1]: whole / 3, e[0]: whole / 6}))
            used.append(first + 4)
        if not self.thrice:
            c_x, h = move(0, 1)
            rows += [(c_x, {0: h}), (1.0, {1: h / 2, 0: -h / 2})]
            used.append(2)
        for k in range(len(rows), n):
            used = used if used[-1] == k else [*used, k]
            c_x, h = move(k, k + 1)
            latest = used[-4:][::-1]
            rows.append((c_x, {i: h * c for i, c in zip(latest, EQUAL_STEPS[len(latest) - 1], strict=False)}))
        weights = [[of.get(k - j, 0.0) for j in range(self.history + 1)] for k, (_, of) in enumerate(rows)]
        weights, c_x = xp.asarray(weights), xp.asarray([c_x for c_x, _ in rows])
        return MultistepWeights(1 / sigma[:-1], -alpha[:-1] / sigma[:-1], c_x, 0.0 * c_x, weights[:, 0], weights[:, 1:])


def grid_of_pndm(steps: np.ndarray, end: np.ndarray, k: int, skip_prk_steps: bool) -> tuple[np.ndarray, PNDM]:
    """The file's steps as times [m] on a chain of k, then the end [0] or [1], with the start's points; the method."""
    if skip_prk_steps:
        thrice, points = 0, [steps[0], steps[1]]
    else:
        thrice, points = min(3, len(steps) - 1), [steps[0]]
        for high, low in zip(np.round(steps[:thrice] * k), np.round(steps[1 : thrice + 1] * k), strict=True):
            points += [(low + (high - low) // 2) / k] * 2 + [low / k] * 2
    points += [*steps[thrice + 1 if thrice else 1 :], *end]
    for i in range(1, len(points)):
        points[i] = min(points[i], points[i - 1] * (1 - CLOSE))
    return np.array(points), PNDM(thrice)
