"""Features of tokens, made as distinct as they are from one another: their mean removed, their covariance made one.

    y = (x - mean) C^(-1/2),    C = Cov[x] over the tokens of the captions,  eigenvalues at least 1e-4 of the largest

The tokens of a small encoder differ by their word almost alone. Which object a word belongs to is there, with a
hundredth of the variance, and a network hardly learns it: it draws what is named, with colours that change places.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_LEAST = 1e-4


class Whitening(NamedTuple):
    """y = (x - mean) matrix, of features x [..., k]."""

    mean: Float[np.ndarray, " k"]
    matrix: Float[np.ndarray, "k k"]


def fit_whitening(embedding: Float[np.ndarray, "m n k"], mask: Bool[np.ndarray, "m n"]) -> Whitening:
    """The whitening of the tokens that are not padding, float32; symmetric, so that features keep their places.

    Args:
      embedding: of captions.
      mask: True for a token.

    Source: Su et al. 2021 (Whitening sentence representations), arXiv 2103.15316.
    """
    tokens = np.asarray(embedding, np.float64)[mask]
    mean = tokens.mean(axis=0)
    off = tokens - mean
    variances, axes = np.linalg.eigh(off.T @ off / len(off))
    rounding = 1e-8 * np.mean(tokens**2) + np.finfo(np.float32).tiny  # tokens that are all alike
    scale = np.maximum(variances, max(_LEAST * variances[-1], rounding)) ** -0.5
    return Whitening(mean.astype(np.float32), ((axes * scale) @ axes.T).astype(np.float32))
