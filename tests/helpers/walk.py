"""A stepper walked over a grid, compiled once for every number of steps.

What `sample` does by a scan, here by a loop of traced length over padded weights, so that a test of many grids need not
compile each; `test_samplers.py` shows that the two are the same.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.process import sample_keys
from diffjax.samplers import Step, step_weights

LONGEST = 4096


@eqx.filter_jit
def _loop(key, denoiser, xt, ts, n, stepper, weights, index):
    def body(k, carry):
        x, state = carry
        keys = sample_keys(jax.random.fold_in(key, k), index) if stepper.stochastic else None
        row = jax.tree.map(lambda w: w[k], weights)
        x, state = stepper.step(denoiser, x, Step(ts[k], ts[k + 1], row, keys), state)
        return x.astype(xt.dtype), state

    return jax.lax.fori_loop(0, n, body, (xt, stepper.init(xt)))[0]


def walk(key, process, denoiser, xt, ts, stepper):
    """The state at ts[-1], without the last denoise: `sample(..., final_denoise=False)`, for at most 4096 steps."""
    dtype = np.float64 if xt.dtype == np.float64 else np.float32
    grid = np.asarray(ts).astype(dtype).astype(np.float64)  # as the denoiser sees it
    n = len(grid) - 1

    def padded(w):
        w = np.asarray(w, dtype)
        return jnp.asarray(np.concatenate([w, np.zeros((LONGEST - len(w), *w.shape[1:]), dtype)]))

    weights = jax.tree.map(padded, step_weights(stepper, process, grid))
    key = jax.random.key(0) if key is None else key
    index = jnp.arange(xt.shape[0])
    return _loop(key, denoiser, jnp.asarray(xt), padded(grid), jnp.asarray(n), stepper, weights, index)
