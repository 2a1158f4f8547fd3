"""Moving averages of parameters, which samples are drawn with: of a fixed decay, and of a width chosen after training.

Exponential, with a warm-up:

    ema_{n+1} = d_n ema_n + (1 - d_n) params_{n+1},    d_n = min(decay, (1 + n)/(10 + n))

The warm-up factor forgets the random start: after n steps of a constant decay the initial parameters have weight
decay^n, with the warm-up 9!/((n + 1) ... (n + 9)) while it lasts. Source: the rule is that of TensorFlow's
`ExponentialMovingAverage(num_updates=...)`.

Power functions of time:

    ema_t = sum_s w_t(s) params_s,    w_t(s) = (s/t)^(g+1) - ((s-1)/t)^(g+1)       the profile s^g, up to step t
    ema_t = b ema_{t-1} + (1 - b) params_t,    b = (1 - 1/t)^(g+1)
    width  = sqrt(g+1)/((g+2) sqrt(g+3))       standard deviation of the profile, over t: all grows with the run

A profile of any width is nearly a sum of snapshots taken at several steps of a few profiles that were tracked:

    sum_i x_i ema_{t_i},    x = argmin |sum_i x_i w_i - w|^2 = G^-1 h,    G_ij = <w_i, w_j>,  h_i = <w_i, w>

with the inner products of the profiles in continuous time (the error is at most that of tracking in whole steps).

Source: Karras et al. 2024 (Analyzing and improving the training dynamics of diffusion models), section 3, eqs. 4, 7
and 8, and appendix C.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from diffjax._arrays import as_accumulators, check
from diffjax._numbers import checked_numbers
from diffjax._typing import Params, Scalar

Average: TypeAlias = Callable[[Int[Array, ""], Params, Params], Params]
"""`(step, params, ema) -> ema`."""
LARGEST_WIDTH = 1 / 12**0.5
"""The width at g = 0, a plain mean over the whole run; that of a profile is smaller."""


@checked_numbers
def make_ema(decay: Scalar, *, warmup: bool = True) -> Average:
    """Makes `(step, params, ema) -> ema`, the exponential average after the update of number `step` (from 0), a scalar.

        ema_{n+1} = d_n ema_n + (1 - d_n) params_{n+1}

    The average is float32 at least: in bfloat16 each small change would be rounded away.

    Args:
      decay: weight d of the old average at each step, a scalar in [0, 1); 0.999 averages over about 1,000 steps.
      warmup: whether early steps use min(decay, (1 + step)/(10 + step)) instead.

    Returns:
      A function of the step [], the new parameters and the old average, trees of arrays [*d], to the new average.

    Raises:
      ValueError: `decay` is outside [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> make_ema(0.75, warmup=False)(jnp.asarray(0), jnp.ones(2), jnp.zeros(2))
      Array([0.25, 0.25], dtype=float32)
    """
    check((decay >= 0) & (decay < 1), f"decay: the average's decay lies in [0, 1), got {decay}")

    def update(step: Int[Array, ""], params: Params, ema: Params) -> Params:
        factor = jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else jnp.asarray(decay)
        ema = as_accumulators(ema)
        moved = optax.incremental_update(as_accumulators(params), ema, 1 - factor)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, ema)

    return update


@checked_numbers
def power_exponent(width: float) -> float:
    """The exponent g of a profile of this width, a scalar in (0, 1/sqrt(12)): 0.05 gives 16.97, 0.1 gives 6.94.

    Raises:
      ValueError: there is no such profile.

    Source: Karras et al. 2024, appendix C.2: the largest root of (g+2)^2 (g+3) = (g+1)/width^2.
    """
    if not 0 < width < LARGEST_WIDTH:
        raise ValueError(f"width: a number between 0 and {LARGEST_WIDTH:.4f}, of a plain mean, is needed, got {width}")
    inverse = float(width) ** -2
    return float(np.max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real))


@checked_numbers
def make_power_ema(width: float) -> Average:
    """Makes `(step, params, ema) -> ema`, the power-function average after update number `step` (from 0), a scalar.

        ema_t = b ema_{t-1} + (1 - b) params_t,    b = (1 - 1/t)^(g+1),    t = step + 1

    The first update sets ema to params, so that the initial average does not matter. It is float32 at least.

    Args:
      width: standard deviation of the profile as a share of the run so far, a scalar in (0, 0.2886); 0.05 is short, 0.1
        long. About `width` of the run is averaged over.

    Returns:
      A function of the step [], the new parameters and the old average, trees of arrays [*d], to the new average.

    Raises:
      ValueError: there is no such profile.

    Source: Karras et al. 2024, eq. 4 and appendix C.1.
    """
    power = power_exponent(width) + 1

    def update(step: Int[Array, ""], params: Params, ema: Params) -> Params:
        new_weight = -jnp.expm1(power * jnp.log1p(-1 / (step + 1)))  # 1 - b; at step 0, 1
        ema = as_accumulators(ema)
        moved = optax.incremental_update(as_accumulators(params), ema, new_weight)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, ema)

    return update


@checked_numbers
def reconstruction_weights(
    steps: Sequence[int], widths: Sequence[float], step: int, width: float
) -> Float[np.ndarray, " n"]:
    """The weights x [n] of snapshots whose weighted sum is nearly the average of any width at any step.

        x = G^-1 h,    G_ij = <w_i, w_j>,    h_i = <w_i, w>

    Args:
      steps: [n], the number of updates before each snapshot, at least 1.
      widths: [n], the widths of their profiles.
      step: the number of updates of the average to reconstruct, at most the largest of `steps`; a scalar.
      width: the width of its profile, a scalar.

    Raises:
      ValueError: there is no snapshot, not one width each, a number is out of range, or `step` is beyond all of them.

    Source: Karras et al. 2024, eqs. 7 and 8 and algorithm 3.
    """
    if not len(steps) or len(steps) != len(widths):
        raise ValueError(f"steps: one or more, with a width each, are needed, got {len(steps)} and {len(widths)}")
    if min(steps) < 1:
        raise ValueError(f"steps: a snapshot is taken after at least 1 update, got {min(steps)}")
    if not 1 <= step <= max(steps):
        raise ValueError(f"step: between 1 and the last snapshot's {max(steps)}, got {step}")
    t = np.asarray(steps, np.float64) / step
    g = np.array([power_exponent(width) for width in widths])
    gram = _inner(t[:, None], g[:, None], t, g)
    wanted = _inner(t, g, 1.0, power_exponent(width))
    return np.linalg.lstsq(gram, wanted, rcond=1e-14)[0]


def _inner(t, g, u, h):
    """int_0^min(t, u) w_t w_u ds for w_t(s) = (g+1) s^g/t^(g+1) and w_u likewise of h."""
    least = np.minimum(t, u)
    return (g + 1) * (h + 1) / (g + h + 1) * (least / t) ** g * (least / u) ** h * least / (t * u)


def weighted_sum(snapshots: Iterable[Params], weights: Float[np.ndarray, " n"]) -> Params:
    """sum_i weights_i snapshots_i of n trees, summed in float64 on the host.

    Args:
      snapshots: n trees of one structure, of arrays [*d]; an iterator is read one at a time.
      weights: [n], of `reconstruction_weights`.

    Returns:
      A tree of NumPy arrays [*d], of the snapshots' dtypes.

    Raises:
      ValueError: there are more or fewer trees than weights.
    """
    total, dtypes = None, None
    for tree, weight in zip(snapshots, weights, strict=True):
        part = jax.tree.map(lambda leaf, weight=weight: weight * np.asarray(leaf, np.float64), tree)
        if total is None:
            total, dtypes = part, jax.tree.map(lambda leaf: leaf.dtype, tree)
        else:
            total = jax.tree.map(np.add, total, part)
    if total is None:
        raise ValueError("snapshots: at least one is needed, got none")
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), total, dtypes)
