"""Train on one schedule, sample on another: a denoiser of one process as one of another.

    xt = alpha x0 + sigma eps  under `sampled`   -->   c xt  is a sample of `trained`, at the time of equal logsnr

so that D(xt, t) = denoiser(c xt, t'), with c the ratio of the two processes' sqrt(alpha^2 + sigma^2), finite at both
ends. The samples' law is that of `sampled`; the network sees nothing it did not see in training.

The average denoiser of a flow map is the mean of D over alpha/sigma, which both processes share: A(xt, t, s) =
F(c xt, t', s'), with the same c.
"""

import equinox as eqx
import jax.numpy as jnp

from diffjax._arrays import as_samples, check_time, expand
from diffjax._typing import Denoiser, Sample, Time
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess
from diffjax.process._flow_map import Known, known_pairs


class RetimedDenoiser(eqx.Module):
    """`D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]` under another process; made by `retime`."""

    denoiser: Denoiser
    trained: AbstractGaussianProcess
    sampled: AbstractGaussianProcess

    @property
    def knows(self) -> Known | None:
        """ "any" where the denoiser is a flow map that knows any pair; None elsewhere: then this is no flow map."""
        return "any" if known_pairs(self.denoiser) == "any" else None

    def __call__(self, xt: Sample, t: Time, s: Time | None = None) -> Sample:
        xt = as_samples("xt", xt)
        check_time(t, xt)
        if s is not None:
            check_time(s, xt, "s")
        first, last = (self.trained.logsnr(jnp.asarray(end, xt.dtype)) for end in (0.0, 1.0))

        def its(time):
            known = jnp.clip(self.sampled.logsnr(time), last, first)
            return jnp.clip(self.trained.time_from_logsnr(known), 0.0, 1.0)

        its_t = its(t)
        ratio = _size(self.trained, its_t) / _size(self.sampled, t)
        return predict(self.denoiser, (expand(ratio, xt) * xt).astype(xt.dtype), its_t, None if s is None else its(s))


def _size(process, t):
    return jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)


def retime(denoiser: Denoiser, trained: AbstractGaussianProcess, sampled: AbstractGaussianProcess) -> RetimedDenoiser:
    """A denoiser for the process `trained` as one for the process `sampled`.

    It maps xt [b, *d] of `sampled` and t [] or [b] to x0_hat [b, *d]. A logsnr that `trained` does not reach is
    answered as its nearest end is. A flow map that knows any pair (t, s) stays one; another becomes a denoiser, which
    refuses as it does.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.parameterisation import retime
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), dj.Cosine())
    >>> flow = retime(denoiser, dj.Cosine(), dj.Rectified())
    >>> print(flow(jnp.ones((1, 2)), 0.5).round(3))  # alpha/(alpha^2 + sigma^2) xt
    [[1. 1.]]

    Args:
      denoiser: of `trained`; any callable. One that is a pytree stays one.
      trained: the process that it knows.
      sampled: the process that it will be used with.

    Source: Karras et al. 2022, section 3 (their s(t) and sigma(t) are the choice of the sampler).
    """
    return RetimedDenoiser(denoiser, trained, sampled)
