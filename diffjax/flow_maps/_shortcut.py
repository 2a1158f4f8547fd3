"""Shortcut models: one network for 1, 2, 4, ... steps, each step the mean of two half as long.

    on the line, z = xt/(alpha d + sigma) at tau:      u(z, t, s) = (u(z, t, m) + u(zm, m, s))/2,
                                                       zm = z + (tau_m - tau_t) u(z, t, m)
    over the shortest steps:                           u(z, t, s) = E[ eps - x0/d | z ]

u is the average velocity, and m halfway from t to s on the clock tau of `diffjax.process.Line`, on which every process
is rectified flow and DDIM's step is Euler's. The times are the M + 1 of an even grid in tau, M a power of two, and
steps of 2^k of its own begin at multiples of 2^k. So the network learns Euler's sampler of M steps, not the flow: in
1, 2, 4, ... steps it gives what M steps of the denoiser would.

Source: Frans et al. 2024 (One step diffusion via shortcut models, arXiv 2410.12557), algorithm 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import as_samples, check, check_key, default_index, expand, normal_like, sample_keys, time_dtype
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Index, Key, Params, Sample, Scalar
from diffjax.flow_maps._eulerian import average_velocity
from diffjax.flow_maps._progressive import check_predicts_x0
from diffjax.losses import mean_square
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import Line, line_grid
from diffjax.process._gaussian import perturb


@checked_numbers
def shortcut_loss(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    target_params: Params,
    finest: int = 128,
    share: Scalar = 0.25,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """E[ mean_features (u - target)^2 ] on the line: self-consistency in a share of the batch, flow matching elsewhere.

    Sample it by `Jump` on `process.line_grid(process, K, data_std)` for K = 1, 2, 4, ..., finest, with the data_std of
    the parameterisation, as `make_flow_map(diffusion, params, cond, knows=process.Dyadic(that of finest))`.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import flow_maps, networks, process, training
    >>> network = dj.from_linen(networks.MLP(width=8, depth=1))
    >>> x0 = jax.random.normal(jax.random.key(0), (4, 2))
    >>> params = network.init(jax.random.key(1), x0, jnp.zeros((4, 2)))  # with a second time
    >>> diffusion = dj.Diffusion(network, dj.Rectified(), dj.VelocityPrediction())
    >>> def loss_fn(params, batch, context):  # of an Objective, with make_train_step(..., ema={"target": ...})
    ...     target = context.ema["target"]
    ...     return flow_maps.shortcut_loss(diffusion, params, context.key, batch, target_params=target, finest=8)
    >>> loss, _ = loss_fn(params, x0, training.Context(jax.random.key(2), ema={"target": params}))
    >>> F = dj.make_flow_map(diffusion, params, knows=process.Dyadic(process.line_grid(dj.Rectified(), 8)))
    >>> dj.sample(None, dj.Rectified(), F, x0, process.line_grid(dj.Rectified(), 2), dj.Jump()).shape
    (4, 2)

    Args:
      diffusion: network, process and parameterisation, of any kind but eps and score. The network is given t and s, as
        c_noise [b, 2], and called with a key, so dropout is on.
      params: the network's parameters, with the leaves of a second time.
      key: for times, noise and dropout; the noise of sample i uses `fold_in(eps_key, index_i)`.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      target_params: parameters of the half steps: an average of params, as `context.ema` has it.
      finest: M, the number of the shortest steps, a power of two.
      share: of the batch for self-consistency, in [0, 1]. Half steps are computed for all of it, so that a batch may be
        split over devices: two evaluations of the average a sample.
      index: global indices [b] of the samples (default 0 .. b - 1).
      total: the size of the global batch (default b), of which the share is taken.

    Returns:
      The loss, a scalar, and `{"t": [b], "s": [b], "per_sample": [b]}`: steps from t to s, and the loss of each sample.

    Raises:
      ValueError: finest is no power of two, share is not in [0, 1], or the network predicts eps or the score.

    Source: Frans et al. 2024, algorithm 1 and eq. 5.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    check_predicts_x0(diffusion)
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f"finest: a power of two from 2 on is needed, such as 128, got {finest}")
    check((share >= 0) & (share <= 1), f"share: must lie in [0, 1], got {share}")
    process, n = diffusion.process, x0.shape[0]
    share_key, size_key, start_key, eps_key, network_key = jax.random.split(key, 5)
    index = default_index(n, index)
    draw = lambda key, low, high: jax.vmap(lambda k: jax.random.randint(k, (), low, high))(sample_keys(key, index))
    place = (jax.random.uniform(share_key) + index / (n if total is None else total)) % 1.0
    halved = place < share
    size = jnp.where(halved, 2 ** draw(size_key, 1, finest.bit_length()), 1)
    start = draw(start_key, 0, finest) // size * size
    grid = line_grid(process, finest, diffusion.parameterisation.data_std)
    ts = jax.lax.stop_gradient(jnp.asarray(grid, time_dtype(x0)))
    t, m, s = ts[start], ts[start + size // 2], ts[start + size]

    line = Line(diffusion.parameterisation.data_std)
    eps = normal_like(sample_keys(eps_key, index), x0)
    z = perturb(process, x0, eps, t) / expand(line.scale(process, t), x0)
    first = average_velocity(diffusion, target_params, line, z, t, m, cond)
    gap = line.clock(process, m) - line.clock(process, t)
    second = average_velocity(diffusion, target_params, line, z + expand(gap, z) * first, m, s, cond)
    target = jnp.where(expand(halved, z), 0.5 * (first + second), line.velocity(line.clock(process, t), x0, eps))
    key = jax.random.fold_in(network_key, index[0])  # where the batch is split, dropout differs by device
    u = average_velocity(diffusion, params, line, z, t, s, cond, key=key)
    per_sample = mean_square(u - jax.lax.stop_gradient(target))
    return jnp.mean(per_sample), {"t": t, "s": s, "per_sample": per_sample}
