"""The hybrid loss of critically damped Langevin, against the joint Gaussian that Gaussian data make with velocity."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

import diffjax as dj
from diffjax import losses, parameterisation, process as dp, samplers

BETA, MASS, GAMMA, VARIANCE = 5.0, 0.3, 0.05, 0.7
F = np.array([[0.0, 1 / MASS], [-1.0, -2 / np.sqrt(MASS)]])


def process():
    return dp.CriticallyDamped(BETA, BETA, MASS, GAMMA)


def kernel(t):
    """(Phi, C) given x_0, from the stationary covariance diag(1, M)."""
    phi = linalg.expm(F * BETA * t)
    sigma = np.diag([1, MASS]) - phi @ np.diag([1, MASS]) @ phi.T
    return phi, linalg.cholesky(sigma + GAMMA * MASS * np.outer(phi[:, 1], phi[:, 1]), lower=True)


def marginal(t, variance=VARIANCE):
    """Covariance of u_t for data of a variance."""
    phi, c = kernel(t)
    return variance * np.outer(phi[:, 0], phi[:, 0]) + c @ c.T


def known(t, variance):
    """C_vv P^-1_v. and c_out, for data of a variance; the scales sqrt(P_xx) and sqrt(P_vv)."""
    covariance, c_vv = marginal(t, variance), kernel(t)[1][1, 1]
    inverse = linalg.inv(covariance)
    return c_vv * inverse[1], np.sqrt(1 - c_vv**2 * inverse[1, 1]), np.sqrt(np.diag(covariance))


def linear_network(seen=None):
    """y = p_0 x + p_1 v of what it is given, beside which it answers something for the position too."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        if seen is not None:
            seen.append((x, c_noise, key))
        position, velocity = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([position + 5, params[0] * position + params[1] * velocity], axis=-1)

    return dj.Network(lambda *_: None, apply)


def at(t):
    return lambda key, n, *, index, total: (jnp.full(n, t), jnp.ones(n))


@pytest.mark.slow
def test_loss_by_hand():
    """From what the network was given, eps = C^-1 (u - Phi (x_0, 0)), here for images of 2 x 1 x 3."""
    x0, seen = np.random.default_rng(0).normal(size=(5, 2, 1, 3)), []
    params, it = jnp.array([0.3, -0.8]), process()
    loss, aux = losses.hybrid_loss(
        params,
        jax.random.key(0),
        jnp.asarray(x0),
        network=linear_network(seen),
        process=it,
        times=dj.UniformTimes(it),
        weighting=lambda process, t: 1 + t,
        data_std=1.3,
    )
    (given, level, key), *more = seen
    assert not more
    assert key is not None
    assert given.shape == (5, 2, 1, 6)
    x, v = np.split(np.asarray(given), 2, axis=-1)
    for i, t in enumerate(np.asarray(aux["t"])):
        phi, c = kernel(t)
        linear, c_out, scales = known(t, 1.3**2)
        y = 0.3 * x[i].ravel() - 0.8 * v[i].ravel()
        u = scales[:, None] * np.stack([x[i].ravel(), v[i].ravel()])
        eps = linalg.solve_triangular(c, u - np.outer(phi[:, 0], x0[i].ravel()), lower=True)
        by_hand = (1 + t) * np.mean((eps[1] - linear @ u - c_out * y) ** 2)
        np.testing.assert_allclose(aux["per_sample"][i], by_hand, rtol=1e-6)
        np.testing.assert_allclose(level[i], -np.log(phi[0, 0] ** 2 / c[0, 0] ** 2) / 8, rtol=1e-8)
        assert np.abs(eps).max() < 5
        assert eps.std() > 0.3
    np.testing.assert_allclose(loss, np.mean(aux["per_sample"]), rtol=1e-12)
    assert len(np.unique(aux["t"])) == 5


def test_it_is_explicit_score_matching_up_to_a_constant(monkeypatch):
    """Data of variance 0.7, taken for 1: with z = c_out (x, v)/scales, eps_v_hat = known + p z. The gradient at a p is
    that of E||eps_v_hat + C_vv score_v||^2, 2 E[z z'] (p - p*); it vanishes at the exact score, p*, where the loss is
    Var(eps_v | u) = 1 - C_vv^2 (P^-1)_vv. By quadrature over x0 and both noises, of which the loss is quadratic."""
    nodes, w = np.polynomial.hermite_e.hermegauss(3)
    x0, eps_x, eps_v = (a.ravel() for a in np.meshgrid(nodes, nodes, nodes, indexing="ij"))
    measure = (w[:, None, None] * w[:, None] * w).ravel() / w.sum() ** 3
    eps = jnp.asarray(np.stack([eps_x, eps_v], axis=1)[:, :, None])
    monkeypatch.setattr("diffjax.losses._hybrid.normal_like", lambda keys, like: eps)
    ts, it, network = np.array([0.01, 0.1, 0.3]), process(), linear_network()
    x0 = jnp.asarray(np.sqrt(VARIANCE) * x0[:, None])
    best, gradients, minima, away = [], [], [], np.array([0.3, -0.2])
    for t in ts:
        (exact, left, _), (taken, c_out, scales) = known(t, VARIANCE), known(t, 1.0)
        best.append((exact - taken) * scales / c_out)
        z = c_out / scales
        gradients.append(2 * marginal(t) * np.outer(z, z) @ away)
        minima.append(left**2)

    def loss(params, t):
        keywords = {"network": network, "process": it, "times": at(t)}
        return measure @ losses.hybrid_loss(params, jax.random.key(2), x0, **keywords)[1]["per_sample"]

    @jax.jit
    @jax.vmap
    def both(params, t):
        return loss(params, t), jax.grad(loss)(params, t), jax.grad(loss)(params + away, t)

    value, slope, slope_away = both(jnp.asarray(np.stack(best)), jnp.asarray(ts))
    np.testing.assert_allclose(value, minima, rtol=1e-9)
    np.testing.assert_allclose(slope, 0, atol=1e-9)
    np.testing.assert_allclose(slope_away, gradients, rtol=1e-7)
    assert np.abs(best).max() > 0.03, "the data are not what they are taken for"
    assert np.abs(gradients).min() > 1e-4, "so that the test can fail"


def test_the_network_is_given_the_datas_noise_level():
    """-log(Phi_xx^2/C_xx^2)/8, one for each sample or one for all, and its answer counts c_out: one that answers the
    level has the score -(known + c_out level)/C_vv."""
    apply = lambda params, x, c_noise, cond=None, *, key=None: c_noise[:, None] + 0 * x
    network = dj.Network(lambda *_: None, apply)
    score = parameterisation.make_hybrid_score(None, network=network, process=process(), data_std=np.sqrt(VARIANCE))
    u, ts = np.random.default_rng(6).normal(size=(3, 2, 1)), np.array([0.02, 0.3, 0.8])
    each, one = jax.jit(lambda u: (score(u, jnp.asarray(ts)), score(u, jnp.asarray(ts[1]))))(jnp.asarray(u))
    np.testing.assert_allclose(one[1], each[1], rtol=1e-12)
    for t, at_u, found in zip(ts, u[:, :, 0], each, strict=True):
        phi, c = kernel(t)
        linear, c_out, _ = known(t, VARIANCE)
        level = -np.log(phi[0, 0] ** 2 / c[0, 0] ** 2) / 8
        np.testing.assert_allclose(found[1, 0], -(linear @ at_u + c_out * level) / c[1, 1], rtol=1e-6)


@pytest.mark.slow
def test_the_network_becomes_a_score_that_samples():
    """One that answers nothing has the exact score of data N(0, data_std^2): -(P^-1 u)_v with a still half. Its flow, a
    linear map, takes P(1) to P(0.01); of float32, the score is finite over the interval."""
    silent = dj.Network(lambda *_: None, lambda params, x, c_noise, cond=None, *, key=None: params * x)
    make = lambda zero: parameterisation.make_hybrid_score(
        zero, network=silent, process=process(), data_std=np.sqrt(VARIANCE)
    )
    u = np.random.default_rng(3).normal(size=(3, 2, 1))
    out = np.asarray(make(jnp.asarray(0.0))(jnp.asarray(u), 0.3))
    np.testing.assert_allclose(out[:, 1, 0], -(u[:, :, 0] @ linalg.inv(marginal(0.3)))[:, 1], rtol=1e-9)
    np.testing.assert_array_equal(out[:, 0], 0)
    solution = dj.integrate(
        samplers.score_flow(process(), make(jnp.asarray(0.0))),
        jnp.eye(2)[:, :, None],
        np.array([1.0, 0.01]),
        solver=diffrax.Tsit5(),
        controller=diffrax.PIDController(1e-8, 1e-8),
    )
    matrix = np.asarray(solution.x0)[:, :, 0].T
    np.testing.assert_allclose(matrix @ marginal(1.0) @ matrix.T, marginal(0.01), atol=1e-5)
    with jax.enable_x64(False):
        low, high = (float(end) for end in process().interval())
        t = jnp.asarray(np.geomspace(low, high, 50), jnp.float32)
        score = make(jnp.asarray(0.5))(jnp.ones((50, 2, 1), jnp.float32), t)
    assert score.dtype == jnp.float32
    assert np.all(np.isfinite(score))


def test_bad_data_std():
    for call in (
        lambda: parameterisation.make_hybrid_score(None, network=linear_network(), process=process(), data_std=0.0),
        lambda: losses.hybrid_loss(
            None,
            jax.random.key(0),
            jnp.ones((2, 1)),
            network=linear_network(),
            process=process(),
            times=at(0.5),
            data_std=0.0,
        ),
    ):
        with pytest.raises(ValueError, match=r"data_std: must be positive, got 0.0"):
            call()


def test_a_samples_loss_does_not_depend_on_its_batch():
    it, x0 = process(), jnp.asarray(np.random.default_rng(4).normal(size=(8, 2)))

    @jax.jit
    def parts(x0, index):
        keywords = {"network": linear_network(), "process": it, "times": dj.StratifiedTimes(it)}
        return losses.hybrid_loss(jnp.ones(2), jax.random.key(5), x0, index=index, total=8, **keywords)[1]

    split = [parts(x0[index], index) for index in np.arange(8).reshape(2, 4)]
    mixed = np.array([7, 2, 5, 0])
    for what in ("t", "per_sample"):
        whole = np.concatenate([part[what] for part in split])
        np.testing.assert_allclose(parts(x0[mixed], mixed)[what], whole[mixed], rtol=1e-9)
        assert len(np.unique(whole)) == 8
