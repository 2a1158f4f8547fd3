"""Sliced Wasserstein distance: optimal transport along random lines, where it is exact.

    SW_p^p = E_theta[ W_p^p(theta' x, theta' y) ],    W_p^p = integral over u in [0, 1] of |F^-1(u) - G^-1(u)|^p

theta is uniform on the unit sphere. In one dimension F^-1 and G^-1 are the sorted values, as step functions of u; with
n and m of them the integrand is constant between the points i/n and j/m, at most n + m - 1 pieces.

Source: Bonneel et al. 2015, eq. 8; Peyre & Cuturi 2019, remark 2.30.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import as_accumulators, as_samples, check_key
from diffjax._numbers import checked_numbers
from diffjax._typing import Key


@checked_numbers
def sliced_wasserstein(
    key: Key, x: Float[Array, "n *d"], y: Float[Array, "m *e"], *, projections: int = 128, order: float = 2.0
) -> Float[Array, ""]:
    """SW_p of two samples, in the units of the data; features are flattened.

    Between N(m, S) and its shift N(m + c, S), SW_2 is |c|/sqrt(d): a projection sees one coordinate's worth.

    >>> import jax
    >>> from diffjax import metrics
    >>> x = jax.random.normal(jax.random.key(0), (500, 2))
    >>> round(float(metrics.sliced_wasserstein(jax.random.key(1), x, x + 1.0)), 1)  # |1, 1|/sqrt(2)
    1.0

    Args:
      key: for the directions.
      x: [n, *d].
      y: [m, *e], e as d; n and m may differ.
      projections: number of random directions; the relative error falls as its root.
      order: p, at least 1.

    Raises:
      ValueError: no arrays of floats, empty samples, different features, projections or order below 1.
    """
    check_key(key)
    x, y = as_samples("x", x), as_samples("y", y)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"y: samples of as many features as x's are needed, got x {x.shape} and y {y.shape}")
    if projections < 1:
        raise ValueError(f"projections: at least 1 is needed, got {projections}")
    if not order >= 1:
        raise ValueError(f"order: at least 1 is needed, got {order}")
    x, y = as_accumulators((x.reshape(len(x), -1), y.reshape(len(y), -1)))
    return _sliced(key, x, y, projections, order)


@partial(jax.jit, static_argnames=("projections", "order"))
def _sliced(key, x, y, projections, order):
    theta = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    theta = theta / jnp.linalg.norm(theta, axis=1, keepdims=True)
    along_x, along_y = (jnp.sort(theta @ z.T, axis=1) for z in (x, y))
    i, j, weights = _pieces(len(x), len(y))
    gaps = jnp.abs(along_x[:, i] - along_y[:, j]) ** order
    return jnp.mean(gaps @ jnp.asarray(weights, gaps.dtype)) ** (1 / order)


def _pieces(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where two step functions with n and m equal steps on [0, 1] are both constant: step of each, and length."""
    ends = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)  # in units of 1/(n m): exact
    return ends[:-1] // m, ends[:-1] // n, np.diff(ends) / (n * m)
