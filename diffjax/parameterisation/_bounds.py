"""Where a network's answer can be trusted: the noise levels that a prediction is trained and sampled within.

An error of eps_hat is sigma/alpha times as large in x0_hat = (xt - sigma eps_hat)/alpha: e^10 = 22,026 times at logsnr
-20, where `interval` ends, and e^5 = 148 times at -10, where DDPM's betas end (Ho et al. 2020: -10.1). No network is
exact enough for the first. A prediction says by `logsnr_range` where it is used.

    process, parameterisation --bounded--> the part of the process inside the range
"""

import math
from typing import Any

import jax.numpy as jnp

from diffjax._arrays import is_concrete
from diffjax._numbers import checked_numbers
from diffjax._typing import Scalar
from diffjax.parameterisation._base import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess, Clipped


@checked_numbers
def bounded(
    process: AbstractGaussianProcess,
    parameterisation: AbstractParameterisation,
    *,
    logsnr_max: Scalar | None = None,
    logsnr_min: Scalar | None = None,
) -> AbstractGaussianProcess:
    """The part of a process that a prediction is trained and sampled within: `Clipped`, or the process itself.

    Of `EpsPrediction` and `ScorePrediction` it is where |logsnr| <= 10; the other predictions use all of a process.
    Training times, grids, samples and likelihoods of what it returns stay inside.

    Args:
      process: any.
      parameterisation: what the network predicts.
      logsnr_max: where to begin, a scalar, in place of the prediction's own bound; the process must reach it.
      logsnr_min: where to end, likewise.

    Raises:
      ValueError: the process does not reach a bound that is given, or they are out of order.

    >>> import diffjax as dj
    >>> process = dj.parameterisation.bounded(dj.Cosine(), dj.EpsPrediction())
    >>> print([f"{process.logsnr(t):.4f}" for t in (0.0, 1.0)])
    ['10.0000', '-10.0000']
    >>> dj.parameterisation.bounded(process, dj.VPrediction()) is process
    True
    """
    least, most = parameterisation.logsnr_range
    if logsnr_max is None and logsnr_min is None and math.isinf(most) and math.isinf(least):
        return process
    first, last = (_plain(process.logsnr(t)) for t in process.interval())
    high, low = _plain(jnp.minimum(first, most)), _plain(jnp.maximum(last, least))
    given = logsnr_max is not None or logsnr_min is not None
    if not given and is_concrete((first, last)) and first <= most and last >= least:
        return process
    return Clipped(process, high if logsnr_max is None else logsnr_max, low if logsnr_min is None else logsnr_min)


def _plain(value: Any) -> Any:
    """A Python number where the value is known, so that it widens no float32 sample."""
    return float(value) if is_concrete(value) else value
