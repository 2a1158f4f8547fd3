"""The types that public signatures are written in; the only home of aliases.

A batch axis `b` comes first everywhere; `*d` are the features of one sample (a vector's length, or an image's
height, width and channels). Time is a number in [0, 1] (0 data, 1 noise), one for the whole batch or one a sample.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

Key: TypeAlias = PRNGKeyArray | Shaped[Array, "2"]
Scalar: TypeAlias = float | Float[Array, ""] | Float[np.ndarray, ""]
Time: TypeAlias = Scalar | Float[Array, " b"] | Float[np.ndarray, " b"]
Sample: TypeAlias = Float[Array, "b *d"]
Index: TypeAlias = Int[Array, " b"]
Params: TypeAlias = PyTree
Cond: TypeAlias = PyTree
Grid: TypeAlias = Float[Array, " points"] | Float[np.ndarray, " points"]

Denoiser: TypeAlias = Callable[[Any, Any], Any]
"""`D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]`, the estimate of E[x0 | xt]. Any callable will do; one that is a
pytree (an `equinox.Module`) is an argument of jit, so that new weights compile nothing."""


class Init(Protocol):
    """`init(key, x [b, *d], c_noise [b], cond) -> params`."""

    def __call__(self, key: Any, x: Any, c_noise: Any, cond: Any = None) -> Any: ...


class Apply(Protocol):
    """`apply(params, x [b, *d], c_noise [b], cond, *, key=None) -> y [b, *d]`; a key means training (dropout)."""

    def __call__(self, params: Any, x: Any, c_noise: Any, cond: Any = None, *, key: Any = None) -> Any: ...


class Network(NamedTuple):
    """A network as two pure functions; parameters are any pytree.

    `x [b, *d]` is the scaled noisy sample, `c_noise [b]` what the network is told of the noise level, `cond` a pytree
    whose leaves have a leading batch axis, or None. Build it once and keep it: functions are compared by identity.
    """

    init: Init
    apply: Apply
