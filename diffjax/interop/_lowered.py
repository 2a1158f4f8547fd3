"""A multistep method whose first or last steps are another method's.

step    0 .. n - 3    n - 2       n - 1        `lower_order_final`: as many as are given
by      the method    order 2     order 1      (a corrector follows the step that it corrects)

step    0             1           2 ..         the first steps have few earlier points, and are of lower order in any
by      order 1       order 2     the method   case; `first` is which methods of that order they are
"""

from functools import partial

import jax
import numpy as np

from diffjax.samplers import AbstractMultistep, AbstractStepper, MultistepWeights, ScheduleOnGrid
from diffjax.samplers._dpmpp import DPMpp2MWeights, DPMpp3MWeights
from diffjax.samplers._stepper import namespace


class LoweredAtTheEnd(AbstractMultistep):
    """A multistep method whose last or first steps are taken by other methods.

    Attributes:
      method: of all other steps, an `AbstractMultistep` or one of DPM-Solver++'s.
      last: those of the last steps of a grid, in their order; of no more points than the method, and of its prediction.
      first: those of the first steps, likewise; a step that is among the last too is theirs.
    """

    method: AbstractStepper
    last: tuple[AbstractStepper, ...]
    first: tuple[AbstractStepper, ...] = ()

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
        return isinstance(self.method, AbstractMultistep) and self.method.corrects

    def prepare(self, grid: ScheduleOnGrid) -> MultistepWeights:
        weights, n = _multistep(self.method.prepare(grid)), len(grid.ts) - 1
        for row, other in (*enumerate(self.first[:n]), *enumerate(self.last, start=n - len(self.last))):
            lower = _multistep(other.prepare(grid))
            # The corrector of a step is in the row after it.
            correct = jax.tree.map(partial(_row, row + 1), weights.correct, lower.correct)
            weights, lower = weights._replace(correct=None), lower._replace(correct=None)
            weights = jax.tree.map(partial(_row, row), weights, lower)._replace(correct=correct)
        return weights


def _multistep(w: MultistepWeights | DPMpp2MWeights | DPMpp3MWeights) -> MultistepWeights:
    """DPM-Solver++'s weights of differences as those of the sum that they are; others as they are."""
    if not isinstance(w, DPMpp2MWeights | DPMpp3MWeights):
        return w
    zero = 0 * w.c_x
    changes = (w.c_change,) if isinstance(w, DPMpp2MWeights) else (w.c_change, w.c_earlier)
    of_D = [here - before for here, before in zip((*changes, zero), (zero, *changes), strict=True)]
    past = namespace(zero).stack(of_D[1:], axis=1)
    return MultistepWeights(zero, zero + 1, w.c_x, zero, w.c_x0 + of_D[0], past, w.c_z)


def _row(i, a, b):
    """a [n] or [n, p], its row i that of b [n] or [n, q], q <= p."""
    xp = namespace(a)
    here = np.arange(len(a)) == i
    if a.ndim == 2:
        b = xp.concatenate([b, xp.zeros((len(a), a.shape[1] - b.shape[1]), b.dtype)], axis=1)
        here = here[:, None]
    return xp.where(here, b, a)
