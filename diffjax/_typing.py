"""The types that public signatures are written in; the only home of aliases.

A batch axis `b` comes first everywhere; `*d` are the features of one sample (a vector's length, or an image's
height, width and channels). Time is a number in [0, 1] (0 data, 1 noise), one for the whole batch or one a sample.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped
from typing_extensions import TypeAliasType

# Each alias knows its name, so that `help` shows it and not what it stands for.

Key = TypeAliasType("Key", PRNGKeyArray | Shaped[Array, "2"])
Scalar = TypeAliasType("Scalar", float | Float[Array, ""] | Float[np.ndarray, ""])
Time = TypeAliasType("Time", Scalar | Float[Array, " b"] | Float[np.ndarray, " b"])
WholeNumber = TypeAliasType("WholeNumber", int | Int[Array, ""])
"""A whole number that may be traced, such as the number of a training step."""
PerSample = TypeAliasType("PerSample", int | Scalar | Float[Array, "..."] | Float[np.ndarray, "..."])
"""A number for all samples, [], or one for each, [b]; functions refuse other shapes by name."""
Sample = TypeAliasType("Sample", Float[Array, "b *d"])
"""A batch of at least one sample, of any floating-point dtype; NumPy's arrays will do. Public functions refuse others,
and answers of the user's functions of another shape or dtype, by a ValueError that names the argument: nothing
broadcasts."""
Saved = TypeAliasType("Saved", Float[Array, "k b *d"])
"""The states at k times."""
Index = TypeAliasType("Index", Int[Array, " b"])
Params = TypeAliasType("Params", PyTree)
Cond = TypeAliasType("Cond", PyTree)
Grid = TypeAliasType("Grid", Float[Array, " points"] | Float[np.ndarray, " points"])
GridLike = TypeAliasType("GridLike", Grid | Sequence[float | int])
"""A grid of times, [n + 1], or a list of them."""

Numbers = TypeAliasType("Numbers", float | Float[Array, "..."] | Float[np.ndarray, "..."])
"""Numbers of any shape that a formula broadcasts, such as a weight of a method: [n] for n steps, [] inside a step."""
OnGrid = TypeAliasType("OnGrid", Array | np.ndarray)
"""What is computed once for a grid, [n + 1] for its points or [n] for its steps: NumPy's in float64 where all is known,
JAX's where something is traced."""
Weights = TypeAliasType("Weights", PyTree)
"""A stepper's weights: what its `prepare` gives, a NamedTuple (of NamedTuples) of `Numbers`, or one row of it."""
State = TypeAliasType("State", PyTree)
"""What a method remembers between steps, a pytree, or None."""

Denoiser = TypeAliasType("Denoiser", Callable[[Sample, Time], Sample])
"""`D(xt [b, *d], t [] or [b]) -> x0_hat [b, *d]`, the estimate of E[x0 | xt]. Any callable will do; one that is a
pytree (an `equinox.Module`) is an argument of jit, so that new weights compile nothing."""
LogProb = TypeAliasType("LogProb", Callable[[Sample, Time], Float[Array, " b"]])
"""`(xt [b, *d], t) -> [b]`, a log probability or log density of each sample."""
LogDensity = TypeAliasType("LogDensity", Callable[[Sample], Float[Array, " b"]])
"""`x [b, *d] -> log p(x) [b]`."""
Score = TypeAliasType("Score", Callable[[Sample], Sample])
"""`x [b, *d] -> grad log p(x) [b, *d]`."""
Statistic = TypeAliasType("Statistic", Callable[[Sample], PyTree])
"""`x [b, *d] -> pytree of [b, ...]`, what is averaged along chains."""

Keys = TypeAliasType("Keys", Shaped[Array, "b *k"])
"""A key for each sample, [b]."""
DrawTimes = TypeAliasType("DrawTimes", Callable[..., tuple[Time, Time]])
"""`(key, n, *, index, total) -> (t [n], correction [n])`, such as `UniformTimes(process)`."""
Penalty = TypeAliasType("Penalty", Callable[[Sample], Float[Array, " b"]])
"""`error [b, *d] -> [b]`, such as `PseudoHuber(c)`."""
Reconstruction = TypeAliasType("Reconstruction", Callable[..., Float[Array, " b"]])
"""The decoder of a bound: `(x0 [b, *d], ...) -> nats [b]`; the bound says of what else."""


@runtime_checkable
class FlowMap(Protocol):
    """A denoiser with a second time: `F(xt [b, *d], t, s) -> [b, *d]`, the average denoiser A of the step from t to
    s <= t, each [] or [b]; `F(xt, t) -> x0_hat`, as a denoiser. A plain function of (xt, t, s) will do for `Jump`."""

    def __call__(self, xt: Sample, t: Time, s: Time | None = None) -> Sample: ...


class Text(NamedTuple):
    """A condition: the encoded tokens of each sample's prompt.

    No condition is a mask that is all False, so the null of `classifier_free` is `Text(0.0, False)`.

    Attributes:
      embedding: [b, n, k], such as the output of a `T5Encoder`; of a network by `with_text_encoder`, which has the
        encoder inside, ids [b, n] of tokens.
      mask: [b, n], True for a token, False for padding.
    """

    embedding: Any  # an array, or a number in the null of guidance
    mask: Any


class Cascade(NamedTuple):
    """The conditions of a network that has several; None for each that it does not have.

    The unconditional one, for guidance, is the text `Text(0.0, False)`, the null label and the same low resolution.

    Attributes:
      text: a `Text`.
      low_resolution: images [b, h, w, c] no larger than x; already noised to `noise_level`
        (conditioning augmentation, Ho et al. 2022).
      noise_level: [b], of the low-resolution images, on the scale of c_noise.
      label: [b], of classes.
    """

    text: Text | None = None
    low_resolution: Any = None
    noise_level: Any = None
    label: Any = None


class Init(Protocol):
    """`init(key, x [b, *d], c_noise [b] or [b, 2], cond) -> params`."""

    def __call__(self, key: Key, x: Sample, c_noise: Array, cond: Cond = None) -> Params: ...


class Apply(Protocol):
    """`apply(params, x [b, *d], c_noise [b] or [b, 2], cond, *, key=None) -> y [b, *d]`; a key means training
    (dropout)."""

    def __call__(
        self, params: Params, x: Sample, c_noise: Array, cond: Cond = None, *, key: Key | None = None
    ) -> Sample: ...


class Network(NamedTuple):
    """A network as two pure functions; parameters are any pytree.

    `x [b, *d]` is the scaled noisy sample, `c_noise [b]` what the network is given of the noise level, `cond` a pytree
    whose leaves have a leading batch axis, or None. It is static in jit. `from_linen` of equal modules gives equal
    networks; others are functions compared by identity: build them once and keep them.

    The network of a few-step model has a second time: `c_noise [b, 2]` is its clock at t and at s <= t. Ours have the
    layers for it only where they are initialised with it; `networks.with_second_time` adds them to trained parameters.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> init = lambda key, x, c_noise, cond: {"scale": jnp.ones(())}
    >>> apply = lambda params, x, c_noise, cond, *, key=None: params["scale"] * x
    >>> print(dj.Network(init, apply).apply({"scale": 2.0}, jnp.ones((1, 2)), jnp.zeros(1), None))
    [[2. 2.]]
    """

    init: Init
    apply: Apply
