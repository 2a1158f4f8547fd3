"""A source of batches: the contract, and the generator that all sources draw from.

Numbers come from Philox, a counter-based generator (Salmon et al. 2011), keyed by the seed and what is drawn; NumPy
promises the same stream on every machine, and so do we.
"""

from typing import Any, Protocol

import numpy as np


class Source(Protocol):
    """`source(seed, step, size) -> (x0, cond)`: a pure function with random access.

    x0 is float32 [size, *d] in NumPy. cond is [size, ...], int32 for labels, or None for data without a condition.
    """

    def __call__(self, seed: int, step: int, size: int) -> tuple[np.ndarray, Any]: ...


def generator(seed: int, *what: int) -> np.random.Generator:
    """A generator that is a function of its numbers alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *what])))


def check_position(seed: int, step: int, size: int) -> None:
    """Raises `ValueError` where the numbers name no batch."""
    for name, value, least in (("seed", seed, 0), ("step", step, 0), ("size", size, 1)):
        if value < least:
            raise ValueError(f"{name}: at least {least} is needed, got {value}")
