"""Which numbers of a configuration are out of range, whatever the names in it stand for."""

import math

from diffjax.config._options import Config

_LARGEST_SEED = 2**32 - 1  # a key is made of 32 bits


def check_seed(name: str, value: int) -> None:
    """Raises `ValueError` naming a seed that is not in 0 .. 2**32 - 1."""
    if not 0 <= value <= _LARGEST_SEED:
        raise ValueError(f"{name}: a whole number in 0 .. {_LARGEST_SEED}, got {value}")


def check_config(config: Config) -> None:
    """Raises `ValueError` naming the first number that is out of range; what a part checks itself is left to it."""
    at_least_one = {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "sampler.steps": config.sampler.steps,
        "network.head_channels": config.network.head_channels,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    for name, value in {"seed": config.seed, "data.holdout_seed": config.data.holdout_seed}.items():
        check_seed(name, value)
    not_negative = {"optimiser.warmup": config.optimiser.warmup, "network.depth": config.network.depth}
    for name, value in not_negative.items():
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
    if not 0 <= config.guidance.scale < math.inf:
        raise ValueError(f"guidance.scale: a finite number, not below 0, got {config.guidance.scale}")
