"""A schedule that its author wrote: is it one, and does float32 keep its digits?

alpha, sigma at a thousand times --float64, on the host--> positive and finite, logsnr falls, or a ValueError
                                 --float32-----------> within 5 % of float64, or a warning that says how to write it
"""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffjax._arrays import check, is_concrete, on_host
from diffjax.process._base import MAX_LOGSNR, AbstractProcess

_CHECKED_TIMES = np.concatenate([[0.0, 1e-4], np.arange(1, 1000) / 1000, [1 - 1e-4, 1.0]])


def check_schedule(process: AbstractProcess) -> None:
    """Checks a schedule at a thousand times, in float64 on the host; not at all where it is traced.

    Raises:
      ValueError: alpha or sigma is not positive and finite inside, or logsnr does not fall.

    Warns:
      UserWarning: float32 loses the digits of alpha or sigma.
    """
    if not is_concrete(_alpha_sigma(process, jnp.full((), 0.5))):  # they may close over what grad or vmap traces
        return
    with on_host():
        alpha, sigma = _in_float64(process, _CHECKED_TIMES)
    name = type(process).__name__
    for what, values, end, where in (("alpha", alpha, -1, "alpha(1)"), ("sigma", sigma, 0, "sigma(0)")):
        right = (values > 0) & (values < np.inf)
        right[end] |= abs(values[end]) < 1e-12  # 0, to rounding
        i = int(np.argmin(right))
        check(
            right,
            f"{name}: {what} must be positive and finite (only {where} may be 0), got {values[i]} at "
            f"t = {_CHECKED_TIMES[i]}",
        )
    with np.errstate(divide="ignore"):
        value = 2 * (np.log(np.maximum(alpha, 0)) - np.log(np.maximum(sigma, 0)))
    falls = np.diff(value) < 0
    i = int(np.argmin(falls))
    first, second = (f"{value[k]} at t = {_CHECKED_TIMES[k]}" for k in (i, i + 1))
    check(falls, f"{name}: logsnr must fall, got {first} and {second}")
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        _check_float32(process, name)


def _alpha_sigma(process, t):
    """alpha and sigma at times t, [] or [n]."""
    return process.alpha(t), process.sigma(t)


def _in_float64(process, times):
    """alpha and sigma at times [n], [n] each, computed in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        exact = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), float) if eqx.is_inexact_array(x) else x, process)
        t = jnp.asarray(times, float)
        return [np.broadcast_to(value, t.shape) for value in _alpha_sigma(exact, t)]


_NEAR_AN_END = np.geomspace(1e-10, 0.1, 60)
_FLOAT32_TIMES = np.unique(
    np.float32(np.concatenate([_NEAR_AN_END, _CHECKED_TIMES[1:-1], 1 - _NEAR_AN_END[_NEAR_AN_END > 1e-7]]))
)


def _check_float32(process, name):
    """Compares a schedule in float32 with itself in float64, where |logsnr| is at most 20."""
    with on_host():
        t = jnp.asarray(_FLOAT32_TIMES)
        rough = [np.broadcast_to(value, t.shape) for value in _alpha_sigma(process, t)]
        fine = _in_float64(process, _FLOAT32_TIMES)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = abs(2 * np.log(fine[0] / fine[1])) <= MAX_LOGSNR
        for what, got, truth in zip(("alpha", "sigma"), rough, fine, strict=True):
            right = ~inside | (abs(got / truth - 1) < 0.05)
            if not right.all():
                i = int(np.argmin(right))
                warnings.warn(
                    f"{name}: {what} loses its digits in float32, got {got[i]} at t = {_FLOAT32_TIMES[i]} where "
                    f"float64 has {truth[i]}; write 1 - exp(-b) as -expm1(-b), 1 - (1 - t)^k as "
                    f"-expm1(k log1p(-t)), and near t = 1 cos(pi t/2) as sin(pi (1 - t)/2)",
                    stacklevel=6,
                )
