"""Evidence lower bounds of latent-variable models, and what keeps their latents in use.

    log p(x0) >= E_q[log p(x0 | z)] - sum_l E_q KL(q(z_l | z_>l, x0) || p(z_l | z_>l))                    ELBO
    log p(x0) >= E[ log 1/K sum_k p(x0, z_k)/q(z_k | x0) ],   z_k ~ q(z | x0)                             IWAE

The first sum is the reconstruction, each KL the rate of a level. A latent is collapsed where its rate is 0: it then
carries nothing about x0. Training may charge rates otherwise than the bound does:

    beta              loss = reconstruction + beta rate                          beta < 1 keeps latents, beta > 1 prunes
    warm-up           beta rises from 0, once or in cycles
    free bits         rate of each group j: max(lambda, mean over the batch of KL_j)
    delta-VAE         an AR(1) prior that no factorised posterior can match: the rate has a floor above 0

Only beta = 1 without free bits is a bound; aux has that one (`per_sample`) whatever is trained.

Source: Kingma & Welling 2014, eq. 3; Burda et al. 2016 (IWAE), eq. 8; Higgins et al. 2017 (beta-VAE), eq. 4; Kingma et
al. 2016 (IAF), appendix C.8 (free bits); Razavi et al. 2019 (delta-VAE), eq. 5; Fu et al. 2019 (cyclic annealing).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from diffjax._arrays import (
    accumulator_dtype,
    as_samples,
    at_once,
    check,
    check_key,
    default_index,
    log_mean_exp,
    normal_like,
)
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Cond, Index, Key, Params, Sample, Scalar, WholeNumber
from diffjax.vae._gaussian import HALF_LOG_TAU, AbstractPrior, DiagonalGaussian
from diffjax.vae._model import AbstractVAE, check_vae, infer


@checked_numbers
def negative_elbo(
    vae: AbstractVAE,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    beta: Scalar = 1.0,
    free_bits: Scalar = 0.0,
    group: str = "latent",
    index: Index | None = None,
    gather: Callable[[Array], Array] = lambda rate: rate,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The negative ELBO with one draw of the latents a sample, the loss of every VAE of this package.

        loss = mean_b[ -log p(x0 | z) ] + beta sum_j max(free_bits, mean_b KL_j)

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import from_linen, networks, vae
    >>> encoder = from_linen(networks.Perceptron((4,), width=16, depth=1))
    >>> decoder = from_linen(networks.Perceptron((3,), width=16, depth=1))
    >>> model = vae.VAE(encoder, decoder, vae.GaussianLikelihood(), latents=2)
    >>> x0 = jax.random.normal(jax.random.key(0), (8, 3))
    >>> params = model.init(jax.random.key(1), x0)
    >>> loss, aux = negative_elbo(model, params, jax.random.key(2), x0)
    >>> sorted(aux)
    ['negative_elbo', 'per_sample', 'rate', 'rates', 'reconstruction', 'standard_error']

    Args:
      vae: the model.
      params: its parameters, as `vae.init` gives them.
      key: for latents and dropout; the latents of sample i depend on (key, index_i) alone.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      beta: weight of the rate, at least 0; a warm-up's value, such as `linear_warm_up(step, steps=1000)`.
      free_bits: nats that each group of latents has free: below them it has no gradient.
      group: what has free bits of its own: each `latent`, each `channel` (the last axis of images of latents), or each
        `level`.
      index: global indices [b] of the samples (default 0 .. b - 1).
      gather: `rate [b, *d] -> [total, *d]`, of the whole batch, whose mean `free_bits` are compared with. Where the
        batch is split, as under pmap, it is `context.gather` of an objective with `whole_batch`; by default the mean is
        over the samples that are given here.

    Returns:
      The loss, a scalar in nats a sample, and `per_sample` [b], the negative ELBO (beta = 1, no free bits), its parts
      `reconstruction` [b], `rate` [b] and `rates` [b, levels] (the top first), and two scalars, `negative_elbo`, the
      mean of `per_sample`, and its `standard_error`.

    Raises:
      ValueError: beta or free_bits is negative, group is none of the three, a level has no latent, or params lack
        a part.
    """
    check_vae(vae)
    check_key(key)
    x0 = as_samples("x0", x0)
    for name, value in (("beta", beta), ("free_bits", free_bits)):
        with at_once(value):
            check(jnp.asarray(value) >= 0, f"{name}: at least 0 is needed, got {value}")
    index = default_index(x0.shape[0], index)
    latent_key, network_key = jax.random.split(key)
    dropout = jax.random.fold_in(network_key, index[0])  # where the batch is split, dropout differs by device
    inference = infer(vae, params, latent_key, x0, cond, index=index, dropout=dropout)
    reconstruction, rates = -inference.log_likelihood, inference.rates
    rate = jnp.sum(rates, axis=1)
    groups = [_by_group(gather(level.rate), group) for level in inference.levels]
    charged = jnp.asarray(sum(jnp.sum(jnp.maximum(_as(free_bits, nats), nats)) for nats in groups))
    per_sample = reconstruction + rate
    error = jnp.std(per_sample, ddof=1) / per_sample.size**0.5
    aux = {"per_sample": per_sample, "reconstruction": reconstruction, "rate": rate, "rates": rates}
    aux |= {"negative_elbo": jnp.mean(per_sample), "standard_error": error}
    return jnp.mean(reconstruction) + _as(beta, charged) * charged, aux


def _as(value, like):
    return jnp.asarray(value).astype(like.dtype)


def _by_group(rate, group):
    """The mean over the batch of the rate [b, *d] of each group."""
    mean = jnp.mean(rate.astype(accumulator_dtype(rate.dtype)), axis=0)
    if group == "latent":
        return mean
    if group == "channel":
        return jnp.sum(mean, axis=tuple(range(mean.ndim - 1)))
    if group == "level":
        return jnp.sum(mean)
    raise ValueError(f"group: one of latent, channel, level is needed, got {group!r}")


@checked_numbers
def iwae_bound(
    vae: AbstractVAE,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    draws: int = 100,
    index: Index | None = None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """The importance-weighted bound on log p(x0), which rises to it with the number of draws. A jitted entry point.

        E[ log 1/K sum_k p(x0, z_k)/q(z_k | x0) ] <= log p(x0),   the ELBO at K = 1

    Args:
      vae: the model; dropout is off.
      params: its parameters.
      key: draw k of sample i depends on (key, k, index_i) alone.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      draws: K, at least 1.
      index: global indices [b].

    Returns:
      (nats [b], standard error [b] by the delta method, NaN at K = 1).

    Raises:
      ValueError: draws is not positive, or params lack a part.

    Source: Burda et al. 2016 (IWAE), eq. 8 and theorem 1.
    """
    check_vae(vae)
    check_key(key)
    x0 = as_samples("x0", x0)
    if draws < 1:
        raise ValueError(f"draws: at least one is needed, got {draws}")
    return _iwae(vae, params, key, x0, cond, default_index(x0.shape[0], index), draws)


@eqx.filter_jit
def _iwae(vae, params, key, x0, cond, index, draws):
    one = lambda k: infer(vae, params, jax.random.fold_in(key, k), x0, cond, index=index).log_weight
    return log_mean_exp(jax.lax.map(one, jnp.arange(draws)))


@checked_numbers
def linear_warm_up(step: WholeNumber, *, steps: int, start: Scalar = 0.0, stop: Scalar = 1.0) -> Float[Array, ""]:
    """beta rises along a line from `start` to `stop` over `steps` steps and stays there: a scalar.

    >>> [float(linear_warm_up(step, steps=4)) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]

    Args:
      step: of training, such as `Context.step`.
      steps: the length of the warm-up, at least 1.
      start: beta at step 0.
      stop: beta after the warm-up.

    Raises:
      ValueError: steps is not positive.

    Source: Bowman et al. 2016, section 3.1; Sonderby et al. 2016, section 2.3.
    """
    if steps < 1:
        raise ValueError(f"steps: at least one is needed, got {steps}")
    passed = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    return jnp.asarray(start + (stop - start) * passed)


@checked_numbers
def cyclic_warm_up(
    step: WholeNumber, *, period: int, ramp: Scalar = 0.5, start: Scalar = 0.0, stop: Scalar = 1.0
) -> Float[Array, ""]:
    """beta rises from `start` to `stop` over the first part of each period and stays for the rest: a scalar.

    >>> [float(cyclic_warm_up(step, period=8)) for step in (0, 2, 4, 7, 8, 10)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]

    Args:
      step: of training.
      period: steps of a cycle, at least 1.
      ramp: the share of a period over which beta rises, in (0, 1].
      start: beta at the beginning of a period.
      stop: beta at its end.

    Raises:
      ValueError: period is not positive, or ramp lies outside (0, 1].

    Source: Fu et al. 2019 (Cyclical annealing schedule), eq. 6.
    """
    if period < 1:
        raise ValueError(f"period: at least one step is needed, got {period}")
    with at_once(ramp):
        ramp = jnp.asarray(ramp, jnp.float32)
        check((ramp > 0) & (ramp <= 1), f"ramp: a share in (0, 1] is needed, got {ramp}")
    passed = (jnp.asarray(step, jnp.int32) % period).astype(jnp.float32) / period
    return jnp.asarray(start + (stop - start) * jnp.clip(passed / ramp, 0.0, 1.0))


@checked_numbers
class AutoregressivePrior(AbstractPrior):
    """z_1 ~ N(0, 1), z_t = a z_{t-1} + sqrt(1 - a^2) eps_t along the first axis of z: a prior with a committed rate.

    Each z_t has variance 1, but no posterior with independent components comes nearer than `least_rate(n, a)` nats, so
    that a decoder cannot leave the latents unused. Rates by latent are KL(q(z_t) || N(a m_{t-1}, 1 - a^2)) and what
    the variance of z_{t-1} adds.

    >>> round(float(least_rate(10, 0.5)), 3)
    1.036

    Attributes:
      correlation: a, in (-1, 1), a scalar.

    Raises:
      ValueError: it lies outside: at +-1 the prior is singular.

    Source: Razavi et al. 2019 (delta-VAE), section 2.2, arXiv:1901.03416.
    """

    correlation: Float[Array, ""]

    def __init__(self, correlation: Scalar):
        self.correlation = as_scalar("correlation", correlation)
        with at_once(correlation):
            check(
                jnp.abs(self.correlation) < 1,
                f"correlation: must lie in (-1, 1), where the prior is not singular, got {correlation}",
            )

    def divergence(self, posterior: DiagonalGaussian) -> Float[Array, "b *d"]:
        a, variance = self._along(posterior.mean)
        before = jnp.pad(posterior.mean[:, :-1], self._one_before(posterior.mean))
        uncertain = jnp.pad(jnp.exp(2 * posterior.log_std[:, :-1]), self._one_before(posterior.mean))
        growth = 2 * posterior.log_std - jnp.log(variance)
        shift = ((posterior.mean - a * before) ** 2 + a**2 * uncertain) / variance
        return 0.5 * (jnp.expm1(growth) - growth + shift)

    def log_prob(self, z: Sample) -> Float[Array, "b *d"]:
        z = as_samples("z", z)
        a, variance = self._along(z)
        before = jnp.pad(z[:, :-1], self._one_before(z))
        return -0.5 * ((z - a * before) ** 2 / variance + jnp.log(variance)) - HALF_LOG_TAU

    @checked_numbers
    def sample(
        self, keys: Shaped[Array, "b *k"], shape: tuple[int, ...], temperature: Scalar = 1.0
    ) -> Float[Array, "b *d"]:
        eps = normal_like(keys, jnp.zeros(shape))
        a, variance = self._along(eps)
        scaled = temperature * jnp.sqrt(variance) * eps
        a = a.astype(eps.dtype)

        def follow(z, new):
            z = a * z + new
            return z, z

        return jnp.moveaxis(jax.lax.scan(follow, jnp.zeros_like(scaled[:, 0]), jnp.moveaxis(scaled, 1, 0))[1], 0, 1)

    def _along(self, z):
        """a, and the variance of each z_t given the one before, [n, 1, ..., 1]."""
        if z.ndim < 2:
            raise ValueError(f"z: latents [b, n, ...] are needed, got shape {z.shape}")
        a = self.correlation.astype(z.dtype)
        first = jnp.arange(z.shape[1]) == 0
        return a, jnp.where(first, jnp.ones_like(a), 1 - a**2).reshape(-1, *(1,) * (z.ndim - 2))

    def _one_before(self, z):
        return [(0, 0), (1, 0), *[(0, 0)] * (z.ndim - 2)]


@checked_numbers
def least_rate(latents: int, correlation: Scalar) -> Float[Array, ""]:
    """The least divergence of a factorised posterior from an `AutoregressivePrior`, a scalar in nats.

        delta = 1/2 ((n - 2) log(1 + a^2) - log(1 - a^2)),   n >= 2;  0 of one latent

    >>> from diffjax import vae
    >>> print(vae.least_rate(8, 0.0), vae.least_rate(8, 0.5).round(2))
    0.0 0.81

    Args:
      latents: n, along the axis of the prior; of several channels, each has this rate.
      correlation: a, in (-1, 1), a scalar.

    Raises:
      ValueError: there is no latent, or the correlation lies outside.

    Source: Razavi et al. 2019 (delta-VAE), eq. 5.
    """
    if latents < 1:
        raise ValueError(f"latents: at least one latent is needed, got {latents}")
    a = AutoregressivePrior(correlation).correlation
    if latents == 1:
        return jnp.zeros_like(a)
    return 0.5 * ((latents - 2) * jnp.log1p(a**2) - jnp.log1p(-(a**2)))
