"""The squared Frechet distance of two Gaussians, over any features.

    d^2 = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

With roots A = S_a^(1/2) and B = S_b^(1/2), the last trace is the sum of the singular values of A B. This form is
symmetric, needs no root of an unsymmetric matrix, and does not square small numbers: d^2 of equal inputs is zero to
rounding. With Inception features d^2 is called FID.

Source: Dowson & Landau 1982, eq. 4; Heusel et al. 2017, eq. 6. Everything is float64 on the host.
"""

from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from diffjax.metrics._features import as_features


class FeatureStatistics(NamedTuple):
    """Count, mean [d] and covariance [d, d] (unbiased, divisor n - 1; zero where n = 1) of features, in float64."""

    n: int
    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def feature_statistics(features: Shaped[Any, "n *d"]) -> FeatureStatistics:
    """Count, mean and covariance of features [n, d], for `frechet_distance`.

    >>> import numpy as np
    >>> from diffjax import metrics
    >>> metrics.feature_statistics(np.array([[0.0], [2.0]]))
    FeatureStatistics(n=2, mean=array([1.]), covariance=array([[2.]]))

    Raises:
      ValueError: features are not a matrix with a row, or not finite.
    """
    features = as_features("features", features).astype(np.float64)
    if features.ndim != 2 or len(features) < 1:
        raise ValueError(f"features: a matrix [n, d] with a row is needed, got shape {features.shape}; flatten them")
    if not np.all(np.isfinite(features)):
        raise ValueError(f"features: {np.sum(~np.isfinite(features))} values are not finite")
    mean = features.mean(axis=0)
    centred = features - mean
    return FeatureStatistics(len(features), mean, centred.T @ centred / max(len(features) - 1, 1))


def merge(*parts: FeatureStatistics) -> FeatureStatistics:
    """The statistics of all rows together, from those of parts: exact, in any order (Chan et al. 1983, eq. 2.1).

    >>> import numpy as np
    >>> from diffjax import metrics
    >>> a, b = np.array([[0.0]]), np.array([[2.0]])
    >>> metrics.merge(metrics.feature_statistics(a), metrics.feature_statistics(b)).mean
    array([1.])

    Raises:
      ValueError: no parts, one that is no `FeatureStatistics`, or parts of different dimension.
    """
    if not parts:
        raise ValueError("parts: at least one is needed, got none")
    for part in parts:
        _check_statistics("parts", part)
    return reduce(_merge_two, parts)


def _merge_two(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    _check_dimensions(a, b)
    n, gap = a.n + b.n, b.mean - a.mean
    scatter = (a.n - 1) * a.covariance + (b.n - 1) * b.covariance + a.n * b.n / n * np.outer(gap, gap)
    return FeatureStatistics(n, a.mean + gap * (b.n / n), scatter / (n - 1))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """d^2 as above, in squared units of the features; not negative. (FID is this squared distance, not its root.)

    It is biased upwards by a finite n: compare distances at equal n only.

    >>> import numpy as np
    >>> from diffjax import metrics
    >>> x = np.random.default_rng(0).normal(size=(1000, 3))
    >>> statistics, moved = metrics.feature_statistics(x), metrics.feature_statistics(x + 2.0)
    >>> round(metrics.frechet_distance(statistics, moved), 6)  # |2, 2, 2|^2
    12.0

    Args:
      a: statistics of features [n, d]: their mean [d] and covariance [d, d].
      b: those of the others, of as many dimensions d.

    Raises:
      ValueError: features in place of their statistics, a covariance from fewer than two rows, or different dimensions.
    """
    _check_statistics("a", a)
    _check_statistics("b", b)
    _check_dimensions(a, b)
    for name, part in (("a", a), ("b", b)):
        if part.n < 2:
            raise ValueError(f"{name}: a covariance needs at least 2 rows, got {part.n}")
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    squared = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(float(squared), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semidefinite matrix; eigenvalues below zero are rounding."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _check_statistics(name: str, value: Any) -> None:
    if not isinstance(value, FeatureStatistics):
        got = f"features of shape {np.shape(value)}" if hasattr(value, "shape") else type(value).__name__
        raise ValueError(
            f"{name}: feature statistics are needed, got {got}; take metrics.feature_statistics(features [n, d]) of "
            "them first"
        )


def _check_dimensions(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"b: features of dimension {a.mean.shape} are needed, as in a, got {b.mean.shape}")
