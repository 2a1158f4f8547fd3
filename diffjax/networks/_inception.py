"""Inception v3 as published Frechet distances (FID) use it: images -> 2048 features.

    [-1, 1] -> 299 x 299 -> 1a 2a 2b -> max -> 3b 4a -> max -> 5b 5c 5d -> 6a 6b .. 6e -> 7a 7b 7c -> mean -> [b, 2048]
                                        pool_1          pool_2             mixed_6

    block A (5)   1x1 | 1x1, 5x5 | 1x1, 3x3, 3x3 | mean, 1x1                           concatenated
    block B (6a)  3x3 / 2 | 1x1, 3x3, 3x3 / 2 | max / 2
    block C (6)   1x1 | 1x1, 1x7, 7x1 | 1x1, 7x1, 1x7, 7x1, 1x7 | mean, 1x1
    block D (7a)  1x1, 3x3 / 2 | 1x1, 1x7, 7x1, 3x3 / 2 | max / 2
    block E (7)   1x1 | 1x1, (1x3, 3x1) | 1x1, 3x3, (1x3, 3x1) | mean, 1x1;  in 7c max in place of mean

Every layer is a convolution without bias, batch norm by stored statistics, and ReLU. Means do not count the padding.
Source: Szegedy et al. 2016 (Rethinking the Inception architecture); Heusel et al. 2017; the pooling is that of the
network behind published numbers (2015-12-05), which differs from the paper, and names are those of its torch version,
so `interop.read_inception` reads its weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffjax._typing import Params
from diffjax.networks._init import constant, normal
from diffjax.networks._layers import Function

SIZE = 299
EPSILON = 1e-3


class InceptionFeatures(NamedTuple):
    """Inception's features of images at four depths.

    Attributes:
      pool_1: [b, h, w, 64], after the first maximum.
      pool_2: [b, h, w, 192], after the second.
      mixed_6: [b, h, w, 768], before the last reduction.
      pool_3: [b, 2048], the means of the last block: the features of FID and KID.
    """

    pool_1: Float[Array, "b h w 64"]
    pool_2: Float[Array, "b h w 192"]
    mixed_6: Float[Array, "b h w 768"]
    pool_3: Float[Array, "b 2048"]


def inception_features(params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
    """The features [b, 2048] that FID and KID are computed from.

    Published numbers round samples to 8 bits first. Batches of 50 or so, under `jax.jit`.

    Args:
      params: from `interop.read_inception`.
      images: [b, h, w, 3] of any size from 1, in [-1, 1].
    """
    return InceptionV3().apply({"params": params}, images).pool_3  # pyright: ignore[reportAttributeAccessIssue]


class InceptionV3(nn.Module):
    """`images [b, h, w, 3] in [-1, 1] -> InceptionFeatures`.

    Attributes:
      resize: to 299 x 299, bilinear without smoothing; otherwise images have at least 75 pixels a side.
      dtype: of the computation.

    Raises:
      ValueError: images of another shape.
    """

    resize: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> InceptionFeatures:
        least = 1 if self.resize else 75
        if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < least:
            raise ValueError(f"images: [b, h, w, 3] of {least} pixels or more are needed, got shape {images.shape}")
        x = images.astype(self.dtype)
        if self.resize:
            x = jax.image.resize(x, (len(x), SIZE, SIZE, 3), "linear", antialias=False)
        for name, features, size, stride, padding in STEM_1:
            x = _Layer(features, (size, size), stride, padding, self.dtype, name=name)(x)
        pool_1 = x = _largest(x)
        for name, features, size, stride, padding in STEM_2:
            x = _Layer(features, (size, size), stride, padding, self.dtype, name=name)(x)
        pool_2 = x = _largest(x)
        mixed_6 = x
        for name, branches, pool in MIXED:
            x = _Mixed(branches, pool, self.dtype, name=name)(x)
            mixed_6 = x if name == "Mixed_6e" else mixed_6
        return InceptionFeatures(pool_1, pool_2, mixed_6, jnp.mean(x, axis=(1, 2)))


class _Layer(nn.Module):
    """Convolution without bias, the affine map of batch norm, ReLU."""

    features: int
    size: tuple[int, int]
    stride: int
    padding: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        convolve = nn.Conv(
            self.features,
            self.size,
            self.stride,
            self.padding,
            use_bias=False,
            kernel_init=normal(),
            dtype=self.dtype,
            name="conv",
        )
        return nn.relu(_StoredNorm(self.dtype, name="bn")(convolve(x)))


class _StoredNorm(nn.Module):
    """Batch norm with the training's statistics, which are parameters here (Ioffe & Szegedy 2015, algorithm 2)."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        laws = {"scale": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        scale, bias, mean, variance = (
            self.param(name, constant(value), (x.shape[-1],), jnp.float32).astype(self.dtype)
            for name, value in laws.items()
        )
        slope = scale * jax.lax.rsqrt(variance + EPSILON)
        return x * slope + (bias - mean * slope)


class _Mixed(nn.Module):
    """Concatenated branches: each a chain of layers, the last of which may be several."""

    branches: tuple
    pool: Function
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        ends = [end for branch in self.branches for end in self._follow(branch, x)]
        pooled = self.pool(x)
        if self.pool is _largest:
            return jnp.concatenate([*ends, pooled], axis=-1)
        features = POOL_FEATURES.get(self.name or "", 192)
        return jnp.concatenate([*ends, self._layer("branch_pool", features, (1, 1), 1)(pooled)], axis=-1)

    def _follow(self, branch, x):
        *chain, last = branch
        for layer in chain:
            x = self._layer(*layer)(x)
        return [self._layer(*layer)(x) for layer in (last if isinstance(last[0], tuple) else (last,))]

    def _layer(self, name, features, size, stride):
        return _Layer(features, size, stride, "SAME" if stride == 1 else "VALID", self.dtype, name=name)


def _largest(x):
    return nn.max_pool(x, (3, 3), (2, 2))


def _largest_around(x):
    return nn.max_pool(x, (3, 3), padding="SAME")


def _mean_around(x):
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _chain(prefix, *layers):
    """Layers prefix_1, prefix_2, ... of (features, height, width[, stride])."""
    return tuple((f"{prefix}_{i}", f, (h, w), *(rest or (1,))) for i, (f, h, w, *rest) in enumerate(layers, 1))


def _split(prefix, features):
    """The pair 1 x 3 and 3 x 1 that ends a branch."""
    return ((f"{prefix}a", features, (1, 3), 1), (f"{prefix}b", features, (3, 1), 1))


def _one(features):
    return (("branch1x1", features, (1, 1), 1),)


def _block_c(n):
    sevens = _chain("branch7x7", (n, 1, 1), (n, 1, 7), (192, 7, 1))
    return (_one(192), sevens, _chain("branch7x7dbl", (n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)))


BLOCK_A = (
    _one(64),
    _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
    _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
)
BLOCK_B = ((("branch3x3", 384, (3, 3), 2),), _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3, 2)))
BLOCK_D = (
    _chain("branch3x3", (192, 1, 1), (320, 3, 3, 2)),
    _chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
)
BLOCK_E = (
    _one(320),
    (*_chain("branch3x3", (384, 1, 1)), _split("branch3x3_2", 384)),
    (*_chain("branch3x3dbl", (448, 1, 1), (384, 3, 3)), _split("branch3x3dbl_3", 384)),
)
STEM_1 = (
    ("Conv2d_1a_3x3", 32, 3, 2, "VALID"),
    ("Conv2d_2a_3x3", 32, 3, 1, "VALID"),
    ("Conv2d_2b_3x3", 64, 3, 1, "SAME"),
)
STEM_2 = (("Conv2d_3b_1x1", 80, 1, 1, "VALID"), ("Conv2d_4a_3x3", 192, 3, 1, "VALID"))
MIXED = (
    ("Mixed_5b", BLOCK_A, _mean_around),
    ("Mixed_5c", BLOCK_A, _mean_around),
    ("Mixed_5d", BLOCK_A, _mean_around),
    ("Mixed_6a", BLOCK_B, _largest),
    ("Mixed_6b", _block_c(128), _mean_around),
    ("Mixed_6c", _block_c(160), _mean_around),
    ("Mixed_6d", _block_c(160), _mean_around),
    ("Mixed_6e", _block_c(192), _mean_around),
    ("Mixed_7a", BLOCK_D, _largest),
    ("Mixed_7b", BLOCK_E, _mean_around),
    ("Mixed_7c", BLOCK_E, _largest_around),
)
POOL_FEATURES = {"Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64}
