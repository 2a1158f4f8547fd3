"""A second time s <= t for few-step networks: its embedding, and how a trained network gets one.

    c_noise [b, 2] = the clock at t and at s:    h(c_t) + SecondTime(c_t - c_s)

    SecondTime    asinh -> slow waves -> Dense -> SiLU -> Dense*                                * starts at zero

    teacher's params, trained at c_noise [b]  -->  with_second_time  -->  student's params, for c_noise [b, 2] = (t, s)

The new layers start at zero, so the student starts as its teacher, whatever s is. A network has them only where it was
initialised with c_noise [b, 2].
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._arrays import check_key
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Key, Network, Params, Sample
from diffjax.networks._layers import dense
from diffjax.networks._noise_features import fourier_features

SECOND_FEATURES = 32
SECOND_LOW, SECOND_HIGH = 1 / 16, 1 / 2
"""Frequencies of the second time's waves. Losses that differentiate a network in time need them low."""


SecondTimeLayers = Callable[["SecondTime", Float[Array, "b k"]], Float[Array, "b width"]]
"""The layers after the waves: `(the SecondTime, waves [b, k]) -> [b, width]`, zero before training."""


def two_layers(module: "SecondTime", waves: Float[Array, "b k"]) -> Float[Array, "b width"]:
    """Dense, SiLU and a Dense that starts at zero, in the compact method of a `SecondTime`."""
    h = nn.silu(dense(module.width, module.dtype, name="linear_1")(waves))
    return dense(module.width, module.dtype, name="linear_2", zero=True)(h)


@checked_numbers
class SecondTime(nn.Module):
    """`c_t - c_s [b] -> [b, width]`, zero before training.

    The difference is 0 at s = t. asinh leaves small differences as they are and brings those of any clock (an angle,
    -logsnr/8, a count of 1000 steps) into the range of the waves.

    Attributes:
      width: features.
      dtype: of the computation.
      layers: `(this module, waves [b, k]) -> [b, width]`, whose answer starts at zero.
    """

    width: int
    dtype: DTypeLike
    layers: SecondTimeLayers = two_layers

    @nn.compact
    def __call__(self, difference: Float[Array, " b"]) -> Float[Array, "b width"]:
        waves = fourier_features(jnp.arcsinh(difference), SECOND_FEATURES, low=SECOND_LOW, high=SECOND_HIGH)
        return self.layers(self, waves.astype(self.dtype))


def first_time(c_noise: Float[Array, "b *two"]) -> Float[Array, " b"]:
    """The clock at t, [b], of c_noise [b] or [b, 2]."""
    return c_noise if c_noise.ndim == 1 else c_noise[:, 0]


def add_second_time(
    h: Float[Array, "b width"], c_noise: Float[Array, "b *two"], layers: SecondTimeLayers = two_layers
) -> Float[Array, "b width"]:
    """The embedding h [b, width] of the time t, with that of the second time where c_noise is [b, 2].

    To be called inside a compact method, whose module then has the parameters "second_time".
    """
    if c_noise.ndim == 1:
        return h
    wide = c_noise.astype(jnp.promote_types(c_noise.dtype, jnp.float32))
    return h + SecondTime(h.shape[-1], h.dtype, layers, name="second_time")(wide[:, 0] - wide[:, 1])


def broadcast_noise(c_noise: ArrayLike, x: Float[Array, "b *d"]) -> Float[Array, " b"]:
    """c_noise for each sample: a number or [b] becomes [b]."""
    c_noise = jnp.asarray(c_noise)
    try:
        return jnp.broadcast_to(c_noise, x.shape[:1])
    except ValueError as error:
        raise ValueError(f"c_noise: a number or shape {x.shape[:1]} is needed, got shape {c_noise.shape}") from error


def broadcast_times(module: nn.Module, c_noise: ArrayLike, x: Float[Array, "b *d"]) -> Float[Array, "b *two"]:
    """c_noise for each sample: [b], or [b, 2] where the module, in whose call this is, was initialised with that.

    Raises:
      ValueError: another shape, or a second time that the parameters do not have, or one that they have and c_noise
        does not.
    """
    c_noise = jnp.asarray(c_noise)
    two = c_noise.ndim == 2 and c_noise.shape[1] == 2 and c_noise.shape[0] == x.shape[0]
    if c_noise.ndim > 1 and not two:
        b = x.shape[0]
        raise ValueError(f"c_noise: shape ({b},), or ({b}, 2) for t and s, is needed, got shape {c_noise.shape}")
    if not module.is_initializing() and two != (known := _has_second_time(module.variables.get("params", {}))):
        known, needed, remedy = (
            ("a second time", "[b, 2], the clock at t and at s", "for s = t give it twice")
            if known
            else ("no second time", "[b]", "`with_second_time` adds one to the parameters")
        )
        raise ValueError(f"c_noise: {needed} is needed by parameters with {known}, got {c_noise.shape}; {remedy}")
    return c_noise if two else broadcast_noise(c_noise, x)


def _has_second_time(params: Params) -> bool:
    return isinstance(params, Mapping) and ("second_time" in params or any(map(_has_second_time, params.values())))


def with_second_time(network: Network, params: Params, key: Key, x: Sample, cond: Cond = None) -> Params:
    """Parameters of a network that was initialised with c_noise [b], and those of a second time, for c_noise [b, 2].

    With them `network.apply(params, x, c_noise [b, 2], cond)` takes the clock at t and at s. Values, and gradients by
    x and by the old parameters, are at first those of the old parameters and c_noise [b].

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen
    >>> from diffjax.networks import MLP
    >>> network, x = from_linen(MLP(width=32, depth=2)), jnp.zeros((4, 2))
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(4))
    >>> student = with_second_time(network, params, jax.random.key(1), x)
    >>> network.apply(student, x, jnp.zeros((4, 2))).shape
    (4, 2)

    Args:
      network: any network that makes more parameters in `init(key, x, c_noise [b, 2], cond)` than with c_noise [b];
        those of a module of your own have to start without effect.
      params: of the network, nested dicts of arrays; unchanged.
      key: for the first of the new layers.
      x: samples such as the network takes, [b, *d]; only their shape and type count.
      cond: conditions such as it takes, or None.

    Returns:
      Nested dicts: those of `params` and the new leaves.

    Raises:
      ValueError: params has a second time already, or is of another network, or the network has no second time.
    """
    check_key(key)
    made = network.init(key, x, jnp.zeros((x.shape[0], 2), x.dtype), cond)
    old, new = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (params, made))
    shown = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in old.items():
        if path not in new or jnp.shape(new[path]) != jnp.shape(leaf):
            theirs = jnp.shape(new[path]) if path in new else "no such leaf"
            raise ValueError(
                f"params: {shown(path)} of shape {jnp.shape(leaf)} is not the network's with a second time for x of "
                f"shape {x.shape}, which has {theirs}; give parameters of this network, and x and cond as it takes them"
            )
    if old.keys() == new.keys():
        raise ValueError(
            "params: with c_noise [b, 2] the network has no other parameters than these; either they have a second "
            "time already, or it is a network without one"
        )
    return jax.tree_util.tree_map_with_path(lambda path, leaf: old.get(path, leaf), made)
