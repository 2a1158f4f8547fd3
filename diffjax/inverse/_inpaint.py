"""Inpainting: what is known of x0 is put back at every step.

    xs <- mask (alpha_s y + sigma_s z) + (1 - mask) step(xt)          replacement
    xt <- alpha_{t|s} xs + sigma_{t|s} z, and step again               RePaint, times - 1 more times a step

Replacement alone does not let what is known flow back to earlier times, so the two parts do not fit: its samples are
biased, even with exact steps. Going up again by the forward process and down again makes a Markov chain that mends this
as `times` grows. Source: Song et al. 2021 (Score-based generative modeling), appendix I.2; Lugmayr et al. 2022
(RePaint), eq. 8, algorithm 1.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from diffjax._arrays import as_samples, check_key, normal_like
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, FlowMap, GridLike, Index, Key, Numbers, Sample, Weights
from diffjax.guidance._posterior import ObservationLike, observation
from diffjax.operators._linear import as_mask, check_mask
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers import AbstractStepper, ScheduleOnGrid, Step
from diffjax.samplers._base import sample
from diffjax.samplers._ddim import DDIM


class RePaintWeights(NamedTuple):
    """The stepper's weights; alpha_s and sigma_s; and alpha_{t|s} and sigma_{t|s}, the way up again; each [n]."""

    stepper: Weights
    alpha_s: Numbers
    sigma_s: Numbers
    up: Numbers
    up_std: Numbers


@checked_numbers
class RePaint(AbstractStepper):
    """A stepper that puts back what is known and repeats each step; replacement where `times` is 1.

    In `samplers.sample_with_restarts` it goes up and down by longer jumps.

    Attributes:
      mask: [*d], 1 or True where x0 is known; an axis of length 1 is shared.
      y: the known x0, [b, *d] or [1, *d] for all samples; what it holds where hidden is not looked at.
      times: how often each step is taken, 1 or more.
      stepper: the one-step method; DDPM's ancestral step by default, as the paper's.

    Raises:
      ValueError: times is below 1, the stepper looks back on earlier steps, y's shape or the mask's does not fit.

    Source: Lugmayr et al. 2022 (RePaint), algorithm 1, with jumps of one step.
    """

    mask: Bool[Array, "..."] = eqx.field(converter=as_mask)
    y: Array = eqx.field(converter=observation)
    times: int = eqx.field(static=True, default=10)
    stepper: AbstractStepper = eqx.field(default_factory=lambda: DDIM(eta=1.0))

    def __check_init__(self):
        if self.times < 1:
            raise ValueError(f"times: a positive integer is needed, got {self.times}")
        if self.stepper.history:
            raise ValueError(
                f"stepper: a one-step method is needed, got {type(self.stepper).__name__}, which looks back"
            )
        check_mask(self.mask, self.y.shape[1:])

    @property
    def order(self) -> int:
        return self.stepper.order

    @property
    def evaluations_per_step(self) -> int:
        return self.times * self.stepper.evaluations_per_step

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def final_denoise(self) -> bool:
        return self.stepper.final_denoise

    def per_sample_fields(self) -> tuple[str, ...]:
        """("y",) where there is one y for each sample, [b, *d]."""
        return ("y",) if self.y.shape[0] > 1 else ()

    def prepare(self, grid: ScheduleOnGrid) -> RePaintWeights:
        up = grid.alpha[:-1] / grid.alpha[1:]
        return RePaintWeights(self.stepper.prepare(grid), grid.alpha[1:], grid.sigma[1:], up, grid.cond_std)

    def check_denoiser(
        self, denoiser: Denoiser | FlowMap, process: AbstractGaussianProcess, ts: GridLike, weights: Weights
    ) -> None:
        """As the stepper's."""
        self.stepper.check_denoiser(denoiser, process, ts, weights.stepper)

    def step(self, denoiser: Denoiser, x: Sample, at: Step, state: None) -> tuple[Sample, None]:
        check_known(self.y, x)
        w = at.weights
        key_of = lambda k: jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, k), 3))(at.keys)

        def down(x, step_keys, known_keys):
            inner = Step(at.t, at.s, w.stepper, step_keys if self.stepper.stochastic else None)
            xs, _ = self.stepper.step(denoiser, x, inner, self.stepper.init(x))
            known = w.alpha_s * self.y.astype(x.dtype) + w.sigma_s * normal_like(known_keys, x)
            return jnp.where(self.mask, known, xs).astype(x.dtype)

        def up_and_down(xs, k):
            split = key_of(k)
            xt = (w.up * xs + w.up_std * normal_like(split[:, 2], xs)).astype(xs.dtype)
            return down(xt, split[:, 0], split[:, 1]), None

        first = key_of(0)
        xs = down(x, first[:, 0], first[:, 1])
        return (xs if self.times == 1 else jax.lax.scan(up_and_down, xs, jnp.arange(1, self.times))[0]), None


def check_known(y: Array, x: Sample) -> None:
    """Raises `ValueError` where a known x0 has neither the shape of x [b, *d] nor [1, *d]."""
    if y.shape[1:] != x.shape[1:] or y.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"y: shape {x.shape}, that of the samples, is needed (the first may be 1), got {y.shape}")


@checked_numbers
def inpaint(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    xt: Sample,
    ts: GridLike,
    mask: Shaped[Array, "..."] | Shaped[np.ndarray, "..."] | list | tuple,
    y: ObservationLike,
    *,
    times: int = 1,
    stepper: AbstractStepper | None = None,
    index: Index | None = None,
) -> Sample:
    """Fills in what the mask hides: replacement, or RePaint for `times` above 1. `sample` with a `RePaint` stepper.

    Args:
      key: for all noise.
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      xt: noise to start from, [b, *d].
      ts: a descending grid [n + 1] of times.
      mask: [*d], 1 or True where x0 is known.
      y: the known x0, [b, *d] or [1, *d].
      times: how often each step is taken.
      stepper: a one-step method; DDPM's ancestral step by default.
      index: global indices [b] of the samples (default 0 .. b - 1): their noise depends on nothing else.

    Returns:
      x0 [b, *d], equal to y where it is known.

    Raises:
      ValueError: as `RePaint` and `sample`.
    """
    check_key(key)
    xt = as_samples("xt", xt)
    y = observation(y)
    check_known(y, xt)
    method = RePaint(mask, y, times, DDIM(eta=1.0) if stepper is None else stepper)
    x0: Any = sample(key, process, denoiser, xt, ts, method, index=index)
    return jnp.where(method.mask, method.y.astype(x0.dtype), x0)
