"""A network for critically damped Langevin: it predicts the noise of the velocity, which is all the score that counts.

    u_t = (x_t, v_t) = Phi (x_0, 0) + C (eps_x, eps_v),    C C' the covariance given x_0, velocities' start included
    grad_v log p(u_t | x_0) = -eps_v / C_vv                         so  score_v = -eps_v_hat / C_vv

    u_t [b, 2, *d], t --> (x, v/sqrt(M)) side by side in the last axis --> network --> its last features: eps_v_hat

Source: Dockhorn et al. 2022, eqs. 8 to 10 (their l_t is 1/C_vv).
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import expand
from diffjax._typing import Cond, Network, Params, Sample, Time
from diffjax.process import CriticallyDamped, linear_kernel


class HybridScore(eqx.Module):
    """`(u_t [b, 2, *d], t [] or [b]) -> score [b, 2, *d]` from a network; made by `make_hybrid_score`.

    Parameters, conditions and process are leaves. The position's half of the score is zero: no noise acts there, so
    `score_reverse_sde` and `score_flow` never look at it.
    """

    params: Any
    cond: Any
    process: CriticallyDamped
    network: Network = eqx.field(static=True)

    def __call__(self, ut: Sample, t: Time) -> Sample:
        eps_v = apply_hybrid(self.network, self.params, self.process, ut, t, self.cond)
        std = linear_kernel(self.process, t)[1][..., 1, 1]
        return jnp.stack([jnp.zeros_like(eps_v), (-eps_v / expand(std, eps_v)).astype(ut.dtype)], axis=1)


def make_hybrid_score(params: Params, cond: Cond = None, *, network: Network, process: CriticallyDamped) -> HybridScore:
    """A network trained by `hybrid_loss` as a score, for `score_reverse_sde` and `score_flow`.

    Args:
      params: the network's parameters, any pytree.
      cond: conditions, a pytree whose leaves have the samples' batch axis [b, ...], or None.
      network: see `apply_hybrid` for what it is given. Build it once: it is compared by identity.
      process: the forward process.
    """
    return HybridScore(params, cond, process, network)


def apply_hybrid(
    network: Network,
    params: Params,
    process: CriticallyDamped,
    ut: Float[Array, "b 2 *d"],
    t: Time,
    cond: Cond = None,
    *,
    key: Any = None,
) -> Float[Array, "b *d"]:
    """eps_v_hat [b, *d], what the network answers to ut [b, 2, *d] at t [] or [b]; a key means training.

    It is given [b, ..., 2 c], where a sample of data is [..., c]: position and velocity, the latter in units of
    sqrt(mass), side by side; and as noise level -logsnr/8 of the data, logsnr = log(Phi_xx^2/C_xx^2). What it answers
    has as many features or c; the last c count.
    """
    phi, chol = linear_kernel(process, t)
    logsnr = 2 * (jnp.log(phi[..., 0, 0]) - jnp.log(chol[..., 0, 0]))
    level = jnp.broadcast_to(-logsnr / 8, ut.shape[:1]).astype(ut.dtype)
    x, v = ut[:, 0], ut[:, 1] / jnp.sqrt(process.mass).astype(ut.dtype)
    y = network.apply(params, jnp.concatenate([x, v], axis=-1), level, cond, key=key)
    return y[..., -x.shape[-1] :].astype(ut.dtype)
