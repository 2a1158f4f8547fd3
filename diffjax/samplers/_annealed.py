"""Annealed Langevin: Langevin steps at one noise level after another, from noise to data.

At each level t of a descending grid, as often as requested, with tau = r sigma(t)^2:

    xt <- xt + tau score(xt, t) + sqrt(2 tau) z = xt + r (alpha x0_hat - xt) + sqrt(2 r) sigma z

The second form, by Tweedie's score = (alpha x0_hat - xt)/sigma^2, divides by nothing. p_t is nowhere narrower than
sigma(t), so every r < 2 is stable, and r is about the share of the way to alpha x0_hat that a step goes.

Source: Song & Ermon 2019 (NCSN), algorithm 1; the last denoise: Jolicoeur-Martineau et al. 2021.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_samples, check, check_key, default_index, normal_like, sample_keys, time_dtype
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, GridLike, Index, Key, Sample
from diffjax.parameterisation._denoiser import predict
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers._base import check_grid
from diffjax.samplers._chains import StepSize, step_sizes
from diffjax.samplers._stepper import on_grid


@checked_numbers
def annealed_langevin(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    xt: Sample,
    ts: GridLike,
    *,
    steps_per_level: int,
    step_size: StepSize,
    index: Index | None = None,
    final_denoise: bool = True,
) -> Sample:
    """Annealed Langevin (NCSN) over the levels of any process's grid. A jitted entry point.

    Args:
      key: for the noise.
      process: the forward process that the grid's times refer to.
      denoiser: `(xt, t) -> x0_hat`, called n * steps_per_level times.
      xt: the state at ts[0], [b, *d], usually `prior(key, process, shape)`.
      ts: a descending grid [n] of levels, all of which are used.
      steps_per_level: T in the paper.
      step_size: r = tau/sigma(t)^2, a scalar or one a level, [n]. NCSN steps x + (a_i/2) score + sqrt(a_i) z with
        a_i = e sigma_i^2/sigma_L^2, sigma_L the last level's: r = e/(2 sigma_L^2), 0.1 with the paper's numbers.
      index: global indices [b] of the samples (default 0 .. b - 1): their noise depends on nothing else.
      final_denoise: whether to end with D(x, ts[-1]), at one more evaluation, which removes the last level's noise.

    Returns:
      x0 [b, *d].

    Raises:
      ValueError: ts does not descend or leaves [0, 1], steps_per_level is below 1, step_size is not in (0, 2) or has
        another shape.
    """
    check_key(key)
    xt = as_samples("xt", xt)
    dtype = time_dtype(xt)
    ts = check_grid(ts, dtype)
    if steps_per_level < 1:
        raise ValueError(f"steps_per_level: at least 1 is needed, got {steps_per_level}")
    r = step_sizes(step_size, ts.shape[0], dtype)
    check(r < 2, f"step_size: from 2 on Langevin steps diverge, got {step_size}")
    alpha, sigma = (jnp.asarray(value, dtype) for value in on_grid(_levels, process, ts))
    levels = jnp.asarray(ts, dtype), alpha, sigma, r
    return _anneal(key, denoiser, xt, levels, steps_per_level, default_index(xt.shape[0], index), final_denoise)


def _levels(process, ts):
    return process.alpha(ts), process.sigma(ts)


@eqx.filter_jit
def _anneal(key, denoiser, xt, levels, steps_per_level, index, final_denoise):
    def body(x, inputs):
        k, t, alpha, sigma, r = inputs
        z = normal_like(sample_keys(jax.random.fold_in(key, k), index), x)
        x = x + r * (alpha * predict(denoiser, x, t) - x) + jnp.sqrt(2 * r) * sigma * z
        return x.astype(xt.dtype), None

    steps = [jnp.repeat(level, steps_per_level) for level in levels]
    x, _ = jax.lax.scan(body, xt, (jnp.arange(steps[0].shape[0]), *steps))
    return predict(denoiser, x, levels[0][-1]).astype(xt.dtype) if final_denoise else x
