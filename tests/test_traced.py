"""Under the user's own jit: the values are those of eager calls, whatever came first, and where a thing was made."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import quick_jit
from registry import ALL_GRIDS, ALL_STEPPERS, QUICK_STEPPERS, each_stepper

import diffjax as dj
from diffjax import analytic, guidance, inverse, likelihood, losses, process, samplers

KEY = jax.random.key(0)
_COUNT = itertools.count(1)


def half(x, t):
    return 0.5 * x


def third(x, t):
    return x / 3


def new_grid():
    """Times that nobody has asked for before in this process, so that nothing is remembered of them."""
    return np.array([0.9, 0.6, 0.3]) - 1e-4 * next(_COUNT)


def check_inside_jit(make, call, rtol=2e-6, passed=False):
    """call(made, key, x, ts) first inside jit, with what was made outside and what is made inside, then outside jit, on
    another batch: one answer. `passed`: also with what is an argument of the jitted function."""
    outside, x = make(), jnp.array([[1.0], [-0.5], [0.3]])
    grids = [new_grid() for _ in range(2 + passed)]

    @quick_jit
    def inside_jit(key, x, argument):
        made = (outside, make(), argument)[: 2 + passed]
        return [call(thing, key, x, ts) for thing, ts in zip(made, grids, strict=True)]

    for first, ts in zip(inside_jit(KEY, x[:2], outside if passed else None), grids, strict=True):
        for inside, eager in zip(jax.tree.leaves(first), jax.tree.leaves(call(outside, KEY, x, ts)), strict=True):
            assert np.all(np.isfinite(eager))
            np.testing.assert_allclose(inside, eager[:2] if jnp.ndim(inside) else eager, rtol=rtol, atol=rtol)


NAMED = ("ddpm", "dpm-solver-2", "dpm-solver-3", "dpmpp-2s", "dpmpp-3m", "unipc-3", "deis-3", "lms-3", "ipndm-4")
"""Beside one of each kind: those whose weights were once wrong, or none, where jit came first."""


@pytest.mark.parametrize("name", each_stepper((*QUICK_STEPPERS, *NAMED)))
def test_a_steppers_first_use_may_be_inside_jit(name):
    """Of a process that is known, with the stepper made outside, inside, and passed as an argument, numbers traced."""
    made, call = dj.Cosine(), lambda stepper, key, x, ts: dj.sample(key, made, half, x, ts, stepper)
    check_inside_jit(ALL_STEPPERS[name], call, passed=True)


def sampled(stepper=dj.DDIM):
    return lambda made, key, x, ts: dj.sample(key, made, half, x, ts, stepper())


def solved(solve, **options):
    def call(made, key, x, ts):
        solution = solve(dj.probability_flow(made, half), x, ts, **options)
        return solution.x0, jnp.all(solution.ok)

    return call


def guided(made, key, x, ts):
    """`made` is a scale."""
    return dj.sample(key, dj.Cosine(), guidance.extrapolate(half, third, made), x, ts, dj.DDIM())


def twice(x):
    return 2 * x


def lossy(made, key, x, ts):
    network = dj.Network(lambda *_: {"w": jnp.ones(())}, lambda p, x, c, cond=None, *, key=None: p["w"] * x)
    given = (dj.Diffusion(network, made, dj.VPrediction()), {"w": 1.0}, key, x[:2])
    times = process.ImportanceTimes(process.LogsnrTimes(made))
    denoising = dj.denoising_loss(*given, times=times, weighting=losses.native)[0]
    return denoising, losses.negative_discrete_elbo(*given, ts=ts)[0]


def in_box(made, key, x, ts):
    box = analytic.Box(-4.0, 4.0, 20)
    start = jnp.exp(-0.5 * analytic.cell_centres(box)[:, 0] ** 2)
    density = start / jnp.sum(start * analytic.cell_widths(box)[0])
    sde = process.SDE(lambda x, t: -x, lambda x, t: jnp.sqrt(2.0))
    return analytic.fokker_planck(sde, box, density, np.array([0.0, 0.1, ts[2]])).sum()


def on_made_grids(made, key, x, ts):
    grids = [make(made, 2, ends=(float(ts[0]), float(ts[2]))) for make in ALL_GRIDS.values()]
    stepper, grid = dj.samplers.recommended(made, 3)
    return jnp.stack([jnp.asarray(grid[1]) for grid in grids]).sum(), dj.sample(key, made, half, x, grid, stepper)


ENTRIES = {
    "chain": (lambda: process.DiscreteChain(process.linear_betas(47, 0.002, 0.4)), sampled()),
    "learned": (lambda: process.MonotoneLogsnr(jax.random.key(1), width=8), sampled(dj.UniPC)),
    "vp": (dj.VariancePreserving, sampled(samplers.IPNDM)),
    "grids": (dj.Cosine, on_made_grids),
    "guided": (lambda: jnp.array(1.5), guided),
    "sample_n": (
        dj.Cosine,
        lambda made, key, x, ts: dj.sample_n(key, made, half, (1,), len(x), ts=ts, stepper=dj.UniPC()),
    ),
    "integrate": (dj.Cosine, solved(dj.integrate, solver=samplers.as_diffrax_solver(dj.UniPC()))),
    "integrate-diffrax": (dj.Cosine, solved(dj.integrate, solver=diffrax.Heun())),
    "integrate_each": (
        dj.Cosine,
        solved(samplers.integrate_each, solver=diffrax.Tsit5(), controller=diffrax.PIDController(1e-3, 1e-3)),
    ),
    "log_likelihood": (
        dj.Cosine,
        lambda made, key, x, ts: dj.log_likelihood(key, made, half, x, t0=float(ts[2])).nats,
    ),
    "losses": (dj.Cosine, lossy),
    "flow_encode": (dj.Cosine, lambda made, key, x, ts: likelihood.flow_encode(made, half, x, t0=float(ts[2])).latent),
    "invert": (dj.Cosine, lambda made, key, x, ts: likelihood.invert(made, half, x, ts, dj.UniPC())),
    "inpaint": (
        dj.Cosine,
        lambda made, key, x, ts: inverse.inpaint(key, made, half, x, ts, np.ones(1), jnp.ones((1, 1)), times=2),
    ),
    "diffpir": (
        dj.Cosine,
        lambda made, key, x, ts: inverse.diffpir(key, made, half, x, ts, twice, jnp.ones((1, 1)), 0.1),
    ),
    "twisted_smc": (
        dj.Cosine,
        lambda made, key, x, ts: (
            inverse.twisted_smc(key, made, half, x[:2], ts, twice, jnp.ones((1, 1)), 0.5).log_weights
        ),
    ),
    "sdedit": (dj.Cosine, lambda made, key, x, ts: inverse.sdedit(key, made, half, x, ts, dj.UniPC())),
    "restart": (
        dj.Cosine,
        lambda made, key, x, ts: samplers.sample_with_restarts(
            key, made, half, x, ts, dj.UniPC(), restarts=[samplers.Restart(0.3, 0.5, 2, 1)]
        ),
    ),
    "optimise_grid": (
        dj.Cosine,
        lambda made, key, x, ts: samplers.optimise_grid(
            key, made, half, (2, 1), dj.DDIM(), ts, reference_steps=2, steps=2
        )[1],
    ),
    "fokker_planck": (dj.Cosine, in_box),
}


SLOW = ("grids", "integrate-diffrax", "integrate_each", "log_likelihood", "flow_encode", "optimise_grid", "restart")
SLOW += ("diffpir", "inpaint", "twisted_smc", "learned", "losses", "fokker_planck")
entries = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [], id=name) for name in ENTRIES]


@pytest.mark.parametrize("name", entries)
def test_a_first_call_may_be_inside_jit(name):
    check_inside_jit(*ENTRIES[name], rtol=2e-5 if name == "log_likelihood" else 2e-6)
