"""Mixtures of densities: denoisers averaged by who is likely to have made xt.

    p_t = sum_i w_i p_i,t,    D = sum_i r_i D_i,    r = softmax_i(log w_i + log p_i,t(xt))

Unlike a product this is the diffusion of the mixture of the data's densities, exactly: any sampler will do, and there
is no bias to correct. The price is log p_i,t(xt), which a denoiser does not know: it comes from a closed form, from a
network that is the gradient of an energy (then up to its unknown constant, which acts as a weight), or from
`log_likelihood` of the process from t on.

Source: Du et al. 2023 (Reduce, reuse, recycle), section 3.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffjax._arrays import answered, as_samples, at_once, check, expand
from diffjax._typing import Denoiser, LogProb, PerSample, Sample, Time
from diffjax.guidance._base import AbstractGuide, number
from diffjax.guidance._product import same_shape
from diffjax.parameterisation._denoiser import predict


class Mixture(AbstractGuide):
    """The mixed denoiser; made by `density_mixture`."""

    denoisers: tuple[Denoiser, ...]
    log_densities: tuple[LogProb, ...]
    weights: tuple[PerSample, ...]

    def __call__(self, xt: Sample, t: Time) -> Sample:
        xt = as_samples("xt", xt)
        logs = [answered("log_densities", f(xt, t), xt.shape[:1]).astype(xt.dtype) for f in self.log_densities]
        weights = [jnp.log(jnp.asarray(weight, xt.dtype)) for weight in self.weights]
        r = jax.nn.softmax(jnp.stack([w + log for w, log in zip(weights, logs, strict=True)]), axis=0)
        answers = [predict(denoiser, xt, t).astype(xt.dtype) for denoiser in self.denoisers]
        return sum((expand(share, xt) * x0 for share, x0 in zip(r, answers, strict=True)), jnp.zeros_like(xt))


def density_mixture(
    denoisers: Sequence[Denoiser],
    log_densities: Sequence[LogProb],
    weights: Sequence[PerSample] | None = None,
) -> Denoiser:
    """The mixture sum_i w_i p_i as a denoiser `(xt [b, *d], t) -> [b, *d]`.

    Args:
      denoisers: one or more, each evaluated once.
      log_densities: one for each, `(xt [b, *d], t [] or [b]) -> log p_t(xt) [b]` in nats. For a distribution of
        `diffjax.analytic`: `equinox.Partial(distribution.log_prob, process)`.
      weights: w_i, positive, each [] or [b]; default equal. They need not sum to one.

    Raises:
      ValueError: there is no denoiser, not one density and weight for each, or a weight is not positive and finite.

    Source: Du et al. 2023 (Reduce, reuse, recycle), section 3.
    """
    denoisers, log_densities = tuple(denoisers), tuple(log_densities)
    values = tuple(number("weights", w) for w in ((1.0,) * len(denoisers) if weights is None else weights))
    counts = len(denoisers), len(log_densities), len(values)
    if not denoisers or len(set(counts)) != 1:
        raise ValueError(f"denoisers, log_densities, weights: as many of each, one or more, got {counts}")
    for value in values:
        with at_once(value):
            check(value > 0, f"weights: must be positive, got {value}")
    return Mixture(denoisers, log_densities, same_shape(values))
