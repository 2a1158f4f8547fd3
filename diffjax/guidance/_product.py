"""Products and quotients of densities: weighted sums of scores.

    p_t ~ prod_i p_i,t^w_i,    score = sum_i w_i score_i
    x0_hat = sum_i w_i D_i + (1 - sum_i w_i) xt/alpha            for alpha x0_hat = xt + sigma^2 score

This is the product at each noise level, which is *not* the diffusion of the product of the data's densities: followed
by a sampler alone it ends somewhere else. Langevin steps at each level (`samplers.LangevinCorrected`) do sample it, and
at the last level it is prod_i p_i^w_i itself.

Source: Liu et al. 2022 (Compositional visual generation with composable diffusion models), which has
p_0 prod_i (p_i/p_0)^w_i: weights w_i, and 1 - sum_i w_i for p_0; Du et al. 2023 (Reduce, reuse, recycle), section 3.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import jax.numpy as jnp
from jaxtyping import Array

from diffjax._arrays import as_samples, at_once, check
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, PerSample, Sample, Time
from diffjax.guidance._base import AbstractGuide, aligned, check_sign, number
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess


class Product(AbstractGuide):
    """The composed denoiser; made by `product` and `negation`."""

    process: AbstractGaussianProcess
    denoisers: tuple[Denoiser, ...]
    weights: tuple[Array, ...]

    def __call__(self, xt: Sample, t: Time) -> Sample:
        xt = as_samples("xt", xt)
        weights = [aligned(weight, xt) for weight in self.weights]
        answers = [predict(denoiser, xt, t).astype(xt.dtype) for denoiser in self.denoisers]
        rest = 1 - reduce(add, weights)
        alpha = jnp.where(rest == 0, 1.0, aligned(self.process.alpha(t), xt))  # where it does not matter it may be 0
        return reduce(add, (w * x0 for w, x0 in zip(weights, answers, strict=True))) + rest * (xt / alpha)

    def normalised(self) -> "Product":
        """The same with weights w_i/sum_i w_i.

        Where all p_i are one Gaussian, its flow carries prod_i p_i^w_i from level to level; the product's own flow does
        not, and is far off where the weights' sum is far from 1.
        """
        total = reduce(add, self.weights)
        return Product(self.process, self.denoisers, tuple(w / total for w in self.weights))


def product(
    process: AbstractGaussianProcess,
    denoisers: Sequence[Denoiser],
    weights: Sequence[PerSample] | None = None,
    *,
    negative: bool = False,
) -> Denoiser:
    """The product of densities, prod_i p_i^w_i at each level, as a denoiser `(xt [b, *d], t) -> [b, *d]`.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax.guidance import product
    >>> process, xt = dj.Rectified(), jnp.zeros((1, 2))
    >>> denoisers = [dj.exact_denoiser(dj.Gaussian(jnp.full(2, m), 1.0), process) for m in (0.0, 1.0)]
    >>> print(product(process, denoisers, [0.5, 0.5])(xt, 0.5))  # the mean of the two
    [[0.25 0.25]]

    Args:
      process: the forward process that t refers to, that of all denoisers.
      denoisers: one or more, each evaluated once.
      weights: w_i, each [] or [b], default 1 each. Unless they sum to 1, t must lie where alpha > 0.
      negative: whether weights below 0 are meant. Then the product must still have a finite integral at every level:
        at the noisiest, where all p_i are one Gaussian, that is sum_i w_i > 0.

    Returns:
      A denoiser that samplers alone follow with bias: sample it with `samplers.LangevinCorrected`.

    Raises:
      ValueError: there is no denoiser, not one weight for each, a weight is not finite, or below 0, or their sum is
        not positive.

    Source: Du et al. 2023 (Reduce, reuse, recycle), section 3; Liu et al. 2022, section 3.
    """
    denoisers = tuple(denoisers)
    values = tuple(number("weights", w) for w in ((1.0,) * len(denoisers) if weights is None else weights))
    if not denoisers or len(values) != len(denoisers):
        raise ValueError(f"weights: one for each of one or more denoisers, got {len(values)} for {len(denoisers)}")
    for value in values:
        check_sign("weights", value, negative)
    with at_once(values):
        total = reduce(add, (jnp.asarray(value, jnp.result_type(float)) for value in values))
        check(total > 0, f"weights: a positive sum is needed, or the product has no finite integral, got {total}")
    return Product(process, denoisers, same_shape(values))


@checked_numbers
def negation(process: AbstractGaussianProcess, denoiser: Denoiser, unwanted: Denoiser, weight: PerSample) -> Denoiser:
    """p/q^weight at each level, "p but not q", as a denoiser `(xt [b, *d], t) -> [b, *d]`.

    Args:
      process: the forward process that t refers to, that of both.
      denoiser: p's.
      unwanted: q's.
      weight: [] or [b], 0 for p itself. Below 1, for p/q^weight to have a finite integral at the noisiest level; and
        the data's p/q^weight must have one.

    Returns:
      A denoiser that samplers alone follow with bias: sample it with `samplers.LangevinCorrected`.

    Raises:
      ValueError: the weight is not in [0, 1).

    Source: Du et al. 2023 (Reduce, reuse, recycle), section 3.
    """
    weight = number("weight", weight)
    if_improper = "at high noise p/q^weight would have no finite integral; extrapolate has weights that sum to 1"
    with at_once(weight):
        check((weight >= 0) & (weight < 1), f"weight: must lie in [0, 1), got {weight}: {if_improper}")
    return Product(process, (denoiser, unwanted), same_shape((jnp.ones_like(weight), -weight)))


def same_shape(values: tuple[Array, ...]) -> tuple[Array, ...]:
    """Numbers as they are, or all [b] where one is."""
    rows = [value.shape for value in values if value.ndim == 1]
    return tuple(jnp.broadcast_to(value, rows[0]) for value in values) if rows else values
