"""Losses of flow maps, as rows of `LOSSES`: a run learns the denoiser's average over a step, and samples in a few.

    row                      pairs that the map knows      trained from
    mean_flow                any                           data, or a teacher
    shortcut                 dyadic                        data
    consistency              s = 0                         data (iCT), or a teacher
    continuous_consistency   s = 0                         data (sCT), or a teacher (sCD)
    progressive              the steps of a grid           a teacher, by stages

A teacher (`diffjax distill`) stands next to the student in the parameters of the run, trained by nothing and saved with
it. Guidance is built into a map while it is trained, by its teacher or in its target: there is none in sampling.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from diffjax import flow_maps, losses
from diffjax._typing import Cond, Denoiser, Grid, Key, Network, Params, Sample
from diffjax.config._loss import AbstractLoss, Defaults, rows
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.parameterisation._flow_map import make_flow_map
from diffjax.process import AbstractGaussianProcess, Dyadic, LogitNormalTimes, LognormalTimes, angle_grid, line_grid


class AbstractMapLoss(AbstractLoss):
    """A loss whose network is a flow map."""

    unused: ClassVar[tuple[str, ...]] = ("weighting", "times")
    flow_map: ClassVar[bool] = True
    defaults: ClassVar[Defaults] = {
        "sampler.name": "jump",
        "sampler.grid": "angle",
        "sampler.steps": 2,
    }

    def init(self, key: Key, network: Network, x0: Sample, cond: Cond) -> Params:
        shape = (x0.shape[0], 2) if self.two_times else x0.shape[:1]
        return network.init(key, x0, jnp.zeros(shape, x0.dtype), cond)

    def knows(self, diffusion: Diffusion, stage: int) -> str | Dyadic | Grid:
        """The pairs of times that a map trained up to a stage knows; see `make_flow_map`."""
        return "any" if self.two_times else "zero"

    def sampled_by(self, stage: int) -> str:
        return "--sampler.name jump --sampler.gamma 1"

    def denoiser(self, diffusion: Diffusion, params: Params, cond: Cond, stage: int = -1) -> Denoiser:
        return make_flow_map(diffusion, params, cond, knows=self.knows(diffusion, stage))


def _check_share(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise ValueError(f"loss.{name}: a number in [0, 1], got {value}")


@dataclasses.dataclass(frozen=True)
class MeanFlow(AbstractMapLoss):
    """MeanFlow: a flow map between any two times, with guidance built in (Geng et al. 2025, eqs. 10 and 21).

    Attributes:
      mean: mean of the logit of the times t and s, which are drawn from a logit-normal density.
      std: standard deviation of the logit of the times.
      equal: share of the batch with s = t, where the loss is that of a denoiser.
      power: p of the weight (e + offset)^-p, where e is the squared error per feature; papers take 0.75 or 1 on images.
        On data of few dimensions any p but 0 biases the map.
      offset: the offset in the weight (e + offset)^-power, in squared units of the data.
    """

    defaults: ClassVar[Defaults] = {**AbstractMapLoss.defaults, "parameterisation.clock": "angle"}
    two_times: ClassVar[bool] = True
    distils: ClassVar[bool] = True
    guides: ClassVar[bool] = True
    improved: ClassVar[bool] = False

    mean: float = -0.4
    std: float = 1.0
    equal: float = 0.5
    power: float = 0.0
    offset: float = 0.001

    def __post_init__(self):
        _check_share(equal=self.equal)
        self._positive("std", "offset")
        self._least(power=0)

    def __call__(self, diffusion, params, x0, cond, context, choices):
        times = LogitNormalTimes(diffusion.process, self.mean, self.std)
        guidance = None
        if choices.teacher is None and choices.null is not None and choices.scale != 1:
            guidance = flow_maps.GuidedVelocity(choices.null, choices.scale)
        return flow_maps.mean_flow_loss(
            diffusion,
            params,
            context.key,
            x0,
            cond,
            pairs=flow_maps.PartlyEqual(flow_maps.SortedPairs(times), self.equal),
            teacher=choices.teacher,
            improved=self.improved,
            power=self.power,
            offset=self.offset,
            guidance=guidance,
            **rows(context),
        )


class ImprovedMeanFlow(MeanFlow):
    """`mean_flow` whose derivative is taken along the network's own velocity (improved MeanFlow, Geng et al. 2025)."""

    distils: ClassVar[bool] = False
    improved: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Shortcut(AbstractMapLoss):
    """A shortcut model: a flow map of steps each equal to two half as long, 1, 2, 4 and so on (Frans et al. 2024).

    Attributes:
      finest: largest number of sampling steps that the model learns, a power of two.
      share: share of the batch that learns from the model's own half steps; the rest learns the shortest steps from
        the data.
    """

    defaults: ClassVar[Defaults] = {
        **AbstractMapLoss.defaults,
        "sampler.grid": "line",
        "guidance.scale": 1.0,
    }
    two_times: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    finest: int = 128
    share: float = 0.25

    def __post_init__(self):
        _check_share(share=self.share)
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise ValueError(f"loss.finest: a power of two from 2 on, got {self.finest}")

    def knows(self, diffusion, stage):
        grid = line_grid(diffusion.process, self.finest, diffusion.parameterisation.data_std)
        return Dyadic(tuple(np.asarray(grid).tolist()))

    def sampled_by(self, stage):
        return (
            f"--sampler.name jump --sampler.grid line, 1, 2, 4, ... or {self.finest} steps, and for --sampler.data-std "
            "that of the parameterisation"
        )

    def __call__(self, diffusion, params, x0, cond, context, choices):
        numbers = {"finest": self.finest, "share": self.share, "target_params": context.ema["decay"]}
        return flow_maps.shortcut_loss(diffusion, params, context.key, x0, cond, **numbers, **rows(context))


@dataclasses.dataclass(frozen=True)
class Consistency(AbstractMapLoss):
    """A consistency model on noise levels whose number doubles in training (Song & Dhariwal 2023; Song et al. 2023).

    Attributes:
      fewest: number of noise levels at the start, minus 1.
      most: number of noise levels at the end, minus 1.
      c: the root-mean-square difference per feature at which the penalty turns from quadratic to linear; 0: quadratic.
    """

    defaults: ClassVar[Defaults] = {
        **AbstractMapLoss.defaults,
        "sampler.gamma": 1.0,
        "guidance.scale": 1.0,
    }
    distils: ClassVar[bool] = True

    fewest: int = 10
    most: int = 160
    c: float = 0.00054

    def __post_init__(self):
        if not 2 <= self.fewest <= self.most:
            raise ValueError(f"loss.fewest: 2 <= fewest <= most is needed, got {self.fewest} and {self.most}")
        if not 0 <= self.c < float("inf"):
            raise ValueError(f"loss.c: a finite number, not negative, got {self.c}")

    def check_steps(self, steps):
        least = math.ceil(math.log2(self.most / self.fewest) + 1)
        if steps < least:
            raise ValueError(
                f"steps: at least {least} are needed, for the levels to double from {self.fewest} to {self.most}, "
                f"got {steps}"
            )

    def __call__(self, diffusion, params, x0, cond, context, choices):
        levels = flow_maps.ict_levels(context.step, choices.steps, s0=self.fewest, s1=self.most)
        return flow_maps.consistency_loss(
            diffusion,
            params,
            context.key,
            x0,
            cond,
            levels=flow_maps.EDMLevels(diffusion.process, levels, lognormal=(-1.1, 2.0)),
            teacher=choices.teacher,
            solver="heun",
            penalty=losses.PseudoHuber(self.c) if self.c else losses.mean_square,
            weighting=flow_maps.OverGap(),
            **rows(context),
        )


@dataclasses.dataclass(frozen=True)
class ContinuousConsistency(AbstractMapLoss):
    """A consistency model in continuous time, sCM (Lu & Song 2024).

    Attributes:
      mean: mean of log(sigma/alpha) at the times of training, which is normal.
      std: standard deviation of log(sigma/alpha) at the times of training.
      warm_up: share of the training over which the weight of the network's time derivative rises from 0 to 1.
      c: the constant of the normalised tangent g/(|g| + c).
    """

    defaults: ClassVar[Defaults] = {**Consistency.defaults, "parameterisation.clock": "angle"}
    distils: ClassVar[bool] = True

    mean: float = -1.0
    std: float = 1.4
    warm_up: float = 0.1
    c: float = 0.1

    def __post_init__(self):
        _check_share(warm_up=self.warm_up)
        self._positive("std", "c")

    def __call__(self, diffusion, params, x0, cond, context, choices):
        warm_up = jnp.minimum(1.0, (context.step + 1) / jnp.maximum(self.warm_up * choices.steps, 1.0))
        return flow_maps.continuous_consistency_loss(
            diffusion,
            params,
            context.key,
            x0,
            cond,
            times=LognormalTimes(diffusion.process, self.mean, self.std),
            teacher=choices.teacher,
            warm_up=warm_up,
            c=self.c,
            **rows(context),
        )


@dataclasses.dataclass(frozen=True)
class Progressive(AbstractMapLoss):
    """Progressive distillation: each stage halves the number of steps (Salimans & Ho 2022, algorithm 2).

    Attributes:
      least: number of steps of the last student.
      first: number of DDIM steps of the teacher in the first stage: that of the last student times a power of two.
      teacher_steps: number of the teacher's DDIM steps that one step of the first student replaces, a power of two.
        More cost more evaluations, and save stages, of which each adds its errors.
    """

    defaults: ClassVar[Defaults] = {**AbstractMapLoss.defaults, "sampler.steps": 1}
    distils: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    least: int = 1
    first: int = 16
    teacher_steps: int = 2

    def __post_init__(self):
        self._least(least=1)
        ratio, rest = divmod(self.first, self.least)
        if rest or not _is_power_of_two(ratio):
            raise ValueError(f"loss.first: {self.least} times 2, 4, 8, ... is needed, got {self.first}")
        if not _is_power_of_two(self.teacher_steps) or self.teacher_steps > ratio:
            raise ValueError(f"loss.teacher_steps: 2, 4, 8, ... up to {ratio} is needed, got {self.teacher_steps}")

    @property
    def stages(self) -> int:
        return (self.first // (self.least * self.teacher_steps)).bit_length()

    def steps_of(self, stage: int) -> int:
        return self.first // self.teacher_steps >> stage % self.stages  # a negative stage counts from the end

    def grid(self, process: AbstractGaussianProcess, stage: int) -> np.ndarray:
        """The student's times in a stage."""
        return np.asarray(angle_grid(process, self.steps_of(stage)))

    def knows(self, diffusion, stage):
        return self.grid(diffusion.process, stage)

    def sampled_by(self, stage):
        return f"--sampler.name jump --sampler.grid angle --steps {self.steps_of(stage)}"

    def __call__(self, diffusion, params, x0, cond, context, choices):
        grid, teacher = self.grid(diffusion.process, choices.stage), choices.teacher
        together = 2 if choices.stage else self.teacher_steps
        fine = np.asarray(angle_grid(diffusion.process, together * (grid.size - 1)))
        if choices.stage:
            teacher = make_flow_map(diffusion, choices.learned["teacher"], cond, knows=fine)
        given = {"grid": grid, "teacher": teacher, "teacher_grid": fine, "teacher_steps": together}
        return flow_maps.progressive_loss(diffusion, params, context.key, x0, cond, **given, **rows(context))


def _is_power_of_two(n: int) -> bool:
    """True of 2, 4, 8, ..."""
    return n >= 2 and n & (n - 1) == 0
