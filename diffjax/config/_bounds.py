"""Bounds on the likelihood, as rows of `LOSSES`; see `_loss`."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from diffjax import losses
from diffjax._typing import Grid, Sample, Scalar
from diffjax.config._loss import LEARNED, AbstractLoss, Loss, rows
from diffjax.process import AbstractGaussianProcess, DiscreteChain, LowDiscrepancyTimes, chain_times
from diffjax.process._grids import logsnr_grid, uniform_grid
from diffjax.process._times import StratifiedTimes, UniformTimes


def _without_error(answer: Loss) -> Loss:
    """Without the standard error, which of a part of a batch is not that of the batch."""
    loss, aux = answer
    return loss, {name: value for name, value in aux.items() if name != "standard_error"}


@dataclasses.dataclass(frozen=True)
class ContinuousELBO(AbstractLoss):
    """The negative ELBO in continuous time, in nats a sample; trains learned processes too (Kingma et al. 2021).

    Attributes:
      levels: number of values that a feature of the data can have, spaced evenly over [-1, 1], such as 256 of 8-bit
        images; by default the data are continuous, and the bound is one on their density.
    """

    trains_process: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("weighting",)

    levels: int | None = None

    def __post_init__(self):
        self._decoder()

    def _decoder(self) -> Callable[[Sample, Sample, Scalar], Array]:
        return losses.gaussian_decoder if self.levels is None else losses.LevelDecoder(self.levels)

    def check(self, process, times):
        if not isinstance(times, UniformTimes | StratifiedTimes | LowDiscrepancyTimes):
            raise ValueError(
                "times.name: the ELBO is a mean over uniform times, one of uniform, stratified, low_discrepancy is "
                f"needed, got {type(times).__name__}"
            )

    def __call__(self, diffusion, params, x0, cond, context, choices):
        given = {"times": choices.times(diffusion.process), "reconstruction": self._decoder(), **rows(context)}
        return _without_error(losses.negative_continuous_elbo(diffusion, params, context.key, x0, cond, **given))


def _check_steps(steps: int | None, process: AbstractGaussianProcess) -> None:
    if steps is None:
        return
    if steps < 2:
        raise ValueError(f"loss.steps: at least 2, got {steps}")
    if isinstance(process, DiscreteChain) and steps != process.betas.shape[0]:
        raise ValueError(f"loss.steps: the process is a chain of {process.betas.shape[0]} steps, got {steps}")


STEPS = 1000
"""Of a bound in discrete time, on a process that is no chain."""


@dataclasses.dataclass(frozen=True)
class DiscreteELBO(AbstractLoss):
    """The negative ELBO of a sampler in K steps, in nats a sample; trains learned processes too (Kingma et al. 2021).

    Attributes:
      steps: K, the number of steps; by default those of a chain, and 1000 of other processes, equal in logsnr or in a
        learned time.
      levels: number of values that a feature of the data can have, spaced evenly over [-1, 1], such as 256 of 8-bit
        images; by default the data are continuous, and the bound is one on their density.
    """

    trains_process: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("weighting", "times")

    steps: int | None = None
    levels: int | None = None

    def __post_init__(self):
        self._decoder()

    _decoder = ContinuousELBO._decoder

    def _times(self, process: AbstractGaussianProcess) -> Grid:
        """Descending times [K + 1]."""
        if isinstance(process, DiscreteChain):
            return chain_times(process)[::-1]  # its last step, from t_1 to the data, is the reconstruction
        # The clock of a learned process is what is learned; of others, steps of equal time weigh the last one e^7 fold.
        return (uniform_grid if isinstance(process, LEARNED) else logsnr_grid)(process, self.steps or STEPS)

    def check(self, process, times):
        _check_steps(self.steps, process)

    def __call__(self, diffusion, params, x0, cond, context, choices):
        given = {"ts": self._times(diffusion.process), "reconstruction": self._decoder(), **rows(context)}
        return _without_error(losses.negative_discrete_elbo(diffusion, params, context.key, x0, cond, **given))


@dataclasses.dataclass(frozen=True)
class LargeVarianceBound(AbstractLoss):
    """DDPM's variational bound with the variance beta of the forward step (Ho et al. 2020, eq. 5).

    Attributes:
      steps: K, the number of steps; by default those of a chain, and 1000 of other processes, equal in time.
      levels: number of values that a feature of the data can have, spaced evenly over [-1, 1], such as 256 of 8-bit
        images; by default the data are continuous, and the bound is one on their density.
    """

    unused: ClassVar[tuple[str, ...]] = ("weighting", "times")
    variance: ClassVar[Callable[[Array, Array, Array | None], Array]] = staticmethod(losses.large_variance)

    steps: int | None = None
    levels: int | None = None

    def __post_init__(self):
        self._decoder()

    def _decoder(self) -> Callable[[Sample, Sample, Array], Array]:
        return losses.density_decoder if self.levels is None else losses.BinDecoder(self.levels)

    def check(self, process, times):
        _check_steps(self.steps, process)
        if (sigma := float(process.sigma(jnp.zeros(())))) != 0:
            raise ValueError(
                "process.name: the bound's last step is to the data themselves, and the process has noise there: "
                f"sigma = {sigma:.3g} at t = 0; choose linear_chain, cosine_chain or scaled_linear_chain, or predict "
                "v, x0 or velocity on a process that begins without noise"
            )

    def _times(self, process: AbstractGaussianProcess) -> Grid:
        """Descending times [K + 1], equally spaced."""
        steps = process.betas.shape[0] if isinstance(process, DiscreteChain) else self.steps or STEPS
        return jnp.linspace(process.interval()[1], 0.0, steps + 1)

    def __call__(self, diffusion, params, x0, cond, context, choices):
        ts, given = self._times(diffusion.process), {"variance": self.variance, "reconstruction": self._decoder()}
        return _without_error(
            losses.negative_ddpm_elbo(diffusion, params, context.key, x0, cond, ts=ts, **given, **rows(context))
        )


class SmallVarianceBound(LargeVarianceBound):
    """DDPM's variational bound with the posterior's variance (Ho et al. 2020, eq. 7)."""

    variance: ClassVar[Callable[[Array, Array, Array | None], Array]] = staticmethod(losses.small_variance)


class LearnedVarianceBound(LargeVarianceBound):
    """DDPM's variational bound with a variance that is learned (Nichol & Dhariwal 2021, eqs. 4 and 15)."""

    channels: ClassVar[int] = 2
    variance: ClassVar[Callable[[Array, Array, Array | None], Array]] = staticmethod(losses.learned_variance)

    def diffusion(self, diffusion):
        return dataclasses.replace(diffusion, network=losses.prediction_only(diffusion.network))


@dataclasses.dataclass(frozen=True)
class LearnedVariance(LearnedVarianceBound):
    """The mean square for the prediction, and DDPM's bound for a learned variance (Nichol & Dhariwal 2021, eq. 16).

    Attributes:
      share: factor on the bound, per feature, in the sum.
    """

    share: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        self._least(share=0)

    def __call__(self, diffusion, params, x0, cond, context, choices):
        given = {"ts": self._times(diffusion.process), "reconstruction": self._decoder(), **rows(context)}
        loss, aux = losses.learned_variance_loss(diffusion, params, context.key, x0, cond, share=self.share, **given)
        return loss, aux | {name: jnp.mean(aux[name]) for name in ("simple", "bound")}
