"""A network as a denoiser: the one thing that samplers, guidance and likelihood see.

Diffusion, params, cond --> make_denoiser --> D(xt, t) = E[x0 | xt], estimated
"""

from typing import Any, cast

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import answered, as_samples, check_key, check_time, expand
from diffjax._typing import Cond, Denoiser, FlowMap, Key, Params, Sample, Time
from diffjax.parameterisation._base import recover
from diffjax.parameterisation._diffusion import Diffusion, check_diffusion
from diffjax.process import AbstractGaussianProcess


class NetworkDenoiser(eqx.Module):
    """`D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]` from a network; made by `make_denoiser`.

    Parameters, conditions and the numbers of the process are leaves: it is an argument of jit, and neither new
    weights, new conditions nor another beta compile anything. `cond` leaves have the batch axis of xt.
    """

    diffusion: Diffusion
    params: Any
    cond: Any

    def per_sample_fields(self) -> tuple[str, ...]:
        """The fields whose leaves have the batch axis, [b, ...]."""
        return ("cond",)

    def __call__(self, xt: Sample, t: Time) -> Sample:
        xt = as_samples("xt", xt)
        y = answered("network", apply_network(self.diffusion, self.params, xt, t, self.cond), xt.shape)
        return recover(self.diffusion.parameterisation, self.diffusion.process, y, xt, t)[0]


def apply_network(
    diffusion: Diffusion,
    params: Params,
    xt: Sample,
    t: Time,
    cond: Cond = None,
    *,
    s: Time | None = None,
    key: Key | None = None,
) -> Float[Array, "b ..."]:
    """The network's raw answer y [b, *d] to xt [b, *d] at t [] or [b], in the dtype of xt; a key means training.

    With a second time s [] or [b] it is given c_noise [b, 2], of t and of s; its parameters must have one.

    A network that answers more than y, such as a variance with it, may have a shape [b, ...] of its own.

    Raises:
      ValueError: diffusion is something else, xt or t is not as above, or the network answers no floating-point
        numbers, or not one row a sample.
    """
    check_diffusion(diffusion)
    xt = as_samples("xt", xt)
    check_time(t, xt)
    if s is not None:
        check_time(s, xt, "s")
    if key is not None:
        check_key(key)
    process, parameterisation = diffusion.process, diffusion.parameterisation
    scale = parameterisation.input_scale(process, t)
    noise_level = lambda time: jnp.broadcast_to(parameterisation.noise_level(process, time), xt.shape[:1]).astype(
        xt.dtype
    )
    level = noise_level(t) if s is None else jnp.stack([noise_level(t), noise_level(s)], axis=1)
    scaled = (expand(scale, xt) * xt).astype(xt.dtype)
    y = diffusion.network.apply(params, scaled, level, cond, key=key)
    return answered("network", y, (xt.shape[0], ...)).astype(xt.dtype)


def make_denoiser(diffusion: Diffusion, params: Params, cond: Cond = None) -> NetworkDenoiser:
    """A network as a denoiser.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import networks
    >>> network = dj.from_linen(networks.MLP(width=16, depth=1))
    >>> diffusion = dj.Diffusion(network, dj.Cosine(), dj.VPrediction())
    >>> xt = jnp.ones((4, 2))
    >>> params = network.init(jax.random.key(0), xt, jnp.zeros(4), None)
    >>> dj.make_denoiser(diffusion, params)(xt, 0.5).shape
    (4, 2)

    Args:
      diffusion: network, process and parameterisation; the process is that of the xt which the denoiser will see, and
        may differ from the one trained on.
      params: the network's parameters, any pytree.
      cond: conditions, a pytree whose leaves have the samples' batch axis [b, ...], or None.

    Raises:
      ValueError: diffusion is something else, such as its network.
    """
    check_diffusion(diffusion)
    return NetworkDenoiser(diffusion, params, cond)


def predict(denoiser: Denoiser | FlowMap, xt: Sample, t: Time, s: Time | None = None) -> Sample:
    """D(xt, t) of any denoiser, [b, *d], for xt [b, *d] and t [] or [b], with question and answer checked.

    With s [] or [b] it is A(xt, t, s) of a flow map.

    Raises:
      ValueError: xt is no batch of floating-point samples, t does not fit it, or the denoiser answers another shape
        (also one that would broadcast) or other numbers.
    """
    xt = as_samples("xt", xt)
    check_time(t, xt)
    if s is None:
        return answered("denoiser", cast(Denoiser, denoiser)(xt, t), xt.shape)
    check_time(s, xt, "s")
    return answered("flow map", cast(FlowMap, denoiser)(xt, t, s), xt.shape)


def score(process: AbstractGaussianProcess, denoiser: Denoiser, xt: Sample, t: Time) -> Sample:
    """grad log p_t(xt) = (alpha x0_hat - xt)/sigma^2, [b, *d], for xt [b, *d] and t [] or [b].

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, data = dj.Rectified(), dj.Gaussian(jnp.zeros(2), 1.0)
    >>> denoiser = dj.exact_denoiser(data, process)
    >>> print(dj.score(process, denoiser, jnp.ones((1, 2)), 0.5))  # -xt/(alpha^2 + sigma^2)
    [[-2. -2.]]

    Source: Tweedie's formula; Efron 2011, eq. 1.4; Vincent 2011.
    """
    x0_hat = predict(denoiser, xt, t)
    alpha, sigma = expand(process.alpha(t), xt), expand(process.sigma(t), xt)
    return (alpha * x0_hat - xt) / sigma**2
