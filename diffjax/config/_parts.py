"""The objects of a run, as `build` makes them."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from diffjax._typing import Cond, Denoiser, Grid, Key, Params, Sample
from diffjax.config import _names as names
from diffjax.config._denoising import Denoising
from diffjax.config._loss import AbstractLoss, Loss
from diffjax.guidance import AbstractRule
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers import AbstractStepper
from diffjax.training import Context, Objective


class Parts(NamedTuple):
    """The objects of a run."""

    diffusion: Diffusion
    tx: optax.GradientTransformation
    loss: Callable[[Params, tuple[Sample, Cond], Context], Loss]
    """`(params, (x0, cond), context) -> (loss, aux)`, for a `training.Objective`."""
    objective: AbstractLoss
    """The loss by its numbers: it makes the network's parameters, and the denoiser of a trained run."""
    learned: tuple[str, ...]
    """Entries of the run's parameters that are learned with "network"; where there are none, they are the network's."""
    frozen: tuple[str, ...]
    """Entries that stand next to them and are not trained: a teacher's."""
    stage: int
    """Which stage of the training `loss` is of, from 0."""
    stepper: AbstractStepper
    ts: Grid
    """Descending times [n + 1] to sample on."""
    null: Cond
    """The null condition of classifier-free guidance, for labels the number of classes; None if unconditional."""
    rule: AbstractRule
    """Combines cond and uncond in guidance."""

    def init(self, key: Key, x0: Sample, cond: Cond) -> Params:
        """The parameters of a run, for data and conditions like x0 [b, *d] and cond.

        Raises:
          ValueError: the loss is for vectors, and x0 are pictures.
        """
        if self.objective.vectors_only and x0.ndim != 2:
            name = next(name for name, row in names.LOSSES.items() if type(self.objective) is row)
            raise ValueError(
                f"loss.name: {name} differentiates the score in x and is for vectors [d], got samples of shape "
                f"{x0.shape[1:]}; denoising learns the same score"
            )
        network = self.objective.init(key, self.diffusion.network, x0, cond)
        if not self.learned and not self.frozen:
            return network
        process = {"process": self.diffusion.process} if "process" in self.learned else {}
        # Of a teacher's shapes; its values come from its run.
        teacher = {name: Denoising().init(key, self.diffusion.network, x0, cond) for name in self.frozen}
        return {"network": network, **process, **self.objective.init_learned(), **teacher}

    def denoiser(self, params: Params, cond: Cond = None) -> Denoiser:
        """The denoiser, or flow map, of the network's parameters after this stage, for conditions [b, ...] or None."""
        return self.objective.denoiser(self.diffusion, params, cond, self.stage)

    def training_objective(self) -> Objective:
        """What a train step minimises, and in which parameters."""
        return Objective(self.loss, self.tx, ("network", *self.learned) if self.frozen else None)

    @property
    def process(self) -> AbstractGaussianProcess:
        """The forward process, `diffusion.process`."""
        return self.diffusion.process
