"""What the latents of a model hold: collapse, rates, and the aggregate posterior.

    q(z) = 1/n sum_j q(z | x_j)                                      the aggregate posterior of n items
    mean rate = I_q(x; z) + KL(q(z) || p(z))                         of a level without levels above
    0 <= I_q(x; z) <= log n

A collapsed latent has a rate of 0 and a posterior mean that does not move. A rate can also be spent on a q(z) that does
not match the prior, which says nothing about x.

Source: active units: Burda et al. 2016, section 5.2; the decomposition: Hoffman & Johnson 2016 (ELBO surgery), eq. 7.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffjax._arrays import accumulator_dtype, as_samples, check_key, default_index, sample_keys, sum_features
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Sample, Scalar
from diffjax.vae._gaussian import AbstractPrior, DiagonalGaussian
from diffjax.vae._model import Level


@checked_numbers
def active_units(posterior: DiagonalGaussian, *, threshold: Scalar = 0.01) -> Bool[Array, "*d"]:
    """Which latents are in use: Var_x(E_q[z_j]) > threshold over the items of a batch, [*d].

    >>> import jax.numpy as jnp
    >>> means = jnp.array([[-1.0, 0.01], [1.0, -0.01]])
    >>> active_units(DiagonalGaussian(means, jnp.zeros((2, 2)))).tolist()
    [True, False]

    Args:
      posterior: q(z | x_i) of n items, [n, *d].
      threshold: 0.01 by convention, for a prior of variance 1.

    Source: Burda et al. 2016 (IWAE), section 5.2.
    """
    return jnp.var(posterior.mean, axis=0) > threshold


def rate_by_latent(level: Level) -> Float[Array, "*d"]:
    """The mean KL(q || p) of each latent of a level over the batch in nats, [*d]."""
    rate = level.rate
    return jnp.mean(rate.astype(accumulator_dtype(rate.dtype)), axis=0)


def rate_by_level(levels: Sequence[Level]) -> Float[Array, " levels"]:
    """The mean KL(q || p) of each level over the batch in nats, [levels], the top first.

    Raises:
      ValueError: there is no level.
    """
    if not levels:
        raise ValueError("levels: at least one level is needed, got none")
    return jnp.stack([jnp.mean(sum_features(level.rate)) for level in levels])


def aggregate_moments(posterior: DiagonalGaussian) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """Mean [D] and covariance [D, D] of the aggregate posterior q(z) of n items, latents [n, *d] being flattened.

    Those of a standard normal prior are 0 and I.
    """
    n = posterior.mean.shape[0]
    mean = posterior.mean.reshape(n, -1).astype(accumulator_dtype(posterior.mean.dtype))
    variance = jnp.exp(2 * posterior.log_std.reshape(n, -1).astype(mean.dtype))
    centre = jnp.mean(mean, axis=0)
    return centre, (mean - centre).T @ (mean - centre) / n + jnp.diag(jnp.mean(variance, axis=0))


def aggregate_log_prob(posterior: DiagonalGaussian, z: Sample) -> Float[Array, " m"]:
    """log q(z) of the aggregate posterior in nats, [m].

    Args:
      posterior: q(z | x_j) of n items, [n, *d].
      z: points [m, *d]; each is compared with every item.
    """
    z = as_samples("z", z)
    if z.shape[1:] != posterior.mean.shape[1:]:
        raise ValueError(f"z: shape [m, *{posterior.mean.shape[1:]}] is needed, got {z.shape}")
    n = posterior.mean.shape[0]

    def one(point):
        nats = sum_features(posterior.log_prob(jnp.broadcast_to(point, posterior.mean.shape)))
        return jax.nn.logsumexp(nats) - jnp.log(jnp.asarray(n, nats.dtype))

    return jax.lax.map(one, z)


def mutual_information(
    key: Key, posterior: DiagonalGaussian, *, index: Index | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """I_q(x; z) = E KL(q(z | x) || q(z)) between items and latents, by one draw an item: (nats, standard error).

    It is that of the n items given, at most log n: with more information than that in the latents take more items.

    Args:
      key: the draw of item i depends on (key, index_i) alone.
      posterior: q(z | x_i) of n items, [n, *d], of a level without levels above.
      index: global indices [n].

    Returns:
      Two scalars.
    """
    z = _draw(key, posterior, index)
    return _mean_error(sum_features(posterior.log_prob(z)) - aggregate_log_prob(posterior, z))


def aggregate_divergence(
    key: Key, posterior: DiagonalGaussian, prior: AbstractPrior, *, index: Index | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """KL(q(z) || p(z)) of the aggregate posterior from the prior, by one draw an item: (nats, standard error).

    With the same key it is, up to the noise of the draws, what `mutual_information` leaves of the mean rate.

    Args:
      key, posterior, index: as `mutual_information`'s, [n, *d].
      prior: p(z).

    Returns:
      Two scalars.
    """
    z = _draw(key, posterior, index)
    return _mean_error(aggregate_log_prob(posterior, z) - sum_features(prior.log_prob(z)))


def _draw(key, posterior, index):
    check_key(key)
    return posterior.sample(sample_keys(key, default_index(posterior.mean.shape[0], index)))


def _mean_error(nats):
    return jnp.mean(nats), jnp.std(nats, ddof=1) / nats.size**0.5
