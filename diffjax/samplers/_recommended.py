"""Which method and which grid for a budget: the best that we found where the solution is known.

    level = data_std features^0.43 / e        the noise at which a sample is decided
    grid  = snr_grid(middle=level, width)     finest there

                        fewer than 15 evaluations               15 and more
    few features        iPNDM, 3 points (below 7: Adams in F)   Adams in F, order 5 to 7, corrector
    as many as images   UniPC-2 (below 7: on Karras's grid)     Adams in the data prediction, order 6 or 7, corrector

Chosen by a search over predictions, orders, clocks and grids, with every published method among the candidates, on
mixtures in 2 and 64 dimensions and on the exact denoiser of 5,000 images of CIFAR-10 (`scripts/bench_solvers.py`, whose
head has the outcome). Exponent and widths are what
fits these: features decide together, and distances grow as the root of their number, or more slowly where neighbours
say the same. The data prediction of an exact denoiser
hardly moves once an image is decided; F is flat both in noise and in data. A trained network is rougher than these, so
that orders gain less: `optimise_grid` fits a grid to it.
"""

from numbers import Integral

import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import check
from diffjax._typing import Scalar
from diffjax.parameterisation import KarrasPrediction, X0Prediction
from diffjax.process import AbstractGaussianProcess, karras_grid, snr_grid
from diffjax.samplers._adams import IPNDM
from diffjax.samplers._base import AbstractStepper
from diffjax.samplers._exponential_adams import ExponentialAdams, by_noise
from diffjax.samplers._unipc import UniPC

MANY = 1024
"""From so many features on a sample counts as an image."""


def recommended(
    process: AbstractGaussianProcess, nfe: int, *, data_std: Scalar = 0.5, features: int | None = None
) -> tuple[AbstractStepper, Float[Array, " points"]]:
    """The method and the grid [nfe + 1] that we would take for the probability flow at so many evaluations.

    >>> import diffjax as dj
    >>> stepper, ts = dj.recommended(dj.Cosine(), 20, features=3072)
    >>> ts.shape
    (21,)

    Args:
      process: the forward process; the grid runs over its `interval`.
      nfe: evaluations of the denoiser, as many as steps (a last denoise of `sample` is one more).
      data_std: standard deviation of the data, per feature; 0.5 for images in [-1, 1].
      features: how many numbers a sample has; default: as many as a 32 x 32 colour image.

    Raises:
      ValueError: nfe or features is not a positive integer, or data_std is not positive.
    """
    for name, value in {"nfe": nfe, "features": 3072 if features is None else features}.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}: a positive integer is needed, got {value!r}")
    check(data_std > 0, f"data_std: must be positive, got {data_std}")
    features = 3072 if features is None else features
    level = data_std * features**0.43 / np.e
    if features >= MANY:
        if nfe < 7:
            return UniPC(2), karras_grid(process, nfe)
        stepper = UniPC(2) if nfe < 15 else ExponentialAdams(X0Prediction(), 6 if nfe < 60 else 7, corrector=True)
        return stepper, snr_grid(process, nfe, level, 0.6)
    if nfe >= 15:
        order = 5 if nfe < 30 else 6 if nfe < 60 else 7
        return ExponentialAdams(KarrasPrediction(data_std), order, corrector=True), snr_grid(process, nfe, level, 0.7)
    if nfe >= 7:
        return IPNDM(3), snr_grid(process, nfe, level, 0.9 if nfe < 9 else 0.4)
    if features < 16:
        stepper = ExponentialAdams(KarrasPrediction(1.3 * data_std), 3, corrector=True)
        return stepper, snr_grid(process, nfe, level, 1.25)
    orders = [min(k + 1, 4) for k in range(nfe - 1)] + [1]
    prediction = KarrasPrediction(4.7 * data_std)
    stepper = ExponentialAdams(prediction, 5, corrector=True, clock=by_noise, orders=orders)
    return stepper, snr_grid(process, nfe, 0.83 * level, 1.13)
