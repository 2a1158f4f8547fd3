"""Diffusion transformers: DiT, its two-stream form for text (MM-DiT), and the paper's sizes.

    x [b, h, w, c] --> patches --> Dense + positions --> n x block --> norm (1 + s) + u --> Dense* --> pixels --> y
                                                            ^              ^
    c_noise --> waves --> Dense, SiLU, Dense --+--> emb ----+--------------+
    label, vector or pooled text --------------+            |
    text tokens --------------------------------------------+   by cross-attention, or as a second stream (`joint`)

Layers marked * start at zero, as do the modulations and the gates of the blocks (`_transformer`): the network starts
at zero.

             depth   width   heads
    DiT-S     12      384      6          Peebles & Xie 2023, table 1; `dit_b(2)` is DiT-B/2. Their blocks are under
    DiT-B     12      768     12          `lax.scan`, so that the largest compiles as fast as the smallest.
    DiT-L     24     1024     16
    DiT-XL    28     1152     16

Source: Peebles & Xie 2023 (DiT, adaLN-zero); Chen et al. 2024 (cross-attention); Esser et al. 2024 (two streams).
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._blocks import check_sides
from diffjax.networks._embedding import ConditionEmbedding
from diffjax.networks._init import constant, normal
from diffjax.networks._layers import (
    Function,
    TwoLayers,
    check_dropout,
    dense,
    float32_at_least,
    layer_norm,
    matrix_product,
    modulate,
)
from diffjax.networks._noise_features import fourier_features
from diffjax.networks._positions import rotation_angles, wave_positions
from diffjax.networks._repeat import rematerialised, repeat
from diffjax.networks._second_time import broadcast_times
from diffjax.networks._text import TextTokens, pooled, split_text
from diffjax.networks._transformer import Block, JointBlock, NoiseFeatures, embedding_layers


@checked_numbers
class DiT(nn.Module):
    """A transformer over patches `(x [b, h, w, c], c_noise [b] or [b, 2], cond) -> y [b, h, w, k]`, y in float32.

    cond is a label [b], a `Text`, a float vector [b, k], or None, as `num_classes` and `text_width` say.

    Attributes:
      width: features of a token, a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: of attention.
      patch: pixels along a side of a patch, a divisor of height and width.
      out_channels: k, the channels of y, those of x where None; twice those of x where the variance is learned too.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label.
      text_width: cond is a `Text` with so many features; with num_classes as well, a `Cascade` of a text and a label.
      joint: the text is a second stream with separate weights, and its mean is embedded too; else it is attended to.
      qk_norm: normalise queries and keys, which keeps large networks stable in half precision.
      rope: base of rotary position embeddings (100, say), which replace added positions; none by default.
      learned_positions: positions are learned, for one size of image; else they are waves, for any.
      position_range: positions run from 0 to this number for every image size; by default one unit per patch.
      noise_features: features of c_noise, `(c_noise [b], features) -> [b, features]`.
      mlp_ratio: hidden features of the feed-forward layer, as a multiple of width.
      activation, gated: of the feed-forward layer, f(Wx) or where gated (Wx) f(Vx).
      qkv_bias: of queries, keys and values.
      norm_epsilon: epsilon of the norms before the feed-forward layers; `norm_affine`: they have a learned scale.
      emb_per_block: every block has an embedding of noise level and label, as in diffusers' DiT.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation (`jnp.bfloat16`); parameters and the output are float32.
      remat: recompute each block in the backward pass instead of storing its activations.
      scan: one block under `lax.scan`, which compiles once whatever the depth.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c] in whole patches, or a cond of another kind.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 2
    out_channels: int | None = None
    num_classes: int | None = None
    text_width: int | None = None
    joint: bool = False
    qk_norm: bool = False
    rope: float | None = None
    learned_positions: bool = False
    position_range: int | None = None
    noise_features: NoiseFeatures = fourier_features
    mlp_ratio: float = 4.0
    activation: Function = nn.gelu
    gated: bool = False
    qkv_bias: bool = True
    norm_epsilon: float = 1e-6
    norm_affine: bool = False
    emb_per_block: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        if self.heads < 1 or self.width < 4 or self.width % 4 or self.width % self.heads:
            raise ValueError(f"width: a multiple of 4 and of heads={self.heads} is needed, got {self.width}")
        for name in ("depth", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1 is needed, got {getattr(self, name)}")
        if self.rope is not None and (self.rope <= 1 or self.width // self.heads % 4):
            raise ValueError(
                f"rope: a base above 1, and heads of 4n features; got {self.rope}, {self.width}/{self.heads}"
            )
        if self.joint and self.text_width is None:
            raise ValueError("joint: two streams need a text_width")
        if self.joint and (self.emb_per_block or self.norm_affine or not self.qkv_bias):
            raise ValueError("joint: its blocks have neither emb_per_block nor norm_affine, and an qkv_bias")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c_noise: ArrayLike, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        rows, columns = patches(x, self.patch)
        c_noise = broadcast_times(self, c_noise, x)
        positions = wave_positions(rows, columns, self.width, self.position_range)
        added = None if self.rope is not None else jnp.asarray(positions, self._wide())
        h = PatchEmbed(self.width, self.patch, self.dtype, self.learned_positions, name="pos_embed")(x, added)
        angles = None
        if self.rope is not None:
            angles = rotation_angles(rows, columns, self.width // self.heads, self.rope)
            angles = jnp.asarray(angles, self._wide())
        h, emb = self._blocks(h, c_noise, cond, angles, deterministic)
        shift, scale = jnp.split(dense(2 * self.width, self.dtype, name="proj_out_1", zero=True)(nn.silu(emb)), 2, -1)
        h = modulate(layer_norm(self.dtype, name="norm_out")(h), shift[:, None], scale[:, None])
        out = x.shape[-1] if self.out_channels is None else self.out_channels
        h = dense(self.patch**2 * out, self.dtype, name="proj_out_2", zero=True)(h)
        return unpatched(h, rows, columns, self.patch).astype(self._wide())

    def _blocks(self, h, c_noise, cond, angles, deterministic):
        """The tokens [b, n, width] after all blocks, and the embedding [b, width] of the last layers."""
        shared = {"dropout": self.dropout, "dtype": self.dtype, "deterministic": deterministic}
        hidden = {"hidden": int(self.mlp_ratio * self.width), "function": self.activation, "gated": self.gated}
        fields = {
            "feed_forward": hidden | shared,
            "attention": {"heads": self.heads, "qk_norm": self.qk_norm, "qkv_bias": self.qkv_bias} | shared,
            "dtype": self.dtype,
        }
        embedding = {
            "width": self.width,
            "num_classes": self.num_classes,
            "dtype": self._wide(),
            "layers": embedding_layers(self.noise_features),
        }
        text, cond = split_text(cond, self.num_classes, self.text_width)
        text = None if self.text_width is None else TextTokens(self.text_width, name="text")(text)
        if self.joint:
            return self._two_streams(h, c_noise, cond, text, angles, fields, embedding)
        return self._one_stream(h, c_noise, cond, text, angles, fields, embedding)

    def _one_stream(self, h, c_noise, cond, text, angles, fields, embedding):
        fields |= {"norm_epsilon": self.norm_epsilon, "norm_affine": self.norm_affine, "cross": text is not None}
        if self.emb_per_block:
            first = jnp.zeros((h.shape[0], self.width), self._wide())
            start = (h, first, jnp.ones((), bool))
            h, first, _ = self._repeat(
                Block, fields | {"embedding": embedding}, self.depth, start, (c_noise, cond), angles, text
            )
            return h, first
        emb = ConditionEmbedding(**embedding, name="emb")(c_noise, cond)
        (h,) = self._repeat(Block, fields, self.depth, (h,), emb, angles, text)
        return h, emb

    def _two_streams(self, h, c_noise, cond, text, angles, fields, embedding):
        emb = ConditionEmbedding(**embedding, name="emb")(c_noise, cond)
        emb = emb + TwoLayers(self.width, self._wide(), name="text_embedder")(pooled(text, self._wide()))
        both = h, dense(self.width, self.dtype, name="context_embedder")(text.embedding)
        if self.depth > 1:
            both = self._repeat(JointBlock, fields, self.depth - 1, both, emb, text.mask, angles)
        block = rematerialised(self, JointBlock, self.remat)
        last = block(**fields, last=True, name=f"transformer_blocks__{self.depth - 1}")
        return last(both, emb, text.mask, angles)[0], emb

    def _repeat(self, block, fields, depth, h, *args):
        return repeat(self, block, fields, "transformer_blocks", depth, h, *args, scan=self.scan, remat=self.remat)

    def _wide(self):
        return float32_at_least(self.dtype)


class PatchEmbed(nn.Module):
    """`(x [b, h, w, c], positions [n, width] or None) -> [b, n, width]`; one linear layer for every patch.

    Attributes:
      width: features.
      patch: pixels along a side.
      learned: the positions added are learned, and the argument is not used.
    """

    width: int
    patch: int
    dtype: DTypeLike
    learned: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], positions: Float[Array, "n width"] | None
    ) -> Float[Array, "b n width"]:
        h = PatchProjection(self.width, self.patch, self.dtype, name="proj")(x)
        if self.learned:
            positions = learned_positions(self, "pos_embed", h.shape[1], self.width)
        return h if positions is None else h + positions.astype(self.dtype)


class PatchProjection(nn.Module):
    """A convolution whose stride is its size, `x [b, h, w, c] -> [b, n, width]`: one product of matrices."""

    width: int
    patch: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n width"]:
        b, height, width, c = x.shape
        p = self.patch
        kernel = self.param("kernel", normal(), (p, p, c, self.width), jnp.float32)
        bias = self.param("bias", constant(0.0), (self.width,), jnp.float32)
        x = x.reshape(b, height // p, p, width // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return matrix_product(x, kernel.reshape(-1, self.width)) + bias


def learned_positions(module: nn.Module, name: str, n: int, width: int) -> Float[Array, "1 n width"]:
    """The module's table of positions [1, n, width].

    Raises:
      ValueError: the parameters have a table for another n.
    """
    if module.has_variable("params", name) and (known := module.get_variable("params", name).shape[1]) != n:
        raise ValueError(f"x: {n} tokens, but the learned positions are for {known}; use waves or rope for any size")
    return module.param(name, normal(0.02), (1, n, width), jnp.float32)


def patches(x: Float[Array, "b h w c"], patch: int) -> tuple[int, int]:
    """Rows and columns of the patches of x [b, h, w, c]."""
    common = math.gcd(*x.shape[1:3]) if x.ndim == 4 else 1
    divisors = [str(p) for p in range(1, common + 1) if common % p == 0]
    reason = f"patch: height and width must be multiples of patch={patch}"
    check_sides(x, patch, reason, f"a patch of {' or '.join(divisors[:8])}")
    return x.shape[1] // patch, x.shape[2] // patch


def unpatched(h: Float[Array, "b n k"], rows: int, columns: int, patch: int) -> Float[Array, "b h w c"]:
    """Tokens [b, rows columns, patch patch c] as an image."""
    h = h.reshape(h.shape[0], rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(h.shape[0], rows * patch, columns * patch, -1)


@checked_numbers
def dit_s(patch: int = 2, **fields: Any) -> DiT:
    """DiT-S, 33 million parameters; other fields of `DiT` by name."""
    return DiT(**{"width": 384, "depth": 12, "heads": 6, "patch": patch, "scan": True} | fields)


@checked_numbers
def dit_b(patch: int = 2, **fields: Any) -> DiT:
    """DiT-B, 130 million parameters; other fields of `DiT` by name."""
    return DiT(**{"width": 768, "depth": 12, "heads": 12, "patch": patch, "scan": True} | fields)


@checked_numbers
def dit_l(patch: int = 2, **fields: Any) -> DiT:
    """DiT-L, 458 million parameters; other fields of `DiT` by name."""
    return DiT(**{"width": 1024, "depth": 24, "heads": 16, "patch": patch, "scan": True} | fields)


@checked_numbers
def dit_xl(patch: int = 2, **fields: Any) -> DiT:
    """DiT-XL, 675 million parameters; other fields of `DiT` by name."""
    return DiT(**{"width": 1152, "depth": 28, "heads": 16, "patch": patch, "scan": True} | fields)
