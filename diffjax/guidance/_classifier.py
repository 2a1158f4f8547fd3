"""Classifier guidance: a denoiser, pulled uphill on a classifier's log probability.

    score + scale grad log p(y | xt)   <=>   x0_hat + scale (sigma^2/alpha) grad log p(y | xt)

The classifier must know the noise level: p(y | xt), not p(y | x0). With the exact one and the unconditional denoiser,
scale w is classifier-free guidance of scale w; with the conditional denoiser, w - 1 is.

Source: Dhariwal & Nichol 2021 (Diffusion models beat GANs), algorithms 1 and 2.
"""

import jax
import jax.numpy as jnp

from diffjax._arrays import answered, as_samples, check_time
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, LogProb, PerSample, Sample, Time
from diffjax.guidance._base import AbstractGuide, aligned, check_sign, number
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess


class ClassifierGuided(AbstractGuide):
    """The guided denoiser; made by `classifier_guidance`."""

    process: AbstractGaussianProcess
    denoiser: Denoiser
    log_prob: LogProb
    scale: PerSample

    def __call__(self, xt: Sample, t: Time) -> Sample:
        xt = as_samples("xt", xt)
        check_time(t, xt)
        pull = jax.grad(lambda x: jnp.sum(self._log_prob(x, t)))(xt)
        over = aligned(self.process.sigma(t), xt) ** 2 / aligned(self.process.alpha(t), xt)
        return predict(self.denoiser, xt, t).astype(xt.dtype) + aligned(self.scale, xt) * over * pull

    def _log_prob(self, xt, t):
        return answered("log_prob", self.log_prob(xt, t), xt.shape[:1])


@checked_numbers
def classifier_guidance(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    log_prob: LogProb,
    scale: PerSample,
    *,
    negative: bool = False,
) -> Denoiser:
    """A denoiser guided by the gradient of log p(y | xt): one evaluation, and a classifier's value and gradient.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.guidance import classifier_guidance
    >>> process = dj.Rectified()
    >>> denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), 1.0), process)
    >>> log_prob = lambda xt, t: xt[:, 0]  # wants the first feature large
    >>> print(classifier_guidance(process, denoiser, log_prob, 1.0)(jnp.zeros((1, 2)), 0.5))  # sigma^2/alpha
    [[0.5 0. ]]

    Args:
      process: the forward process that t refers to. t must lie where alpha > 0.
      denoiser: unconditional (then scale 1 samples p(x | y)) or already conditional (then scale 0 does).
      log_prob: `(xt [b, *d], t [] or [b]) -> log p(y_i | xt_i) [b]` for the wanted y, in nats. A pytree's arrays are
        arguments of jit. One that holds labels [b] names them by a method `per_sample_fields`.
      scale: [] or [b]; 0 is none.
      negative: whether a scale below 0, away from y, is meant.

    Raises:
      ValueError: the scale is not finite, or below 0; (when called) log_prob has another shape.

    Source: Dhariwal & Nichol 2021 (Diffusion models beat GANs), algorithms 1 and 2.
    """
    scale = number("scale", scale)
    check_sign("scale", scale, negative)
    return ClassifierGuided(process, denoiser, log_prob, scale)
