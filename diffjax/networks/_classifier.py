"""A small classifier of images: its features measure samples, its log probabilities guide them.

    x [b, h, w, c] -> conv -> [block x n, halve] a level -> norm -> SiLU -> mean over pixels -> features [b, d]
    c_noise -> Conditioning -> told (for each block)                             |
                                                          logits [b, classes] <--+-- dropout, linear*

    block   x -> norm -> SiLU -> conv -> norm (1 + s) + u -> SiLU -> dropout -> conv* -> + x        * starts at zero

Source: He et al. 2016 (Identity mappings in deep residual networks) with group normalisation (Wu & He 2018); told the
noise level as Dhariwal & Nichol 2021, section 4, have it.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax._typing import Params
from diffjax.networks._blocks import GroupNorm, ResidualBlock, conv
from diffjax.networks._embedding import Conditioning, broadcast_noise, check_dropout, dense


class Classifier(nn.Module):
    """A classifier `(x [b, h, w, c], c_noise [b] or None) -> logits [b, num_classes]`, float32 or float64.

    `from_linen(Classifier(10))` is a network, so that it trains as any other, with a cross entropy of your own:
    `scripts/train_classifier.py`. Told no c_noise it takes images as they are; told one, and trained on noisy images,
    it is what `classifier_guidance` asks for.

    >>> import jax, jax.numpy as jnp
    >>> classifier, x = Classifier(10, channels=8), jnp.zeros((2, 8, 8, 1))
    >>> params = classifier.init(jax.random.key(0), x)["params"]
    >>> classifier_features(classifier, params, x).shape
    (2, 32)

    Attributes:
      num_classes: how many.
      channels: of the first level, even.
      multipliers: channels of level i are `channels * multipliers[i]`; each after the first halves the size, rounded
        up. The features are the channels of the last.
      blocks: residual blocks a level.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c], or a cond.
    """

    num_classes: int
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.num_classes < 1:
            raise ValueError(f"num_classes: at least 1 is needed, got {self.num_classes}")
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"channels: an even number is needed, got {self.channels}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: one positive number a level is needed, got {self.multipliers}")
        if self.blocks < 1:
            raise ValueError(f"blocks: at least one a level is needed, got {self.blocks}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Any, c_noise: Any = None, cond: Any = None, *, deterministic: bool = True
    ) -> Float[Array, "b k"]:
        if cond is not None:
            raise ValueError(f"cond: a classifier takes none, got {type(cond).__name__}")
        h = _body(self, name="body")(x, c_noise, deterministic)
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        return dense(self.num_classes, h.dtype, name="logits", zero=True)(h)


def classifier_features(
    classifier: Classifier, params: Params, x: Float[Array, "b h w c"], c_noise: Any = None
) -> Float[Array, "b d"]:
    """What a classifier sees in images before it decides, [b, d]: features for the distances of `metrics`.

    Args:
      classifier: the module.
      params: its parameters.
      x: images [b, h, w, c], as it was trained on.
      c_noise: [b], their noise level, if it was trained with one.
    """
    return _body(classifier).apply({"params": params["body"]}, x, c_noise, True)  # pyright: ignore[reportReturnType]


def _body(classifier, name=None):
    c = classifier
    return _Body(c.channels, c.multipliers, c.blocks, c.dropout, c.dtype, name=name)


class _Body(nn.Module):
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, c_noise, deterministic):
        if x.ndim != 4:
            raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
        c_noise = broadcast_noise(0.0 if c_noise is None else c_noise, x)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        told = Conditioning(self.channels, dtype=wide, name="conditioning")(c_noise)
        h = conv(self.channels, 3, self.dtype, name="in")(x)
        for level, multiplier in enumerate(self.multipliers):
            width = self.channels * multiplier
            if level:
                h = conv(width, 3, self.dtype, name=f"halve__{level}", stride=2)(h)
            for i in range(self.blocks):
                name = f"blocks__{level}__{i}"
                h = ResidualBlock(width, self.dropout, deterministic, self.dtype, name=name)(h, told)
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm")(h))
        return jnp.mean(h.astype(wide), axis=(1, 2))
