"""Linear multistep methods: one evaluation a step, and a sum of what earlier evaluations said.

An evaluation is remembered as N = a x0_hat + b eps_hat for some prediction type (a, b). With z ~ N(0, I),

    N       = on_x xt + on_data D(xt, t)
    xt      <- stay xt + anchor X + now' N + sum_j past'_j N_j                          correct (where there is one)
    X       = keep xt + noise z
    xs      = X + data D(xt, t) + now N + sum_j past_j N_j                              predict

The corrector takes the step to t again, from the same X (its noise included), now that N at t is known; N is not
evaluated anew (PEC). A method is the choice of its weights; the step is here, once.
"""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from diffjax._arrays import normal_like, time_dtype
from diffjax._typing import Denoiser, Sample, Time
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import AbstractStepper


class Correction(NamedTuple):
    """Weights of the corrector, each [n], `past` [n, p]; stay = 1 and the rest 0 leave the state as it is."""

    stay: Any
    anchor: Any
    now: Any
    past: Any


class Weights(NamedTuple):
    """Weights of a multistep method, each [n], `past` [n, p - 1]; `noise` and `correct` may be None."""

    on_x: Any
    on_data: Any
    keep: Any
    data: Any
    now: Any
    past: Any
    noise: Any = None
    correct: Correction | None = None


class Memory(NamedTuple):
    """What a multistep method remembers."""

    past: tuple[Sample, ...]
    """N at earlier grid points, the latest first, each [b, *d]."""
    anchor: Sample | None
    """X of the step before, [b, *d], where there is a corrector."""


class AbstractMultistep(AbstractStepper):
    """A linear multistep method; a member's `prepare` gives its `Weights`."""

    evaluations_per_step: ClassVar[int] = 1

    @property
    def corrects(self) -> bool:
        """Whether there is a corrector."""
        return False

    def init(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Memory:
        zeros = jnp.zeros(xt.shape, jnp.result_type(xt, time_dtype(xt)))
        return Memory((zeros,) * self.history, zeros if self.corrects else None)

    def step(
        self,
        keys: Any,
        process: AbstractGaussianProcess,
        denoiser: Denoiser,
        xt: Sample,
        t: Time,
        s: Time,
        weights: Weights,
        state: Memory,
    ) -> tuple[Sample, Memory]:
        w, past, x0_hat = weights, state.past, denoiser(xt, t)
        now = w.on_x * xt + w.on_data * x0_hat
        if w.correct is not None:
            c = w.correct
            xt = c.stay * xt + c.anchor * state.anchor + c.now * now + _sum(c.past, past)
        anchor = w.keep * xt
        if w.noise is not None:
            anchor = anchor + w.noise * normal_like(keys, xt)
        xs = anchor + w.data * x0_hat + w.now * now + _sum(w.past, past)
        return xs, Memory((now, *past)[: self.history], anchor if self.corrects else None)


def _sum(weights, past):
    """sum_j weights_j past_j over as many as there are weights."""
    return sum((weights[j] * past[j] for j in range(weights.shape[0])), start=0)
