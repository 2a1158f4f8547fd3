"""Latents against the closed-form flow of Gaussian data, and interpolation against rotations by hand."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import gaussian, images

import diffjax as dj
from diffjax.likelihood import flow_decode, flow_encode, invert, slerp

KEY = jax.random.key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_encoding_is_the_flow_map_and_decoding_its_inverse(name):
    process, data = {"vp": dj.VariancePreserving, "edm": dj.EDM}[name](), images()
    x0, denoiser = data.sample(KEY(0), 6), dj.exact_denoiser(data, process)
    low, high = process.interval()
    found = flow_encode(process, denoiser, x0)
    expected = dj.exact_flow_map(data, process).move(x0, low, high)
    scale = float(process.sigma(high))
    np.testing.assert_allclose(found.latent / scale, expected / scale, atol=1e-4)
    assert found.ok
    assert 0 < int(found.nfe) < 200
    back = flow_decode(process, denoiser, found.latent)
    print("round trip", float(jnp.max(jnp.abs(back.x0 - x0))), "nfe", int(found.nfe), int(back.nfe))
    np.testing.assert_allclose(back.x0, x0, atol=3e-4)


@pytest.mark.slow
def test_any_solver_and_a_failure_that_is_a_value():
    process, data = dj.VariancePreserving(), gaussian()
    x0, denoiser = data.sample(KEY(0), 6), dj.exact_denoiser(data, process)
    t0 = 0.01
    choices = {"t0": t0, "solver": diffrax.Dopri8(), "controller": diffrax.PIDController(1e-8, 1e-8)}
    found = flow_encode(process, denoiser, x0, **choices)
    expected = dj.exact_flow_map(data, process).move(x0, t0, process.interval()[1])
    np.testing.assert_allclose(found.latent, expected, atol=1e-6)
    failed = flow_encode(process, denoiser, x0, t0=t0, max_steps=2)
    assert not failed.ok
    assert np.all(np.isnan(failed.latent))
    with pytest.raises(ValueError, match="t0: must lie in the process's interval"):
        flow_decode(process, denoiser, x0, t0=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("stepper", [dj.DDIM(), dj.Heun()])
def test_inversion_tends_to_the_flow_at_the_steppers_order(stepper):
    """Its latent to the closed-form map's, and the sampler from there to the data."""
    process, data = dj.VariancePreserving(), gaussian()
    x0, denoiser = data.sample(KEY(0), 6), dj.exact_denoiser(data, process)
    latents, returns = [], []
    for n in (100, 200):
        ts = dj.logsnr_grid(process, n)
        latent = invert(process, denoiser, x0, ts, stepper)
        latents.append(float(jnp.max(jnp.abs(latent - dj.exact_flow_map(data, process).move(x0, ts[-1], ts[0])))))
        back = dj.sample(KEY(1), process, denoiser, latent, ts, stepper, final_denoise=False)
        returns.append(float(jnp.max(jnp.abs(back - x0))))
    print(type(stepper).__name__, "latent", latents, "round trip", returns)
    assert 0.8 < np.log2(latents[0] / latents[1]) / stepper.order < 1.2
    assert np.log2(returns[0] / returns[1]) > 0.8 * stepper.order


def test_ddim_inversion_is_ddims_formula():
    """Step by step in NumPy, for a denoiser that answers a fixed share of what it sees."""
    process, ts = dj.VariancePreserving(), np.array([0.9, 0.5, 0.2])
    x0 = np.array([[1.0, -2.0]])
    found = invert(process, lambda x, t: 0.7 * x, jnp.asarray(x0), ts)
    B = lambda t: 0.1 * t + 19.9 * t**2 / 2
    alpha, sigma = np.exp(-B(ts) / 2), np.sqrt(-np.expm1(-B(ts)))
    x = x0
    for i in (2, 1):
        x0_hat = 0.7 * x
        x = alpha[i - 1] * x0_hat + sigma[i - 1] * (x - alpha[i] * x0_hat) / sigma[i]
    np.testing.assert_allclose(found, x, rtol=1e-12)


def test_what_cannot_be_inverted_is_refused():
    process, x0 = dj.VariancePreserving(), jnp.ones((1, 2))
    with pytest.raises(ValueError, match="stepper: only a deterministic one"):
        invert(process, lambda x, t: x, x0, [0.9, 0.1], dj.DDIM(eta=1.0))
    with pytest.raises(ValueError, match="ts: must end where sigma is positive"):
        invert(process, lambda x, t: x, x0, [0.9, 0.0])
    with pytest.raises(ValueError, match="ts: must descend"):
        invert(process, lambda x, t: x, x0, [0.1, 0.9])


@pytest.mark.slow
def test_slerp_turns_at_an_even_rate():
    """In the plane it is a rotation; an angle of 1e-2 in float64 keeps its digits."""
    for angle in (1e-2, 1.0, 3.0):
        a, b = np.array([[1.0, 0.0]]), np.array([[np.cos(angle), np.sin(angle)]])
        for w in (0.0, 0.3, 1.0):
            expected = np.array([[np.cos(w * angle), np.sin(w * angle)]])
            np.testing.assert_allclose(slerp(jnp.asarray(a), jnp.asarray(b), w), expected, atol=1e-12)
    a, b = jax.random.normal(KEY(0), (2, 3, 8, 8, 4))
    middle = slerp(a, b, jnp.array([0.0, 0.5, 1.0]))
    norm = lambda x: np.linalg.norm(np.asarray(x).reshape(3, -1), axis=1)
    np.testing.assert_allclose(middle[0], a[0], atol=1e-12)
    np.testing.assert_allclose(middle[2], b[2], atol=1e-12)
    assert 0.9 < norm(middle)[1] / norm(a)[1] < 1.1  # a straight line's middle: 0.7
    np.testing.assert_allclose(middle[1], slerp(a[1:2], b[1:2], 0.5)[0], rtol=1e-12)  # its own circle
    slope = jax.jit(jax.grad(lambda a, b: jnp.sum(slerp(a, b, 0.3) ** 2)))
    for other in (a, 1.5 * a, -a):  # no angle, or no one circle
        assert np.all(np.isfinite(slope(a, other)))
    np.testing.assert_allclose(slerp(a, 1.5 * a, 0.5), 1.25 * a, rtol=1e-12)


@pytest.mark.slow
def test_encoding_and_decoding_have_a_derivative_forward():
    """By `jax.jvp`: the flow of a Gaussian is affine, so that a difference is its derivative."""
    process, data = dj.VariancePreserving(), dj.Gaussian(jnp.array([0.3, -0.5]), jnp.array([0.5, 0.2]))
    denoiser = lambda x, t: data.denoise(process, x, t)
    options = {"t0": 0.3, "adjoint": diffrax.ForwardMode()}
    x, v = jnp.array([[0.3, -0.2]]), jnp.array([[1.0, -0.5]])
    for through in (
        lambda x: flow_encode(process, denoiser, x, **options).latent,
        lambda x: flow_decode(process, denoiser, x, **options).x0,
    ):
        (value, slope), moved = jax.jvp(through, (x,), (v,)), through(x + v)
        np.testing.assert_allclose(moved - value, slope, rtol=1e-3)
