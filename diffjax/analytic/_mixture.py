"""Gaussian mixtures as data: p_t is a mixture again, each component moved as a Gaussian.

p_t = sum_k pi_k N(alpha m_k, alpha^2 S_k + sigma^2 I),   r_k(xt) = softmax_k(log pi_k + log p_t,k(xt))
score = sum_k r_k score_k,   E[x0 | xt] = sum_k r_k E_k[x0 | xt]
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import as_numbers, check, check_finite, check_key, sample_keys, values_at_once
from diffjax._numbers import checked_numbers
from diffjax._typing import Key, Sample, Time
from diffjax.analytic._base import AbstractDistribution
from diffjax.analytic._gaussian import Gaussian, check_symmetric
from diffjax.process import AbstractGaussianProcess


class GaussianMixture(AbstractDistribution):
    """sum_k pi_k N(m_k, S_k) as data.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> data = dj.GaussianMixture(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), 0.01)
    >>> data.sample(jax.random.key(0), 3).shape
    (3, 2)

    Args:
      means: [k, *d].
      covariances: as `Gaussian`'s with a leading axis k: [k], [k, *d] or [k, D, D]; or one variance [] for all.
      weights: pi, [k], positive; normalised to sum to one. Default: equal.

    Raises:
      ValueError: a weight is not positive, a shape does not fit, or a covariance is not symmetric and positive
        definite.
    """

    log_weights: Float[Array, " k"]
    components: Gaussian

    @values_at_once
    def __init__(
        self,
        means: Float[Array, "k *d"],
        covariances: Float[Array, "..."] | float,
        weights: Float[Array, " k"] | None = None,
    ):
        means, covariances = as_numbers("means", means), as_numbers("covariances", covariances, finite=False)
        if means.ndim == 0 or means.shape[0] == 0:
            raise ValueError(f"means: at least one is needed, [k, *d], got shape {means.shape}")
        k = means.shape[0]
        weights = (
            jnp.ones(k, means.dtype) if weights is None else as_numbers("weights", weights, whole=True, finite=False)
        )
        if weights.shape != (k,):
            raise ValueError(f"weights: shape ({k},) is needed for {k} means, got {weights.shape}")
        check(weights > 0, f"weights: must be positive, got {weights}")
        check_finite("weights", weights)
        covariances = jnp.broadcast_to(covariances, (k,)) if covariances.ndim == 0 else covariances
        if covariances.shape[0] != k:
            raise ValueError(f"covariances: a leading axis of {k} is needed, got shape {covariances.shape}")
        if covariances.ndim == 3 and covariances.shape != means.shape:
            check_symmetric(covariances, "covariances")
        self.log_weights = jnp.log(weights / jnp.sum(weights)).astype(means.dtype)
        self.components = eqx.filter_vmap(Gaussian)(means, covariances)
        smallest = jnp.min(self.components.variances)
        check(smallest > 0, f"covariances: must be positive definite, got an eigenvalue {smallest}")
        check_finite("covariances", covariances)

    @checked_numbers
    def sample(self, key: Key, n: int) -> Float[Array, "b *d"]:
        check_key(key)
        choice_key, draw_key = jax.random.split(key)
        keys = sample_keys(choice_key, jnp.arange(n))
        choice = jax.vmap(lambda k: jax.random.categorical(k, self.log_weights))(keys)
        draws = jax.vmap(lambda component: component.sample(draw_key, n))(self.components)
        return draws[choice, jnp.arange(n)]

    def log_prob(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Float[Array, " b"]:
        return jax.nn.logsumexp(_joint_log_prob(self, process, xt, t), axis=0)

    def score(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        parts = jax.vmap(lambda component: component.score(process, xt, t))(self.components)
        return _average(self, process, xt, t, parts)

    def denoise(self, process: AbstractGaussianProcess, xt: Sample, t: Time) -> Sample:
        parts = jax.vmap(lambda component: component.denoise(process, xt, t))(self.components)
        return _average(self, process, xt, t, parts)


def _joint_log_prob(mixture, process, xt, t):
    """log pi_k + log p_t,k(xt), [k, b]."""
    each = jax.vmap(lambda component: component.log_prob(process, xt, t))(mixture.components)
    return mixture.log_weights[:, None] + each


def _average(mixture, process, xt, t, parts):
    """parts [k, b, *d] averaged by the responsibilities r [k, b]."""
    r = jax.nn.softmax(_joint_log_prob(mixture, process, xt, t), axis=0)
    return jnp.sum(r.reshape(*r.shape, *(1,) * (parts.ndim - 2)) * parts, axis=0)
