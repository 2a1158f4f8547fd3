"""A source in an autoencoder's latent space: each batch is encoded as it is drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from diffjax.data._source import Batch, Part, Source, part_rows

_STREAM = 0x6C6174  # apart from the keys 0 and 1 that `training.init_state` derives of the same seed


@dataclass(frozen=True, eq=False)
class Encoded:
    """Made by `encoded`."""

    source: Source
    encode: Callable[..., ArrayLike]

    def __call__(self, seed: int, step: int, size: int, *, part: Part = (0, 1)) -> Batch:
        rows = part_rows(size, part)
        x0, cond = self.source(seed, step, size, part=part)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
        z = _draw(self.encode, key, jnp.asarray(x0), jnp.arange(rows.start, rows.stop))
        return np.asarray(z, np.float32), cond


def encoded(source: Source, encode: Callable[..., ArrayLike]) -> Source:
    """A source of latents from a source of images; conditions stay.

        source = encoded(from_images(images), latents.encode)

    The noise of the encoding depends on seed, step and the item's place in the batch, so that it is drawn anew in each
    epoch, and a part of a batch is a part of the same latents. Where encoding costs more than training, encode the
    images once, with `LatentSpace.moments`, and keep the result in an .npz.

    Args:
      source: of images x0 [size, *d].
      encode: `(key, x0 [b, *d], *, index [b]) -> z [b, *k]`, such as `LatentSpace.encode`; compiled here.

    Returns:
      `(seed, step, size, *, part) -> (z [size, *k], cond)`.
    """
    return Encoded(source, encode)


@eqx.filter_jit
def _draw(encode, key, x0, index):
    return encode(key, x0, index=index)
