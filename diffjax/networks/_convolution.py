"""A convolution whose derivative by the kernel is fast on a CPU.

    1 x 1           one product of matrices
    3 x 3           XLA's own, but the derivative by row i of the kernel is, on a CPU, a sum over images of products

                        P[3 c, h w], from row i of the image  @  g[h w, k]      P: channels first, moved by -1, 0, 1

    all others      XLA's own, as with a stride

XLA's code for the gradient of a kernel reaches 30 GF/s on a core that multiplies matrices at 90; this reaches 55 to 80
on images of 16 x 16 and larger (benchmarks/RESULTS.md). Below that XLA's is as fast, and is taken; and under jit on
several devices, whose partitioner would gather the whole batch on each for the sum over images (under `jax.pmap` and
`jax.shard_map` each has its own). Only the tangent is written, and JAX transposes it: forward mode, reverse mode,
`vmap` and higher derivatives hold.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers
from diffjax.networks._layers import matrix_product

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_LEAST_PIXELS = 256


@checked_numbers
def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c k"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 k"]:
    """x [b, h, w, c] with kernel [i, j, c, k] -> [b, h', w', k], without groups or dilation.

    Called as `nn.Conv` calls `jax.lax.conv_general_dilated`: `nn.Conv(..., conv_general_dilated=convolution)`.

    Args:
      x: images [b, h, w, c].
      kernel: [i, j, c, k].
      strides: along height and width.
      padding: "SAME", "VALID", or zeros (before, after) along each axis.
      options: of `jax.lax.conv_general_dilated`.

    Returns:
      [b, h', w', k].
    """
    if padding == "SAME" and set(strides) == {1}:
        if kernel.shape[:2] == (1, 1):
            return matrix_product(x, kernel[0, 0])
        if kernel.shape[:2] == (3, 3) and _is_large(x) and _is_local():
            return _convolve(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _is_large(x: Array) -> bool:
    _, h, w, _ = x.shape
    return isinstance(h, int) and isinstance(w, int) and h * w >= _LEAST_PIXELS  # not so where a shape is symbolic


def _is_local() -> bool:
    """True if the batch is on one device: there is only one, or each runs its own program (`pmap`, `shard_map`)."""
    return jax.device_count() == 1 or bool(jax.sharding.get_abstract_mesh().manual_axes)


@jax.custom_jvp
def _convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


@partial(_convolve.defjvp, symbolic_zeros=True)
def _tangent(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, kernel), (by_x, by_kernel) = primals, tangents
    y = _convolve(x, kernel)
    parts = [] if isinstance(by_x, SymbolicZero) else [_convolve(by_x, kernel)]
    if not isinstance(by_kernel, SymbolicZero):
        parts.append(jax.lax.platform_dependent(x, by_kernel, cpu=_by_rows, default=_convolve))
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


@jax.checkpoint  # the shifted copies of x are recomputed for the gradient, not stored
def _by_rows(x: Array, kernel: Array) -> Array:
    """The convolution, image by image, as three products of matrices: slower, but its transpose is fast.

    In float32 at least, as the transpose sums over images.
    """
    _, h, w, c = x.shape
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    rows = kernel.astype(wide).reshape(3, 3 * c, -1)

    @jax.checkpoint
    def one(image: Array) -> Array:
        moved = jnp.concatenate([image[:, :, j : j + w] for j in range(3)]).reshape(3 * c, -1).astype(wide)
        y = sum(moved[:, i * w : (i + h) * w].T @ rows[i] for i in range(3))
        return jnp.reshape(y, (h, w, -1)).astype(x.dtype)

    return jax.lax.map(one, jnp.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1))))
