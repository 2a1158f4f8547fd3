"""Configurations: what a run is, as plain values; the only place where a name is a string.

    JSON <--> Config --build_data--> Data       --+
                     --build-------> Parts      --+--> the command line, or a script of yours

A `Config` is a tree of frozen dataclasses with a docstring for each field (the command line shows them). Names are
looked up in the tables here; a number left at None is the default of what the name stands for, and a number that the
name has no use for is refused.
"""

import dataclasses
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax._typing import Network
from diffjax.losses import EDMWeighting, MinSNR, constant, denoising_loss, drop_condition, likelihood, native
from diffjax.networks import MLP, UNet, from_linen
from diffjax.parameterisation import (
    AbstractParameterisation,
    EpsPrediction,
    KarrasPrediction,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)
from diffjax.process import (
    AbstractGaussianProcess,
    Cosine,
    Karras,
    LogitNormalTimes,
    LognormalTimes,
    Rectified,
    StratifiedTimes,
    UniformTimes,
    VarianceExploding,
    VariancePreserving,
    karras_grid,
    logsnr_grid,
    uniform_grid,
)
from diffjax.samplers import DDIM, AbstractStepper, DPMpp2M, Heun

PROCESSES = {
    "variance_preserving": VariancePreserving,
    "cosine": Cosine,
    "variance_exploding": VarianceExploding,
    "karras": Karras,
    "rectified": Rectified,
}
PARAMETERISATIONS = {
    "eps": EpsPrediction,
    "x0": X0Prediction,
    "score": ScorePrediction,
    "v": VPrediction,
    "velocity": VelocityPrediction,
    "karras": KarrasPrediction,
}
WEIGHTINGS = {
    "constant": constant,
    "native": native,
    "likelihood": likelihood,
    "edm": EDMWeighting,
    "min_snr": MinSNR,
}
TIMES = {
    "uniform": UniformTimes,
    "stratified": StratifiedTimes,
    "lognormal": LognormalTimes,
    "logit_normal": LogitNormalTimes,
}
STEPPERS = {"ddim": DDIM, "heun": Heun, "dpmpp2m": DPMpp2M}
GRIDS = {"uniform": uniform_grid, "karras": karras_grid, "logsnr": logsnr_grid}
TOYS = ("mixture", "two_moons", "checkerboard", "swiss_roll")


@dataclass(frozen=True)
class DataConfig:
    """What to learn from."""

    name: Literal["digits", "mixture", "two_moons", "checkerboard", "swiss_roll", "file"] = "digits"
    """8x8 handwritten digits; a density in the plane; or a file of your own."""
    path: str | None = None
    """For `file`: an .npz with x [n, ...] (floats in [-1, 1], or uint8) and, if there are classes, y [n] integers."""
    conditional: bool = True
    """Whether the network is told the class (digits, mixture, two_moons, a file with y)."""
    holdout: float = 0.2
    """Share of digits or of a file that is never trained on, but measured against."""
    holdout_seed: int = 0
    """Which items those are."""


@dataclass(frozen=True)
class ProcessConfig:
    """The forward process: how data becomes noise."""

    name: Literal["variance_preserving", "cosine", "variance_exploding", "karras", "rectified"] = "cosine"
    """Its family."""
    beta_min: float | None = None
    """variance_preserving: rate of noise at t = 0 (0.1)."""
    beta_max: float | None = None
    """variance_preserving: rate of noise at t = 1 (20)."""
    shift: float | None = None
    """cosine: added to the log signal-to-noise ratio (0)."""
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

    name: Literal["constant", "native", "likelihood", "edm", "min_snr"] = "native"
    """native: a plain mean square of what the network predicts."""
    data_std: float | None = None
    """edm: standard deviation of the data per feature (0.5)."""
    gamma: float | None = None
    """min_snr: where the weight is clipped (5)."""


@dataclass(frozen=True)
class TimesConfig:
    """Which noise levels training sees."""

    name: Literal["uniform", "stratified", "lognormal", "logit_normal"] = "stratified"
    """Their density in time; stratified is uniform, spread evenly over a batch."""
    mean: float | None = None
    """lognormal: of log(sigma/alpha) (-1.2); logit_normal: of log(t/(1-t)) (0)."""
    std: float | None = None
    """lognormal (1.2), logit_normal (1): standard deviation of the same."""


@dataclass(frozen=True)
class NetworkConfig:
    """The network."""

    name: Literal["mlp", "unet"] = "unet"
    """A perceptron for vectors, a U-Net for images."""
    channels: int = 32
    """unet: channels of the finest level."""
    multipliers: tuple[int, ...] = (1, 2)
    """unet: channels of each level, in multiples; each level halves the image."""
    blocks: int = 1
    """unet: residual blocks a level."""
    attention: tuple[int, ...] = (1,)
    """unet: levels with self-attention, 0 the finest."""
    head_channels: int = 32
    """unet: channels of an attention head."""
    width: int = 128
    """mlp: features of the hidden layers."""
    depth: int = 3
    """mlp: residual blocks."""
    dropout: float = 0.0
    """Probability of dropping a hidden feature in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32. bfloat16 is for accelerators."""


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

    name: Literal["ddim", "heun", "dpmpp2m"] = "dpmpp2m"
    """The method."""
    steps: int = 20
    """Steps; ddim and dpmpp2m evaluate the network once a step, heun twice."""
    grid: Literal["uniform", "karras", "logsnr"] = "logsnr"
    """Spacing of the steps: in time, in (sigma/alpha)^(1/rho), or in the log signal-to-noise ratio."""
    eta: float | None = None
    """ddim: noise, from 0 (none) to 1 (ancestral)."""


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


PRESETS: Mapping[str, Config] = types.MappingProxyType(
    {
        # 1,437 images of 8x8 pixels; a U-Net of two levels, told the class.
        "digits": Config(
            name="digits",
            steps=1500,
            batch_size=64,
            ema_decay=0.999,
            data=DataConfig(name="digits"),
            process=ProcessConfig(name="cosine"),
            parameterisation=ParameterisationConfig(name="v"),
            weighting=WeightingConfig(name="native"),
            times=TimesConfig(name="stratified"),
            network=NetworkConfig(name="unet", channels=32, multipliers=(1, 2), blocks=1, attention=(1,)),
            optimiser=OptimiserConfig(learning_rate=2e-3, warmup=100),
            guidance=GuidanceConfig(dropout=0.1, scale=1.5),
            sampler=SamplerConfig(name="dpmpp2m", steps=20, grid="logsnr"),
        ),
        # Points in the plane: any toy by --data.name; a minute on a laptop.
        "toy2d": Config(
            name="toy2d",
            steps=3000,
            batch_size=512,
            data=DataConfig(name="mixture", conditional=False),
            network=NetworkConfig(name="mlp", width=128, depth=3),
            optimiser=OptimiserConfig(learning_rate=2e-3),
            guidance=GuidanceConfig(dropout=0.0, scale=1.0),
        ),
    }
)


# JSON


def to_json(config: Config) -> str:
    """A configuration as JSON text; `from_json` reads it back, equal."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """A configuration from JSON text.

    Raises:
      ValueError: it is not JSON, a key is unknown or missing, or a value has the wrong type; named by its path.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"config: not JSON: {error}") from None
    return _read(Config, values, "")


def _read(hint: Any, value: Any, path: str) -> Any:
    """A value of the type that `hint` says, or a `ValueError` that names its path."""
    if dataclasses.is_dataclass(hint):
        return _read_fields(hint, value, path)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ValueError(f"{path}: one of {', '.join(get_args(hint))} is needed, got {value!r}")
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return None if value is None else _read(inner, value, path)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_read(get_args(hint)[0], item, path) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{path}: {getattr(hint, '__name__', hint)} is needed, got {value!r}")
    return value


def _read_fields(cls: Any, values: Any, path: str) -> Any:
    dot = f"{path}." if path else ""
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'config'}: an object is needed, got {values!r}")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ValueError(f"{dot}{key}: unknown key, with value {values[key]!r}")
    for key in hints:
        if key not in values:
            raise ValueError(f"{dot}{key}: missing")
    return cls(**{key: _read(hint, values[key], f"{dot}{key}") for key, hint in hints.items()})


def differences(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) wherever two configurations differ."""
    if not dataclasses.is_dataclass(a):
        return [] if a == b else [(path, a, b)]
    names = [item.name for item in dataclasses.fields(a)]
    dot = f"{path}." if path else ""
    return [found for name in names for found in differences(getattr(a, name), getattr(b, name), f"{dot}{name}")]


def check_config(config: Config) -> None:
    """Raises `ValueError` naming the first number that is out of range; what a part checks itself is left to it."""
    at_least_one = {"steps": config.steps, "batch_size": config.batch_size, "sampler.steps": config.sampler.steps}
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    for name, value in {"seed": config.seed, "optimiser.warmup": config.optimiser.warmup}.items():
        if value < 0:
            raise ValueError(f"{name}: at least 0, got {value}")
    for name, value in {"guidance.dropout": config.guidance.dropout, "optimiser.final": config.optimiser.final}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: a number in [0, 1], got {value}")
    positive = {"optimiser.learning_rate": config.optimiser.learning_rate, "optimiser.clip": config.optimiser.clip}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: a positive number, got {value}")
    if not 0 <= config.optimiser.weight_decay < math.inf:
        raise ValueError(f"optimiser.weight_decay: not negative, got {config.optimiser.weight_decay}")
    if not math.isfinite(config.guidance.scale):
        raise ValueError(f"guidance.scale: a finite number, got {config.guidance.scale}")


# Data


class Data(NamedTuple):
    """What a run learns from and is measured against."""

    source: Callable[[int, int, int], tuple[Any, Any]]
    """`(seed, step, size) -> (x0, cond)`."""
    train: tuple[Any, Any]
    """x [n, *d] and labels [n] or None: all of the training items, or fresh draws of a toy."""
    held_out: tuple[Any, Any]
    """The same, never trained on."""
    classes: int | None
    """How many the network is told of; None where it is told nothing."""
    log_prob: Callable[[Any], Any] | None
    """The exact log density in nats, where there is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.train[0].shape[1:]


def build_data(config: DataConfig) -> Data:
    """The data of a configuration.

    Raises:
      ValueError: the file cannot be read, or holds values that are not finite; or a number is out of range.
    """
    if (config.path is None) == (config.name == "file"):
        raise ValueError(f"data.path: needed for data.name file, and for that only, got {config.path}")
    if config.name in TOYS:
        return _toy(config)
    from diffjax.data import digits, from_arrays

    if config.name == "digits":
        split = {"holdout": config.holdout, "seed": config.holdout_seed}
        train, held_out = digits("train", **split), digits("test", **split)
    else:
        train, held_out = _file(config)
    if not len(held_out[0]):
        raise ValueError(f"data.holdout: nothing is held out to measure against, got {config.holdout}")
    if not config.conditional:
        train, held_out = (train[0], None), (held_out[0], None)
    return Data(from_arrays(*train), train, held_out, _classes(train[1], held_out[1]), None)


def _classes(*labels: Any) -> int | None:
    """One more than the largest label; None where there are none."""
    return None if labels[0] is None else max(int(part.max()) for part in labels) + 1


def _toy(config: DataConfig) -> Data:
    from diffjax import data

    toy = {name: getattr(data, name) for name in TOYS}[config.name]()
    source = toy if config.conditional else lambda seed, step, size: (toy(seed, step, size)[0], None)
    # Seeds that no run counts up to: what is measured against was not trained on.
    train, held_out = source(2**31, 0, 4000), source(2**31 + 1, 0, 4000)
    return Data(source, train, held_out, _classes(train[1], held_out[1]), getattr(toy, "log_prob", None))


def _file(config: DataConfig) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """(x, y) to train on and (x, y) held out, from an .npz that is read without unpickling anything."""
    path = Path(str(config.path))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays.get("y")
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"data.path: no .npz with an array x at {path}: {error}") from None
    x = (x / np.float32(127.5) - 1 if x.dtype == np.uint8 else x).astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"data.path: x in {path} holds {x[~np.isfinite(x)].flat[0]}; data must be finite")
    if y is not None and (y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or y.min() < 0):
        raise ValueError(f"data.path: y in {path} must be {len(x)} labels from 0, got {y.dtype}{list(y.shape)}")
    if x.ndim < 2 or not 0 < config.holdout < 1 or not 0 < round(config.holdout * len(x)) < len(x):
        raise ValueError(f"data.holdout: {config.holdout} leaves nothing of x {x.shape} to train on or to measure")
    order = np.random.default_rng(config.holdout_seed).permutation(len(x))
    cut = round(config.holdout * len(x))
    pick = lambda items: (x[items], None if y is None else y[items].astype(np.int32))
    return pick(np.sort(order[cut:])), pick(np.sort(order[:cut]))


# Parts


class Parts(NamedTuple):
    """The objects of a run."""

    process: AbstractGaussianProcess
    parameterisation: AbstractParameterisation
    network: Network
    tx: optax.GradientTransformation
    loss: Callable[..., Any]
    """`(params, key, (x0, cond), index, total) -> (loss, aux)`, for `make_train_step`."""
    stepper: AbstractStepper
    ts: Any
    """Descending times [n + 1] to sample on."""
    null: int | None
    """The label that says nothing, one beyond the classes; None where the network is told nothing."""


def build(config: Config, classes: int | None) -> Parts:
    """The objects of a configuration.

    Args:
      config: what to build.
      classes: how many classes the network is told of, from `Data`; None for none.

    Raises:
      ValueError: a number is out of range, or of no use to what it is given to.
    """
    check_config(config)
    process = _construct("process", PROCESSES, config.process)
    parameterisation = _construct("parameterisation", PARAMETERISATIONS, config.parameterisation)
    network = build_network(config.network, classes)
    loss = _loss(
        config.guidance.dropout,
        classes,
        network=network,
        process=process,
        parameterisation=parameterisation,
        time_sampler=_construct("times", TIMES, config.times, process),
        weighting=_construct("weighting", WEIGHTINGS, config.weighting),
    )
    tx = build_optimiser(config.optimiser, config.steps)
    stepper, ts = build_stepper(config.sampler), build_grid(config.sampler, process)
    return Parts(process, parameterisation, network, tx, loss, stepper, ts, classes)


def _construct(kind: str, table: Mapping[str, Any], config: Any, *first: Any) -> Any:
    """What a name stands for, with the numbers that are given; a plain function stands for itself."""
    found = table[config.name]
    numbers = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name != "name"}
    numbers = {name: value for name, value in numbers.items() if value is not None}
    for name, value in numbers.items():
        if name not in getattr(found, "__dataclass_fields__", {}):
            raise ValueError(f"{kind}.{name}: {config.name} has no such number, got {value}")
    return found(*first, **numbers) if isinstance(found, type) else found


def build_network(config: NetworkConfig, classes: int | None) -> Network:
    """The network of a configuration, told of `classes` classes, or of nothing where None."""
    shared = {"num_classes": classes, "dropout": config.dropout, "dtype": jnp.dtype(config.dtype)}
    if config.name == "mlp":
        return from_linen(MLP(width=config.width, depth=config.depth, **shared))
    names = ("channels", "multipliers", "blocks", "attention", "head_channels")
    return from_linen(UNet(**{name: getattr(config, name) for name in names}, **shared))


def build_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then Adam with a linear warm-up and a cosine decay over `steps` updates."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup, steps // 2),
        decay_steps=steps,
        end_value=config.final * config.learning_rate,
    )
    adam = optax.adamw(schedule, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), adam)


def build_stepper(config: SamplerConfig) -> AbstractStepper:
    """The sampling method of a configuration."""
    numbers = {} if config.eta is None else {"eta": config.eta}
    if numbers and config.name != "ddim":
        raise ValueError(f"sampler.eta: {config.name} has no such number, got {config.eta}")
    return STEPPERS[config.name](**numbers)


def build_grid(config: SamplerConfig, process: AbstractGaussianProcess, steps: int | None = None) -> Any:
    """Descending times [n + 1]; `steps` in place of the configuration's."""
    return GRIDS[config.grid](process, config.steps if steps is None else steps)


def _loss(hidden: float, null: int | None, **choices: Any) -> Callable[..., Any]:
    """The denoising loss of a batch `(x0, cond)`, with the class hidden from a share of the samples."""

    def loss(params: Any, key: Any, batch: Any, index: Any, total: int) -> tuple[Any, dict[str, Any]]:
        x0, cond = batch
        drop_key, loss_key = jax.random.split(key)
        if null is not None and hidden > 0:
            cond = drop_condition(drop_key, cond, null, hidden, index=index)
        return denoising_loss(params, loss_key, x0, cond, index=index, total=total, **choices)

    return loss
