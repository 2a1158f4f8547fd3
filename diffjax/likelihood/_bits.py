"""Bits per dimension of quantised data: what -log2 P(data)/d is bounded by.

    data --> dequantise --> x, correction --> log p(x) + correction = log w_j,   j = 1 .. k draws of the noise

    average              E[ mean_j log w_j ]            <= log P(data)
    importance weighted  E[ log mean_j w_j ]            <= log P(data), and no lower: it rises with k

Source: Theis et al. 2016, section 3.1; Burda et al. 2016 (IWAE), eq. 8; Hoogeboom et al. 2020, eq. 7.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffjax._arrays import answered, as_samples, check_key, default_index, log_mean_exp
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, Index, Key
from diffjax.likelihood._dequantisation import Data, Dequantisation, Quantisation, UniformDequantisation, dequantise
from diffjax.likelihood._flow import log_likelihood
from diffjax.process import AbstractGaussianProcess


class BitsPerDim(NamedTuple):
    """What `bits_per_dim` returns: fewer bits are better, and log2(levels) is what knowing nothing costs."""

    bits: Float[Array, " b"]
    """-nats/(d log 2), an upper bound in bits a dimension."""
    standard_error: Float[Array, " b"]
    """Of bits, over the draws (their noise and probes together); NaN for a single draw. Items differ by far more: a
    mean over items has its own."""
    nats: Float[Array, " b"]
    """The lower bound on log P(data), a probability."""
    nfe: Int[Array, ""]
    """Evaluations, over all draws."""


def average_bound(log_weights: Float[Array, "k b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """(mean_j log w_j, its standard error), each [b], of log weights [k, b]."""
    log_weights = as_samples("log_weights", log_weights)
    k = log_weights.shape[0]
    spread = jnp.std(log_weights, axis=0, ddof=1) if k > 1 else jnp.full_like(log_weights[0], jnp.nan)
    return jnp.mean(log_weights, axis=0), spread / k**0.5


def importance_weighted_bound(log_weights: Float[Array, "k b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """(log mean_j w_j, its standard error by the delta method), each [b], of log weights [k, b].

    >>> import jax.numpy as jnp
    >>> from diffjax.likelihood import importance_weighted_bound
    >>> bound, error = importance_weighted_bound(jnp.array([[-1.0], [-1.0], [-1.0]]))
    >>> print(bound, error)
    [-1.] [0.]

    Source: Burda et al. 2016 (IWAE), eq. 8.
    """
    return log_mean_exp(as_samples("log_weights", log_weights))


@checked_numbers
def bits_per_dim(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    data: Data,
    *,
    quantisation: Quantisation,
    dequantisation: Dequantisation = UniformDequantisation(),
    draws: int = 1,
    bound: Callable[[Float[Array, "k b"]], tuple[Array, Array]] = average_bound,
    likelihood: Callable[..., Any] = log_likelihood,
    index: Index | None = None,
) -> BitsPerDim:
    """Bits per dimension of whole-number data under a denoiser. One solve a draw, compiled once.

    Args:
      key: for the noise and the likelihood's probes.
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      data: whole numbers 0 .. levels - 1, [b, *d], of an integer dtype.
      quantisation: how many levels, and where they lie in the denoiser's coordinates; `quantisation.whole(x)` brings
        values back to whole numbers.
      dequantisation: `UniformDequantisation()` or `VariationalDequantisation(params, apply)`.
      draws: of the noise, for each sample.
      bound: `average_bound` or `importance_weighted_bound`, `log weights [k, b] -> (nats, standard error)`.
      likelihood: `(key, process, denoiser, x, *, index) -> (nats [b], standard_error, nfe, ...)`: `log_likelihood`,
        with choices by `functools.partial`, or `evaluate_continuous_elbo`. Where it is noisy (probes, times) the
        average stays a bound in the mean, and the importance-weighted one does not: give that one `Exact()`.
      index: global indices [b].

    Returns:
      `BitsPerDim(bits [b], standard_error [b], nats [b], nfe)`.

    Raises:
      ValueError: data lie outside the quantisation, are no integers, or draws is not positive.

    Source: Theis et al. 2016, section 3.1; Ho et al. 2019 (Flow++), eqs. 10-12.
    """
    check_key(key)
    if draws < 1:
        raise ValueError(f"draws: at least one is needed, got {draws}")
    log_weights, nfe = [], []
    for j in range(draws):
        u_key, probe_key = jax.random.split(jax.random.fold_in(key, j))
        x, correction = dequantise(u_key, dequantisation, quantisation, data, index)
        found = likelihood(probe_key, process, denoiser, x, index=default_index(x.shape[0], index))
        log_weights.append(answered("likelihood", found.nats, x.shape[:1]) + correction)
        nfe.append(found.nfe)
    nats, error = bound(jnp.stack(log_weights))
    scale = x[0].size * float(np.log(2))
    return BitsPerDim(-nats / scale, error / scale, nats, jnp.sum(jnp.stack(nfe)))
