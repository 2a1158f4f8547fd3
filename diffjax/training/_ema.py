"""The moving average of parameters that samples are drawn with.

    ema_{n+1} = d_n ema_n + (1 - d_n) params_{n+1},    d_n = min(decay, (1 + n)/(10 + n))

The warm-up factor forgets the random start: after n steps of a constant decay the initial parameters keep weight
decay^n, with the warm-up 9!/((n + 1) ... (n + 9)) while it lasts. Source: the rule is that of TensorFlow's
`ExponentialMovingAverage(num_updates=...)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from diffjax._arrays import as_accumulators, check
from diffjax._typing import Params, Scalar


def make_ema(decay: Scalar, *, warmup: bool = True) -> Callable[[Int[Array, ""], Params, Params], Params]:
    """Makes `(step, params, ema) -> ema`, the average after the update that was number `step` (from 0).

    The average is float32 at least: one of bfloat16 parameters would round each small step back to where it was.

    Args:
      decay: weight of the old average at each step, a scalar in [0, 1); 0.999 averages over about 1,000 steps.
      warmup: whether early steps use min(decay, (1 + step)/(10 + step)) instead.

    Raises:
      ValueError: `decay` is outside [0, 1).
    """
    check((decay >= 0) & (decay < 1), f"decay: the average's decay lies in [0, 1), got {decay}")

    def update(step: Int[Array, ""], params: Params, ema: Params) -> Params:
        factor = jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else jnp.asarray(decay)
        ema = as_accumulators(ema)
        moved = optax.incremental_update(as_accumulators(params), ema, 1 - factor)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, ema)

    return update
