"""Denoising losses, as rows of `LOSSES`; see `_loss`."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Array

from diffjax import losses
from diffjax._typing import Cond, Key, Sample
from diffjax.config._loss import AbstractLoss, rows
from diffjax.losses._denoising import denoising_loss, mean_square
from diffjax.process._grids import uniform_grid


class Denoising(AbstractLoss):
    """Denoising: the mean squared error of eps, weighted by --weighting, at times drawn from --times."""

    @property
    def penalty(self) -> Callable[[Sample], Array]:
        """error [b, *d] -> [b]."""
        return mean_square

    @property
    def coupling(self) -> Callable[[Key, Sample, Sample, Cond], Sample] | None:
        """`(key, x0, eps, cond) -> eps`, which pairs noise and data; None: as they are drawn."""
        return None

    def __call__(self, diffusion, params, x0, cond, context, choices):
        return denoising_loss(
            diffusion,
            params,
            context.key,
            x0,
            cond,
            times=choices.times(diffusion.process),
            weighting=choices.weighting,
            penalty=self.penalty,
            coupling=self.coupling,
            **rows(context),
        )


@dataclasses.dataclass(frozen=True)
class PseudoHuber(Denoising):
    """`denoising` with the pseudo-Huber penalty, linear in large errors (Song & Dhariwal 2023, eq. 7).

    Attributes:
      c: the root-mean-square error per feature at which the penalty turns from quadratic to linear; positive.
    """

    c: float = 0.00054

    def __post_init__(self):
        losses.PseudoHuber(self.c)

    @property
    def penalty(self):
        return losses.PseudoHuber(self.c)


class Assignment(Denoising):
    """`denoising` with the noise of a batch paired with its data by the Hungarian method (Pooladian et al. 2023)."""

    @property
    def coupling(self):
        return losses.Assignment()


@dataclasses.dataclass(frozen=True)
class OptimalTransport(Denoising):
    """`denoising` with noise drawn by the entropic optimal plan of a batch (Tong et al. 2023); needs ott-jax.

    Attributes:
      epsilon: weight of the entropy, in units of the cost's standard deviation over the pairs of a batch; positive.
    """

    package: ClassVar[tuple[str, str] | None] = ("ott", "metrics")

    epsilon: float = 0.1

    def __post_init__(self):
        losses.OptimalTransport(self.epsilon)

    @property
    def coupling(self):
        return losses.OptimalTransport(self.epsilon)


@dataclasses.dataclass(frozen=True)
class Uncertainty(AbstractLoss):
    """`denoising` with each noise level's loss divided by its learned expectation (Karras et al. 2024, eqs. 14-16).

    Attributes:
      waves: number of frequencies of the learned weight.
    """

    waves: int = 8

    def __post_init__(self):
        losses.Uncertainty(self.waves)

    def init_learned(self):
        return {"loss": losses.Uncertainty(self.waves).init()}

    def __call__(self, diffusion, params, x0, cond, context, choices):
        plain, aux = Denoising()(diffusion, params, x0, cond, context, choices)
        learned, uncertainty = choices.learned["loss"], losses.Uncertainty(self.waves)
        loss, aux = losses.uncertainty_loss(diffusion, learned, aux, uncertainty=uncertainty)
        return loss, aux | {"denoising": plain}


@dataclasses.dataclass(frozen=True)
class NCSN(AbstractLoss):
    """Denoising score matching summed over noise levels that are uniform in time (Song & Ermon 2019, eqs. 5-6).

    Attributes:
      noise_levels: number of noise levels. Samplers evaluate the network at these with --sampler.grid uniform and one
        step less.
    """

    unused: ClassVar[tuple[str, ...]] = ("weighting", "times")

    noise_levels: int = 10

    def __post_init__(self):
        self._least(noise_levels=2)

    def __call__(self, diffusion, params, x0, cond, context, choices):
        ts = uniform_grid(diffusion.process, self.noise_levels - 1)
        return losses.noise_conditional_loss(diffusion, params, context.key, x0, cond, ts=ts, **rows(context))
