"""The embedding of the noise level and the condition that every block of a network is conditioned on.

    c_noise [b] or [b, 2] -> features -> Dense -> SiLU -> Dense --+
    second time (few-step networks) ------------------------------+
                                                                  +--> SiLU --> emb [b, width]
    cond: label [b] -> table of num_classes + 1 rows -------------+
          text -> mean of its tokens [b, k] -> Dense -------------+
          or vector [b, k] -> Dense ------------------------------+

The last row of the table, label num_classes, is the null label: "no condition" in classifier-free guidance
(Ho & Salimans 2022). A text without tokens is embedded as its learned null token.

What the layers are, and what their parameters are called, is an `EmbeddingLayers`: `PLAIN` here, the others where their
networks are (EDM2's preserve magnitudes, the transformers' and `UNet2D`'s have the names of published weights).
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from diffjax._arrays import check
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._init import normal
from diffjax.networks._layers import dense, rows_of
from diffjax.networks._noise_features import fourier_features
from diffjax.networks._second_time import SecondTimeLayers, add_second_time, first_time, two_layers
from diffjax.networks._text import Cascade, Text, TextTokens, pooled, split_text

Term = Callable[["ConditionEmbedding", Any], Float[Array, "b width"]]
"""`(the embedding, an input) -> [b, width]`, called in the embedding's compact method: its parameters are there."""


def two_dense(module: "ConditionEmbedding", name: str, x: Float[Array, "b k"]) -> Float[Array, "b width"]:
    """x [b, k] -> Dense `{name}_in` -> SiLU -> Dense `{name}_out` -> [b, width]."""
    h = dense(module.width, module.dtype, name=f"{name}_in")(x)
    return dense(module.width, module.dtype, name=f"{name}_out")(nn.silu(h))


def embed_noise(module: "ConditionEmbedding", c_noise: Float[Array, " b"]) -> Float[Array, "b width"]:
    """Two layers of the Fourier features of c_noise [b]."""
    return two_dense(module, "noise", fourier_features(c_noise, module.width).astype(module.dtype))


def embed_label(module: "ConditionEmbedding", labels: Int[Array, " b"]) -> Float[Array, "b width"]:
    """Rows [b, width] of a table for labels [b]."""
    assert module.num_classes is not None
    table = module.param("classes", normal(1.0), (module.num_classes + 1, module.width), jnp.float32)
    return rows_of(table, labels).astype(module.dtype)


def embed_text(module: "ConditionEmbedding", text: Text) -> Float[Array, "b width"]:
    """A linear layer of the mean of a text's tokens, [b, width]."""
    return dense(module.width, module.dtype, name="text_embedding")(pooled(text, module.dtype))


def embed_vector(module: "ConditionEmbedding", cond: Cond) -> Float[Array, "b width"]:
    """A linear layer of a vector [b, k]."""
    return dense(module.width, module.dtype, name="cond")(as_vector(cond))


class EmbeddingLayers(NamedTuple):
    """The layers of a `ConditionEmbedding`.

    Attributes:
      noise: of c_noise [b].
      label: of labels [b], which are in range.
      text: of a `Text` whose first token is the null token.
      vector: of a condition that is neither.
      noise_level: of a second noise level [b], for networks that have one (`EfficientUNet`'s low resolution).
      add: `(sum, term) -> sum`.
      activation: of the sum.
      second_time: the layers of its `SecondTime`.
    """

    noise: Term = embed_noise
    label: Term = embed_label
    text: Term = embed_text
    vector: Term = embed_vector
    noise_level: Term | None = None
    add: Callable[..., Float[Array, "b width"]] = operator.add
    activation: Callable[..., Float[Array, "b width"]] = nn.silu
    second_time: SecondTimeLayers = two_layers


PLAIN = EmbeddingLayers()
"""Those of `MLP`, `UNet` and `Classifier`."""


@checked_numbers
class ConditionEmbedding(nn.Module):
    """`(c_noise [b] or [b, 2], cond) -> emb [b, width]`.

    Attributes:
      width: features, even.
      num_classes: cond is then an integer label [b] in 0 .. num_classes, the last being the null label. A label out
        of range is an error where it can be seen, and gives NaN under jit.
      text_width: cond is then a `Text` of such embeddings, and with num_classes a `Cascade` of a text and a label. Both
        None: cond is a vector [b, k] or None.
      dtype: of the computation; float32 at least is meant, as it is little work.
      layers: what they are.
    """

    width: int
    num_classes: int | None = None
    text_width: int | None = None
    dtype: DTypeLike = jnp.float32
    layers: EmbeddingLayers = PLAIN

    @nn.compact
    def __call__(
        self,
        c_noise: Float[Array, "b *two"],
        cond: Cond = None,
        *,
        text: Text | None = None,
        noise_level: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b width"]:
        """The embedding [b, width].

        Args:
          c_noise: [b], or [b, 2] for the clock at t and at s.
          cond: a label, a `Text` or a vector, as the fields say.
          text: the answer of a `TextTokens` that the network has already, besides cond.
          noise_level: [b], the second noise level.
        """
        layers = self.layers
        h = add_second_time(layers.noise(self, first_time(c_noise)), c_noise, layers.second_time)
        if noise_level is not None:
            assert layers.noise_level is not None
            h = layers.add(h, layers.noise_level(self, noise_level))
        if text is None and self.text_width is not None:
            own, cond = split_text(cond, self.num_classes, self.text_width)
            text = TextTokens(self.text_width, name="text_tokens")(own)
        if text is not None:
            h = layers.add(h, layers.text(self, text))
        if self.num_classes is not None:
            h = layers.add(h, layers.label(self, as_labels(cond, self.num_classes, c_noise.shape[:1])))
        elif cond is not None:
            h = layers.add(h, layers.vector(self, cond))
        return layers.activation(h)


def as_labels(cond: ArrayLike | Text | Cascade | None, num_classes: int, shape: tuple[int, ...]) -> Int[Array, " b"]:
    """A condition as labels [b] in 0 .. num_classes, or ValueError."""
    if cond is None:
        raise ValueError(f"cond: labels are needed with num_classes={num_classes}; {num_classes} is the null label")
    if isinstance(cond, tuple):
        text = isinstance(cond, Text | Cascade)
        remedy = "set text_width for a text" if text else "wrap the network in LatentNetwork for WithLatent"
        raise ValueError(f"cond: integer labels of shape {shape} are needed, got {type(cond).__name__}; {remedy}")
    labels = jnp.asarray(cond)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != shape:
        raise ValueError(f"cond: integer labels of shape {shape} are needed, got {labels.dtype} {labels.shape}")
    in_range = (labels >= 0) & (labels <= num_classes)
    check(in_range, f"cond: labels must be within 0 .. {num_classes} (the last is the null label), got {cond}")
    return labels


def described(cond: Any) -> str:
    """A condition in words, for messages: dtype and shape of an array, traced or not, the type of all else."""
    if hasattr(cond, "dtype") and hasattr(cond, "shape"):
        return f"{cond.dtype} {cond.shape}"
    return type(cond).__name__


def as_vector(cond: ArrayLike | Text | Cascade) -> Float[Array, "b k"]:
    """A condition as a vector [b, k], or ValueError."""
    if isinstance(cond, tuple):
        text = isinstance(cond, Text | Cascade)
        remedy = "set text_width" if text else "wrap the network, such as in LatentNetwork for WithLatent"
        kind = type(cond).__name__
        raise ValueError(f"cond: a float vector [b, k] is needed without text_width, got {kind}; {remedy}")
    vector = jnp.asarray(cond)
    if not jnp.issubdtype(vector.dtype, jnp.floating) or vector.ndim != 2:
        raise ValueError(
            f"cond: a float vector [b, k] is needed without num_classes, got {vector.dtype} {vector.shape}; "
            "for integer labels set num_classes"
        )
    return vector
