"""A diffusion model without its parameters: what losses train and denoisers are made of.

network            (params, c_in xt, c_noise, cond) -> y       static, compared as functions are
process            xt = alpha(t) x0 + sigma(t) eps             leaves: may be learned, or changed without compiling
parameterisation   y = a(t) x0 + b(t) eps                      leaves

Diffusion, params --> denoising_loss, negative_continuous_elbo, ...     training
          |
          +-------> make_denoiser --> D(xt, t)                 sampling, guidance, likelihood
"""

from typing import Any

import equinox as eqx

from diffjax._typing import Network
from diffjax.parameterisation._base import AbstractParameterisation
from diffjax.process import AbstractGaussianProcess


class Diffusion(eqx.Module):
    """A network, the process whose samples it sees, and what it predicts of them.

    It is a pytree whose leaves are the numbers of the process and the parameterisation: pass it through `jax.jit`,
    differentiate in it, or build it inside a loss. Parameters are not part of it.

    Attributes:
      network: init and apply; see `Network`. Static: another one compiles anew. `from_linen` of equal modules gives
        equal networks; others are compared by identity, so build them once.
      process: the forward process. A denoiser's may differ from the one trained on:
        `dataclasses.replace(diffusion, process=other)`.
      parameterisation: what the network predicts, and the clock of its noise level: as in training.

    Raises:
      ValueError: a part is of another kind.

    Example:
      A schedule trains where the loss builds the Diffusion of a process from its parameters:

        >>> import jax, jax.numpy as jnp
        >>> import diffjax as dj
        >>> from diffjax import networks
        >>> network = dj.from_linen(networks.MLP(width=8, depth=1))
        >>> x0 = jnp.ones((4, 2))
        >>> params = {
        ...     "network": network.init(jax.random.key(0), x0, jnp.zeros(4)),
        ...     "process": dj.process.LearnedLogsnr(13.0, -5.0),
        ... }
        >>> def loss_fn(params, key):
        ...     diffusion = dj.Diffusion(network, params["process"], dj.VPrediction())
        ...     times = dj.StratifiedTimes(diffusion.process)
        ...     return dj.losses.negative_continuous_elbo(diffusion, params["network"], key, x0, times=times)[0]
        >>> gradient = jax.grad(loss_fn)(params, jax.random.key(1))
        >>> any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient["process"]))
        True
    """

    network: Network = eqx.field(static=True)
    process: AbstractGaussianProcess
    parameterisation: AbstractParameterisation

    def __check_init__(self):
        kinds = {"network": Network, "process": AbstractGaussianProcess, "parameterisation": AbstractParameterisation}
        for name, kind in kinds.items():
            if not isinstance(part := getattr(self, name), kind):
                how = " (from_linen, from_nnx and from_equinox make one)" if kind is Network else ""
                raise ValueError(f"{name}: {kind.__name__} is needed{how}, got {type(part).__name__}")


def check_diffusion(diffusion: Any) -> None:
    """Raises `ValueError` where something else than a `Diffusion` is given, such as its network."""
    if not isinstance(diffusion, Diffusion):
        made = "Diffusion(network, process, parameterisation)"
        raise ValueError(f"diffusion: {made} is needed, got {type(diffusion).__name__}")
