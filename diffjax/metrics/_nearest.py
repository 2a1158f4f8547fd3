"""Distance from each sample to its nearest neighbour in a reference set: small where a sample is a copy.

|x - r|^2 = |x|^2 - 2 x'r + |r|^2 finds the neighbour by matrix products; it loses the digits of a small distance, so
the distance to the neighbour found is then taken from the difference itself.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from diffjax._numbers import checked_numbers
from diffjax.metrics._features import as_features


@checked_numbers
def nearest_distances(
    x: Shaped[Any, "n *d"], reference: Shaped[Any, "m *e"], *, block: int = 1024
) -> Float[np.ndarray, " n"]:
    """min_j |x_i - reference_j|, Euclidean over flattened features, [n] in float64; 0 for an exact copy.

    >>> import numpy as np
    >>> from diffjax import metrics
    >>> metrics.nearest_distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [6.0, 8.0]]))
    array([5.])

    Args:
      x: [n, *d].
      reference: [m, *e], e as d.
      block: rows of each taken at a time; memory is O(block^2 + block d).

    Raises:
      ValueError: different features, an empty reference, or block below 1.
    """
    x, reference = as_features("x", x), as_features("reference", reference)
    shape, other = x.shape, reference.shape
    if shape[1:] != other[1:] or not other[0]:
        raise ValueError(f"reference: items with the features of x {shape} are needed, got shape {other}")
    if block < 1:
        raise ValueError(f"block: at least 1 is needed, got {block}")
    flat, reference = (z.reshape(len(z), -1) for z in (x, reference))
    blocks = [_nearest_in(flat[i : i + block].astype(np.float64), reference, block) for i in range(0, len(flat), block)]
    return np.concatenate(blocks) if blocks else np.empty(0)


def _nearest_in(x: np.ndarray, reference: np.ndarray, block: int) -> np.ndarray:
    best = np.full(len(x), np.inf)
    for start in range(0, len(reference), block):
        part = reference[start : start + block].astype(np.float64)
        found = part[np.argmin(np.sum(part**2, axis=1) - 2 * x @ part.T, axis=1)]  # |x|^2 is the same for all
        best = np.minimum(best, np.linalg.norm(x - found, axis=1))
    return best
