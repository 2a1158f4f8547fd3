"""Train on one schedule, sample on another: a denoiser of one process as one of another.

    xt = alpha x0 + sigma eps  under `sampled`   -->   c xt  is a sample of `trained`, at the time of equal logsnr

so that D(xt, t) = denoiser(c xt, t'), with c the ratio of the two processes' sqrt(alpha^2 + sigma^2), finite at both
ends. The samples' law is that of `sampled`; the network sees nothing it did not see in training.
"""

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import expand
from diffjax._typing import Denoiser, Sample, Time
from diffjax.process import AbstractGaussianProcess, logsnr, time_from_logsnr


class RetimedDenoiser(eqx.Module):
    """`D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]` under another process; made by `retime`."""

    denoiser: Denoiser
    trained: AbstractGaussianProcess
    sampled: AbstractGaussianProcess

    def __call__(self, xt: Sample, t: Time) -> Sample:
        first, last = (logsnr(self.trained, jnp.asarray(end, xt.dtype)) for end in (0.0, 1.0))
        known = jnp.clip(logsnr(self.sampled, t), last, first)
        its_t = jnp.clip(time_from_logsnr(self.trained, known), 0.0, 1.0)
        ratio = _size(self.trained, its_t) / _size(self.sampled, t)
        return self.denoiser((expand(ratio, xt) * xt).astype(xt.dtype), its_t)


def _size(process, t):
    return jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)


def retime(denoiser: Denoiser, trained: AbstractGaussianProcess, sampled: AbstractGaussianProcess) -> RetimedDenoiser:
    """A denoiser for the process `trained` as one for the process `sampled`.

    It maps xt [b, *d] of `sampled` and t [] or [b] to x0_hat [b, *d]. A logsnr that `trained` does not reach is
    answered as its nearest end is.

    Args:
      denoiser: of `trained`; any callable. One that is a pytree stays one.
      trained: the process that it knows.
      sampled: the process that it will be used with.

    Source: Karras et al. 2022, section 3 (their s(t) and sigma(t) are the choice of the sampler).
    """
    return RetimedDenoiser(denoiser, trained, sampled)
