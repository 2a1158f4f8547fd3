"""The types that public signatures are written in; the only home of aliases.

A batch axis `b` comes first everywhere; `*d` are the features of one sample (a vector's length, or an image's
height, width and channels). Time is a number in [0, 1] (0 data, 1 noise), one for the whole batch or one a sample.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

Key: TypeAlias = PRNGKeyArray | Shaped[Array, "2"]
Scalar: TypeAlias = float | Float[Array, ""] | Float[np.ndarray, ""]
Time: TypeAlias = Scalar | Float[Array, " b"] | Float[np.ndarray, " b"]
Sample: TypeAlias = Float[Array, "b *d"]
"""A batch of at least one sample, of any floating-point dtype; NumPy's arrays will do. Public functions refuse others,
and answers of the user's functions of another shape or dtype, by a ValueError that names the argument: nothing
broadcasts."""
Index: TypeAlias = Int[Array, " b"]
Params: TypeAlias = PyTree
Cond: TypeAlias = PyTree
Grid: TypeAlias = Float[Array, " points"] | Float[np.ndarray, " points"]

Denoiser: TypeAlias = Callable[[Any, Any], Any]
"""`D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]`, the estimate of E[x0 | xt]. Any callable will do; one that is a
pytree (an `equinox.Module`) is an argument of jit, so that new weights compile nothing."""


@runtime_checkable
class FlowMap(Protocol):
    """A denoiser with a second time: `F(xt [b, *d], t, s) -> [b, *d]`, the average denoiser A of the step from t to
    s <= t, each [] or [b]; `F(xt, t) -> x0_hat`, as a denoiser. A plain function of (xt, t, s) will do for `Jump`."""

    def __call__(self, xt: Any, t: Any, s: Any = None) -> Any: ...


class Init(Protocol):
    """`init(key, x [b, *d], c_noise [b] or [b, 2], cond) -> params`."""

    def __call__(self, key: Any, x: Any, c_noise: Any, cond: Any = None) -> Any: ...


class Apply(Protocol):
    """`apply(params, x [b, *d], c_noise [b] or [b, 2], cond, *, key=None) -> y [b, *d]`; a key means training
    (dropout)."""

    def __call__(self, params: Any, x: Any, c_noise: Any, cond: Any = None, *, key: Any = None) -> Any: ...


class Network(NamedTuple):
    """A network as two pure functions; parameters are any pytree.

    `x [b, *d]` is the scaled noisy sample, `c_noise [b]` what the network is given of the noise level, `cond` a pytree
    whose leaves have a leading batch axis, or None. It is static in jit. `from_linen` of equal modules gives equal
    networks; others are functions compared by identity: build them once and keep them.

    The network of a few-step model has a second time: `c_noise [b, 2]` is its clock at t and at s <= t. Ours have the
    layers for it only where they are initialised with it; `networks.with_second_time` adds them to trained parameters.
    """

    init: Init
    apply: Apply
