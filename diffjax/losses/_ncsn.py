"""Noise-conditional score matching over L given noise levels: NCSN's objective.

    sum_l sigma_l^2 E 1/2 ||s(xt, t_l) - grad log p(xt | x0)||^2  =  sum_l E 1/2 ||eps_hat - eps||^2

Since s = -eps_hat/sigma, this is the noise-prediction loss with constant weight at discrete times: L d/2 times
`denoising_loss(weighting=constant, times=LevelTimes(ts))`, d being the number of features. It is L times
Song & Ermon's eq. 6, which is the mean over levels. Any Gaussian process and parameterisation will do; NCSN's own are
`VarianceExploding` with `ScorePrediction`, at levels that are uniform in its t (geometric in sigma).

Source: Song & Ermon 2019 (Generative modeling by estimating gradients of the data distribution), eqs. 5-6.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    as_samples,
    check,
    check_key,
    default_index,
    normal_like,
    sample_keys,
    time_dtype,
    values_at_once,
)
from diffjax._numbers import as_leaf, checked_numbers
from diffjax._typing import Cond, Grid, Index, Key, Params, Sample
from diffjax.losses._denoising import denoising_loss, per_sample_loss
from diffjax.losses._weighting import constant
from diffjax.parameterisation._diffusion import Diffusion, check_diffusion


@values_at_once
def _as_levels(ts) -> Array:
    ts = as_leaf("ts", ts)
    if ts.ndim != 1 or not ts.size:
        raise ValueError(f"ts: at least one time in one dimension is needed, got shape {ts.shape}")
    check((ts >= 0) & (ts <= 1), f"ts: times lie in [0, 1], got {ts}")
    return ts


class LevelTimes(eqx.Module):
    """A time sampler that draws each sample's time from a list, all levels alike; the correction is 1.

    Attributes:
      ts: the levels' times [levels], in any order.

    Raises:
      ValueError: ts is not a list of times in [0, 1].
    """

    ts: Float[Array, " levels"] = eqx.field(converter=_as_levels)

    @checked_numbers
    def __call__(
        self, key: Key, n: int, *, index: Index | None = None, total: int | None = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """n times and their corrections, each [n]; sample i draws from `fold_in(key, index_i)`."""
        check_key(key)
        keys = sample_keys(key, default_index(n, index))
        level = jax.vmap(lambda k: jax.random.randint(k, (), 0, self.ts.size))(keys)
        return self.ts[level], jnp.ones(n, self.ts.dtype)


@checked_numbers
def noise_conditional_loss(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    ts: Grid,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum over levels, estimated from one level drawn for each sample: unbiased, and what is trained.

    Args:
      diffusion: network, process and parameterisation; the network is called with a key, so dropout is on.
      params: the network's parameters.
      key: for levels, noise and dropout.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      ts: the levels' times [levels].
      index: global indices [b] of the samples (default 0 .. b - 1).
      total: the size of the global batch (default b).

    Returns:
      The loss, a scalar, and `{"t": [b], "per_sample": [b]}`.

    Raises:
      ValueError: ts is not a list of times in [0, 1].
    """
    check_diffusion(diffusion)
    check_key(key)
    x0 = as_samples("x0", x0)
    times = LevelTimes(ts)
    loss, aux = denoising_loss(
        diffusion, params, key, x0, cond, times=times, weighting=constant, index=index, total=total
    )
    scale = times.ts.size * x0[0].size / 2
    return scale * loss, aux | {"per_sample": scale * aux["per_sample"]}


def noise_conditional_sum(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    ts: Grid,
    index: Index | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The sum over levels with every sample at every level, for evaluation; one level after another, without dropout.

    Args:
      diffusion: network, process and parameterisation.
      params: the network's parameters.
      key: the noise of sample i at level l uses `fold_in(fold_in(key, l), index_i)`.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      ts: the levels' times [levels].
      index: global indices [b] of the samples (default 0 .. b - 1).

    Returns:
      The loss, a scalar, and `{"per_level": [levels], "per_sample": [b]}`: the terms of the sum, each a mean over the
      batch, and the sum for each sample.

    Raises:
      ValueError: ts is not a list of times in [0, 1].
    """
    check_diffusion(diffusion)
    check_key(key)
    x0 = as_samples("x0", x0)
    ts = _as_levels(ts)
    index = default_index(x0.shape[0], index)

    def one(level):
        eps = normal_like(sample_keys(jax.random.fold_in(key, level), index), x0)
        t = jnp.full(x0.shape[0], ts[level].astype(time_dtype(x0)))
        return 0.5 * x0[0].size * per_sample_loss(diffusion, params, x0, eps, t, cond, weighting=constant)

    terms = jax.lax.map(one, jnp.arange(ts.size))
    per_sample = jnp.sum(terms, axis=0)
    return jnp.mean(per_sample), {"per_level": jnp.mean(terms, axis=1), "per_sample": per_sample}
