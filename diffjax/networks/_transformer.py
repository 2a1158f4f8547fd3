"""The parts of a diffusion transformer: attention, the feed-forward layer, and a block that is told.

    one stream     x -> norm (1 + s) + u -> attention -> g x -> + -> norm (1 + s') + u' -> feed-forward -> g' x -> +
                       told -> SiLU -> Dense* -> u, s, g, u', s', g'                     [cross-attention to a text]

    two streams    image x ---> norm, u, s -> q, k, v --+                     +--> Dense -> g x -> + -> feed-forward ...
                                                        +--> one attention ---+
                   text y  ---> norm, u, s -> q, k, v --+                     +--> Dense -> g x -> + -> feed-forward ...

A block starts as the identity: layers marked * start at zero. Cross-attention, which has no gate, starts with a zero
way out. Names are diffusers' own.

Source: Peebles & Xie 2023, section 3.2 (adaLN-zero); Chen et al. 2024 (PixArt), section 2.3; Esser et al. 2024,
section 4 (two streams; norms of queries and keys).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax.networks._attention import attention
from diffjax.networks._embedding import as_labels, as_vector, dense, rows_of
from diffjax.networks._init import constant, normal
from diffjax.networks._positions import rotate

NOISE_FEATURES = 256


def layer_norm(dtype: Any, *, name: str, epsilon: float = 1e-6, affine: bool = False) -> nn.LayerNorm:
    """Layer normalisation, statistics in float32 at least."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        use_scale=affine,
        use_bias=affine,
        scale_init=constant(1.0),
        bias_init=constant(0.0),
        use_fast_variance=False,
        name=name,
    )


def modulate(x: Float[Array, "b n c"], shift: Any, scale: Any) -> Float[Array, "b n c"]:
    """x (1 + scale) + shift, with [b, 1, c] of each."""
    return x * (1 + scale) + shift


class TwoLayers(nn.Module):
    """`x [b, k] -> Dense -> SiLU -> Dense -> [b, width]`."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Float[Array, "b width"]:
        h = dense(self.width, self.dtype, name="linear_1")(x)
        return dense(self.width, self.dtype, name="linear_2")(nn.silu(h))


class Table(nn.Module):
    """`labels [b] -> rows [b, width]`, NaN for a label out of range."""

    rows: int
    width: int

    @nn.compact
    def __call__(self, labels: Any) -> Float[Array, "b width"]:
        table = self.param("embedding", normal(1.0), (self.rows, self.width), jnp.float32)
        return rows_of(table, labels)


class ClassEmbedder(nn.Module):
    """`cond [b] -> [b, width]`: a label in 0 .. num_classes, the last being the null label."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, cond: Any, shape: tuple[int, ...]) -> Float[Array, "b width"]:
        labels = as_labels(cond, self.num_classes, shape)
        return Table(self.num_classes + 1, self.width, name="embedding_table")(labels)


class Told(nn.Module):
    """What every block is told, `(c_noise [b], cond) -> [b, width]`: the noise level, and a label or a vector.

    Attributes:
      width: of the answer.
      num_classes: cond is a label [b] in 0 .. num_classes. None: cond is a vector [b, k], or None.
      noise_features: `(c_noise [b], features) -> [b, features]`.
      dtype: of the computation.
    """

    width: int
    num_classes: int | None
    noise_features: Callable[[Any, int], Any]
    dtype: Any

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"], cond: Any = None) -> Float[Array, "b width"]:
        waves = self.noise_features(c_noise, NOISE_FEATURES).astype(self.dtype)
        h = TwoLayers(self.width, self.dtype, name="timestep_embedder")(waves)
        if self.num_classes is not None:
            label = ClassEmbedder(self.num_classes, self.width, name="class_embedder")(cond, c_noise.shape)
            return h + label.astype(self.dtype)
        if cond is not None:
            h = h + TwoLayers(self.width, self.dtype, name="vector_embedder")(as_vector(cond).astype(self.dtype))
        return h


class AdaZero(nn.Module):
    """`(x [b, n, c], told [b, k]) -> norm(x) (1 + s) + u, [gate, u', s', gate'] each [b, 1, c], told`.

    Attributes:
      dtype: of the computation.
      own: fields of a `Told` of its own, and `told` is then its arguments; None: told is made elsewhere.
    """

    dtype: Any
    own: Mapping[str, Any] | None = None

    @nn.compact
    def __call__(self, x: Any, told: Any) -> Any:
        told = told if self.own is None else Told(**self.own, name="emb")(*told)
        terms = dense(6 * x.shape[-1], self.dtype, name="linear", zero=True)(nn.silu(told))
        shift, scale, *rest = jnp.split(terms[:, None], 6, axis=-1)
        return modulate(layer_norm(self.dtype, name="norm")(x), shift, scale), rest, told


class Attention(nn.Module):
    """`(x [b, n, c], context [b, m, k], mask [b, m], angles [n, c/heads/2]) -> [b, n, c]`; x is its own context.

    Attributes:
      heads: a divisor of c.
      bias: of queries, keys and values.
      qk_norm: root-mean-square norm of each query and key, with a learned scale.
      zero: the way out starts at zero.
    """

    heads: int
    bias: bool
    qk_norm: bool
    dropout: float
    dtype: Any
    deterministic: bool
    zero: bool = False

    @nn.compact
    def __call__(self, x: Any, context: Any = None, mask: Any = None, angles: Any = None) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        source = x if context is None else context
        linear = lambda name: dense(width, self.dtype, name=name, bias=self.bias)
        split = lambda h: h.reshape(*h.shape[:2], self.heads, width // self.heads)
        q, k, v = split(linear("to_q")(x)), split(linear("to_k")(source)), split(linear("to_v")(source))
        q, k = normed(q, self, "norm_q"), normed(k, self, "norm_k")
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        h = attention(q, k, v, mask=mask).reshape(x.shape)
        h = dense(width, self.dtype, name="to_out__0", zero=self.zero)(h)
        return nn.Dropout(self.dropout, deterministic=self.deterministic)(h)


class JointAttention(nn.Module):
    """`(x [b, n, c], y [b, m, c], mask [b, m], angles) -> ([b, n, c], [b, m, c])`, one attention over both.

    Attributes:
      heads, qk_norm: as in `Attention`.
      last: y is attended to, but asks nothing: its answer is not wanted, and is None.
    """

    heads: int
    qk_norm: bool
    dropout: float
    dtype: Any
    deterministic: bool
    last: bool
    bias: bool = True

    @nn.compact
    def __call__(self, x: Any, y: Any, mask: Any, angles: Any = None) -> Any:
        n, width = x.shape[1:]
        split = lambda h: h.reshape(*h.shape[:2], self.heads, width // self.heads)
        q, k, v = (split(dense(width, self.dtype, name=name)(x)) for name in ("to_q", "to_k", "to_v"))
        q, k = normed(q, self, "norm_q"), normed(k, self, "norm_k")
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        text_k, text_v = (split(dense(width, self.dtype, name=name)(y)) for name in ("add_k_proj", "add_v_proj"))
        text_k = normed(text_k, self, "norm_added_k")
        if not self.last:
            text_q = normed(split(dense(width, self.dtype, name="add_q_proj")(y)), self, "norm_added_q")
            q = jnp.concatenate([q, text_q], axis=1)
        k, v = (jnp.concatenate(both, axis=1) for both in ((k, text_k), (v, text_v)))
        h = attention(q, k, v, mask=jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], axis=1))
        h = h.reshape(*h.shape[:2], width)
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        image = drop(dense(width, self.dtype, name="to_out__0")(h[:, :n]))
        return image, None if self.last else drop(dense(width, self.dtype, name="to_add_out")(h[:, n:]))


def normed(h: Any, layer: Any, name: str) -> Any:
    """Queries or keys [b, n, heads, k], normalised where the layer says so."""
    norm = nn.RMSNorm(epsilon=1e-6, dtype=layer.dtype, scale_init=constant(1.0), name=name) if layer.qk_norm else None
    return h if norm is None else norm(h)


class Activation(nn.Module):
    """`x [b, n, c] -> f(Dense x)`, or `a f(b)` of the two halves of a Dense where `gated` (Shazeer 2020)."""

    hidden: int
    function: Callable[[Any], Any]
    gated: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Float[Array, "b n hidden"]:
        h = dense(self.hidden * (2 if self.gated else 1), self.dtype, name="proj")(x)
        if not self.gated:
            return self.function(h)
        a, b = jnp.split(h, 2, axis=-1)
        return a * self.function(b)


class FeedForward(nn.Module):
    """`x [b, n, c] -> Dense(dropout(activation)) [b, n, c]`."""

    hidden: int
    function: Callable[[Any], Any]
    gated: bool
    dropout: float
    dtype: Any
    deterministic: bool

    @nn.compact
    def __call__(self, x: Any) -> Float[Array, "b n c"]:
        h = Activation(self.hidden, self.function, self.gated, self.dtype, name="net__0")(x)
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        return dense(x.shape[-1], self.dtype, name="net__2")(h)


class Block(nn.Module):
    """One stream, `(h, told, angles, text) -> h`, h being (x [b, n, c],).

    With a `Told` of its own, h is (x, what the first block was told [b, c], whether this is the first block), for the
    network's way out is told the same, and `told` is the arguments of Told.

    Attributes:
      feed_forward: fields of FeedForward.
      attention: fields of Attention.
      norm_epsilon, norm_affine: of the norms after the first.
      cross: whether there is a text.
      own: fields of Told.
    """

    feed_forward: Mapping[str, Any]
    attention: Mapping[str, Any]
    dtype: Any
    norm_epsilon: float = 1e-6
    norm_affine: bool = False
    cross: bool = False
    own: Mapping[str, Any] | None = None

    @nn.compact
    def __call__(self, h: Any, told: Any, angles: Any = None, text: Any = None) -> Any:
        x, *kept = h
        norm = lambda name: layer_norm(self.dtype, name=name, epsilon=self.norm_epsilon, affine=self.norm_affine)
        y, (gate, shift, scale, out_gate), told = AdaZero(self.dtype, self.own, name="norm1")(x, told)
        x = x + gate * Attention(**self.attention, name="attn1")(y, angles=angles)
        if self.cross:
            to_text = Attention(**self.attention, zero=True, name="attn2")
            x = x + to_text(norm("norm2")(x), text.embedding, text.mask)
        y = modulate(norm("norm3")(x), shift, scale)
        x = x + out_gate * FeedForward(**self.feed_forward, name="ff")(y)
        if kept:
            kept = [jnp.where(kept[1], told, kept[0]), jnp.zeros_like(kept[1])]
        return (x, *kept)


class JointBlock(nn.Module):
    """Two streams, `(h, told [b, c], mask [b, m], angles) -> h`, h being (image [b, n, c], text [b, m, c]).

    Attributes:
      feed_forward: fields of FeedForward.
      attention: fields of JointAttention.
      last: the text goes no further, and is returned as it came.
    """

    feed_forward: Mapping[str, Any]
    attention: Mapping[str, Any]
    dtype: Any
    last: bool = False

    @nn.compact
    def __call__(self, h: Any, told: Any, mask: Any, angles: Any = None) -> Any:
        x, text = h
        image_in, image_terms, _ = AdaZero(self.dtype, name="norm1")(x, told)
        if self.last:
            text_in, text_terms = AdaOut(self.dtype, name="norm1_context")(text, told), None
        else:
            text_in, text_terms, _ = AdaZero(self.dtype, name="norm1_context")(text, told)
        attend = JointAttention(**self.attention, last=self.last, name="attn")
        image_out, text_out = attend(image_in, text_in, mask, angles)
        x = self._after(x, image_out, image_terms, "norm2", "ff")
        return x, text if self.last else self._after(text, text_out, text_terms, "norm2_context", "ff_context")

    def _after(self, x, attended, terms, norm, ff):
        gate, shift, scale, out_gate = terms
        x = x + gate * attended
        y = modulate(layer_norm(self.dtype, name=norm)(x), shift, scale)
        return x + out_gate * FeedForward(**self.feed_forward, name=ff)(y)


class AdaOut(nn.Module):
    """`(x [b, n, c], told [b, k]) -> norm(x) (1 + scale) + shift`."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Any, told: Any) -> Float[Array, "b n c"]:
        terms = dense(2 * x.shape[-1], self.dtype, name="linear", zero=True)(nn.silu(told))
        scale, shift = jnp.split(terms[:, None], 2, axis=-1)
        return modulate(layer_norm(self.dtype, name="norm")(x), shift, scale)
