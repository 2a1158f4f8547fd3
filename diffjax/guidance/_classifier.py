"""Classifier guidance: a denoiser, pulled uphill on a classifier's log probability.

    score + scale grad log p(y | xt)   <=>   x0_hat + scale (sigma^2/alpha) grad log p(y | xt)

The classifier must know the noise level: p(y | xt), not p(y | x0). With the exact one and the unconditional denoiser,
scale w is classifier-free guidance of scale w; with the conditional denoiser, w - 1 is.

Source: Dhariwal & Nichol 2021 (Diffusion models beat GANs), algorithms 1 and 2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax._typing import Denoiser, Sample, Time
from diffjax.guidance._base import AbstractGuide, beside, check_sign, number
from diffjax.process import AbstractGaussianProcess


class ClassifierGuided(AbstractGuide):
    """The guided denoiser; made by `classifier_guidance`."""

    process: AbstractGaussianProcess
    denoiser: Any
    log_prob: Any
    scale: Any

    def __call__(self, xt: Sample, t: Time) -> Sample:
        pull = jax.grad(lambda x: jnp.sum(self._log_prob(x, t)))(xt)
        over = beside(self.process.sigma(t), xt) ** 2 / beside(self.process.alpha(t), xt)
        return self.denoiser(xt, t).astype(xt.dtype) + beside(self.scale, xt) * over * pull

    def _log_prob(self, xt, t):
        value = self.log_prob(xt, t)
        if value.shape != xt.shape[:1]:
            raise ValueError(f"log_prob: must answer shape {xt.shape[:1]} for xt {xt.shape}, got {value.shape}")
        return value


def classifier_guidance(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    log_prob: Callable[[Any, Any], Any],
    scale: Any,
    *,
    negative: bool = False,
) -> Denoiser:
    """A denoiser guided by the gradient of log p(y | xt): one evaluation, and a classifier's value and gradient.

    Args:
      process: the forward process that t refers to. t must lie where alpha > 0.
      denoiser: unconditional (then scale 1 samples p(x | y)) or already conditional (then scale 0 does).
      log_prob: `(xt [b, *d], t [] or [b]) -> log p(y_i | xt_i) [b]` for the wanted y, in nats. A pytree's arrays are
        arguments of jit. One that holds labels [b] says so by `samplers.per_sample_fields`.
      scale: [] or [b]; 0 is none.
      negative: whether a scale below 0, away from y, is meant.

    Raises:
      ValueError: the scale is not finite, or below 0; (when called) log_prob has another shape.

    Source: Dhariwal & Nichol 2021 (Diffusion models beat GANs), algorithms 1 and 2.
    """
    scale = number("scale", scale)
    check_sign("scale", scale, negative)
    return ClassifierGuided(process, denoiser, log_prob, scale)
