"""The kernel distance of two samples, over any features: the squared maximum mean discrepancy, unbiased.

    d^2 = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean over i, j of k(x_i, y_j)

    k(x, y) = (x'y/d + 1)^p

Its expectation is |E phi(x) - E phi(y)|^2 in the space of the kernel, at any n: unlike Frechet distances, these may be
compared at unequal n, and a few hundred samples are enough to rank. It may come out below zero. With Inception features
and p = 3, d^2 is called KID.

Source: Binkowski et al. 2018 (Demystifying MMD GANs), eq. 4 and section 3; Gretton et al. 2012, eq. 3. Everything is
float64 on the host.
"""

from typing import Any

import numpy as np
from jaxtyping import Shaped

from diffjax._numbers import checked_numbers
from diffjax.metrics._features import as_features


@checked_numbers
def kernel_distance(
    x: Shaped[Any, "n *d"], reference: Shaped[Any, "m *e"], *, degree: int = 3, block: int = 1024
) -> float:
    """d^2 as above, a scalar without units.

    All pairs are used at once; the mean over random subsets that is often reported has the same expectation and a
    larger variance.

    >>> import numpy as np
    >>> from diffjax import metrics
    >>> x, y = np.random.default_rng(0).normal(size=(2, 200, 3))
    >>> metrics.kernel_distance(x, y) < metrics.kernel_distance(x, y + 1.0)
    True

    Args:
      x: features of samples, [n, d].
      reference: features of data, [m, d].
      degree: p; the paper has 3. 1 compares means only, 2 covariances too.
      block: rows of each taken at a time; memory is O(block^2 + (n + m) d).

    Raises:
      ValueError: features that are not matrices of equal width with two rows or more, not finite, or degree or block
        below 1.
    """
    for name, value in {"degree": degree, "block": block}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1 is needed, got {value}")
    x, reference = (_matrix(name, value) for name, value in {"x": x, "reference": reference}.items())
    if x.shape[1] != reference.shape[1]:
        raise ValueError(f"reference: {x.shape[1]} features are needed, as in x, got {reference.shape[1]}")
    n, m = len(x), len(reference)
    within_x, within_reference, between = (
        _sum(a, b, degree, block) for a, b in ((x, x), (reference, reference), (x, reference))
    )
    within = (within_x - _diagonal(x, degree)) / (n * (n - 1))
    within += (within_reference - _diagonal(reference, degree)) / (m * (m - 1))
    return float(within - 2 * between / (n * m))


def _matrix(name: str, value: Any) -> np.ndarray:
    value = as_features(name, value).astype(np.float64)
    if value.ndim != 2 or len(value) < 2:
        raise ValueError(f"{name}: a matrix [n, d] of at least 2 rows is needed, got shape {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: {np.sum(~np.isfinite(value))} values are not finite")
    return value


def _sum(a: np.ndarray, b: np.ndarray, degree: int, block: int) -> float:
    """Of k over all pairs."""
    starts = [(i, j) for i in range(0, len(a), block) for j in range(0, len(b), block)]
    return sum(np.sum((a[i : i + block] @ b[j : j + block].T / a.shape[1] + 1) ** degree) for i, j in starts)


def _diagonal(a: np.ndarray, degree: int) -> float:
    return np.sum((np.sum(a**2, axis=1) / a.shape[1] + 1) ** degree)
