"""Which values of a configuration are out of range, whatever the names in it stand for."""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from diffjax._numbers import reader_of
from diffjax.config._registry import unknown

_LARGEST_SEED = 2**32 - 1  # a key is made of 32 bits
_RANGES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("steps batch_size sampler.steps network.head_channels data.image_size", "at least 1", lambda n: n >= 1),
    ("optimiser.warmup network.depth data.workers", "at least 0", lambda n: n >= 0),
    ("seed data.holdout_seed", f"a whole number in 0 .. {_LARGEST_SEED}", lambda n: 0 <= n <= _LARGEST_SEED),
    ("data.channels", "1 or 3", lambda n: n in (1, 3)),
    ("guidance.dropout optimiser.final", "a number in [0, 1]", lambda x: 0 <= x <= 1),
    ("ema_decay optimiser.beta1 optimiser.beta2 optimiser.beta2_final", "a number in [0, 1)", lambda x: 0 <= x < 1),
    ("optimiser.learning_rate optimiser.clip family.generator_rate", "a positive number", lambda x: 0 < x < math.inf),
    (
        "optimiser.weight_decay optimiser.text_rate guidance.scale",
        "a finite number, not below 0",
        lambda x: 0 <= x < math.inf,
    ),
    ("sampler.clip", "a finite number, 0 for off", lambda x: 0 <= x < math.inf),
    ("guidance.logsnr_start", "a finite number", math.isfinite),
    (
        "family.latents family.width family.depth family.blocks family.every family.updates",
        "at least 1",
        lambda n: n >= 1,
    ),
    ("family.steps", "1 to 8", lambda n: 1 <= n <= 8),
    ("family.levels", "at least 2", lambda n: n >= 2),
    ("family.warm_up family.critic_start family.gamma_final", "a number in [0, 1]", lambda x: 0 <= x <= 1),
    (
        "family.beta family.free_bits family.kl_weight family.critic_weight family.perceptual_weight "
        "family.r1 family.r2",
        "a finite number, not below 0",
        lambda x: 0 <= x < math.inf,
    ),
    ("guidance.interval", "two numbers, the first below the second", lambda x: len(x) == 2 and x[0] < x[1]),
)


def check_seed(name: str, value: int) -> None:
    """Raises `ValueError` naming a seed that is not in 0 .. 2**32 - 1."""
    if not 0 <= value <= _LARGEST_SEED:
        raise ValueError(f"{name}: a whole number in 0 .. {_LARGEST_SEED}, got {value}")


def check_config(config: object, path: str = "") -> None:
    """Raises `ValueError` naming the first unknown name, broken count or number out of range.

    What a part of a run checks itself is left to it, and types are Python's to check, or the command line's.

    Args:
      config: a `Config`, or a part of one.
      path: of the part, such as "sampler.".
    """
    _check_values(config, path)
    for names, words, fits in _RANGES:
        for name in names.split():
            value = operator.attrgetter(name.removeprefix(path))(config) if name.startswith(path) else None
            if value is not None and not fits(value):
                raise ValueError(f"{name}: {words}, got {value}")


def _check_values(config: object, path: str) -> None:
    """Names and counts, which would pass without a message."""
    for name, hint in get_type_hints(type(config)).items():
        value, place = getattr(config, name), f"{path}{name}"
        if dataclasses.is_dataclass(value):
            _check_values(value, f"{place}.")
        elif get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise ValueError(unknown(place, value, get_args(hint)))
        elif read := reader_of(hint):
            read(place, value)
