"""What all metrics take: an array of real numbers, a row an item."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_features(name: str, value: Any) -> np.ndarray:
    """Features as an array [n, ...] on the host, in their dtype.

    Raises:
      ValueError: they are no array of real numbers with a row for each item, such as `FeatureStatistics`.
    """
    got = type(value).__name__
    try:
        if not hasattr(value, "_fields"):  # a NamedTuple
            found = np.asarray(value)
            got = f"{found.dtype} of shape {found.shape}"
            real = jnp.issubdtype(found.dtype, jnp.integer) or jnp.issubdtype(found.dtype, jnp.floating)
            if found.ndim and (real or found.dtype == bool):
                return found
    except jax.errors.TracerArrayConversionError:
        raise
    except (TypeError, ValueError):  # rows of different lengths, keys
        pass
    hint = "; `frechet_distance` and `merge` take feature statistics" if got == "FeatureStatistics" else ""
    raise ValueError(f"{name}: an array of real numbers [n, ...], a row an item, is needed, got {got}{hint}")
