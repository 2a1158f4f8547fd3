"""A finite data set as data: p_t is a mixture of isotropic Gaussians at alpha x_i, and its denoiser a softmax average.

    p_t(xt) = sum_i pi_i N(xt; alpha x_i, sigma^2 I),   w_i = softmax_i(log pi_i - ||xt - alpha x_i||^2/(2 sigma^2))
    E[x0 | xt] = sum_i w_i x_i,   score = (alpha E[x0 | xt] - xt)/sigma^2

The sums run over blocks of the data with a running maximum and running sums (Milakov & Gimelshein 2018, as in flash
attention): beyond the data nothing of its size is ever held. Distances are sums of squares of differences: expanded as
||xt||^2 - 2 alpha xt.x_i + alpha^2 ||x_i||^2 they would be wrong by 1e-7 ||xt||^2/sigma^2 nats in float32: for images
of 3072 features 10 at logsnr 10, and 1e5 at logsnr 20, where the exponent of the nearest is 1.5e3. As they are,
log_prob is right to 1e-6 of its size there, and the score to 2e-5 (against float64, for the same xt).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    accumulator_dtype,
    as_accumulators,
    as_numbers,
    check,
    check_finite,
    check_key,
    check_time,
    expand,
    sample_keys,
    values_at_once,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Key, Sample, Time
from diffjax.analytic._base import AbstractDistribution, of_features
from diffjax.process import AbstractGaussianProcess


@checked_numbers
class Empirical(AbstractDistribution):
    """sum_i pi_i delta(x0 - x_i): the data that a network is trained on, and the denoiser that it would learn by heart.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import analytic
    >>> points = jnp.array([[0.0, 0.0], [4.0, 0.0]])
    >>> denoiser = dj.exact_denoiser(analytic.Empirical(points), dj.Rectified())
    >>> print(denoiser(jnp.array([[1.0, 0.0]]), 0.5).round(2))  # as near to both of alpha x0
    [[2. 0.]]

    Args:
      data: x_i, [N, *d]; a leaf, so that it is an argument of jit and not a constant in it.
      weights: pi, [N], positive; normalised to sum to one. Default: equal.
      block: how many data are looked at together; N need not be a multiple.

    Raises:
      ValueError: there are no data, a shape does not fit, a weight is not positive, or block is not.

    Source: math above; Karras et al. 2022, eq. 57.
    """

    data: Float[Array, "N *d"]
    log_weights: Float[Array, " N"] | None
    block: int = eqx.field(static=True)

    @values_at_once
    def __init__(self, data: Any, weights: Float[Array, " N"] | None = None, block: int = 256):
        self.data = as_numbers("data", data)
        n = self.data.shape[0] if self.data.ndim else 0
        if n == 0:
            raise ValueError(f"data: at least one is needed, got shape {self.data.shape}")
        if block < 1:
            raise ValueError(f"block: must be at least 1, got {block}")
        if weights is None:
            self.log_weights = None
        else:
            weights = as_numbers("weights", weights, whole=True, finite=False)
            if weights.shape != (n,):
                raise ValueError(f"weights: shape ({n},) is needed for {n} data, got {weights.shape}")
            check(weights > 0, f"weights: must be positive, got {jnp.min(weights)}")
            check_finite("weights", weights)
            self.log_weights = jnp.log(weights / jnp.sum(weights)).astype(self.data.dtype)
        self.block = min(block, n)

    @checked_numbers
    def sample(self, key: Key, n: int) -> Float[Array, "b *d"]:
        check_key(key)
        keys, size = sample_keys(key, jnp.arange(n)), self.data.shape[0]
        if self.log_weights is None:
            return self.data[jax.vmap(lambda k: jax.random.randint(k, (), 0, size))(keys)]
        u = jax.vmap(lambda k: jax.random.uniform(k, (), accumulator_dtype(self.data.dtype)))(keys)
        below = jnp.cumsum(jnp.exp(as_accumulators(self.log_weights)))
        return self.data[jnp.minimum(jnp.searchsorted(below, u * below[-1], side="right"), size - 1)]

    def log_prob(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Float[Array, " b"]:
        largest, total, _ = _running_sums(self, process, xt, t)
        features = xt.size // xt.shape[0]
        return largest + jnp.log(total) - 0.5 * features * jnp.log(2 * jnp.pi * process.sigma(t) ** 2)

    def score(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        pull = expand(process.alpha(t), xt) * self.denoise(process, xt, t) - xt
        return pull / expand(process.sigma(t), xt) ** 2

    def denoise(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        _, total, sums = _running_sums(self, process, xt, t)
        return (sums / total[:, None]).reshape(xt.shape).astype(xt.dtype)


def _running_sums(empirical, process, xt, t):
    """For the exponents l_i of the softmax: m = max l_i [b], sum_i e^(l_i - m) [b], sum_i e^(l_i - m) x_i [b, D]."""
    n, block = empirical.data.shape[0], empirical.block
    xt = of_features("xt", xt, empirical.data.shape[1:])
    check_time(t, xt)
    data, x = empirical.data.reshape(n, -1), as_accumulators(xt.reshape(xt.shape[0], -1))
    alpha = jnp.broadcast_to(jnp.asarray(process.alpha(t), x.dtype), x.shape[:1])
    sigma = jnp.broadcast_to(jnp.asarray(process.sigma(t), x.dtype), x.shape[:1])
    equal = -jnp.log(jnp.asarray(n, x.dtype))

    @jax.checkpoint
    def add(carry, start):
        largest, total, sums = carry
        begin = jnp.minimum(start, n - block)  # the last block reaches back; what it has twice counts once
        part = jax.lax.dynamic_slice_in_dim(data, begin, block)
        weights = equal
        if empirical.log_weights is not None:
            weights = jax.lax.dynamic_slice_in_dim(empirical.log_weights, begin, block)
        squares = jnp.sum((x[:, None] - alpha[:, None, None] * part) ** 2, axis=-1)
        exponents = weights - squares / (2 * sigma[:, None] ** 2)
        exponents = jnp.where(begin + jnp.arange(block) >= start, exponents, -jnp.inf)
        now = jax.lax.stop_gradient(jnp.maximum(largest, jnp.max(exponents, axis=1)))
        shrink, each = jnp.exp(largest - now), jnp.exp(exponents - now[:, None])
        added = jnp.matmul(each, part, precision="highest")
        return (now, shrink * total + jnp.sum(each, axis=1), shrink[:, None] * sums + added), None

    start = (jnp.full(x.shape[:1], -jnp.inf, x.dtype), jnp.zeros(x.shape[:1], x.dtype), jnp.zeros_like(x))
    return jax.lax.scan(add, start, jnp.arange(0, n, block))[0]
