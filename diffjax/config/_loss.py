"""What a run trains on: a class for each loss, whose fields are its numbers on the command line.

    params = network's, or {"network": network's, **learned}     learned: loss weights, or the process

    loss.init(key, network, x0, cond) --> the network's parameters      loss.init_learned() --> what else is learned
    loss(diffusion, params, x0, cond, context, choices) --> (loss, aux)
    loss.diffusion(diffusion) --> what denoisers of a trained run are made of
    loss.denoiser(diffusion, params, cond) --> the denoiser of a trained run

A new loss is a class in a file of its own and a row of `LOSSES` in `_names`. `aux` has `t` [b] and `per_sample` [b],
and its scalars are logged.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, TypeAlias, TypedDict

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffjax._typing import Cond, Denoiser, Key, Network, Params, Sample, Time
from diffjax.parameterisation import AbstractParameterisation
from diffjax.parameterisation._denoiser import make_denoiser
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import AbstractGaussianProcess, AbstractTimes, LearnedLogsnr, MonotoneLogsnr
from diffjax.training import Context

LEARNED = LearnedLogsnr, MonotoneLogsnr
"""Processes whose numbers are trained."""
Loss: TypeAlias = tuple[Float[Array, ""], dict[str, Array]]
"""`(loss [], aux)`."""
Defaults: TypeAlias = Mapping[str, str | float]
"""Path of an option -> its default."""


class Choices(NamedTuple):
    """What the other groups of options say of a loss.

    Attributes:
      times: process -> a time sampler of that process.
      weighting: `(process, parameterisation, t) -> w`.
      learned: name -> parameters with the network's: those that are learned with them, as `init_learned` made them,
        and a teacher's.
      null: the null condition; None where the network is unconditional.
      scale: of classifier-free guidance.
      steps: updates of a stage of the training, of all of it where there is one.
      stage: which stage this is, from 0.
      teacher: the denoiser that is distilled, guided; None without a teacher.
    """

    times: Callable[[AbstractGaussianProcess], AbstractTimes]
    weighting: Callable[[AbstractGaussianProcess, AbstractParameterisation, Time], Time]
    learned: Mapping[str, Params] = MappingProxyType({})
    null: Cond = None
    scale: float = 1.0
    steps: int = 1
    stage: int = 0
    teacher: Denoiser | None = None


@dataclasses.dataclass(frozen=True)
class AbstractLoss(abc.ABC):
    """A loss by its numbers."""

    channels: ClassVar[int] = 1
    """Channels of the network's output, in multiples of the data's."""
    vectors_only: ClassVar[bool] = False
    """True if a step on pictures would cost too much, or have too much variance, to train."""
    trains_process: ClassVar[bool] = False
    """True if the loss is a bound that may train the process as well."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Groups of options that the loss has no use for."""
    package: ClassVar[tuple[str, str] | None] = None
    """A package that it imports, and diffjax's extra that installs it."""
    defaults: ClassVar[Defaults] = MappingProxyType({})
    """Defaults of options for this loss on the command line, in place of the preset's."""
    flow_map: ClassVar[bool] = False
    """True if a trained run is a flow map, and guidance is built into it."""
    two_times: ClassVar[bool] = False
    """True if the network is given s as well as t."""
    guides: ClassVar[bool] = False
    """True if a flow map trained from data has its guidance in the target."""
    distils: ClassVar[bool] = False
    """True if it can learn from a teacher; `needs_teacher`: if it cannot without."""
    needs_teacher: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    """True if it reads the average of the network's parameters in training."""

    @property
    def stages(self) -> int:
        """Equal parts of the training, each with an optimiser of its own, and the student before as its teacher."""
        return 1

    def steps_of(self, stage: int) -> int:
        """Steps that the student of a stage samples in; a loss with stages says so."""
        raise NotImplementedError

    def sampled_by(self, stage: int) -> str:
        """Options that sample a run of a stage, for messages; a flow map that does not know all pairs says so."""
        raise NotImplementedError

    @abc.abstractmethod
    def __call__(
        self, diffusion: Diffusion, params: Params, x0: Sample, cond: Cond, context: Context, choices: Choices
    ) -> Loss:
        """The loss, a scalar, and `{"t": [b], "per_sample": [b], ...}`.

        Args:
          diffusion: network, process (the learned one, where it is learned) and parameterisation.
          params: the network's parameters.
          x0: data [b, *d].
          cond: conditions [b, ...], some of them dropped, or None.
          context: key, step, averages (of all parameters), global indices.
          choices: what other groups of options say.
        """

    def init(self, key: Key, network: Network, x0: Sample, cond: Cond) -> Params:
        """The network's parameters, for data and conditions like x0 [b, *d] and cond."""
        return network.init(key, x0, jnp.zeros(x0.shape[0], x0.dtype), cond)

    def init_learned(self) -> dict[str, Params]:
        """Name -> parameters that are learned with the network's; none by default."""
        return {}

    def diffusion(self, diffusion: Diffusion) -> Diffusion:
        """The `Diffusion` that denoisers of a trained run are made of: as in training, by default."""
        return diffusion

    def denoiser(self, diffusion: Diffusion, params: Params, cond: Cond, stage: int = -1) -> Denoiser:
        """The denoiser (or flow map) of a run trained up to a stage, the last by default; `diffusion` is of
        `self.diffusion`, params are the network's."""
        return make_denoiser(diffusion, params, cond)

    def check(self, process: AbstractGaussianProcess, times: AbstractTimes) -> None:  # noqa: B027 - most have nothing to check
        """Raises `ValueError` where the process or the time sampler does not suit the loss."""

    def check_steps(self, steps: int) -> None:  # noqa: B027 - most take any number
        """Raises `ValueError` where so many updates are too few for the loss."""

    def _positive(self, *names: str) -> None:
        """Raises `ValueError` for a number that is not positive and finite."""
        for name in names:
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"loss.{name}: must be positive and finite, got {value}")

    def _least(self, **numbers: float) -> None:
        """Raises `ValueError` for a number below its least value, by name."""
        for name, least in numbers.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"loss.{name}: at least {least}, got {value}")


class Rows(TypedDict):
    """The arguments `index` [b] and `total` of a loss."""

    index: Int[Array, " b"] | None
    total: int | None


def rows(context: Context) -> Rows:
    """Which samples of the whole batch these are."""
    return {"index": context.index, "total": context.total}
