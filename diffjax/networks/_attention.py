"""Attention, by the fastest kernel there is.

    softmax(scale q k' + bias) v,    scale = 1/sqrt(width of a head) unless said

Source: Vaswani et al. 2017, eq. 1. On an NVIDIA GPU of compute capability 8 or more, half-precision heads of at most
128 features (a multiple of 8) go to cuDNN's flash attention, which never writes the [n, m] weights, if nothing is
masked or added and n and m are even: cuDNN refuses a mask [b, 1, 1, m], and odd lengths in the gradient. Elsewhere XLA
compiles the formula, its softmax in float32, or all of it in float64 for float64 arrays.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    q: Float[Array, "b n h k"],
    k: Float[Array, "b m h k"],
    v: Float[Array, "b m h k"],
    *,
    mask: Bool[Array, "b m"] | None = None,
    bias: Float[Array, "#b h n m"] | None = None,
    scale: float | None = None,
) -> Float[Array, "b n h k"]:
    """Every query's mean of the values, [b, n, heads, features of a head].

    Args:
      q, k, v: queries [b, n, h, k], keys and values [b, m, h, k], of one dtype.
      mask: [b, m], False where a key is not there (padding); at least one must be.
      bias: added to the logits, [b or 1, h, n, m].
      scale: of q k'; 1/sqrt(k) where None.
    """
    there = None if mask is None else mask[:, None, None, :]
    if q.dtype == jnp.float64:
        return _written_out(q, k, v, there, bias, scale)
    implementation = "cudnn" if mask is None and bias is None and _flash(q, k) else None
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=there, scale=scale, implementation=implementation)


def _written_out(q, k, v, mask, bias, scale):
    """The formula in the arrays' own dtype: JAX's function has a softmax in float32."""
    logits = jnp.einsum("bnhk,bmhk->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias
    return jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(logits, where=mask), v)


def _flash(q: Any, k: Any) -> bool:
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return fits and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0 and _compute_capability() >= 8


def _compute_capability() -> int:
    """The major number, of the device that is computed on by default; 0 where that is not one of NVIDIA's."""
    device = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
    major = str(getattr(device, "compute_capability", "")).split(".")[0]  # "9.0"; AMD's are as "gfx942"
    return int(major) if major.isdigit() else 0
