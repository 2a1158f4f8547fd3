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
from diffjax import analytic, flow_maps, gan, guidance, inverse, likelihood, losses, process, samplers, vae

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


PAIRS = flow_maps.SortedPairs(dj.UniformTimes(dj.Cosine()))
ONES, WEIGHTS = np.ones((3, 2), np.float32), jnp.array([1.0, -1.0, 1.0])
MEAN, MEANS = jnp.zeros(2), jnp.zeros((2, 2))
STILL = lambda xt, t: xt
IDENTITY = dj.Network(lambda *args: {}, lambda params, x, c_noise, cond=None, *, key=None: x)
OF_X0 = dj.Diffusion(IDENTITY, dj.Cosine(), dj.X0Prediction())
REFUSED = {
    "beta_min": lambda: dj.VariancePreserving(beta_min=-1.0),
    "beta_max": lambda: process.SubVP(beta_min=1.0, beta_max=0.5),
    "sigma_min": lambda: dj.EDM(sigma_min=-1.0),
    "sigma_max": lambda: dj.VarianceExploding(sigma_max=0.001),
    "shift": lambda: dj.Cosine(np.inf),
    "offset": lambda: process.OffsetCosine(-1.0),
    "power": lambda: process.Polynomial(-1.0),
    "mass": lambda: process.CriticallyDamped(mass=-1.0),
    "std": lambda: process.LognormalTimes(dj.EDM(), 0.0, -1.0),
    "data_std": lambda: dj.X0Prediction(-1.0),
    "eta": lambda: dj.DDIM(eta=2.0),
    "interpolation": lambda: dj.DDPM(2.0),
    "gamma": lambda: dj.Jump(gamma=2.0),
    "s_churn": lambda: samplers.Churn(-1.0),
    "c": lambda: losses.PseudoHuber(-1.0),
    "epsilon": lambda: losses.OptimalTransport(-1.0),
    "phi": lambda: guidance.Rescaled(2.0),
    "share": lambda: flow_maps.PartlyEqual(PAIRS, 2.0),
    "levels": lambda: likelihood.Quantisation(1),
    "high": lambda: vae.Bernoulli(1.0, 0.0),
    "slope": lambda: gan.DiracGAN(-1.0),
    "gamma: a finite": lambda: gan.gradient_penalty(lambda x: x[:, :1], jnp.asarray(ONES), gamma=-1.0),
    "covariance": lambda: dj.Gaussian(MEAN, -1.0),
    "covariances": lambda: dj.GaussianMixture(MEANS, -1.0),
    "weights": lambda: analytic.Empirical(ONES, WEIGHTS),
    "scale: must be finite": lambda: guidance.extrapolate(STILL, STILL, np.inf),
    "scale: below 0": lambda: guidance.extrapolate(STILL, STILL, -1.0),
    "bound": lambda: guidance.dynamic_threshold(STILL, bound=-1.0),
    "largest": lambda: guidance.dynamic_threshold(STILL, largest=0.5),
    "std: must be positive": lambda: guidance.dps(dj.Rectified(), STILL, STILL, ONES, -1.0),
    "scale: below 0 it would": lambda: guidance.dps(dj.Rectified(), STILL, STILL, ONES, 1.0, scale=-1.0),
    "weights: a positive sum": lambda: guidance.product(dj.Rectified(), [STILL, STILL], [0.0, 0.0]),
    "weights: must be positive": lambda: guidance.density_mixture([STILL], [STILL], [-1.0]),
    "weight": lambda: guidance.negation(dj.Rectified(), STILL, STILL, 2.0),
    "eta: must not": lambda: dj.reverse_sde(dj.Rectified(), STILL, dj.per_sample_path(KEY, 3, (2,)), eta=-1.0),
    "eta: must not be": lambda: samplers.SEEDS2(eta=-1.0),
    "step": lambda: losses.finite_difference_sliced({}, KEY, jnp.asarray(ONES), score_apply=lambda p, x: -x, step=-1.0),
    "offset: must be": lambda: flow_maps.mean_flow_loss(OF_X0, {}, KEY, jnp.asarray(ONES), pairs=PAIRS, offset=-1.0),
    "mu0": lambda: flow_maps.ct_decay(2, mu0=2.0),
    "t0": lambda: likelihood.flow_encode(dj.Rectified(), STILL, jnp.asarray(ONES), t0=2.0),
    "ts": lambda: losses.LevelTimes([2.0]),
    "step_size": lambda: samplers.langevin(KEY, lambda x: -x, jnp.asarray(ONES), steps=3, step_size=-1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_number_out_of_range_is_refused_inside_jit_too(message):
    for run in (REFUSED[message], jax.jit(lambda: (REFUSED[message](), jnp.zeros(()))[1])):
        with pytest.raises(ValueError, match=f"^{message}\\b"):
            run()


def test_a_schedule_of_a_traced_number_may_be_wrapped():
    """Its functions have no leaves to be looked at, and their values are tracers all the same."""

    @quick_jit
    def alphas(scale):
        made = process.Schedule(lambda t: scale * (1 - t), lambda t: t)
        clipped = process.Clipped(made, 8.0, -8.0)
        return process.Shifted(made, 0.0).alpha(0.5), process.Retimed(clipped, clipped).alpha(0.5)

    np.testing.assert_allclose(alphas(1.0), 0.5, rtol=1e-6)


def test_a_schedule_that_closes_over_a_traced_number_may_be_made_under_grad_and_vmap():
    """Outside jit, where an array of no traced number is a value, but those of the schedule are not."""

    def alphas(scale):
        made = process.Schedule(lambda t: scale * (1 - t), lambda t: t)
        shifted, clipped = process.Shifted(made, 0.0), process.Clipped(made, 8.0, -8.0)
        retimed = process.Retimed(made, process.Clipped(dj.Cosine(), 8.0, -8.0))
        return jnp.stack([shifted.alpha(0.5), clipped.alpha(0.5) / clipped.sigma(0.5), retimed.alpha(0.5)])

    eager = alphas(1.0)
    np.testing.assert_allclose(jax.jvp(alphas, (1.0,), (1.0,))[0], eager, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(alphas)(jnp.ones(2))[1], eager, rtol=1e-5)
    assert np.all(np.isfinite(jax.jacrev(alphas)(1.0)))
