"""`diffjax distill`: a trained run becomes a run of few steps, which the same command continues.

    RUN --network, process, prediction, clock, classes, data--> OUT     a run as of `diffjax train`, with a teacher

The student begins with the averaged parameters of its teacher, which are kept with it in OUT's checkpoints: to go on,
only RUN/config.json is read, and to sample nothing of RUN. The teacher's guidance is built into the student.
"""

import dataclasses
import math
import os
from pathlib import Path

from diffjax.cli._options import Distill, Execution, Train
from diffjax.cli._train import run_config
from diffjax.config import FAMILIES, LOSSES, Config, LossConfig, SamplerConfig
from diffjax.config._family import DiffusionFamily
from diffjax.config._registry import construct
from diffjax.config._run import check_folder, read_config, read_samples


def run_distill(options: Distill, argv: list[str]) -> None:
    """Distills a run, or goes on where that stopped; then draws samples and measures them."""
    check_folder(options.run)
    teacher = read_config(Path(options.run), "run")
    if options.guidance is not None and not read_samples(Path(options.run), "run").conditional:
        raise ValueError(f"guidance: the teacher knows no classes, got {options.guidance}; leave it out")
    out = f"{options.run.rstrip('/')}-{options.loss.name}" if options.out is None else options.out
    config = distilled(options, teacher, os.path.relpath(options.run, out))
    execution = {item.name: getattr(options, item.name) for item in dataclasses.fields(Execution)}
    run_config(Train(**execution | {"config": config, "out": out}))


def distilled(options: Distill, teacher: Config, path: str) -> Config:
    """The configuration of a student: its teacher's but for what distillation changes.

    Raises:
      ValueError: the loss does not learn from this teacher, or a number is out of range.
    """
    for name, value in {"steps": options.steps, "updates": options.updates}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    if FAMILIES[teacher.family.name] is not DiffusionFamily:
        raise ValueError(f"run: the teacher must be a denoiser, got the family {teacher.family.name}, {options.run}")
    if LOSSES[teacher.loss.name].flow_map:
        raise ValueError(
            f"run: the teacher must be a denoiser, got a flow map trained by {teacher.loss.name}, {options.run}; give "
            "the run of a denoiser, such as the one that it was distilled from"
        )
    if teacher.sampler.name == "cfgpp" and options.guidance is None:
        raise ValueError(
            "guidance: the teacher samples by cfgpp, whose scale has another meaning; give the scale of "
            "classifier-free guidance, --guidance"
        )
    clock = LOSSES[options.loss.name].defaults.get("parameterisation.clock", teacher.parameterisation.clock)
    if clock != teacher.parameterisation.clock:
        raise ValueError(
            f"loss.name: {options.loss.name} differentiates the network in time, for which its teacher needs the clock "
            f"{clock}, got {teacher.parameterisation.clock} in {options.run}; train a teacher with "
            f"--parameterisation.clock {clock}, or take progressive or consistency"
        )
    loss, few = LossConfig(**dataclasses.asdict(options.loss)), options.steps
    if loss.name == "progressive":
        first = few * 2 ** max(2, math.ceil(math.log2(16 / few))) if loss.first is None else loss.first
        loss = dataclasses.replace(loss, least=few, first=first)
    objective = construct("loss", LOSSES, loss)
    gamma = objective.defaults.get("sampler.gamma")
    guidance, optimiser = teacher.guidance, teacher.optimiser
    if options.guidance is not None:
        guidance = dataclasses.replace(guidance, scale=options.guidance)
    if options.learning_rate is not None:
        optimiser = dataclasses.replace(optimiser, learning_rate=options.learning_rate)
    plain = Config()
    return dataclasses.replace(
        teacher,
        name=f"{teacher.name}-{loss.name}",
        steps=options.updates * objective.stages,
        batch_size=teacher.batch_size if options.batch_size is None else options.batch_size,
        seed=options.seed,
        # The next teacher is the student's trained parameters, no average of them.
        ema_decay=0.0 if objective.stages > 1 else teacher.ema_decay,
        ema_widths=(),
        weighting=plain.weighting,
        times=plain.times,
        loss=loss,
        optimiser=optimiser,
        guidance=guidance,
        teacher=path,
        sampler=SamplerConfig(name="jump", steps=few, grid="angle", gamma=gamma, clip=teacher.sampler.clip),
    )
