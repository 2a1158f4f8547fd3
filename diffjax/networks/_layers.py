"""The smallest layers, as all networks draw and compute them.

    dense          W x + b,    W ~ N(0, 1/fan_in), b = 0                 as one product of two matrices
    TwoLayers      Dense -> SiLU -> Dense
    Table          labels -> rows of a table                             NaN out of range
    layer_norm     (x - mean)/sqrt(var + epsilon)                        no parameters unless affine
    modulate       x (1 + scale) + shift                                 conditions a layer on an embedding

Source: Vaswani et al. 2017; Ba et al. 2016, eq. 4; Peebles & Xie 2023, section 3.2 (modulation).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from diffjax._numbers import checked_numbers
from diffjax.networks._init import constant, normal

Function = Callable[[Array], Array]
"""An activation, or another function of one array."""

Labels = Int[Array, "*b"] | Int[np.ndarray, "*b"]


def check_dropout(value: float) -> None:
    """Raises `ValueError` where a field `dropout` is no probability in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"dropout: a probability in [0, 1) is needed, got {value}")


def float32_at_least(dtype: DTypeLike) -> DTypeLike:
    """float64 for float64, float32 for everything narrower: the dtype of statistics, embeddings and outputs."""
    return jnp.promote_types(dtype, jnp.float32)


def dense(
    features: int, dtype: DTypeLike = jnp.float32, *, name: str, zero: bool = False, bias: bool = True
) -> nn.Dense:
    """A linear layer `x [..., k] -> [..., features]`, drawn with variance 1/fan_in, or starting at zero."""
    return nn.Dense(
        features,
        kernel_init=constant(0.0) if zero else normal(),
        bias_init=constant(0.0),
        use_bias=bias,
        dtype=dtype,
        dot_general=matrix_product,
        name=name,
    )


def matrix_product(
    x: Float[Array, "*n k"], kernel: Float[Array, "k m"], dimension_numbers: Any = None, **options: Any
) -> Float[Array, "*n m"]:
    """x [..., k] times kernel [k, m], as one product of two matrices.

    Left with all its axes, XLA's CPU code takes twice as long for the gradient: a DiT's step 1.7 times.

    Args:
      x: [..., k].
      kernel: [k, m].
      dimension_numbers: of `jax.lax.dot_general`, as `nn.Dense` gives them: always the last axis of x.
      options: of `jax.lax.dot_general`.
    """
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


@checked_numbers
def layer_norm(
    dtype: DTypeLike, *, name: str, epsilon: float = 1e-6, affine: bool = False, fast: bool = False
) -> nn.LayerNorm:
    """Layer normalisation over the last axis [..., c], statistics in float32 at least.

    Args:
      dtype: of the answer.
      name: of the module.
      epsilon: added to the variance.
      affine: with a learned scale and bias.
      fast: the variance is E[x^2] - E[x]^2, which loses digits where the mean is large.
    """
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        use_scale=affine,
        use_bias=affine,
        scale_init=constant(1.0),
        bias_init=constant(0.0),
        use_fast_variance=fast,
        name=name,
    )


@checked_numbers
def rms_norm(dtype: DTypeLike, *, name: str, epsilon: float = 1e-6) -> nn.RMSNorm:
    """Root-mean-square normalisation over the last axis, with a learned scale; statistics in float32 at least."""
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, scale_init=constant(1.0), name=name)


def modulate(
    x: Float[Array, "b n c"], shift: Float[Array, "b 1 c"], scale: Float[Array, "b 1 c"]
) -> Float[Array, "b n c"]:
    """x (1 + scale) + shift, [b, n, c]."""
    return x * (1 + scale) + shift


class TwoLayers(nn.Module):
    """`x [b, k] -> Dense -> SiLU -> Dense -> [b, width]`."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b k"]) -> Float[Array, "b width"]:
        h = dense(self.width, self.dtype, name="linear_1")(x)
        return dense(self.width, self.dtype, name="linear_2")(nn.silu(h))


class Table(nn.Module):
    """`labels [b] -> rows [b, width]`, NaN for a label out of range."""

    rows: int
    width: int

    @nn.compact
    def __call__(self, labels: Labels) -> Float[Array, "*b width"]:
        table = self.param("embedding", normal(1.0), (self.rows, self.width), jnp.float32)
        return rows_of(table, labels)


class NestedTable(nn.Module):
    """A `Table` at the end of a path of names below its own, where trained parameters have it."""

    names: tuple[str, ...]
    rows: int
    width: int

    @nn.compact
    def __call__(self, labels: Labels) -> Float[Array, "*b width"]:
        first, *rest = self.names
        if rest:
            return NestedTable(tuple(rest), self.rows, self.width, name=first)(labels)
        return Table(self.rows, self.width, name=first)(labels)


def rows_of(table: Float[Array, "n k"], indices: Labels) -> Float[Array, "*b k"]:
    """Rows of a table [n, k] at indices [b]; NaN for an index out of range."""
    return table.at[indices].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
