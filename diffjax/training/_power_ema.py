"""Averages whose length is chosen after training: power functions of time.

    ema_t = sum_s w_t(s) params_s,    w_t(s) = (s/t)^(g+1) - ((s-1)/t)^(g+1)       the profile s^g, up to step t
    ema_t = b ema_{t-1} + (1 - b) params_t,    b = (1 - 1/t)^(g+1)
    width  = sqrt(g+1)/((g+2) sqrt(g+3))       standard deviation of the profile, over t: all grows with the run

A profile of any width is nearly a sum of snapshots taken at several steps of a few profiles that were tracked:

    sum_i x_i ema_{t_i},    x = argmin |sum_i x_i w_i - w|^2 = G^-1 h,    G_ij = <w_i, w_j>,  h_i = <w_i, w>

with the inner products of the profiles in continuous time (at most the error that tracking in whole steps has).

Source: Karras et al. 2024 (Analyzing and improving the training dynamics of diffusion models), section 3, eqs. 4, 7
and 8, and appendix C.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from diffjax._arrays import as_accumulators
from diffjax._typing import Params

Average = Callable[[Int[Array, ""], Params, Params], Params]
WIDEST = 1 / 12**0.5
"""Of g = 0, a plain mean over the whole run; the width of a profile lies below it."""


def power_exponent(width: float) -> float:
    """The exponent g of a profile of this width, a scalar in (0, 1/sqrt(12)): 0.05 gives 16.97, 0.1 gives 6.94.

    Raises:
      ValueError: there is no such profile.

    Source: Karras et al. 2024, appendix C.2: the largest root of (g+2)^2 (g+3) = (g+1)/width^2.
    """
    if not 0 < width < WIDEST:
        raise ValueError(f"width: a number between 0 and {WIDEST:.4f}, of a plain mean, is needed, got {width}")
    inverse = float(width) ** -2
    return float(np.max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real))


def make_power_ema(width: float) -> Average:
    """Makes `(step, params, ema) -> ema`, the average after the update that was number `step` (from 0), a scalar.

    The first update sets ema to params, so that what it began with does not matter. The average is float32 at least.

    Args:
      width: standard deviation of the profile as a share of the run so far, a scalar in (0, 0.2886); 0.05 is short, 0.1
        long. About `width` of the run is averaged over.

    Raises:
      ValueError: there is no such profile.

    Source: Karras et al. 2024, eq. 4 and appendix C.1.
    """
    power = power_exponent(width) + 1

    def update(step: Int[Array, ""], params: Params, ema: Params) -> Params:
        fresh = -jnp.expm1(power * jnp.log1p(-1 / (step + 1)))  # 1 - b; at step 0, 1
        ema = as_accumulators(ema)
        moved = optax.incremental_update(as_accumulators(params), ema, fresh)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, ema)

    return update


def make_emas(averages: Mapping[str, Average]) -> Average:
    """Several averages at once: `(step, params, ema) -> ema` where ema is a dict, name -> pytree like params.

    Args:
      averages: name -> one of `make_ema` or `make_power_ema`.

    Raises:
      ValueError: there is none.
    """
    if not averages:
        raise ValueError("averages: at least one is needed, got none")
    return lambda step, params, ema: {name: update(step, params, ema[name]) for name, update in averages.items()}


def reconstruction_weights(
    steps: Sequence[int], widths: Sequence[float], step: int, width: float
) -> Float[np.ndarray, " n"]:
    """The x_i [n] with which snapshots add up to the profile of any width at any step.

    Args:
      steps: when each snapshot was taken, n numbers of updates, at least 1.
      widths: of its profile, n.
      step: the number of updates of the profile wanted, at most the largest of `steps`; a scalar.
      width: of the profile wanted, a scalar.

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


def combine(snapshots: Iterable[Params], weights: Float[np.ndarray, " n"]) -> Params:
    """sum_i weights_i snapshots_i of n trees, summed in float64 on the host; NumPy leaves of their dtypes.

    Args:
      snapshots: n trees of one structure; an iterator is read one at a time.
      weights: [n], of `reconstruction_weights`.

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
