"""The blocks of a diffusion transformer, conditioned on an embedding.

    one stream     x -> norm (1 + s) + u -> attention -> g x -> + -> norm (1 + s') + u' -> feed-forward -> g' x -> +
                       emb -> SiLU -> Dense* -> u, s, g, u', s', g'                     [cross-attention to a text]

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
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from diffjax._typing import Cond
from diffjax.networks._attention import Attention, attention
from diffjax.networks._embedding import ConditionEmbedding, EmbeddingLayers, as_vector
from diffjax.networks._layers import Function, NestedTable, TwoLayers, dense, layer_norm, modulate, rms_norm
from diffjax.networks._positions import rotate
from diffjax.networks._text import Text

NoiseFeatures = Callable[[Float[Array, " b"], int], Float[Array, "b features"]]
"""`(c_noise [b], features) -> [b, features]`."""
Tokens = Float[Array, "b n c"]

NOISE_FEATURES = 256


def embedding_layers(noise_features: NoiseFeatures) -> EmbeddingLayers:
    """The layers of a transformer's `ConditionEmbedding`, with diffusers' names.

    Args:
      noise_features: `(c_noise [b], features) -> [b, features]`.
    """

    def noise(module: ConditionEmbedding, c_noise: Float[Array, " b"]) -> Float[Array, "b width"]:
        features = noise_features(c_noise, NOISE_FEATURES).astype(module.dtype)
        return TwoLayers(module.width, module.dtype, name="timestep_embedder")(features)

    def label(module: ConditionEmbedding, labels: Int[Array, " b"]) -> Float[Array, "b width"]:
        assert module.num_classes is not None
        table = NestedTable(("embedding_table",), module.num_classes + 1, module.width, name="class_embedder")
        return table(labels).astype(module.dtype)

    def vector(module: ConditionEmbedding, cond: Cond) -> Float[Array, "b width"]:
        return TwoLayers(module.width, module.dtype, name="vector_embedder")(as_vector(cond).astype(module.dtype))

    return EmbeddingLayers(noise, label, vector=vector, activation=lambda emb: emb)


class AdaZero(nn.Module):
    """`(x [b, n, c], emb [b, k]) -> norm(x) (1 + s) + u, [gate, u', s', gate'] each [b, 1, c], emb`.

    Attributes:
      dtype: of the computation.
      embedding: fields of a `ConditionEmbedding` in this block, and `emb` is then its arguments (c_noise, cond);
        None: emb comes from elsewhere.
    """

    dtype: DTypeLike
    embedding: Mapping[str, Any] | None = None

    @nn.compact
    def __call__(self, x: Tokens, emb: Any) -> tuple[Tokens, list[Float[Array, "b 1 c"]], Float[Array, "b k"]]:
        emb = emb if self.embedding is None else ConditionEmbedding(**self.embedding, name="emb")(*emb)
        terms = dense(6 * x.shape[-1], self.dtype, name="linear", zero=True)(nn.silu(emb))
        shift, scale, *rest = jnp.split(terms[:, None], 6, axis=-1)
        return modulate(layer_norm(self.dtype, name="norm")(x), shift, scale), rest, emb


class JointAttention(nn.Module):
    """`(x [b, n, c], y [b, m, c], mask [b, m], angles) -> ([b, n, c], [b, m, c])`, one attention over both.

    Attributes:
      heads, qk_norm: as in `Attention`.
      last: y has keys and values but no queries, and its answer is None.
    """

    heads: int
    qk_norm: bool
    dropout: float
    dtype: DTypeLike
    deterministic: bool
    last: bool
    qkv_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Tokens, y: Tokens, mask: Bool[Array, "b m"], angles: Float[Array, "n k2"] | None = None
    ) -> tuple[Tokens, Tokens | None]:
        n, width = x.shape[1:]
        split = lambda h: h.reshape(*h.shape[:2], self.heads, width // self.heads)
        norm = lambda h, name: rms_norm(self.dtype, name=name)(h) if self.qk_norm else h
        q, k, v = (split(dense(width, self.dtype, name=name)(x)) for name in ("to_q", "to_k", "to_v"))
        q, k = norm(q, "norm_q"), norm(k, "norm_k")
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        text_k, text_v = (split(dense(width, self.dtype, name=name)(y)) for name in ("add_k_proj", "add_v_proj"))
        text_k = norm(text_k, "norm_added_k")
        if not self.last:
            text_q = norm(split(dense(width, self.dtype, name="add_q_proj")(y)), "norm_added_q")
            q = jnp.concatenate([q, text_q], axis=1)
        k, v = (jnp.concatenate(both, axis=1) for both in ((k, text_k), (v, text_v)))
        h = attention(q, k, v, mask=jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], axis=1))
        h = h.reshape(*h.shape[:2], width)
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        image = drop(dense(width, self.dtype, name="to_out__0")(h[:, :n]))
        return image, None if self.last else drop(dense(width, self.dtype, name="to_add_out")(h[:, n:]))


class Activation(nn.Module):
    """`x [b, n, c] -> f(Dense x)`, or `a f(b)` of the two halves of a Dense where `gated` (Shazeer 2020)."""

    hidden: int
    function: Function
    gated: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b n hidden"]:
        h = dense(self.hidden * (2 if self.gated else 1), self.dtype, name="proj")(x)
        if not self.gated:
            return self.function(h)
        a, b = jnp.split(h, 2, axis=-1)
        return a * self.function(b)


class FeedForward(nn.Module):
    """`x [b, n, c] -> Dense(dropout(activation)) [b, n, c]`."""

    hidden: int
    function: Function
    gated: bool
    dropout: float
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        h = Activation(self.hidden, self.function, self.gated, self.dtype, name="net__0")(x)
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        return dense(x.shape[-1], self.dtype, name="net__2")(h)


class Block(nn.Module):
    """One stream, `(h, emb [b, k], angles, text) -> h`, h being (x [b, n, c],).

    With a `ConditionEmbedding` in every block, h is (x, the first block's embedding [b, c], whether this is the first
    block), since the network's last layers are conditioned on the first block's, and `emb` is (c_noise, cond).

    Attributes:
      feed_forward: fields of FeedForward.
      attention: fields of Attention.
      norm_epsilon, norm_affine: of the norms after the first.
      cross: whether there is a text.
      embedding: fields of a `ConditionEmbedding`.
    """

    feed_forward: Mapping[str, Any]
    attention: Mapping[str, Any]
    dtype: DTypeLike
    norm_epsilon: float = 1e-6
    norm_affine: bool = False
    cross: bool = False
    embedding: Mapping[str, Any] | None = None

    @nn.compact
    def __call__(
        self, h: tuple[Any, ...], emb: Any, angles: Float[Array, "n k2"] | None = None, text: Text | None = None
    ) -> tuple[Any, ...]:
        x, *first = h
        norm = lambda name: layer_norm(self.dtype, name=name, epsilon=self.norm_epsilon, affine=self.norm_affine)
        y, (gate, shift, scale, out_gate), emb = AdaZero(self.dtype, self.embedding, name="norm1")(x, emb)
        x = x + gate * Attention(**self.attention, name="attn1")(y, angles=angles)
        if self.cross:
            assert text is not None
            to_text = Attention(**self.attention, zero=True, name="attn2")
            x = x + to_text(norm("norm2")(x), text.embedding, text.mask)
        y = modulate(norm("norm3")(x), shift, scale)
        x = x + out_gate * FeedForward(**self.feed_forward, name="ff")(y)
        if first:
            embedding, is_first = first
            first = [jnp.where(is_first, emb, embedding), jnp.zeros_like(is_first)]
        return (x, *first)


class JointBlock(nn.Module):
    """Two streams, `(h, emb [b, c], mask [b, m], angles) -> h`, h being (image [b, n, c], text [b, m, c]).

    Attributes:
      feed_forward: fields of FeedForward.
      attention: fields of JointAttention.
      last: the text goes no further, and is returned as it came.
    """

    feed_forward: Mapping[str, Any]
    attention: Mapping[str, Any]
    dtype: DTypeLike
    last: bool = False

    @nn.compact
    def __call__(
        self,
        h: tuple[Tokens, Tokens],
        emb: Float[Array, "b c"],
        mask: Bool[Array, "b m"],
        angles: Float[Array, "n k2"] | None = None,
    ) -> tuple[Tokens, Tokens]:
        x, text = h
        image_in, image_terms, _ = AdaZero(self.dtype, name="norm1")(x, emb)
        if self.last:
            text_in, text_terms = AdaOut(self.dtype, name="norm1_context")(text, emb), None
        else:
            text_in, text_terms, _ = AdaZero(self.dtype, name="norm1_context")(text, emb)
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
    """`(x [b, n, c], emb [b, k]) -> norm(x) (1 + scale) + shift`."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, emb: Float[Array, "b k"]) -> Tokens:
        terms = dense(2 * x.shape[-1], self.dtype, name="linear", zero=True)(nn.silu(emb))
        scale, shift = jnp.split(terms[:, None], 2, axis=-1)
        return modulate(layer_norm(self.dtype, name="norm")(x), shift, scale)
