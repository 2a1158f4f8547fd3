"""A text as a condition: the embeddings of its tokens, and a mask of those that are not padding.

    embedding [b, n, k] --> [null, token 1, ..., token n]  [b, n + 1, k]
    mask      [b, n]    --> [no token at all, mask]        [b, n + 1]       at least one is True

The null token is learned; a prompt without tokens (its mask all False) is "no condition" in classifier-free guidance
(Ho & Salimans 2022), and the network attends to the null token in its place.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from diffjax._arrays import accumulator_dtype
from diffjax._typing import Cascade as Cascade, Cond, Text as Text
from diffjax.networks._init import normal


class TextTokens(nn.Module):
    """`(cond) -> Text` of n + 1 tokens, with at least one True in each mask: the first is the learned null token.

    Whatever the embedding holds at padding, it is 0 in the answer.

    Attributes:
      width: k, the features of the embedding.

    Raises:
      ValueError: a cond that is not a Text of that width.
    """

    width: int

    @nn.compact
    def __call__(self, cond: Cond) -> Text:
        embedding, mask = _as_text(cond, self.width)
        embedding = jnp.where(mask[..., None], embedding, 0)  # NaN times a weight of 0 would be NaN
        null = self.param("null", normal(1.0), (self.width,), jnp.float32).astype(embedding.dtype)
        first = jnp.broadcast_to(null, (embedding.shape[0], 1, self.width))
        empty = ~jnp.any(mask, axis=1, keepdims=True)
        return Text(jnp.concatenate([first, embedding], axis=1), jnp.concatenate([empty, mask], axis=1))


def pooled(text: Text, dtype: DTypeLike) -> Float[Array, "b k"]:
    """The mean [b, k] of the tokens that are not padding, at least one, in a dtype; summed in float32 at least."""
    wide = accumulator_dtype(dtype)
    mask = text.mask.astype(wide)
    total = jnp.einsum("bn,bnk->bk", mask, text.embedding.astype(wide))
    return (total / jnp.sum(mask, axis=1, keepdims=True)).astype(dtype)


def split_text(cond: Cond, num_classes: int | None, text_width: int | None) -> tuple[Cond, Cond]:
    """(text, what else there is) of a condition, each None where a network's fields do not name it.

    A network with both fields has a `Cascade` of a text and a label, one with `text_width` alone a `Text`.

    Raises:
      ValueError: both fields, and cond is something else.
    """
    if text_width is None:
        return None, cond
    if num_classes is None:
        return cond, None
    if not isinstance(cond, Cascade) or cond.text is None or cond.label is None:
        raise ValueError(f"cond: a Cascade with text and label is needed, got {type(cond).__name__}")
    if cond.low_resolution is not None or cond.noise_level is not None:
        raise ValueError("cond: this network takes no low-resolution image")
    return cond.text, cond.label


USES = ("both", "pooled", "attention")


def check_text_use(text_use: str) -> None:
    """Raises `ValueError` where it is none of `USES`."""
    if text_use not in USES:
        raise ValueError(f"text_use: one of {', '.join(USES)} is needed, got {text_use!r}")


def _as_text(cond, width) -> tuple[Float[Array, "b n k"], Bool[Array, "b n"]]:
    if not isinstance(cond, Text):
        raise ValueError(f"cond: a Text(embedding [b, n, {width}], mask [b, n]) is needed, got {type(cond).__name__}")
    embedding, mask = jnp.asarray(cond.embedding), jnp.asarray(cond.mask)
    if not jnp.issubdtype(embedding.dtype, jnp.floating) or embedding.ndim != 3 or embedding.shape[-1] != width:
        raise ValueError(f"cond: embedding is a float array [b, n, {width}], got {embedding.dtype} {embedding.shape}")
    if mask.dtype != jnp.bool_ or mask.shape != embedding.shape[:2]:
        raise ValueError(f"cond: mask is a boolean array {embedding.shape[:2]}, got {mask.dtype} {mask.shape}")
    return embedding, mask
