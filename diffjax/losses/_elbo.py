"""Evidence lower bounds: what a denoiser is worth in nats, in continuous time and in K steps.

    -log p(x0) <= prior + reconstruction + diffusion,  per sample, in nats, on times from t_max down to t_min

    prior            KL(q(x at t_max | x0) || N(0, sigma^2 I)) = exp(lambda(t_max)) ||x0||^2/2
    reconstruction   E[ -log p(x0 | x at t_min) ]                                      by a decoder
    diffusion        1/2 int -lambda'(t) E||eps - eps_hat||^2 dt                       continuous
                     1/2 sum_k expm1(lambda_s - lambda_t) E||eps - eps_hat||^2         K steps t -> s

The continuous term depends on the schedule through its two end points alone; the K-step one falls to it as K grows.
Either bounds the likelihood of the reverse SDE, not the flow's. Differences of logsnr go through expm1, and the error
is that of the noise, so that float32 is enough.

Source: Kingma et al. 2021 (Variational Diffusion Models), eqs. 11-18.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    check,
    check_key,
    check_times,
    default_index,
    is_concrete,
    normal_like,
    sample_keys,
    sum_features,
    time_dtype,
    values_at_once,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, DrawTimes, Grid, GridLike, Index, Key, Params, Reconstruction, Sample, Scalar, Time
from diffjax.losses._denoising import per_sample_loss
from diffjax.losses._weighting import constant
from diffjax.parameterisation._diffusion import Diffusion, check_diffusion
from diffjax.process import AbstractGaussianProcess, AbstractTimes, ImportanceTimes, LowDiscrepancyTimes, logsnr_rate
from diffjax.process._times import StratifiedTimes, UniformTimes

OFF_LEVEL = 0.05
"""How far from a level a value may lie, in distances of two levels: what float32 rounds, and no more."""
_UNIFORM = (UniformTimes, StratifiedTimes, LowDiscrepancyTimes, ImportanceTimes)


@checked_numbers
def gaussian_decoder(x0: Sample, eps: Sample, std: Scalar) -> Float[Array, " b"]:
    """-log N(x0; z, std^2 I) in nats, [b], where z = x0 + std eps: for data that is continuous.

    Args:
      x0: data [b, *d].
      eps: noise [b, *d].
      std: sigma/alpha at t_min, a scalar.
    """
    x0 = as_samples("x0", x0)
    eps = as_samples("eps", eps, x0.shape)
    return sum_features(0.5 * (eps**2 + jnp.log(2 * jnp.pi)) + jnp.log(std))


@checked_numbers
class LevelDecoder(eqx.Module):
    """p(x0 | z) proportional to N(z; x0, std^2) over the levels that a feature can have: for data that is quantised.

    Attributes:
      levels: how many, at least two; 256 for 8-bit images.
      low: the lowest level's value.
      high: the highest level's, more than low; the others lie evenly between.

    Raises:
      ValueError: fewer than two levels, or high is not above low.

    Source: Kingma et al. 2021, eq. 8.
    """

    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True, default=-1.0)
    high: float = eqx.field(static=True, default=1.0)

    @values_at_once
    def __check_init__(self):
        check(self.levels >= 2, f"levels: at least two are needed, got {self.levels}")
        check(self.high > self.low, f"high: must be more than low = {self.low}, got {self.high}")

    @checked_numbers
    def __call__(self, x0: Sample, eps: Sample, std: Scalar) -> Float[Array, " b"]:
        """-log p(x0 | x0 + std eps) in nats, [b], for x0, eps [b, *d] on the levels and a scalar std.

        Raises:
          ValueError: a value of x0 is not one of the levels (where its values are known, that is, outside jit; inside,
            the result would be no bound, and may be negative).
        """
        x0 = as_samples("x0", x0)
        eps = as_samples("eps", eps, x0.shape)
        check_levels(x0, self.levels, self.low, self.high)
        values = jnp.asarray(np.linspace(self.low, self.high, self.levels), x0.dtype)
        distance = (x0[..., None] - values) / std + eps[..., None]  # (z - value)/std, whose digits z itself would lose
        return sum_features(jax.nn.logsumexp(-0.5 * distance**2, axis=-1) + 0.5 * eps**2)


@checked_numbers
def check_levels(x0: Sample, levels: int, low: float, high: float) -> None:
    """Raises `ValueError` where a concrete x0 [b, *d] is not on `levels` values spread evenly from low to high."""
    x0 = as_samples("x0", x0)
    if is_concrete(x0):
        place = (np.asarray(x0, np.float64).ravel() - low) * (levels - 1) / (high - low)
        off = np.abs(place - np.clip(np.round(place), 0, levels - 1))
        worst = np.asarray(x0).ravel()[np.argmax(off)]
        check(off < OFF_LEVEL, f"x0: must lie on {levels} levels spread evenly from {low:g} to {high:g}, got {worst}")


@checked_numbers
def negative_continuous_elbo(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    times: DrawTimes,
    reconstruction: Reconstruction = gaussian_decoder,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The negative continuous-time ELBO on `process.interval()`, estimated with one time and one noise a sample.

    Args:
      diffusion: network, process and parameterisation; the network is called with a key, so dropout is on.
      params: the network's parameters.
      key: for times, noise and dropout; what sample i draws depends on (key, index_i) alone.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      times: one whose objective is uniform in time: `UniformTimes`, `StratifiedTimes`, `LowDiscrepancyTimes`,
        `ImportanceTimes`.
      reconstruction: the decoder at t_min, `(x0, eps, sigma/alpha) -> nats [b]`: `gaussian_decoder` for continuous
        data, `LevelDecoder(256)` for 8-bit images. Of the latter, the sum is a bound in nats on a probability.
      index: global indices [b] of the samples.
      total: the size of the global batch (default b).

    Returns:
      The mean over the batch, a scalar in nats a sample, and its parts: `prior`, `reconstruction`, `diffusion`,
      `per_sample` (their sum), `t`, each [b], and `standard_error`, the scalar std(per_sample)/sqrt(b).

    Raises:
      ValueError: the time sampler is one of ours whose objective is not uniform in time.

    Source: Kingma et al. 2021 (Variational Diffusion Models), eqs. 11 and 17.
    """
    check_diffusion(diffusion)
    check_key(key)
    x0 = as_samples("x0", x0)
    if isinstance(times, AbstractTimes) and not isinstance(times, _UNIFORM):
        raise ValueError(
            f"times: the bound is a mean over uniform times, got {type(times).__name__}: take "
            "StratifiedTimes, or ImportanceTimes of it"
        )
    (t_key, *keys), index, total = jax.random.split(key, 4), default_index(x0.shape[0], index), total or x0.shape[0]
    drawn = times(t_key, x0.shape[0], index=index, total=total)
    t, correction = (answered("times", part, x0.shape[:1]) for part in drawn)
    t, correction = t.astype(time_dtype(x0)), correction.astype(time_dtype(x0))
    t_min, t_max = diffusion.process.interval()
    weight = -(t_max - t_min) * correction * logsnr_rate(diffusion.process, t)
    return _bound(diffusion, params, keys, x0, cond, t, weight, (t_min, t_max), reconstruction, index)


@checked_numbers
def negative_discrete_elbo(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    ts: GridLike,
    reconstruction: Reconstruction = gaussian_decoder,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The negative ELBO of the K-step sampler on the grid ts, estimated with one step and one noise a sample.

    Each step's Kullback-Leibler divergence is that of q(xs | xt, x0) from the same with x0_hat, whose variance is the
    posterior's. Steps are drawn evenly over the global batch.

    Args:
      ts: a descending grid of times [K + 1], t_max first, as for `sample`; inside `process.interval()`.
      diffusion, params, key, x0, cond, reconstruction, index, total: as `negative_continuous_elbo`'s,
        x0 [b, *d].

    Returns:
      As `negative_continuous_elbo`: a scalar in nats a sample, and its parts, each [b].

    Raises:
      ValueError: ts does not descend, or ends where logsnr is infinite (sigma or alpha is 0).

    Source: Kingma et al. 2021 (Variational Diffusion Models), eqs. 11-14.
    """
    check_diffusion(diffusion)
    check_key(key)
    x0 = as_samples("x0", x0)
    if is_concrete(ts):
        check_times(np.asarray(ts, np.float64), "descend")
    (k_key, *keys), index, total = jax.random.split(key, 4), default_index(x0.shape[0], index), total or x0.shape[0]
    ts = jnp.asarray(ts, time_dtype(x0))
    k = draw_steps(k_key, ts.shape[0] - 1, index, total)
    weight = (ts.shape[0] - 1) * snr_differences(diffusion.process, ts)[k]
    return _bound(diffusion, params, keys, x0, cond, ts[k], weight, (ts[-1], ts[0]), reconstruction, index)


def snr_differences(process: AbstractGaussianProcess, ts: Grid) -> Float[Array, " k"]:
    """expm1(lambda_s - lambda_t) of each step of a descending grid [K + 1], [K]: twice its weight on the eps-error.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import losses
    >>> print(losses.snr_differences(dj.Rectified(), jnp.array([0.5, 0.25])))  # 9 - 1
    [8.]

    Raises:
      ValueError: logsnr is infinite at an end.
    """
    levels = jnp.asarray(process.logsnr(ts))
    for end in (0, -1):
        check(jnp.isfinite(levels[end]), f"ts: logsnr must be finite on the grid, got {levels[end]} at t = {ts[end]}")
    return jnp.expm1(levels[1:] - levels[:-1])


@checked_numbers
def draw_steps(key: Key, steps: int, index: Index, total: int) -> Index:
    """A step 0 .. steps - 1 for each sample, [b] integers: uniform each, spread evenly over the global batch."""
    check_key(key)
    u = (jax.random.uniform(key) + index / total) % 1.0
    return jnp.minimum(jnp.floor(u * steps).astype(index.dtype), steps - 1)


def prior_divergence(process: AbstractGaussianProcess, x0: Sample, t: Time = 1.0) -> Float[Array, " b"]:
    """KL(q(xt | x0) || N(0, sigma(t)^2 I)) = exp(logsnr) ||x0||^2/2 in nats, [b], for x0 [b, *d] and a scalar t.

    >>> import jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import losses
    >>> print(losses.prior_divergence(dj.Rectified(), jnp.ones((1, 2)), 0.5).round(3))
    [1.]
    """
    x0 = as_samples("x0", x0)
    snr = jnp.asarray(process.alpha(t) / process.sigma(t)) ** 2
    return 0.5 * snr * sum_features(x0**2)


def _bound(diffusion, params, keys, x0, cond, t, weight, ends, reconstruction, index):
    eps_key, decoder_key, network_key = keys
    eps, noise = (normal_like(sample_keys(k, index), x0) for k in (eps_key, decoder_key))
    key = jax.random.fold_in(network_key, index[0])  # where the batch is split, dropout differs by device
    error = per_sample_loss(diffusion, params, x0, eps, t, cond, weighting=constant, key=key)
    return summarise(bound_parts(diffusion.process, x0, error, noise, weight, ends, reconstruction), t)


def bound_parts(
    process: AbstractGaussianProcess,
    x0: Sample,
    error: Float[Array, " b"],
    noise: Sample,
    weight: Float[Array, " b"],
    ends: tuple[Scalar, Scalar],
    reconstruction: Reconstruction,
) -> dict[str, Array]:
    """The three terms of a bound on -log p(x0) in nats, each [b].

    Args:
      process: the forward process.
      x0: data [b, *d].
      error: the mean over features of (eps - eps_hat)^2, [b].
      noise: eps at t_min, [b, *d].
      weight: on the sum over features of (eps - eps_hat)^2/2, [b].
      ends: t_min and t_max, scalars.
      reconstruction: `(x0, eps, sigma/alpha) -> nats [b]`.
    """
    x0 = as_samples("x0", x0)
    noise = as_samples("noise", noise, x0.shape)
    error, weight = as_samples("error", error, x0.shape[:1]), as_samples("weight", weight, x0.shape[:1])
    t_min, t_max = (jnp.asarray(end, time_dtype(x0)) for end in ends)
    ratio = process.sigma(t_min) / process.alpha(t_min)
    return {
        "prior": prior_divergence(process, x0, t_max),
        "reconstruction": answered("reconstruction", reconstruction(x0, noise, ratio), x0.shape[:1]),
        "diffusion": 0.5 * (x0.size // x0.shape[0]) * weight * error,
    }


def summarise(parts: dict[str, Array], t: Array) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The mean of the parts' sum, a scalar, and the parts with `per_sample`, `t` [b] and `standard_error` []."""
    per_sample = jnp.asarray(sum(parts.values()))
    error = jnp.std(per_sample, ddof=1) / per_sample.size**0.5
    return jnp.mean(per_sample), {**parts, "per_sample": per_sample, "t": t, "standard_error": error}
