"""Continuous-time consistency: its tangent against derivatives of the map itself, and its loss by hand."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import each_process
from test_consistency import DATA, exact_student, refused, waves

import diffjax as dj
from diffjax import flow_maps, losses, samplers
from diffjax.process import Circle

QUICK = ("cosine", "edm", "rectified")


@eqx.filter_jit
def tangents(diffusion, exact, params, x0, eps, t):
    """g by the loss's own means, and cos(D) dX/dphi/scale along the flow by derivatives of the map in x and t."""
    process, circle = diffusion.process, Circle()
    g = flow_maps.consistency_tangent(diffusion, params, x0, eps, t, teacher=exact)[1]
    xt = dj.perturb(process, x0, eps, t)
    model = dj.make_flow_map(diffusion, params, knows="zero")
    flow = samplers.velocity(process, exact, xt, t)
    rate = jax.jvp(lambda x, t: model.move(x, t, jnp.zeros_like(t)), (xt, t), (flow, jnp.ones_like(t)))[1]
    phi, turn = jax.jvp(lambda t: circle.clock(process, t), (t,), (jnp.ones_like(t),))
    gap = phi - circle.clock(process, jnp.zeros(()))
    return g, jnp.cos(gap)[:, None] * rate / turn[:, None] / circle.scale(process, jnp.zeros(()))


@pytest.mark.parametrize("name", each_process(QUICK))
def test_the_tangent_is_the_maps_derivative_along_the_flow_and_zero_at_the_exact_map(name):
    distribution, diffusion = exact_student(name)
    exact = dj.exact_denoiser(distribution, diffusion.process)
    x0, eps = map(jnp.asarray, np.random.default_rng(1).normal(size=(2, 5, 2)))
    inner = jnp.array([0.05, 0.31, 0.52, 0.77, 0.94])
    wave = waves(2, 1)[0]
    g, _ = tangents(diffusion, exact, wave | {"size": jnp.asarray(0.0)}, x0, eps, inner)
    assert np.max(np.abs(g)) < 1e-11
    ends = jnp.array([1e-4, 0.01, 0.5, 1 - 1e-6, 1.0])
    g, _ = tangents(diffusion, exact, wave | {"size": jnp.asarray(0.0)}, x0, eps, ends)
    assert np.max(np.abs(g)) < 1e-9  # eps_hat loses digits as sigma -> 0
    g, said = tangents(diffusion, exact, wave | {"size": jnp.asarray(0.5)}, x0, eps, inner)
    assert np.max(np.abs(g)) > 0.05
    np.testing.assert_allclose(g, said, rtol=1e-8, atol=1e-10)


def test_the_tangent_is_zero_at_a_mixtures_exact_map():
    data = dj.GaussianMixture(jnp.array([[-1.0, 0.3], [0.8, -0.6]]), jnp.array([0.2, 0.5]), jnp.array([0.4, 0.6]))
    _, diffusion = exact_student("cosine", data)
    exact = dj.exact_denoiser(data, diffusion.process)
    x0, eps = map(jnp.asarray, np.random.default_rng(3).normal(size=(2, 3, 2)))
    params = waves(2, 1)[0] | {"size": jnp.asarray(0.0)}
    tangent = lambda *of: flow_maps.consistency_tangent(diffusion, params, *of, teacher=exact)[1]
    assert np.max(np.abs(jax.jit(tangent)(x0, eps, jnp.array([0.2, 0.6, 0.95])))) < 1e-9


@pytest.mark.parametrize("name", QUICK)
def test_the_conditional_velocitys_tangent_has_the_flows_as_its_mean(name):
    """Training's g over x0 given xt is distillation's, for a wrong map, at half the warm-up too."""
    distribution, diffusion = exact_student(name)
    process, n = diffusion.process, 4000
    params = waves(2, 1)[0] | {"size": jnp.asarray(0.5)}
    mean, variance = map(jnp.asarray, DATA)

    @eqx.filter_jit
    def both(process, noise, t, warm_up):
        alpha, sigma = process.alpha(t), process.sigma(t)
        xt = alpha * mean + 0.7 * jnp.sqrt(alpha**2 * variance + sigma**2)
        gain = variance * alpha / (alpha**2 * variance + sigma**2)
        x0 = (
            mean + gain * (xt - alpha * mean) + jnp.sqrt(variance * sigma**2 / (alpha**2 * variance + sigma**2)) * noise
        )
        eps = (xt - alpha * x0) / sigma
        student = dj.Diffusion(diffusion.network, process, diffusion.parameterisation)
        of = functools.partial(flow_maps.consistency_tangent, student, params, warm_up=warm_up)
        exact = dj.exact_denoiser(distribution, process)
        return of(x0, eps, t)[1], of(x0[:1], eps[:1], t, teacher=exact)[1][0]

    for t, warm_up in ((0.35, 1.0), (0.8, 0.5)):
        noise = jnp.asarray(np.random.default_rng(7).normal(size=(n, 2)))
        drawn, exact = map(np.asarray, both(process, noise, jnp.asarray(t), jnp.asarray(warm_up)))
        error = drawn.std(axis=0, ddof=1) / np.sqrt(n)
        assert np.all(error > 0)
        assert np.all(np.abs(drawn.mean(axis=0) - exact) < 4.5 * error)


def affine(seen=None):
    """y = a z + b phi + cond; what it is given is put in `seen`."""

    def apply(params, z, phi, cond=None, *, key=None):
        if seen is not None:
            seen.append((z, phi))
        return params["a"] * z + params["b"] * phi[:, None] + (0.0 if cond is None else cond)

    return dj.Network(lambda *_: None, apply)


@pytest.mark.parametrize("c", [0.1, None])
def test_loss_and_gradient_by_hand(c):
    """Of an affine network, sigma(0) > 0, half of the warm-up, a weight and data of a standard deviation not 1."""
    process, sd, warm_up = dj.EDM(0.1, 20.0), 0.5, 0.4
    member, params = dj.parameterisation.EDMPrediction(sd, clock="angle"), {"a": 0.3, "b": -0.2}
    x0 = jnp.asarray(sd * np.random.default_rng(0).normal(size=(6, 2)))
    times = dj.process.LognormalTimes(process, -1.0, 1.4)
    corrected = lambda *args, **kwargs: (times(*args, **kwargs)[0], jnp.full(6, 1.5))
    weighting = lambda process, parameterisation, t, s: 2.0 + t + s

    def run(params, seen=None):
        diffusion = dj.Diffusion(affine(seen), process, member)
        return flow_maps.continuous_consistency_loss(
            diffusion,
            params,
            jax.random.key(0),
            x0,
            times=corrected,
            warm_up=warm_up,
            c=c,
            weighting=weighting,
        )

    seen = []
    loss, aux = run(params, seen)
    z, phi = (np.asarray(part.primal) for part in seen[0])  # of the jvp
    t, sigma = np.asarray(aux["t"]), np.asarray(process.sigma(aux["t"]))
    np.testing.assert_allclose(phi, np.arctan2(sigma, sd), rtol=1e-12)
    np.testing.assert_allclose(aux["t"], times(jax.random.split(jax.random.key(0), 3)[0], 6)[0])
    cos, sin = np.cos(phi)[:, None], np.sin(phi)[:, None]
    eps = (z * np.hypot(sd, sigma)[:, None] - np.asarray(x0)) / sigma[:, None]
    data = cos * eps - sin * np.asarray(x0) / sd
    u = -(params["a"] * z + params["b"] * phi[:, None])  # F = -v
    derivative = -(params["a"] * data + params["b"])
    gap = (phi - np.arctan2(0.1, sd))[:, None]
    g = np.cos(gap) * (np.cos(gap) * (data - u) - warm_up * np.sin(gap) * (z + derivative))
    size = np.sqrt(np.mean(g**2, axis=1))
    np.testing.assert_allclose(aux["tangent"], size, rtol=1e-9)
    step = g if c is None else g / (size[:, None] + c)
    weight = 1.5 * (2.0 + t)
    np.testing.assert_allclose(aux["per_sample"], weight * np.mean(step**2, axis=1), rtol=1e-9)
    np.testing.assert_allclose(loss, np.mean(aux["per_sample"]), rtol=1e-12)
    slope = jax.jit(jax.grad(lambda p: run(p)[0]))(params)
    # u is linear in a and b, by -z and -phi
    np.testing.assert_allclose(slope["a"], np.mean(weight * np.mean(2 * step * z, axis=1)), rtol=1e-8)
    np.testing.assert_allclose(slope["b"], np.mean(weight * np.mean(2 * step, axis=1) * phi), rtol=1e-8)


def test_the_papers_density_is_a_lognormal_one():
    """log(sd tan(phi)) ~ N(-1, 1.4^2), whatever sd, where the interval cuts off nothing."""
    times = dj.process.LognormalTimes(dj.Cosine(), -1.0, 1.4)
    t = times.quantile(jnp.array([0.1, 0.5, 0.9]))
    for sd in (0.5, 2.0):
        level = jnp.log(sd * jnp.tan(Circle(sd).clock(times.process, t)))
        np.testing.assert_allclose(level, -1.0 + 1.4 * np.array([-1.2815515655, 0.0, 1.2815515655]), atol=1e-8)


def test_a_learned_weight_is_the_uncertainty_loss_of_the_aux():
    process = dj.Cosine()
    diffusion = dj.Diffusion(affine(), process, dj.parameterisation.EDMPrediction(clock="angle"))
    params, x0 = {"a": 0.3, "b": 0.1}, jnp.ones((4, 2))
    uncertainty = losses.Uncertainty(2)
    learned = {"bias": jnp.asarray(0.7, jnp.float64), "weights": jnp.zeros(4)}

    @jax.jit
    def run(params):
        times = dj.process.LognormalTimes(process, -1.0, 1.4)
        aux = flow_maps.continuous_consistency_loss(diffusion, params, jax.random.key(0), x0, times=times)[1]
        return aux["per_sample"], losses.uncertainty_loss(diffusion, learned, aux, uncertainty=uncertainty)[0]

    per_sample, weighted = run(params)
    np.testing.assert_allclose(weighted, np.mean(per_sample * np.exp(-0.7) + 0.7), rtol=1e-12)


def test_what_has_no_bounded_derivative_is_refused_with_a_remedy():
    x, times = jnp.ones((2, 3)), dj.process.LognormalTimes(dj.Cosine())
    of = lambda member, process=None: dj.Diffusion(affine(), process or dj.Cosine(), member)
    run = lambda diffusion, **more: flow_maps.continuous_consistency_loss(
        diffusion, {"a": 0.3, "b": 0.1}, jax.random.key(0), x, **({"times": times} | more)
    )
    for member in (dj.EpsPrediction(clock="angle"), dj.parameterisation.ScorePrediction(clock="angle")):
        refused("parameterisation: .*EDMPrediction", run, of(member))
    refused('clock: .*clock="angle"', run, of(dj.parameterisation.EDMPrediction()))
    v = of(dj.VPrediction(clock="angle"), dj.EDM())
    refused("parameterisation: v diverges on EDM", run, v)
    with pytest.raises(ValueError, match="parameterisation: v diverges on EDM"):
        jax.jit(lambda: run(v)[0])()
    good = of(dj.parameterisation.EDMPrediction(clock="angle"))
    other = dj.exact_denoiser(dj.Gaussian(jnp.zeros(3), 1.0), dj.VariancePreserving())
    refused("teacher: .*retime", run, good, teacher=other)
    refused("warm_up: must lie in", run, good, warm_up=1.5)
    refused("warm_up: must lie in", run, good, warm_up=-0.5)
    refused("c: must be positive", run, good, c=0.0)
    assert np.isfinite(run(good)[0])
    assert np.isfinite(run(of(dj.VPrediction(clock="angle")))[0])
