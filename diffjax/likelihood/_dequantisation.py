"""From whole numbers to a density, and back to a probability: dequantisation.

    level k in 0 .. levels - 1  <-->  the bin of width w around  low + k w,   w = (high - low)/(levels - 1)

    P(k) = int_{[0, 1)^d} w^d p(x(k, u)) du,    x(k, u) = low + (k + u - 1/2) w
    log P(k) >= E_{u ~ q(u | k)}[ log p(x(k, u)) + d log w - log q(u | k) ]

q is uniform, or learned: a logit-normal for each feature, u = sigmoid(m(k) + s(k) eps), which leaves less of a gap.

Source: Theis et al. 2016, section 3.1; Ho et al. 2019 (Flow++), eqs. 9-12.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped
from typing_extensions import TypeAliasType

from diffjax._arrays import (
    answered,
    as_samples,
    check,
    check_key,
    check_shape,
    default_index,
    is_concrete,
    normal_like,
    part_of,
    sample_keys,
    sum_features,
    values_at_once,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Params, Sample
from diffjax.losses import check_levels

Data = TypeAliasType("Data", Shaped[Array, "b *d"] | Shaped[np.ndarray, "b *d"])
"""Whole numbers [b, *d], of which `Quantisation.values` makes samples; others it refuses."""
Dequantisation = TypeAliasType("Dequantisation", Callable[[Key, Sample, Index], tuple[Sample, Float[Array, " b"]]])
"""`(key, x [b, *d], index [b]) -> (u [b, *d], log q [b])`."""


@checked_numbers
class Quantisation(eqx.Module):
    """What whole numbers 0 .. levels - 1 stand for in the coordinates of the network.

    Attributes:
      levels: how many, at least two; 256 for 8-bit images.
      low: the lowest level's value there.
      high: the highest level's, more than low; the others lie evenly between.

    Raises:
      ValueError: levels is no whole number from two, or high is not above low, or one is not finite.
    """

    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True, default=-1.0)
    high: float = eqx.field(static=True, default=1.0)

    @values_at_once
    def __check_init__(self):
        check(self.levels >= 2, f"levels: a whole number, at least two, is needed, got {self.levels}")
        check(-np.inf < self.low < self.high < np.inf, f"high: must be more than low = {self.low}, got {self.high}")

    @property
    def width(self) -> float:
        """The distance of two levels, a scalar."""
        return (self.high - self.low) / (self.levels - 1)

    def values(self, data: Data) -> Sample:
        """The network's values [b, *d] of whole numbers [b, *d].

        Raises:
          ValueError: they are no integers, or lie outside 0 .. levels - 1 (where known, that is, outside jit).
        """
        if not isinstance(data, jax.Array | np.ndarray) or not jnp.issubdtype(data.dtype, jnp.integer):
            kind = f"dtype {data.dtype}" if hasattr(data, "dtype") else type(data).__name__
            raise ValueError(f"data: whole numbers 0 .. {self.levels - 1} are needed, got {kind}")
        if data.ndim == 0 or data.size == 0:
            raise ValueError(f"data: at least one sample is needed, [b, *d], got shape {data.shape}")
        if is_concrete(data):
            wrong = np.asarray(data)[(np.asarray(data) < 0) | (np.asarray(data) >= self.levels)]
            check(wrong.size == 0, f"data: whole numbers 0 .. {self.levels - 1} are needed, got {wrong[:1]}")
        return self.low + self.width * jnp.asarray(data).astype(jnp.result_type(float))

    def whole(self, x: Sample) -> Array:
        """The whole numbers [b, *d] (int32) that values x [b, *d] of the network's stand for.

        Raises:
          ValueError: a value lies on no level (where known, that is, outside jit).
        """
        x = as_samples("x", x)
        check_levels(x, self.levels, self.low, self.high)
        return jnp.round((x - self.low) / self.width).astype(jnp.int32)


class UniformDequantisation(eqx.Module):
    """u uniform in [0, 1), independent of the data."""

    def __call__(self, key: Key, x: Sample, index: Index) -> tuple[Sample, Float[Array, " b"]]:
        """(u [b, *d], log q = 0 [b]) for the values x [b, *d]; sample i draws from `fold_in(key, index_i)`."""
        check_key(key)
        x = as_samples("x", x)
        draw = lambda k: jax.random.uniform(k, x.shape[1:], x.dtype)
        return jax.vmap(draw)(sample_keys(key, index)), jnp.zeros_like(x, shape=x.shape[:1])


class VariationalDequantisation(eqx.Module):
    """u = sigmoid(m(x) + s(x) eps): a learned noise, logit-normal in each feature given the whole sample.

    Attributes:
      params: any pytree; leaves.
      apply: `(params, x [b, *d]) -> (m, log s)`, each [b, *d], of the values x in the network's coordinates: a Flax
        network's apply, or `apply_dequantiser`. Build it once: it is compared by identity.

    Source: Ho et al. 2019 (Flow++), section 3.1, with a logit-normal in place of their flow.
    """

    params: Params
    apply: Callable[[Params, Sample], tuple[Sample, Sample]] = eqx.field(static=True)

    def __call__(self, key: Key, x: Sample, index: Index) -> tuple[Sample, Float[Array, " b"]]:
        """(u [b, *d], log q(u | x) [b]) for the values x [b, *d]; sample i draws from `fold_in(key, index_i)`."""
        check_key(key)
        x = as_samples("x", x)
        mean, log_std = (answered("apply", part, x.shape).astype(x.dtype) for part in self.apply(self.params, x))
        eps = normal_like(sample_keys(key, index), x)
        z = mean + jnp.exp(log_std) * eps
        log_slope = -jax.nn.softplus(z) - jax.nn.softplus(-z)  # log du/dz
        log_q = -0.5 * (eps**2 + float(np.log(2 * np.pi))) - log_std - log_slope
        return jax.nn.sigmoid(z), sum_features(log_q)


@checked_numbers
def init_dequantiser(key: Key, shape: tuple[int, ...], width: int = 64) -> Params:
    """Parameters of `apply_dequantiser` for samples of a shape [*d]: near the uniform noise, whatever the data."""
    check_key(key)
    check_shape(shape, 0)
    size = int(np.prod(shape))
    keys = jax.random.split(key, 2)
    draw = lambda k, n, m: jax.random.normal(k, (n, m)) / n**0.5
    out = {"w": jnp.zeros((width, 2 * size)), "b": jnp.repeat(jnp.array([0.0, 0.5]), size)}  # s = 1.65
    layers = [{"w": draw(k, n, width), "b": jnp.zeros(width)} for k, n in zip(keys, (size, width), strict=True)]
    return {"hidden": layers, "out": out}


def apply_dequantiser(params: Params, x: Sample) -> tuple[Sample, Sample]:
    """(m, log s), each [b, *d], by a perceptron of two hidden layers on the whole sample x [b, *d]."""
    x = as_samples("x", x)
    h = x.reshape(x.shape[0], -1)
    hidden, out = (part_of(params, name, "dequantiser") for name in ("hidden", "out"))
    for layer in hidden:
        h = jax.nn.silu(h @ layer["w"].astype(h.dtype) + layer["b"].astype(h.dtype))
    y = h @ out["w"].astype(h.dtype) + out["b"].astype(h.dtype)
    mean, log_std = jnp.split(y, 2, axis=-1)
    return mean.reshape(x.shape), log_std.reshape(x.shape)


def dequantise(
    key: Key,
    dequantisation: Dequantisation,
    quantisation: Quantisation,
    data: Data,
    index: Index | None = None,
) -> tuple[Sample, Float[Array, " b"]]:
    """(x, correction): a point in each datum's bin, [b, *d], and what log p(x) lacks to bound log P(data), [b].

    Args:
      key: sample i draws from `fold_in(key, index_i)`.
      dequantisation: `UniformDequantisation()`, `VariationalDequantisation(params, apply)`, or any
        `(key, x, index) -> (u, log q)`.
      quantisation: what the data's numbers stand for.
      data: whole numbers [b, *d].
      index: global indices [b].

    Raises:
      ValueError: the data are not of this quantisation.
    """
    check_key(key)
    values = quantisation.values(data)
    u, log_q = dequantisation(key, values, default_index(values.shape[0], index))
    u, log_q = answered("dequantisation", u, values.shape), answered("dequantisation", log_q, values.shape[:1])
    size = values.size // values.shape[0]
    return values + quantisation.width * (u - 0.5), size * float(np.log(quantisation.width)) - log_q


def dequantisation_loss(
    params: Params,
    key: Key,
    data: Data,
    *,
    apply: Callable[[Params, Sample], tuple[Sample, Sample]],
    quantisation: Quantisation,
    log_density: Callable[[Key, Sample, Index], Float[Array, " b"]],
    index: Index | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The bound -E[log p(x) + d log w - log q(u | data)] on the mean of -log P(data), which trains q(u | data).

    Args:
      params: of `apply`.
      key: for u and for `log_density`.
      data: whole numbers [b, *d].
      apply: as in `VariationalDequantisation`.
      quantisation: what the data's numbers stand for.
      log_density: `(key, x [b, *d], index) -> nats [b]`, with a gradient in x: `log_likelihood`'s nats, or at the price
        of one evaluation of the denoiser those of `evaluate_continuous_elbo(draws=1)`, whose noise averages out.
      index: global indices [b].

    Returns:
      The loss, a scalar in nats a sample, and `{"per_sample": [b]}`.

    Source: Ho et al. 2019 (Flow++), eq. 12.
    """
    check_key(key)
    u_key, density_key = jax.random.split(key)
    x, correction = dequantise(u_key, VariationalDequantisation(params, apply), quantisation, data, index)
    nats = answered("log_density", log_density(density_key, x, default_index(x.shape[0], index)), x.shape[:1])
    per_sample = -(nats + correction)
    return jnp.mean(per_sample), {"per_sample": per_sample}
