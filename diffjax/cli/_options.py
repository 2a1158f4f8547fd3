"""The options of the command line: a dataclass for each command, in which every field has its help.

argv --tyro--> Train | Sample | Evaluate
"""

import functools
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tyro

from diffjax.config import PRESETS, Config, DistillConfig, OtherGuidance, OtherSampler
from diffjax.config._presets import ABOUT
from diffjax.training import HEARTBEAT

EVALUATED = 1800
if TYPE_CHECKING:
    Preset: TypeAlias = Config
else:
    Preset = functools.reduce(
        operator.or_,
        (
            Annotated[Config, tyro.conf.subcommand(name, default=config, description=ABOUT[name])]
            for name, config in PRESETS.items()
        ),
    )


@dataclass(frozen=True)
class Hosts:
    """A run on several processes: start each with the same command and its own --process-id."""

    coordinator: str | None = None
    """host:port of process 0. Default: found by itself under SLURM, Kubernetes, Cloud TPU and Open MPI."""
    num_processes: int | None = None
    """Number of processes. Default: as found, or 1; give 1 to run alone on a cluster."""
    process_id: int | None = None
    """Index of this process, from 0. Default: as found."""
    heartbeat: int = HEARTBEAT
    """Seconds without a sign of life after which a process counts as dead and the others exit (code 134)."""
    join_timeout: int = 300
    """Seconds to wait for the other processes at the start before exiting (code 75)."""


HostOptions: TypeAlias = Annotated[Hosts, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is executed."""

    out: str | None = None
    """Folder of the run, created if needed. Default: runs/NAME."""
    layout: Literal["jit", "fsdp", "tensor", "pmap"] | None = None
    """How to spread the run over devices; the results agree. jit and pmap split the batch; fsdp also splits parameters,
    averages and optimiser state; tensor splits the layers (attention and residual blocks). Default: pmap on the cores
    of one machine, where it is the fastest, otherwise jit."""
    split: int | None = None
    """For fsdp and tensor: the number of devices that arrays are split over; the batch is split over the rest.
    Default: all devices."""
    accumulate: int = 1
    """Parts that a batch is processed in, one after the other: less memory, the same gradient."""
    dry_run: bool = False
    """Only report the number of parameters, the memory of each layout and the FLOPs of a step; write nothing."""
    devices: int | None = None
    """Devices to use per process. Default: all. On CPU each core is a device; by default as many as divide the batch,
    at most 8."""
    save_every: int | None = None
    """Steps between checkpoints, in addition to those by time. Default: by time only."""
    save_seconds: float = 180.0
    """Seconds between checkpoints."""
    keep: int = 3
    """Number of checkpoints to keep, the newest."""
    accept_data: bool = False
    """Continue although the data files have changed since the run began, and use them from now on."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    sample_every: int | None = None
    """Steps between pictures RUN/samples/STEP.png of samples from the averaged parameters, always from the same noise,
    so that one sees the same samples improve. Training is not affected. Default: no pictures."""
    samples: int = EVALUATED
    """Number of samples to draw and measure at the end."""
    tensorboard: bool = False
    """Also write the metrics, and the pictures of --sample-every, to RUN/tensorboard (needs the extra "log")."""
    profile: tuple[int, int] | None = None
    """First and last step to trace with JAX's profiler, into RUN/profile. Default: no trace."""
    compile_cache: str | None = None
    """Folder for compiled programs, which makes the next start faster; "none" for no cache. Default: a folder of the
    user's under ~/.cache; no cache with several processes."""
    hosts: HostOptions = Hosts()
    """Several processes."""


@dataclass(frozen=True, kw_only=True)
class Train(Execution):
    """Train a network on a preset, then draw samples.png and measure them.

    Checkpoints are saved on the way: the same command again continues where the last one stopped.

        $ diffjax train digits
        $ diffjax train digits --out runs/wide --network.channels 64 128 --steps 8000
        $ diffjax train digits --guidance.name cfg_zero --guidance.scale 2
        $ diffjax train toy2d --data.name two_moons
    """

    config: Annotated[Preset, tyro.conf.arg(name="")]
    """The preset to start from; `diffjax train digits --help` lists what can be changed."""


@dataclass(frozen=True, kw_only=True)
class Distill(Execution):
    """Distill a run into one that samples in a few steps, or in one.

    The student has the network, process and data of the trained run, its teacher; it starts from the teacher's
    parameters, and the teacher's guidance is built in. Checkpoints are saved on the way: the same command again
    continues where the last one stopped.

        $ diffjax distill runs/digits --steps 1 --out runs/one-step
        $ diffjax distill runs/digits --loss.name consistency --steps 2
        $ diffjax sample runs/one-step --label 3 --n 25
    """

    run: tyro.conf.Positional[str]
    """Folder of the teacher's run."""
    out: str | None = None
    """Folder of the student's run, created if needed. Default: RUN-LOSS."""
    loss: DistillConfig = field(default_factory=DistillConfig)
    """How the student learns from its teacher."""
    steps: int = 1
    """Number of steps in which the student samples."""
    updates: int = 3000
    """Optimiser steps. progressive: of each stage; one stage for each halving of the number of steps."""
    guidance: float | None = None
    """Guidance scale of the teacher, which is built into the student. Default: that of the teacher's run."""
    learning_rate: float | None = None
    """Peak learning rate. Default: the teacher's."""
    batch_size: int | None = None
    """Batch size, summed over all devices. Default: the teacher's."""
    seed: int = 0
    """Random seed of the order of the data and the noise."""


@dataclass(frozen=True, kw_only=True)
class EncodeText:
    """Encode captions once, for text-conditional networks: `diffjax train shapes --data.text FOLDER`.

    The folder holds a tokenizer, a frozen encoder and the embeddings of the captions, to which the same command with
    other captions adds. An empty caption has no token: no condition.

        $ diffjax encode-text shapes --out texts/shapes
        $ diffjax encode-text images/ --out texts/mine --encoder pretrained --steps 3000
        $ diffjax encode-text captions.txt --out texts/t5 --encoder t5-base/ --dtype float32
        $ diffjax encode-text shapes --out texts/trained --encoder runs/joint
    """

    captions: tyro.conf.Positional[str]
    """shapes or digit_scenes (all captions of their grammars, whatever training holds out); a text file with a caption
    on each line; or a metadata.jsonl, or a folder or zip of images that has one."""
    out: str
    """Folder of the encoder and the embeddings, created if needed."""
    field: str = "text"
    """Field of metadata.jsonl that holds a caption."""
    tokenizer: str | None = None
    """A tokenizer.json, or its folder; of a run's encoder, the folder that it began from. Default: that of the encoder;
    otherwise one is trained on the captions."""
    vocabulary: int = 512
    """Size of the vocabulary of a tokenizer that is trained, at most."""
    encoder: str = "random"
    """random: T5 with random weights, frozen. pretrained: T5 trained on all of the captions by span corruption, then
    frozen. Otherwise the folder of T5's published weights (config.json and .safetensors), or a run that trained its
    encoder (train --data.text-encoder joint), whose average is taken."""
    size: Literal["tiny", "mini", "midi", "small"] = "mini"
    """Size of the encoder, random or pretrained: 32, 64, 128 or 512 features."""
    steps: int = 1000
    """Optimiser steps of the training of a pretrained encoder."""
    length: int | None = None
    """Tokens of a caption; longer ones are cut. Default: those of the longest caption, at most 128."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the stored embeddings."""
    whiten: bool = False
    """Whether to whiten the features over the tokens of the captions. A small encoder should be, so that the network
    hears which object a word belongs to."""
    seed: int = 0
    """Random seed of the encoder and its training."""


@dataclass(frozen=True)
class _Drawn:
    """What commands that draw samples of a run have in common."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    sampler: OtherSampler = field(default_factory=OtherSampler)
    guidance: OtherGuidance = field(default_factory=OtherGuidance)
    autoguidance: str | None = None
    """Folder of a weaker run on the same data and process (smaller, or trained for less time): its estimate takes the
    place of uncond in the guidance rule. Default: none."""
    temperature: float | None = None
    """Scale of the noise that latents are drawn from, 1 for that of training; a diffusion has no such option. Default:
    1."""
    ema_width: float | None = None
    """Width of another average of the parameters, made from the snapshots of train --ema-widths. Default: the run's own
    average."""
    chunk: int = 256
    """Samples to draw at a time."""
    compile_cache: str | None = None
    """Folder for compiled programs, which makes the next start faster; "none" for no cache. Default: a folder of the
    user's under ~/.cache; no cache with several processes."""
    hosts: HostOptions = Hosts()
    """Several processes."""


@dataclass(frozen=True)
class Sample(_Drawn):
    """Draw samples from a run, into a picture or an array. The training data are not needed.

    Sampler, steps and guidance are those of the run unless an option changes them.

        $ diffjax sample runs/digits --label 3 --n 25 --guidance 2 --out threes.png
        $ diffjax sample runs/digits --sampler.name ddim --sampler.eta 1 --steps 100
        $ diffjax sample runs/digits --guidance.name projected --guidance 4 --interval -2 6
        $ diffjax sample runs/digits --known half.png --mask left.png --n 16
        $ diffjax sample runs/shapes --text "a red circle above a small blue square" --guidance 3 --n 16
    """

    n: int = 100
    """Number of samples."""
    label: int | str | None = None
    """Class to draw: its label, or its name if classes have names. Default: all classes, one per row."""
    text: tuple[str, ...] | None = None
    """Prompts, each for an equal share of the samples, with captions under the images. Default: no prompt, the null
    condition."""
    prompts: str | None = None
    """A text file with a prompt on each line, in place of --text. Default: no file."""
    encoder: str | None = None
    """Folder of the encoder of the prompts, by encode-text. Default: that of the run."""
    numbers: tuple[float, ...] | None = None
    """Numbers to draw samples for, of a run that is conditioned on a vector. Default: the null condition."""
    known: str | None = None
    """Inpainting: a picture of a sample's size, or an .npz with an array x. --mask marks the part to keep. Default: no
    inpainting."""
    mask: str | None = None
    """Inpainting: the part to keep, as the light half of a picture, or the nonzero part of the array mask of an .npz.
    Required with --known, no default."""
    times: int | None = None
    """Inpainting: how often RePaint repeats each step, so that the new part fits the known one; 1 only replaces.
    Default: 10."""
    ts: tuple[float, ...] | None = None
    """Times to step through instead of --steps, falling from noise (1) to data (0); moved to where the process is
    finite. Default: those of the grid."""
    seed: int = 0
    """Random seed. The same seed draws the same samples for any --n and --chunk."""
    out: str | None = None
    """Output file: .png for a picture, .npz for arrays x, labels and texts. Default: RUN/drawn.png."""


@dataclass(frozen=True)
class Evaluate(_Drawn):
    """Measure samples of a run against the held-out data, next to training data (floor) and noise (ceiling).

    Sampler, steps and guidance are those of the run unless an option changes them.

        $ diffjax evaluate runs/digits
        $ diffjax evaluate runs/digits --n 5000 --guidance 2 --sampler.name unipc --steps 10
        $ diffjax evaluate runs/digits --likelihood 32
        $ diffjax evaluate runs/shapes --guidance 5
    """

    n: int = EVALUATED
    """Number of samples to draw."""
    seed: int = 0
    """Random seed of the samples."""
    factors: str | None = None
    """Folder of the classifiers that read samples of shapes and digit_scenes; trained, a minute, where there are none.
    Default: RUN/factors."""
    accept_data: bool = False
    """Measure although the data files have changed since the run was trained."""
    likelihood: int = 0
    """Number of held-out items to compute the log density of, in nats per dimension, without guidance and threshold.
    Tens of images take a minute. Families with bounds print those, and of grey levels bits per dimension, too."""
