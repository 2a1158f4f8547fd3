"""U-ViT: a transformer to which everything is a token, with long skips as in a U-Net.

    label, time, text, patches --> + positions --> block --> block --> block --> ... --> norm --> Dense --> conv* --> y
                                                     |         |        ^  ^
                                                     |         +--------+  |      [h, skip] -> Dense
                                                     +---------------------+

    block    x -> norm -> attention -> + -> norm -> Dense -> GELU -> Dense -> +

The convolution marked * starts at zero, and with it the network; the rest is drawn as all our networks are.

Source: Bao et al. 2023, "All are worth words", figure 1 and section 3.1. Names are those of its authors' weights.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._attention import Attention, HeadNames
from diffjax.networks._blocks import conv
from diffjax.networks._dit import PatchProjection, learned_positions, patches, unpatched
from diffjax.networks._embedding import as_labels
from diffjax.networks._layers import Table, check_dropout, dense, float32_at_least, layer_norm
from diffjax.networks._noise_features import fourier_features
from diffjax.networks._repeat import rematerialised, repeat
from diffjax.networks._second_time import add_second_time, broadcast_times, first_time
from diffjax.networks._text import TextTokens
from diffjax.networks._transformer import NoiseFeatures

NAMES = HeadNames("proj", qkv="qkv")


@checked_numbers
class UViT(nn.Module):
    """A transformer with long skips `(x [b, h, w, c], c_noise [b] or [b, 2], cond) -> y [b, h, w, c]`, y in float32.

    Positions are learned, so an image has the size that the network was initialised with.

    Attributes:
      width: features of a token, even, a multiple of `heads`.
      depth: number of blocks, odd: half of them before the middle, half after it.
      heads: of attention.
      patch: pixels along a side of a patch, a divisor of height and width.
      out_channels: channels of y, those of x where None.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label.
      text_width: cond is a `Text` with so many features. With neither, cond is None.
      noise_features: the time token, `(c_noise [b], features) -> [b, features]`.
      mlp_ratio: hidden features of the feed-forward layer, as a multiple of width.
      qkv_bias: of queries, keys and values.
      dropout: the probability of dropping a feature in training.
      dtype: of the computation (`jnp.bfloat16`); parameters and the output are float32.
      remat: recompute each block in the backward pass instead of storing its activations.
      scan: one block under `lax.scan` before the middle, and one after it.

    Raises:
      ValueError: a field that does not fit, an x of another size or not in whole patches, or a cond of another kind.
    """

    width: int = 512
    depth: int = 13
    heads: int = 8
    patch: int = 2
    out_channels: int | None = None
    num_classes: int | None = None
    text_width: int | None = None
    noise_features: NoiseFeatures = fourier_features
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        if self.heads < 1 or self.width < 2 or self.width % 2 or self.width % self.heads:
            raise ValueError(f"width: an even multiple of heads={self.heads} is needed, got {self.width}")
        if self.depth < 3 or self.depth % 2 == 0:
            raise ValueError(f"depth: an odd number of at least 3 is needed, got {self.depth}")
        if self.patch < 1:
            raise ValueError(f"patch: at least 1 is needed, got {self.patch}")
        if self.num_classes is not None and self.text_width is not None:
            raise ValueError(f"num_classes={self.num_classes}: there is a text_width too; cond is one of both")
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c_noise: ArrayLike, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        rows, columns = patches(x, self.patch)
        tokens, mask = self._tokens(broadcast_times(self, c_noise, x), cond)
        h = Patches(self.width, self.patch, self.dtype, name="patch_embed")(x)
        h = jnp.concatenate([tokens, h], axis=1)
        h = h + learned_positions(self, "pos_embed", h.shape[1], self.width).astype(self.dtype)
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        if mask is not None:
            mask = jnp.concatenate([mask, jnp.ones((x.shape[0], rows * columns), bool)], axis=1)
        h = self._blocks(h, mask, deterministic)
        h = layer_norm(self.dtype, name="norm", epsilon=1e-5, affine=True)(h)[:, tokens.shape[1] :]
        out = x.shape[-1] if self.out_channels is None else self.out_channels
        h = dense(self.patch**2 * out, self.dtype, name="decoder_pred")(h)
        h = conv(out, 3, self.dtype, name="final_layer", zero=True)(unpatched(h, rows, columns, self.patch))
        return h.astype(float32_at_least(self.dtype))

    def _tokens(self, c_noise, cond):
        """The tokens before the patches [b, m, width], and their mask [b, m], None if all are True."""
        time = self.noise_features(first_time(c_noise), self.width).astype(self.dtype)
        time = add_second_time(time, c_noise)[:, None]
        if self.text_width is not None:
            text = TextTokens(self.text_width, name="text")(cond)
            tokens = dense(self.width, self.dtype, name="context_embed")(text.embedding)
            mask = jnp.concatenate([jnp.ones((c_noise.shape[0], 1), bool), text.mask], axis=1)
            return jnp.concatenate([time, tokens], axis=1), mask
        if self.num_classes is not None:
            labels = as_labels(cond, self.num_classes, c_noise.shape[:1])
            label = Table(self.num_classes + 1, self.width, name="label_emb")(labels).astype(self.dtype)
            return jnp.concatenate([label[:, None], time], axis=1), None
        if cond is not None:
            raise ValueError("cond: None is needed without num_classes and text_width")
        return time, None

    def _blocks(self, h, mask, deterministic):
        fields = {
            "heads": self.heads,
            "hidden": int(self.mlp_ratio * self.width),
            "qkv_bias": self.qkv_bias,
            "dropout": self.dropout,
            "dtype": self.dtype,
            "deterministic": deterministic,
        }
        many = partial(repeat, self, UViTBlock, fields, scan=self.scan, remat=self.remat)
        h, skips = many("in_blocks", self.depth // 2, h, mask, collect=True)
        block = rematerialised(self, UViTBlock, self.remat)
        h = block(**fields, name="mid_block")(h, mask)
        return many("out_blocks", self.depth // 2, h, mask, each=skips[::-1])


class Patches(nn.Module):
    """`x [b, h, w, c] -> [b, n, width]`."""

    width: int
    patch: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n width"]:
        return PatchProjection(self.width, self.patch, self.dtype, name="proj")(x)


class UViTBlock(nn.Module):
    """`(h [b, n, c], mask [b, n] or None, skip [b, n, c] or None) -> [b, n, c]`."""

    heads: int
    hidden: int
    qkv_bias: bool
    dropout: float
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b n c"],
        mask: Bool[Array, "b n"] | None = None,
        skip: Float[Array, "b n c"] | None = None,
    ) -> Float[Array, "b n c"]:
        norm = partial(layer_norm, self.dtype, epsilon=1e-5, affine=True)
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        if skip is not None:
            h = dense(h.shape[-1], self.dtype, name="skip_linear")(jnp.concatenate([h, skip], axis=-1))
        attend = Attention(self.heads, self.dtype, names=NAMES, qkv_bias=self.qkv_bias, name="attn")
        h = h + drop(attend(norm(name="norm1")(h), mask=mask))
        return h + drop(TwoLayersGELU(self.hidden, self.dtype, name="mlp")(norm(name="norm2")(h)))


class TwoLayersGELU(nn.Module):
    """`x [b, n, c] -> Dense -> GELU -> Dense -> [b, n, c]`."""

    hidden: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        h = nn.gelu(dense(self.hidden, self.dtype, name="fc1")(x), approximate=False)
        return dense(x.shape[-1], self.dtype, name="fc2")(h)
