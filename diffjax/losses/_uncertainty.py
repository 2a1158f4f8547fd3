"""Loss weights that are learned with the network: each noise level is divided by its own expected loss.

    E[ L(t)/exp(u(t)) + u(t) ],   L(t) the loss at a noise level, u a small function of that level

For any L the minimum over u is at u(t) = log E[L | t], where each level's gradient has been scaled to a loss of one.
u is linear in fixed waves of the noise level, u = k0 + sum_j k_j wave_j(c_noise), so the minimum is unique. Its
parameters train with the network's, under `params["loss"]`:

    params["network"] --> denoising_loss --> aux: t [b], per_sample [b] --+
    params["loss"] ----> uncertainty(params, c_noise(t)) = u [b] ---------+--> mean( per_sample e^-u + u )

Source: Karras et al. 2024 (Analyzing and improving the training dynamics of diffusion models), eqs. 14-16; Kendall et
al. 2018 (Multi-task learning using uncertainty).
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import part_of
from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.parameterisation._diffusion import Diffusion, check_diffusion

LOWEST, HIGHEST = 1 / 16, 1.0
"""Frequencies in c_noise = -logsnr/8: periods of 128 (longer than its range) down to 8 in logsnr."""


@checked_numbers
class Uncertainty(eqx.Module):
    """u(c_noise): a constant and waves of geometric frequencies, linear in its parameters.

    Attributes:
      waves: how many frequencies; each has a cosine and a sine.
    """

    waves: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        if self.waves < 1:
            raise ValueError(f"waves: at least 1 is needed, got {self.waves}")

    def init(self) -> Params:
        """The parameters, a pytree of zeros in float32: the loss starts as the plain one."""
        return {"bias": jnp.zeros((), jnp.float32), "weights": jnp.zeros(2 * self.waves, jnp.float32)}

    def __call__(self, params: Params, c_noise: Float[Array, " b"]) -> Float[Array, " b"]:
        """u [b], in nats, at noise levels c_noise [b]."""
        weights, bias = (part_of(params, name, "Uncertainty") for name in ("weights", "bias"))
        dtype = weights.dtype
        frequencies = jnp.geomspace(LOWEST, HIGHEST, self.waves, dtype=dtype)
        angle = (2 * jnp.pi * c_noise.astype(dtype))[:, None] * frequencies
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) @ weights + bias


def uncertainty_loss(
    diffusion: Diffusion, params: Params, aux: dict[str, Array], *, uncertainty: Uncertainty
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """mean( per_sample/exp(u(t)) + u(t) ) from what `denoising_loss` returns with its loss.

    Use it with a weighting that is about right by itself, such as `EDMWeighting`, and keep reporting the plain loss:
    this one has no meaning as a number.

    Args:
      diffusion: as in `denoising_loss`; it gives the noise level, c_noise, at t.
      params: u's, from `uncertainty.init()`.
      aux: `{"t": [b], "per_sample": [b]}`, of times without a correction: u would learn that of `ImportanceTimes` away.
      uncertainty: u.

    Returns:
      The loss, a scalar, and aux with the weighted `per_sample` [b] and `uncertainty` [b], u itself, in place.
    """
    check_diffusion(diffusion)
    per_sample = aux["per_sample"]
    c_noise: Any = diffusion.parameterisation.noise_level(diffusion.process, aux["t"])
    u = uncertainty(params, c_noise).astype(per_sample.dtype)
    weighted = per_sample * jnp.exp(-u) + u
    return jnp.mean(weighted), aux | {"per_sample": weighted, "uncertainty": u}
