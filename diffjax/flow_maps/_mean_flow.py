"""MeanFlow: the average velocity by its own derivative along the flow, with data alone, or with a teacher.

On the line every process is rectified flow, z = (1 - tau) x0/d + tau eps, and the network's answer y at (t, s) the
average velocity u from tau_t to tau_s. At the exact map, with v the flow's velocity,

    u(z, t, s) = v - (tau_t - tau_s) du/dtau,      du/dtau = du/dz v + du/dtau, s held,   by one jvp

and this, stopped, is the target. Two velocities stand in it, the explicit v and the tangent of the jvp:

    loss          explicit                tangent
    MeanFlow      eps - x0/d              eps - x0/d           the conditional velocity: the target is linear in it
    improved      eps - x0/d              u(z, t, t), stopped  which the network cannot see: another variance
    teacher       (z - D/d)/tau           the same             no variance

The network's own velocity in both would teach nothing: at s = t the target were the answer itself. Where s = t all are
the denoising loss of the velocity.

    key --> pairs --> t, s --+                    +--> u -------------------------+
        +-> eps ------+      |                    |                               v
    x0 ---------------+--> z, v --> network, jvp -+--> du/dtau --> target --> residual --> weight --> mean
                             ^
                teacher, guidance

Source: Geng et al. 2025 (Mean flows for one-step generative modeling, arXiv 2505.13447), eqs. 6 to 11; Geng et al. 2025
(Improved mean flows, arXiv 2512.02012).
"""

from collections.abc import Callable
from functools import partial

import equinox as eqx
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
    values_at_once,
)
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Cond, Denoiser, Index, Key, Params, Sample, Scalar, Time
from diffjax.flow_maps._eulerian import (
    average_velocity,
    check_eulerian,
    eulerian_target,
    velocity_and_derivative,
)
from diffjax.losses._denoising import draw_noise
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import Line, check_known


class GuidedVelocity(eqx.Module):
    """Classifier-free guidance inside the target, so that one evaluation of the trained map is guided.

        v_g = omega v + (1 - omega - kappa) u(z, t, t | null) + kappa u(z, t, t | cond)

    with u the network's own, stopped. The map learns the flow of v_null + scale (v_cond - v_null), of
    scale = omega/(1 - kappa): mixing in u(. | cond) lowers the variance at the same scale. v_g is v outside the
    interval, and where the condition is the null one: drop conditions by `losses.drop_condition` before the loss, for
    u(. | null) has to be learnt too.

    Attributes:
      null: the null condition, a pytree like cond, each leaf broadcasting to one sample's.
      omega: weight of v.
      kappa: weight of u(. | cond), below 1; None: 0, at one evaluation less.
      low: guided where low <= t <= high.
      high: see above.

    Raises:
      ValueError: kappa is not below 1.

    Source: Geng et al. 2025 (arXiv 2505.13447), eq. 21.
    """

    null: Cond
    omega: Scalar = eqx.field(converter=partial(as_scalar, "omega"))
    kappa: Scalar | None = eqx.field(converter=lambda k: None if k is None else as_scalar("kappa", k), default=None)
    low: Scalar = eqx.field(converter=partial(as_scalar, "low"), default=0.0)
    high: Scalar = eqx.field(converter=partial(as_scalar, "high"), default=1.0)

    @values_at_once
    def __check_init__(self):
        if self.kappa is not None:
            check(self.kappa < 1, f"kappa: must be below 1, got {self.kappa}")


@checked_numbers
def mean_flow_loss(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    pairs: Callable[..., tuple[Time, Time, Time]],
    teacher: Denoiser | None = None,
    improved: bool = False,
    power: Scalar = 0.0,
    offset: Scalar = 1e-3,
    guidance: GuidedVelocity | None = None,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """E[ sg(e + offset)^-power e ],  e = mean_features (u - sg(target))^2, estimated on a batch.

    Args:
      diffusion: network, process and parameterisation; the network takes a second time (c_noise [b, 2]) and the angle
        (`clock="angle"`). It is called with a key, so dropout is on.
      params: the network's parameters.
      key: for pairs, noise and dropout; the noise of sample i uses `fold_in(eps_key, index_i)`.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      pairs: `(key, n, *, index, total) -> (t [n], s [n], correction [n])` with s <= t, such as
        `PartlyEqual(SortedPairs(LogitNormalTimes(process, -0.4, 1.0)), 0.75)`, MeanFlow's.
      teacher: a denoiser whose velocity replaces the conditional one (with the condition that it should have); None:
        from data alone.
      improved: the network's own velocity as the tangent. Not with a teacher, whose velocity is exact already.
      power: p. With 0 the minimiser is the flow map. Otherwise it is not: each target's mean is replaced by its
        spatial median (1/2) or mode (1). On vectors of few features that shows: samples concentrate, and more steps do
        not help. On images, where e hardly varies from sample to sample, it does not, and the papers take 1 (latents)
        and 3/4 (CIFAR-10).
      offset: c, of the mean square; positive. The papers' c = 0.01 is of the sum over all features.
      guidance: `GuidedVelocity`, None for none.
      index: global indices [b] of the samples (default 0 .. b - 1), so that a sample's pair and noise do not depend on
        the device that draws it.
      total: the size of the global batch (default b).

    Returns:
      The loss, a scalar, and `{"t", "s", "per_sample", "error"}`, each [b]: times, the weighted loss and e itself. With
      power = 1 the loss is nearly 1 whatever is learnt: watch e.

    Raises:
      ValueError: a shape does not fit; the prediction or the clock has no bounded derivative (`check_eulerian`); a pair
        has s > t; improved with a teacher; guidance without conditions.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import networks
    >>> from diffjax.flow_maps import PartlyEqual, UniformPairs, mean_flow_loss
    >>> network, process = dj.from_linen(networks.MLP(width=8, depth=1)), dj.Cosine()
    >>> diffusion = dj.Diffusion(network, process, dj.parameterisation.EDMPrediction(1.0, clock="angle"))
    >>> x0 = jnp.ones((4, 2))
    >>> params = network.init(jax.random.key(0), x0, jnp.zeros((4, 2)))  # two times
    >>> pairs = PartlyEqual(UniformPairs(process), 0.5)
    >>> loss, aux = mean_flow_loss(diffusion, params, jax.random.key(1), x0, pairs=pairs)
    >>> aux["error"].shape
    (4,)

    Source: Geng et al. 2025 (arXiv 2505.13447), eqs. 9 to 11 and 22; (arXiv 2512.02012), eq. 12.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    with at_once(offset):
        check(jnp.asarray(offset) > 0, f"offset: must be positive, got {offset}")
    n = x0.shape[0]
    pairs_key, eps, network_key, index = draw_noise(key, x0, index)
    drawn = pairs(pairs_key, n, index=index, total=n if total is None else total)
    t, s, correction = (answered("pairs", part, (n,)).astype(time_dtype(x0)) for part in drawn)
    residual = mean_flow_residual(
        diffusion,
        params,
        x0,
        eps,
        t,
        s,
        cond,
        teacher=teacher,
        improved=improved,
        guidance=guidance,
        key=network_key,
    )
    error = mean_features(residual**2)
    per_sample = correction * jax.lax.stop_gradient(error + offset) ** -power * error
    return jnp.mean(per_sample), {"t": t, "s": s, "per_sample": per_sample, "error": error}


def mean_flow_residual(
    diffusion: Diffusion,
    params: Params,
    x0: Sample,
    eps: Sample,
    t: Time,
    s: Time,
    cond: Cond = None,
    *,
    teacher: Denoiser | None = None,
    improved: bool = False,
    guidance: GuidedVelocity | None = None,
    key: Key | None = None,
) -> Sample:
    """u - sg(target), [b, *d], of given noise eps [b, *d] and times t, s [b]; see `mean_flow_loss`.

    Velocities are on the line, in units of data_std: eps - x0/data_std, whatever the process. `key` is the network's,
    None to evaluate.
    """
    x0 = as_samples("x0", x0)
    eps = as_samples("eps", eps, x0.shape)
    check_eulerian(diffusion)
    for name, time in (("t", t), ("s", s)):
        check_time(time, x0, name)
    check_known("any", t, s)
    if improved and teacher is not None:
        raise ValueError("improved: a teacher's velocity is exact, and is the tangent; leave one of the two out")
    process = diffusion.process
    line = Line(diffusion.parameterisation.data_std)
    tau = line.clock(process, t)
    z = expand(1 - tau, x0) * (x0 / line.data_std) + expand(tau, x0) * eps
    z = z.astype(x0.dtype)
    own = lambda cond: jax.lax.stop_gradient(average_velocity(diffusion, params, line, z, t, t, cond, key=key))

    v = line.velocity(tau, x0, eps) if teacher is None else _velocity(teacher, process, line, z, t)
    if guidance is not None:
        v = _guided(guidance, v, t, cond, own)
    v = v.astype(z.dtype)
    tangent = own(cond) if improved else v
    u, derivative = velocity_and_derivative(diffusion, params, line, z, t, s, tangent, cond, key=key)
    target = eulerian_target(line, tau - line.clock(process, s), z, v, u, derivative)
    return u - jax.lax.stop_gradient(target)


def _velocity(teacher, process, line, z, t):
    """The line's velocity by a denoiser, (z - x0_hat/d)/tau; without noise, where E[eps | z] is 0, -x0_hat/d."""
    xt = (expand(line.scale(process, t), z) * z).astype(z.dtype)
    x0_hat = answered("teacher", teacher(xt, t), xt.shape) / line.data_std
    tau = expand(line.clock(process, t), z)
    return jnp.where(tau > 0, (z - x0_hat) / jnp.where(tau > 0, tau, 1.0), -x0_hat)


def _guided(guidance, v, t, cond, own):
    """v_g of `GuidedVelocity`, [b, *d]."""
    if not jax.tree.leaves(cond):
        raise ValueError("guidance: conditions are needed, got cond = None")
    null = jax.tree.map(lambda c, empty: jnp.broadcast_to(jnp.asarray(empty, c.dtype), c.shape), cond, guidance.null)
    same = jax.tree.map(lambda c, empty: jnp.all((c == empty).reshape(c.shape[0], -1), axis=1), cond, null)
    is_null = jnp.all(jnp.stack(jax.tree.leaves(same)), axis=0)
    kappa = 0.0 if guidance.kappa is None else guidance.kappa
    mixed = guidance.omega * v + (1 - guidance.omega - kappa) * own(null)
    if guidance.kappa is not None:
        mixed = mixed + kappa * own(cond)
    applies = (t >= guidance.low) & (t <= guidance.high) & ~is_null
    return jnp.where(expand(applies, v), mixed, v)
