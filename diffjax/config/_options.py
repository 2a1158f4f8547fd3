"""What a run is, as plain values: a tree of frozen dataclasses.

Every field has a docstring, which the command line shows. A number left at None is the default of what the name beside
it stands for.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """What to learn from."""

    name: Literal[
        "digits",
        "mixture",
        "two_moons",
        "checkerboard",
        "swiss_roll",
        "file",
        "image_folder",
        "mnist",
        "cifar10",
    ] = "digits"
    """8x8 handwritten digits; a density in the plane; or files of your own."""
    path: str | None = None
    """file: an .npz with x [n, ...] (floats in [-1, 1], or uint8) and, if there are classes, y [n] integers.
    image_folder: a folder or zip with a folder of images for each class; train and test (or val) may stand above them.
    Links are followed, transparent parts laid on white, 16 bits a channel refused.
    mnist: the folder of its idx files. cifar10: the folder or .tar.gz of its binary version, or its images in folders.
    """
    conditional: bool = True
    """Whether the network is told the class, where there is one."""
    image_size: int | None = None
    """image_folder: pixels a side; the shorter side is scaled to it and the middle cut out. None: as they are."""
    flip: bool = False
    """Whether images are mirrored at random, left to right."""
    workers: int = 0
    """Processes that read and decode; the batches are the same for any number. 0 is enough for arrays in memory."""
    holdout: float = 0.2
    """Share that is never trained on, but measured against; of no use where the files have a test part."""
    holdout_seed: int = 0
    """Which items those are."""
    channels: int | None = None
    """image_folder: 3 (colours) or 1 (grey); 3 by default."""
    skip_bad: bool = False
    """Images in folders that cannot be read are counted, and the next one taken instead; else they end the run."""


@dataclass(frozen=True)
class ProcessConfig:
    """The forward process: how data becomes noise."""

    name: Literal[
        "variance_preserving",
        "sub_vp",
        "cosine",
        "offset_cosine",
        "ornstein_uhlenbeck",
        "variance_exploding",
        "variance_exploding_from_zero",
        "karras",
        "rectified",
        "polynomial",
    ] = "cosine"
    """Its family."""
    beta_min: float | None = None
    """variance_preserving, sub_vp: rate of noise at t = 0 (0.1)."""
    beta_max: float | None = None
    """variance_preserving, sub_vp: rate of noise at t = 1 (20)."""
    shift: float | None = None
    """cosine: added to the log signal-to-noise ratio (0)."""
    offset: float | None = None
    """offset_cosine: of the time (0.008)."""
    horizon: float | None = None
    """ornstein_uhlenbeck: how many relaxation times the clock spans (5)."""
    power: float | None = None
    """polynomial: alpha is (1 - t)^power (2)."""
    sigma_min: float | None = None
    """variance_exploding (0.01), karras (0.002): the least noise."""
    sigma_max: float | None = None
    """variance_exploding (50), karras (80): the most noise."""
    rho: float | None = None
    """karras: how its clock is bent (7)."""


@dataclass(frozen=True)
class ParameterisationConfig:
    """What the network predicts."""

    name: Literal["eps", "x0", "score", "v", "velocity", "karras"] = "v"
    """The noise, the data, a mixture of both, or EDM's preconditioned F."""
    data_std: float | None = None
    """karras: standard deviation of the data per feature (0.5)."""


@dataclass(frozen=True)
class WeightingConfig:
    """How much each noise level counts, stated on the loss of the noise."""

    name: Literal[
        "constant",
        "native",
        "on_x0",
        "on_score",
        "on_v",
        "flow_matching",
        "likelihood",
        "edm",
        "min_snr",
        "soft_min_snr",
        "sigmoid",
        "p2",
    ] = "native"
    """native: a plain mean square of what the network predicts."""
    data_std: float | None = None
    """edm: standard deviation of the data per feature (0.5)."""
    gamma: float | None = None
    """min_snr: where the weight is clipped (5); soft_min_snr: where it bends (4); p2: its power (1)."""
    bias: float | None = None
    """sigmoid: the logsnr at which the weight is one half (0)."""
    k: float | None = None
    """p2: bounds the weight on noise, at k^-gamma (1)."""


@dataclass(frozen=True)
class TimesConfig:
    """Which noise levels training sees."""

    name: Literal["uniform", "stratified", "low_discrepancy", "lognormal", "logit_normal", "mode", "logsnr"] = (
        "stratified"
    )
    """Their density in time; stratified and low_discrepancy are uniform, spread evenly over a batch; logsnr is uniform
    in the log signal-to-noise ratio."""
    mean: float | None = None
    """lognormal: of log(sigma/alpha) (-1.2); logit_normal: of log(t/(1-t)) (0)."""
    std: float | None = None
    """lognormal (1.2), logit_normal (1): standard deviation of the same."""
    scale: float | None = None
    """mode: towards the middle (positive) or the ends (1.29)."""


@dataclass(frozen=True)
class NetworkConfig:
    """The network."""

    name: Literal["mlp", "unet", "ddpm", "ddpmpp", "ncsnpp", "adm", "edm2", "dit", "uvit"] = "unet"
    """mlp: a perceptron for vectors. For images: a U-Net, that of a paper, or a transformer."""
    channels: int = 32
    """U-Nets: channels of the finest level."""
    multipliers: tuple[int, ...] = (1, 2)
    """U-Nets: channels of each level, in multiples; each level halves the image."""
    blocks: int = 1
    """U-Nets: residual blocks a level."""
    attention: tuple[int, ...] = (1,)
    """U-Nets: levels with self-attention, 0 the finest."""
    head_channels: int = 32
    """unet, adm, edm2: channels of an attention head."""
    width: int = 128
    """mlp, dit, uvit: features of the hidden layers."""
    depth: int = 3
    """mlp, dit, uvit: residual blocks."""
    heads: int = 4
    """dit, uvit: heads of attention."""
    patch: int = 2
    """dit, uvit: pixels along a side of a patch."""
    scan: bool = False
    """mlp, dit, uvit: compile one block, not each of them; for deep networks on accelerators."""
    dropout: float = 0.0
    """Probability of dropping a hidden feature in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32. bfloat16 is for accelerators."""
    remat: bool = False
    """Compute blocks again in the backward pass instead of keeping them: less memory, about a third more time. For
    accelerators; on CPU the compiler undoes it."""


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam with decoupled weight decay, a warm-up and a cosine decay."""

    learning_rate: float = 1e-3
    """At its highest, after the warm-up."""
    warmup: int = 200
    """Steps of linear warm-up; half the run at most."""
    final: float = 0.0
    """Learning rate of the last step, as a share of the highest."""
    clip: float = 1.0
    """Largest norm of a gradient; longer ones are scaled down to it."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""


@dataclass(frozen=True)
class GuidanceConfig:
    """Classifier-free guidance; only where the network is told the class."""

    dropout: float = 0.1
    """Share of training samples whose class is hidden."""
    scale: float = 1.5
    """Of sampling: 1 is none, more follows the class more and varies less."""


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are drawn, unless asked otherwise."""

    name: Literal[
        "ddim",
        "euler",
        "heun",
        "dpm_solver2",
        "dpm_solver3",
        "dpmpp2s",
        "dpmpp2m",
        "dpmpp3m",
        "unipc",
        "deis",
        "lms",
        "ipndm",
        "ddpm",
        "dpm2_ancestral",
        "dpmpp2s_ancestral",
        "sde_dpmpp2m",
        "sde_dpmpp3m",
        "dpmpp_sde",
        "sa_solver",
        "seeds2",
        "seeds3",
        "churn",
        "predictor_corrector",
    ] = "dpmpp2m"
    """The method."""
    steps: int = 20
    """Steps; most methods evaluate the network once in each, heun, seeds2 and the 2s and dpm ones 2 or 3 times."""
    grid: Literal["uniform", "quadratic", "karras", "logsnr", "snr", "shifted"] = "logsnr"
    """Spacing of the steps: in time or its root, in (sigma/alpha)^(1/rho), in the log signal-to-noise ratio, ..."""
    eta: float | None = None
    """Noise of the methods that have it, such as ddim: from 0 (none) to 1 (all of the method's own)."""


@dataclass(frozen=True)
class Config:
    """All that decides what a run learns."""

    name: str = "digits"
    """Of the run; its folder is runs/NAME unless you name another."""
    steps: int = 3000
    """Updates of the parameters."""
    batch_size: int = 128
    """Samples in each, over all devices."""
    seed: int = 0
    """Of the initial parameters, the order of the data and the noise."""
    ema_decay: float = 0.999
    """Of the moving average of parameters that samples are drawn with."""
    ema_widths: tuple[float, ...] = ()
    """Of averages by power functions beside it, such as 0.05 0.1 (shares of the run): their snapshots make an average
    of any width afterwards, for sample and evaluate --ema-width."""
    data: DataConfig = field(default_factory=DataConfig)
    """What to learn from."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    """How data becomes noise."""
    parameterisation: ParameterisationConfig = field(default_factory=ParameterisationConfig)
    """What the network predicts."""
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    """How much each noise level counts."""
    times: TimesConfig = field(default_factory=TimesConfig)
    """Which noise levels training sees."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """What learns."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How it learns."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Following the class."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How samples are drawn."""
