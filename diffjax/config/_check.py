"""Which numbers of a configuration are out of range, whatever the names in it stand for."""

import math

from diffjax.config._options import Config


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
