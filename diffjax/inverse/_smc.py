"""Twisted sequential Monte Carlo: particles and weights, exact for the posterior as particles grow.

    twist       l_t(x) = exp(-|y - A(D(x, t))|^2_S / 2),  S = r^2 A A' + std^2;   at the last time N(y; A(D), std^2 I)
    propose     xs ~ N(c_x xt + c_x0 D_y, c_z^2),      D_y = D + C A' S^-1 (y - A(D)), as `guidance.pigdm`
    weigh       w <- w N(xs; c_x xt + c_x0 D, c_z^2) / N(xs; proposal) * l_s(xs)/l_t(xt)
    resample    systematically, where the effective sample size 1/sum w^2 falls below a share of the particles

The chain without y is DDPM's ancestral one on the grid, x0 = D(x, ts[-1]) its end. For any number of particles the
mean weight is an unbiased estimate of p(y) under that chain, and weighted averages converge to its posterior; the
twists only decide how fast.

Source: Wu et al. 2023 (Practical and asymptotically exact conditional sampling in diffusion models), algorithm 1, whose
twist is the one here with r = 0. Resampling: Kitagawa 1996.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int

from diffjax._arrays import (
    as_accumulators,
    as_samples,
    check,
    check_key,
    default_index,
    normal_like,
    sample_keys,
    sum_features,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, GridLike, Index, Key, Sample, Scalar
from diffjax.guidance._posterior import (
    CONJUGATE_GRADIENTS,
    ObservationLike,
    isotropic,
    observation,
    observe,
    positive,
    whiten,
)
from diffjax.operators._base import Operator
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import plan
from diffjax.samplers._ddim import DDIM


class Particles(NamedTuple):
    """What `twisted_smc` returns, for k particles."""

    x0: Float[Array, "k *d"]
    log_weights: Float[Array, " k"]
    """Normalised: their exponentials sum to 1."""
    log_evidence: Float[Array, ""]
    """The estimate of log p(y), in nats; its exponential is unbiased."""
    ess: Float[Array, " points"]
    """The effective sample size at each time of the grid, between 1 and k, before any resampling there."""


def effective_sample_size(log_weights: Float[Array, " k"]) -> Float[Array, ""]:
    """1/sum w^2 of normalised weights, a scalar in [1, k], from log weights [k] up to a constant."""
    log_weights = as_samples("log_weights", log_weights)
    return jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights))


def systematic(key: Key, log_weights: Float[Array, " k"]) -> Int[Array, " k"]:
    """Ancestors [k] by systematic resampling from log weights [k]: particle i is drawn k w_i times, rounded.

    One uniform number u, and the particles where the cumulative weights pass (u + j)/k. Source: Kitagawa 1996.
    """
    check_key(key)
    log_weights = as_samples("log_weights", log_weights)
    k = log_weights.shape[0]
    cumulative = jnp.cumsum(jax.nn.softmax(as_accumulators(log_weights)))
    points = (jnp.arange(k, dtype=cumulative.dtype) + jax.random.uniform(key, (), cumulative.dtype)) / k
    found = jnp.searchsorted(cumulative / cumulative[-1], points, side="right")
    return jnp.minimum(found, k - 1)


@checked_numbers
def twisted_smc(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    xt: Sample,
    ts: GridLike,
    operator: Operator,
    y: ObservationLike,
    std: Scalar,
    *,
    data_std: Scalar = 1.0,
    threshold: Scalar = 0.5,
    solver: lx.AbstractLinearSolver = CONJUGATE_GRADIENTS,
    index: Index | None = None,
) -> Particles:
    """Particles of the posterior given one observation. A jitted entry point; `jax.vmap` it for more observations.

    One evaluation of the denoiser and its vjp a step, of k particles at once. Draws of equal weight are
    `particles.x0[systematic(key, particles.log_weights)]`.

    Args:
      key: for proposals and resampling.
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`; all particles have one condition.
      xt: the particles at ts[0], [k, *d], `prior(key, process, shape)`; bfloat16 ones become float32.
      ts: a descending grid [n + 1] of times, the last with sigma > 0.
      operator: A, x [b, *d] -> [b, *m].
      y: what was observed, [1, *m].
      std: of the observation's noise, a scalar, positive.
      data_std: of the data, a scalar, of which r^2 is made; it decides how well the particles are led, not to where.
      threshold: the share of k, a scalar in [0, 1], below which the effective sample size calls for resampling.
      solver: of lineax, for S.
      index: global indices [k] of the particles (default 0 .. k - 1), for their noise.

    Raises:
      ValueError: y is not one observation, a number is out of its range, or the grid ends where sigma = 0.

    Source: Wu et al. 2023, algorithm 1.
    """
    check_key(key)
    xt = as_samples("xt", xt)
    dtype = time_dtype(xt)
    xt = xt.astype(dtype)
    y, std, data_std = observation(y), positive("std", std), positive("data_std", data_std)
    if y.shape[:1] != (1,):
        raise ValueError(f"y: one observation, of shape (1, *m), is needed, got shape {y.shape}")
    if jnp.ndim(std) or jnp.ndim(data_std):
        shapes = jnp.shape(std), jnp.shape(data_std)
        raise ValueError(f"std, data_std: scalars are needed, got shapes {shapes[0]} and {shapes[1]}")
    check((threshold >= 0) & (threshold <= 1), f"threshold: must lie in [0, 1], got {threshold}")
    ts, weights = plan(process, DDIM(eta=1.0), ts, dtype)
    check(process.sigma(jnp.asarray(ts[-1], dtype)) > 0, f"ts: must end where sigma > 0, got {ts[-1]}")
    index = default_index(xt.shape[0], index)
    numbers = (y, std, data_std, jnp.asarray(threshold, dtype))
    return _run(key, process, denoiser, xt, ts, weights, operator, numbers, solver, index)


@eqx.filter_jit
def _run(key, process, denoiser, xt, ts, weights, operator, numbers, solver, index):
    y, std, data_std, threshold = numbers
    k = xt.shape[0]
    ts, weights = jax.tree.map(lambda w: jnp.asarray(w, xt.dtype), (ts, weights))

    def look(x, t, share):
        """(D, D_y, log twist) at t, with share r^2 for r^2."""
        at = observe(process, denoiser, operator, y, x, t)
        square = share * isotropic(process, data_std, x, t)
        spread = lambda v: at.operator.push(square * at.operator.pull(v))
        weighted = whiten(spread, at.residual, std, solver)
        pulled = at.covariance(at.operator.pull(weighted))
        return at.x0_hat, at.x0_hat + pulled, -0.5 * sum_features(at.residual * weighted)

    def body(carry, inputs):
        x, seen, log_w, log_z = carry
        i, s, (c_x, c_x0, c_z), share = inputs
        resample_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        ess = effective_sample_size(log_w)
        again = ess < threshold * k
        chosen = jnp.where(again, systematic(resample_key, log_w), jnp.arange(k, dtype=jnp.int32))
        x, (plain, guided, log_l) = jax.tree.map(lambda leaf: leaf[chosen], (x, seen))
        level = jax.nn.logsumexp(log_w) - jnp.log(jnp.asarray(k, log_w.dtype))
        log_w, log_z = jnp.where(again, 0.0, log_w), log_z + jnp.where(again, level, 0.0)
        z = normal_like(sample_keys(noise_key, index), x)
        moved = (c_x0 / c_z) * (guided - plain)  # of the proposal's mean, in units of its noise
        xs = (c_x * x + c_x0 * guided + c_z * z).astype(x.dtype)
        seen = look(xs, s, share)
        change = -0.5 * sum_features((z + moved) ** 2 - z**2) + seen[2] - log_l
        return (xs, seen, log_w + change, log_z), ess

    steps = ts.shape[0] - 1
    shares = jnp.ones(steps, xt.dtype).at[-1].set(0.0)  # at the last time the twist is the likelihood of x0 = D
    first = look(xt, ts[0], jnp.ones((), xt.dtype))
    start = (xt, first, first[2], jnp.zeros((), xt.dtype))
    inputs = (jnp.arange(steps), ts[1:], weights, shares)
    (_, (x0, _, _), log_w, log_z), ess = jax.lax.scan(body, start, inputs)
    size = y.size
    constant = -size * (jnp.log(std) + 0.5 * jnp.log(2 * jnp.pi))
    log_z = log_z + jax.nn.logsumexp(log_w) - jnp.log(jnp.asarray(k, log_w.dtype)) + constant
    ess = jnp.append(ess, effective_sample_size(log_w))
    return Particles(x0, log_w - jax.nn.logsumexp(log_w), log_z.astype(xt.dtype), ess)
