"""Encoding to latents and back: the probability flow run from data to noise, and again to data.

    flow_encode   x0 --> flow, t rises --> x1        any diffrax solver        flow_decode   x1 --> flow, t falls --> x0
    invert        x0 --> a stepper, up the grid --> x1      DDIM inversion          sample        x1 --> it, down --> x0
    slerp         (x1, x1') --> a latent between them, of a norm between theirs

What a fixed grid's inversion loses is of the stepper's order; flow_encode and flow_decode lose the solver's tolerance.

Source: Song et al. 2021 (score SDE), section 4.3; Song et al. 2021 (DDIM), section 5.4; Shoemake 1985.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffjax._arrays import (
    as_samples,
    check,
    check_one_a_sample,
    check_times,
    expand,
    is_concrete,
    mean_features,
    nan_unless,
    sum_features,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, GridLike, Sample, Scalar, Time
from diffjax.likelihood._flow import flow_ends
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers import AbstractStepper, Solution, Step, count_evaluations, step_weights, velocity
from diffjax.samplers._ddim import DDIM
from diffjax.samplers._diffrax import integrate, probability_flow


class Encoding(NamedTuple):
    """What `flow_encode` returns."""

    latent: Float[Array, "b *d"]
    """The state at the interval's upper end; NaN where the solve failed."""
    nfe: Int[Array, ""]
    """Evaluations of the denoiser, those of rejected steps included."""
    ok: Bool[Array, ""]
    """Whether the solve got there."""


@checked_numbers
def flow_encode(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    x0: Sample,
    *,
    t0: Scalar | None = None,
    solver: diffrax.AbstractSolver | None = None,
    controller: diffrax.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> Encoding:
    """The latent that the probability flow takes x0 to, at the upper end of `process.interval()`. A jitted entry point.

    Args:
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      x0: data [b, *d], taken to lie at t0.
      t0: a scalar; default as in `log_likelihood`.
      solver: any diffrax ODE solver; default `Tsit5()`.
      controller: step sizes; default a tolerance of 1e-5, relative and absolute, of the worst sample's root mean square
      max_steps: a solve that needs more has failed.
      adjoint: how derivatives pass, as in `log_likelihood`.

    Returns:
      `Encoding(latent [b, *d], nfe, ok)`; the latent has about the process's prior as its distribution.

    Raises:
      ValueError: t0 lies outside the interval.

    Source: Song et al. 2021 (score SDE), section 4.3 and appendix D.3.
    """
    x0 = as_samples("x0", x0)
    low, high = (jnp.asarray(t, time_dtype(x0)) for t in flow_ends(process, t0, x0.dtype))
    solver, controller = _defaults(solver, controller)
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    return _encode(process, denoiser, x0, low, high, solver, controller, max_steps, adjoint)


@checked_numbers
def flow_decode(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    latent: Sample,
    *,
    t0: Scalar | None = None,
    solver: diffrax.AbstractSolver | None = None,
    controller: diffrax.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> Solution:
    """The data at t0 that the probability flow takes to this latent [b, *d]: the inverse of `flow_encode`.

    Args:
      latent: [b, *d] at the upper end of `process.interval()`.
      process, denoiser, t0, solver, controller, max_steps: as `flow_encode`'s.
      adjoint: as in `integrate`.

    Returns:
      `Solution(x0 [b, *d], nfe, ok)`.

    Raises:
      ValueError: t0 lies outside the interval.

    Source: Song et al. 2021 (score SDE), section 4.3.
    """
    latent = as_samples("latent", latent)
    low, high = flow_ends(process, t0, latent.dtype)
    solver, controller = _defaults(solver, controller)
    ts = jnp.stack([jnp.asarray(t, time_dtype(latent)) for t in (high, low)])
    terms = probability_flow(process, denoiser)
    return integrate(terms, latent, ts, solver=solver, controller=controller, max_steps=max_steps, adjoint=adjoint)


def _defaults(solver, controller):
    solver = diffrax.Tsit5() if solver is None else solver
    worst = lambda x: jnp.sqrt(jnp.max(mean_features(x**2)))  # no sample's error hides among the rest of its batch
    return solver, diffrax.PIDController(1e-5, 1e-5, norm=worst) if controller is None else controller


@eqx.filter_jit
def _encode(process, denoiser, x0, t0, t1, solver, controller, max_steps, adjoint):
    calls: list = []

    def field(t, x, args):
        calls.append(1)
        return velocity(process, denoiser, x, t)

    term = diffrax.ODETerm(field)
    steps = {"dt0": None, "stepsize_controller": controller, "max_steps": max_steps, "adjoint": adjoint}
    solution = diffrax.diffeqsolve(term, solver, t0=t0, t1=t1, y0=x0, throw=False, **steps)
    ok = solution.result == diffrax.RESULTS.successful
    calls.clear()
    per_step, once = count_evaluations(solver, term, calls, x0, t0, t1)
    ys: Any = solution.ys
    return Encoding(nan_unless(ok, ys[-1]), jnp.asarray(solution.stats["num_steps"] * per_step + once), ok)


def invert(
    process: AbstractGaussianProcess,
    denoiser: Denoiser,
    x0: Sample,
    ts: GridLike,
    stepper: AbstractStepper | None = None,
) -> Sample:
    """A sampler's latent for x0 on its grid: the stepper run up the grid, each step from s to t > s.

    With `DDIM()`, the default, this is DDIM inversion, x_t = r x_s + (alpha_t - r alpha_s) D(x_s, s), r =
    sigma_t/sigma_s. `sample(key, process, denoiser, latent, ts, stepper, final_denoise=False)` brings it back, to the
    stepper's order in the grid. A jitted entry point.

    Args:
      process: the forward process.
      denoiser: `(xt, t) -> x0_hat`.
      x0: data [b, *d], taken to lie at ts[-1].
      ts: the sampler's descending grid [n + 1], inside `process.interval()`.
      stepper: a deterministic one; default `DDIM()`.

    Returns:
      The latent [b, *d] at ts[0].

    Raises:
      ValueError: the stepper is stochastic or `Jump`, ts does not descend, or sigma is 0 at its end.

    Source: Song et al. 2021 (DDIM), section 4.3; Dhariwal & Nichol 2021, appendix F.
    """
    x0 = as_samples("x0", x0)
    stepper = DDIM() if stepper is None else stepper
    if stepper.stochastic:
        raise ValueError(f"stepper: only a deterministic one can be run up the grid, got {stepper}")
    if stepper.order < 1:
        raise ValueError(
            f"stepper: {type(stepper).__name__} steps a flow map, which goes down the grid alone: take DDIM(), "
            'which follows a map of all pairs (knows="any") as a denoiser'
        )
    dtype = time_dtype(x0)
    if is_concrete(ts):
        ts = np.asarray(ts).astype(dtype).astype(np.float64)
        check_times(ts, "descend")
    check(process.sigma(ts[-1]) > 0, f"ts: must end where sigma is positive, got sigma = 0 at t = {ts[-1]}")
    up = ts[::-1]
    weights = step_weights(stepper, process, up)
    stepper.check_denoiser(denoiser, process, up, weights)
    up, weights = jax.tree.map(lambda w: jnp.asarray(w, dtype), (up, weights))
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(w)) for w in jax.tree.leaves(weights)]))
    check(finite, f"stepper: its weights up this grid are not finite, got {type(stepper).__name__}")
    return _climb(denoiser, x0, up, weights, stepper)


@eqx.filter_jit
def _climb(denoiser, x0, up, weights, stepper):
    def body(carry, inputs):
        x, state = stepper.step(denoiser, carry[0], Step(*inputs), carry[1])
        return (x.astype(x0.dtype), state), None

    return jax.lax.scan(body, (x0, stepper.init(x0)), (up[:-1], up[1:], weights))[0][0]


def slerp(a: Sample, b: Sample, weight: Time) -> Sample:
    """Spherical interpolation between latents, each sample on its own great circle.

        (sin((1 - w) omega) a + sin(w omega) b)/sin omega,    omega the angle between a and b

    Between draws of N(0, sigma^2 I) in many features it has about their norm, where a straight line's middle is
    1/sqrt(2) of it. Near-parallel latents are joined by the straight line; opposite ones have no one great circle, and
    are joined by a straight line too.

    >>> import jax.numpy as jnp
    >>> from diffjax.likelihood import slerp
    >>> print(slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 0.5).round(3))
    [[0.707 0.707]]

    Args:
      a: latents [b, *d].
      b: as many, [b, *d].
      weight: 0 gives a, 1 gives b; a scalar or one for each sample, [b].

    Raises:
      ValueError: a and b differ in shape.

    Source: Shoemake 1985, section 3.3; the angle by Kahan's formula, which keeps its digits for small ones.
    """
    a = as_samples("a", a)
    b = as_samples("b", b, a.shape)
    check_one_a_sample(weight, a, "weight")
    w = jnp.asarray(weight, a.dtype)
    tiny = jnp.finfo(a.dtype).tiny
    u, v = (x / expand(jnp.sqrt(jnp.maximum(sum_features(x**2), tiny)), x) for x in (a, b))
    apart, along = sum_features((u - v) ** 2), sum_features((u + v) ** 2)
    curved = (apart > 1e-6) & (along > 1e-6)
    apart, along = (jnp.where(curved, square, 1.0).astype(a.dtype) for square in (apart, along))
    omega = 2 * jnp.arctan2(jnp.sqrt(apart), jnp.sqrt(along))
    of_a = jnp.where(curved, jnp.sin((1 - w) * omega) / jnp.sin(omega), 1 - w)
    of_b = jnp.where(curved, jnp.sin(w * omega) / jnp.sin(omega), w)
    return expand(of_a, a) * a + expand(of_b, b) * b
