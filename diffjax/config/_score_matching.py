"""Score matching without the score of a kernel, as rows of `LOSSES`; see `_loss`."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from diffjax import losses
from diffjax._arrays import default_index, expand, normal_like, sample_keys, time_dtype
from diffjax._typing import Key, Params, Sample, Time
from diffjax.config._loss import AbstractLoss, Loss
from diffjax.parameterisation import apply_network, recover
from diffjax.process._gaussian import perturb


class ScoreMatching(AbstractLoss):
    """A score-matching loss on noisy samples, weighted by sigma^2 (Song & Ermon 2019, eq. 6).

    E[ sigma(t)^2 L(s(., t), xt) ],   s = -eps_hat/sigma,   L one of `losses`, which sees xt alone and not x0
    """

    vectors_only: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("weighting",)

    @abc.abstractmethod
    def _loss(self, params: Params, key: Key, xt: Sample, sigma: Time, **given: Any) -> Loss:
        """The loss of `diffjax.losses` at samples of noise sigma [b], with its numbers."""

    def __call__(self, diffusion, params, x0, cond, context, choices):
        process, n = diffusion.process, x0.shape[0]
        t_key, eps_key, loss_key, network_key = jax.random.split(context.key, 4)
        index = default_index(n, context.index)
        total = n if context.total is None else context.total
        t, correction = choices.times(process)(t_key, n, index=index, total=total)
        t = t.astype(time_dtype(x0))
        xt = perturb(process, x0, normal_like(sample_keys(eps_key, index), x0), t)
        sigma = process.sigma(t)
        network_key = jax.random.fold_in(network_key, index[0])  # where the batch is split, dropout differs by device

        def score_apply(params: Params, xt: Sample) -> Sample:
            y = apply_network(diffusion, params, xt, t, cond, key=network_key)
            eps_hat = recover(diffusion.parameterisation, process, y, xt, t)[1]
            return -eps_hat / expand(sigma, xt)

        _, aux = self._loss(params, loss_key, xt, sigma, score_apply=score_apply, index=index)
        per_sample = correction * sigma**2 * aux["per_sample"]
        return jnp.mean(per_sample), {"t": t, "per_sample": per_sample}


@dataclasses.dataclass(frozen=True)
class ImplicitScoreMatching(ScoreMatching):
    """Score matching with the exact trace of the score's Jacobian, for vectors (Hyvarinen 2005, theorem 1).

    Attributes:
      block: number of Jacobian-vector products computed at once: more is faster and takes more memory.
    """

    block: int = 1

    def __post_init__(self):
        self._least(block=1)

    def _loss(self, params, key, xt, sigma, **given):
        return losses.implicit_score_matching(params, key, xt, block=self.block, **given)


@dataclasses.dataclass(frozen=True)
class SlicedScoreMatching(ScoreMatching):
    """Score matching along random projections, for vectors (Song et al. 2019, sliced score matching, eq. 7).

    Attributes:
      projections: number of random projections per sample.
    """

    function: ClassVar[Callable[..., Loss]] = staticmethod(losses.sliced_score_matching)

    projections: int = 1

    def __post_init__(self):
        self._least(projections=1)

    def _loss(self, params, key, xt, sigma, **given):
        return self.function(params, key, xt, projections=self.projections, **given)


class SlicedScoreMatchingVR(SlicedScoreMatching):
    """`sliced_score_matching` with the score's squared norm in closed form, which has less variance (eq. 8 there)."""

    function: ClassVar[Callable[..., Loss]] = staticmethod(losses.sliced_score_matching_vr)


@dataclasses.dataclass(frozen=True)
class FiniteDifferenceSliced(SlicedScoreMatching):
    """`sliced_score_matching_vr` by finite differences, without a derivative in x, for vectors (Pang et al. 2020).

    Attributes:
      step: length of the finite difference, in units of the noise sigma; positive.
    """

    step: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        self._positive("step")

    def _loss(self, params, key, xt, sigma, **given):
        given |= {"step": self.step * sigma, "projections": self.projections}
        return losses.finite_difference_sliced(params, key, xt, **given)
