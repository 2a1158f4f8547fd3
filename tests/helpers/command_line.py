"""The command line called in this process, the small run its tests share, and the same samples by the library."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import diffjax as dj
from diffjax.cli import main
from diffjax.config import build, build_data, from_json
from diffjax.training import Checkpoints, TrainState, data_mesh, init_state

TINY = ["--network.width", "16", "--network.depth", "1", "--batch-size", "16", "--sampler.steps", "4"]
# A learning rate at which twenty steps are enough for the class to matter.
FAST = ["--optimiser.learning-rate", "0.02", "--optimiser.warmup", "4"]
CONDITIONAL = ["--data.conditional", "--guidance.scale", "1.5"]
TRAIN = ["train", "toy2d", *TINY, *FAST, *CONDITIONAL, "--steps", "20", "--save-every", "8"]
CLASSES = 8

COVERED: set[tuple[str, str]] = set()
"""(command, option) of each option that a test compares with what it stands for."""


def covers(command, *options):
    """Marks a test as the one that compares these options of a command with what they stand for."""

    def mark(test):
        COVERED.update((command, option) for option in options)
        return test

    return mark


def call(capfd, *argv):
    """Exit code, stdout and stderr of a command line."""
    capfd.readouterr()
    code = main([str(arg) for arg in argv])
    return (code, *capfd.readouterr())


def done(capfd, *argv):
    """The output of a command line that succeeds and has nothing to say on stderr."""
    code, out, err = call(capfd, *argv)
    assert (code, err) == (0, "")
    return out


def refused(capfd, *argv):
    """The one line that a bad command line gets."""
    code, _, err = call(capfd, *argv)
    assert code == 2
    assert err.startswith("diffjax: ")
    assert err.count("\n") == 1, err
    return err


def contents(folder):
    """Every file of a folder and its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


class Run(NamedTuple):
    """A finished run, read by the library: its network, averaged parameters and whole state."""

    network: dj.Network
    ema: Any
    state: TrainState


def read_run(folder, averages=()):
    """The network of a run, and the state of its newest checkpoint."""
    config = from_json((folder / "config.json").read_text())
    data = build_data(config.data)
    parts = build(config, data.classes)
    x0, cond = data.source(0, 0, 1)
    like = init_state(jax.random.key(0), parts.diffusion.network, parts.tx, x0, cond, averages=averages)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(like)
    return Run(parts.diffusion.network, jax.tree.map(np.asarray, state.ema), state)


def measures(folder):
    """What training wrote of its samples, by name."""
    return json.loads((folder / "results.json").read_text())


def draw(
    run,
    n,
    labels=None,
    *,
    seed=0,
    scale=1.5,
    ts=None,
    stepper=None,
    interval=None,
    threshold=lambda denoiser: denoiser,
    rule=dj.guidance.Linear(),  # noqa: B008 - it is immutable
    weak=None,
):
    """n samples of a run trained as `TRAIN` does (cosine, v-prediction, DPM-Solver++ 2M in 4 steps of logsnr)."""
    process = dj.Cosine()
    diffusion = dj.Diffusion(run.network, process, dj.VPrediction())
    denoiser = dj.make_denoiser(diffusion, run.ema, labels)
    if weak is not None:
        denoiser = dj.guidance.extrapolate(denoiser, dj.make_denoiser(diffusion, weak, labels), scale)
    elif labels is not None:
        guided = dj.classifier_free(denoiser, CLASSES, scale, rule=rule)
        denoiser = guided if interval is None else dj.guidance.within_interval(process, guided, denoiser, *interval)
    x0 = dj.sample_n(
        jax.random.key(seed),
        process,
        threshold(denoiser),
        (2,),
        n,
        ts=dj.logsnr_grid(process, 4) if ts is None else ts,
        stepper=dj.DPMpp2M() if stepper is None else stepper,
        mesh=data_mesh(),
    )
    return np.asarray(x0)
