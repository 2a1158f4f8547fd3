"""What can be said on the command line: a dataclass for each command, every field with the words of its help.

argv --tyro--> Train | Sample | Evaluate
"""

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tyro

from diffjax.config import PRESETS, Config
from diffjax.training import HEARTBEAT

EVALUATED = 1800
_ABOUT = {
    "digits": "Class-conditional 8x8 digits with a U-Net; minutes on two cores.",
    "mnist": "Class-conditional 28x28 digits; --data.path is the folder of MNIST's files.",
    "cifar10": "Class-conditional 32x32 pictures with DDPM's U-Net, for an accelerator; --data.path says where.",
    "toy2d": "Points in the plane with a perceptron; choose them by --data.name.",
}
if TYPE_CHECKING:
    Preset: TypeAlias = Config
else:
    Preset = functools.reduce(
        operator.or_,
        (
            Annotated[Config, tyro.conf.subcommand(name, default=config, description=_ABOUT[name])]
            for name, config in PRESETS.items()
        ),
    )


@dataclass(frozen=True)
class Hosts:
    """A run on several processes: each is started with the same command, and its own --process-id."""

    coordinator: str | None = None
    """host:port of process 0. Found by itself under SLURM, Kubernetes, Cloud TPU and Open MPI."""
    num_processes: int | None = None
    """How many processes, all told; 1 runs alone, on a cluster too."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    heartbeat: int = HEARTBEAT
    """Seconds after which a process that is not heard of counts as dead, and the others end (code 134)."""
    join_timeout: int = 300
    """Seconds to wait at the start for the others; then this process ends (code 75)."""


HostOptions: TypeAlias = Annotated[Hosts, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Train:
    """Train a network on a preset, then draw samples.png and measure them.

    Saves as it goes: the same command again continues where the last one stopped.

        $ diffjax train digits
        $ diffjax train digits --out runs/wide --network.channels 64 --steps 8000
        $ diffjax train toy2d --data.name two_moons
    """

    config: Annotated[Preset, tyro.conf.arg(name="")]
    """Where to start from; `diffjax train digits --help` lists what can be changed."""
    out: str | None = None
    """Folder of the run, made if absent; runs/NAME by default."""
    layout: Literal["jit", "fsdp", "tensor", "pmap"] | None = None
    """How a run is spread over devices; the results agree. jit and pmap split the batch, fsdp the parameters, averages
    and optimiser state as well, tensor the layers (attention and residual blocks). By default pmap on the cores of one
    machine, where it is the fastest, and jit elsewhere."""
    split: int | None = None
    """fsdp, tensor: over how many devices arrays are split; all by default. The rest split the batch alone."""
    accumulate: int = 1
    """How many parts a batch is taken in, one after the other, for less memory; the gradient is the same."""
    dry_run: bool = False
    """Only tell the number of parameters, the memory of each layout and the FLOPs of a step; write nothing."""
    devices: int | None = None
    """How many devices, of each process. On CPU the cores are used as devices, as many as divide the batch, up to 8."""
    save_every: int | None = None
    """Steps from one checkpoint to the next, beside those by time."""
    save_seconds: float = 180.0
    """Seconds from one checkpoint to the next."""
    keep: int = 3
    """How many of the newest checkpoints stay on the disk."""
    accept_data: bool = False
    """Go on though the files of the data have changed since the run began, and take them as its data from now on."""
    log_every: int = 50
    """Steps from one line of metrics.jsonl to the next."""
    samples: int = EVALUATED
    """How many samples are drawn in the end, to be looked at and measured."""
    tensorboard: bool = False
    """Write the same lines for TensorBoard, into RUN/tensorboard (extra "log")."""
    profile: tuple[int, int] | None = None
    """The first and the last of the steps of which RUN/profile gets a trace of JAX's profiler."""
    compile_cache: str | None = None
    """Folder of compiled programs, so that the next start is faster; one of your own under ~/.cache by default, and
    none of several processes; "none" keeps nothing."""
    hosts: HostOptions = Hosts()
    """Several processes."""


@dataclass(frozen=True)
class Sample:
    """Draw samples from a run, into a picture or an array.

    The sampler, its steps and the guidance are those of the run, unless an option says otherwise.

        $ diffjax sample runs/digits --label 3 --n 25 --guidance 2 --out threes.png
        $ diffjax sample runs/digits --known half.png --mask left.png --n 16
    """

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    n: int = 100
    """How many."""
    label: int | None = None
    """The class to draw; all of them, in rows, by default."""
    guidance: float | None = None
    """Scale of classifier-free guidance: 1 is none. The run's own by default."""
    interval: tuple[float, float] | None = None
    """Guide only while the log signal-to-noise ratio is between these two; it rises from about -10 to 10."""
    known: str | None = None
    """Inpainting: a picture of a sample's size, or an .npz with x; --mask says which part of it is kept."""
    mask: str | None = None
    """The part that is kept: the light half of a picture, or what is not 0 in the array mask of an .npz."""
    times: int | None = None
    """Inpainting: how often each step is taken (RePaint), so that the new part fits the old; 1 only replaces. 10 by
    default."""
    steps: int | None = None
    """Sampling steps; the run's own by default."""
    ts: tuple[float, ...] | None = None
    """Instead of --steps: times to go through, from noise (1) down to data (0); cut to where the process is finite."""
    ema_width: float | None = None
    """Width of another average of the parameters than the run's own, made of its snapshots (train --ema-widths)."""
    seed: int = 0
    """The same seed draws the same samples, whatever --n and --chunk are."""
    chunk: int = 256
    """How many at a time."""
    out: str | None = None
    """Where to: .png is a picture, .npz holds x and labels; RUN/drawn.png by default."""
    compile_cache: str | None = None
    """Folder of compiled programs, so that the next start is faster; one of your own under ~/.cache by default, and
    none of several processes; "none" keeps nothing."""
    hosts: HostOptions = Hosts()
    """Several processes."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a run against what was held out, beside what the measure says of perfect and of useless samples."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    n: int = EVALUATED
    """How many samples to draw."""
    guidance: float | None = None
    """Scale of classifier-free guidance: 1 is none. The run's own by default."""
    steps: int | None = None
    """Sampling steps; the run's own by default."""
    ema_width: float | None = None
    """Width of another average of the parameters than the run's own, made of its snapshots (train --ema-widths)."""
    seed: int = 0
    """Of the samples."""
    chunk: int = 256
    """How many at a time."""
    accept_data: bool = False
    """Measure though the files of the data have changed since the run was trained."""
    likelihood: int = 0
    """Held-out items whose log density is computed too, in nats per dimension; a minute for tens of images."""
    compile_cache: str | None = None
    """Folder of compiled programs, so that the next start is faster; one of your own under ~/.cache by default, and
    none of several processes; "none" keeps nothing."""
    hosts: HostOptions = Hosts()
    """Several processes."""
