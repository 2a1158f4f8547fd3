"""Halving and doubling images with a filter, one axis after the other.

    halve    y[i]      = sum_j k[j] x[2 i + j - (n/2 - 1)]            k: n taps, n even, of sum 1
    double   y[i]      = 2 sum_j k[j] u[i + j - n/2],                 u: x with a zero after every pixel
    blur     y[i]      = sum_j k[j] x[i + j - before]                 with `before` and `after` zeros around

(1, 1) is the mean of two pixels, and every pixel twice; (1, 3, 3, 1) is the binomial filter of StyleGAN2 and NCSN++.
Taps are symmetric; pixels outside of the image are zero. Source: Zhang 2019 (blur, then drop every second pixel);
Karras et al. 2020, section 4.2.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._numbers import checked_numbers

BOX = (1.0, 1.0)
BINOMIAL = (1.0, 3.0, 3.0, 1.0)


def halve(x: Float[Array, "b h w c"], taps: Sequence[float] = BOX) -> Float[Array, "b h2 w2 c"]:
    """Every second pixel of the filtered images.

    Args:
      x: images [b, h, w, c] of even sizes.
      taps: of the filter, an even number, symmetric; their sum does not matter.

    Returns:
      [b, h/2, w/2, c].
    """
    edge = len(taps) // 2 - 1
    return blur(x, taps, (edge, edge), stride=2)


@checked_numbers
def blur(
    x: Float[Array, "b h w c"], taps: Sequence[float], pad: tuple[int, int], *, stride: int = 1
) -> Float[Array, "b h2 w2 c"]:
    """The filtered images.

    Args:
      x: images [b, h, w, c].
      taps: n weights of the filter; their sum does not matter.
      pad: zeros (before, after) along both axes.
      stride: keep every stride-th pixel.

    Returns:
      [b, h', w', c], h' = floor((h + before + after - n)/stride) + 1.
    """
    total = sum(taps)
    for axis in (1, 2):
        widths = [pad if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, widths) if any(pad) else x
        count = (padded.shape[axis] - len(taps)) // stride + 1
        last = stride * (count - 1) + 1
        cuts = [jax.lax.slice_in_dim(padded, j, j + last, stride, axis) for j in range(len(taps))]
        x = _weighted(cuts, [tap / total for tap in taps])
    return x


def double(x: Float[Array, "b h w c"], taps: Sequence[float] = BOX) -> Float[Array, "b h2 w2 c"]:
    """The filtered images at twice the size; zeros between pixels are never written.

    Args:
      x: images [b, h, w, c].
      taps: as of `halve`.

    Returns:
      [b, 2 h, 2 w, c].
    """
    half, total = len(taps) // 2, sum(taps)
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(half // 2, half // 2) if i == axis else (0, 0) for i in range(4)])
        phases = []
        for r in (0, 1):
            # y[2 i + r] takes the taps j that meet a pixel, j = half - r (mod 2), at x[i + (r + j - half)/2].
            meets = [j for j in range(2 * half) if (r + j - half) % 2 == 0]
            starts = [half // 2 + (r + j - half) // 2 for j in meets]
            cuts = [jax.lax.slice_in_dim(padded, at, at + size, 1, axis) for at in starts]
            phases.append(_weighted(cuts, [2 * taps[j] / total for j in meets]))
        shape = (*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def _weighted(cuts: Sequence[Array], weights: Sequence[float]) -> Array:
    first, *others = (cut if weight == 1 else weight * cut for cut, weight in zip(cuts, weights, strict=True))
    return sum(others, start=first)
