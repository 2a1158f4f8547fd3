"""MeanFlow's losses at exact flow maps: where they vanish, how much they vary, and what they are elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES

import diffjax as dj
from diffjax import losses
from diffjax.flow_maps import (
    GuidedVelocity,
    PartlyEqual,
    SortedPairs,
    UniformPairs,
    mean_flow_loss,
    mean_flow_residual,
)
from diffjax.parameterisation import recover, target
from diffjax.process import normal_like, sample_keys

SIGMAS = 4.5
SD = 0.5  # of the parameterisation; the data have others


def rng(seed=0):
    return np.random.default_rng(seed)


def network(answer):
    """A network `answer(params, x, c_noise at t, c_noise at s, cond) -> y`, told one time or two."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        both = c_noise.reshape(x.shape[0], -1)
        return answer(params, x, both[:, 0], both[:, -1], cond)

    return dj.Network(lambda *_: None, apply)


def directions(params, x, t, s):
    """Smooth functions of z, t and s, in the directions of params [3]."""
    t, s = t[:, None], s[:, None]
    return params[0] * jnp.sin(x + s) + params[1] * x * jnp.cos(2 * t) + params[2] * (x**2 / (1 + x**2) - t * s)


def knowing(data, steps=64):
    """The exact flow map of data on rectified flow as a network that predicts F, with `directions` added."""
    process, prediction = dj.Rectified(), dj.parameterisation.EDMPrediction(SD, clock="angle")
    exact = dj.exact_flow_map(data, process, steps=steps)

    def answer(params, x, c_t, c_s, cond):
        t, s = (SD * jnp.sin(c) / (jnp.cos(c) + SD * jnp.sin(c)) for c in (c_t, c_s))
        xt = x / prediction.input_scale(process, t)[:, None]
        x0 = exact(xt, t, s)
        y = target(prediction, process, x0, (xt - process.alpha(t)[:, None] * x0) / process.sigma(t)[:, None], t)
        return y + directions(params, x, c_t, c_s)

    return dj.Diffusion(network(answer), process, prediction)


def pair(n, seed=1):
    """t and s [n] inside (0, 1), s = t in a fifth of them."""
    t, s = np.sort(rng(seed).uniform(0.03, 0.97, (2, n)), axis=0)[::-1]
    return jnp.asarray(t), jnp.asarray(np.where(np.arange(n) % 5 == 0, t, s))


def given(t, s):
    return lambda key, n, *, index, total: (t, s, jnp.ones(n))


AT_TRUTH = np.zeros(3)


# --- a Gaussian, in closed form ---


def gaussian_case():
    """Two features, centred: the diffusion, standard deviations, t, s, and the variances of z at t and s, [n, 2]."""
    std = jnp.array([1.7, 0.5])
    t, s = pair(40)
    tau = lambda t: (t / ((1 - t) * SD + t))[:, None]
    at = lambda t: (1 - tau(t)) ** 2 * (std / SD) ** 2 + tau(t) ** 2
    return knowing(dj.Gaussian(jnp.zeros(2), std**2)), std, t, s, at(t), at(s)


def mean_square_over_data(diffusion, std, t, s, **choices):
    """E[residual^2] for each pair and feature, [n, 2]: the residual is linear in x0 and eps, which are independent."""
    one, none = jnp.ones((t.size, 2)), jnp.zeros((t.size, 2))
    residual = jax.jit(lambda x0, eps: mean_flow_residual(diffusion, AT_TRUTH, x0, eps, t, s, **choices))
    return residual(one, none) ** 2 * std**2 + residual(none, one) ** 2


def test_the_least_loss_is_the_variance_of_the_velocity_carried_to_s():
    """MeanFlow: |dX/dz (v_cond - v)|^2, sum of (s^2/q_t^2)(q_s^2/q_t^2). Improved: |v_cond - v|^2, s^2/q_t^2: at some
    features more, at some less. With a teacher: nothing."""
    diffusion, std, t, s, q_t, q_s = gaussian_case()
    variance = (std / SD) ** 2 / q_t
    plain = mean_square_over_data(diffusion, std, t, s)
    improved = mean_square_over_data(diffusion, std, t, s, improved=True)
    np.testing.assert_allclose(plain, variance * q_s / q_t, rtol=1e-10)
    np.testing.assert_allclose(improved, variance, rtol=1e-10)
    assert np.mean(plain > improved) > 0.2
    assert np.mean(plain < improved) > 0.2
    exact = dj.exact_denoiser(dj.Gaussian(jnp.zeros(2), std**2), diffusion.process)
    np.testing.assert_allclose(mean_square_over_data(diffusion, std, t, s, teacher=exact), 0, atol=1e-24)


def test_the_improved_prediction_is_the_velocity_itself():
    """V = u + (tau_t - tau_s) du/dtau = v at each point, with the exact map; not with another."""
    diffusion, std, t, s, q_t, _ = gaussian_case()
    x0, eps = jnp.asarray(rng().normal(size=(2, t.size, 2)))
    tau = (t / ((1 - t) * SD + t))[:, None]
    z = (1 - tau) * x0 / SD + tau * eps
    v = (tau - (1 - tau) * (std / SD) ** 2) / q_t * z
    residual = jax.jit(lambda params: mean_flow_residual(diffusion, params, x0, eps, t, s, improved=True))
    np.testing.assert_allclose(residual(AT_TRUTH) + eps - x0 / SD, v, atol=1e-13)
    assert np.abs(residual(AT_TRUTH + 0.1) + eps - x0 / SD - v).max() > 0.01


# --- gradients at the truth ---


def slopes(diffusion, x0, pairs, params=AT_TRUTH, **choices):
    """d error_i/d params, [n, 3]."""
    error = lambda p: mean_flow_loss(diffusion, p, jax.random.key(0), x0, pairs=pairs, **choices)[1]["error"]
    return np.asarray(jax.jit(jax.jacfwd(error))(params))


def assert_zero_mean(each):
    error = each.std(0) / np.sqrt(len(each))
    assert np.all(np.abs(each.mean(0)) < SIGMAS * error)
    assert np.all(error < 0.1)


def test_the_gradient_vanishes_at_the_exact_map_of_a_gaussian():
    """Exactly with a teacher, in the mean with the conditional velocity; for a mixture see the guided flow below."""
    data, n = dj.Gaussian(jnp.array([0.4]), 0.3), 4000
    diffusion = knowing(data)
    x0 = jnp.asarray(0.4 + np.sqrt(0.3) * rng(4).normal(size=(n, 1)))
    for improved in (False, True):
        assert_zero_mean(slopes(diffusion, x0, given(*pair(n)), improved=improved))
    exact = dj.exact_denoiser(data, diffusion.process)
    few = jax.jit(lambda p: mean_flow_residual(diffusion, p, x0[:40], x0[40:80], *pair(40), teacher=exact))
    np.testing.assert_allclose(few(AT_TRUTH), 0, atol=1e-12)
    assert np.abs(few(AT_TRUTH + 0.3)).mean() > 0.1


# --- any network, any process ---


def wavy(params, x, c_t, c_s, cond):
    """No exact map."""
    return directions(params, x, c_t, c_s) + 0.3 * x


WAVY = np.array([0.5, -0.3, 0.8])


def as_velocity(diffusion, xt, t, y):
    """The line's velocity eps - x0/d of an answer y."""
    x0, eps = recover(diffusion.parameterisation, diffusion.process, y, xt, t)
    return eps - x0 / diffusion.parameterisation.data_std


@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "rectified", "ou"])
def test_the_target_is_the_eulerian_one_in_t_and_in_the_networks_own_answer(name):
    """y + R/kappa with R = dX/dt by a jvp and kappa = dv/dy, up to (alpha_t d + sigma_t)/(alpha_s d + sigma_s)."""
    process = ALL_PROCESSES[name]()
    diffusion = dj.Diffusion(network(wavy), process, dj.parameterisation.EDMPrediction(SD, clock="angle"))
    t, s = pair(20)
    x0, eps = jnp.asarray(rng().normal(size=(2, 20, 2)))
    over = lambda of: of[:, None]

    @jax.jit
    def by_hand():
        flow_map = dj.make_flow_map(diffusion, WAVY, knows="any")
        alpha_dot, sigma_dot = map(over, dj.process.schedule_derivatives(process, t))
        xt = dj.perturb(process, x0, eps, t)
        velocity = alpha_dot * x0 + sigma_dot * eps
        R = jax.jvp(lambda xt, t: flow_map.move(xt, t, s), (xt, t), (velocity, jnp.ones_like(t)))[1]
        answers = [recover(diffusion.parameterisation, process, jnp.full_like(xt, y), xt, t) for y in (1.0, 0.0)]
        (a, b), (c, d) = answers
        kappa = alpha_dot * (a - c) + sigma_dot * (b - d)
        du_dy = b - d - (a - c) / SD
        scale = lambda t: over(process.alpha(t) * SD + process.sigma(t))
        residual = mean_flow_residual(diffusion, WAVY, x0, eps, t, s)
        return residual, -du_dy * R / kappa * scale(t) / scale(s)

    residual, expected = by_hand()
    np.testing.assert_allclose(residual, expected, rtol=1e-8, atol=1e-10)
    assert np.abs(residual).max() > 0.5


@pytest.mark.parametrize("improved", [False, True])
def test_where_s_is_t_it_is_the_denoising_loss_of_the_velocity(improved):
    process = dj.VariancePreserving()
    diffusion = dj.Diffusion(network(wavy), process, dj.VPrediction(SD, clock="angle"))
    t = pair(20)[0]
    x0 = jnp.asarray(rng().normal(size=(20, 2)))

    @jax.jit
    def both():
        loss, aux = mean_flow_loss(
            diffusion, WAVY, jax.random.key(0), x0, pairs=given(t, t), improved=improved, power=0.5, offset=0.2
        )
        eps = normal_like(sample_keys(jax.random.split(jax.random.key(0), 3)[1], jnp.arange(20)), x0)
        native = losses.per_sample_loss(diffusion, WAVY, x0, eps, t, weighting=losses.native)
        slope = as_velocity(diffusion, x0, t, x0 + 1) - as_velocity(diffusion, x0, t, x0)
        return loss, aux, native, slope[:, 0]

    loss, aux, native, slope = both()
    np.testing.assert_allclose(aux["error"], native * slope**2, rtol=1e-10)
    np.testing.assert_allclose(aux["per_sample"], aux["error"] / np.sqrt(aux["error"] + 0.2), rtol=1e-12)
    np.testing.assert_allclose(loss, np.mean(aux["per_sample"]), rtol=1e-12)


def test_the_networks_own_velocity_in_both_teaches_nothing():
    """Which is why the improved loss keeps the conditional velocity in its explicit term: at s = t whatever the network
    answers is its own target."""
    diffusion = dj.Diffusion(network(wavy), dj.Rectified(), dj.parameterisation.EDMPrediction(SD, clock="angle"))
    t, x0 = pair(20)[0], jnp.asarray(rng().normal(size=(20, 2)))
    itself = dj.make_flow_map(diffusion, WAVY, knows="any")
    np.testing.assert_allclose(slopes(diffusion, x0, given(t, t), WAVY, teacher=itself), 0, atol=1e-12)
    assert np.abs(slopes(diffusion, x0, given(t, t), WAVY, improved=True)).max() > 0.1


def test_the_gradient_is_that_of_the_answer_alone():
    """The target is held: sum of 2 (u - target) du/dparams."""
    process = dj.Rectified()
    diffusion = dj.Diffusion(network(wavy), process, dj.parameterisation.EDMPrediction(SD, clock="angle"))
    (t, s), x0 = pair(20), jnp.asarray(rng().normal(size=(20, 2)))
    eps = normal_like(sample_keys(jax.random.split(jax.random.key(0), 3)[1], jnp.arange(20)), x0)

    @jax.jit
    def by_hand():
        xt, prediction = dj.perturb(process, x0, eps, t), diffusion.parameterisation
        seen = xt * prediction.input_scale(process, t)[:, None], *(prediction.noise_level(process, at) for at in (t, s))
        du = jax.jacfwd(lambda p: as_velocity(diffusion, xt, t, wavy(p, *seen, None)))(jnp.asarray(WAVY))
        residual = mean_flow_residual(diffusion, WAVY, x0, eps, t, s, improved=True)
        return jnp.mean(2 * residual[..., None] * du, axis=1)

    each = slopes(diffusion, x0, given(t, s), WAVY, improved=True)
    np.testing.assert_allclose(each, by_hand(), rtol=1e-9, atol=1e-12)


def test_the_ends_of_time_are_finite_also_with_a_teacher():
    """Without noise the teacher's velocity is -x0_hat/d, E[eps | z] being 0."""
    diffusion = dj.Diffusion(
        network(wavy), dj.VariancePreserving(), dj.parameterisation.EDMPrediction(SD, clock="angle")
    )
    (t, s), (x0, eps) = jnp.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), jnp.asarray(rng().normal(size=(2, 3, 2)))
    residual = lambda teacher: mean_flow_residual(diffusion, WAVY, x0, eps, t, s, teacher=teacher)
    without, taught, u = jax.jit(
        lambda: (residual(None), residual(lambda xt, t: 0.5 * xt), residual(lambda xt, t: jnp.zeros_like(xt)))
    )()
    assert np.all(np.isfinite(without))
    assert np.all(np.isfinite(taught))
    np.testing.assert_allclose(taught[0], u[0] + 0.5 * x0[0] / SD, rtol=1e-6)
    np.testing.assert_allclose(without[0], u[0] - eps[0] + x0[0] / SD, rtol=1e-6)


def test_a_power_moves_the_minimum_from_the_mean_to_the_mode():
    """Data .8 N(0, .1^2) + .2 N(3, .1^2), of mean .6, median .03, mode 0; a network that answers one number, t = 1."""
    levels = (np.arange(2000) + 0.5) / 2000
    values = 0.1 * jax.scipy.stats.norm.ppf(jnp.asarray(levels))
    x0 = jnp.concatenate([values, values, values, values, values + 3])[:, None]
    answer = lambda params, x, c_t, c_s, cond: params + 0 * x
    diffusion = dj.Diffusion(network(answer), dj.Rectified(), dj.X0Prediction(clock="angle"))
    one = jnp.ones(x0.shape[0])

    @jax.jit
    def slope(m, power):
        loss = lambda m: mean_flow_loss(
            diffusion, m, jax.random.key(0), x0, pairs=given(one, one), power=power, offset=1e-3
        )[0]
        return jax.grad(loss)(m)

    found = []
    for power in (0, 0.25, 0.5, 0.75, 1):
        low, high = -0.1, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if slope(jnp.asarray(middle), jnp.asarray(power * 1.0)) > 0 else (middle, high)
        found.append(low)
    error = np.asarray(0.3 - x0) ** 2
    weighted = np.mean(2 * (0.3 - x0) * (error + 1e-3) ** -0.75)  # the weight is held
    np.testing.assert_allclose(slope(jnp.asarray(0.3), jnp.asarray(0.75)), weighted, rtol=1e-9)
    np.testing.assert_allclose(found, [0.6, 0.20, 0.035, 0.008, 0.0], atol=5e-3)


# --- guidance ---

STD, MEANS, NULL = 0.4, (-1.0, 1.0), 2


def class_velocity(z, t, label):
    """The velocity on rectified flow of N(-1, .4^2), of N(1, .4^2), and of both in equal parts (label 2), [n, 1]."""
    t = t[:, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    each = [(t - (1 - t) * STD**2) / variance * (z - (1 - t) * m) - m for m in MEANS]
    share = jax.nn.sigmoid(2 * (1 - t) * z / variance)  # of the second
    label = label[:, None]
    return jnp.where(label == 0, each[0], jnp.where(label == 1, each[1], (1 - share) * each[0] + share * each[1]))


def guided_velocity(scale):
    def velocity(z, t, label):
        null = class_velocity(z, t, jnp.full_like(label, NULL))
        return null + jnp.where(label == NULL, 0.0, scale)[:, None] * (class_velocity(z, t, label) - null)

    return velocity


def flown(velocity, z, t, s, label, steps=24):
    """Where the flow of a velocity carries z from t to s, by Runge and Kutta's method, [n, 1]."""
    h = ((s - t) / steps)[:, None]

    def step(z, i):
        at = lambda part, z: velocity(z, t + (i + part) * (s - t) / steps, label)
        a = at(0.0, z)
        b = at(0.5, z + h / 2 * a)
        c = at(0.5, z + h / 2 * b)
        return z + h / 6 * (a + 2 * b + 2 * c + at(1.0, z + h * c)), None

    return jax.lax.scan(step, z, jnp.arange(1.0 * steps))[0]


def test_the_guided_target_is_that_of_the_guided_flow():
    """Of scale omega/(1 - kappa) where there is a label; where it was dropped, of the mixture itself."""
    omega, kappa, n = 1.2, 0.4, 1500
    velocity = guided_velocity(omega / (1 - kappa))

    def answer(params, x, c_t, c_s, label):
        t, s = (jnp.sin(c) / (jnp.cos(c) + jnp.sin(c)) for c in (c_t, c_s))
        z = x * jnp.sqrt((1 - t) ** 2 + t**2)[:, None]
        apart = t > s + 1e-9
        before = jnp.where(apart, s, t - 0.1)
        average = (z - flown(velocity, z, t, before, label)) / (t - before)[:, None]
        return jnp.where(apart[:, None], average, velocity(z, t, label)) + directions(params, x, c_t, c_s)

    diffusion = dj.Diffusion(network(answer), dj.Rectified(), dj.VelocityPrediction(clock="angle"))
    t, s = pair(n)
    label = rng(2).integers(0, 2, n)
    x0 = jnp.asarray(np.array(MEANS)[label] + STD * rng(3).normal(size=n))[:, None]
    label = jnp.asarray(np.where(np.arange(n) % 3 == 0, NULL, label))

    few = slice(0, 100)
    exact = lambda xt, t: xt - t[:, None] * class_velocity(xt, t, label[few])
    residual = jax.jit(
        lambda guidance: mean_flow_residual(
            diffusion, AT_TRUTH, x0[few], x0[:100][::-1], t[few], s[few], label[few], teacher=exact, guidance=guidance
        )
    )
    guidance, none = GuidedVelocity(NULL, omega, kappa), GuidedVelocity(NULL, 1.0, 0.0)
    plain = np.asarray(residual(none))
    np.testing.assert_allclose(residual(guidance), 0, atol=1e-4)
    assert np.all(np.abs(plain[label[few] == NULL]) < 1e-4)
    assert np.median(np.abs(plain[label[few] != NULL])) > 0.05

    # one random x0 a pair, in place of the teacher
    assert_zero_mean(slopes(diffusion, x0, given(t, s), cond=label, guidance=guidance))


def test_guidance_by_hand_in_its_interval_and_where_labels_are_kept():
    def answer(params, x, c_t, c_s, cond):
        return (jnp.sin(c_t) + cond["label"].astype(x.dtype))[:, None] * x + cond["vector"]

    diffusion = dj.Diffusion(network(answer), dj.Rectified(), dj.VelocityPrediction(clock="angle"))
    x0, eps, vector = jnp.asarray(rng().normal(size=(3, 6, 2)))
    vector = vector.at[1].set(0.25)  # dropped: all of it
    label = jnp.array([0, 3, 3, 1, 0, 1])
    t = jnp.array([0.3, 0.5, 0.5, 0.5, 0.7, 0.9])
    cond, null = {"label": label, "vector": vector}, {"label": 3, "vector": 0.25}
    residual = jax.jit(lambda guidance: mean_flow_residual(diffusion, None, x0, eps, t, t, cond, guidance=guidance))
    z = (1 - t)[:, None] * x0 + t[:, None] * eps
    x, angle = z / jnp.sqrt((1 - t) ** 2 + t**2)[:, None], jnp.sin(jnp.arctan2(t, 1 - t))[:, None]
    v = eps - x0
    own, none = angle * x + label[:, None].astype(float) * x + vector, angle * x + 3.0 * x + 0.25
    for kappa in (None, 0.3):
        k = 0.0 if kappa is None else kappa
        v_g = 2.5 * v + (1 - 2.5 - k) * none + k * own
        guided = np.array([False, False, True, True, True, False])[:, None]
        expected = own - np.where(guided, v_g, v)
        np.testing.assert_allclose(residual(GuidedVelocity(null, 2.5, kappa, 0.5, 0.7)), expected, atol=1e-12)


# --- pairs ---

PAIRS = {
    "sorted": lambda: SortedPairs(dj.process.LogitNormalTimes(dj.Rectified(), -0.4, 1.0)),
    "sorted-of-two": lambda: SortedPairs(
        dj.process.LogitNormalTimes(dj.Rectified(), -0.6, 1.6), dj.process.LogitNormalTimes(dj.Rectified(), -2.0, 1.6)
    ),
    "uniform": lambda: UniformPairs(dj.VariancePreserving()),
    "partly-equal": lambda: PartlyEqual(UniformPairs(dj.Rectified()), 0.3),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_have_their_density(name):
    """Counts in a partition of the triangle, against the density's integral over each cell."""
    pairs, n = PAIRS[name](), 40_000
    t, s, correction = map(np.asarray, jax.jit(lambda key: pairs(key, n))(jax.random.key(0)))
    np.testing.assert_array_equal(correction, 1)
    equal = np.abs(s - t) < 1e-12
    assert np.all((s < t) | equal)
    share = 0.3 if name == "partly-equal" else 0.0
    assert abs(np.sum(equal) - share * n) <= 1
    density = jax.jit(lambda t, s: pairs.density(t, s))
    edges, fine = np.linspace(0, 1, 7), 40
    nodes, weights = np.polynomial.legendre.leggauss(fine)
    nodes, weights = (nodes + 1) / 2, weights / 2
    # Over cells below the diagonal as squares, and along it as triangles: s = low + u (t - low).
    for i in range(6):
        for j in range(i + 1):
            a, b = edges[i] + nodes / 6, edges[j]
            width = np.full(fine, 1 / 6) if j < i else a - b
            S = b + nodes[:, None] * width
            T = np.broadcast_to(a, S.shape)
            held = np.asarray(density(T.ravel(), S.ravel())).reshape(S.shape)
            mass = np.sum(weights[:, None] * weights * width / 6 * held)
            inside = (t >= edges[i]) & (t < edges[i + 1]) & (s >= edges[j]) & (s < edges[j + 1]) & ~equal
            assert abs(inside.sum() - mass * n) < SIGMAS * np.sqrt(mass * n) + 2, (i, j)
    outside = np.resize([[0.3, 0.4], [0.5, 0.5]], (fine * fine, 2))
    assert np.all(density(*outside.T) == 0)


def test_uniform_pairs_are_two_uniform_times_sorted():
    """On an interval of their own, with nothing outside."""
    process = dj.process.Schedule(lambda t: 1 - t, lambda t: t**8)
    uniform, sorted_ = UniformPairs(process), SortedPairs(dj.UniformTimes(process))
    low, high = process.interval()
    t, s = jnp.array([0.9, 0.6, 0.5, 0.3, 1.0, 0.4]), jnp.array([0.4, 0.5, 0.5, 0.4, 0.3, 0.1])
    density = jax.jit(lambda t, s: (uniform.density(t, s), sorted_.density(t, s)))
    np.testing.assert_allclose(*density(t, s), rtol=1e-12)
    assert low > 0.2
    np.testing.assert_array_equal(density(t, s)[0] > 0, [True, True, False, False, False, False])
    t, s, _ = jax.jit(lambda key: uniform(key, 4000))(jax.random.key(0))
    assert low <= s.min() < low + 0.01
    assert high - 0.01 < t.max() <= high


def test_pairs_of_corrected_times_are_corrected_in_both():
    times = dj.process.ImportanceTimes(dj.process.LogsnrTimes(dj.Rectified()))
    draw = lambda pairs: map(np.asarray, jax.jit(lambda key: pairs(key, 20_000))(jax.random.key(0)))
    t, s, correction = draw(SortedPairs(times))
    plain = list(draw(UniformPairs(dj.Rectified())))
    for of in (lambda t, s: t, lambda t, s: t * s):
        a, b = correction * of(t, s), np.asarray(of(*plain[:2]))
        assert abs(a.mean() - b.mean()) < SIGMAS * np.sqrt((a.var() + b.var()) / 20_000)


def test_equal_times_are_spread_evenly_over_indices():
    """In any run of indices, to within one; by the index alone, wherever it is drawn; and with equal chances."""
    uniform, key = UniformPairs(dj.Rectified()), jax.random.key(3)

    @jax.jit
    def equal(share, key, index):
        t, s, _ = PartlyEqual(uniform, share)(key, index.size, index=index, total=10**6)
        return jnp.abs(t - s) < 1e-12

    for share in (0.0, 0.25, 0.7, 1.0):
        near, far = (np.asarray(equal(share, key, first + jnp.arange(200))) for first in (0, 10**9))
        for found in (near, far):
            runs = np.convolve(found, np.ones(20), "valid")
            assert np.all(np.abs(runs - share * 20) < 1 + 1e-9)
        np.testing.assert_array_equal(equal(share, key, 50 + jnp.arange(200))[:150], near[50:])
    first = jax.vmap(lambda key: equal(0.25, key, jnp.arange(1))[0])(jax.random.split(key, 2000))
    assert abs(np.mean(np.asarray(first)) - 0.25) < SIGMAS * np.sqrt(0.25 * 0.75 / 2000)


# --- what is refused ---


def test_what_has_no_bounded_derivative_or_makes_no_sense_is_refused():
    process, x0, key = dj.Rectified(), jnp.ones((4, 2)), jax.random.key(0)
    uniform = UniformPairs(process)

    def loss(prediction, process=process, pairs=uniform, **choices):
        return mean_flow_loss(dj.Diffusion(network(wavy), process, prediction), WAVY, key, x0, pairs=pairs, **choices)

    good = dj.parameterisation.EDMPrediction(clock="angle")
    for bad in (dj.EpsPrediction, dj.parameterisation.ScorePrediction):
        with pytest.raises(ValueError, match=r"parameterisation: .* says nothing of x0"):
            loss(bad(clock="angle"))
    for other in (dj.EDM(), dj.VarianceExploding()):
        with pytest.raises(ValueError, match="parameterisation: v diverges on"):
            loss(dj.VPrediction(clock="angle"), other, UniformPairs(other))
    with pytest.raises(ValueError, match=r'clock: .*clock="angle"'):
        loss(dj.parameterisation.EDMPrediction())
    with pytest.raises(ValueError, match="s: a flow map goes from t to s <= t"):
        loss(good, pairs=given(jnp.full(4, 0.2), jnp.full(4, 0.3)))
    with pytest.raises(ValueError, match="improved: a teacher's velocity is exact"):
        loss(good, improved=True, teacher=lambda xt, t: xt)
    with pytest.raises(ValueError, match="guidance: conditions are needed"):
        loss(good, guidance=GuidedVelocity(3, 2.0))
    with pytest.raises(ValueError, match="teacher: must answer shape"):
        loss(good, teacher=lambda xt, t: xt[:, :1])
    with pytest.raises(ValueError, match="offset: must be positive"):
        loss(good, offset=0.0)
    with pytest.raises(ValueError, match="kappa: must be below 1"):
        GuidedVelocity(3, 2.0, 1.0)
    with pytest.raises(ValueError, match=r"share: must lie in \[0, 1\]"):
        PartlyEqual(uniform, 1.5)
    for times in (dj.StratifiedTimes(process), dj.process.LowDiscrepancyTimes(process)):
        with pytest.raises(ValueError, match="times: two draws of"):
            SortedPairs(times)
        with pytest.raises(ValueError, match="other: two draws of"):
            SortedPairs(dj.UniformTimes(process), times)
