"""The encoder of T5: what a text's tokens mean, for networks that are conditioned on it.

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
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._attention import attention
from diffjax.networks._embedding import check_dropout, dense
from diffjax.networks._init import constant
from diffjax.networks._repeat import repeat
from diffjax.networks._transformer import Table


class T5Encoder(nn.Module):
    """`(ids [b, n], mask [b, n]) -> [b, n, width]`, float32: the embedding of a `Text`.

    An id out of range gives NaN. Half precision should be bfloat16: T5's activations overflow float16.

    Attributes:
      vocabulary: number of ids.
      width: features of a token.
      depth: number of blocks.
      heads, head_features: of attention; their product need not be width.
      hidden: features inside the feed-forward layer.
      activation, gated: of the feed-forward layer.
      buckets, distance: of the relative positions; from `distance` on all are one bucket.
      epsilon: of the norms.
      dropout: the probability of dropping a feature in training; published encoders were trained with 0.1, and also
        dropped attention's weights, which is left out here.
      dtype: of the computation; parameters and the output are float32.
      remat: keep only what enters each block for the backward pass.

    Raises:
      ValueError: fewer than four buckets, a distance within the buckets that count one by one, or a dropout outside
        [0, 1).
    """

    vocabulary: int = 32128
    width: int = 512
    depth: int = 6
    heads: int = 8
    head_features: int = 64
    hidden: int = 2048
    activation: Callable[[Any], Any] = nn.relu
    gated: bool = False
    buckets: int = 32
    distance: int = 128
    epsilon: float = 1e-6
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        if self.buckets < 4 or self.buckets % 2:
            raise ValueError(f"buckets: an even number of at least 4 is needed, got {self.buckets}")
        if self.distance <= self.buckets // 4:
            raise ValueError(f"distance: more than buckets/4 = {self.buckets // 4} is needed, got {self.distance}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Any, mask: Any = None, *, deterministic: bool = True) -> Float[Array, "b n width"]:
        ids = jnp.asarray(ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids: integers [b, n] are needed, got {ids.dtype} {ids.shape}")
        if mask is not None and (mask.shape != ids.shape or mask.dtype != jnp.bool_):
            raise ValueError(f"mask: booleans {ids.shape} are needed, got {mask.dtype} {mask.shape}")
        h = Table(self.vocabulary, self.width, name="shared")(ids).astype(self.dtype)
        own = ("parent", "name", "deterministic")
        fields = {name: getattr(self, name) for name in T5Stack.__dataclass_fields__ if name not in own}
        h = T5Stack(**fields, deterministic=deterministic, name="encoder")(h, mask)
        return h.astype(jnp.promote_types(self.dtype, jnp.float32))


class T5Stack(nn.Module):
    """`(h [b, n, c], mask [b, n] or None) -> [b, n, c]`: all blocks and the last norm; fields as in `T5Encoder`."""

    depth: int
    heads: int
    head_features: int
    hidden: int
    activation: Callable[[Any], Any]
    gated: bool
    buckets: int
    distance: int
    epsilon: float
    dropout: float
    deterministic: bool
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, h: Any, mask: Any = None) -> Float[Array, "b n c"]:
        places = ("layer__0", "SelfAttention", "relative_attention_bias")  # where the file has it, of block 0 alone
        table = Within(places, self.buckets, self.heads, name="block__0")
        bias = table(relative_buckets(h.shape[1], self.buckets, self.distance)).transpose(2, 0, 1)[None]
        names = (name for name in T5Block.__dataclass_fields__ if name not in ("parent", "name"))
        fields = {name: getattr(self, name) for name in names}
        h = dropout(self, h)
        h = repeat(self, T5Block, fields, "block", self.depth, h, bias, mask, scan=True, remat=self.remat)
        return dropout(self, rms_norm(self, "final_layer_norm")(h))


class Within(nn.Module):
    """A `Table` at the end of a path of names."""

    names: tuple[str, ...]
    rows: int
    width: int

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        first, *rest = self.names
        if rest:
            return Within(tuple(rest), self.rows, self.width, name=first)(ids)
        return Table(self.rows, self.width, name=first)(ids)


class T5Block(nn.Module):
    """`(h [b, n, c], bias [1, heads, n, n], mask [b, n] or None) -> [b, n, c]`."""

    heads: int
    head_features: int
    hidden: int
    activation: Callable[[Any], Any]
    gated: bool
    epsilon: float
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, h: Any, bias: Any, mask: Any = None) -> Float[Array, "b n c"]:
        shared = (self.epsilon, self.dropout, self.deterministic, self.dtype)
        attend = T5Attention(self.heads, self.head_features, *shared, name="layer__0")
        forward = T5Layer(self.hidden, self.activation, self.gated, *shared, name="layer__1")
        return forward(attend(h, bias, mask))


class T5Attention(nn.Module):
    """`(h [b, n, c], bias [1, heads, n, n], mask [b, n] or None) -> h + dropout(attention(norm h))`."""

    heads: int
    head_features: int
    epsilon: float
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, h: Any, bias: Any, mask: Any = None) -> Float[Array, "b n c"]:
        x = rms_norm(self, "layer_norm")(h)
        x = HeadsOfT5(self.heads, self.head_features, self.dtype, name="SelfAttention")(x, bias, mask)
        return h + dropout(self, x)


class HeadsOfT5(nn.Module):
    """`(x [b, n, c], bias [1, heads, n, n], mask [b, n] or None) -> [b, n, c]`; queries are not scaled."""

    heads: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Any, bias: Any, mask: Any = None) -> Float[Array, "b n c"]:
        b, n, width = x.shape
        linear = lambda name: dense(self.heads * self.features, self.dtype, name=name, bias=False)
        q, k, v = (linear(name)(x).reshape(b, n, self.heads, self.features) for name in "qkv")
        h = attention(q, k, v, mask=mask, bias=bias, scale=1.0).reshape(b, n, -1)
        return dense(width, self.dtype, name="o", bias=False)(h)


class T5Layer(nn.Module):
    """`h [b, n, c] -> h + dropout(feed-forward(norm h))`."""

    hidden: int
    activation: Callable[[Any], Any]
    gated: bool
    epsilon: float
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, h: Any) -> Float[Array, "b n c"]:
        x = rms_norm(self, "layer_norm")(h)
        fields = (self.hidden, self.activation, self.gated, self.dropout, self.deterministic, self.dtype)
        return h + dropout(self, T5FeedForward(*fields, name="DenseReluDense")(x))


class T5FeedForward(nn.Module):
    """`x [b, n, c] -> Wo dropout(f(W x))`, or Wo dropout(f(W0 x) W1 x) where `gated`."""

    hidden: int
    activation: Callable[[Any], Any]
    gated: bool
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Float[Array, "b n c"]:
        linear = lambda features, name: dense(features, self.dtype, name=name, bias=False)
        h = self.activation(linear(self.hidden, "wi_0" if self.gated else "wi")(x))
        h = h * linear(self.hidden, "wi_1")(x) if self.gated else h
        return linear(x.shape[-1], "wo")(dropout(self, h))


def dropout(layer: Any, h: Any) -> Any:
    """h with features dropped as the layer's fields say."""
    return nn.Dropout(layer.dropout, deterministic=layer.deterministic)(h)


def rms_norm(layer: Any, name: str) -> nn.RMSNorm:
    """Root-mean-square normalisation with the layer's epsilon and dtype."""
    return nn.RMSNorm(epsilon=layer.epsilon, dtype=layer.dtype, scale_init=constant(1.0), name=name)


def relative_buckets(n: int, buckets: int, distance: int) -> np.ndarray:
    """[n, n] the bucket of each query's (row) distance to each key (column).

    The logarithms are float32, for where one of them is a whole number, float64 may fall on the other side of it than
    the networks that were trained.
    """
    steps = np.arange(n)[None, :] - np.arange(n)[:, None]
    half, near = buckets // 2, buckets // 4
    size = np.maximum(np.abs(steps), 1).astype(np.float32)
    logs = np.log(size / np.float32(near)) / np.float32(np.log(distance / near)) * np.float32(half - near)
    far = np.minimum(near + np.maximum(logs, 0).astype(np.int32), half - 1)
    return np.where(steps > 0, half, 0) + np.where(np.abs(steps) < near, np.abs(steps), far)
