"""A multistep method whose first or last steps are taken by other methods.

step    0 .. n - 3    n - 2       n - 1        `lower_order_final`: as many as are given
by      the method    order 2     order 1      (a corrector follows the step that it corrects)

step    0             1           2 ..         the first steps have few points, and so are of lower order in any case;
by      order 1       order 2     the method   here it is chosen which methods of that order they are
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import namespace
from diffjax.samplers._multistep import AbstractMultistep, Weights


class LoweredAtTheEnd(AbstractMultistep):
    """A multistep method, its last steps, or its first ones, by others.

    Attributes:
      method: of all other steps.
      last: those of the last steps of a grid, in their order; of no more points than the method, and of its prediction.
      first: those of the first steps, likewise; a step that is among the last too is theirs.
    """

    method: AbstractMultistep
    last: tuple[AbstractMultistep, ...]
    first: tuple[AbstractMultistep, ...] = ()

    @property
    def order(self) -> int:
        return self.method.order

    @property
    def history(self) -> int:
        return self.method.history

    @property
    def stochastic(self) -> bool:
        return self.method.stochastic

    @property
    def corrects(self) -> bool:
        return self.method.corrects

    def prepare(self, process: AbstractGaussianProcess, ts: Any) -> Weights:
        weights, n = self.method.prepare(process, ts), len(ts) - 1
        for row, other in (*enumerate(self.first[:n]), *enumerate(self.last, start=n - len(self.last))):
            lower = other.prepare(process, ts)
            # The corrector of a step is in the row after it.
            correct = jax.tree.map(partial(_row, row + 1), weights.correct, lower.correct)
            weights, lower = weights._replace(correct=None), lower._replace(correct=None)
            weights = jax.tree.map(partial(_row, row), weights, lower)._replace(correct=correct)
        return weights


def _row(i, a, b):
    """a [n] or [n, p], its row i that of b [n] or [n, q], q <= p."""
    xp = namespace(a)
    here = np.arange(len(a)) == i
    if a.ndim == 2:
        b = xp.concatenate([b, xp.zeros((len(a), a.shape[1] - b.shape[1]), b.dtype)], axis=1)
        here = here[:, None]
    return xp.where(here, b, a)
