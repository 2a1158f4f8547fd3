"""What each name in a configuration stands for, and the numbers that it takes.

{name: "karras", sigma_max: 20} --construct--> Karras(sigma_max=20)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffjax.losses import EDMWeighting, MinSNR, constant, likelihood, native
from diffjax.parameterisation import (
    EpsPrediction,
    KarrasPrediction,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)
from diffjax.process import (
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
from diffjax.samplers import DDIM, DPMpp2M, Heun

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


def construct(kind: str, table: Mapping[str, Any], config: Any, *first: Any) -> Any:
    """What a name stands for, with the numbers that are given; a plain function stands for itself."""
    found = table[config.name]
    numbers = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name != "name"}
    numbers = {name: value for name, value in numbers.items() if value is not None}
    for name, value in numbers.items():
        if name not in getattr(found, "__dataclass_fields__", {}):
            raise ValueError(f"{kind}.{name}: {config.name} has no such number, got {value}")
    return found(*first, **numbers) if isinstance(found, type) else found
