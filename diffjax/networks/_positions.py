"""Where a patch is: waves that are added to it, or a rotation of its query and key.

    waves     [sin(c f), cos(c f), sin(r f), cos(r f)],  f_i = 10000^(-4i/width)     at column c and row r, both from 0
    rotation  pairs (x_i, x_{i + k/2}) turn by r f_i (first half of the pairs) or c f_i, f_i = base^(-4i/k); the angle
              between a query and a key then depends on the distance between them alone

Source: Vaswani et al. 2017, section 3.5, and Peebles & Xie 2023; Su et al. 2021, eq. 34, on two axes as in Heo et al.
2024, section 3.2. All of it is NumPy in float64 until it meets an array.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers


def wave_positions(rows: int, columns: int, width: int, position_range: int | None = None) -> np.ndarray:
    """[rows x columns, width] float64, width a multiple of 4; the patches stand in rows.

    Args:
      rows, columns: of patches.
      width: features.
      position_range: positions run over 0 .. position_range however many patches there are; None counts the patches.
    """
    axes = [np.arange(n) * (1 if position_range is None else position_range / n) for n in (rows, columns)]
    r, c = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    f = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    return np.concatenate([wave(np.outer(at, f)) for at in (c, r) for wave in (np.sin, np.cos)], axis=1)


@checked_numbers
def rotation_angles(rows: int, columns: int, features: int, base: float) -> np.ndarray:
    """[rows x columns, features/2] float64, features of a head being a multiple of 4."""
    r, c = (axis.ravel() for axis in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    f = base ** (-np.arange(features // 4) / (features // 4))
    return np.concatenate([np.outer(r, f), np.outer(c, f)], axis=1)


def rotate(x: Float[Array, "b n h k"], angles: Float[Array, "n k2"]) -> Float[Array, "b n h k"]:
    """x [b, n, heads, k], each token turned by its angles [n, k/2]; in x's dtype."""
    cos, sin = (wave(angles)[:, None].astype(x.dtype) for wave in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
