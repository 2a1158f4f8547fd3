"""Continuous-time consistency models (sCM): the limit of neighbouring levels, by one derivative along the flow.

On the circle (`diffjax.process.Circle`) every process is the cosine schedule's rotation, z at the angle phi, and with
the network's velocity u the map to t = 0 is a rotation back by D = phi_t - phi_0:

    f = X/scale_0 = cos(D) z - sin(D) u
    df/dphi = R = cos(D) (u_data - u) - sin(D) (z + du/dphi)          0 at the exact map: R = eulerian_target - u
    g = cos(D) [ cos(D) (u_data - u) - r sin(D) (z + du/dphi) ]       r from 0 to 1: the tangent's warm-up
    loss = mean( u - stop[ u + g/(|g| + c) ] )^2

u_data is the velocity of a teacher (distillation, sCD), or of the pair x0, eps (training, sCT), of which the flow's
is the conditional mean; |g| the root mean square over features. The gradient is that of E[ cos(D)/sin(D) f . df/dphi ],
normalised, and where r = 0 that of a denoising loss.

Source: Lu & Song 2024 (Simplifying, stabilizing and scaling continuous-time consistency models, arXiv 2410.11081),
sections 4 and 5, algorithm 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    at_once,
    check,
    check_key,
    check_time,
    expand,
    mean_features,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Denoiser, DrawTimes, Index, Key, Params, Sample, Scalar, Time
from diffjax.flow_maps._consistency import check_teacher, unweighted
from diffjax.flow_maps._eulerian import check_eulerian, eulerian_target, velocity_and_derivative
from diffjax.losses._denoising import draw_noise
from diffjax.parameterisation._denoiser import predict
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import Circle
from diffjax.process._gaussian import perturb


@checked_numbers
def continuous_consistency_loss(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    times: DrawTimes,
    teacher: Denoiser | None = None,
    warm_up: Scalar = 1.0,
    c: Scalar | None = 0.1,
    weighting: Callable[..., Time] = unweighted,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """E[ w(t) mean_features( u - stop[u + g/(|g| + c)] )^2 ], estimated on a batch: sCT, or sCD with a teacher.

    As a number it says little, for normalised tangents have a length near 1: look at aux["tangent"]. A learned weight
    (the paper's e^w(t), -w(t) added) is `uncertainty_loss` of the aux.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import flow_maps, networks
    >>> network = dj.from_linen(networks.MLP(width=8, depth=1))
    >>> x0 = jax.random.normal(jax.random.key(0), (4, 2))
    >>> params = network.init(jax.random.key(1), x0, jnp.zeros(4))
    >>> diffusion = dj.Diffusion(network, dj.Cosine(), dj.parameterisation.EDMPrediction(clock="angle"))
    >>> loss, aux = flow_maps.continuous_consistency_loss(
    ...     diffusion, params, jax.random.key(2), x0,
    ...     times=dj.process.LognormalTimes(diffusion.process, -1.0, 1.4), warm_up=jnp.minimum(1.0, 500 / 10_000))
    >>> F = dj.make_flow_map(diffusion, params, knows="zero")  # sample(..., Jump(gamma=1.0)) takes it

    Args:
      diffusion: network, process and parameterisation: EDMPrediction(data_std, clock="angle") is the paper's. The
        network is given t alone, called with a key (dropout is on), and must have a forward derivative.
      params: the network's parameters.
      key: for times, noise and dropout; the noise of sample i uses `fold_in(eps_key, index_i)`.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None; a teacher has its own.
      times: `(key, n, *, index, total) -> (t [n], correction [n])`. The paper's log(data_std tan(phi)) ~ N(-1, 1.4^2)
        is `LognormalTimes(process, -1.0, 1.4)`, for data_std tan(phi) = sigma/alpha.
      teacher: a denoiser D(xt, t) of the same process (sCD); None: training from data (sCT).
      warm_up: r in [0, 1], min(1, step/10000) in the paper; a scalar, which may be traced.
      c: of the normalisation, in units of data_std, positive; None: g as it is.
      weighting: `(process, parameterisation, t, s) -> w [b]`, s being 0; one by default.
      index: global indices [b] of the samples (default 0 .. b - 1).
      total: the size of the global batch (default b), for stratified times.

    Returns:
      The loss, a scalar, and `{"t": [b], "per_sample": [b], "tangent": [b]}`: the times, the weighted losses, and |g|,
      which falls as the map becomes exact (under sCT, to the spread of the conditional velocity).

    Raises:
      ValueError: a shape does not fit, the network's answer or clock has no bounded derivative along the flow, the
        teacher is of another process, or r or c is out of its range.

    Source: Lu & Song 2024, algorithm 1 and eqs. 6 and 8.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    if c is not None:
        with at_once(c):
            check(jnp.asarray(c) > 0, f"c: must be positive, or None for no normalisation, got {c}")
    n = x0.shape[0]
    t_key, eps, network_key, index = draw_noise(key, x0, index)
    drawn = times(t_key, n, index=index, total=n if total is None else total)
    t, correction = (answered("times", part, (n,)).astype(time_dtype(x0)) for part in drawn)
    u, g = consistency_tangent(
        diffusion,
        params,
        x0,
        eps,
        t,
        cond,
        teacher=teacher,
        warm_up=warm_up,
        key=network_key,
    )
    size = jnp.sqrt(mean_features(g**2))
    step = g if c is None else g / (expand(size, g) + c)
    weight = answered("weighting", weighting(diffusion.process, diffusion.parameterisation, t, jnp.zeros_like(t)), (n,))
    per_sample = correction * weight * mean_features((u - jax.lax.stop_gradient(u + step)) ** 2)
    return jnp.mean(per_sample), {"t": t, "per_sample": per_sample, "tangent": size}


@checked_numbers
def consistency_tangent(
    diffusion: Diffusion,
    params: Params,
    x0: Sample,
    eps: Sample,
    t: Time,
    cond: Cond = None,
    *,
    teacher: Denoiser | None = None,
    warm_up: Scalar = 1.0,
    key: Key | None = None,
) -> tuple[Sample, Sample]:
    """(u, g), both [b, *d]: the network's velocity on the circle and the stopped tangent, for given eps and t [b].

    g = cos(D) df/dphi at warm_up 1: zero for the exact map, with a teacher; without one, zero in the mean given xt.
    See `continuous_consistency_loss` for the arguments. `key` is the network's, None to evaluate.
    """
    x0 = as_samples("x0", x0)
    eps = as_samples("eps", eps, x0.shape)
    check_time(t, x0)
    with at_once(warm_up):
        check((jnp.asarray(warm_up) >= 0) & (jnp.asarray(warm_up) <= 1), f"warm_up: must lie in [0, 1], got {warm_up}")
    check_eulerian(diffusion)
    t = jnp.broadcast_to(jnp.asarray(t, time_dtype(x0)), x0.shape[:1])
    process, circle = diffusion.process, Circle(diffusion.parameterisation.data_std)
    xt = perturb(process, x0, eps, t)
    if teacher is not None:
        check_teacher(teacher, process)
        x0 = predict(teacher, xt, t)
        eps = (xt - expand(process.alpha(t), xt) * x0) / expand(process.sigma(t), xt)
    phi = circle.clock(process, t)
    gap = phi - circle.clock(process, jnp.zeros_like(t))
    z = xt / expand(circle.scale(process, t), xt)
    data = circle.velocity(phi, x0, eps)
    u, derivative = velocity_and_derivative(diffusion, params, circle, z, t, None, data, cond, key=key)
    residual = eulerian_target(circle, gap, z, data, u, derivative) - u
    cos = expand(jnp.cos(gap), z)
    g = cos * (warm_up * residual + (1 - warm_up) * cos * (data - u))
    return u, jax.lax.stop_gradient(g)
