"""Attention: the fastest kernel there is, and the layers around it that networks share.

    attention     softmax(scale q k' + bias) v,    scale = 1/sqrt(channels of a head) unless given
    multi_head    x, context -> Dense -> q, k, v -> (norms of q and k, rotation) -> attention -> Dense -> y
    Attention     multi_head of tokens [b, n, c], then dropout
    ImageAttention    x -> norm -> multi_head of all positions of [b, h, w, c] -> + x -> / r, and once more to a text

Source: Vaswani et al. 2017, eq. 1 and section 3.2.2; norms of queries and keys: Esser et al. 2024, section 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from diffjax._numbers import checked_numbers
from diffjax.networks._layers import dense, rms_norm
from diffjax.networks._norm import GroupNorm
from diffjax.networks._positions import rotate
from diffjax.networks._text import Text


@checked_numbers
def attention(
    q: Float[Array, "b n h k"],
    k: Float[Array, "b m h k"],
    v: Float[Array, "b m h k"],
    *,
    mask: Bool[Array, "b m"] | None = None,
    bias: Float[Array, "#b h n m"] | None = None,
    scale: float | None = None,
) -> Float[Array, "b n h k"]:
    """Every query's weighted mean of the values, softmax(scale q k' + bias) v.

    On an NVIDIA GPU of compute capability 8 or more, half-precision heads of at most 128 channels (a multiple of 8) go
    to cuDNN's flash attention, which never writes the [n, m] weights, if nothing is masked or added and n and m are
    even: cuDNN refuses a mask [b, 1, 1, m], and odd lengths in the gradient. Elsewhere XLA compiles the formula, its
    softmax in float32, or all of it in float64 for float64 arrays.

    Args:
      q, k, v: queries [b, n, h, k], keys and values [b, m, h, k], of one dtype.
      mask: [b, m], False for a key that is padding; at least one of a sample must be True.
      bias: added to the logits, [b or 1, h, n, m].
      scale: of q k'; 1/sqrt(k) where None.

    Returns:
      [b, n, h, k], heads h of k channels.
    """
    key_mask = None if mask is None else mask[:, None, None, :]
    if q.dtype == jnp.float64:
        return _formula(q, k, v, key_mask, bias, scale)
    implementation = "cudnn" if mask is None and bias is None and _flash(q, k) else None
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=key_mask, scale=scale, implementation=implementation)


def _formula(q, k, v, mask, bias, scale):
    """The formula in the arrays' own dtype: JAX's function has a softmax in float32."""
    logits = jnp.einsum("bnhk,bmhk->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias
    return jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(logits, where=mask), v)


def _flash(q: Array, k: Array) -> bool:
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return fits and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0 and _compute_capability() >= 8


def _compute_capability() -> int:
    """The major number, of the device that is computed on by default; 0 where that is not one of NVIDIA's."""
    device = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
    major = str(getattr(device, "compute_capability", "")).split(".")[0]  # "9.0"; AMD's are as "gfx942"
    return int(major) if major.isdigit() else 0


class HeadNames(NamedTuple):
    """The names of an attention's linear layers; with `qkv` queries, keys and values are one layer."""

    out: str
    q: str = ""
    k: str = ""
    v: str = ""
    qkv: str = ""


DIFFUSERS = HeadNames("to_out__0", "to_q", "to_k", "to_v")
FUSED = HeadNames("out", qkv="qkv")


def multi_head(
    x: Float[Array, "b *n c"],
    context: Float[Array, "b *m d"] | None = None,
    *,
    heads: int,
    head_channels: int,
    names: HeadNames,
    dtype: DTypeLike,
    mask: Bool[Array, "b m"] | None = None,
    angles: Float[Array, "n k2"] | None = None,
    bias: Float[Array, "#b h n m"] | None = None,
    scale: float | None = None,
    qkv_bias: bool = True,
    out_bias: bool = True,
    qk_norm: bool = False,
    zero: bool = False,
) -> Float[Array, "b *n c"]:
    """Attention of all positions of x to those of a context, x itself by default, between linear layers.

    To be called in a compact method, whose module has the layers' parameters.

    Args:
      x: [b, ..., c]; whatever is between is flattened to n positions.
      context: [b, ..., d], with m positions; None where a layer is `qkv`.
      heads, head_channels: their product need not be c.
      names: of the layers.
      dtype: of the computation.
      mask, bias, scale: as of `attention`.
      angles: [n, head_channels/2], by which queries and keys are rotated.
      qkv_bias, out_bias: whether the linear layers have a bias.
      qk_norm: root-mean-square norms of queries and keys, `norm_q` and `norm_k`.
      zero: the last layer starts at zero.

    Returns:
      [b, ..., c], of x's shape.
    """
    b, features = x.shape[0], heads * head_channels
    if names.qkv:
        qkv = dense(3 * features, dtype, name=names.qkv, bias=qkv_bias)(x)
        q, k, v = jnp.split(qkv.reshape(b, -1, 3 * heads, head_channels), 3, axis=2)
    else:
        source = x if context is None else context
        q, k, v = (
            dense(features, dtype, name=name, bias=qkv_bias)(y).reshape(b, -1, heads, head_channels)
            for name, y in zip((names.q, names.k, names.v), (x, source, source), strict=True)
        )
    if qk_norm:
        q, k = rms_norm(dtype, name="norm_q")(q), rms_norm(dtype, name="norm_k")(k)
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    h = attention(q, k, v, mask=mask, bias=bias, scale=scale).reshape(*x.shape[:-1], features)
    return dense(x.shape[-1], dtype, name=names.out, zero=zero, bias=out_bias)(h)


@checked_numbers
class Attention(nn.Module):
    """`(x [b, n, c], context [b, m, d], mask [b, m], angles [n, k/2], bias [1, heads, n, m]) -> [b, n, c]`.

    x is its own context by default.

    Attributes:
      heads: number of heads.
      dtype: of the computation.
      head_channels: k; c/heads where None.
      names: of the linear layers.
      qkv_bias, out_bias, qk_norm, scale, zero: as of `multi_head`.
      dropout, deterministic: of the answer.
    """

    heads: int
    dtype: DTypeLike
    head_channels: int | None = None
    names: HeadNames = DIFFUSERS
    qkv_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    scale: float | None = None
    zero: bool = False
    dropout: float = 0.0
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m d"] | None = None,
        mask: Bool[Array, "b m"] | None = None,
        angles: Float[Array, "n k2"] | None = None,
        bias: Float[Array, "#b h n m"] | None = None,
    ) -> Float[Array, "b n c"]:
        h = multi_head(
            x,
            context,
            heads=self.heads,
            head_channels=self.head_channels or x.shape[-1] // self.heads,
            names=self.names,
            dtype=self.dtype,
            mask=mask,
            angles=angles,
            bias=bias,
            scale=self.scale,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            qk_norm=self.qk_norm,
            zero=self.zero,
        )
        return nn.Dropout(self.dropout, deterministic=self.deterministic)(h)


@checked_numbers
class ImageAttention(nn.Module):
    """`(x [b, h, w, c], text) -> [b, h, w, c]`: (x + attention(norm(x)))/r among all positions, then to a text.

    Attributes:
      dtype: of the computation.
      head_channels: channels of a head, of which there are c // head_channels; one head of all c where None.
      names, norm: of the linear layers and of the group normalisation.
      groups: of the norm; `groups_of(c)` where None, no norm where 0.
      epsilon: of the norm.
      rescale: r, by which every sum is divided.
      zero: the last layer starts at zero, and with it the block as the identity.
    """

    dtype: DTypeLike
    head_channels: int | None = None
    names: HeadNames = DIFFUSERS
    norm: str = "group_norm"
    groups: int | None = None
    epsilon: float = 1e-5
    rescale: float = 1.0
    zero: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], text: Text | None = None) -> Float[Array, "b h w c"]:
        x = self._attend(x, None, None, self.norm, self.names)
        if text is None:
            return x
        names = HeadNames("text_out", "text_q", "text_k", "text_v")
        return self._attend(x, text.embedding.astype(self.dtype), text.mask, "text_norm", names)

    def _attend(self, x, context, mask, norm, names):
        channels = x.shape[-1]
        head_channels = channels if self.head_channels is None else self.head_channels
        fields = {"heads": channels // head_channels, "head_channels": head_channels, "dtype": self.dtype}
        h = x if self.groups == 0 else GroupNorm(self.epsilon, self.dtype, self.groups, name=norm)(x)
        y = x + multi_head(h, context, mask=mask, names=names, zero=self.zero, **fields)
        return y if self.rescale == 1 else y / self.rescale
