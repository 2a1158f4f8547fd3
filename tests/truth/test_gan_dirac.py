"""The Dirac-GAN: our own train steps against the matrices, eigenvalues and critical gammas of the closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax import gan, training

H = 0.1
LOSSES = {"non-saturating": gan.NonSaturating, "hinge": gan.Hinge, "relativistic": gan.Relativistic}
GAMMAS = {"none": (0.0, 0.0), "r1": (0.8, 0.0), "r1 + r2": (0.8, 0.3)}


def constant(params, z, c_noise, cond=None, *, key=None):
    return jnp.broadcast_to(params["theta"], (z.shape[0], 1))


def line(params, x, c_noise, cond=None, *, key=None):
    return params["psi"] * x


def network(name, apply):
    return dj.Network(lambda key, x, c_noise, cond=None: {name: jnp.zeros(1)}, apply)


MODEL = gan.GAN(network("theta", constant), network("psi", line), latents=1)


def trained(losses, *, simultaneous, size=2.0**-26):
    """The matrix of one step of our training by plain gradient descent, [2, 2].

    Where one of theta and psi is 0 and the other tiny, the losses are quadratic to rounding.
    """
    objectives = [training.Objective(loss_fn, optax.sgd(H), name) for name, loss_fn in losses.items()]
    step = jax.jit(
        training.make_train_step(objectives, ema=lambda step, params, ema: params, simultaneous=simultaneous)
    )
    batch = jnp.zeros((3, 1)), None
    params = MODEL.init(jax.random.key(0), batch[0])
    state = training.state_from_params(jax.random.key(1), params, objectives)

    def column(theta, psi):
        start = {"generator": {"theta": jnp.array([theta])}, "discriminator": {"psi": jnp.array([psi])}}
        after = step(state._replace(params=start), batch)[0].params
        return np.concatenate([after["generator"]["theta"], after["discriminator"]["psi"]]) / size

    return np.stack([column(size, 0.0), column(0.0, size)], axis=1)


@pytest.mark.parametrize("simultaneous", [True, False])
@pytest.mark.parametrize("gammas", GAMMAS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_train_step_is_the_update_matrix(loss, gammas, simultaneous):
    """Trace and determinant, and all entries: the order of updates, factors of penalties and slopes of losses."""
    r1, r2 = GAMMAS[gammas]
    losses = gan.training_losses(MODEL, loss=LOSSES[loss](), r1=r1, r2=r2)
    found = trained(losses, simultaneous=simultaneous)
    slope = {"hinge": 1.0}.get(loss, 0.5)
    h, g, c = H, r1 + r2, slope
    if simultaneous:
        trace, determinant = 2 - h * g, 1 - h * g + (h * c) ** 2
    else:
        trace, determinant = 2 - h * g - (h * c) ** 2, 1 - h * g
    assert abs(np.trace(found) - trace) < 1e-12
    assert abs(np.linalg.det(found) - determinant) < 1e-12
    oracle = gan.DiracGAN(LOSSES[loss]().slope, r1, r2)
    np.testing.assert_allclose(oracle.update_matrix(h, simultaneous=simultaneous), found, rtol=0, atol=1e-12)


def test_an_order_that_is_turned_round_is_another_matrix():
    """The generator first: the same trace and determinant, other entries."""
    losses = gan.training_losses(MODEL, r1=0.8)
    turned = trained(dict(reversed(losses.items())), simultaneous=False)
    wanted = np.asarray(gan.DiracGAN(0.5, 0.8).update_matrix(H))
    np.testing.assert_allclose([np.trace(turned), np.linalg.det(turned)], [np.trace(wanted), np.linalg.det(wanted)])
    assert abs(turned - wanted).max() > 1e-3


def test_a_lazy_penalty_is_a_longer_step_at_every_kth():
    losses = gan.training_losses(MODEL, r1=0.8, every=4)
    found = trained(losses, simultaneous=True)  # step 0
    np.testing.assert_allclose(found, gan.DiracGAN(0.5, 4 * 0.8).update_matrix(H, simultaneous=True), atol=1e-12)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("slope", [0.5, 1.0])
def test_eigenvalues_meet_at_the_critical_gamma(slope, both):
    """1 with R1 and 1/2 with R1 + R2, of logistic losses: complex below it, real above."""
    oracle = lambda gamma: gan.DiracGAN(slope, gamma, gamma if both else 0.0)
    critical = float(oracle(0.1).critical_gamma())
    assert critical == slope * (1 if both else 2)
    for gamma in (0.1, 0.999 * critical, critical, 1.001 * critical, 5.0):
        made = oracle(gamma)
        numeric = np.linalg.eigvals(np.asarray(made.jacobian()))
        near = 1e-6 if gamma == critical else 1e-12  # a double eigenvalue is ill-conditioned
        np.testing.assert_allclose(np.sort_complex(made.eigenvalues()), np.sort_complex(numeric), rtol=0, atol=near)
    assert np.abs(np.imag(oracle(0.999 * critical).eigenvalues())).min() > 1e-3
    np.testing.assert_allclose(oracle(critical).eigenvalues(), [-slope, -slope], rtol=0, atol=1e-15)
    above = np.asarray(oracle(1.001 * critical).eigenvalues())
    assert np.abs(above.imag).max() == 0
    assert above.real.max() > -slope  # slower than at the critical gamma


def test_what_a_step_does_to_the_distance():
    """The published figures at h = 0.1: simultaneous steps diverge, alternating ones cycle, with R1 both converge."""
    radius = lambda r1, r2, simultaneous: float(gan.DiracGAN(0.5, r1, r2).spectral_radius(H, simultaneous=simultaneous))
    assert radius(0.0, 0.0, True) == pytest.approx(np.sqrt(1 + H**2 / 4), abs=1e-15)
    assert radius(0.0, 0.0, False) == pytest.approx(1.0, abs=1e-15)
    assert radius(1.0, 0.0, True) == pytest.approx(0.95, abs=1e-12)
    assert radius(1.0, 0.0, False) == pytest.approx(0.96, abs=1e-12)
    assert radius(0.5, 0.5, True) == pytest.approx(0.95, abs=1e-12)
    for r1, r2, simultaneous in ((0.2, 0.1, True), (2.0, 1.0, True), (0.2, 0.1, False), (2.0, 0.0, False)):
        matrix = gan.DiracGAN(0.5, r1, r2).update_matrix(H, simultaneous=simultaneous)
        numeric = np.abs(np.linalg.eigvals(np.asarray(matrix))).max()
        assert radius(r1, r2, simultaneous) == pytest.approx(numeric, abs=1e-12)


@pytest.mark.parametrize("simultaneous", [True, False])
@pytest.mark.parametrize("slope", [0.5, 1.0])
def test_which_gammas_converge_and_which_is_the_fastest(slope, simultaneous):
    """Simultaneous steps between h c^2 and 2/h + h c^2/2, alternating ones below 2/h - h c^2/2, for steps of all sizes.

    Fastest are those whose two eigenvalues meet: at 2 c, the critical gamma of the flow, and at 2 c - h c^2.
    """
    radius = lambda gamma, h: float(gan.DiracGAN(slope, gamma).spectral_radius(h, simultaneous=simultaneous))
    for h in (0.1, 1.0, 1.4 / slope):
        half = h * slope**2 / 2
        least, most, best = (
            (2 * half, 2 / h + half, 2 * slope) if simultaneous else (0.0, 2 / h - half, 2 * (slope - half))
        )
        assert radius(best, h) == pytest.approx(abs(1 - h * slope), abs=1e-6)  # a double eigenvalue is ill-conditioned
        for factor in (0.9, 1.1):
            assert radius(factor * best, h) > radius(best, h) + 1e-4
        for bound, inside in ((least, 1.001), (most, 0.999)):
            assert radius(bound, h) == pytest.approx(1.0, abs=1e-12)
            assert radius(bound * inside + 1e-4 * (bound == 0), h) < 1
            if bound:
                assert radius(bound / inside, h) > 1


def test_what_a_step_does_can_be_differentiated():
    """On both sides of the critical gamma, against central differences."""
    for gamma, simultaneous in itertools.product((0.0, 0.5, 1.2, 5.0), (True, False)):
        radius = lambda g, h, sim=simultaneous: gan.DiracGAN(0.5, 0.3 + g).spectral_radius(h, simultaneous=sim)
        found = jax.grad(radius, (0, 1))(gamma, H)
        small = 1e-6
        by_gamma = (radius(gamma + small, H) - radius(gamma - small, H)) / (2 * small)
        by_step = (radius(gamma, H + small) - radius(gamma, H - small)) / (2 * small)
        np.testing.assert_allclose(found, [by_gamma, by_step], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "slope: must be positive, got 0"),
        ((np.inf,), "slope: a finite number, not below 0, got inf"),
        ((np.full(2, 0.5),), r"slope: one number is needed, got an array of shape \(2,\)"),
        ((0.5, -1.0), "r1: a finite number, not below 0, got -1"),
        ((0.5, 0.0, -1.0), "r2: a finite number, not below 0, got -1"),
        ((0.5, np.nan), "r1: a finite number, not below 0, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gan.DiracGAN(*arguments)


@pytest.mark.parametrize(
    ("step_size", "message"),
    [
        (-0.1, "step_size: a finite number, not below 0, got -0.1"),
        (np.nan, "step_size: a finite number, not below 0, got nan"),
    ],
)
def test_step_sizes_that_are_none_are_refused(step_size, message):
    for method in (gan.DiracGAN(0.5).update_matrix, gan.DiracGAN(0.5).spectral_radius):
        with pytest.raises(ValueError, match=message):
            method(step_size)
