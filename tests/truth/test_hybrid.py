"""The hybrid loss of critically damped Langevin, against the joint Gaussian that Gaussian data make with velocity."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg

import diffjax as dj
from diffjax import losses, parameterisation, process as dp, samplers

BETA, MASS, GAMMA, VARIANCE = 5.0, 0.3, 0.05, 0.7
F = np.array([[0.0, 1 / MASS], [-1.0, -2 / np.sqrt(MASS)]])
UNIT = np.diag([1, 1 / np.sqrt(MASS)])  # velocities in units of sqrt(M)


def process():
    return dp.CriticallyDamped(BETA, BETA, MASS, GAMMA)


def kernel(t):
    """(Phi, C) given x_0, from the stationary covariance diag(1, M)."""
    phi = linalg.expm(F * BETA * t)
    sigma = np.diag([1, MASS]) - phi @ np.diag([1, MASS]) @ phi.T
    return phi, linalg.cholesky(sigma + GAMMA * MASS * np.outer(phi[:, 1], phi[:, 1]), lower=True)


def marginal(t):
    """Covariance of u_t for data of variance 0.7."""
    phi, c = kernel(t)
    return VARIANCE * np.outer(phi[:, 0], phi[:, 0]) + c @ c.T


def linear_network(seen=None):
    """eps_v_hat = p_0 x + p_1 v/sqrt(M), beside which the network answers something for the position too."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        if seen is not None:
            seen.append((x, c_noise, key))
        position, velocity = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([position + 5, params[0] * position + params[1] * velocity], axis=-1)

    return dj.Network(lambda *_: None, apply)


def at(t):
    return lambda key, n, *, index, total: (jnp.full(n, t), jnp.ones(n))


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
        time_sampler=dj.UniformTimes(it),
        weighting=lambda process, t: 1 + t,
    )
    (given, level, key), *more = seen
    assert not more
    assert key is not None
    assert given.shape == (5, 2, 1, 6)
    x, v = np.split(np.asarray(given), 2, axis=-1)
    for i, t in enumerate(np.asarray(aux["t"])):
        phi, c = kernel(t)
        u = np.stack([x[i].ravel(), np.sqrt(MASS) * v[i].ravel()])
        eps = linalg.solve_triangular(c, u - np.outer(phi[:, 0], x0[i].ravel()), lower=True)
        by_hand = (1 + t) * np.mean((eps[1] - 0.3 * x[i].ravel() + 0.8 * v[i].ravel()) ** 2)
        np.testing.assert_allclose(aux["per_sample"][i], by_hand, rtol=1e-6)
        np.testing.assert_allclose(level[i], -np.log(phi[0, 0] ** 2 / c[0, 0] ** 2) / 8, rtol=1e-8)
        assert np.abs(eps).max() < 5
        assert eps.std() > 0.3
    np.testing.assert_allclose(loss, np.mean(aux["per_sample"]), rtol=1e-12)
    assert len(np.unique(aux["t"])) == 5


def test_it_is_explicit_score_matching_up_to_a_constant():
    """The gradient at any p is that of E||eps_v_hat + C_vv score_v||^2, 2 E[z z'] (p - p*), z = (x, v/sqrt(M)); it
    vanishes at the exact score p*, where the loss is Var(eps_v | u) = 1 - C_vv^2 (P^-1)_vv."""
    n, ts, it, network = 10_000, np.array([0.01, 0.1, 0.3, 0.8]), process(), linear_network()
    x0 = jnp.asarray(np.sqrt(VARIANCE) * np.random.default_rng(1).normal(size=(n, 1)))
    best, gradients, minima, away = [], [], [], np.array([0.3, -0.2])
    for t in ts:
        inverse, c_vv = linalg.inv(marginal(t)), kernel(t)[1][1, 1]
        best.append(c_vv * inverse[1] * [1, np.sqrt(MASS)])
        gradients.append(2 * UNIT @ marginal(t) @ UNIT @ away)
        minima.append(1 - c_vv**2 * inverse[1, 1])

    def per_sample(params, t):
        keywords = {"network": network, "process": it, "time_sampler": at(t)}
        return losses.hybrid_loss(params, jax.random.key(2), x0, **keywords)[1]["per_sample"]

    @jax.jit
    @jax.vmap
    def both(params, t):
        return per_sample(params, t), jax.jacfwd(per_sample)(params, t), jax.jacfwd(per_sample)(params + away, t)

    for i, (value, slope, slope_away) in enumerate(
        zip(*both(jnp.asarray(np.stack(best)), jnp.asarray(ts)), strict=True)
    ):
        np.testing.assert_allclose(value.mean(), minima[i], atol=4.5 * value.std() / np.sqrt(n))
        np.testing.assert_allclose(slope.mean(0), 0, atol=4.5 * slope.std(0).max() / np.sqrt(n))
        np.testing.assert_allclose(slope_away.mean(0), gradients[i], atol=4.5 * slope_away.std(0).max() / np.sqrt(n))
        assert np.abs(gradients[i]).max() > 10 * slope_away.std(0).max() / np.sqrt(n), "so that the test can fail"


def knowing_network():
    """E[eps_v | u] for Gaussian data; the noise level gives the clock, found on a table."""
    ts = np.geomspace(5e-3, 1, 2000)
    levels, best = [], []
    for t in ts:
        phi, c = kernel(t)
        levels.append(-np.log(phi[0, 0] ** 2 / c[0, 0] ** 2) / 8)
        best.append(c[1, 1] * linalg.inv(marginal(t))[1] * [1, np.sqrt(MASS)])
    levels, best = jnp.asarray(np.array(levels)), jnp.asarray(np.array(best))

    def apply(params, x, c_noise, cond=None, *, key=None):
        p = [jnp.interp(c_noise, levels, best[:, i])[:, None] for i in range(2)]
        position, velocity = jnp.split(x, 2, axis=-1)
        return params * (p[0] * position + p[1] * velocity)

    return dj.Network(lambda *_: None, apply)


def test_the_network_becomes_a_score_that_samples():
    """The score is -(P^-1 u)_v with a still half; the flow, a linear map, takes P(1) to P(0.01) exactly."""
    score = parameterisation.make_hybrid_score(jnp.asarray(1.0), network=knowing_network(), process=process())
    u = np.random.default_rng(3).normal(size=(3, 2, 1))
    out = np.asarray(score(jnp.asarray(u), 0.3))
    np.testing.assert_allclose(out[:, 1, 0], -(u[:, :, 0] @ linalg.inv(marginal(0.3)))[:, 1], rtol=1e-4)
    np.testing.assert_array_equal(out[:, 0], 0)
    solution = dj.integrate(
        samplers.score_flow(process(), score),
        jnp.eye(2)[:, :, None],
        np.array([1.0, 0.01]),
        solver=diffrax.Tsit5(),
        controller=diffrax.PIDController(1e-6, 1e-6),
    )
    matrix = np.asarray(solution.x0)[:, :, 0].T
    np.testing.assert_allclose(matrix @ marginal(1.0) @ matrix.T, marginal(0.01), atol=1e-3)


def test_a_samples_loss_does_not_depend_on_its_batch():
    it, x0 = process(), jnp.asarray(np.random.default_rng(4).normal(size=(8, 2)))

    @jax.jit
    def parts(x0, index):
        keywords = {"network": linear_network(), "process": it, "time_sampler": dj.StratifiedTimes(it)}
        return losses.hybrid_loss(jnp.ones(2), jax.random.key(5), x0, index=index, total=8, **keywords)[1]

    split = [parts(x0[index], index) for index in np.arange(8).reshape(2, 4)]
    mixed = np.array([7, 2, 5, 0])
    for what in ("t", "per_sample"):
        whole = np.concatenate([part[what] for part in split])
        np.testing.assert_allclose(parts(x0[mixed], mixed)[what], whole[mixed], rtol=1e-9)
        assert len(np.unique(whole)) == 8
