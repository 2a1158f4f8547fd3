"""A small classifier of images: its features measure samples, its log probabilities guide them.

    x [b, h, w, c] -> conv -> [block x n, halve] a level -> norm -> SiLU -> mean over pixels -> features [b, d]
    c_noise -> ConditionEmbedding -> emb (every block)                           |
                                                          logits [b, classes] <--+-- dropout, linear*

    block   x -> norm -> SiLU -> conv -> norm (1 + s) + u -> SiLU -> dropout -> conv* -> + x        * starts at zero

Source: He et al. 2016 (Identity mappings in deep residual networks) with group normalisation (Wu & He 2018);
conditioned on the noise level as in Dhariwal & Nichol 2021, section 4.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._arrays import part_of
from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.networks._blocks import ResidualBlock, check_channels, conv
from diffjax.networks._embedding import ConditionEmbedding
from diffjax.networks._layers import check_dropout, dense, float32_at_least
from diffjax.networks._norm import GroupNorm
from diffjax.networks._second_time import broadcast_noise


@checked_numbers
class Classifier(nn.Module):
    """A classifier `(x [b, h, w, c], c_noise [b] or None) -> logits [b, num_classes]`, float32 or float64.

    `from_linen(Classifier(10))` is a network, so that it trains as any other, with a cross entropy of your own:
    `scripts/train_classifier.py`. Without c_noise it takes clean images; with c_noise, and trained on noisy
    images, it is a classifier for `classifier_guidance`.

    >>> import jax, jax.numpy as jnp
    >>> classifier, x = Classifier(10, channels=(8, 16, 32)), jnp.zeros((2, 8, 8, 1))
    >>> params = classifier.init(jax.random.key(0), x)["params"]
    >>> classifier_features(classifier, params, x).shape
    (2, 32)

    Attributes:
      num_classes: number of classes.
      channels: of each level, the finest first, whose number is even; each level after the first halves the size,
        rounded up. The features are the channels of the last.
      blocks: residual blocks a level.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c], or a cond.
    """

    num_classes: int
    channels: tuple[int, ...] = (32, 64, 128)
    blocks: int = 1
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.num_classes < 1:
            raise ValueError(f"num_classes: at least 1 is needed, got {self.num_classes}")
        check_channels(self.channels, even_first=True)
        if self.blocks < 1:
            raise ValueError(f"blocks: at least one a level is needed, got {self.blocks}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c_noise: ArrayLike | None = None,
        cond: None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b k"]:
        if cond is not None:
            raise ValueError(f"cond: a classifier takes none, got {type(cond).__name__}")
        h = _body(self, name="body")(x, c_noise, deterministic)
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        return dense(self.num_classes, h.dtype, name="logits", zero=True)(h)


def classifier_features(
    classifier: Classifier, params: Params, x: Float[Array, "b h w c"], c_noise: ArrayLike | None = None
) -> Float[Array, "b d"]:
    """The features [b, d] of images before the classifier's last layer, for the distances of `metrics`.

    Args:
      classifier: the module.
      params: its parameters.
      x: images [b, h, w, c], as it was trained on.
      c_noise: [b], their noise level, if it was trained with one.
    """
    body = part_of(params, "body", "Classifier")
    return _body(classifier).apply({"params": body}, x, c_noise, True)  # pyright: ignore[reportReturnType]


def classifier_of(params: Params) -> Classifier:
    """The classifier that parameters are of, without dropout: its fields are seen in their names and shapes.

    >>> import jax, jax.numpy as jnp
    >>> module = Classifier(10, channels=(8, 16), blocks=2)
    >>> classifier_of(module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]) == module
    True

    Args:
      params: of a `Classifier`, a pytree of arrays [...].

    Raises:
      ValueError: a part is missing.
    """

    def last(*path):  # the last dimension of an array
        part = params
        for name in path:
            part = part_of(part, name, "Classifier")
        return part.shape[-1]

    body, widths = part_of(params, "body", "Classifier"), [last("body", "in", "kernel")]
    while (name := f"halve__{len(widths)}") in body:
        widths.append(last("body", name, "kernel"))
    blocks = sum(name.startswith("blocks__0__") for name in body)
    return Classifier(last("logits", "bias"), channels=tuple(widths), blocks=blocks)


def _body(classifier, name=None):
    c = classifier
    return _Body(c.channels, c.blocks, c.dropout, c.dtype, name=name)


class _Body(nn.Module):
    channels: tuple[int, ...]
    blocks: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, c_noise, deterministic):
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        c_noise = broadcast_noise(0.0 if c_noise is None else c_noise, x)
        wide = float32_at_least(self.dtype)
        emb = ConditionEmbedding(self.channels[0], dtype=wide, name="conditioning")(c_noise)
        h = conv(self.channels[0], 3, self.dtype, name="in")(x)
        for level, channels in enumerate(self.channels):
            if level:
                h = conv(channels, 3, self.dtype, name=f"halve__{level}", stride=2)(h)
            for i in range(self.blocks):
                name = f"blocks__{level}__{i}"
                h = ResidualBlock(channels, self.dropout, deterministic, self.dtype, name=name)(h, emb)
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm")(h))
        return jnp.mean(h.astype(wide), axis=(1, 2))
