"""Chains of Langevin's kind: one scan for all of them, noise by global index, states and averages kept on the way.

    x --> kernel.init --> scan over steps: kernel.step(keys, state, tau) --> Chains(x, saved, average, acceptance)

Noise of chain i at step k comes from `fold_in(fold_in(key, k), index_i)`, as in `sample`. The average of a statistic f
along a chain is sum_k w_k f(x_k) / sum_k w_k over the states x_k after each step, burn-in left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree
from typing_extensions import TypeAliasType

from diffjax._arrays import (
    accumulator_dtype,
    as_accumulators,
    check,
    check_real,
    default_index,
    sample_keys,
    values_at_once,
)
from diffjax._typing import Index, Key, Sample, Saved, Scalar, Statistic
from diffjax.samplers._base import _slots

StepSize = TypeAliasType("StepSize", Scalar | Float[Array, " steps"] | Float[np.ndarray, " steps"])
"""One for all steps, or one for each, [steps]."""


class Chains(NamedTuple):
    """What `langevin`, `sgld`, `mala` and `hmc` return, for b chains of states of shape [*d]."""

    x: Float[Array, "b *d"]
    """The states after the last step."""
    saved: Saved | None
    """The states that `save` names; None without it."""
    average: PyTree
    """The statistic's average along each chain, a pytree of [b, ...]; None without `average`."""
    acceptance: Float[Array, " b"] | None
    """Mean acceptance probability of each chain after burn-in; None for methods that accept everything."""


@values_at_once
def step_sizes(step_size: StepSize, steps: int, dtype: DTypeLike) -> Float[Array, " steps"]:
    """A step size, scalar or [steps], as one number a step, [steps], checked.

    Raises:
      ValueError: steps is no whole number from 1, step_size has another shape or is not positive and finite.
    """
    if steps < 1:
        raise ValueError(f"steps: at least 1 is needed, got {steps}")
    if isinstance(step_size, list | tuple):
        raise ValueError(f"step_size: a number or an array of shape ({steps},) is needed, got {step_size}")
    check_real("step_size", step_size, one=False)
    if jnp.shape(step_size) not in ((), (steps,)):
        raise ValueError(f"step_size: a number or shape ({steps},) is needed, got shape {jnp.shape(step_size)}")
    check((step_size > 0) & (step_size < np.inf), f"step_size: must be positive and finite, got {step_size}")
    return jnp.broadcast_to(jnp.asarray(step_size, dtype), (steps,))


def run_chains(
    key: Key,
    kernel: eqx.Module,
    x: Sample,
    taus: Float[Array, " steps"],
    weights: Float[Array, " steps"],
    index: Index | None,
    save: Sequence[int] | None,
    average: Statistic | None,
    burn_in: int,
) -> Chains:
    """Runs chains from x [b, *d] by a kernel.

    Args:
      key: for the noise.
      kernel: an `equinox.Module` with `init(x) -> state`, `step(keys [b], state, tau) -> state`, `position(state) -> x`
        and `acceptance(state) -> [b]`, the probability with which the last step was accepted (None: no such thing).
      x: where the chains start.
      taus: the step sizes.
      weights: of the average over steps, before burn-in and normalisation.
      index: global indices [b] of the chains (default 0 .. b - 1).
      save: numbers of steps (0 the start) after which states are kept.
      average: x [b, *d] -> a pytree of [b, ...].
      burn_in: how many steps the averages leave out at the beginning.

    Raises:
      ValueError: burn_in leaves no step, or `save` names a step beyond the last.
    """
    steps = taus.shape[0]
    if not 0 <= burn_in < steps:
        raise ValueError(f"burn_in: 0 .. {steps - 1} of {steps} steps can be left out, got {burn_in}")
    slots, kept = _slots(save, steps + 1)
    weights = as_accumulators(jnp.where(jnp.arange(steps) < burn_in, 0, weights))
    index = default_index(x.shape[0], index)
    x, saved, means, acceptance = _run(key, kernel, x, taus, weights / weights.sum(), index, slots, kept, average)
    return Chains(x, None if save is None else saved, means, acceptance)


@eqx.filter_jit
def _run(key, kernel, x, taus, weights, index, slots, kept, average):
    def body(carry, inputs):
        state, saved, means = carry
        k, tau, weight, slot = inputs
        state = kernel.step(sample_keys(jax.random.fold_in(key, k), index), state, tau)
        means = jax.tree.map(lambda m, f: m + weight.astype(m.dtype) * f.astype(m.dtype), means, statistics(state))
        return (state, keep(saved, slot, kernel.position(state)), means), None

    def statistics(state):
        return None if average is None else average(kernel.position(state)), kernel.acceptance(state)

    def keep(saved, slot, x):
        return saved.at[slot].set(x, mode="drop") if kept else saved

    state = kernel.init(x)
    saved = keep(jnp.zeros((kept, *x.shape), x.dtype), slots[0], x)
    mean_of = lambda f: jnp.zeros(
        f.shape, accumulator_dtype(f.dtype if jnp.issubdtype(f.dtype, jnp.inexact) else x.dtype)
    )
    means = jax.tree.map(mean_of, jax.eval_shape(statistics, state))
    inputs = (jnp.arange(taus.shape[0]), taus, weights, slots[1:])
    (state, saved, (means, acceptance)), _ = jax.lax.scan(body, (state, saved, means), inputs)
    return kernel.position(state), saved, means, acceptance
