"""A text encoder that is trained with the network that it conditions.

    ids, mask --T5Encoder--> embedding, mask --network--> y         params = {"text_encoder": ..., "denoiser": ...}

A frozen encoder is no part of a network: its embeddings are computed once, and are the condition.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffjax._arrays import part_of
from diffjax._typing import Cascade, Cond, Key, Network, Params, Sample, Text
from diffjax.networks._t5 import T5Encoder, init_t5

ENCODER, DENOISER = "text_encoder", "denoiser"
"""Entries of the parameters."""


def with_text_encoder(network: Network, encoder: T5Encoder) -> Network:
    """A network whose condition is the ids of tokens, with their encoder in its parameters.

        y = network(x, c_noise, Text(embedding, mask)),  embedding = encoder(ids, mask), and 0 at padding

    The condition is `Text(ids [b, n], mask [b, n])`, or a `Cascade` with such a text. The null is `Text(0.0, False)`,
    as that of embeddings: a text without tokens, for which the network has a null token of its own.

    >>> from diffjax import from_linen
    >>> from diffjax.networks import MLP, sized_t5
    >>> network = with_text_encoder(from_linen(MLP(width=16, depth=1, text_width=32)), sized_t5(20, "tiny"))
    >>> x, cond = jnp.zeros((2, 3)), Text(jnp.ones((2, 4), int), jnp.ones((2, 4), bool))
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(2), cond)
    >>> sorted(params), network.apply(params, x, jnp.zeros(2), cond).shape
    (['denoiser', 'text_encoder'], (2, 3))

    Args:
      network: takes a text of the encoder's width.
      encoder: starts as `init_t5` makes it; `params["text_encoder"]` may be replaced by others, such as pre-trained
        ones. It has dropout, if any, in training.

    Returns:
      The network; equal networks and encoders make equal ones. With the same key `params["denoiser"]` are those of
      `network.init`.

    Raises:
      ValueError: network or encoder is something else; when called, a condition that is no text of ids, or
        parameters without one of the two.

    Source: Saharia et al. 2022 (Imagen), section 2.1, where the encoder is frozen; Rombach et al. 2022, section 3.3,
    where it is trained with the denoiser.
    """
    if not isinstance(network, Network):
        raise ValueError(f"network: a Network (from_linen makes one) is needed, got {type(network).__name__}")
    if not isinstance(encoder, T5Encoder):
        raise ValueError(f"encoder: a T5Encoder is needed, got {type(encoder).__name__}")
    return Network(_Init(network, encoder), _Apply(network, encoder))


@dataclass(frozen=True)
class _Encoded:
    network: Network
    encoder: T5Encoder

    def encode(self, params: Params, cond: Cond, key: Key | None) -> Cond:
        """The condition with the embeddings [b, n, k] of its ids [b, n]."""
        ids, mask = _as_ids(cond)
        training = key is not None and self.encoder.dropout > 0
        rngs = {"dropout": jax.random.fold_in(key, 1)} if key is not None and training else {}
        embedding: Any = self.encoder.apply({"params": params}, ids, mask, deterministic=not training, rngs=rngs)
        text = Text(jnp.where(mask[..., None], embedding, 0), mask)
        return cond._replace(text=text) if isinstance(cond, Cascade) else text


class _Init(_Encoded):
    def __call__(self, key: Key, x: Sample, c_noise: Array, cond: Cond = None) -> Params:
        encoder = init_t5(jax.random.fold_in(key, 1), self.encoder)
        shapes = jax.eval_shape(lambda params: self.encode(params, cond, None), encoder)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return {ENCODER: encoder, DENOISER: self.network.init(key, x, c_noise, zeros)}


class _Apply(_Encoded):
    def __call__(
        self, params: Params, x: Sample, c_noise: Array, cond: Cond = None, *, key: Key | None = None
    ) -> Sample:
        encoder, denoiser = (part_of(params, name, "network with a text encoder") for name in (ENCODER, DENOISER))
        return self.network.apply(denoiser, x, c_noise, self.encode(encoder, cond, key), key=key)


def _as_ids(cond: Cond) -> tuple[Array, Array]:
    """(ids [b, n], mask [b, n]) of a condition."""
    text = cond.text if isinstance(cond, Cascade) else cond
    if not isinstance(text, Text):
        raise ValueError(f"cond: a Text(ids [b, n], mask [b, n]) is needed, got {type(text).__name__}")
    ids, mask = jnp.asarray(text.embedding), jnp.asarray(text.mask)
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"cond: the encoder is a part of this network, which takes ids [b, n], integers, got {ids.dtype} "
            f"{ids.shape}; of texts they are TextEncoder.ids(texts)"
        )
    if mask.dtype != jnp.bool_ or mask.shape != ids.shape:
        raise ValueError(f"cond: mask is a boolean array {ids.shape}, got {mask.dtype} {mask.shape}")
    return ids, mask
