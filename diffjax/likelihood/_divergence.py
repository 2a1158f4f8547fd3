"""The divergence of a field, div u = tr J: exactly, or by estimates with probes that stay fixed for a whole solve.

    Exact         sum_k e_k' J e_k                                            d forward products, in blocks
    Hutchinson    mean_j v_j' J v_j,     E[v v'] = I                          a backward product a probe
    HutchPlusPlus tr(Q' J Q) + mean_j g_j' P J P g_j,   P = I - Q Q'          Q spans J' S, S random

With new probes at every evaluation an adaptive solver would never advance. Products with J' come by one `vjp` of the
field, and cost about a forward pass each; tr J' = tr J, and J need not be symmetric.

Source: Hutchinson 1990; Grathwohl et al. 2019 (FFJORD), eqs. 7 and 8; Meyer et al. 2021 (Hutch++), algorithm 1.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import accumulator_dtype, as_accumulators, as_samples, check_key, sample_keys, sum_features
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Sample

BLOCK = 8
"""Forward products at once: a U-Net's memory grows eightfold at most, and its time is near its least."""


@checked_numbers
class Exact(eqx.Module):
    """The trace of the Jacobian by a forward product for each of the d features: exact, and d times the work.

    Attributes:
      block: how many products are made at once, by vmap inside a scan over blocks; default 8, or d where that is less.
        The result is the same; memory grows with it, and a GPU with a small batch likes more.

    Raises:
      ValueError: block is not a positive integer.
    """

    block: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.block is not None:
            _check_count("block", "products at once", self.block)

    def probes(self, key: Key, x: Sample, index: Index) -> None:
        """Nothing is drawn."""
        as_samples("x", x)

    def __call__(
        self, field: Callable[[Sample], Sample], x: Sample, probes: None
    ) -> tuple[Sample, Float[Array, "1 b"]]:
        """(u, div u) at x [b, *d]: the field [b, *d] and its divergence [1, b]."""
        x = as_samples("x", x)
        u, push = jax.linearize(field, x)
        size = x[0].size
        block = min(BLOCK if self.block is None else self.block, size)

        def product(k):
            e = jax.nn.one_hot(k, size, dtype=x.dtype).reshape(x.shape[1:])  # zero where k is beyond the features
            return sum_features(push(jnp.broadcast_to(e, x.shape)) * e)

        def add(total, first):
            return total + jnp.sum(jax.vmap(product)(first + jnp.arange(block)), axis=0), None

        total = jnp.zeros_like(x, shape=x.shape[:1], dtype=accumulator_dtype(x.dtype))
        return u, jax.lax.scan(add, total, jnp.arange(0, size, block))[0][None]


@checked_numbers
class Hutchinson(eqx.Module):
    """E[v' J v] over random v with E[v v'] = I; the probes are drawn once a solve.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, data = dj.VariancePreserving(), dj.Gaussian(jnp.zeros(2), 1.0)
    >>> denoiser, probes = dj.exact_denoiser(data, process), dj.Hutchinson(4)
    >>> answer = dj.log_likelihood(jax.random.key(0), process, denoiser, jnp.ones((3, 2)), divergence=probes)
    >>> answer.nats.shape, answer.standard_error.shape
    ((3,), (3,))

    Attributes:
      count: probes for each sample; each costs one backward product a step.
      draw: `(key, shape, dtype) -> v`; default `jax.random.rademacher`, whose variance is the lowest;
        `jax.random.normal` for Gaussian probes.

    Raises:
      ValueError: count is not a positive integer.

    Source: Hutchinson 1990; Grathwohl et al. 2019, eq. 7.
    """

    count: int = eqx.field(static=True, default=1)
    draw: Callable[..., Array] = eqx.field(static=True, default=jax.random.rademacher)

    def __check_init__(self):
        _check_count("count", "probes", self.count)

    def probes(self, key: Key, x: Sample, index: Index) -> Float[Array, "m b *d"]:
        """`count` probes for each sample of x [b, *d], sample i's from `fold_in(key, index_i)`."""
        check_key(key)
        x = as_samples("x", x)
        return _draw(self.draw, key, self.count, x, index)

    def __call__(
        self, field: Callable[[Sample], Sample], x: Sample, probes: Float[Array, "m b *d"]
    ) -> tuple[Sample, Float[Array, "m b"]]:
        """(u, div u) at x [b, *d]: the field [b, *d] and one estimate a probe of its divergence [m, b]."""
        x = as_samples("x", x)
        u, pull = jax.vjp(field, x)
        return u, jax.vmap(lambda v: _product(v, pull(v.astype(u.dtype))[0]))(probes)


@checked_numbers
class HutchPlusPlus(eqx.Module):
    """Hutch++: the trace on the span of a random sketch exactly, Hutchinson's estimate on what is left.

    Far better than as many of Hutchinson's products where a few directions carry the Jacobian (data near a
    low-dimensional set), and worse where all weigh the same. Exact once a third of `count` reaches d. The standard
    error is that of the remainder's probes, given the sketch: NaN for a count of 3.

    Attributes:
      count: products with the transposed Jacobian a step, a multiple of three: a third for the sketch, a third on its
        span, a third for the remainder's Rademacher probes. Sketch and probes are drawn once a solve; the span
        follows the Jacobian.

    Raises:
      ValueError: count is not a positive multiple of three.

    Source: Meyer et al. 2021 (Hutch++: optimal stochastic trace estimation), algorithm 1, of the transposed Jacobian.
    """

    count: int = eqx.field(static=True)

    def __check_init__(self):
        if self.count < 1 or self.count % 3:
            raise ValueError(f"count: a positive multiple of three products is needed, got {self.count!r}")

    def probes(self, key: Key, x: Sample, index: Index) -> tuple[Float[Array, "k b *d"], Float[Array, "m b *d"]]:
        """The sketch (Gaussian, min(count/3, d) vectors) and count/3 probes for each sample of x [b, *d]."""
        check_key(key)
        x = as_samples("x", x)
        third = self.count // 3
        sketch_key, probe_key = jax.random.split(key)
        sketch = _draw(jax.random.normal, sketch_key, min(third, x[0].size), x, index)
        return sketch, _draw(jax.random.rademacher, probe_key, third, x, index)

    def __call__(
        self,
        field: Callable[[Sample], Sample],
        x: Sample,
        probes: tuple[Float[Array, "k b *d"], Float[Array, "m b *d"]],
    ) -> tuple[Sample, Float[Array, "m b"]]:
        """(u, div u) at x [b, *d]: the field [b, *d] and one estimate a probe of its divergence [m, b]."""
        x = as_samples("x", x)
        sketch, g = probes
        u, pull = jax.vjp(field, x)
        sketch, g = as_accumulators((sketch, g))
        products = jax.vmap(lambda v: as_accumulators(pull(v.astype(u.dtype))[0]))
        columns = jnp.moveaxis(products(sketch), 0, -1)  # [b, *d, k]; there is no QR of bfloat16
        q = jnp.linalg.qr(columns.reshape(x.shape[0], x[0].size, -1))[0]
        basis = jnp.moveaxis(q, -1, 0).reshape(sketch.shape)
        on_span = jnp.sum(jax.vmap(_product)(basis, products(basis)), axis=0)
        flat = g.reshape(*g.shape[:2], -1)
        shares = jnp.einsum("bdk,mbd->mbk", q, flat)
        rest = (flat - jnp.einsum("bdk,mbk->mbd", q, shares)).reshape(g.shape)
        return u, on_span + jax.vmap(_product)(rest, products(rest))


def _product(a, b):
    """<a, b> over the features of each sample, [b, *d] -> [b], each factor in float32 at least."""
    return sum_features(as_accumulators(a) * as_accumulators(b))


def _draw(draw, key, count, x, index):
    """`count` probes for each sample, [count, b, *d], sample i's from `fold_in(key, index_i)`."""
    shape = (count, *x.shape[1:])
    drawn = jax.vmap(lambda k: draw(k, shape, x.dtype))(sample_keys(key, index))
    return jnp.moveaxis(drawn, 1, 0)


def _check_count(name, of, count):
    if count < 1:
        raise ValueError(f"{name}: a positive number of {of} is needed, got {count!r}")
