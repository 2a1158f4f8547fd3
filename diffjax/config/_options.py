"""What a run is, as plain values: a tree of frozen dataclasses.

Every field has a docstring, which the command line shows. The names that a field may have come from a table, and with
them the numbers of their rows: a number left at None is the default of what the name stands for.
"""

from dataclasses import dataclass
from typing import Literal

from diffjax.config import _names as names
from diffjax.config._registry import optional, options


@options(name=names.FAMILIES)
@dataclass(frozen=True)
class FamilyConfig:
    """The kind of model."""

    name: str = "diffusion"
    """The family. Families other than diffusion take the options of data, optimiser and family; those of process,
    parameterisation, weighting, times, loss, network, guidance and sampler are refused with them."""
    likelihood: Literal["gaussian", "logistic", "bernoulli"] = "gaussian"
    """What a decoder's numbers mean. gaussian: a density, with one learned standard deviation. logistic: probabilities
    of --family.levels grey levels, so that the bound is in bits per dimension. bernoulli: those of data that are -1 or
    1."""
    perceptual: str | None = None
    """The folder of a classifier, written by scripts/train_classifier.py, whose features an autoencoder's
    reconstructions are to share with the data; by default there is no such term."""
    loss: Literal["non_saturating", "hinge", "relativistic"] = "non_saturating"
    """The loss of a GAN. non_saturating: logistic. hinge: with spectral norm in the discriminator. relativistic: each
    sample against an item of data (R3GAN)."""


@options(name=names.DATA, common=("text",))
@dataclass(frozen=True)
class DataConfig:
    """Training data."""

    name: str = "digits"
    """The data set: one that comes with the package, a density in the plane, or files of yours."""
    path: str | None = None
    """The file or folder to read; required where it is used, no default. Symbolic links are followed. Transparent
    parts of images become white; images of 16 bits a channel are refused."""
    conditional: bool = True
    """Train a conditional network, if the data have labels, or numbers in their place."""
    flip: bool = False
    """Mirror images left to right at random."""
    workers: int = 0
    """Processes that read and decode items (needs the extra "data"); 0 reads them in the main process, which is enough
    for arrays in memory. Batches are the same for any number."""
    holdout: float = 0.2
    """Share of the items held out for evaluation; ignored if the files come with a test part."""
    holdout_seed: int = 0
    """Seed of the split into training and held-out items."""
    skip_bad: bool = False
    """Skip images that cannot be decoded, and count them; otherwise the first one ends the run."""
    text: str | None = None
    """Folder of encoded captions, by `diffjax encode-text`: the network is conditioned on the text. Images in folders
    need a metadata.jsonl then. Default: no text."""
    text_encoder: Literal["frozen", "joint"] = "frozen"
    """What becomes of the encoder of --data.text. frozen: its embeddings are read from there. joint: it starts as it is
    there, and is trained with the network, a part of the run's parameters; so is its whitening, where it has one."""
    text_field: str = "text"
    """Field of metadata.jsonl that holds an image's caption."""


@options(name=names.PROCESSES, common=("logsnr_min", "logsnr_max"))
@dataclass(frozen=True)
class ProcessConfig:
    """The forward process: how data becomes noise."""

    name: str = "cosine"
    """The noise schedule."""
    logsnr_min: float | None = None
    """Lowest log signal-to-noise ratio (most noise) of training and sampling. Default: that of the process, but at
    least -20; -10 if eps or score is predicted, because errors of x0_hat grow as e^(-logsnr/2) there. Chains take
    none: their betas determine it. learned_logsnr, monotone_logsnr: the value before training, -5 by default."""
    logsnr_max: float | None = None
    """Highest log signal-to-noise ratio (least noise). Default: that of the process, but not above 20; 10 if eps or
    score is predicted. learned_logsnr, monotone_logsnr: the value before training, 13.3 by default."""
    zero_terminal_snr: bool = False
    """Change the betas so that the last step leaves no signal (Lin et al. 2023)."""


@options(name=names.PARAMETERISATIONS)
@dataclass(frozen=True)
class ParameterisationConfig:
    """What the network predicts."""

    name: str = "v"
    """The target of the network: noise, data, or a combination of both."""
    clock: Literal["logsnr", "angle"] = "logsnr"
    """The network's noise-level input. logsnr: -1/8 of the log signal-to-noise ratio. angle: atan2(sigma, data_std
    alpha), whose time derivative is bounded."""


@options(name=names.WEIGHTINGS)
@dataclass(frozen=True)
class WeightingConfig:
    """Loss weight of each noise level, on the squared error of eps."""

    name: str = "native"
    """The weight w; lambda is the log signal-to-noise ratio, snr = e^lambda."""


@options(name=names.LOSSES)
@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    name: str = "denoising"
    """The loss."""


@options(name=names.DISTILLERS, hidden=("least",))
@dataclass(frozen=True)
class DistillConfig:
    """How the student learns from its teacher."""

    name: str = "progressive"
    """The loss. mean_flow and continuous_consistency need a teacher trained with --parameterisation.clock angle."""


@options(name=names.TIMES)
@dataclass(frozen=True)
class TimesConfig:
    """Distribution of the training times t."""

    name: str = "stratified"
    """The distribution."""


@options(name=names.NETWORKS, hidden=("num_classes", "text_width", "out_channels"))
@dataclass(frozen=True)
class NetworkConfig:
    """Network architecture."""

    name: str = "unet"
    """The architecture: mlp for vectors, the others for images."""
    channels: tuple[int, ...] = (32, 64)
    """Channels of each level, the finest first; each level after the first halves the image."""
    blocks: int = 1
    """Residual blocks per level."""
    attention: tuple[int, ...] = (1,)
    """Levels with self-attention; 0 is the finest."""
    head_channels: int = 32
    """Channels per attention head."""
    width: int = 128
    """Features of the hidden layers (mlp) or of a token."""
    depth: int = 3
    """Residual or transformer blocks."""
    heads: int = 4
    """Attention heads."""
    patch: int = 2
    """Side of a patch in pixels."""
    scan: bool = False
    """Compile one block instead of all of them, for deep networks on accelerators."""
    dropout: float = 0.0
    """Dropout probability in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters stay float32. bfloat16 is meant for accelerators."""
    remat: bool = False
    """Recompute blocks in the backward pass instead of storing their activations: less memory, about a third more time
    on accelerators, no effect on CPU."""


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay of the learning rate."""

    learning_rate: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    warmup: int = 200
    """Steps of linear warm-up; at most half the run."""
    final: float = 0.0
    """Learning rate of the last step, as a fraction of the peak."""
    clip: float = 1.0
    """Largest global norm of the gradient; a longer gradient is scaled down to it."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW's)."""
    beta1: float = 0.9
    """Decay of the average of gradients; 0 or 0.5 for GANs."""
    beta2: float = 0.999
    """Decay of the average of squared gradients."""
    beta2_final: float | None = None
    """beta2 at the last step, approached along a cosine. Default: it stays."""
    text_rate: float = 1.0
    """Learning rate of a text encoder that is trained with the network, as a multiple of the network's."""


@options(name=names.GUIDANCES)
@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, for class-conditional networks."""

    name: str = "cfg"
    """The rule that combines cond, the estimate of x0 for the class, and uncond, the one for no class."""
    scale: float = 1.5
    """Guidance scale: 1 is none; larger values follow the class more closely and vary less."""
    interval: tuple[float, float] | None = None
    """Guide only while the log signal-to-noise ratio lies between these two; it rises from about -10 to 10 in sampling.
    Default: always."""
    logsnr_start: float | None = None
    """Zero velocity, and no evaluation, below this log signal-to-noise ratio: CFG-Zero*'s zero-init. Default: off."""


@dataclass(frozen=True)
class GuidanceConfig(Guidance):
    """Classifier-free guidance, for class-conditional networks."""

    dropout: float = 0.1
    """Probability of replacing the class by the null label in training, so that the network also learns uncond."""


@options(name=names.STEPPERS, grid=names.GRIDS, threshold=names.THRESHOLDS)
@dataclass(frozen=True)
class SamplerConfig:
    """The sampler of the pictures and measures that training ends with, and the default of `diffjax sample`."""

    name: str = "dpmpp2m"
    """The method. Order n: the error falls as steps^-n; weak order: the error of the samples' law."""
    steps: int = 20
    """Number of steps. Most methods evaluate the network once per step, some two or three times."""
    grid: str = "logsnr"
    """The times t between the steps, n steps from noise to data."""
    clip: float | None = None
    """Bound of the threshold on x0_hat: the data lie in [-clip, clip]; 0 is no threshold. Default: 1 for images; for
    vectors, the largest absolute value of the data if eps or score is predicted, otherwise 0."""
    threshold: str = "static"
    """How x0_hat is kept within [-clip, clip] in each step."""


@optional
@dataclass(frozen=True)
class OtherSampler(SamplerConfig):
    """Changes to the sampler of the run. A new method, grid or threshold starts from its own default numbers."""

    steps: tuple[int, ...] = ()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Number of steps; several, to compare them."""


@optional
@dataclass(frozen=True)
class OtherGuidance(Guidance):
    """Changes to the guidance of the run. A new rule starts from its own default numbers."""


@dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    name: str = "digits"
    """Name of the run, whose default folder is runs/NAME."""
    steps: int = 3000
    """Optimiser steps."""
    batch_size: int = 128
    """Batch size, summed over all devices."""
    seed: int = 0
    """Random seed of the initial parameters, the order of the data and the noise."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the parameters, which sampling uses."""
    ema_widths: tuple[float, ...] = ()
    """Widths of power-function averages kept in addition, such as 0.05 0.1 (relative to the length of the run). From
    their snapshots `diffjax sample` and `evaluate` make an average of any width, by --ema-width."""
    teacher: str | None = None
    """Folder of the run that is distilled, relative to the folder of this run; `diffjax distill` sets it. Default: no
    teacher."""
    data: DataConfig = DataConfig()
    process: ProcessConfig = ProcessConfig()
    parameterisation: ParameterisationConfig = ParameterisationConfig()
    weighting: WeightingConfig = WeightingConfig()
    times: TimesConfig = TimesConfig()
    loss: LossConfig = LossConfig()
    network: NetworkConfig = NetworkConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    sampler: SamplerConfig = SamplerConfig()
    family: FamilyConfig = FamilyConfig()
