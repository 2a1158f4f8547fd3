"""Span corruption: a text encoder learns to say which tokens were hidden, from those around them.

    ids      a    red  circle  above  a    small  blue   square  </s>
    hidden   .    x    x       .      .    .      x      .       .            a Markov chain along the text
    given    a    [0]  [0]     above  a    small  [1]    square  </s>         every span by a sentinel of its own
    loss     - mean over hidden tokens of log softmax(E h / sqrt(width))[id],    E the encoder's own table of tokens

T5 hides spans in this way and has a decoder write them down; here the encoder alone predicts each token in its place
(as the "MASS-style" and "BERT-style" objectives that T5 was compared with do), so that nothing is trained which is
thrown away. After it the encoder is frozen, as Imagen's is.

Source: Raffel et al. 2020 (T5), sections 3.1.4 and 3.3; Song et al. 2019 (MASS).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffjax._arrays import at_once, check, default_index, sample_keys
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Index, Key, Params, Scalar
from diffjax.networks import T5Encoder


@checked_numbers
def corrupt_spans(
    key: Key,
    ids: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    *,
    sentinels: Int[Array, " s"],
    share: Scalar = 0.15,
    length: Scalar = 3.0,
    index: Index | None = None,
) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
    """Tokens with spans of them hidden behind sentinels, and which are hidden; both [b, n].

    Whether a token is hidden is a stationary Markov chain along the text: each is hidden with probability `share`, and
    a span that does not reach an end has `length` tokens on average (geometric).

    Args:
      key: of text i, `fold_in(key, index_i)`.
      ids: tokens [b, n].
      mask: False for padding, which is never hidden.
      sentinels: the ids that stand for spans, in turn: the k-th span of a text is sentinels[k mod s].
      share: in (0, 1).
      length: at least 1, and at least share/(1 - share).
      index: global indices [b].

    Raises:
      ValueError: share or length out of range.
    """
    share, length = as_scalar("share", share), as_scalar("length", length)
    with at_once(share, length):
        check((share > 0) & (share < 1), f"share: a number in (0, 1) is needed, got {share}")
        least = share / (1 - share)
        check((length >= 1) & (length >= least), f"length: at least 1, and share/(1 - share), is needed, got {length}")
    begin = least / length  # the chance of a span after a token that is seen
    n = ids.shape[1]
    u = jax.vmap(lambda each: jax.random.uniform(each, (n,)))(sample_keys(key, default_index(len(ids), index)))

    def step(before, now):
        hidden = now < jnp.where(before, 1 - 1 / length, begin)
        return hidden, hidden

    first = u[:, 0] < share
    _, rest = jax.lax.scan(step, first, u[:, 1:].T)
    hidden = jnp.concatenate([first[:, None], rest.T], axis=1) & mask
    starts = hidden & ~jnp.pad(hidden, ((0, 0), (1, 0)))[:, :-1]
    sentinels = jnp.asarray(sentinels, ids.dtype)
    place = (jnp.cumsum(starts, axis=1) - 1) % len(sentinels)
    return jnp.where(hidden, sentinels[place], ids), hidden


@checked_numbers
def span_corruption_loss(
    params: Params,
    key: Key,
    ids: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    *,
    module: T5Encoder,
    sentinels: Int[Array, " s"],
    share: Scalar = 0.15,
    length: Scalar = 3.0,
    index: Index | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The mean negative log probability of the hidden tokens in nats, [], and {"accuracy": []}; 0 where none is hidden.

    Args:
      params: the encoder's parameters.
      key: as of `corrupt_spans`.
      ids: tokens [b, n].
      mask: False for padding.
      module: the encoder, called without dropout.
      sentinels: as of `corrupt_spans`; they are never predicted.
      share: as of `corrupt_spans`.
      length: as of `corrupt_spans`.
      index: global indices [b].
    """
    given, hidden = corrupt_spans(key, ids, mask, sentinels=sentinels, share=share, length=length, index=index)
    h = module.apply({"params": params}, given, mask)
    assert isinstance(h, jax.Array)
    logits = h @ params["shared"]["embedding"].T / module.width**0.5
    logits = logits.at[..., jnp.asarray(sentinels)].set(-jnp.inf)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
    total = jnp.maximum(jnp.sum(hidden), 1)
    right = jnp.argmax(logits, axis=-1) == ids
    mean = lambda values: jnp.sum(jnp.where(hidden, values, 0)) / total
    return mean(nats), {"accuracy": mean(right)}
