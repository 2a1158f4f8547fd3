"""A stepper walked over a grid, compiled once for every number of steps.

What `sample` does by a scan, here by a loop of traced length over padded weights, so that a test of many grids need not
compile each; `test_samplers.py` shows that the two are the same.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import default_index, sample_keys, time_dtype
from diffjax.samplers._base import check_grid

LONGEST = 4096


@eqx.filter_jit
def _loop(key, process, denoiser, xt, ts, n, stepper, weights, index):
    def body(k, carry):
        x, state = carry
        keys = sample_keys(jax.random.fold_in(key, k), index) if stepper.stochastic else None
        row = jax.tree.map(lambda w: w[k], weights)
        x, state = stepper.step(keys, process, denoiser, x, ts[k], ts[k + 1], row, state)
        return x.astype(xt.dtype), state

    return jax.lax.fori_loop(0, n, body, (xt, stepper.init(process, xt, ts[0])))[0]


def walk(key, process, denoiser, xt, ts, stepper):
    """The state at ts[-1], without the last denoise: `sample(..., denoise=False)`, for at most 4096 steps."""
    dtype = time_dtype(xt)
    grid = check_grid(ts, dtype)
    n = len(grid) - 1

    def padded(w):
        w = np.asarray(w, dtype)
        return jnp.asarray(np.concatenate([w, np.zeros((LONGEST - len(w), *w.shape[1:]), dtype)]))

    weights = jax.tree.map(padded, stepper.prepare(process, grid))
    key = jax.random.key(0) if key is None else key
    index = default_index(xt.shape[0], None)
    return _loop(key, process, denoiser, jnp.asarray(xt), padded(grid), jnp.asarray(n), stepper, weights, index)
