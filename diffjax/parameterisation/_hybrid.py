"""A network for critically damped Langevin: it predicts the noise of the velocity, which is all the score that counts.

    u_t = (x_t, v_t) = Phi (x_0, 0) + C (eps_x, eps_v),    C C' the covariance given x_0, velocities' start included
    grad_v log p(u_t | x_0) = -eps_v / C_vv                         so  score_v = -eps_v_hat / C_vv

What would be right for data N(0, data_std^2 I) is known, P = C C' + data_std^2 Phi_.x Phi_.x' being the covariance of
u_t, and the network adds what the data have beyond it, on inputs and answers y of unit variance:

    eps_v_hat = C_vv (P^-1 u_t)_v + c_out y,
    c_out^2 = 1 - C_vv^2 (P^-1)_vv = data_std^2 (C_vx Phi_xx - C_xx Phi_vx)^2/|P|        what of eps_v is left to guess

    u_t [b, 2, *d], t --> (x/sqrt(P_xx), v/sqrt(P_vv)) side by side in the last axis --> network --> y

Source: Dockhorn et al. 2022, section 3.2 (their l_t is 1/C_vv; their mixed score keeps v/Sigma_vv of the linear part);
c_out as Karras et al. 2022, eq. 7.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import answered, as_samples, check, check_key, check_time, expand
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Cond, Key, Network, Params, Sample, Scalar, Time
from diffjax.process import CriticallyDamped


class HybridScore(eqx.Module):
    """`(u_t [b, 2, *d], t [] or [b]) -> score [b, 2, *d]` from a network; made by `make_hybrid_score`.

    Parameters, conditions and process are leaves. The position's half of the score is zero: no noise acts there, so
    `score_reverse_sde` and `score_flow` never look at it.
    """

    params: Any
    cond: Any
    process: CriticallyDamped
    data_std: Scalar
    network: Network = eqx.field(static=True)

    def __call__(self, ut: Sample, t: Time) -> Sample:
        eps_v = apply_hybrid(self.network, self.params, self.process, ut, t, self.cond, data_std=self.data_std)
        std = self.process.kernel(t)[1][..., 1, 1]
        return jnp.stack([jnp.zeros_like(eps_v), (-eps_v / expand(std, eps_v)).astype(ut.dtype)], axis=1)


@checked_numbers
def make_hybrid_score(
    params: Params, cond: Cond = None, *, network: Network, process: CriticallyDamped, data_std: Scalar = 1.0
) -> HybridScore:
    """A network trained by `hybrid_loss` as a score, for `score_reverse_sde` and `score_flow`.

    Args:
      params: the network's parameters, any pytree.
      cond: conditions, a pytree whose leaves have the samples' batch axis [b, ...], or None.
      network: see `apply_hybrid` for what it is given, and `Network` for when it is compiled anew.
      process: the forward process.
      data_std: as in training, a scalar.

    Raises:
      ValueError: data_std is not positive.
    """
    data_std = as_scalar("data_std", data_std)
    check(data_std > 0, f"data_std: must be positive, got {data_std}")
    return HybridScore(params, cond, process, data_std, network)


@checked_numbers
def apply_hybrid(
    network: Network,
    params: Params,
    process: CriticallyDamped,
    ut: Float[Array, "b 2 *d"],
    t: Time,
    cond: Cond = None,
    *,
    data_std: Scalar = 1.0,
    key: Key | None = None,
) -> Float[Array, "b *d"]:
    """eps_v_hat [b, *d] at ut [b, 2, *d] and t [] or [b], as above; a key means training.

    The network is given [b, ..., 2 c], where a sample of data is [..., c]: position and velocity side by side; and as
    noise level -logsnr/8 of the data, logsnr = log(Phi_xx^2/C_xx^2). It answers as many features, or c; the last c
    count. `data_std` is the data's standard deviation, per feature, a scalar.
    """
    ut = as_samples("ut", ut)
    check_time(t, ut)
    if key is not None:
        check_key(key)
    phi, chol = process.kernel(t)
    (phi_x, phi_v), c_x, c_vx, c_v = (phi[..., 0, 0], phi[..., 1, 0]), chol[..., 0, 0], chol[..., 1, 0], chol[..., 1, 1]
    mixing = data_std * (c_vx * phi_x - c_x * phi_v)
    p_xx, p_xv = c_x**2 + (data_std * phi_x) ** 2, c_x * c_vx + data_std**2 * phi_x * phi_v
    p_vv = c_vx**2 + c_v**2 + (data_std * phi_v) ** 2
    determinant = mixing**2 + c_v**2 * p_xx  # free of cancellation

    x, v = ut[:, 0], ut[:, 1]
    scaled = [(u / expand(jnp.sqrt(p), u)).astype(u.dtype) for u, p in ((x, p_xx), (v, p_vv))]
    level = jnp.broadcast_to(-(jnp.log(phi_x) - jnp.log(c_x)) / 4, x.shape[:1]).astype(x.dtype)
    if ut.ndim < 3 or ut.shape[1] != 2:
        raise ValueError(f"ut: states of position and velocity, [b, 2, *d], are needed, got shape {ut.shape}")
    y = network.apply(params, jnp.concatenate(scaled, axis=-1), level, cond, key=key)
    wide = (*x.shape[:-1], 2 * x.shape[-1])
    y = answered("network", y, wide if jnp.shape(y) == wide else x.shape)[..., -x.shape[-1] :]
    known = expand(c_v * p_xx / determinant, v) * v - expand(c_v * p_xv / determinant, x) * x
    return (known + expand(mixing / jnp.sqrt(determinant), x) * y).astype(x.dtype)
