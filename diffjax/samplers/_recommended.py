"""Which method and which grid for a budget: the best that we found where the solution is known.

               fewer than 15 evaluations               15 and more
    images     UniPC-2 (below 7: on EDM's grid)        Adams in the data prediction, order 5 or 6, corrector
    smooth     iPNDM, 3 points (below 7: Adams in F)   Adams in F, order 5 to 7, corrector

    grid       snr_grid, finest where a sample is decided:   data_std features^(1/2)/8 (/4.5 below 15 evaluations)
                                                     smooth:   data_std features^0.43/e

Besides the budget, what counts is the data's shape at the last noise level. Images lie on a thin set: once one is
decided its data prediction hardly moves, and a method that interpolates anything else amplifies what is left. A smooth
density is wide there, and the data prediction follows the state; F is flat in noise and in data alike.

Chosen by a search over predictions, orders, clocks and grids, with every published method among the candidates, on
mixtures in 2 and 64 dimensions (smooth) and on the exact denoiser of 5,000 images of CIFAR-10; the outcome is at the
head of `scripts/bench_solvers.py`. Exponents and widths are what fits these: features decide together, and distances
grow as the root of their number. A trained network is rougher than an exact denoiser, so that orders gain less;
`optimise_grid` fits a grid to it.
"""

import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import check, values_at_once
from diffjax._numbers import checked_numbers
from diffjax._typing import Scalar
from diffjax.parameterisation import EDMPrediction
from diffjax.parameterisation._linear import X0Prediction
from diffjax.process import AbstractGaussianProcess, snr_grid
from diffjax.process._grids import edm_grid
from diffjax.samplers._adams import IPNDM
from diffjax.samplers._exponential_adams import ExponentialAdams, by_noise
from diffjax.samplers._stepper import AbstractStepper
from diffjax.samplers._unipc import UniPC


@checked_numbers
@values_at_once
def recommended(
    process: AbstractGaussianProcess,
    nfe: int,
    *,
    data_std: Scalar = 0.5,
    features: int = 3072,
    smooth: bool = False,
) -> tuple[AbstractStepper, Float[Array, " points"]]:
    """The method and the grid [nfe + 1] that we would take for the probability flow at so many evaluations.

    >>> import diffjax as dj
    >>> stepper, ts = dj.samplers.recommended(dj.Cosine(), 20)
    >>> ts.shape
    (21,)

    Args:
      process: the forward process; the grid runs over its `interval`.
      nfe: evaluations of the denoiser, as many as steps (a last denoise of `sample` is one more).
      data_std: standard deviation of the data, per feature; 0.5 for images in [-1, 1].
      features: how many numbers a sample has; the default is that of a 32 x 32 colour image.
      smooth: whether the data's density is smooth at the last noise level, as that of a mixture of wide Gaussians.
        Images are not, nor is any finite set, and there the methods for smooth data diverge.

    Raises:
      ValueError: nfe or features is not a positive integer, or data_std is not positive.
    """
    for name, value in {"nfe": nfe, "features": features}.items():
        if value < 1:
            raise ValueError(f"{name}: a positive integer is needed, got {value!r}")
    check(data_std > 0, f"data_std: must be positive, got {data_std}")
    if not smooth:
        if nfe < 7:
            return UniPC(2), edm_grid(process, nfe)
        scale = data_std * features**0.5
        if nfe < 15:
            return UniPC(2), snr_grid(process, nfe, scale / 4.5, 0.6)
        stepper = ExponentialAdams(X0Prediction(), 5 if nfe < 30 else 6, corrector=True)
        return stepper, snr_grid(process, nfe, scale / 8, 0.6)
    level = data_std * features**0.43 / np.e
    if nfe >= 15:
        order = 5 if nfe < 30 else 6 if nfe < 60 else 7
        return ExponentialAdams(EDMPrediction(data_std), order, corrector=True), snr_grid(process, nfe, level, 0.7)
    if nfe >= 7:
        return IPNDM(3), snr_grid(process, nfe, level, 0.9 if nfe < 9 else 0.4)
    if features < 16:
        stepper = ExponentialAdams(EDMPrediction(1.3 * data_std), 3, corrector=True)
        return stepper, snr_grid(process, nfe, level, 1.25)
    orders = [min(k + 1, 4) for k in range(nfe - 1)] + [1]
    prediction = EDMPrediction(4.7 * data_std)
    stepper = ExponentialAdams(prediction, 5, corrector=True, clock=by_noise, orders=orders)
    return stepper, snr_grid(process, nfe, 0.83 * level, 1.13)
