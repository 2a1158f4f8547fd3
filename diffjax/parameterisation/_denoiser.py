"""A network as a denoiser: the one thing that samplers, guidance and likelihood see.

params, cond, process, network --> make_denoiser --> D(xt, t) = E[x0 | xt], estimated
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import expand
from diffjax._typing import Cond, Denoiser, Network, Params, Sample, Time
from diffjax.parameterisation._base import AbstractParameterisation, recover
from diffjax.process import AbstractGaussianProcess


class NetworkDenoiser(eqx.Module):
    """`D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]` from a network; made by `make_denoiser`.

    Parameters, conditions, process and parameterisation are leaves: it is an argument of jit, and neither new
    weights, new conditions nor another beta compile anything. `cond` leaves have the batch axis of xt.
    """

    params: Any
    cond: Any
    process: AbstractGaussianProcess
    parameterisation: AbstractParameterisation
    network: Network = eqx.field(static=True)

    def __call__(self, xt: Sample, t: Time) -> Sample:
        y = apply_network(self.network, self.params, self.process, self.parameterisation, xt, t, self.cond)
        return recover(self.parameterisation, self.process, y, xt, t)[0]


def apply_network(
    network: Network,
    params: Params,
    process: AbstractGaussianProcess,
    parameterisation: AbstractParameterisation,
    xt: Sample,
    t: Time,
    cond: Cond = None,
    *,
    key: Any = None,
) -> Float[Array, "b ..."]:
    """The network's raw answer y [b, *d] to xt [b, *d] at t [] or [b], in the dtype of xt; a key means training.

    A network that answers more than y, such as a variance beside it, may have a shape [b, ...] of its own.
    """
    scale = parameterisation.input_scale(process, t)
    level = jnp.broadcast_to(parameterisation.noise_level(process, t), xt.shape[:1]).astype(xt.dtype)
    scaled = (expand(scale, xt) * xt).astype(xt.dtype)
    return network.apply(params, scaled, level, cond, key=key).astype(xt.dtype)


def make_denoiser(
    params: Params,
    cond: Cond = None,
    *,
    network: Network,
    process: AbstractGaussianProcess,
    parameterisation: AbstractParameterisation,
) -> NetworkDenoiser:
    """A network as a denoiser.

    Args:
      params: the network's parameters, any pytree.
      cond: conditions, a pytree whose leaves have the samples' batch axis [b, ...], or None.
      network: init and apply; see `Network`. Build it once: it is compared by identity.
      process: the forward process whose xt the denoiser will see. It may differ from the one trained on.
      parameterisation: what the network predicts.
    """
    return NetworkDenoiser(params, cond, process, parameterisation, network)


def score(process: AbstractGaussianProcess, denoiser: Denoiser, xt: Sample, t: Time) -> Sample:
    """grad log p_t(xt) = (alpha x0_hat - xt)/sigma^2, [b, *d], for xt [b, *d] and t [] or [b].

    Source: Tweedie's formula; Efron 2011, eq. 1.4; Vincent 2011.
    """
    alpha, sigma = expand(process.alpha(t), xt), expand(process.sigma(t), xt)
    return (alpha * denoiser(xt, t) - xt) / sigma**2
