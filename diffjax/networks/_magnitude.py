"""Layers that preserve magnitude: input of root mean square 1 leaves with root mean square 1, in expectation.

    unit(x) = x/(rms(x) + 1e-4)                         over the axes named: a kernel's fan-in, a pixel's channels
    layer     W x,  W = unit(V)/sqrt(fan_in)            every row of W has length 1, whatever V's; no bias
    sum       ((1 - t) a + t b)/sqrt((1 - t)^2 + t^2)
    concat    sqrt((n + m)/((1 - t)^2 + t^2)) [ (1 - t)/sqrt(n) a, t/sqrt(m) b ],   a of n, b of m channels
    SiLU      silu(x)/0.596                             0.596^2 = E silu(z)^2, z ~ N(0, 1)
    Fourier   sqrt(2) cos(2 pi (f c + phi)),            f ~ N(0, 1), phi ~ U(0, 1), fixed

V is also put back to unit(V) after each update of the optimiser (`normalise_weights`): the gradient is orthogonal to
V, which would otherwise only grow, and slow its own learning. unit is `unit_rms`. Source: Karras et al. 2024 (Analyzing
and improving the training dynamics of diffusion models), section 2 and appendix B, algorithm 1.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from diffjax._numbers import checked_numbers
from diffjax._typing import Params
from diffjax.networks._convolution import convolution
from diffjax.networks._init import constant, normal
from diffjax.networks._layers import rows_of
from diffjax.networks._second_time import SecondTime

EPSILON = 1e-4
SILU_RMS = 0.596


@checked_numbers
def unit_rms(x: Float[Array, "*d"], axis: int | tuple[int, ...] = -1) -> Float[Array, "*d"]:
    """x [*d] over its root mean square along the axes; statistics in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The least number keeps the gradient finite where all of x is zero, and changes no other digit.
    rms = jnp.sqrt(jnp.mean(jnp.square(wide), axis=axis, keepdims=True) + jnp.finfo(wide.dtype).tiny)
    return (wide / (rms + EPSILON)).astype(x.dtype)


@checked_numbers
def mp_sum(a: Float[Array, "*d"], b: Float[Array, "*d"], t: float) -> Float[Array, "*d"]:
    """From a (t = 0) to b (t = 1), [*d]."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


@checked_numbers
def mp_concatenate(a: Float[Array, "*d n"], b: Float[Array, "*d m"], t: float) -> Float[Array, "*d k"]:
    """a and b concatenated, [*d, n + m]; their contributions are as 1 - t to t, whatever n and m."""
    n, m = a.shape[-1], b.shape[-1]
    scale = math.sqrt(n + m) / math.hypot(1 - t, t)
    return jnp.concatenate([a * (scale * (1 - t) / math.sqrt(n)), b * (scale * t / math.sqrt(m))], axis=-1)


def mp_silu(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """x sigmoid(x), [*d], of unit root mean square for a standard normal x."""
    return nn.silu(x) / SILU_RMS


@checked_numbers
class MPConv(nn.Module):
    """A square convolution of [b, h, w, c], or for size 0 a linear layer of [b, c].

    Attributes:
      features: channels of the answer.
      size: of the kernel.
      dtype: of the computation.
    """

    features: int
    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b *d c"]) -> Float[Array, "b *d k"]:
        shape = (self.size,) * (2 if self.size else 0) + (x.shape[-1], self.features)
        w = unit_rows(self.param("kernel", normal(1.0), shape, jnp.float32), self.dtype)
        x = x.astype(self.dtype)
        if not self.size:
            return x @ w
        return convolution(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def mp_two_layers(module: SecondTime, waves: Float[Array, "b k"]) -> Float[Array, "b width"]:
    """Linear, SiLU, linear and a scalar gain that starts at zero, in the compact method of a `SecondTime`.

    The waves are cosines and sines, of root mean square 1/sqrt(2). A gain, since a kernel that starts at zero would be
    of magnitude 1 after the first `normalise_weights`.
    """
    h = mp_silu(MPConv(module.width, 0, module.dtype, name="linear_1")(math.sqrt(2) * waves))
    h = MPConv(module.width, 0, module.dtype, name="linear_2")(h)
    return module.param("gain", constant(0.0), (), jnp.float32).astype(h.dtype) * h


@checked_numbers
class MPLabels(nn.Module):
    """`labels [b] in 0 .. rows - 1 -> [b, features]`: a linear layer of the one-hot label times sqrt(rows).

    A label out of range gives NaN.
    """

    rows: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, labels: Int[Array, " b"]) -> Float[Array, "b k"]:
        w = unit_rows(self.param("kernel", normal(1.0), (self.rows, self.features), jnp.float32), self.dtype)
        return rows_of(math.sqrt(self.rows) * w, labels)


def unit_rows(kernel: Float[Array, "*n k"], dtype: DTypeLike) -> Float[Array, "*n k"]:
    """Each output's weights [..., in, out] as a vector of length 1."""
    wide = kernel.astype(jnp.promote_types(dtype, jnp.float32))
    return (unit_rms(wide, _fan_in(wide)) / math.sqrt(math.prod(wide.shape[:-1]))).astype(dtype)


def _fan_in(kernel):
    return tuple(range(kernel.ndim - 1))


@checked_numbers
class MPFourier(nn.Module):
    """`c_noise [b] -> [b, features]`, random waves. Their frequencies and phases are parameters without a gradient;
    `optax.adamw(..., mask=trained)` leaves them out of weight decay.

    The phases are N(0, 1) as parts of a turn, which is uniform modulo 1 to 5e-9.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"]) -> Float[Array, "b k"]:
        frequencies, phases = (
            jax.lax.stop_gradient(self.param(name, normal(1.0), (self.features,), jnp.float32)).astype(self.dtype)
            for name in ("frequencies", "phases")
        )
        return math.sqrt(2) * jnp.cos(2 * math.pi * (c_noise.astype(self.dtype)[:, None] * frequencies + phases))


def normalise_weights(params: Params) -> Params:
    """Parameters whose kernels [..., in, out] have weights of root mean square 1 for each output; the rest as it is.

    The network computes the same before and after, to 1e-4. To be called after each update:
    `training.projected(tx, normalise_weights)` is an optimiser that does.

    Source: Karras et al. 2024, section 2.4, "forced weight normalization".
    """
    is_kernel = lambda path: path[-1] == jax.tree_util.DictKey("kernel")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: unit_rms(leaf, _fan_in(leaf)) if is_kernel(path) else leaf, params
    )
