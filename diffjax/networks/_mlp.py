"""Perceptrons for small data: points in the plane, short vectors, 8 x 8 digits. `MLP` is residual:

    x [b, *d] -> flatten -> Dense -> n x [ h + Dense*(dropout(SiLU(Dense(norm(h) (1 + s) + u)))) ] -+
                                                                              ^                     |
    c_noise, cond -> ConditionEmbedding -> Dense -> s, u (each block) --------+                     |
    y [b, *d] <- Dense* <- SiLU <- norm <-----------------------------------------------------------+

and `PlainMLP` is not: [x, ConditionEmbedding] -> n x [ Dense -> SiLU -> dropout ] -> Dense* -> y.

Source: pre-norm residual blocks (He et al. 2016) with adaptive normalisation (Peebles & Xie 2023, section 3.2). Layers
marked * start at zero, and with them the network.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._embedding import ConditionEmbedding
from diffjax.networks._layers import check_dropout, dense, float32_at_least
from diffjax.networks._repeat import rematerialised, repeat
from diffjax.networks._second_time import broadcast_times


@checked_numbers
class MLP(nn.Module):
    """A residual multilayer perceptron `(x [b, *d], c_noise [b] or [b, 2], cond) -> y [b, *d]`, y in float32.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen
    >>> network = from_linen(MLP(width=32, depth=2))
    >>> x, c_noise = jnp.zeros((4, 2)), jnp.zeros(4)
    >>> params = network.init(jax.random.key(0), x, c_noise, None)
    >>> network.apply(params, x, c_noise, None).shape
    (4, 2)

    Attributes:
      width: features of the hidden layers, even.
      depth: number of residual blocks.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label of classifier-free
        guidance. None: cond is a float vector [b, k], or None.
      text_width: cond is a `Text` of such embeddings, whose mean is embedded. A text without tokens is no condition.
        With num_classes as well, cond is a `Cascade` of a text and a label.
      dropout: the probability of dropping a hidden feature in training.
      dtype: of the computation; parameters are float32.
      remat: recompute each block in the backward pass instead of storing its activations: less memory, more time.
      scan: the blocks by `lax.scan`, which compiles one of them.
      out_channels: size of y's last axis, that of x where None.

    Raises:
      ValueError: a width that is odd, a negative depth, a dropout outside [0, 1), or a cond that does not fit.
    """

    width: int = 128
    depth: int = 3
    num_classes: int | None = None
    text_width: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False
    out_channels: int | None = None

    def __post_init__(self):
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width: an even number is needed, got {self.width}")
        if self.depth < 0:
            raise ValueError(f"depth: at least 0 is needed, got {self.depth}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *d"], c_noise: ArrayLike, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b *d"]:
        flat = x.reshape(x.shape[0], -1)
        wide = float32_at_least(self.dtype)
        embedding = ConditionEmbedding(self.width, self.num_classes, self.text_width, wide, name="conditioning")
        emb = embedding(broadcast_times(self, c_noise, x), cond)
        h = dense(self.width, self.dtype, name="in")(flat)
        fields = {"width": self.width, "dropout": self.dropout, "deterministic": deterministic, "dtype": self.dtype}
        h = repeat(self, _Block, fields, "blocks", self.depth, h, emb, scan=self.scan, remat=self.remat)
        h = nn.silu(nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype, name="norm")(h))
        shape = x.shape if self.out_channels is None else (*x.shape[:-1], self.out_channels)
        y = dense(math.prod(shape[1:]), self.dtype, name="out", zero=True)(h)
        return y.astype(wide).reshape(shape)


class _Block(nn.Module):
    """A residual block `(h [b, width], emb [b, width]) -> h`."""

    width: int
    dropout: float
    deterministic: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b width"], emb: Float[Array, "b width"]) -> Float[Array, "b width"]:
        scale, shift = jnp.split(dense(2 * self.width, self.dtype, name="modulate")(emb), 2, axis=-1)
        h = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name="norm")(x) * (1 + scale) + shift
        h = nn.silu(dense(self.width, self.dtype, name="hidden")(h))
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        return x + dense(self.width, self.dtype, name="close", zero=True)(h)


@checked_numbers
class PlainMLP(nn.Module):
    """A perceptron `(x [b, *d], c_noise [b] or [b, 2], cond) -> y [b, *d]`, y in float32, without residuals or norms.

    Attributes:
      width: features of the hidden layers, even.
      depth: number of hidden layers.
      num_classes, text_width: as of `MLP`.
      dropout: the probability of dropping a hidden feature in training.
      dtype: of the computation; parameters are float32.
      remat: recompute each layer in the backward pass instead of storing its activations: less memory, more time.
      scan: the layers after the first by `lax.scan`.

    Raises:
      ValueError: a width that is odd, no hidden layer, a dropout outside [0, 1), or a cond that does not fit.
    """

    width: int = 128
    depth: int = 3
    num_classes: int | None = None
    text_width: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width: an even number is needed, got {self.width}")
        if self.depth < 1:
            raise ValueError(f"depth: at least 1 is needed, got {self.depth}")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *d"], c_noise: ArrayLike, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b *d"]:
        wide = float32_at_least(self.dtype)
        embedding = ConditionEmbedding(self.width, self.num_classes, self.text_width, wide, name="conditioning")
        emb = embedding(broadcast_times(self, c_noise, x), cond)
        flat = x.reshape(x.shape[0], -1)
        h = jnp.concatenate([flat.astype(self.dtype), emb.astype(self.dtype)], axis=-1)
        fields = {"width": self.width, "dropout": self.dropout, "deterministic": deterministic, "dtype": self.dtype}
        h = rematerialised(self, _Layer, self.remat)(**fields, name="first")(h)
        h = repeat(self, _Layer, fields, "layers", self.depth - 1, h, scan=self.scan, remat=self.remat)
        return dense(flat.shape[1], self.dtype, name="out", zero=True)(h).astype(wide).reshape(x.shape)


class _Layer(nn.Module):
    """A hidden layer `h [b, k] -> [b, width]`."""

    width: int
    dropout: float
    deterministic: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Float[Array, "b k"]) -> Float[Array, "b width"]:
        h = nn.silu(dense(self.width, self.dtype, name="hidden")(h))
        return nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
