"""Weak errors without Monte Carlo: on Gaussian data a step is affine in the state and in its noise, x' = A x + B z, so
that its matrices carry the covariance exactly, C' = A C A' + B B'.

    output_variance(stepper, process, data_variance, ts)              one of our steppers, its memory part of the state
    output_variance_by_diffrax(solver, process, data_variance, ts)    the reverse SDE by a solver of diffrax

A fitted order wants a grid that ends amid the noise: for Gaussian data the leading error of the variance by
Euler-Maruyama is a difference between the two ends, and g = 0 at the data hides it.
"""

import contextlib
import sys
from unittest import mock

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import diffjax as dj
from diffjax.samplers import Step, step_weights

CHUNK = 64
"""Steps looked at together: one compilation serves every number of steps."""


def output_variance(stepper, process, data_variance, ts):
    """The variance of the state at ts[-1], from the exact marginal at ts[0], for data N(0, data_variance) in 1-D."""
    weights = jax.tree.map(np.asarray, step_weights(stepper, process, np.asarray(ts, np.float64)))
    ts = np.asarray(ts, np.float64)
    maps = _in_chunks(_stepper_maps, (stepper, _denoiser(process, data_variance)), (ts[:-1], ts[1:], weights))
    return _carried(maps, marginal_variance(process, data_variance, ts[0]))


def output_variance_by_diffrax(solver, process, data_variance, ts, eta=1.0):
    """The same by one of diffrax's solvers, for `reverse_sde` with this eta."""
    ts = np.asarray(ts, np.float64)
    fixed = solver, process, _denoiser(process, data_variance), jnp.asarray(eta, float)
    return _carried(
        _in_chunks(_solver_maps, fixed, (ts[:-1], ts[1:])), marginal_variance(process, data_variance, ts[0])
    )


def marginal_variance(process, data_variance, t):
    """alpha^2 V + sigma^2, the truth."""
    t = jnp.asarray(t, float)
    return float(process.alpha(t) ** 2 * data_variance + process.sigma(t) ** 2)


def fitted(steps, errors):
    """The order: minus the slope of log error against log steps."""
    return float(-np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0])


@eqx.filter_jit
def _stepper_maps(fixed, rows):
    stepper, denoiser = fixed
    x0 = jnp.zeros((1, 1))
    state, unravel = ravel_pytree((x0, stepper.init(x0)))
    keys = jax.random.split(jax.random.key(0), 1) if stepper.stochastic else None

    def step_once(state, t, s, row):
        x, remembered = unravel(state)
        return ravel_pytree(stepper.step(denoiser, x, Step(t, s, row, keys), remembered))[0]

    def step(both, *row):
        with _noise(both[state.size :]):
            return step_once(both[: state.size], *row)

    with _noise(None) as drawn:
        first = jax.tree.map(lambda row: row[0], rows[2])
        jax.eval_shape(lambda x, z: stepper.step(denoiser, x, Step(z, z, first, keys), unravel(state)[1]), x0, x0[0, 0])
    return _matrices(step, state.size + drawn[0], rows)


@eqx.filter_jit
def _solver_maps(fixed, rows):
    solver, process, denoiser, eta = fixed

    def step(both, t, s):
        y = both[:1, None]
        terms = dj.reverse_sde(process, denoiser, _Given(both[1:]), eta)
        state = solver.init(terms, -t, -s, y, None)
        return solver.step(terms, -t, -s, y, None, state, False)[0][0]

    return _matrices(step, 3, rows)


class _Given(diffrax.AbstractBrownianPath):
    """One Brownian step from two standard normals: W = sqrt(dt) z_0, and its space-time area H = sqrt(dt/12) z_1."""

    z: jax.Array

    levy_area = diffrax.SpaceTimeLevyArea

    @property
    def t0(self):
        return -jnp.inf

    @property
    def t1(self):
        return jnp.inf

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        dt = jnp.asarray(t1) - t0
        W = (jnp.sqrt(dt) * self.z[0]).reshape(1, 1)
        H = (jnp.sqrt(dt / 12) * self.z[1]).reshape(1, 1)
        return diffrax.SpaceTimeLevyArea(dt=dt, W=W, H=H) if use_levy else W


def _denoiser(process, data_variance):
    return dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), jnp.asarray(data_variance, float)), process)


@contextlib.contextmanager
def _noise(values):
    """`normal_like` answers with these numbers, in turn (with zeros for None); yields how many were drawn."""
    drawn = [0]

    def normal_like(keys, x):
        drawn[0] += 1
        return jnp.zeros_like(x) if values is None else jnp.full_like(x, values[drawn[0] - 1])

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("diffjax.samplers.") and hasattr(module, "normal_like"):
                stack.enter_context(mock.patch.object(module, "normal_like", normal_like))
        yield drawn


def _matrices(step, size, rows):
    """[A B] of every step, [n, k, size], from what the affine map `step(both, *row)` makes of each unit vector."""

    def one(*row):
        at_zero = step(jnp.zeros(size), *row)
        return jax.vmap(lambda unit: step(unit, *row) - at_zero)(jnp.eye(size)).T

    return jax.vmap(one)(*rows)


def _in_chunks(maps, fixed, rows):
    """maps(fixed, rows) for rows [n, ...], so many at a time; the last chunk is filled up with the last row."""
    n = len(rows[0])
    found = []
    for begin in range(0, n, CHUNK):
        places = np.minimum(np.arange(begin, begin + CHUNK), n - 1)
        found.append(np.asarray(maps(fixed, jax.tree.map(lambda row, at=places: jnp.asarray(row[at]), rows))))
    return np.concatenate(found)[:n]


def _carried(maps, variance):
    """The first variance after all steps, from the given one and no memory."""
    k = maps.shape[1]
    C = np.zeros((k, k))
    C[0, 0] = variance
    for both in maps:
        a, b = both[:, :k], both[:, k:]
        C = a @ C @ a.T + b @ b.T
    return float(C[0, 0])
