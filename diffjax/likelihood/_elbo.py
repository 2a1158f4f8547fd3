"""Evidence lower bounds of a denoiser on given data: the formulas are those of `losses`, with many draws an item.

    log p(x0) >= -(prior + reconstruction + 1/2 int -lambda'(t) E||eps - eps_hat||^2 dt)       continuous
                 -(prior + reconstruction + 1/2 sum_k expm1(lambda_s - lambda_t) E||eps - eps_hat||^2)   K steps

    ||eps - eps_hat||^2 = exp(lambda) ||x0 - x0_hat||^2

Either bounds the likelihood of the reverse SDE, not the flow's. At the exact denoiser the continuous one is tight, item
by item, up to the decoder's and the prior's misfit at the ends of the interval, and both likelihoods are one.

Source: Kingma et al. 2021 (Variational Diffusion Models), eqs. 11-18; Song et al. 2021b, theorem 3.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffjax._arrays import (
    as_samples,
    check_key,
    check_times,
    default_index,
    is_concrete,
    mean_features,
    normal_like,
    sample_keys,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, GridLike, Index, Key, Reconstruction, Sample
from diffjax.losses import bound_parts, gaussian_decoder, snr_differences
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess, AbstractTimes, LogsnrTimes, logsnr_rate
from diffjax.process._gaussian import perturb


class Elbo(NamedTuple):
    """What `evaluate_continuous_elbo` and `evaluate_discrete_elbo` return; nats is minus the sum of the three parts."""

    nats: Float[Array, " b"]
    """The lower bound on log p(x0), the mean over draws."""
    standard_error: Float[Array, " b"]
    """Of that mean, as if draws were independent: their times are spread evenly, which only lowers it."""
    nfe: Int[Array, ""]
    """Evaluations of the denoiser."""
    prior: Float[Array, " b"]
    reconstruction: Float[Array, " b"]
    diffusion: Float[Array, " b"]


@checked_numbers
def evaluate_continuous_elbo(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    x0: Sample,
    *,
    draws: int = 64,
    times: AbstractTimes | None = None,
    reconstruction: Reconstruction = gaussian_decoder,
    index: Index | None = None,
) -> Elbo:
    """The continuous bound on log p(x0), on `process.interval()`. A jitted entry point.

    Args:
      key: for times and noise; those of sample i depend on (key, index_i) alone.
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      x0: data [b, *d].
      draws: times and noises for each sample; 2 or more for a standard error.
      times: the density that times are drawn from, each sample's spread evenly over it; the bound does not depend on
        it. Default `LogsnrTimes(process)`.
      reconstruction: as `negative_continuous_elbo`'s: `gaussian_decoder` gives a density, `LevelDecoder(levels)` a
        probability.
      index: global indices [b].

    Returns:
      `Elbo(nats [b], standard_error [b], nfe, prior [b], reconstruction [b], diffusion [b])`.

    Raises:
      ValueError: draws is not positive.

    Source: Kingma et al. 2021 (Variational Diffusion Models), eqs. 11 and 17.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    _check_draws(draws)
    times = LogsnrTimes(process) if times is None else times
    index = default_index(x0.shape[0], index)
    return _continuous(key, process, denoiser, x0, times, reconstruction, index, draws)


@checked_numbers
def evaluate_discrete_elbo(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    x0: Sample,
    ts: GridLike,
    *,
    draws: int | None = None,
    reconstruction: Reconstruction = gaussian_decoder,
    index: Index | None = None,
) -> Elbo:
    """The bound of the K-step ancestral sampler on the grid ts. A jitted entry point.

    Args:
      ts: a descending grid [K + 1], inside `process.interval()`.
      draws: steps looked at for each sample, spread evenly; default K: each step once.
      key, process, denoiser, x0, reconstruction, index: as `evaluate_continuous_elbo`'s, x0 [b, *d].

    Returns:
      As `evaluate_continuous_elbo`, each [b].

    Raises:
      ValueError: ts does not descend, logsnr is infinite at an end of it, or draws is not positive.

    Source: Kingma et al. 2021 (Variational Diffusion Models), eqs. 11-14.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    if is_concrete(ts):
        check_times(np.asarray(ts, np.float64), "descend")
    ts = jnp.asarray(ts, time_dtype(x0))
    draws = ts.shape[0] - 1 if draws is None else draws
    _check_draws(draws)
    weights = jnp.asarray(snr_differences(process, ts))
    index = default_index(x0.shape[0], index)
    return _discrete(key, process, denoiser, x0, ts, weights, reconstruction, index, draws)


def _check_draws(draws):
    if draws < 1:
        raise ValueError(f"draws: at least one is needed, got {draws}")


@eqx.filter_jit
def _continuous(key, process, denoiser, x0, times, reconstruction, index, draws):
    t_key, noise_key = jax.random.split(key)
    places = _places(t_key, index, draws)
    t = times.quantile(places.reshape(-1)).astype(time_dtype(x0))
    weight = (-logsnr_rate(process, t) / times.density(t)).astype(t.dtype)
    t, weight = t.reshape(places.shape), weight.reshape(places.shape)
    return _average(noise_key, process, denoiser, x0, t, weight, process.interval(), reconstruction, index)


@eqx.filter_jit
def _discrete(key, process, denoiser, x0, ts, weights, reconstruction, index, draws):
    k_key, noise_key = jax.random.split(key)
    steps = weights.shape[0]
    k = jnp.minimum(jnp.floor(_places(k_key, index, draws) * steps).astype(jnp.int32), steps - 1)
    ends = (ts[-1], ts[0])
    return _average(noise_key, process, denoiser, x0, ts[k], steps * weights[k], ends, reconstruction, index)


def _places(key, index, draws):
    """(u_i + j/draws) mod 1 for draw j of sample i, [draws, b]."""
    u = jax.vmap(jax.random.uniform)(sample_keys(key, index))
    return (u + (jnp.arange(draws) / draws).astype(u.dtype)[:, None]) % 1.0


def _average(key, process, denoiser, x0, t, weight, ends, reconstruction, index):
    """The bound from times and weights [draws, b], one draw after the other."""

    def one(carry, inputs):
        j, t, weight = inputs
        eps, noise = (normal_like(sample_keys(jax.random.fold_in(k, j), index), x0) for k in jax.random.split(key))
        x0_hat = predict(denoiser, perturb(process, x0, eps, t), t).astype(x0.dtype)
        error = jnp.exp(process.logsnr(t)) * mean_features((x0_hat - x0) ** 2)
        return carry, bound_parts(process, x0, error, noise, weight, ends, reconstruction)

    draws = t.shape[0]
    parts = jax.lax.scan(one, None, (jnp.arange(draws), t, weight))[1]
    total = jnp.asarray(sum(parts.values()))
    error = jnp.std(total, axis=0, ddof=1) / draws**0.5 if draws > 1 else jnp.full_like(total[0], jnp.nan)
    means = {name: jnp.mean(part, axis=0) for name, part in parts.items()}
    return Elbo(-jnp.mean(total, axis=0), error, jnp.asarray(draws), **means)
