"""The teacher of a distillation: read from its run, and the states that a student begins with.

RUN --read_teacher--> TrainedRun --begin_from_teacher--> state of the first stage --next_stage--> of the next
"""

import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax.config._averages import names
from diffjax.config._options import Config
from diffjax.config._parts import Parts
from diffjax.config._run import TrainedRun, load
from diffjax.networks import with_second_time
from diffjax.training import TrainState, state_from_params


def read_teacher(config: Config, parts: Parts, folder: Path) -> TrainedRun:
    """The teacher of a run in a folder: the run at `config.teacher`.

    Raises:
      ValueError: there is no such run, it is a flow map, or it is of another process, prediction, clock, network or
        number of classes.
      FileNotFoundError: it has no checkpoint yet.
    """
    path = Path(os.path.normpath(folder / (config.teacher or "")))
    teacher = load(path)
    if teacher.objective.flow_map:
        raise ValueError(f"run: the teacher must be a denoiser, got a flow map, {path}")
    mine = parts.diffusion
    differ = {
        "process": not eqx.tree_equal(teacher.diffusion.process, mine.process),
        "prediction or clock": not eqx.tree_equal(teacher.diffusion.parameterisation, mine.parameterisation),
        "number of classes": teacher.null != parts.null,
        "network": teacher.diffusion.network != mine.network,
    }
    for what, differs in differ.items():
        if differs:
            raise ValueError(
                f"run: the student has the {what} of its teacher, and {path} has another; name another --out"
            )
    return teacher


def begin_from_teacher(config: Config, parts: Parts, state: TrainState, teacher: TrainedRun) -> TrainState:
    """A fresh state whose student begins with the parameters of its teacher."""
    network = jax.tree.map(lambda new, old: jnp.asarray(old, new.dtype), state.params["teacher"], teacher.params)
    student = network
    if parts.objective.two_times:
        assert teacher.samples is not None
        student = with_second_time(parts.diffusion.network, network, state.key, *teacher.samples.example())
    params = state.params | {"network": student, "teacher": network}
    return state_from_params(state.key, params, parts.training_objective(), averages=names(config))


def next_stage(config: Config, parts: Parts, state: TrainState) -> TrainState:
    """The state that a stage begins with: its teacher is the student before it, its optimiser and average are new."""
    params = state.params | {"teacher": state.params["network"]}
    fresh = state_from_params(state.key, params, parts.training_objective(), averages=names(config))
    return fresh._replace(step=state.step)
