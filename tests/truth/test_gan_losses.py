"""Losses and penalties of GANs against closed forms: the best discriminator, a Gaussian's moments, lazy penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import freeze
from scipy import stats

import diffjax as dj
from diffjax import from_linen, gan, networks, training

KEY = jax.random.key(0)


@pytest.fixture
def standard():
    """optax's Adam and our networks promote dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


LOSSES = {"non-saturating": gan.NonSaturating(), "hinge": gan.Hinge(), "relativistic": gan.Relativistic()}


def fixed(values):
    """A generator that gives these samples [b, *d], whatever z is."""
    return dj.Network(lambda key, z, c, cond=None: {}, lambda params, z, c, cond=None, *, key=None: values)


def on_features(features):
    """A discriminator that is linear in features, `x [b, *d] -> [b, k]`, with weights {"w": [k]}."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        return (features(x) @ params["w"])[:, None]

    return dj.Network(lambda key, x, c, cond=None: {"w": jnp.zeros(features(x).shape[1], x.dtype)}, apply)


def quantiles(law, n):
    """n points of a law on the line whose mean of any function is nearly the expectation: midpoints of equal shares."""
    return law.ppf((np.arange(n) + 0.5) / n)[:, None]


# --- losses ---


def test_losses_are_their_formulas():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3)) * 2
    soft = lambda x: np.log1p(np.exp(x))
    wanted = {
        "non-saturating": (soft(-a) + soft(b), soft(-b)),
        "hinge": (np.maximum(0, 1 - a) + np.maximum(0, 1 + b), -b),
        "relativistic": (soft(b - a), soft(a - b)),
    }
    for name, loss in LOSSES.items():
        found = loss.discriminator(jnp.asarray(a), jnp.asarray(b)), loss.generator(jnp.asarray(a), jnp.asarray(b))
        np.testing.assert_allclose(found, [part.mean(axis=1) for part in wanted[name]], rtol=1e-13)
        own = jax.grad(lambda b, loss=loss: loss.generator(jnp.zeros((1, 1)), b)[0])(jnp.zeros((1, 1)))
        assert float(own[0, 0]) == -loss.slope


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_logits_stay_finite(dtype):
    """As log(1 + e^x) they would overflow from 89 on."""
    far = jnp.array([[300.0], [-300.0]], dtype)
    for loss in LOSSES.values():
        values = [*loss.discriminator(far, -far), *loss.generator(far, -far)]
        assert np.isfinite(np.asarray(values, np.float32)).all()
        assert loss.discriminator(far, -far).dtype == jnp.float32


def test_accuracy_is_of_signs_or_of_pairs():
    """A constant added to all logits costs a relativistic discriminator nothing, so their signs say nothing."""
    real, fake = jnp.array([[2.0], [1.0], [1.0], [-3.0]]), jnp.array([[1.0], [-1.0], [-2.0], [0.0]])
    for name, wanted in (("non-saturating", 0.5 * (3 + 2) / 4), ("hinge", 0.5 * (3 + 2) / 4), ("relativistic", 3 / 4)):
        assert float(LOSSES[name].accuracy(real, fake)) == wanted
    moved = [float(LOSSES["relativistic"].accuracy(real + by, fake + by)) for by in (10.0, -10.0)]
    assert moved == [3 / 4, 3 / 4]
    model = gan.GAN(fixed(real - 10), on_features(lambda x: x), latents=1)  # all logits of samples are negative
    params = {"generator": {}, "discriminator": {"w": jnp.ones(1)}}
    for name, loss in LOSSES.items():
        found = gan.discriminator_loss(model, params, KEY, fake - 10, loss=loss)[1]["accuracy"]
        assert float(found) == {"relativistic": 1 / 4}.get(name, 1 / 2)


# --- the best discriminator ---

P_LAW, Q_LAW = stats.norm(0.0, 1.0), stats.norm(1.0, 0.6)


def best_weights(loss, real, fake, features):
    """The weights of the discriminator that minimises our loss on these samples, by Newton's method."""
    model = gan.GAN(fixed(fake), on_features(features), latents=1)
    params = model.init(KEY, real)

    def value(w):
        return gan.discriminator_loss(model, params | {"discriminator": {"w": w}}, KEY, real, loss=loss)[0]

    @jax.jit
    def newton(w):
        return w - jnp.linalg.solve(jax.hessian(value)(w), jax.grad(value)(w))

    w = params["discriminator"]["w"]
    for _ in range(12):
        w = newton(w)
    return w, value(w)


def weighted_error(found):
    """The root mean square of a function of x minus log p/q, weighted by (p + q)/2, on a fine grid."""
    x = np.linspace(-6, 6, 4001)
    p, q = P_LAW.pdf(x), Q_LAW.pdf(x)
    share = (p + q) / (p + q).sum()
    return np.sqrt(np.sum(share * (found(x) - P_LAW.logpdf(x) + Q_LAW.logpdf(x)) ** 2))


def divergence():
    """JS(p, q) in nats by quadrature."""
    x = np.linspace(-10, 10, 20001)
    p, q = P_LAW.pdf(x), Q_LAW.pdf(x)
    m = 0.5 * (p + q)
    log = lambda r: np.log(np.where(r > 0, r, 1.0) / m)
    return 0.5 * np.sum(p * log(p) + q * log(q)) * (x[1] - x[0])


def test_the_best_discriminator_is_the_log_ratio():
    """Of two Gaussians it is a quadratic; its loss is 2 log 2 - 2 JS."""
    powers = lambda x: jnp.concatenate([jnp.ones_like(x), x, x**2], axis=1)
    real, fake = jnp.asarray(quantiles(P_LAW, 20_000)), jnp.asarray(quantiles(Q_LAW, 20_000))
    w, value = best_weights(gan.NonSaturating(), real, fake, powers)
    assert weighted_error(lambda x: np.polyval(np.asarray(w)[::-1], x)) < 2e-3
    assert abs(float(value) - (2 * np.log(2) - 2 * divergence())) < 1e-4


def test_the_best_relativistic_discriminator_is_the_log_ratio_up_to_a_constant():
    """All pairs of 300 x 300 points."""
    powers = lambda x: jnp.concatenate([x, x**2], axis=1)
    real, fake = np.repeat(quantiles(P_LAW, 300), 300, axis=0), np.tile(quantiles(Q_LAW, 300), (300, 1))
    w, _ = best_weights(gan.Relativistic(), jnp.asarray(real), jnp.asarray(fake), powers)
    first, second = np.asarray(w)
    constant = Q_LAW.logpdf(0.0) - P_LAW.logpdf(0.0)
    assert weighted_error(lambda x: first * x + second * x**2 - constant) < 0.05
    assert weighted_error(lambda x: first * x + second * x**2) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["non-saturating", "relativistic"])
def test_training_a_network_reaches_the_log_ratio_of_mixtures(loss, standard):
    """A perceptron against a fixed generator, by our train step: the error, weighted by p + q, falls below 0.1."""
    means = {"p": jnp.array([-1.0, 1.0]), "q": jnp.array([-0.5, 1.5])}
    draw = lambda key, name, n: (
        jax.random.choice(jax.random.fold_in(key, 0), means[name], (n, 1))
        + 0.5 * jax.random.normal(jax.random.fold_in(key, 1), (n, 1))
    )

    def mixed(params, z, c_noise, cond=None, *, key=None):  # q of z: its sign chooses, its size is another normal
        return jnp.where(z[:, :1] > 0, means["q"][1], means["q"][0]) + 0.5 * z[:, 1:]

    discriminator = from_linen(networks.Discriminator(width=64, depth=3, dtype=jnp.float64))
    model = gan.GAN(dj.Network(lambda *args: {}, mixed), discriminator, latents=2)
    loss_fn = gan.training_losses(model, loss=LOSSES[loss])["discriminator"]
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, 3000))
    objective = training.Objective(loss_fn, tx, "discriminator")
    step = training.make_train_step(objective, ema=lambda step, params, ema: params)
    params = model.init(KEY, jnp.zeros((1, 1)))
    state = training.state_from_params(KEY, params, objective)
    one = jax.jit(lambda state, key: step(state, (draw(key, "p", 1024), None))[0])
    for i in range(3000):
        state = one(state, jax.random.fold_in(KEY, i))
    x = np.linspace(-4, 5, 2001)
    density = {name: np.mean(stats.norm(np.asarray(m)[:, None], 0.5).pdf(x), axis=0) for name, m in means.items()}
    share = (density["p"] + density["q"]) / (density["p"] + density["q"]).sum()
    found = np.asarray(model.judge(state.params)(jnp.asarray(x)[:, None])[:, 0])
    error = found - np.log(density["p"] / density["q"])
    error -= np.sum(share * error) * (loss == "relativistic")
    assert np.sqrt(np.sum(share * error**2)) < 0.1


# --- a linear GAN ---


@pytest.mark.parametrize("loss", [pytest.param("non-saturating", marks=pytest.mark.slow), "relativistic"])
def test_a_linear_gan_reaches_a_gaussians_moments(loss, standard):
    """x = W z + m against a quadratic discriminator, by the moving average of alternating updates."""
    mean, covariance = np.array([1.0, -0.5]), np.array([[1.0, 0.4], [0.4, 0.5]])
    root = jnp.asarray(np.linalg.cholesky(covariance))

    def affine(params, z, c_noise, cond=None, *, key=None):
        return z @ params["w"].T + params["m"]

    start = {"w": 0.5 * jnp.eye(2), "m": jnp.zeros(2)}
    squares = lambda x: jnp.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], axis=1)
    model = gan.GAN(dj.Network(lambda *args: start, affine), on_features(squares), latents=2)
    losses = gan.training_losses(model, loss=LOSSES[loss], r1=0.2, r2=0.2)
    objectives = [training.Objective(loss_fn, optax.adam(5e-3, b1=0.0), name) for name, loss_fn in losses.items()]
    ema = lambda step, params, ema: jax.tree.map(lambda a, b: 0.995 * a + 0.005 * b, ema, params)
    step = training.make_train_step(objectives, ema=ema)
    state = training.state_from_params(KEY, model.init(KEY, jnp.zeros((1, 2))), objectives)

    @jax.jit
    def train(state):
        def body(state, key):
            x0 = jax.random.normal(key, (256, 2)) @ root.T + jnp.asarray(mean)
            return step(state, (x0, None))[0], None

        return jax.lax.scan(body, state, jax.random.split(KEY, 2000))[0]

    reached = training.averaged_params(train(state))["generator"]
    w = np.asarray(reached["w"])
    np.testing.assert_allclose(reached["m"], mean, atol=0.05)
    np.testing.assert_allclose(w @ w.T, covariance, atol=0.08)


# --- what a model's networks are given ---


def showing_parts():
    """(generator, discriminator) of numbers on the line, whose answers show all that they are given."""

    def generate(params, z, c_noise, cond=None, *, key=None):
        return params["w"] * z[:, :1] + 10 * c_noise[:, None] + 100 * cond[:, None]

    def judge(params, x, c_noise, cond=None, *, key=None):
        return params["v"] * x * cond[:, None] + 10 * c_noise[:, None] + cond[:, None]

    parts = {"w": generate, "v": judge}
    return [dj.Network(lambda *args, name=name: {name: jnp.full((), 0.5)}, f) for name, f in parts.items()]


def test_both_networks_of_a_gan_are_given_the_condition():
    """Logits, penalties and losses by hand, of samples with indices of their own; c_noise is 0."""
    model, cond, index = gan.GAN(*showing_parts(), latents=2), jnp.array([0.01, 0.02, 0.03]), jnp.array([7, 3, 5])
    x0 = jnp.array([[0.3], [-0.8], [1.0]])
    params = model.init(KEY, x0, cond)
    eps = np.array([jax.random.normal(jax.random.fold_in(KEY, i), (2,))[0] for i in (7, 3, 5)])
    fake, label = 0.5 * eps + 100 * np.asarray(cond), np.asarray(cond)
    real_logits, fake_logits = 0.5 * np.asarray(x0)[:, 0] * label + label, 0.5 * fake * label + label
    wanted = gan.Relativistic(), jnp.asarray(real_logits)[:, None], jnp.asarray(fake_logits)[:, None]
    samples = gan.generate_samples(model, params, KEY, index, cond)
    np.testing.assert_allclose(samples[:, 0], fake, rtol=1e-12)
    np.testing.assert_allclose(model.decode(params, jnp.asarray(eps)[:, None] * jnp.ones(2), cond), samples)
    given = {"loss": wanted[0], "index": index}
    value, aux = gan.discriminator_loss(model, params, KEY, x0, cond, r1=0.8, r2=0.4, **given)
    np.testing.assert_allclose(aux["real"], real_logits, rtol=1e-12)
    np.testing.assert_allclose(aux["fake"], fake_logits, rtol=1e-12)
    np.testing.assert_allclose(aux["penalty"], 0.6 * (0.5 * label) ** 2, rtol=1e-12)
    judged = wanted[0].discriminator(*wanted[1:])
    np.testing.assert_allclose(aux["per_sample"], judged + aux["penalty"], rtol=1e-12)
    np.testing.assert_allclose(value, jnp.mean(aux["per_sample"]), rtol=1e-12)
    found = gan.generator_loss(model, params, KEY, x0, cond, **given)[1]["per_sample"]
    np.testing.assert_allclose(found, wanted[0].generator(*wanted[1:]), rtol=1e-12)
    context = training.Context(KEY, index=index)
    losses = gan.training_losses(model, loss=wanted[0], r1=0.8, r2=0.4)
    np.testing.assert_allclose(losses["discriminator"](params, (x0, cond), context)[0], value, rtol=1e-12)
    np.testing.assert_allclose(losses["generator"](params, (x0, cond), context)[0], jnp.mean(found), rtol=1e-12)


@pytest.mark.parametrize("name", ["discriminator", "generator"])
def test_a_loss_has_a_gradient_in_the_parameters_that_it_trains_alone(name):
    """Of both networks' and the vectors of spectral norm, where nobody says by `of` what is trained."""
    linear = lambda name: dj.Network(
        lambda key, x, c, cond=None: {name: jnp.eye(2)}, lambda params, x, c, cond=None, *, key=None: x @ params[name]
    )
    model, x0 = gan.GAN(linear("g"), linear("d"), latents=2, spectral=True), jnp.array([[1.0, -2.0], [0.5, 1.0]])
    params = model.init(KEY, x0)
    given = {"r1": 0.5, "r2": 0.5} if name == "discriminator" else {}
    loss_fn = {"discriminator": gan.discriminator_loss, "generator": gan.generator_loss}[name]
    for loss in LOSSES.values():
        found = jax.grad(lambda p, loss=loss: loss_fn(model, p, KEY, x0, loss=loss, **given)[0])(params)
        sizes = {part: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[part])) for part in params}
        assert sizes.pop(name) > 1e-3
        assert set(sizes.values()) == {0.0}
        frozen = loss_fn(model, freeze(params), KEY, x0, loss=loss, **given)[0]
        np.testing.assert_allclose(frozen, loss_fn(model, params, KEY, x0, loss=loss, **given)[0], rtol=1e-12)


# --- penalties ---


def cubic(params, x):
    return (x**3 @ params["w"] + jnp.sum(x, axis=1) ** 2)[:, None]


def test_a_penalty_is_half_gamma_times_the_squared_gradient():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)))
    params = {"w": jnp.arange(4.0)}
    gradient = 3 * x**2 * params["w"] + 2 * jnp.sum(x, axis=1, keepdims=True)
    found = gan.gradient_penalty(lambda x: cubic(params, x), x, 0.7)
    np.testing.assert_allclose(found, 0.35 * jnp.sum(gradient**2, axis=1), rtol=1e-13)
    images = x.reshape(6, 2, 2, 1)
    of_images = lambda x: cubic(params, x.reshape(6, 4))[:, :, None]
    np.testing.assert_allclose(gan.gradient_penalty(of_images, images, 0.7), found, rtol=1e-13)
    single = gan.gradient_penalty(lambda x: cubic(params, x), x[2:3], 0.7)
    np.testing.assert_allclose(single, found[2:3], rtol=1e-13)
    two = lambda x: jnp.concatenate([cubic(params, x), -3 * cubic(params, x)], axis=1)  # their mean is -cubic
    np.testing.assert_allclose(gan.gradient_penalty(two, x, 0.7), found, rtol=1e-13)


def test_a_penalty_in_bfloat16_squares_and_sums_in_float32():
    """1 + 1/128 is a number of bfloat16, its square is none."""
    x = jnp.ones((2, 3), jnp.bfloat16)
    found = gan.gradient_penalty(lambda x: x @ jnp.full((3, 1), 1 + 1 / 128, jnp.bfloat16), x, 2.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 3 * (1 + 1 / 128) ** 2, rtol=1e-6)


def test_a_loss_of_logits_in_bfloat16_is_float32():
    linear = lambda name: dj.Network(
        lambda key, x, c, cond=None: {name: jnp.ones((x.shape[1], 1), x.dtype)},
        lambda params, x, c, cond=None, *, key=None: x @ params[name],
    )
    model, x0 = gan.GAN(linear("g"), linear("d"), latents=2), jnp.ones((4, 1), jnp.bfloat16)
    params = model.init(KEY, x0)
    value, aux = gan.discriminator_loss(model, params, KEY, x0, r1=0.1, r2=jnp.float32(0.1), every=2)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(aux["penalty"], 0.2, rtol=1e-6)
    assert gan.generator_loss(model, params, KEY, x0)[0].dtype == jnp.float32


def test_gamma_is_traced():
    """Annealing it compiles nothing."""
    traces = []

    @jax.jit
    def penalty(gamma):
        traces.append(1)
        return gan.gradient_penalty(lambda x: x**2, jnp.ones((2, 1)), gamma)

    values = [float(penalty(jnp.asarray(gamma))[0]) for gamma in (0.5, 1.0, 0.0)]
    assert values == [1.0, 2.0, 0.0]
    assert len(traces) == 1


@pytest.mark.parametrize("every", [1, 4, 16])
def test_a_lazy_penalty_has_the_eager_gradient_on_average(every):
    """Over `every` steps with the same samples, exactly; and none in between."""
    model = gan.GAN(fixed(jnp.asarray(quantiles(Q_LAW, 7))), on_features(lambda x: jnp.concatenate([x, x**2], 1)), 1)
    real = jnp.asarray(quantiles(P_LAW, 7))
    params = {"generator": {}, "discriminator": {"w": jnp.array([0.3, -0.8])}}

    @jax.jit
    def slope(step, every=every):
        loss = lambda p: gan.discriminator_loss(model, p, KEY, real, r1=0.6, r2=0.2, every=every, step=step)[0]
        return jax.grad(loss)(params)["discriminator"]["w"]

    lazy = np.stack([slope(jnp.asarray(step)) for step in range(every)])
    eager = jax.grad(lambda p: gan.discriminator_loss(model, p, KEY, real, r1=0.6, r2=0.2)[0])(params)
    plain = jax.grad(lambda p: gan.discriminator_loss(model, p, KEY, real)[0])(params)["discriminator"]["w"]
    np.testing.assert_allclose(lazy.mean(axis=0), eager["discriminator"]["w"], rtol=1e-12)
    np.testing.assert_allclose(lazy[1:], np.broadcast_to(plain, lazy[1:].shape), rtol=1e-12)


def test_penalties_are_at_data_and_at_samples():
    """Which of the two gammas goes where."""
    real, fake = jnp.full((3, 1), 2.0), jnp.full((3, 1), 5.0)
    model = gan.GAN(fixed(fake), on_features(lambda x: x**2), latents=1)
    params = {"generator": {}, "discriminator": {"w": jnp.ones(1)}}
    found = gan.discriminator_loss(model, params, KEY, real, r1=0.5, r2=0.1)[1]["penalty"]
    np.testing.assert_allclose(found, 0.25 * (2 * 2.0) ** 2 + 0.05 * (2 * 5.0) ** 2, rtol=1e-13)


# --- spectral norm ---


def test_spectral_norm_divides_by_the_largest_singular_value():
    rng = np.random.default_rng(2)
    params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 5))), "bias": jnp.ones(5)}}
    power = gan.init_power(KEY, params)
    assert list(power) == ["conv/kernel"]
    for _ in range(200):
        normalised, power = gan.spectral_norm(params, power)
    singular = np.linalg.svd(np.asarray(params["conv"]["kernel"]).reshape(36, 5), compute_uv=False)
    np.testing.assert_allclose(normalised["conv"]["kernel"], params["conv"]["kernel"] / singular[0], rtol=1e-9)
    np.testing.assert_array_equal(normalised["conv"]["bias"], 1)


def test_spectral_norm_is_that_of_flax():
    """Values, gradients and vectors of three iterations, one a call."""
    layer = nn.SpectralNorm(nn.Dense(5, param_dtype=jnp.float64), param_dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(7, 4)))
    variables = layer.init(KEY, x, update_stats=False)
    params, state = variables["params"], variables["batch_stats"]
    (name,) = (path for path in gan.init_power(KEY, params))
    (key,) = (key for key in state if key.endswith("/u"))
    power = {name: state[key][0]}

    def ours(params, power):
        kernel = gan.spectral_norm(params, power)[0]["layer_instance"]["kernel"]
        return jnp.sum(jnp.tanh(x @ kernel + params["layer_instance"]["bias"]))

    def flaxs(params, state):
        given = {"params": params, "batch_stats": state}
        return jnp.sum(jnp.tanh(layer.apply(given, x, update_stats=True, mutable=["batch_stats"])[0]))

    for _ in range(3):
        found, wanted = (jax.value_and_grad(f)(params, at) for f, at in ((ours, power), (flaxs, state)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, wanted)
        power = gan.spectral_norm(params, power)[1]
        given = {"params": params, "batch_stats": state}
        state = layer.apply(given, x, update_stats=True, mutable=["batch_stats"])[1]["batch_stats"]
        np.testing.assert_allclose(power[name], state[key][0], rtol=1e-10)


@pytest.mark.slow
def test_a_train_step_is_one_power_iteration(standard):
    """The vectors are carried in the parameters; both losses use the normalised weights."""
    discriminator = from_linen(networks.Discriminator(width=4, depth=1, dtype=jnp.float64))
    generator = from_linen(networks.Perceptron((2,), width=4, depth=1, dtype=jnp.float64))
    model = gan.GAN(generator, discriminator, latents=3, spectral=True)
    x0 = jax.random.normal(KEY, (8, 2))
    params = model.init(KEY, x0)
    losses = gan.training_losses(model, loss=gan.Hinge())
    tx = {"power": optax.sgd(1.0)}
    objectives = [training.Objective(f, tx.get(name, optax.sgd(0.1)), name) for name, f in losses.items()]
    step = training.make_train_step(objectives, ema=lambda step, params, ema: params)
    state = training.state_from_params(KEY, params, objectives)
    after = jax.jit(step)(state, (x0, None))[0].params
    wanted = gan.spectral_norm(after["discriminator"], params["power"])[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), after["power"], wanted)
    normalised = gan.spectral_norm(params["discriminator"], params["power"])[0]
    plain = gan.GAN(generator, discriminator, latents=3)
    for name, loss in (("discriminator", gan.discriminator_loss), ("generator", gan.generator_loss)):
        other = params | {"discriminator": normalised}
        value = jax.jit(lambda model, p, loss=loss: loss(model, p, KEY, x0, loss=gan.Hinge())[0], static_argnums=0)
        np.testing.assert_allclose(value(model, params), value(plain, other), rtol=1e-12, err_msg=name)


def test_the_gradient_of_the_vectors_is_what_an_iteration_takes_away(standard):
    """So that gradient descent of step size 1 is one power iteration."""
    discriminator = from_linen(networks.Discriminator(width=4, depth=1, dtype=jnp.float64))
    model, x0 = gan.GAN(fixed(jnp.ones((3, 2))), discriminator, latents=1, spectral=True), jnp.ones((3, 2))
    params = model.init(KEY, x0)
    loss_fn = gan.training_losses(model)["power"]
    value, found = jax.value_and_grad(lambda u: loss_fn(params | {"power": u}, (x0, None), None)[0])(params["power"])
    after = gan.spectral_norm(params["discriminator"], params["power"])[1]
    jax.tree.map(lambda g, u, v: np.testing.assert_allclose(g, u - v, atol=1e-12), found, params["power"], after)
    np.testing.assert_allclose(value, 0.5 * sum(jnp.sum(g**2) for g in jax.tree.leaves(found)), rtol=1e-12)
    assert value > 0.01


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_layer_that_starts_at_zero_keeps_its_vector(dtype):
    params = {"kernel": jnp.zeros((3, 2), dtype)}
    power = gan.init_power(KEY, params)
    normalised, after = gan.spectral_norm(params, power)
    np.testing.assert_array_equal(normalised["kernel"], 0)
    np.testing.assert_array_equal(after["kernel"], power["kernel"])
    assert normalised["kernel"].dtype == after["kernel"].dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_spectral_norm_of_narrow_parameters_is_that_in_float32(dtype):
    """Then rounded once; squares of these numbers have no place in float16."""
    rng = np.random.default_rng(4)
    params = {"kernel": jnp.asarray(300 * rng.normal(size=(40, 30)), dtype)}
    wide = {"kernel": params["kernel"].astype(jnp.float32)}
    power = {"kernel": gan.init_power(KEY, wide)["kernel"].astype(dtype)}
    found = gan.spectral_norm(params, power)
    wanted = gan.spectral_norm(wide, {"kernel": power["kernel"].astype(jnp.float32)})
    for a, b in zip(found, wanted, strict=True):
        assert a["kernel"].dtype == dtype
        np.testing.assert_array_equal(a["kernel"].astype(float), b["kernel"].astype(dtype).astype(float))


# --- the recipe ---


def test_r3gan_anneals_along_a_cosine(standard):
    recipe = gan.r3gan(200, gamma=2.0, learning_rate=1e-2, beta2=0.5, final_beta2=0.75)
    for step in (0, 50, 200, 999):
        share = 0.5 * (1 + np.cos(np.pi * min(step / 200, 1)))
        np.testing.assert_allclose(recipe.gamma(step), 0.2 + 1.8 * share, rtol=1e-6)
    params = {"w": jnp.zeros(1, jnp.float32)}
    state, moment = recipe.tx.init(params), 0.0
    for step in range(3):
        gradient = np.float32(step + 1.0)
        share = 0.5 * (1 + np.cos(np.pi * step / 200))
        b2, rate = 0.75 - 0.25 * share, 2.5e-3 + 7.5e-3 * share
        moment = b2 * moment + (1 - b2) * gradient**2
        updates, state = recipe.tx.update({"w": jnp.full(1, gradient)}, state, params)
        wanted = -rate * gradient / (np.sqrt(moment / (1 - b2 ** (step + 1))) + 1e-8)
        np.testing.assert_allclose(updates["w"], [wanted], rtol=1e-4)


# --- refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r1": -1.0}, "r1: a finite number, not below 0, got -1.0"),
        ({"r2": float("nan")}, "r2: a finite number, not below 0, got nan"),
        ({"r2": np.inf}, "r2: a finite number, not below 0, got inf"),
        ({"every": 0}, "every: at least 1 is needed, got 0"),
    ],
)
def test_losses_that_cannot_be_are_refused_before_they_are_traced(change, message):
    model = gan.GAN(fixed(jnp.ones((2, 1))), on_features(lambda x: x), latents=1)
    with pytest.raises(ValueError, match=message):
        gan.training_losses(model, **change)
    params = {"generator": {}, "discriminator": {"w": jnp.ones(1)}}
    with pytest.raises(ValueError, match=message):
        gan.discriminator_loss(model, params, KEY, jnp.ones((2, 1)), **change)


def test_a_schedule_is_called_at_each_step():
    """And its value is checked where it is known."""
    model = gan.GAN(fixed(jnp.ones((2, 1))), on_features(lambda x: x), latents=1)
    params, x0 = {"generator": {}, "discriminator": {"w": jnp.ones(1)}}, jnp.ones((2, 1))
    loss_fn = gan.training_losses(model, r1=lambda step: 1.0 - step)["discriminator"]
    assert float(loss_fn(params, (x0, None), training.Context(KEY, 0))[1]["penalty"]) == 0.5
    with pytest.raises(ValueError, match=r"r1: a finite number, not below 0, got -1\.0"):
        loss_fn(params, (x0, None), training.Context(KEY, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": -1.0}, "gamma: a finite number, not below 0, got -1.0"),
        ({"gamma": np.inf}, "gamma: a finite number, not below 0, got inf"),
        ({"final_gamma": -1.0}, "final_gamma: a finite number, not below 0, got -1.0"),
        ({"learning_rate": np.inf}, "learning_rate: a finite number, not below 0, got inf"),
        ({"learning_rate": 0.0}, "learning_rate: must be positive, got 0.0"),
        ({"final_learning_rate": -1.0}, "final_learning_rate: a finite number, not below 0, got -1.0"),
        ({"beta2": 1.0}, r"beta2: a number in \[0, 1\) is needed, got 1.0"),
        ({"beta2": -0.1}, r"beta2: a number in \[0, 1\) is needed, got -0.1"),
        ({"final_beta2": 1.0}, r"final_beta2: a number in \[0, 1\) is needed, got 1.0"),
        ({"steps": 0}, "steps: at least one is needed, got 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gan.r3gan(**{"steps": 10} | change)


def test_zeros_and_one_step_are_a_recipe():
    recipe = gan.r3gan(1, gamma=0.0, final_gamma=0.0, final_learning_rate=0.0, beta2=0.0, final_beta2=0.0)
    assert [float(recipe.gamma(step)) for step in (0, 1)] == [0.0, 0.0]


def test_a_sample_of_temperature_0_is_that_of_the_middle_of_the_latents():
    affine = dj.Network(lambda key, z, c, cond=None: {}, lambda p, z, c, cond=None, *, key=None: 3 * z + 1)
    model, params = gan.GAN(affine, on_features(lambda x: x), latents=2), {"generator": {}}
    np.testing.assert_array_equal(gan.generate_samples(model, params, KEY, jnp.arange(4), temperature=0.0), 1.0)
    for generate in (gan.generate_samples, gan.GAN.generate):
        with pytest.raises(ValueError, match="temperature: a finite number, not below 0, got -"):
            generate(model, params, KEY, jnp.arange(4), temperature=-0.1)


def test_parameters_and_latents_that_do_not_fit_are_refused_by_name():
    affine = dj.Network(lambda key, z, c, cond=None: {}, lambda p, z, c, cond=None, *, key=None: 3 * z + 1)
    model, x0 = gan.GAN(affine, on_features(lambda x: x), latents=2), jnp.ones((3, 2))
    params = model.init(KEY, x0)
    with pytest.raises(
        ValueError, match="params: 'generator' is needed, as init of the GAN makes it, got discriminator"
    ):
        gan.generate_samples(model, {"discriminator": {}}, KEY, jnp.arange(2))
    for function in (gan.generator_loss, gan.discriminator_loss):
        with pytest.raises(ValueError, match="params: 'discriminator' is needed, as init of the GAN makes it, got gen"):
            function(model, {"generator": {}}, KEY, x0)
        with pytest.raises(
            ValueError, match="params: 'generator' is needed, as init of the GAN makes it, got ArrayImpl"
        ):
            function(model, x0, KEY, x0)
    with pytest.raises(ValueError, match=r"z: \(3, 2\) is needed, the latents=2 of the GAN for each sample"):
        model.decode(params, jnp.ones((3, 4)))


def test_spectral_norm_without_its_vectors_is_refused():
    model = gan.GAN(fixed(jnp.ones((2, 1))), on_features(lambda x: x), latents=1, spectral=True)
    params = {"generator": {}, "discriminator": {"w": jnp.ones(1)}}
    with pytest.raises(ValueError, match="params: 'power' is needed, as init of the GAN makes it, got generator, disc"):
        gan.discriminator_loss(model, params, KEY, jnp.ones((2, 1)))
