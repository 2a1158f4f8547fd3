"""Linear multistep methods: one evaluation a step, and a sum of what earlier evaluations gave.

An evaluation is remembered as N = a x0_hat + b eps_hat for some prediction type (a, b). With z ~ N(0, I),

    N       = n_x xt + n_x0 D(xt, t)
    xt      <- c_stay xt + c_anchor X + c_now' N + sum_j c_past'_j N_j                   correct (where there is one)
    X       = c_x xt + c_z z
    xs      = X + c_x0 D(xt, t) + c_now N + sum_j c_past_j N_j                           predict

The corrector takes the step to t again, from the same X (its noise included), now that N at t is known; N is not
evaluated anew (PEC). A method is the choice of its weights; the step is here, once.
"""

from typing import ClassVar, NamedTuple

from diffjax._arrays import normal_like
from diffjax._typing import Denoiser, Numbers, Sample
from diffjax.parameterisation._denoiser import predict
from diffjax.samplers._stepper import AbstractStepper, Step, memory_like


class Correction(NamedTuple):
    """Weights of the corrector, each [n], `c_past` [n, p]; c_stay = 1 and the rest 0 leave the state as it is."""

    c_stay: Numbers
    c_anchor: Numbers
    c_now: Numbers
    c_past: Numbers


class MultistepWeights(NamedTuple):
    """Weights of a multistep method, each [n], `c_past` [n, p - 1]; `c_z` and `correct` may be None."""

    n_x: Numbers
    n_x0: Numbers
    c_x: Numbers
    c_x0: Numbers
    c_now: Numbers
    c_past: Numbers
    c_z: Numbers | None = None
    correct: Correction | None = None


class Memory(NamedTuple):
    """What a multistep method remembers."""

    past: tuple[Sample, ...]
    """N at earlier grid points, the latest first, each [b, *d]."""
    anchor: Sample | None
    """X of the step before, [b, *d], where there is a corrector."""


class AbstractMultistep(AbstractStepper):
    """A linear multistep method; a member's `prepare` gives its `MultistepWeights`."""

    evaluations_per_step: ClassVar[int] = 1

    @property
    def corrects(self) -> bool:
        """Whether there is a corrector."""
        return False

    def init(self, x: Sample) -> Memory:
        zeros = memory_like(x)
        return Memory((zeros,) * self.history, zeros if self.corrects else None)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: Memory) -> tuple[Sample, Memory]:
        w, past, x0_hat = at.weights, state.past, predict(denoiser, x, at.t)
        now = w.n_x * x + w.n_x0 * x0_hat
        if w.correct is not None:
            c = w.correct
            x = c.c_stay * x + c.c_anchor * state.anchor + c.c_now * now + _sum(c.c_past, past)
        anchor = w.c_x * x
        if w.c_z is not None:
            anchor = anchor + w.c_z * normal_like(at.keys, x)
        xs = anchor + w.c_x0 * x0_hat + w.c_now * now + _sum(w.c_past, past)
        return xs, Memory((now, *past)[: self.history], anchor if self.corrects else None)


def _sum(weights, past):
    """sum_j weights_j past_j over as many as there are weights."""
    return sum((weights[j] * past[j] for j in range(weights.shape[0])), start=0)
