"""The denoising loss: one driver for every process, prediction type, weighting and time density.

key --split--+-----------> time_sampler --> t ----+--------------+---------------+
             +--> eps ~ N(0, I) --------+         |              |               |
x0 -------------------------------+-----+         v              |               v
                                  |     +--> perturb(process) > xt       weighting(t)
                                  v     v                    |   |               |
                          target: y = a x0 + b eps   c_in xt, c_noise            |
                                  |                          |                   |
params, cond ---------------------+------------------> network.apply > y_hat     |
                                  +-----> mean over features (y_hat - y)^2 ------+--> mean over batch
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import default_index, expand, mean_features, normal_like, sample_keys, time_dtype
from diffjax._typing import Cond, Index, Key, Network, Params, Sample, Time
from diffjax.losses._weighting import native
from diffjax.parameterisation import AbstractParameterisation, apply_network, eps_error_scale, target
from diffjax.process import AbstractGaussianProcess, perturb


def denoising_loss(
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    network: Network,
    process: AbstractGaussianProcess,
    parameterisation: AbstractParameterisation,
    time_sampler: Callable[..., Any],
    weighting: Callable[..., Time],
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """E[ w(t) mean_features (eps - eps_hat)^2 ], estimated on a batch, for whatever the network predicts.

    Args:
      params: the network's parameters.
      key: for times, noise and dropout; the noise of sample i uses `fold_in(eps_key, index_i)`.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      network: see `Network`; called with a key, so dropout is on.
      process: the forward process.
      parameterisation: what the network predicts.
      time_sampler: `(key, n, *, index, total) -> (t [n], correction [n])`, such as `UniformTimes(process)`.
      weighting: `(process, parameterisation, t) -> w`, on the eps-loss, such as `constant` or `native`.
      index: global indices [b] of the samples (default 0 .. b - 1), so that a sample's noise does not depend on the
        device that draws it.
      total: the size of the global batch (default b), for stratified times.

    Returns:
      The loss, a scalar, and `{"t": [b], "per_sample": [b]}`: the times and the weighted loss of each sample.

    Source: Vincent 2011; Ho et al. 2020, eq. 14; the weights, Kingma & Gao 2023.
    """
    t_key, eps_key, network_key = jax.random.split(key, 3)
    n = x0.shape[0]
    index = default_index(n, index)
    network_key = jax.random.fold_in(network_key, index[0])  # where the batch is split, dropout differs by device
    t, correction = time_sampler(t_key, n, index=index, total=n if total is None else total)
    t = t.astype(time_dtype(x0))
    eps = normal_like(sample_keys(eps_key, index), x0)
    xt = perturb(process, x0, eps, t)
    y = target(parameterisation, process, x0, eps, t)
    y_hat = apply_network(network, params, process, parameterisation, xt, t, cond, key=network_key)
    weight = correction * _weight_on_answer(weighting, process, parameterisation, t)
    per_sample = weight * mean_features((y - y_hat) ** 2)
    return jnp.mean(per_sample), {"t": t, "per_sample": per_sample}


def _weight_on_answer(weighting, process, parameterisation, t):
    """w ||eps - eps_hat||^2 as a weight on ||y - y_hat||^2; `native` is 1 by definition, not by cancellation."""
    if weighting is native:
        return jnp.ones_like(t)
    return weighting(process, parameterisation, t) * eps_error_scale(parameterisation, process, t)


def drop_condition(key: Key, cond: Cond, null: Cond, probability: Any, *, index: Index | None = None) -> Cond:
    """Condition dropout for classifier-free training: each sample's condition becomes null with a probability.

    Args:
      key: sample i decides by `fold_in(key, index_i)`.
      cond: a pytree of [b, ...].
      null: a pytree of the same structure, each leaf broadcasting to one sample's condition.
      probability: in [0, 1], a scalar. A sample's whole condition is dropped, or none of it.
      index: global indices [b].

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), algorithm 1.
    """
    n = jax.tree.leaves(cond)[0].shape[0]
    keys = sample_keys(key, default_index(n, index))
    dropped = jax.vmap(jax.random.uniform)(keys) < probability
    return jax.tree.map(lambda c, empty: jnp.where(expand(dropped, c), jnp.asarray(empty, c.dtype), c), cond, null)
