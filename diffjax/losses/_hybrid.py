"""The hybrid loss of critically damped Langevin: denoise the velocity, the velocity's start averaged out.

    u_t = Phi (x_0, 0) + C (eps_x, eps_v),      loss = E[ w(t) mean_features (eps_v - eps_v_hat(u_t, t))^2 ]

The kernel given x_0 alone is what makes it hybrid: between denoising (given x_0 and v_0) and explicit score matching,
with the same minimum as either, score_v = -E[eps_v | u_t]/C_vv, and weights that stay bounded.

Source: Dockhorn et al. 2022, section 3.2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    check,
    check_key,
    default_index,
    mean_features,
    normal_like,
    sample_keys,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, DrawTimes, Index, Key, Network, Params, Sample, Scalar, Time
from diffjax.parameterisation import apply_hybrid
from diffjax.process import CriticallyDamped, linear_perturb


def unit_weight(process: CriticallyDamped, t: Time) -> Time:
    """w = 1, of the shape of t: the paper's choice for sample quality, lambda(t) = C_vv^2 on the score."""
    return jnp.ones_like(t)


@checked_numbers
def hybrid_loss(
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    network: Network,
    process: CriticallyDamped,
    times: DrawTimes,
    weighting: Callable[..., Time] = unit_weight,
    data_std: Scalar = 1.0,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """E[ w(t) mean_features (eps_v - eps_v_hat)^2 ], estimated on a batch.

    Args:
      params: the network's parameters.
      key: for times, noise and dropout; the noise of sample i uses `fold_in(eps_key, index_i)`.
      x0: data [b, *d]; velocities are drawn here.
      cond: conditions, a pytree of [b, ...], or None.
      network: see `apply_hybrid` for what it is given; called with a key, so dropout is on.
      process: the forward process.
      times: `(key, n, *, index, total) -> (t [n], correction [n])`, such as `UniformTimes(process)`.
      weighting: `(process, t) -> w`, on the loss above. The likelihood's weight is g^2/(2 C_vv^2), g the noise of v.
      data_std: the data's standard deviation, per feature, a scalar: `apply_hybrid` says what for.
      index: global indices [b] of the samples (default 0 .. b - 1).
      total: the size of the global batch (default b), for stratified times.

    Returns:
      The loss, a scalar, and `{"t": [b], "per_sample": [b]}`: the times and the weighted loss of each sample.

    Raises:
      ValueError: data_std is not positive.

    Source: Dockhorn et al. 2022, section 3.2.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    check(data_std > 0, f"data_std: must be positive, got {data_std}")
    t_key, eps_key, network_key = jax.random.split(key, 3)
    n = x0.shape[0]
    index = default_index(n, index)
    network_key = jax.random.fold_in(network_key, index[0])  # where the batch is split, dropout differs by device
    drawn = times(t_key, n, index=index, total=n if total is None else total)
    t, correction = (answered("times", part, (n,)) for part in drawn)
    t, correction = t.astype(time_dtype(x0)), correction.astype(time_dtype(x0))
    start = jnp.stack([x0, jnp.zeros_like(x0)], axis=1)
    eps = normal_like(sample_keys(eps_key, index), start)
    ut = linear_perturb(process, start, eps, t)
    eps_v = apply_hybrid(network, params, process, ut, t, cond, data_std=data_std, key=network_key)
    per_sample = correction * weighting(process, t) * mean_features((eps[:, 1] - eps_v) ** 2)
    return jnp.mean(per_sample), {"t": t, "per_sample": per_sample}
