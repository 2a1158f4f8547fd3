"""A network as a flow map: the average denoiser of the step from t to s.

Diffusion, params, cond, knows --> make_flow_map --> F(xt, t, s) = A;  F(xt, t) = D

    knows = any     the network is given both times, c_noise [b, 2],
            dyadic  as here
            zero    s is 0                       \\  s follows from t, and
            grid    s is the grid's next time    /  the network is given t alone, c_noise [b]

A is the x0 that `recover` gives of the network's answer y at t, whatever the prediction.
"""

from typing import Any

import equinox as eqx

from diffjax._arrays import answered
from diffjax._typing import Cond, Params, Sample, Time
from diffjax.parameterisation._base import recover
from diffjax.parameterisation._denoiser import apply_network
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import AbstractFlowMap, AbstractGaussianProcess, Dyadic
from diffjax.process._flow_map import Known, as_known


class NetworkFlowMap(AbstractFlowMap):
    """`F(xt [b, *d], t, s) -> A [b, *d]` from a network; made by `make_flow_map`.

    Parameters, conditions and the numbers of the process are leaves; `knows` is static.
    """

    diffusion: Diffusion
    params: Any
    cond: Any
    knows: Known = eqx.field(static=True, converter=as_known)

    @property
    def process(self) -> AbstractGaussianProcess:
        return self.diffusion.process

    def per_sample_fields(self) -> tuple[str, ...]:
        """The fields whose leaves have the batch axis, [b, ...]."""
        return ("cond",)

    def _average(self, xt: Sample, t: Time, s: Time) -> Sample:
        second = s if self.knows == "any" or isinstance(self.knows, Dyadic) else None
        y = answered("network", apply_network(self.diffusion, self.params, xt, t, self.cond, s=second), xt.shape)
        return recover(self.diffusion.parameterisation, self.process, y, xt, t)[0]


def make_flow_map(diffusion: Diffusion, params: Params, cond: Cond = None, *, knows: Any) -> NetworkFlowMap:
    """A network as a flow map, for `sample(..., Jump())` and few steps.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import networks
    >>> network = dj.from_linen(networks.MLP(width=8, depth=1))
    >>> xT = jax.random.normal(jax.random.key(0), (4, 2))
    >>> params = network.init(jax.random.key(1), xT, jnp.zeros((4, 2)))  # two times: it knows any pair
    >>> diffusion = dj.Diffusion(network, dj.Cosine(), dj.parameterisation.EDMPrediction(clock="angle"))
    >>> F = dj.make_flow_map(diffusion, params, knows="any")
    >>> dj.sample(None, dj.Cosine(), F, xT, jnp.array([1.0, 0.5, 0.0]), dj.Jump()).shape  # two evaluations
    (4, 2)

    Args:
      diffusion: network, process and parameterisation, as it was trained.
      params: the network's parameters, any pytree; with the leaves of a second time where it knows any pair, or dyadic
        ones.
      cond: conditions, a pytree whose leaves have the samples' batch axis [b, ...], or None.
      knows: the pairs (t, s) that it was trained on: "any" (0 <= s <= t), "zero" (s = 0: consistency models), a
        descending grid of times [n + 1], each to the next (progressive distillation), or `process.Dyadic(grid)`
        (shortcut models). It refuses others.

    Raises:
      ValueError: knows is something else.

    Source: Boffi et al. 2024 (arXiv 2406.07507), definition 2.1; Kim et al. 2024 (arXiv 2310.02279), eq. 5.
    """
    return NetworkFlowMap(diffusion, params, cond, knows)  # pyright: ignore[reportCallIssue] - `process` is a property
