"""A classifier of the factors of scenes: what each object of a picture is, and where.

    x [b, h, w, c], row, column --> body of `Classifier` --> features [b, d] --linear*--> logits [b, sum(counts)]
    logits of factor i, [b, counts_i] --argmax--> factors [b, k]                             * starts at zero

Which object is the first is a matter of place: the coordinates of each pixel are two more channels, since the mean over
pixels in the end keeps none.

Source of the coordinates as channels: Liu et al. 2018 (CoordConv), section 3.
"""

from itertools import accumulate

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from diffjax._arrays import part_of
from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.networks._classifier import Classifier, _body
from diffjax.networks._layers import dense


@checked_numbers
class FactorClassifier(nn.Module):
    """A classifier `(x [b, h, w, c], c_noise [b] or None) -> logits [b, sum(counts)]`, those of one factor adjacent.

    `config.train_factors` trains one on scenes, and `metrics.alignment` compares what it reads with captions.

    >>> import jax, jax.numpy as jnp
    >>> classifier, x = FactorClassifier((2, 4, 3), channels=(8, 16)), jnp.zeros((5, 8, 8, 3))
    >>> params = classifier.init(jax.random.key(0), x)["params"]
    >>> classifier.apply({"params": params}, x).shape, read_factors(classifier, params, x).shape
    ((5, 9), (5, 3))

    Attributes:
      counts: how many values each factor has, [k].
      channels: of each level, the finest first, as of `Classifier`; the features are the channels of the last.
      blocks: residual blocks a level.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c], or a cond.
    """

    counts: tuple[int, ...]
    channels: tuple[int, ...] = (32, 64, 64)
    blocks: int = 1
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts: at least one factor, and one value of each, is needed, got {self.counts}")
        self._images()  # which checks the other fields
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c_noise: ArrayLike | None = None,
        cond: None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b n"]:
        if cond is not None:
            raise ValueError(f"cond: a classifier takes none, got {type(cond).__name__}")
        h = _body(self._images(), name="body")(_with_coordinates(x), c_noise, deterministic)
        return dense(sum(self.counts), h.dtype, name="logits", zero=True)(h)

    def _images(self):
        return Classifier(1, self.channels, self.blocks, dtype=self.dtype, parent=None)


@checked_numbers
def split_factors(logits: Float[Array, "b n"], counts: tuple[int, ...]) -> list[Float[Array, "b m"]]:
    """The logits [b, counts_i] of each factor, a list, of those of all.

    Args:
      logits: of `FactorClassifier`, [b, sum(counts)].
      counts: how many values each factor has, [k].
    """
    return jnp.split(logits, list(accumulate(counts))[:-1], axis=-1)


def read_factors(classifier: FactorClassifier, params: Params, x: Float[Array, "b h w c"]) -> Int[Array, "b k"]:
    """The most probable value of each factor of images, int32 [b, k].

    Args:
      classifier: the module.
      params: its parameters.
      x: images [b, h, w, c], as it was trained on.
    """
    logits = classifier.apply({"params": params}, x)
    each = split_factors(logits, classifier.counts)  # pyright: ignore[reportArgumentType]
    return jnp.stack([jnp.argmax(part, axis=-1) for part in each], axis=-1).astype(jnp.int32)


def factor_features(classifier: FactorClassifier, params: Params, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    """The features [b, d] of images before the classifier's last layer, for the distances of `metrics`.

    Args:
      classifier: the module.
      params: its parameters.
      x: images [b, h, w, c], as it was trained on.
    """
    body, own = _body(classifier._images()), part_of(params, "body", "FactorClassifier")
    return body.apply({"params": own}, _with_coordinates(x), None, True)  # pyright: ignore[reportReturnType]


def _with_coordinates(x):
    """x [b, h, w, c + 2], with row and column of each pixel in [-1, 1]."""
    if x.ndim != 4:
        raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
    line = lambda n: (2 * jnp.arange(n, dtype=x.dtype) + 1) / n - 1
    grid = jnp.stack(jnp.meshgrid(line(x.shape[1]), line(x.shape[2]), indexing="ij"), axis=-1)
    return jnp.concatenate([x, jnp.broadcast_to(grid, (len(x), *grid.shape))], axis=-1)
