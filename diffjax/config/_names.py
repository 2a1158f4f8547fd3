"""What each name in a configuration stands for, and the numbers that it takes.

{name: "karras", sigma_max: 20} --construct--> Karras(sigma_max=20)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffjax.losses import (
    P2,
    EDMWeighting,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    constant,
    flow_matching,
    likelihood,
    native,
    on_score,
    on_v,
    on_x0,
)
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
    LogsnrTimes,
    LowDiscrepancyTimes,
    ModeTimes,
    OffsetCosine,
    OrnsteinUhlenbeck,
    Polynomial,
    Rectified,
    StratifiedTimes,
    SubVP,
    UniformTimes,
    VarianceExploding,
    VarianceExplodingFromZero,
    VariancePreserving,
    karras_grid,
    logsnr_grid,
    quadratic_grid,
    shifted_grid,
    snr_grid,
    uniform_grid,
)
from diffjax.samplers import (
    DDIM,
    DDPM,
    DEIS,
    IPNDM,
    LMS,
    SEEDS2,
    SEEDS3,
    Churn,
    DPM2Ancestral,
    DPMpp2M,
    DPMpp2S,
    DPMpp2SAncestral,
    DPMpp3M,
    DPMppSDE,
    DPMSolver,
    Euler,
    ExponentialAdams,
    Heun,
    PredictorCorrector,
    SDEDPMpp2M,
    SDEDPMpp3M,
    UniPC,
)

PROCESSES = {
    "variance_preserving": VariancePreserving,
    "sub_vp": SubVP,
    "cosine": Cosine,
    "offset_cosine": OffsetCosine,
    "ornstein_uhlenbeck": OrnsteinUhlenbeck,
    "variance_exploding": VarianceExploding,
    "variance_exploding_from_zero": VarianceExplodingFromZero,
    "karras": Karras,
    "rectified": Rectified,
    "polynomial": Polynomial,
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
    "on_x0": on_x0,
    "on_score": on_score,
    "on_v": on_v,
    "flow_matching": flow_matching,
    "likelihood": likelihood,
    "edm": EDMWeighting,
    "min_snr": MinSNR,
    "soft_min_snr": SoftMinSNR,
    "sigmoid": Sigmoid,
    "p2": P2,
}
TIMES = {
    "uniform": UniformTimes,
    "stratified": StratifiedTimes,
    "low_discrepancy": LowDiscrepancyTimes,
    "lognormal": LognormalTimes,
    "logit_normal": LogitNormalTimes,
    "mode": ModeTimes,
    "logsnr": LogsnrTimes,
}
STEPPERS = {
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpm_solver2": DPMSolver,
    "dpm_solver3": lambda: DPMSolver(3),
    "dpmpp2s": DPMpp2S,
    "dpmpp2m": DPMpp2M,
    "dpmpp3m": DPMpp3M,
    "unipc": UniPC,
    "deis": DEIS,
    "lms": LMS,
    "ipndm": IPNDM,
    "ddpm": DDPM,
    "dpm2_ancestral": DPM2Ancestral,
    "dpmpp2s_ancestral": DPMpp2SAncestral,
    "sde_dpmpp2m": SDEDPMpp2M,
    "sde_dpmpp3m": SDEDPMpp3M,
    "dpmpp_sde": DPMppSDE,
    "sa_solver": lambda: ExponentialAdams(X0Prediction(), 3, corrector=True, eta=1.0),
    "seeds2": SEEDS2,
    "seeds3": SEEDS3,
    "churn": lambda: Churn(10.0),
    "predictor_corrector": lambda: PredictorCorrector(DDIM(eta=1.0)),
}
GRIDS = {
    "uniform": uniform_grid,
    "quadratic": quadratic_grid,
    "karras": karras_grid,
    "logsnr": logsnr_grid,
    "snr": snr_grid,
    "shifted": shifted_grid,
}


def construct(kind: str, table: Mapping[str, Any], config: Any, *first: Any) -> Any:
    """What a name stands for, with the numbers that are given; a plain function stands for itself."""
    found = table[config.name]
    numbers = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name != "name"}
    numbers = {name: value for name, value in numbers.items() if value is not None}
    for name, value in numbers.items():
        if name not in getattr(found, "__dataclass_fields__", {}):
            raise ValueError(f"{kind}.{name}: {config.name} has no such number, got {value}")
    return found(*first, **numbers) if isinstance(found, type) else found
