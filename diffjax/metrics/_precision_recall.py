"""Fidelity and coverage apart, by nearest neighbours in a space of features.

    B(c) = the ball around c with radius its distance to the k-th nearest other point of its own set

    precision = share of x in some B(reference)               density  = mean over x of #{B(reference) it is in}/k
    recall    = share of reference in some B(x)               coverage = share of B(reference) with an x in it

Precision falls where samples are unlike data, recall where part of the data is not sampled. One outlier's ball is
large: density counts balls instead of asking for one, and coverage takes no ball of a sample. Distances come from
matrix products of centred features in float64; points on a ball's edge, up to rounding, are in it.

Source: Kynkaanniemi et al. 2019 (Improved precision and recall metric), eqs. 1-2; Naeem et al. 2020 (Reliable fidelity
and diversity metrics), eqs. 3-4.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from diffjax._numbers import checked_numbers
from diffjax.metrics._features import as_features

EDGE = 1e-11
"""Rounding of a squared distance, in units of the largest squared norm."""


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """density: about 1 for equal densities, and may be more; coverage: a share in [0, 1]."""

    density: float
    coverage: float


@checked_numbers
def precision_recall(
    x: Shaped[Any, "n *d"], reference: Shaped[Any, "m *e"], *, k: int = 3, block: int = 1024
) -> PrecisionRecall:
    """Improved precision and recall of samples x [n, *d] against a reference [m, *e], both scalars in [0, 1].

    >>> import numpy as np
    >>> from diffjax import metrics
    >>> data = np.random.default_rng(0).normal(size=(200, 2))
    >>> metrics.precision_recall(data[:100], data)  # half of the data, and no others
    PrecisionRecall(precision=1.0, recall=0.965)

    Args:
      x: features of samples, [n, *d], flattened. Take as many as of the reference: the balls shrink as a set grows.
      reference: features of data, [m, *e], e as d.
      k: which neighbour gives the radius; the paper has 3.
      block: rows of each taken at a time; memory is O(block^2 + (n + m) d).

    Raises:
      ValueError: different features, values that are not finite, not more than k rows, or k or block below 1.

    Source: Kynkaanniemi et al. 2019, eqs. 1-2.
    """
    x, reference = _prepare(x, reference, {"x": k, "reference": k}, k, block)
    fidelity, _ = _count(x, reference, _radii(reference, k, block), block)
    coverage, _ = _count(reference, x, _radii(x, k, block), block)
    return PrecisionRecall(float(np.mean(fidelity > 0)), float(np.mean(coverage > 0)))


@checked_numbers
def density_coverage(
    x: Shaped[Any, "n *d"], reference: Shaped[Any, "m *e"], *, k: int = 5, block: int = 1024
) -> DensityCoverage:
    """Density and coverage of samples x [n, *d] against a reference [m, *e], both scalars.

    For x as the reference the expected coverage is 1 - (1/2)^k as both grow (0.97 at k = 5), and the density 1.

    >>> import numpy as np
    >>> from diffjax import metrics
    >>> data = np.random.default_rng(0).normal(size=(200, 2))
    >>> metrics.density_coverage(data + 100.0, data)  # far from the data
    DensityCoverage(density=0.0, coverage=0.0)

    Args:
      x: features of samples, [n, *d], flattened.
      reference: features of data, [m, *e], e as d.
      k: which neighbour gives the radius; the paper has 5.
      block: rows of each taken at a time; memory is O(block^2 + (n + m) d).

    Raises:
      ValueError: different features, values that are not finite, no x, not more than k of the reference, or k or block
        below 1.

    Source: Naeem et al. 2020, eqs. 3-4.
    """
    x, reference = _prepare(x, reference, {"x": 0, "reference": k}, k, block)
    balls, filled = _count(x, reference, _radii(reference, k, block), block)
    return DensityCoverage(float(np.mean(balls)) / k, float(np.mean(filled)))


def _prepare(x: Any, reference: Any, more_than: dict[str, int], k: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Both flattened, in float64, about the reference's mean: small norms keep the digits of small distances."""
    x, reference = as_features("x", x), as_features("reference", reference)
    shape, other = x.shape, reference.shape
    if shape[1:] != other[1:]:
        raise ValueError(f"reference: items with the features of x {shape} are needed, got shape {other}")
    for name, value in {"k": k, "block": block}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1 is needed, got {value}")
    parts = {}
    for name, value in {"x": x, "reference": reference}.items():
        if len(value) <= more_than[name]:
            raise ValueError(f"{name}: more than {more_than[name]} rows are needed for k = {k}, got {len(value)}")
        parts[name] = value.astype(np.float64).reshape(len(value), -1)
        if not np.isfinite(parts[name]).all():
            raise ValueError(f"{name}: {np.sum(~np.isfinite(parts[name]))} values are not finite")
    centre = parts["reference"].mean(axis=0)
    return parts["x"] - centre, parts["reference"] - centre


def _blocks(rows: int, block: int) -> Iterator[slice]:
    return (slice(start, start + block) for start in range(0, rows, block))


def _squares(a: Float[np.ndarray, "p d"], b: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "p q"]:
    return np.sum(a**2, axis=1)[:, None] - 2 * a @ b.T + np.sum(b**2, axis=1)


def _radii(points: Float[np.ndarray, "n d"], k: int, block: int) -> Float[np.ndarray, " n"]:
    """Squared distance to the k-th nearest other point."""
    radii = []
    for rows in _blocks(len(points), block):
        nearest = np.full((len(points[rows]), k + 1), np.inf)  # the point itself is among them
        for columns in _blocks(len(points), block):
            seen = np.concatenate([nearest, _squares(points[rows], points[columns])], axis=1)
            nearest = np.partition(seen, k, axis=1)[:, : k + 1]
        radii.append(nearest.max(axis=1))
    return np.concatenate(radii)


def _count(
    x: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], radii: Float[np.ndarray, " m"], block: int
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " m"]]:
    """(how many balls hold each x, whether each ball holds any)."""
    edge = EDGE * max(np.max(np.sum(z**2, axis=1)) for z in (x, centres))
    balls, filled = np.zeros(len(x), int), np.zeros(len(centres), bool)
    for rows in _blocks(len(x), block):
        for columns in _blocks(len(centres), block):
            inside = _squares(x[rows], centres[columns]) <= radii[columns] + edge
            balls[rows] += inside.sum(axis=1)
            filled[columns] |= inside.any(axis=0)
    return balls, filled
