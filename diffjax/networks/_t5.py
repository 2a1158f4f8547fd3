"""The encoder of T5: embeddings of a text's tokens, for networks that are conditioned on a text.

    ids [b, n] --> table --> n x ( + attention(norm x), + feed-forward(norm x) ) --> norm --> [b, n, width]
                                         ^
    distances k - q --> buckets --> table (heads) --> bias, the same in every block

    bucket    |d| < m: |d|;  beyond: m + floor(m log(|d|/m) / log(distance/m)), at most 2m - 1;  + 2m for d > 0;
              m = buckets/4

Queries and keys are not scaled; norms are root-mean-square, nothing has a bias. The feed-forward layer is f(Wx) in
T5 and f(Wx) Vx in T5 1.1. Dropout follows the table, f, every layer and the last norm. The blocks run under `lax.scan`.

Source: Raffel et al. 2020, section 2.1; Shazeer 2020 (gated layers). Names are transformers' own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from diffjax._arrays import check_key
from diffjax._numbers import checked_numbers
from diffjax._typing import Key, Params
from diffjax.networks._attention import Attention, HeadNames
from diffjax.networks._init import constant, draw_parameters, normal
from diffjax.networks._layers import Function, NestedTable, Table, check_dropout, dense, float32_at_least, rms_norm
from diffjax.networks._repeat import repeat

NAMES = HeadNames("o", "q", "k", "v")
T5_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 32, "depth": 1, "heads": 2, "head_channels": 16, "hidden": 64},
    "mini": {"width": 64, "depth": 2, "heads": 4, "head_channels": 16, "hidden": 128},
    "midi": {"width": 128, "depth": 4, "heads": 8, "head_channels": 16, "hidden": 256},
    "small": {"width": 512, "depth": 6, "heads": 8, "head_channels": 64, "hidden": 2048},
}
"""Fields of `T5Encoder` by the name of a size: the last is that of T5-small, the others are for small grammars."""


@checked_numbers
class T5Encoder(nn.Module):
    """`(ids [b, n], mask [b, n]) -> [b, n, width]`, float32: the embedding of a `Text`.

    An id out of range gives NaN. Half precision should be bfloat16: T5's activations overflow float16.

    Attributes:
      vocabulary: number of ids.
      width: features of a token.
      depth: number of blocks.
      heads, head_channels: of attention; their product need not be width.
      hidden: features inside the feed-forward layer.
      activation, gated: of the feed-forward layer.
      buckets, distance: of the relative positions; from `distance` on all are one bucket.
      norm_epsilon: epsilon of the norms.
      dropout: the probability of dropping a feature in training; published encoders were trained with 0.1, and also
        dropped attention's weights, which is left out here.
      dtype: of the computation; parameters and the output are float32.
      remat: recompute each block in the backward pass instead of storing its activations.
      whitened: whether a linear layer follows, (x - mean) matrix, drawn as others are; parameters of `TextEncoder`'s
        whitening go there, so that it is trained with the encoder.

    Raises:
      ValueError: fewer than four buckets, a distance within the buckets that count one by one, or a dropout outside
        [0, 1); when called, parameters that have a whitening where `whitened` is False, or none where it is True.
    """

    vocabulary: int = 32128
    width: int = 512
    depth: int = 6
    heads: int = 8
    head_channels: int = 64
    hidden: int = 2048
    activation: Function = nn.relu
    gated: bool = False
    buckets: int = 32
    distance: int = 128
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    whitened: bool = False

    def __post_init__(self):
        if self.buckets < 4 or self.buckets % 2:
            raise ValueError(f"buckets: an even number of at least 4 is needed, got {self.buckets}")
        if self.distance <= self.buckets // 4:
            raise ValueError(f"distance: more than buckets/4 = {self.buckets // 4} is needed, got {self.distance}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, ids: ArrayLike, mask: Bool[Array, "b n"] | None = None, *, deterministic: bool = True
    ) -> Float[Array, "b n width"]:
        ids = jnp.asarray(ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids: integers [b, n] are needed, got {ids.dtype} {ids.shape}")
        if mask is not None and (mask.shape != ids.shape or mask.dtype != jnp.bool_):
            raise ValueError(f"mask: booleans {ids.shape} are needed, got {mask.dtype} {mask.shape}")
        there = self.has_variable("params", "whitening")
        if not self.is_initializing() and there != self.whitened:
            what = "a whitening is there, which would be left out" if there else "there is no whitening"
            raise ValueError(
                f"params: {what}, and the encoder has whitened {self.whitened}; use module.clone(whitened={there})"
            )
        h = Table(self.vocabulary, self.width, name="shared")(ids).astype(self.dtype)
        other = ("parent", "name", "deterministic")
        fields = {name: getattr(self, name) for name in T5Stack.__dataclass_fields__ if name not in other}
        h = T5Stack(**fields, deterministic=deterministic, name="encoder")(h, mask)
        h = h.astype(float32_at_least(self.dtype))
        return _Whitening(name="whitening")(h) if self.whitened else h


@checked_numbers
def sized_t5(vocabulary: int, size: str = "mini") -> T5Encoder:
    """A T5 encoder of a size: "tiny", "mini", "midi", or "small", that of T5-small.

    >>> sized_t5(100, "midi").width
    128

    Args:
      vocabulary: number of ids.
      size: one of `T5_SIZES`.

    Raises:
      ValueError: there is no such size.
    """
    if size not in T5_SIZES:
        raise ValueError(f"size: one of {', '.join(T5_SIZES)} is needed, got {size!r}")
    return T5Encoder(vocabulary, **T5_SIZES[size])


def init_t5(key: Key, module: T5Encoder) -> Params:
    """Parameters as T5 is initialised: a weight's variance is 1/fan_in, of queries 1/(fan_in head_channels).

    Queries are not scaled in T5's attention, whose softmax would start peaked without the second. The biases of
    relative positions have variance 1, where T5's is 1/width: an encoder that stays random attends by place, too.

    Args:
      key: one.
      module: the encoder.

    Returns:
      The parameters, a pytree of float32 arrays, to be applied by `module.apply({"params": params}, ids, mask)`.

    Raises:
      ValueError: key is no key.

    Source: Raffel et al. 2020; transformers' initialisation.
    """
    check_key(key)
    init = lambda *given: module.init(*given)["params"]
    params = draw_parameters(key, init, jnp.zeros((1, 2), jnp.int32))
    scaled = lambda path, leaf: leaf / module.head_channels**0.5 if path[-2].key == "q" else leaf
    return jax.tree_util.tree_map_with_path(scaled, params)


class _Whitening(nn.Module):
    """`x [b, n, k] -> (x - mean) matrix`."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n k"]) -> Float[Array, "b n k"]:
        k = x.shape[-1]
        mean = self.param("mean", constant(0.0), (k,), jnp.float32)
        return (x - mean) @ self.param("matrix", normal(), (k, k), jnp.float32)


class T5Stack(nn.Module):
    """`(h [b, n, c], mask [b, n] or None) -> [b, n, c]`: all blocks and the last norm; fields as in `T5Encoder`."""

    depth: int
    heads: int
    head_channels: int
    hidden: int
    activation: Function
    gated: bool
    buckets: int
    distance: int
    norm_epsilon: float
    dropout: float
    deterministic: bool
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, h: Float[Array, "b n c"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b n c"]:
        # In published weights the table is a part of block 0.
        names = "layer__0", "SelfAttention", "relative_attention_bias"
        table = NestedTable(names, self.buckets, self.heads, name="block__0")
        bias = table(relative_buckets(h.shape[1], self.buckets, self.distance)).transpose(2, 0, 1)[None]
        names = (name for name in T5Block.__dataclass_fields__ if name not in ("parent", "name"))
        fields = {name: getattr(self, name) for name in names}
        h = dropout(self, h)
        h = repeat(self, T5Block, fields, "block", self.depth, h, bias, mask, scan=True, remat=self.remat)
        norm = rms_norm(self.dtype, name="final_layer_norm", epsilon=self.norm_epsilon)
        return dropout(self, norm(h))


class T5Block(nn.Module):
    """`(h [b, n, c], bias [1, heads, n, n], mask [b, n] or None) -> [b, n, c]`."""

    heads: int
    head_channels: int
    hidden: int
    activation: Function
    gated: bool
    norm_epsilon: float
    dropout: float
    deterministic: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n c"], bias: Float[Array, "1 heads n n"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n c"]:
        shared = (self.norm_epsilon, self.dropout, self.deterministic, self.dtype)
        heads = {"names": NAMES, "qkv_bias": False, "out_bias": False, "scale": 1.0, "name": "SelfAttention"}
        attention = partial(Attention, self.heads, self.dtype, self.head_channels, **heads)
        hidden = self.hidden, self.activation, self.gated, self.dropout, self.deterministic, self.dtype
        feed_forward = partial(T5FeedForward, *hidden, name="DenseReluDense")
        h = T5Residual(attention, *shared, name="layer__0")(h, bias=bias, mask=mask)
        return T5Residual(feed_forward, *shared, name="layer__1")(h)


class T5Residual(nn.Module):
    """`(h [b, n, c], *inputs) -> h + dropout(layer(norm h, *inputs)) [b, n, c]`.

    Attributes:
      layer: `() -> module`, named as in trained parameters.
    """

    layer: Callable[[], nn.Module]
    norm_epsilon: float
    dropout: float
    deterministic: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Float[Array, "b n c"], *inputs: Any, **masks: Any) -> Float[Array, "b n c"]:
        x = rms_norm(self.dtype, name="layer_norm", epsilon=self.norm_epsilon)(h)
        return h + dropout(self, self.layer()(x, *inputs, **masks))  # pyright: ignore[reportCallIssue]


class T5FeedForward(nn.Module):
    """`x [b, n, c] -> Wo dropout(f(W x))`, or Wo dropout(f(W0 x) W1 x) where `gated`."""

    hidden: int
    activation: Function
    gated: bool
    dropout: float
    deterministic: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        linear = lambda features, name: dense(features, self.dtype, name=name, bias=False)
        h = self.activation(linear(self.hidden, "wi_0" if self.gated else "wi")(x))
        h = h * linear(self.hidden, "wi_1")(x) if self.gated else h
        return linear(x.shape[-1], "wo")(dropout(self, h))


def dropout(layer: "T5Stack | T5Residual | T5FeedForward", h: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """h [b, n, c] with features dropped by the layer's fields `dropout` and `deterministic`."""
    return nn.Dropout(layer.dropout, deterministic=layer.deterministic)(h)


@checked_numbers
def relative_buckets(n: int, buckets: int, distance: int) -> np.ndarray:
    """[n, n] the bucket of each query's (row) distance to each key (column); see the formula above.

    The logarithms are float32, for where one of them is a whole number, float64 may fall on the other side of it than
    the networks that were trained.
    """
    steps = np.arange(n)[None, :] - np.arange(n)[:, None]
    half, near = buckets // 2, buckets // 4
    size = np.maximum(np.abs(steps), 1).astype(np.float32)
    logs = np.log(size / np.float32(near)) / np.float32(np.log(distance / near)) * np.float32(half - near)
    far = np.minimum(near + np.maximum(logs, 0).astype(np.int32), half - 1)
    return np.where(steps > 0, half, 0) + np.where(np.abs(steps) < near, np.abs(steps), far)
