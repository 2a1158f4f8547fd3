"""DDPM's bound: a Kullback-Leibler divergence for each step of the chain, with a variance that is fixed or learned.

    p(xs | xt) = N(mean(x0_hat, xt), v),   mean(x0, xt) of q(xs | xt, x0) = N(mean(x0, xt), v_small)

    -log p(x0) <= prior + sum_{s > 0} KL(q(xs | xt, x0) || p(xs | xt)) + E[ -log N(x0; x0_hat, v) ] at the last step
    KL = sum over features of 1/2 [ log v - log v_small + v_small/v - 1 + (mean - mean_hat)^2/v ]

    log v = log v_large                            v_large = sigma_{t|s}^2, DDPM's beta
          = log v_small                            v_small = sigma_{t|s}^2 sigma_s^2/sigma_t^2, its beta tilde
          = (1 + o)/2 log v_large + (1 - o)/2 log v_small     learned: o is the second half of the network's channels

Source: Ho et al. 2020, eqs. 5-7 and 13; Nichol & Dhariwal 2021, eqs. 15-16.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    check,
    check_key,
    check_times,
    default_index,
    expand,
    is_concrete,
    normal_like,
    sample_keys,
    sum_features,
    time_dtype,
    values_at_once,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, GridLike, Index, Key, Network, Params, Reconstruction, Sample, Scalar
from diffjax.losses._denoising import mean_square
from diffjax.losses._elbo import check_levels, draw_steps, prior_divergence, summarise
from diffjax.parameterisation import apply_network, recover, target
from diffjax.parameterisation._diffusion import Diffusion, check_diffusion
from diffjax.process._gaussian import perturb, posterior_mean_std


def large_variance(log_large: Array, log_small: Array, answer: Sample | None) -> Array:
    """log v = log sigma_{t|s}^2, shape of `log_large`: right where the data is a standard normal."""
    return log_large


def small_variance(log_large: Array, log_small: Array, answer: Sample | None) -> Array:
    """log v = log of the posterior's variance, shape of `log_small`: right where the data is one point."""
    return log_small


def learned_variance(log_large: Array, log_small: Array, answer: Sample | None) -> Array:
    """log v between the two, [b, *d], by the network's own answer [b, *d] in [-1, 1] (which may go beyond).

    Raises:
      ValueError: the network has no second half of channels.

    Source: Nichol & Dhariwal 2021, eq. 15.
    """
    if answer is None:
        raise ValueError("network: a learned variance needs twice the data's channels (last axis), got as many")
    share = 0.5 * (answer + 1)
    return share * expand(log_large, answer) + (1 - share) * expand(log_small, answer)


@checked_numbers
class BinDecoder(eqx.Module):
    """-log of a Gaussian's mass on a level's bin, for data quantised evenly on [-1, 1]; the outermost bins are open.

    Attributes:
      levels: how many levels a feature can have, at least two; 256 for 8-bit images.

    Raises:
      ValueError: fewer than two levels.

    Source: Ho et al. 2020, eq. 13.
    """

    levels: int = eqx.field(static=True)

    @values_at_once
    def __check_init__(self):
        check(self.levels >= 2, f"levels: at least two are needed, got {self.levels}")

    def __call__(self, x0: Sample, mean: Sample, log_variance: Array) -> Float[Array, " b"]:
        """Nats [b] for x0 on the levels and mean [b, *d], log_variance broadcasting with them.

        Raises:
          ValueError: as `LevelDecoder`, for levels from -1 to 1.
        """
        x0 = as_samples("x0", x0)
        mean = as_samples("mean", mean, x0.shape)
        check_levels(x0, self.levels, -1.0, 1.0)
        half, inverse = 1 / (self.levels - 1), jnp.exp(-0.5 * log_variance)
        up, down = (x0 - mean + half) * inverse, (x0 - mean - half) * inverse
        # The side of the mean is chosen so that the difference of two tails never cancels.
        near, far = jnp.where(down > 0, -down, up), jnp.where(down > 0, -up, down)
        inside = log_ndtr(near) + jnp.log(-jnp.expm1(jnp.minimum(log_ndtr(far) - log_ndtr(near), -1e-30)))
        mass = jnp.where(x0 > 1 - half, log_ndtr(-down), jnp.where(x0 < half - 1, log_ndtr(up), inside))
        return -sum_features(mass)


def density_decoder(x0: Sample, mean: Sample, log_variance: Array) -> Float[Array, " b"]:
    """-log N(x0; mean, variance) in nats, [b], for continuous data: x0, mean [b, *d]."""
    x0 = as_samples("x0", x0)
    mean = as_samples("mean", mean, x0.shape)
    z2 = (x0 - mean) ** 2 * jnp.exp(-log_variance)
    return sum_features(0.5 * (z2 + log_variance + jnp.log(2 * jnp.pi)))


@checked_numbers
def negative_ddpm_elbo(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    ts: GridLike,
    variance: Callable[[Array, Array, Sample | None], Array] = learned_variance,
    reconstruction: Reconstruction = density_decoder,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The negative variational bound of the ancestral chain on ts, estimated with one step and one noise a sample.

    Args:
      diffusion, params, key, x0, cond, index, total: as `negative_continuous_elbo`'s, x0 [b, *d].
        With `learned_variance` the network answers twice the channels of x0, its own prediction first.
      ts: a descending grid of times [K + 1] whose last is 0, where no noise is left; for a `DiscreteChain` the k/K.
      variance: of a reverse step: `large_variance`, `small_variance` or `learned_variance`.
      reconstruction: the last step, `(x0, mean, log_variance) -> nats [b]`: `density_decoder` for continuous data,
        `BinDecoder(256)` for 8-bit images.

    Returns:
      As `negative_continuous_elbo`: a scalar in nats a sample, and its parts `prior`, `diffusion` (the drawn step's
      term times K, the last step's included), `per_sample`, `t`, each [b], and `standard_error`.

    Raises:
      ValueError: ts does not descend, has fewer than two steps, does not end where sigma is 0, or the network has no
        variance to give.

    Source: Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, eq. 4.
    """
    check_diffusion(diffusion)
    check_key(key)
    x0 = as_samples("x0", x0)
    drawn = _draw(key, x0, diffusion.process, ts, index, total)
    _, y_hat, answer = _ask(diffusion, params, x0, cond, drawn)
    term = _term(diffusion, x0, drawn, y_hat, answer, variance, reconstruction)
    parts = {"prior": prior_divergence(diffusion.process, x0, drawn.start), "diffusion": drawn.steps * term}
    return summarise(parts, drawn.t)


@checked_numbers
def learned_variance_loss(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    ts: GridLike,
    share: float = 1e-3,
    reconstruction: Reconstruction = density_decoder,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The simple loss for the prediction plus a share of the bound, in nats, for the variance alone; a scalar.

    The bound's gradient does not reach the prediction, only the variance. Arguments and aux as
    `negative_ddpm_elbo`'s, x0 [b, *d]; the simple loss is the mean square of the network's own answer.

    Args:
      share: of the bound, per feature, in the sum.

    Source: Nichol & Dhariwal 2021, eq. 16; the bound is in nats per feature, of all K steps together.
    """
    check_diffusion(diffusion)
    check_key(key)
    x0 = as_samples("x0", x0)
    drawn = _draw(key, x0, diffusion.process, ts, index, total)
    y, y_hat, answer = _ask(diffusion, params, x0, cond, drawn)
    simple = mean_square(y_hat - y)
    still = jax.lax.stop_gradient(y_hat)
    term = _term(diffusion, x0, drawn, still, answer, learned_variance, reconstruction)
    bound = drawn.steps * term / (x0.size // x0.shape[0])
    per_sample = simple + share * bound
    return jnp.mean(per_sample), {"t": drawn.t, "per_sample": per_sample, "simple": simple, "bound": bound}


def prediction_only(network: Network) -> Network:
    """A network with a learned variance as one without: its apply gives the first half of the channels, [b, *d].

    Of equal networks it is equal.
    """
    return Network(network.init, _Prediction(network))


@dataclasses.dataclass(frozen=True)
class _Prediction:
    network: Network

    def __call__(
        self, params: Params, x: Sample, c_noise: Array, cond: Cond = None, *, key: Key | None = None
    ) -> Sample:
        return self.network.apply(params, x, c_noise, cond, key=key)[..., : x.shape[-1]]


def _draw(key, x0, process, ts, index, total):
    """A step t -> s and the noise for each sample."""
    if is_concrete(ts):
        check_times(np.asarray(ts, np.float64), "descend")
    ts = jnp.asarray(ts, time_dtype(x0))
    last = jnp.asarray(process.sigma(ts[-1]))
    check(last == 0, f"ts: the last time must be one without noise, got sigma = {last}")
    k_key, eps_key, network_key = jax.random.split(key, 3)
    index = default_index(x0.shape[0], index)
    steps = ts.shape[0] - 1
    if steps < 2:
        raise ValueError(f"ts: at least two steps are needed, the last to time 0, got {ts.shape[0]} times")
    k = draw_steps(k_key, steps, index, x0.shape[0] if total is None else total)
    # What the last step discards is computed for the step before it, whose posterior variance also stands in for the
    # last one's, 0: where sigma(s) = 0 a derivative would be infinite.
    last, inner = k == steps - 1, jnp.minimum(k, steps - 2)
    eps = normal_like(sample_keys(eps_key, index), x0)
    key = jax.random.fold_in(network_key, index[0])  # where the batch is split, dropout differs by device
    return _Drawn(ts[0], steps, last, ts[k], ts[inner], ts[inner + 1], eps, key)


class _Drawn(NamedTuple):
    start: Scalar
    steps: int
    last: Array
    """Whether the drawn step is the last one, [b]."""
    t: Array
    """Where the drawn step begins, [b]."""
    inner_t: Array
    inner_s: Array
    """The drawn step t -> s, or the one before where it is the last, [b]."""
    eps: Sample
    key: Key


def _ask(diffusion, params, x0, cond, drawn):
    """The right answer y, the network's, and what it says of the variance (None where it says nothing)."""
    t = drawn.t
    xt = perturb(diffusion.process, x0, drawn.eps, t)
    answer = apply_network(diffusion, params, xt, t, cond, key=drawn.key)
    channels = x0.shape[-1]
    wide = answer.shape[-1:] == (2 * channels,)
    answered("network", answer, (*x0.shape[:-1], 2 * channels) if wide else x0.shape)
    rest = answer[..., channels:] if wide else None
    y = target(diffusion.parameterisation, diffusion.process, x0, drawn.eps, t)
    return y, answer[..., :channels], rest


def _term(diffusion, x0, drawn, y_hat, answer, variance, reconstruction):
    """The drawn step's divergence, or the last step's reconstruction, in nats [b]."""
    process, t, s = diffusion.process, drawn.inner_t, drawn.inner_s
    xt = perturb(process, x0, drawn.eps, drawn.t)
    x0_hat, _ = recover(diffusion.parameterisation, process, y_hat, xt, drawn.t)
    (mean, std), (mean_hat, _) = (posterior_mean_std(process, x, xt, s, t) for x in (x0, x0_hat))
    spread = jnp.where(drawn.last, process.sigma(drawn.t), process.conditional(t, s)[1])  # of the last, from sigma = 0
    log_large = 2 * jnp.log(spread)
    log_small = 2 * jnp.log(std)
    log_variance = expand(variance(log_large, log_small, answer), x0)
    gap = expand(log_small, x0) - log_variance
    # expm1(gap) - gap is v_small/v - 1 - log(v_small/v), whose digits survive where the two are close.
    step = 0.5 * sum_features(jnp.expm1(gap) - gap + (mean - mean_hat) ** 2 * jnp.exp(-log_variance))
    end = answered("reconstruction", reconstruction(x0, x0_hat, log_variance), x0.shape[:1])
    return jnp.where(drawn.last, end, step)
