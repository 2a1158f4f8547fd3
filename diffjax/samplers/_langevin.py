"""Chains that Metropolis corrects: MALA and Hamiltonian Monte Carlo, by blackjax (the extra `mcmc`).

MALA proposes Langevin's step x' = x + tau score(x) + sqrt(2 tau) z (blackjax's convention too); HMC proposes the end of
`integration_steps` leapfrog steps of dx/dt = M^-1 p, dp/dt = score(x), from p ~ N(0, M). Either accepts by the log
density, so the law is exact whatever the step. It stays exact with *any* field for the score, a network's say: leapfrog
is reversible and keeps volume under every force, and MALA weighs its drift both ways. A poor score costs acceptance
alone.

Source: Roberts & Tweedie 1996; Duane et al. 1987; Neal 2011.
"""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import answered, as_samples, check, check_key, is_concrete
from diffjax._numbers import as_leaf, checked_numbers
from diffjax._typing import Index, Key, LogDensity, Numbers, Sample, Score, Statistic
from diffjax.samplers._chains import Chains, StepSize, run_chains, step_sizes


class DensityScore(eqx.Module):
    """`x [b, *d] -> grad log p(x) [b, *d]` by automatic differentiation; made by `density_score`."""

    log_density: LogDensity

    def __call__(self, x: Sample) -> Sample:
        x = as_samples("x", x)
        return jax.grad(lambda x: jnp.sum(answered("log_density", self.log_density(x), x.shape[:1])))(x)


def density_score(log_density: LogDensity) -> DensityScore:
    """The score of a log density `x [b, *d] -> [b]`, for `langevin`: `x [b, *d] -> [b, *d]`."""
    return DensityScore(log_density)


class Adjusted(eqx.Module):
    """The kernel: a blackjax algorithm's step of one chain, vmapped, while the user's functions see the whole batch."""

    algorithm: Callable
    """`(log density of one chain, tau) -> blackjax's SamplingAlgorithm`."""
    log_density: LogDensity
    score: Score

    def init(self, x):
        return jax.vmap(self._algorithm(1.0).init)(x), jnp.zeros(x.shape[:1], x.dtype)

    def step(self, keys, state, tau):
        state, info = jax.vmap(self._algorithm(tau).step)(keys, state[0])
        return state, info.acceptance_rate

    def position(self, state):
        return state[0].position

    def acceptance(self, state):
        return state[1]

    def _algorithm(self, tau):
        value, slope = _unbatched(self.log_density), _unbatched(self.score)
        log_density = jax.custom_vjp(value)
        log_density.defvjp(lambda x: (value(x), slope(x)), lambda slope, cotangent: (cotangent * slope,))
        return self.algorithm(log_density, tau)


def _mala(log_density, tau):
    return _blackjax().mala(log_density, tau)


def _hmc(inverse_mass, integration_steps, log_density, tau):
    return _blackjax().hmc(log_density, tau, inverse_mass, integration_steps)


@checked_numbers
def mala(
    key: Key,
    log_density: LogDensity,
    x: Sample,
    *,
    steps: int,
    step_size: StepSize,
    score: Score | None = None,
    index: Index | None = None,
    save: Sequence[int] | None = None,
    average: Statistic | None = None,
    burn_in: int = 0,
) -> Chains:
    """Metropolis-adjusted Langevin, one score and one log density a step. A jitted entry point. Needs the extra `mcmc`.

    Args:
      key: for proposals and acceptance.
      log_density: `x [b, *d] -> log p(x) [b]`, up to a constant. A pytree's arrays are arguments of jit; a plain
        function is static, so keep one object rather than make one per call.
      x: where the chains start, [b, *d].
      steps: how many.
      step_size: tau of x + tau score + sqrt(2 tau) z, a scalar or one a step, [steps].
      score: `x [b, *d] -> [b, *d]`, the drift of proposals; default the gradient of log_density.
      index: global indices [b] of the chains (default 0 .. b - 1): their noise depends on nothing else.
      save: numbers of steps (0 the start, -1 the end) after which states are kept; none are otherwise.
      average: a statistic `x [b, *d] -> pytree of [b, ...]`, averaged along each chain.
      burn_in: how many steps the average and the acceptance leave out at the beginning.

    Returns:
      `Chains`. An acceptance near 0.57 mixes fastest in many dimensions (Roberts & Rosenthal 1998).

    Raises:
      ImportError: blackjax is not installed.
      ValueError: log_density does not answer [b], or as `langevin`.
    """
    check_key(key)
    x = as_samples("x", x)
    return _adjusted(key, _mala, log_density, score, x, steps, step_size, index, save, average, burn_in)


@checked_numbers
def hmc(
    key: Key,
    log_density: LogDensity,
    x: Sample,
    *,
    steps: int,
    step_size: StepSize,
    integration_steps: int,
    inverse_mass: Numbers | None = None,
    score: Score | None = None,
    index: Index | None = None,
    save: Sequence[int] | None = None,
    average: Statistic | None = None,
    burn_in: int = 0,
) -> Chains:
    """Hamiltonian Monte Carlo, `integration_steps` scores a step. A jitted entry point. Needs the extra `mcmc`.

    Args:
      key: for momenta and acceptance.
      log_density: `x [b, *d] -> log p(x) [b]`, up to a constant; see `mala`.
      x: where the chains start, [b, *d].
      steps: how many proposals.
      step_size: leapfrog's, a scalar or one a proposal, [steps]. One leapfrog step of size e is MALA's proposal with
        tau = e^2/2. On N(0, s^2) a path of length integration_steps * step_size near pi s comes back to where it
        was, mirrored: stay well below it.
      integration_steps: leapfrog steps a proposal.
      inverse_mass: M^-1, about the covariance of the target: a diagonal of the shape of one state, [*d], or a matrix
        [D, D] over its D numbers; default the identity.
      score: `x [b, *d] -> [b, *d]`, the force; default the gradient of log_density.
      index: global indices [b] of the chains (default 0 .. b - 1): their noise depends on nothing else.
      save: numbers of steps (0 the start, -1 the end) after which states are kept; none are otherwise.
      average: a statistic `x [b, *d] -> pytree of [b, ...]`, averaged along each chain.
      burn_in: how many steps the average and the acceptance leave out at the beginning.

    Returns:
      `Chains`. An acceptance near 0.65 is the most efficient in many dimensions (Beskos et al. 2013).

    Raises:
      ImportError: blackjax is not installed.
      ValueError: integration_steps is below 1, inverse_mass has another shape or is not positive, or as `mala`.
    """
    check_key(key)
    x = as_samples("x", x)
    if integration_steps < 1:
        raise ValueError(f"integration_steps: at least 1 is needed, got {integration_steps}")
    algorithm = eqx.Partial(_hmc, _inverse_mass(inverse_mass, x), integration_steps)
    return _adjusted(key, algorithm, log_density, score, x, steps, step_size, index, save, average, burn_in)


def _adjusted(key, algorithm, log_density, score, x, steps, step_size, index, save, average, burn_in):
    _blackjax()
    taus = step_sizes(step_size, steps, x.dtype)
    score = density_score(log_density) if score is None else score
    kernel = Adjusted(algorithm, _Checked("log_density", log_density, 1), _Checked("score", score, x.ndim))
    return run_chains(key, kernel, x, taus, jnp.ones_like(taus), index, save, average, burn_in)


class _Checked(eqx.Module):
    """A function that must answer the first axes of the shape of x; cast to the dtype of x, whatever it computes in."""

    name: str = eqx.field(static=True)
    function: Callable[[Sample], Array]
    axes: int = eqx.field(static=True)

    def __call__(self, x):
        return answered(self.name, self.function(x), x.shape[: self.axes]).astype(x.dtype)


def _unbatched(function):
    """A function of a batch [b, ...] -> [b, ...] as one of a single member, which vmap turns back into the former.

    So a network, and conditions with a batch axis inside it, are called once for all chains.
    """
    arrays, static = eqx.partition(function, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def single(arrays, x):
        return eqx.combine(arrays, static)(x[None])[0]

    @single.def_vmap
    def _(size, batched, arrays, x):
        return eqx.combine(arrays, static)(x), True

    return lambda x: single(arrays, x)


def _inverse_mass(value, x) -> Float[Array, "..."]:
    shape, size = x.shape[1:], math.prod(x.shape[1:])
    if value is None:
        return jnp.ones(size, x.dtype)
    value = as_leaf("inverse_mass", value).astype(x.dtype)
    if value.shape not in (shape, (size, size)):
        raise ValueError(f"inverse_mass: shape {shape} or ({size}, {size}) is needed, got {value.shape}")
    if value.shape == shape:
        value = value.reshape(size)
        check(value > 0, f"inverse_mass: must be positive, got {value}")
    elif is_concrete(value):
        check(jnp.linalg.eigvalsh(value) > 0, "inverse_mass: must be positive definite")
        check(jnp.allclose(value, value.T), "inverse_mass: must be symmetric")
    return value


def _blackjax():
    try:
        import blackjax
    except ImportError as error:
        raise ImportError("mala and hmc need blackjax: pip install '.[mcmc]' in diffjax's folder") from error
    return blackjax
