"""Stochastic gradient Langevin dynamics: Langevin on a posterior that sees a mini-batch of the data a step.

    x <- x + tau_k g(x) + sqrt(2 tau_k) z,     g(x) = grad log p(x) + (N/n) sum_{i in batch} grad log p(y_i | x)

g is unbiased; its noise adds tau_k^2 Var g to a step's 2 tau_k. So a constant step inflates the posterior's variance,
to (2 + tau Var g)/(A (2 - tau A)) where log p(x) is quadratic with curvature A; steps that decay, sum tau = infinity,
tau -> 0, remove it. The estimate of an expectation is sum_k tau_k f(x_k) / sum_k tau_k.

Source: Welling & Teh 2011, eq. 4 and 11 (its eps_t is 2 tau_k); Teh, Thiery & Vollmer 2016.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from diffjax._arrays import answered, as_samples, check, check_key, values_at_once
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Sample, Scalar, Statistic
from diffjax.samplers._chains import Chains, StepSize, run_chains, step_sizes
from diffjax.samplers._unadjusted import AbstractUnadjusted, langevin_step


@checked_numbers
@values_at_once
def polynomial_decay(steps: int, *, a: Scalar, b: Scalar = 1.0, gamma: Scalar = 1 / 3) -> Float[Array, " steps"]:
    """Step sizes a (b + k)^-gamma, k = 0 .. steps - 1, [steps], for scalars a, b and gamma.

    gamma in (0, 1] lets them sum to infinity; 1/3 gives averages their fastest convergence, steps^(-1/3).

    Raises:
      ValueError: steps is below 1, a or b not positive, gamma not in (0, 1].

    Source: Welling & Teh 2011, after eq. 2; Teh, Thiery & Vollmer 2016, section 5.
    """
    check(
        (gamma > 0) & (gamma <= 1), f"gamma: must lie in (0, 1], so that steps decay and sum to infinity, got {gamma}"
    )
    check(b > 0, f"b: must be positive, got {b}")
    check(a > 0, f"a: must be positive, got {a}")
    return step_sizes(a * (b + jnp.arange(max(steps, 0), dtype=float)) ** -gamma, steps, float)


class LogPosterior(eqx.Module):
    """`x [b, *d] -> log p(x) + sum_i log p(y_i | x)`, [b]; made by `log_posterior`."""

    log_prior: Callable[..., Array]
    log_likelihood: Callable[..., Array]
    data: PyTree

    def __call__(self, x: Sample) -> Float[Array, " b"]:
        return jax.vmap(lambda x: self.log_prior(x) + jnp.sum(self.log_likelihood(x, self.data)))(x)


def log_posterior(log_prior: Callable[..., Array], log_likelihood: Callable[..., Array], data: PyTree) -> LogPosterior:
    """The unnormalised log posterior of all the data, for `mala`, `hmc` or `density_score`: `x [b, *d] -> [b]`.

    Args:
      log_prior: of one chain's state, `x [*d] -> []`.
      log_likelihood: of n data given one chain's state, `(x [*d], data) -> [n]`, one term a datum.
      data: a pytree of arrays [N, ...].
    """
    return LogPosterior(log_prior, log_likelihood, data)


class MinibatchScore(eqx.Module):
    """`(x [b, *d], batch [b, n, ...]) -> g(x) [b, *d]`; made by `minibatch_score`."""

    log_prior: Callable[..., Array]
    log_likelihood: Callable[..., Array]
    total: int = eqx.field(static=True)

    def __call__(self, x: Sample, batch: PyTree) -> Sample:
        def estimate(x, batch):
            terms = self.log_likelihood(x, batch)
            return self.log_prior(x) + self.total / terms.shape[0] * jnp.sum(terms)

        return jax.vmap(jax.grad(estimate))(x, batch)


@checked_numbers
def minibatch_score(
    log_prior: Callable[..., Array], log_likelihood: Callable[..., Array], total: int
) -> MinibatchScore:
    """The unbiased score of a posterior from mini-batches, for `sgld`: `(x [b, *d], batch [b, n, ...]) -> [b, *d]`.

    Args:
      log_prior: of one chain's state, `x [*d] -> []`.
      log_likelihood: of n data given one chain's state, `(x [*d], batch) -> [n]`, one term a datum.
      total: N, how many data there are.
    """
    return MinibatchScore(log_prior, log_likelihood, total)


class Stochastic(AbstractUnadjusted):
    """The kernel of `sgld`; each chain draws its own batch."""

    score: Callable[..., Sample]
    data: PyTree
    batch_size: int = eqx.field(static=True)
    total: int = eqx.field(static=True)

    def step(self, keys, x, tau):
        batch_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        slope = answered("score", self.score(x, self._batches(batch_keys)), x.shape)
        return langevin_step(noise_keys, x, slope, tau)

    def _batches(self, keys):
        """[b, n, ...]: all the data in order where n = N, else drawn with replacement, at a cost that is not N's."""
        n, total = self.batch_size, self.total
        if n == total:
            return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (keys.shape[0], *leaf.shape)), self.data)
        rows = jax.vmap(lambda key: jax.random.randint(key, (n,), 0, total))(keys)
        return jax.tree.map(lambda leaf: leaf[rows], self.data)


@checked_numbers
def sgld(
    key: Key,
    score: Callable[[Sample, PyTree], Sample],
    x: Sample,
    data: PyTree,
    *,
    batch_size: int,
    steps: int,
    step_size: StepSize,
    index: Index | None = None,
    save: Sequence[int] | None = None,
    average: Statistic | None = None,
    burn_in: int = 0,
) -> Chains:
    """Stochastic gradient Langevin dynamics, unadjusted, on mini-batches of data. A jitted entry point.

    Args:
      key: for batches and noise.
      score: `(x [b, *d], batch) -> [b, *d]`, an unbiased estimate of the score from a batch, a pytree of
        [b, n, ...] with n data of its own for each chain; see `minibatch_score`.
      x: where the chains start, [b, *d].
      data: a pytree of arrays [N, ...].
      batch_size: n data a step, drawn with replacement; n = N takes each once: unadjusted Langevin.
      steps: how many.
      step_size: tau, a scalar or one a step, [steps], such as `polynomial_decay(steps, a=...)`.
      index: global indices [b] of the chains (default 0 .. b - 1): batches and noise depend on nothing else.
      save: numbers of steps (0 the start, -1 the end) after which states are kept; none are otherwise.
      average: a statistic `x [b, *d] -> pytree of [b, ...]`, averaged along each chain with weights tau.
      burn_in: how many steps the average leaves out at the beginning.

    Returns:
      `Chains`; its acceptance is None.

    Raises:
      ValueError: batch_size is not in 1 .. N, the data differ in length, or as `langevin`.
    """
    check_key(key)
    x = as_samples("x", x)
    totals = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(data)}
    if len(totals) != 1 or 0 in totals:
        raise ValueError(f"data: arrays of one length N, at least 1, are needed, got lengths {sorted(totals)}")
    total = totals.pop()
    if not 1 <= batch_size <= total:
        raise ValueError(f"batch_size: 1 .. {total} of {total} data can be drawn, got {batch_size}")
    taus = step_sizes(step_size, steps, x.dtype)
    return run_chains(key, Stochastic(score, data, batch_size, total), x, taus, taus, index, save, average, burn_in)
