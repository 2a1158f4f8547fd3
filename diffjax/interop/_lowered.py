"""A multistep method whose last steps are those of methods of lower order, as `lower_order_final` asks.

step    0 .. n - 3    n - 2       n - 1
by      the method    order 2     order 1      (as many as are given; a corrector follows the step that it corrects)
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import namespace
from diffjax.samplers._multistep import AbstractMultistep, Weights


class LoweredAtTheEnd(AbstractMultistep):
    """A multistep method, its last steps by others.

    Attributes:
      method: of all other steps.
      last: those of the last steps of a grid, in their order; of no more points than the method, and of its prediction.
    """

    method: AbstractMultistep
    last: tuple[AbstractMultistep, ...]

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
        weights = self.method.prepare(process, ts)
        for row, other in enumerate(self.last, start=len(ts) - 1 - len(self.last)):
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
