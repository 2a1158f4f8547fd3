"""A stepper walked over a grid by a loop in Python: one compilation of its step serves every number of steps.

What `sample` does by one scan, so that a test of many grids need not compile each; `test_samplers.py` shows that the
two are the same.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import default_index, sample_keys, time_dtype
from diffjax.samplers._base import check_grid


@eqx.filter_jit
def _step(key, k, index, process, denoiser, x, t, s, stepper, weights, state):
    keys = sample_keys(jax.random.fold_in(key, k), index) if stepper.stochastic else None
    xs, state = stepper.step(keys, process, denoiser, x, t, s, weights, state)
    return xs.astype(x.dtype), state


@eqx.filter_jit
def _init(process, x, t, stepper):
    return stepper.init(process, x, t)


def walk(key, process, denoiser, xt, ts, stepper):
    """The state at ts[-1], without the last denoise: `sample(..., denoise=False)`."""
    dtype = time_dtype(xt)
    grid = check_grid(ts, dtype)
    weights = jax.tree.map(lambda w: np.asarray(w, dtype), stepper.prepare(process, grid))
    ts, index, x = np.asarray(grid, dtype), default_index(xt.shape[0], None), jnp.asarray(xt)
    state = _init(process, x, jnp.asarray(ts[0]), stepper)
    for k in range(len(ts) - 1):
        row = jax.tree.map(lambda w, k=k: jnp.asarray(w[k]), weights)
        t, s = jnp.asarray(ts[k]), jnp.asarray(ts[k + 1])
        x, state = _step(key, jnp.asarray(k), index, process, denoiser, x, t, s, stepper, row, state)
    return x
