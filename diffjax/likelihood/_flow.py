"""Log-likelihood along the probability flow.

    dx/dt = u(x, t),   d log p/dt = -div u,   log p(x0) = log p_1(x1) + int_{t0}^{1} div u(x, t) dt

    x0 --> diffrax (t rises from t0 to the interval's end) --> x1, int div u --> terminal density --> nats

Source: Song et al. 2021, appendix D.2; Chen et al. 2018; Grathwohl et al. 2019 (FFJORD), eq. 8.
"""

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from diffjax._arrays import (
    answered,
    as_samples,
    check,
    check_key,
    default_index,
    is_concrete,
    nan_unless,
    sum_features,
    time_dtype,
    values_at_once,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, Index, Key, Sample, Scalar
from diffjax.likelihood._divergence import Exact, Hutchinson, HutchPlusPlus
from diffjax.process import AbstractGaussianProcess, prior_log_prob
from diffjax.samplers import count_evaluations, velocity

FLOAT32_LOGSNR = 14.0
"""Nearer to the data, float32 cannot tell x from alpha D: the score's error is e^logsnr times its rounding."""


class LogLikelihood(NamedTuple):
    """What `log_likelihood` returns; the samples of a failed solve are NaN."""

    nats: Float[Array, " b"]
    """log p(x0), the mean over probes."""
    standard_error: Float[Array, " b"]
    """Of that mean, over the estimate's probes: 0 for the exact trace, NaN for a single probe."""
    nfe: Int[Array, ""]
    """Evaluations of the field and its divergence together, those of rejected steps included."""


@checked_numbers
def log_likelihood(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    x0: Sample,
    *,
    t0: Scalar | None = None,
    terminal: Callable[[Sample], Float[Array, " b"]] | None = None,
    divergence: Exact | Hutchinson | HutchPlusPlus = Exact(),
    solver: diffrax.AbstractSolver | None = None,
    controller: diffrax.AbstractStepSizeController | None = None,
    index: Index | None = None,
    max_steps: int = 4096,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> LogLikelihood:
    """log p_{t0}(x0) of the probability flow. A jitted entry point.

    A denoiser, terminal or draw that is a plain function is static: keep one object rather than make one per call.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, data = dj.VariancePreserving(), dj.Gaussian(jnp.zeros(2), 1.0)
    >>> x0 = jnp.ones((1, 2))
    >>> answer = dj.log_likelihood(jax.random.key(0), process, dj.exact_denoiser(data, process), x0)
    >>> answer.nats.shape, round(float(answer.nats[0]), 2)  # -log(2 pi) - |x0|^2/2
    ((1,), -2.84)

    Args:
      key: for Hutchinson's probes.
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`, acting on each sample alone.
      x0: data [b, *d], in the coordinates whose density is meant; nats refer to them.
      t0: where the data is taken to lie on the clock, a scalar; default the lower end of `process.interval()`, or in
        float32 the time of logsnr 14 where that is later (nearer to the data, float32 costs 1e-2 nats and more).
      terminal: log density [b] at the upper end of `process.interval()` (t = 1 but for processes singular there);
        default the process's prior, N(0, sigma^2 I), which differs from the true marginal by what of the data is left.
      divergence: `Exact()`, `Hutchinson(count)` or `HutchPlusPlus(count)`.
      solver: any diffrax ODE solver; default `Tsit5()`.
      controller: step sizes; default `adaptive(1e-5)`.
      index: global indices [b], for the probes.
      max_steps: a solve that needs more has failed.
      adjoint: how derivatives pass. The default, `diffrax.RecursiveCheckpointAdjoint()`, has reverse mode alone; with
        `diffrax.ForwardMode()` there is forward mode alone, `jax.jvp` and `jax.jacfwd`; `diffrax.DirectAdjoint()` has
        both, and so `jax.hessian`, at more memory: lower max_steps.

    Returns:
      `LogLikelihood(nats [b], standard_error [b], nfe)`; NaN, and its gradient NaN, where the solve failed.

    Raises:
      ValueError: t0 lies outside the interval.

    Source: Song et al. 2021, eq. 39.
    """
    check_key(key)
    x0 = as_samples("x0", x0)
    t0, high = flow_ends(process, t0, x0.dtype)
    if terminal is None:
        terminal = _Prior(process, high)
    solver = diffrax.Tsit5() if solver is None else solver
    controller = adaptive(1e-5) if controller is None else controller
    times = (jnp.asarray(t0, time_dtype(x0)), jnp.asarray(high, time_dtype(x0)))
    index = default_index(x0.shape[0], index)
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    return _solve(
        key, process, denoiser, x0, times, terminal, divergence, solver, controller, index, max_steps, adjoint
    )


@values_at_once
def flow_ends(process: AbstractGaussianProcess, t0: Scalar | None, dtype: DTypeLike) -> tuple[Scalar, Scalar]:
    """(t0, the interval's upper end), scalars; t0 None: the lower end, or in float32 logsnr 14 where that is later.

    Raises:
      ValueError: t0 lies outside the interval.
    """
    low, high = process.interval()
    if t0 is None:
        t0 = low
        if dtype != jnp.float64:
            t0 = jnp.maximum(low, process.time_from_logsnr(jnp.asarray(FLOAT32_LOGSNR)))
    if is_concrete((t0, low, high)):
        check((t0 >= low) & (t0 < high), f"t0: must lie in the process's interval [{low}, {high}), got {t0}")
    return t0, high


class _Prior(eqx.Module):
    process: AbstractGaussianProcess
    t: Scalar

    def __call__(self, x):
        return prior_log_prob(self.process, x, self.t)


def worst_sample(state: tuple[Sample, Float[Array, "m b"]]) -> Float[Array, ""]:
    """The worst sample's root mean square, a scalar: of x [b, *d] or of its log densities [m, b], whichever is larger.

    Together, the one log density would drown among many features.
    """
    x, total = state
    return jnp.sqrt(jnp.maximum(jnp.max(sum_features(x**2)) / x[0].size, jnp.max(jnp.mean(total**2, axis=0))))


@checked_numbers
def adaptive(tolerance: float) -> diffrax.PIDController:
    """Step sizes for `log_likelihood`: a tolerance, relative and absolute, for the worst sample's root mean square.

    So no sample's error depends on the rest of its batch [b, *d] by more than the tolerance.
    """
    return diffrax.PIDController(tolerance, tolerance, norm=worst_sample)


@eqx.filter_jit
def _solve(key, process, denoiser, x0, times, terminal, divergence, solver, controller, index, max_steps, adjoint):
    probes = divergence.probes(key, x0, index)
    calls: list = []

    def field(t, state, args):
        calls.append(1)
        return divergence(lambda x: velocity(process, denoiser, x, t), state[0], probes)

    rows = jax.eval_shape(field, times[0], (x0, None), None)[1]
    y0 = (x0, jnp.zeros_like(x0, shape=rows.shape, dtype=rows.dtype))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        t0=times[0],
        t1=times[1],
        dt0=None,
        y0=y0,
        stepsize_controller=controller,
        max_steps=max_steps,
        adjoint=adjoint,
        throw=False,
    )
    ok: Bool[Array, ""] = solution.result == diffrax.RESULTS.successful
    x1, totals = (leaf[-1] for leaf in solution.ys or ())
    nats = nan_unless(ok, answered("terminal", terminal(x1), x1.shape[:1]) + jnp.mean(totals, axis=0))
    calls.clear()
    per_step, once = count_evaluations(solver, diffrax.ODETerm(field), calls, y0, *times)
    nfe = jnp.asarray(solution.stats["num_steps"] * per_step + once)
    return LogLikelihood(nats, _standard_error(divergence, totals), nfe)


def _standard_error(divergence, totals):
    if isinstance(divergence, Exact):
        return jnp.zeros_like(totals[0])
    m = totals.shape[0]
    return jnp.std(totals, axis=0, ddof=1) / jnp.sqrt(m) if m > 1 else jnp.full_like(totals[0], jnp.nan)
