"""SDEdit: noise a picture part of the way, and denoise it from there.

    xt = alpha(t) guide + sigma(t) eps at t = ts[0], then any sampler from ts[0] down

The later ts[0], the more is the prior's and the less the guide's. With a `RePaint` stepper it
keeps what a mask says is known. Source: Meng et al. 2022 (SDEdit), algorithms 1 and 2.
"""

from typing import Any

import jax

from diffjax._arrays import as_samples, check_key, default_index, normal_like, sample_keys, time_dtype
from diffjax._typing import Denoiser, GridLike, Index, Key, Sample
from diffjax.process import AbstractGaussianProcess
from diffjax.process._gaussian import perturb
from diffjax.samplers import AbstractStepper
from diffjax.samplers._base import check_grid, sample


def sdedit(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    guide: Sample,
    ts: GridLike,
    stepper: AbstractStepper,
    *,
    index: Index | None = None,
    final_denoise: bool | None = None,
) -> Sample:
    """Samples near a guide: `perturb` to ts[0], then `sample`.

    Args:
      key: for the noise on the guide, and for stochastic steppers.
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      guide: the picture to begin with, [b, *d].
      ts: a descending grid [n + 1]; ts[0] is how far the guide is noised.
      stepper: the method, such as `DDIM()`.
      index: global indices [b] of the samples (default 0 .. b - 1): their noise depends on nothing else.
      final_denoise: whether to end with D(x, ts[-1]); by default as in `sample`.

    Returns:
      x0 [b, *d].

    Raises:
      ValueError: as `sample`.
    """
    check_key(key)
    guide = as_samples("guide", guide)
    ts = check_grid(ts, time_dtype(guide))
    up_key, down_key = jax.random.split(key)
    eps = normal_like(sample_keys(up_key, default_index(guide.shape[0], index)), guide)
    xt = perturb(process, guide, eps, ts[0]).astype(guide.dtype)
    x0: Any = sample(down_key, process, denoiser, xt, ts, stepper, index=index, final_denoise=final_denoise)
    return x0
