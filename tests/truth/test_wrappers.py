"""Processes made from processes, learned schedules, and a denoiser of one schedule under another."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from registry import ALL_PROCESSES, each_process, mixture

import diffjax as dj
from diffjax.parameterisation import retime
from diffjax.process import (
    Clipped,
    LearnedLogsnr,
    MonotoneLogsnr,
    OrnsteinUhlenbeck,
    Retimed,
    Schedule,
    Shifted,
    scales_from_logsnr,
)

T = np.linspace(0.03, 0.97, 25)


@eqx.filter_jit
def look(process, t, s):
    return process.alpha(t), process.sigma(t), process.logsnr(t), process.conditional(t, s)


def assert_equal(mine, other):
    t = jnp.asarray(T)
    for a, b in zip(jax.tree.leaves(look(mine, t, 0.7 * t)), jax.tree.leaves(look(other, t, 0.7 * t)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def test_shifted_cosine_is_cosine_shifted():
    assert_equal(Shifted(dj.Cosine(), -1.5), dj.Cosine(-1.5))
    assert_equal(Shifted(dj.Cosine(0.4), 0.6), dj.Cosine(1.0))


def test_shifted_ve_has_more_noise_by_one_factor():
    assert_equal(Shifted(dj.VarianceExploding(0.01, 50.0), -2 * np.log(3)), dj.VarianceExploding(0.03, 150.0))
    assert_equal(Shifted(dj.EDM(0.002, 80.0), 2 * np.log(2)), dj.EDM(0.001, 40.0))


def test_a_process_on_its_own_clock_is_itself():
    for name in ("sub-vp", "edm", "polynomial"):
        process = ALL_PROCESSES[name]()
        assert_equal(Retimed(process, process), process)


def test_clipped_is_the_part_between_two_logsnrs():
    """Nested in another, too; LearnedLogsnr, a line in t, clipped is the line between the new ends."""
    assert_equal(Clipped(LearnedLogsnr(13.3, -5.0), 8.0, -3.0), LearnedLogsnr(8.0, -3.0))
    assert_equal(Clipped(Clipped(dj.Cosine(), 9.0, -9.0), 4.0, -2.0), Clipped(dj.Cosine(), 4.0, -2.0))


@pytest.mark.parametrize("name", each_process(("vp", "rectified")))
def test_scales_are_the_point_of_the_path_with_that_logsnr(name):
    process = ALL_PROCESSES[name]()
    low, high = (float(end) for end in process.interval())
    t = jnp.linspace(low, high, 25)

    @eqx.filter_jit
    def both(process, t):
        return scales_from_logsnr(process, process.logsnr(t)), (process.alpha(t), process.sigma(t))

    mine, expected = both(process, t)
    np.testing.assert_allclose(mine, expected, rtol=1e-8)


# --- learned ---


def test_a_monotone_logsnr_falls_strictly_between_its_exact_ends():
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.5, 2.0):
        process = MonotoneLogsnr(jax.random.key(1), 11.0, -7.0, width=16)
        ends, weights = jax.tree.leaves(process)[:2], jax.tree.leaves(process)[2:]
        moved = [leaf + scale * jnp.asarray(rng.normal(size=leaf.shape)) for leaf in weights]
        process = jax.tree.unflatten(jax.tree.structure(process), [*ends, *moved])
        value = np.asarray(eqx.filter_jit(process.logsnr)(jnp.linspace(0, 1, 101)))
        assert (value[0], value[-1]) == (11.0, -7.0)
        assert np.all(np.diff(value) < 0)


def test_a_monotone_logsnr_begins_near_a_line():
    process = MonotoneLogsnr(jax.random.key(0))
    t = np.linspace(0, 1, 21)
    np.testing.assert_allclose(process.logsnr(jnp.asarray(t)), 13.3 - 18.3 * t, atol=1.0)


def test_every_number_of_a_learned_schedule_has_a_gradient():
    """Through what the ELBO and the samples are made of, and not zero."""

    @jax.grad
    def slope(process):
        t, x = jnp.linspace(0.1, 0.9, 5), jnp.ones((5, 2))
        xt = dj.perturb(process, x, 0.3 * x, t)
        return jnp.sum(xt**2) + jnp.sum(process.logsnr(t) ** 2) + jnp.sum(dj.process.logsnr_rate(process, t) ** 2)

    for process in (LearnedLogsnr(), MonotoneLogsnr(jax.random.key(0), width=4)):
        for leaf in jax.tree.leaves(jax.jit(slope)(process)):
            assert np.all(np.isfinite(leaf))
            assert np.all(leaf != 0)


# --- one schedule for training, another for sampling ---


@pytest.mark.parametrize(
    ("trained", "sampled"), [("vp", "edm"), pytest.param("sub-vp", "ddpm", marks=pytest.mark.slow)]
)
def test_a_retimed_exact_denoiser_is_exact(trained, sampled):
    """E[x0 | xt] of a mixture under either process, at one time for all and one a sample."""
    trained, sampled, data = ALL_PROCESSES[trained](), ALL_PROCESSES[sampled](), mixture()
    bounds = [float(trained.logsnr(end)) for end in (0.0, 1.0)]

    @eqx.filter_jit
    def answers(trained, sampled, data, xt, t):
        mine, exact = retime(dj.exact_denoiser(data, trained), trained, sampled), dj.exact_denoiser(data, sampled)
        return mine(xt, t), mine(xt, t[2]), exact(xt, t), exact(xt, t[2])

    t = np.linspace(0.1, 0.9, 7)
    value = np.asarray(sampled.logsnr(jnp.asarray(t)))
    assert np.all((value < bounds[0]) & (value > bounds[1]))
    xt = np.random.default_rng(0).normal(size=(7, 2)) * np.asarray(sampled.sigma(jnp.asarray(t)))[:, None]
    each, single, exact, exact_single = answers(trained, sampled, data, jnp.asarray(xt), jnp.asarray(t))
    np.testing.assert_allclose(each, exact, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(single, exact_single, rtol=1e-7, atol=1e-9)


def test_a_velocity_network_of_rectified_flow_samples_on_the_cosine_clock():
    """From exact velocities of N(0, s^2): x0_hat = alpha s^2/(alpha^2 s^2 + sigma^2) xt, finite at the ends."""
    variance, trained, sampled = 0.3, dj.Rectified(), dj.Cosine()

    def apply(params, x, c_noise, cond=None, *, key=None):
        logsnr = -8 * c_noise[:, None]
        sigma = jax.nn.sigmoid(-logsnr / 2)
        alpha = 1 - sigma
        xt = x * jnp.sqrt(alpha**2 + sigma**2)
        gain = 1 / (alpha**2 * params + sigma**2)
        return (sigma - alpha * params) * gain * xt  # E[eps - x0 | xt]

    network = dj.Network(lambda *_: None, apply)
    diffusion = dj.Diffusion(network, trained, dj.VelocityPrediction())
    denoiser = retime(dj.make_denoiser(diffusion, jnp.asarray(variance)), trained, sampled)
    t = jnp.asarray([0.0, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0])
    xt = jnp.asarray(np.random.default_rng(1).normal(size=(7, 2)))
    alpha, sigma = np.asarray(sampled.alpha(t))[:, None], np.asarray(sampled.sigma(t))[:, None]
    expected = alpha * variance / (alpha**2 * variance + sigma**2) * np.asarray(xt)
    np.testing.assert_allclose(eqx.filter_jit(denoiser)(xt, t), expected, rtol=1e-7, atol=1e-6)
    assert len(jax.tree.leaves(denoiser)) == 3  # the network's parameter, data_std, the shift: new ones compile nothing


# --- bad numbers ---

BAD = {
    "shift": (lambda: Shifted(dj.Cosine(), float("inf")), r"shift: .*got inf"),
    "ends": (lambda: Clipped(dj.Cosine(), -3.0, 2.5), r"logsnr_min: .*less than logsnr_max = -3\.0, got 2\.5"),
    "beyond data": (lambda: Clipped(dj.EDM(), 15.0, -3.0), r"logsnr_max: .*begins at 12\.4.*got 15\.0"),
    "beyond noise": (lambda: Clipped(dj.VariancePreserving(), 9.0, -15.0), r"logsnr_min: .*ends at -10\.0.*got -15\.0"),
    "no end": (lambda: Retimed(dj.VarianceExploding(), dj.Cosine()), r"sigma: must be finite at t = 0 and 1.*inf"),
    "learned": (lambda: LearnedLogsnr(-5.0, 13.0), r"logsnr_min: .*got 13\.0"),
    "learned nan": (lambda: LearnedLogsnr(float("nan"), 1.0), r"logsnr_max: .*got nan"),
    "monotone": (lambda: MonotoneLogsnr(jax.random.key(0), 1.0, 1.0), r"logsnr_min: .*got 1\.0"),
    "alpha": (
        lambda: Schedule(lambda t: 0.5 - t, lambda t: t),
        r"alpha must be positive.*got 0\.0 at t = 0\.5",
    ),
    "sigma": (lambda: Schedule(lambda t: 1 - t, lambda t: 0 * t), r"sigma must be positive.*got 0\.0 at t = 0\.0001"),
    "finite": (
        lambda: Schedule(lambda t: 1 / jnp.maximum(0.5 - t, 0), lambda t: t),
        r"alpha .*finite .*got inf at t = 0\.5",
    ),
    "rises": (
        lambda: Schedule(lambda t: 1 + t, lambda t: 2 - t),
        r"logsnr must fall, got -1\.386.* at t = 0\.0 and -1\.385.* at t = 0\.0001",
    ),
    "alpha below 0 at the end": (
        lambda: Schedule(lambda t: 1 - 1.02 * t, lambda t: t),
        r"alpha must be positive .*got -0\.00\d+ at t = 0\.981",
    ),
    "alpha below 0 at 1 itself": (
        lambda: Schedule(lambda t: 1 - (1 + 1e-5) * t, lambda t: t),
        r"alpha must be positive .*\(only alpha\(1\) may be 0\), got -1\.0.*e-05 at t = 1\.0",
    ),
    "sigma below 0 at the beginning": (
        lambda: Schedule(lambda t: 1 + 0 * t, lambda t: t - 0.03),
        r"sigma must be positive .*\(only sigma\(0\) may be 0\), got -0\.03 at t = 0\.0",
    ),
    "alpha starts at 0": (lambda: Schedule(lambda t: t, lambda t: 1 + t), r"alpha must be .*got 0\.0 at t = 0\.0"),
    "sigma ends at 0": (lambda: Schedule(lambda t: 2 - t, lambda t: 1 - t), r"sigma must be .*got 0\.0 at t = 1\.0"),
    "waves": (
        lambda: Schedule(lambda t: (1 - t) * (1 + 0.05 * jnp.sin(64 * jnp.pi * t)), lambda t: t),
        r"logsnr must fall, got .* at t = 0\.\d+ and ",
    ),
    "a narrow dip": (
        lambda: Schedule(lambda t: 1 - t - 0.6 * jnp.exp(-(((t - 0.5) / 1e-3) ** 2)), lambda t: t),
        r"alpha must be positive .*got -0\.0999\d* at t = 0\.5",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_processes_are_refused_with_the_number_that_is_wrong(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_class_of_ones_own_is_looked_at_too_but_not_where_it_is_traced():
    class Rising(dj.process.AbstractGaussianProcess):
        size: jax.Array

        def alpha(self, t):
            return self.size * (1 + t)

        def sigma(self, t):
            return 2 - t

    with pytest.raises(ValueError, match=r"Rising: logsnr must fall"):
        Rising(jnp.asarray(1.0))
    jax.jit(lambda size: Rising(size).alpha(0.5))(1.0)
    jax.jit(lambda t: Rising(jnp.ones(())).alpha(t))(0.5)


def test_a_flat_schedule_is_looked_at_in_float64():
    """Between two of the thousand times its logsnr falls by 2e-9, which float32 cannot see."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        process = Schedule(Partial(lambda flat, t: 1 - flat * t, jnp.asarray(1e-6)), lambda t: 1 + 0 * t)
        assert process.alpha(jnp.asarray(0.5)).dtype == jnp.float32


@pytest.mark.parametrize("shift", [np.log(0.5), np.float32(-0.5), np.int64(-1), -1], ids=lambda x: type(x).__name__)
def test_a_number_of_numpy_widens_no_sample(shift):
    with jax.numpy_dtype_promotion("standard"):
        process = Shifted(dj.Rectified(), shift)
        assert process.alpha(jnp.asarray(0.5, jnp.float32)).dtype == jnp.float32
        assert jax.jit(lambda p: p.sigma(jnp.asarray(0.5, jnp.float32)))(process).dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "slope"),
    [
        (lambda: Shifted(dj.VariancePreserving(), -1.0), -0.05 * np.e),
        (lambda: Shifted(Shifted(dj.VariancePreserving(), -1.0), 0.5), -0.05 * np.exp(0.5)),
        (lambda: Retimed(dj.VariancePreserving(), OrnsteinUhlenbeck(5.0)), -5.0),
    ],
    ids=["shifted", "twice", "ornstein-uhlenbeck"],
)
def test_alpha_has_its_slope_at_the_data(make, slope):
    """alpha^2 + sigma^2 = 1 and sigma^2 = beta e^-shift t near 0, though sigma' is infinite there."""
    process = make()
    found = jax.grad(process.alpha)(0.0)
    assert process.alpha(0.0) == process.alpha(jnp.zeros(2))[1]
    np.testing.assert_allclose(found, slope, rtol=1e-6)
