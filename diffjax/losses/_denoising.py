"""The denoising loss: one driver for every process, prediction type, weighting, penalty, coupling and time density.

key --split--+-----------> time_sampler --> t ----+--------------+---------------+
             +--> eps ~ N(0, I) --> coupling -+   |              |               |
x0 -------------------------------+-----------+   v              |               v
                                  |     +--> perturb(process) > xt       weighting(t)
                                  v     v                    |   |               |
                          target: y = a x0 + b eps   c_in xt, c_noise            |
                                  |                          |                   |
params, cond ---------------------+------------------> network.apply > y_hat     |
                                  +-----> penalty (mean square) of y_hat - y ----+--> mean over batch

`denoising_loss` draws times and noise; `per_sample_loss` is what is left once they are given.
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


def mean_square(error: Sample) -> Float[Array, " b"]:
    """The mean over features of error^2, [b, *d] -> [b]: the penalty of every quadratic loss."""
    return mean_features(error**2)


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
    penalty: Callable[..., Any] = mean_square,
    coupling: Callable[..., Any] | None = None,
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
      penalty: `(y_hat - y) [b, *d] -> [b]`, such as `PseudoHuber(c)`.
      coupling: `(key, x0, eps, cond) -> eps`, which pairs the batch's noise with its data anew, such as
        `OptimalTransport()`; default: independent noise.
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
    t, correction = time_sampler(t_key, n, index=index, total=n if total is None else total)
    t, correction = t.astype(time_dtype(x0)), correction.astype(time_dtype(x0))
    eps = normal_like(sample_keys(eps_key, index), x0)
    if coupling is not None:
        eps = coupling(jax.random.fold_in(key, 3), x0, eps, cond)
    per_sample = correction * per_sample_loss(
        params,
        x0,
        eps,
        t,
        cond,
        network=network,
        process=process,
        parameterisation=parameterisation,
        weighting=weighting,
        penalty=penalty,
        key=jax.random.fold_in(network_key, index[0]),  # where the batch is split, dropout differs by device
    )
    return jnp.mean(per_sample), {"t": t, "per_sample": per_sample}


def per_sample_loss(
    params: Params,
    x0: Sample,
    eps: Sample,
    t: Time,
    cond: Cond = None,
    *,
    network: Network,
    process: AbstractGaussianProcess,
    parameterisation: AbstractParameterisation,
    weighting: Callable[..., Time],
    penalty: Callable[..., Any] = mean_square,
    key: Any = None,
) -> Float[Array, " b"]:
    """The denoising loss of given noise eps [b, *d] and times t [b]: w_y(t) penalty(y_hat - y), [b].

    w_y is the weighting carried from the eps-loss to the answer's own; see `denoising_loss` for the arguments. `key`
    is the network's, None to evaluate.
    """
    xt = perturb(process, x0, eps, t)
    y = target(parameterisation, process, x0, eps, t)
    y_hat = apply_network(network, params, process, parameterisation, xt, t, cond, key=key)
    return _weight_on_answer(weighting, process, parameterisation, t) * penalty(y_hat - y)


def _weight_on_answer(weighting, process, parameterisation, t):
    """w ||eps - eps_hat||^2 as a weight on ||y - y_hat||^2; `native` is 1 by definition, not by cancellation.

    At t = 0 or 1 itself one factor may be infinite where the other is 0, with a finite product (`on_v` and
    v-prediction: 1 everywhere). There the weight is that of the nearest time inside (0, 1), its limit to rounding.
    """
    if weighting is native:
        return jnp.ones_like(t)
    weight = lambda t: weighting(process, parameterisation, t) * eps_error_scale(parameterisation, process, t)
    step = jnp.finfo(jnp.result_type(t)).epsneg
    undefined = jnp.isnan(jax.lax.stop_gradient(weight(t)))
    return weight(jnp.where(undefined, jnp.clip(t, step, 1 - step), t))


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
