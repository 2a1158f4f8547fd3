"""A process from two functions of time, where writing a class is too much."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jax.tree_util import Partial

from diffjax._typing import Time
from diffjax.process._base import AbstractGaussianProcess


def _as_tree(function: Any) -> Any:
    return function if isinstance(function, eqx.Module | Partial) else Partial(function)


class Schedule(AbstractGaussianProcess):
    """One's own alpha(t) and sigma(t), elementwise in t; everything else follows by differences and bisection.

    >>> from diffjax.process import Schedule, logsnr
    >>> process = Schedule(lambda t: 1 - t**2, lambda t: t)
    >>> print(f"{logsnr(process, 0.5):.4f}")
    0.8109

    Attributes:
      data_scale: alpha. A plain function is static: build it once, for it is compared by identity. An `eqx.Module`,
        or a `jax.tree_util.Partial` with numbers, has leaves that train.
      noise_scale: sigma, in the same way.

    Raises:
      ValueError: alpha or sigma is not positive and finite, but for alpha(1) and sigma(0), which may be 0; or logsnr
        does not fall.
    """

    data_scale: Callable = eqx.field(converter=_as_tree)
    noise_scale: Callable = eqx.field(converter=_as_tree)

    def alpha(self, t: Time) -> Time:
        return self.data_scale(t)

    def sigma(self, t: Time) -> Time:
        return self.noise_scale(t)
