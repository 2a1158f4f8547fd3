"""Score matching on samples: identities by quadrature, gradients in closed form, and what vanishes at the truth."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PARAMETERISATIONS, ALL_WEIGHTINGS, mixture

import diffjax as dj
from diffjax import losses

SLICED = {"sliced": losses.sliced_score_matching, "sliced-vr": losses.sliced_score_matching_vr}


def all_signs(key, shape, dtype):
    """Every vector of signs in two dimensions: their mean is exactly the expectation over Rademacher draws."""
    return jnp.asarray(list(itertools.product([-1, 1], repeat=2)), dtype).reshape(shape)


def curved(params, x):
    """A score network in the plane whose Jacobian is neither constant nor symmetric."""
    return x @ params["a"] + params["b"] * jnp.tanh(x[:, ::-1] + x**2 / 3)


def curved_params(seed):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.normal(size=(2, 2))), "b": jnp.asarray(rng.normal(size=2))}


def test_implicit_is_explicit_less_a_constant_and_sliced_is_implicit():
    """The mixture's density on a fine grid: E[per_sample] without sampling error, for any score network."""
    process, t = dj.VariancePreserving(), jnp.asarray(0.1)
    axis = np.linspace(-4, 4, 161)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))

    @jax.jit
    def everything(params):
        truth = lambda x: mixture().score(process, x, t)
        key, keywords = jax.random.key(0), {"score_apply": curved}
        explicit = losses.explicit_score_matching(params, key, x, true_score=truth, **keywords)
        each = {"explicit": explicit, "implicit": losses.implicit_score_matching(params, key, x, **keywords)}
        for name, loss in SLICED.items():
            each[name] = loss(params, key, x, projections=4, draw=all_signs, **keywords)
        weight = jnp.exp(mixture().log_prob(process, x, t)) * (axis[1] - axis[0]) ** 2
        constant = 0.5 * jnp.sum(weight * jnp.sum(truth(x) ** 2, axis=1))
        return {name: aux["per_sample"] for name, (_, aux) in each.items()}, weight, constant, explicit[0]

    for seed in range(2):
        each, weight, constant, mean = jax.tree.map(np.asarray, everything(curved_params(seed)))
        assert abs(weight.sum() - 1) < 1e-10
        np.testing.assert_allclose(mean, each["explicit"].mean(), rtol=1e-12)
        expected = {name: np.sum(weight * per_sample) for name, per_sample in each.items()}
        np.testing.assert_allclose(expected["implicit"], expected["explicit"] - constant, rtol=1e-9)
        for name in SLICED:
            np.testing.assert_allclose(each[name], each["implicit"], rtol=1e-11, atol=1e-10, err_msg=name)
        assert abs(expected["explicit"]) > 0.1
        assert constant > 0.1


def test_random_projections_have_the_right_mean_and_variance():
    """Var v'Mv, with M = J for the reduced form and J + s s'/2 for the plain one, is the sum of (M_ij + M_ji)^2 over
    i < j for Rademacher v, and twice the squared norm of M's symmetric part for Gaussian v."""
    n, params = 20000, curved_params(2)
    point = jnp.array([0.7, -0.4])
    x = jnp.broadcast_to(point, (n, 2))

    @jax.jit
    def everything(key):
        drawn = {}
        for draw in (jax.random.rademacher, jax.random.normal):
            for name, loss in SLICED.items():
                drawn[name, draw.__name__] = loss(params, key, x, score_apply=curved, draw=draw)[1]["per_sample"]
        fewer = losses.sliced_score_matching(params, key, x[: n // 8], score_apply=curved, projections=8)[1]
        one = lambda x: curved(params, x[None])[0]
        return drawn, fewer["per_sample"], one(point), jax.jacfwd(one)(point)

    drawn, fewer, s, jacobian = jax.tree.map(np.asarray, everything(jax.random.key(1)))
    for (name, law), values in drawn.items():
        assert abs(values.mean() - s @ s / 2 - np.trace(jacobian)) < 4.5 * values.std() / np.sqrt(n), name
        m = jacobian + (np.outer(s, s) / 2 if name == "sliced" else 0)
        m = (m + m.T) / 2
        variance = 2 * np.sum(m**2) - (2 * np.sum(np.diag(m) ** 2) if law == "rademacher" else 0)
        np.testing.assert_allclose(values.var(), variance, rtol=0.1, err_msg=f"{name} {law}")
    np.testing.assert_allclose(fewer.var(), drawn["sliced", "rademacher"].var() / 8, rtol=0.2)


def test_finite_differences_are_of_second_order():
    """s = x^3 in one dimension, v = +-1: the loss is 1/2 (x^3 + 3 x h^2)^2 + 3 x^2 + h^2 exactly."""
    x = np.linspace(-1.5, 1.5, 7)
    cube = lambda params, x: params * x**3
    run = jax.jit(lambda x, h: losses.finite_difference_sliced(1.0, jax.random.key(0), x, score_apply=cube, step=h)[1])
    exact, errors = 0.5 * x**6 + 3 * x**2, []
    for h in (0.2, 0.1, 0.05):
        value = np.asarray(run(jnp.asarray(x)[:, None], jnp.full(7, h))["per_sample"])
        np.testing.assert_allclose(value, 0.5 * (x**3 + 3 * x * h**2) ** 2 + 3 * x**2 + h**2, rtol=1e-12)
        errors.append(value - exact)
    assert np.all(np.abs(np.log2(errors[1] / errors[2]) - 2) < 0.02)
    np.testing.assert_allclose(errors[2], (3 * x**4 + 1) * 0.05**2, rtol=0.02)  # the coefficient of the docstring


def test_images_and_blocks():
    """A linear score on images [b, 2, 3, 1] has the trace of its matrix, however the directions are blocked; so it has
    on average over all directions of signs."""
    rng = np.random.default_rng(0)
    matrix, x = rng.normal(size=(6, 6)), rng.normal(size=(5, 2, 3, 1))
    apply = lambda params, x: (x.reshape(len(x), -1) @ params.T).reshape(x.shape)
    signs = lambda key, shape, dtype: jnp.asarray(list(itertools.product([-1, 1], repeat=6)), dtype).reshape(shape)

    @jax.jit
    def everything(matrix, x):
        key = jax.random.key(0)
        implicit = lambda m, k: losses.implicit_score_matching(m, key, x, score_apply=apply, block=k)
        values = [implicit(matrix, k)[1] for k in (1, 4, 16)]
        keywords = {"score_apply": apply, "projections": 64, "draw": signs}
        others = [f(matrix, key, x, **keywords)[1]["per_sample"] for f in SLICED.values()]
        gradient = jax.grad(lambda m: implicit(m, 4)[0])(matrix)
        return [value["per_sample"] for value in values], others, gradient

    values, others, gradient = everything(jnp.asarray(matrix), jnp.asarray(x))
    flat = x.reshape(5, 6)
    for value in values + others:
        np.testing.assert_allclose(value, 0.5 * np.sum((flat @ matrix.T) ** 2, 1) + np.trace(matrix), rtol=1e-12)
    np.testing.assert_allclose(gradient, matrix @ (flat.T @ flat) / 5 + np.eye(6), rtol=1e-10)


def test_a_samples_projections_do_not_depend_on_its_batch():
    x, params, index = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2))), curved_params(3), np.array([6, 1, 3])

    @jax.jit
    def everything(key):
        out = []
        for loss in (*SLICED.values(), losses.finite_difference_sliced):
            one = functools.partial(loss, params, key, score_apply=curved, draw=jax.random.normal, projections=2)
            out.append((one(x)[1]["per_sample"], one(x[index], index=jnp.asarray(index))[1]["per_sample"]))
        return out

    for whole, part in everything(jax.random.key(4)):
        np.testing.assert_allclose(part, whole[index], rtol=1e-9)
        assert len(np.unique(whole)) == 8


def test_bad_numbers_are_refused():
    x, keywords = jnp.ones((2, 2)), {"score_apply": curved}
    with pytest.raises(ValueError, match="projections: at least 1 is needed, got 0"):
        losses.sliced_score_matching(curved_params(0), jax.random.key(0), x, projections=0, **keywords)
    with pytest.raises(ValueError, match="block: at least 1 is needed, got 0"):
        losses.implicit_score_matching(curved_params(0), jax.random.key(0), x, block=0, **keywords)
    with pytest.raises(ValueError, match=r"step: must be positive, got -0\.1"):
        losses.finite_difference_sliced(curved_params(0), jax.random.key(0), x, step=-0.1, **keywords)


# --- one gradient ---


def test_every_loss_has_the_closed_form_gradient_of_a_linear_score():
    """s = A x + b at p_t = N(mu, C): d/dA = A (C + mu mu') + b mu' + I and d/db = A mu + b, times 2/d for
    `denoising_loss` on the score and sigma^2 for NCSN's one level."""
    n, d, time = 40000, 2, 0.3
    rng = np.random.default_rng(5)
    mean, covariance = np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]])
    matrix, shift = rng.normal(size=(d, d)) - 2 * np.eye(d), rng.normal(size=d)
    x0 = jnp.asarray(rng.multivariate_normal(mean, covariance, n))
    eps = jnp.asarray(rng.normal(size=(n, d)))
    process = dj.VariancePreserving()  # the input scale of a process of unit variance is 1
    linear = lambda params, x: x @ params[0].T + params[1]
    network = dj.Network(lambda *_: None, lambda params, x, c_noise, cond=None, *, key=None: linear(params, x))

    @jax.jit
    def gradients(params):
        """Per sample, [n, d, d + 1]: a copy of the parameters for each sample makes the mean's gradient theirs."""
        x, key = dj.perturb(process, x0, eps, jnp.asarray(time)), jax.random.key(6)
        each = lambda params, x: jnp.einsum("bij,bj->bi", params[0], x) + params[1]
        own = network._replace(apply=lambda p, x, c_noise, cond=None, *, key=None: each(p, x))
        diffusion = dj.Diffusion(own, process, dj.parameterisation.ScorePrediction())
        one = jnp.array([time])
        of = {
            "implicit": lambda p: losses.implicit_score_matching(p, key, x, score_apply=each),
            "sliced": lambda p: losses.sliced_score_matching(p, key, x, score_apply=each),
            "sliced-vr": lambda p: losses.sliced_score_matching_vr(p, key, x, score_apply=each, draw=jax.random.normal),
            "finite": lambda p: losses.finite_difference_sliced(p, key, x, score_apply=each),
            "denoising": lambda p: dj.denoising_loss(
                diffusion, p, key, x0, times=losses.LevelTimes(one), weighting=losses.on_score
            ),
            "ncsn": lambda p: losses.noise_conditional_loss(diffusion, p, key, x0, ts=one),
            "ncsn-sum": lambda p: losses.noise_conditional_sum(diffusion, p, key, x0, ts=one),
        }
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), params)
        grads = {name: jax.grad(lambda p, f=f: n * f(p)[0])(copies) for name, f in of.items()}
        return {name: jnp.concatenate([a, b[..., None]], -1) for name, (a, b) in grads.items()}, process.sigma(time)

    grads, sigma = jax.tree.map(np.asarray, gradients((jnp.asarray(matrix), jnp.asarray(shift))))
    b = 0.1 * time + 19.9 * time**2 / 2
    alpha, variance = np.exp(-b / 2), 1 - np.exp(-b)
    mu, second = alpha * mean, alpha**2 * covariance + variance * np.eye(d)
    second = second + np.outer(mu, mu)
    exact = np.concatenate([matrix @ second + np.outer(shift, mu) + np.eye(d), (matrix @ mu + shift)[:, None]], axis=1)
    np.testing.assert_allclose(sigma**2, variance, rtol=1e-12)
    factors = {"denoising": 2 / d, "ncsn": variance, "ncsn-sum": variance}
    for name, each in grads.items():
        error = each.mean(0) - factors.get(name, 1.0) * exact
        standard_error = each.std(0) / np.sqrt(n)
        assert np.all(np.abs(error) < 4.5 * standard_error), name
        assert np.linalg.norm(standard_error) < 0.03 * factors.get(name, 1.0) * np.linalg.norm(exact), name


# --- quadrature over data and noise, in one dimension: a mixture of two ---

WEIGHTS, MEANS, STDS = np.array([0.4, 0.6]), np.array([-1.0, 0.9]), np.array([0.5, 0.6])
TIMES = np.array([0.1, 0.45, 0.8])


def nodes():
    """(t, x0, eps, weight) over the product of the times, components and a grid: exact far beyond 1e-10, for the
    trapezoid rule converges geometrically on what is analytic and falls as a Gaussian."""
    z = np.linspace(-8.1, 8.1, 109)
    gauss = np.exp(-(z**2) / 2) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    t, k, a, e = (g.ravel() for g in np.meshgrid(np.arange(3), np.arange(2), *[np.arange(109)] * 2, indexing="ij"))
    return t, MEANS[k] + STDS[k] * z[a], z[e], WEIGHTS[k] * gauss[a] * gauss[e]


def exact_means(alpha, sigma, xt):
    """E[x0 | xt] and E[eps | xt] by hand."""
    spread = alpha[:, None] ** 2 * STDS**2 + sigma[:, None] ** 2
    residual = xt[:, None] - alpha[:, None] * MEANS
    log_r = np.log(WEIGHTS) - 0.5 * jnp.log(spread) - 0.5 * residual**2 / spread
    r = jax.nn.softmax(log_r, axis=1)
    x0 = jnp.sum(r * (MEANS + alpha[:, None] * STDS**2 / spread * residual), axis=1)
    return x0, jnp.sum(r * sigma[:, None] / spread * residual, axis=1)


def exact_network(which, process, member, t):
    """The exact answer for each prediction type, by its definition, plus params @ (1, xt, sin 2xt)."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        xt = x[:, 0] / member.input_scale(process, t)
        alpha, sigma, (alpha_dot, sigma_dot) = (
            process.alpha(t),
            process.sigma(t),
            dj.process.schedule_derivatives(process, t),
        )
        x0, eps = exact_means(alpha, sigma, xt)
        y = {
            "eps": eps,
            "x0": x0,
            "score": -eps / sigma,
            "v": alpha * eps - sigma * x0,
            "velocity": alpha_dot * x0 + sigma_dot * eps,
            "edm": (sigma / 0.5 * x0 - 0.5 * alpha * eps) / jnp.sqrt(alpha**2 / 4 + sigma**2),
        }[which]
        wave = jnp.stack([jnp.ones_like(xt), xt, jnp.sin(2 * xt)])
        return (y + params @ wave)[:, None]

    return dj.Network(lambda *_: None, apply)


@pytest.mark.parametrize("name", ["vp", pytest.param("rectified", marks=pytest.mark.slow)])
def test_gradient_vanishes_at_the_exact_denoiser(name):
    """For every weighting and prediction type, at each of three times, to 1e-10 of its parts; elsewhere it does not."""
    process = {"vp": dj.VariancePreserving, "rectified": dj.Rectified}[name]()
    place, x0, eps, weight = nodes()

    weightings = {name: make() for name, make in ALL_WEIGHTINGS.items()}

    def per_time(x, weight):
        """The integral at each time of x [.., b, 3], [.., 3, 3]."""
        return jnp.sum((weight[:, None] * x).reshape(*x.shape[:-2], 3, -1, 3), axis=-2)

    @eqx.filter_jit
    def slopes(params, x0, eps, t, weight):
        out = {}
        for which, make in ALL_PARAMETERISATIONS.items():
            member = make()
            diffusion = dj.Diffusion(exact_network(which, process, member, t), process, member)
            slope = jax.jacfwd(functools.partial(losses.per_sample_loss, diffusion))
            given = jnp.stack([w(process, member, t) for name, w in weightings.items() if name != "native"])
            each = jax.vmap(lambda row, slope=slope: slope(params, x0, eps, t, weighting=lambda *_: row))(given)
            each = jnp.concatenate([slope(params, x0, eps, t, weighting=losses.native)[None], each])
            out[which] = per_time(each, weight), per_time(jnp.abs(each), weight)
        return out

    arguments = (*(jnp.asarray(v)[:, None] for v in (x0, eps)), jnp.asarray(TIMES[place]), jnp.asarray(weight))
    at_truth = slopes(jnp.zeros(3), *arguments)
    beside = slopes(jnp.array([0.1, -0.1, 0.1]), *arguments)
    for which, (gradient, parts) in jax.tree.map(np.asarray, at_truth).items():
        assert gradient.shape == (len(weightings), 3, 3)  # weightings, times, parameters
        assert np.all(np.abs(gradient) < 1e-10 * parts), which
        assert np.all(np.abs(beside[which][0]).max(-1) > 1e-3 * parts.max(-1)), which


def test_denoising_gradient_is_the_implicit_one_at_p_t():
    """By quadrature on either side, for a score network that is far from the truth; the factor is 2/d = 2."""
    process, member = dj.VariancePreserving(), dj.parameterisation.ScorePrediction()
    params = jnp.array([0.3, -0.7, 0.4])
    net = lambda params, x: params @ jnp.stack([jnp.ones_like(x), x, jnp.sin(2 * x)])
    network = dj.Network(
        lambda *_: None, lambda params, x, c_noise, cond=None, *, key=None: net(params, x[:, 0])[:, None]
    )
    place, x0, eps, weight = nodes()
    x0, eps, w = (v[place == 1] for v in (x0, eps, weight))
    x = np.linspace(-9, 9, 721)

    @jax.jit
    def both(params):
        t = jnp.full(len(x0), TIMES[1])
        diffusion = dj.Diffusion(network, process, member)
        denoising = lambda p: losses.per_sample_loss(
            diffusion, p, jnp.asarray(x0)[:, None], jnp.asarray(eps)[:, None], t, weighting=losses.on_score
        )
        apply = lambda p, x: net(p, x[:, 0])[:, None]
        implicit = lambda p: losses.implicit_score_matching(
            p, jax.random.key(0), jnp.asarray(x)[:, None], score_apply=apply
        )[1]
        return jax.jacfwd(denoising)(params), jax.jacfwd(implicit)(params)["per_sample"]

    denoising, implicit = jax.tree.map(np.asarray, both(params))
    b = 0.1 * TIMES[1] + 19.9 * TIMES[1] ** 2 / 2
    spread = np.exp(-b) * STDS**2 + 1 - np.exp(-b)
    density = np.sum(
        WEIGHTS * np.exp(-((x[:, None] - np.exp(-b / 2) * MEANS) ** 2) / (2 * spread)) / np.sqrt(2 * np.pi * spread), 1
    )
    right = np.sum(density[:, None] * implicit, axis=0) * (x[1] - x[0])
    np.testing.assert_allclose(np.sum(w[:, None] * denoising, axis=0), 2 * right, rtol=1e-9)
    assert np.all(np.abs(right) > 1e-3)
