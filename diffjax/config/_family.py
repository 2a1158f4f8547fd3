"""What kind of model a run trains: a class for each, whose fields are its numbers on the command line.

    family.make(setting) --> training.Family: init, objectives, sample, log_bound, ...

A new family is a class in a file of its own and a row of `FAMILIES` in `_names`. Diffusion, of which flow maps are a
part, is made of more groups of options than any other: `build` makes its `Parts`, `_diffusion_family` the rest.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
import optax

from diffjax.training import Family


class Setting(NamedTuple):
    """What the data and the other groups of options say of a family.

    Attributes:
      shape: of one sample.
      classes: how many the model is conditioned on: cond are labels [b]; None: there is no condition.
      pictures: whether samples are images, whose values lie in [-1, 1].
      optimiser: `updates -> tx`, an optimiser of so many updates a step, whose schedules count steps.
      steps: how many steps there will be.
    """

    shape: tuple[int, ...]
    classes: int | None
    pictures: bool
    optimiser: Callable[[int], optax.GradientTransformation]
    steps: int

    @property
    def tx(self) -> optax.GradientTransformation:
        """The optimiser of one update a step."""
        return self.optimiser(1)


@dataclasses.dataclass(frozen=True)
class DiffusionFamily:
    """Diffusion: a denoiser, or with a loss of flow maps a map of few steps, takes noise to data."""

    unused: ClassVar[tuple[str, ...]] = ()


@dataclasses.dataclass(frozen=True)
class AbstractFamily(abc.ABC):
    """A family by its numbers."""

    unused: ClassVar[tuple[str, ...]] = (
        "process",
        "parameterisation",
        "weighting",
        "times",
        "loss",
        "network",
        "guidance",
        "sampler",
    )
    """Groups of options that the family has no use for: all those of diffusion, by default."""

    @abc.abstractmethod
    def make(self, setting: Setting) -> Family:
        """The functions of the family."""

    def check_data(self, x0: np.ndarray) -> None:  # noqa: B027 - most take any data
        """Raises `ValueError` for data [n, *d] that the family cannot model; by default all are fine."""
