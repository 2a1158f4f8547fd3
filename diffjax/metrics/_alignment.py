"""Do pictures show what their captions say? Factors read from pictures, against those of the captions.

    factors read, factors of captions [n, k] --alignment--> by factor [k], share, all right

Pictures are read by classifiers, which err as well: the same measure of real images, whose factors are known, is the
ceiling, and captions in another order are the floor.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from diffjax.metrics._features import as_features


class Alignment(NamedTuple):
    """Shares in [0, 1].

    Attributes:
      by_factor: [k], of the pictures that have each factor right.
      share: of all factors, the mean of these.
      all_right: of the pictures that have every factor right.
    """

    by_factor: Float[np.ndarray, " k"]
    share: float
    all_right: float


def alignment(predicted: Shaped[Any, "*n"], expected: Shaped[Any, "*m"]) -> Alignment:
    """How many factors of pictures are as their captions say, by factor, on the whole, and all at once.

        by_factor_j = mean_i 1[p_ij = e_ij]        all_right = mean_i prod_j 1[p_ij = e_ij]

    Of scenes both should be in their canonical form (`data.Scenes.canonical`), as a picture does not say which object
    was named first.

    >>> alignment(np.array([[0, 2], [1, 1]]), np.array([[0, 2], [1, 0]]))
    Alignment(by_factor=array([1. , 0.5]), share=0.75, all_right=0.5)

    Args:
      predicted: p, factors read from pictures [n, k], whole numbers, such as by `networks.read_factors`.
      expected: e, those that their captions name, [n, k].

    Raises:
      ValueError: they are not whole numbers [n, k] of one shape, or there are none.
    """
    found = {"predicted": as_features("predicted", predicted), "expected": as_features("expected", expected)}
    for name, value in found.items():
        if value.ndim != 2 or not value.size or not np.issubdtype(value.dtype, np.integer):
            raise ValueError(f"{name}: whole numbers [n, k] are needed, got {value.dtype} {list(value.shape)}")
    mine, other = found.values()
    if mine.shape != other.shape:
        raise ValueError(f"expected: the shape of predicted, {list(mine.shape)}, is needed, got {list(other.shape)}")
    right = mine == other
    by_factor = right.mean(axis=0)
    return Alignment(by_factor, float(by_factor.mean()), float(right.all(axis=1).mean()))
