"""The denoising diffusion GAN with an exact generator: every step has the law q(xs | xt), and without z it has not."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffjax as dj
from diffjax import gan, networks, process as processes

KEY = jax.random.key(0)
WEIGHTS, MEANS, STDS = np.array([0.3, 0.5, 0.2]), np.array([-1.5, 0.4, 1.6]), np.array([0.3, 0.15, 0.4])
N = 20_000


def betas(steps):
    """Of the paper's chain of so many steps: its times are k/K (1 - 1e-3) + 1e-3 of a variance-preserving process."""
    t = np.arange(steps + 1) / steps * (1 - 1e-3) + 1e-3
    alpha_bar = np.exp(-(t**2) * (20 - 0.1) / 2 - 0.1 * t)
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


PROCESSES = {
    "vp": lambda: (dj.VariancePreserving(), [1.0, 0.7, 0.45, 0.2, 0.0]),
    "chain": lambda: (processes.DiscreteChain(betas(4)), [1.0, 0.75, 0.5, 0.25, 0.0]),
    "rectified": lambda: (dj.Rectified(), [1.0, 0.6, 0.3, 0.0]),
    "edm": lambda: (dj.EDM(), [1.0, 0.5, 0.1, 0.0]),
    "ve": lambda: (dj.VarianceExploding(), [1.0, 0.6, 0.3, 0.0]),
    "ou": lambda: (processes.OrnsteinUhlenbeck(), [1.0, 0.5, 0.2, 0.0]),
    "cosine": lambda: (dj.Cosine(), [1.0, 0.7, 0.3, 0.0]),
}


def posterior(process, t):
    """q(x0 | xt) of the mixture as functions of xt: weights, means [k, b] and standard deviations [k]."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    variance = alpha**2 * STDS**2 + sigma**2
    gain = alpha * STDS**2 / variance
    weights = lambda xt: jax.nn.softmax(
        jnp.log(WEIGHTS)[:, None]
        - 0.5 * jnp.log(variance)[:, None]
        - 0.5 * (xt - alpha * MEANS[:, None]) ** 2 / variance[:, None],
        axis=0,
    )
    means = lambda xt: MEANS[:, None] + gain[:, None] * (xt - alpha * MEANS[:, None])
    return weights, means, STDS * sigma / jnp.sqrt(variance)


def exact_generator(process):
    """A draw of q(x0 | xt) as a function of z ~ N(0, I_2): one number chooses the component, one goes into it."""

    def generator(xt, t, z):
        def one(xt, t, z):
            weights, means, stds = posterior(process, t)
            levels = jnp.cumsum(weights(xt)[:, 0])
            k = jnp.minimum(jnp.sum(jax.scipy.stats.norm.cdf(z[0]) > levels), len(WEIGHTS) - 1)
            return means(xt)[k, :] + stds[k] * z[1]

        return jax.vmap(one)(xt, jnp.broadcast_to(t, xt.shape[:1]), z)

    return generator


def step_law(process, xt, t, s):
    """The distribution function of q(xs | xt), `x [b] -> [b]`: p_s(xs) N(xt; growth xs, std^2), component by component.

    By Bayes' rule from the marginal at s and one step forward: nothing of x0, nor of posterior_mean_std.
    """
    alpha, sigma = float(process.alpha(s)), float(process.sigma(s))
    growth, std = (float(c) for c in process.conditional(jnp.asarray(t), jnp.asarray(s)))
    variance = alpha**2 * STDS[:, None] ** 2 + sigma**2  # of xs, by component
    total = growth**2 * variance + std**2
    log = np.log(WEIGHTS)[:, None] - 0.5 * np.log(total) - 0.5 * (xt - growth * alpha * MEANS[:, None]) ** 2 / total
    weights = np.exp(log - log.max(axis=0))
    weights /= weights.sum(axis=0)
    gain = growth * variance / total
    means = alpha * MEANS[:, None] + gain * (xt - growth * alpha * MEANS[:, None])
    stds = np.sqrt(variance * std**2 / total)
    return lambda x: np.sum(weights * stats.norm.cdf((x - means) / stds), axis=0)


def is_uniform(values):
    """Kolmogorov's distance to the uniform law is what chance alone exceeds once in 10,000."""
    return stats.kstest(np.asarray(values), "uniform").statistic < 2.23 / np.sqrt(len(values))


@pytest.mark.parametrize("name", PROCESSES)
def test_pairs_have_the_law_of_the_step(name):
    """Of data and of an exact generator alike, given xt, at every step; and the pairs' xt has the marginal."""
    process, ts = PROCESSES[name]()
    x0 = dj.GaussianMixture(jnp.asarray(MEANS)[:, None], jnp.asarray(STDS**2), jnp.asarray(WEIGHTS)).sample(KEY, N)
    exact, index = exact_generator(process), jnp.arange(N)
    made = jax.jit(lambda key, x0: gan.denoising_pairs(key, process, ts, exact, x0, latents=2, index=index))
    real, fake, (xt, s, t) = made(jax.random.key(1), x0)
    for upper, lower in itertools.pairwise(ts):
        at = np.asarray(t) == upper
        assert np.all(np.asarray(s)[at] == lower)
        assert abs(at.mean() - 1 / (len(ts) - 1)) < 5 * 0.5 / np.sqrt(N)
        law = step_law(process, np.asarray(xt)[at, 0], upper, lower)
        marginal = np.sqrt(float(process.alpha(upper)) ** 2 * STDS**2 + float(process.sigma(upper)) ** 2)
        scaled = (np.asarray(xt)[at] - float(process.alpha(upper)) * MEANS) / marginal
        assert is_uniform(np.sum(WEIGHTS * stats.norm.cdf(scaled), axis=1))
        assert is_uniform(law(np.asarray(real)[at, 0]))
        assert is_uniform(law(np.asarray(fake)[at, 0]))


def steps(process, ts, xt, stepper, key=KEY):
    return jax.jit(lambda xt: dj.sample(key, process, exact_generator(process), xt, ts, stepper))(xt)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_step_has_the_known_law(name):
    process, ts = PROCESSES[name]()
    for upper, lower in itertools.pairwise(ts):
        xt = 0.3 * float(process.alpha(upper)) + 0.5 * float(process.sigma(upper))
        xs = steps(process, [upper, lower], jnp.full((N, 1), xt), gan.LatentAncestral(2))
        assert is_uniform(step_law(process, xt, upper, lower)(np.asarray(xs)[:, 0]))


def mixture_law(x):
    return np.sum(WEIGHTS * stats.norm.cdf((x[:, None] - MEANS) / STDS), axis=1)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_any_number_of_steps_ends_with_the_data(count):
    """Without z it does not, in few steps."""
    process = dj.VariancePreserving()
    ts = np.linspace(1, 0, count + 1)
    xT = dj.prior(jax.random.key(2), process, (N, 1))
    found = steps(process, ts, xT, gan.LatentAncestral(2))
    assert stats.kstest(np.asarray(found)[:, 0], mixture_law).statistic < 2.23 / np.sqrt(N) + 2e-3  # and the prior
    without = steps(process, ts, xT, gan.LatentAncestral(2, temperature=0.0))
    assert stats.kstest(np.asarray(without)[:, 0], mixture_law).statistic > 0.1


# --- what a deterministic x0 misses ---


def test_the_chain_is_the_papers():
    np.testing.assert_allclose(betas(4), [0.4783, 0.8492, 0.9564, 0.9874], atol=5e-5)
    np.testing.assert_allclose(betas(2), [0.9213, 0.9995], atol=5e-5)
    process, ts = dj.VariancePreserving(), np.arange(5) / 4 * (1 - 1e-3) + 1e-3
    cond_std = process.conditional(jnp.asarray(ts[1:]), jnp.asarray(ts[:-1]))[1]
    np.testing.assert_allclose(cond_std**2, betas(4), rtol=1e-9)


def test_without_a_latent_the_variance_of_gaussian_data_is_missing():
    """Variance 0.3: .226 .570 .906 .985 by steps, against 0 .441 .884 .984 with the mean in the place of a draw."""
    process, variance = processes.DiscreteChain(betas(4)), 0.3
    ts = [1.0, 0.75, 0.5, 0.25, 0.0]

    def generator(xt, t, z):
        alpha, sigma = process.alpha(t), process.sigma(t)
        total = alpha**2 * variance + sigma**2
        return alpha * variance / total * xt + sigma * jnp.sqrt(variance / total) * z

    found = {}
    for temperature in (1.0, 0.0):
        stepper = gan.LatentAncestral(1, temperature)
        run = jax.jit(lambda ts, s=stepper: dj.sample(KEY, process, generator, jnp.full((N, 1), 0.7), ts, s))
        found[temperature] = [float(jnp.var(run(jnp.array(pair)))) for pair in itertools.pairwise(ts)][::-1]
    for temperature, wanted in ((1.0, [0.226, 0.570, 0.906, 0.985]), (0.0, [0.0, 0.441, 0.884, 0.984])):
        np.testing.assert_allclose(found[temperature], wanted, rtol=4.5 * np.sqrt(2 / N), atol=5e-4)


def test_without_a_latent_the_variance_of_a_mixture_is_missing():
    """It is c_x0^2 var(x0 | xt), which no Gaussian of a learned variance makes good: the mixture has two modes."""
    process, t, s = dj.VariancePreserving(), 0.6, 0.0
    xt = jnp.full((N, 1), 0.4)
    weights, means, stds = (
        np.asarray(part(xt[:1])[:, 0] if callable(part) else part) for part in posterior(process, jnp.asarray(t))
    )
    second = np.sum(weights * (means**2 + stds**2)) - np.sum(weights * means) ** 2
    drawn = np.asarray(steps(process, [t, s], xt, gan.LatentAncestral(2)))
    assert abs(drawn.var() - second) < 4.5 * np.std((drawn - drawn.mean()) ** 2) / np.sqrt(N)
    mean = lambda xt, t, z: jnp.sum(posterior(process, t)[0](xt.T) * posterior(process, t)[1](xt.T), axis=0)[:, None]
    flat = dj.sample(KEY, process, mean, xt[:8], [t, s], gan.LatentAncestral(2))
    np.testing.assert_allclose(flat, np.sum(weights * means), rtol=1e-12)
    gaussian = stats.norm(np.sum(weights * means), np.sqrt(second)).rvs(N, random_state=0)
    assert not is_uniform(step_law(process, 0.4, t, s)(gaussian))


@pytest.mark.parametrize("name", PROCESSES)
def test_what_a_latent_adds_to_a_step_is_the_variance_of_x0(name):
    """Of any process: with the mean of x0 in the place of a draw, xs lacks c_x0^2 var(x0 | xt)."""
    process, ts = PROCESSES[name]()
    t, s = ts[1:3]
    xt = jnp.full((N, 1), 0.3 * float(process.alpha(t)) + 0.5 * float(process.sigma(t)))
    weights, means, stds = (np.asarray(p(xt[:1])[:, 0] if callable(p) else p) for p in posterior(process, t))
    mean = np.sum(weights * means)
    c_x0 = dj.samplers.step_weights(gan.LatentAncestral(2), process, [t, s]).c_x0[0]
    missing = c_x0**2 * (np.sum(weights * (means**2 + stds**2)) - mean**2)
    squares = []
    for generator in (exact_generator(process), lambda xt, t, z: jnp.full_like(xt, mean)):
        xs = jax.jit(lambda xt, g=generator: dj.sample(KEY, process, g, xt, [t, s], gan.LatentAncestral(2)))(xt)
        squares.append(np.asarray(xs - xs.mean())[:, 0] ** 2)
    error = np.hypot(*(np.std(each) for each in squares)) / np.sqrt(N)
    assert missing > 6 * error  # so that a latent that adds nothing is seen
    assert abs(squares[0].mean() - squares[1].mean() - missing) < 4.5 * error


# --- weights and networks ---


@pytest.mark.parametrize("name", PROCESSES)
def test_weights_are_those_of_posterior_mean_std(name):
    process, ts = PROCESSES[name]()
    weights = dj.samplers.step_weights(gan.LatentAncestral(1), process, ts)
    t, s = jnp.asarray(ts[:-1]), jnp.asarray(ts[1:])
    x0, xt = np.random.default_rng(0).normal(size=(2, len(ts) - 1, 3))
    mean, std = dj.posterior_mean_std(process, jnp.asarray(x0), jnp.asarray(xt), s, t)
    found = weights.c_x[:, None] * xt + weights.c_x0[:, None] * x0
    np.testing.assert_allclose(found, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(weights.c_z, std, rtol=1e-9, atol=1e-12)


def linear_parts():
    """(generator, discriminator) whose answers show all that they are given."""

    def generate(params, x, c_noise, cond, *, key=None):
        return params["w"] * x + cond.z[:, :1] + 10 * c_noise[:, None] + 100 * cond.cond[:, None]

    def judge(params, pair, c_noise, cond=None, *, key=None):
        return pair @ params["v"][:, None] + c_noise[:, None] + cond[:, None]

    init = lambda name, size: lambda key, x, c_noise, cond=None: {name: jnp.full(size, 0.5)}
    return dj.Network(init("w", ()), generate), dj.Network(init("v", (2,)), judge)


def test_networks_are_given_scaled_pairs_and_the_clock():
    """For a process whose noise grows, xt by 1/sqrt(alpha^2 + sigma^2) and -logsnr/8, and the condition."""
    process = dj.EDM()
    model = gan.DenoisingGAN(*linear_parts(), process, [1.0, 0.4, 0.0], (1,), latents=2)
    x0, cond = jnp.asarray([[0.3], [-0.8], [1.0]]), jnp.asarray([1.0, 2.0, 3.0])
    params = model.init(KEY, x0, cond)
    pairs = model.pairs(params, KEY, x0, cond, index=jnp.arange(3))
    xt, s, t = pairs.given
    size = lambda t: jnp.sqrt(1 + process.sigma(t) ** 2)[:, None]
    clock = -process.logsnr(t) / 8
    v = params["discriminator"]["v"]
    wanted = pairs.real / size(s) * v[0] + xt / size(t) * v[1] + clock[:, None] + cond[:, None]
    np.testing.assert_allclose(model.judge(params, pairs.given, cond)(pairs.real), wanted, rtol=1e-12)
    z = jnp.ones((3, 2))
    wanted = 0.5 * xt / size(t) + z[:, :1] + 10 * clock[:, None] + 100 * cond[:, None]
    np.testing.assert_allclose(model.conditioned(params, cond)(xt, t, z), wanted, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_samples_are_those_of_sample(count):
    """`generate_samples` is the prior and `sample` with the stepper, and a sample's own business."""
    process, ts = dj.VariancePreserving(), [1.0, 0.5, 0.0]
    model = gan.DenoisingGAN(*linear_parts(), process, ts, (1,), latents=2)
    cond = jnp.linspace(0, 1, count)
    params = model.init(KEY, jnp.zeros((1, 1)), cond[:1])
    index = jnp.arange(count) + 5
    found = gan.generate_samples(model, params, KEY, index, cond)
    keys = jax.random.split(KEY)
    xT = dj.prior(keys[0], process, (count, 1), index=index)
    generator = model.conditioned(params, cond)
    wanted = dj.sample(keys[1], process, generator, xT, ts, gan.LatentAncestral(2), index=index)
    np.testing.assert_array_equal(found, wanted)
    last = gan.generate_samples(model, params, KEY, index[-1:], cond[-1:])
    np.testing.assert_allclose(last, found[-1:], rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ts": [0.0, 1.0]}, "ts: must descend, got 0 and then 1"),
        ({"latents": 0}, "latents: at least one is needed, got 0"),
        ({"shape": (0,)}, "shape: positive whole numbers, at least 1, are needed"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    generator, discriminator = linear_parts()
    given = {
        "generator": generator,
        "discriminator": discriminator,
        "process": dj.Cosine(),
        "ts": [1.0, 0.0],
        "shape": (1,),
        "latents": 2,
    }
    with pytest.raises(ValueError, match=message):
        gan.DenoisingGAN(**given | change)
    with pytest.raises(ValueError, match=r"cond: WithLatent\(z, label\) is needed, got NoneType"):
        networks.LatentNetwork(networks.MLP(width=4, depth=1)).init(KEY, jnp.zeros((1, 2)), jnp.zeros(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ts": [0.0, 1.0]}, "ts: must descend, got 0 and then 1"),
        ({"ts": [1.0]}, "ts: at least two times in one dimension are needed"),
        ({"latents": 0}, "latents: at least one is needed, got 0"),
    ],
)
def test_pairs_that_cannot_be_are_refused(change, message):
    given = {"ts": [1.0, 0.0], "latents": 1} | change
    with pytest.raises(ValueError, match=message):
        gan.denoising_pairs(KEY, dj.Cosine(), given.pop("ts"), lambda xt, t, z: xt, jnp.ones((3, 1)), **given)


def test_data_of_another_shape_are_refused():
    """Where they would train a model whose samples have the shape of its own."""
    model = gan.DenoisingGAN(*linear_parts(), dj.Cosine(), [1.0, 0.0], (1,), latents=2)
    params = model.init(KEY, jnp.ones((2, 1)), jnp.ones(2))
    message = r"x0: shape \(2, 1\) is needed"
    with pytest.raises(ValueError, match=message):
        gan.discriminator_loss(model, params, KEY, jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match=message):
        model.init(KEY, jnp.ones((2, 3)), jnp.ones(2))


def test_a_generator_of_networks_wants_its_latents():
    """In a sampler of denoisers, with a stepper of other latents, or a network that takes none, the error says so."""
    process, ts, generator = dj.VariancePreserving(), [1.0, 0.0], networks.LatentNetwork(networks.MLP(width=4, depth=1))
    discriminator = dj.from_linen(networks.Discriminator(width=4, depth=1))
    of = lambda module: gan.DenoisingGAN(dj.from_linen(module), discriminator, process, ts, (2,), latents=3)
    x0 = jnp.ones((2, 2), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        model = of(generator)
        given = model.conditioned(model.init(KEY, x0))
        assert dj.sample(KEY, process, given, x0, ts, gan.LatentAncestral(3)).shape == (2, 2)
        with pytest.raises(ValueError, match=r"z: latents are needed, as the stepper LatentAncestral\(3\) draws them"):
            dj.sample(KEY, process, given, x0, ts, dj.DDIM())
        with pytest.raises(ValueError, match=r"z: \(2, 3\) is needed, the latents=3 of the GAN for each sample"):
            dj.sample(KEY, process, given, x0, ts, gan.LatentAncestral(2))
        for classes, words in (
            (None, "got WithLatent; wrap the network, such as in LatentNetwork"),
            (5, "got WithLatent"),
        ):
            with pytest.raises(ValueError, match=words):
                of(networks.MLP(width=4, depth=1, num_classes=classes)).init(KEY, x0)


def test_a_model_is_an_argument_of_jit():
    """Its networks are no leaves, so that a function of a model compiles."""
    parts = linear_parts()
    plain = gan.GAN(dj.Network(parts[0].init, lambda p, z, c, cond=None, *, key=None: p["w"] * z), parts[1], 1)
    for model in (plain, gan.DenoisingGAN(*parts, dj.Cosine(), [1.0, 0.5, 0.0], (1,), latents=2)):
        params = model.init(KEY, jnp.ones((3, 1)), jnp.ones(3))
        given = KEY, jnp.arange(3), jnp.ones(3)
        found = jax.jit(gan.generate_samples)(model, params, *given)
        np.testing.assert_allclose(found, gan.generate_samples(model, params, *given), rtol=1e-12)


def test_samples_need_no_discriminator():
    """Of a plain and of a denoising GAN: the generator's parameters will do."""
    generator, discriminator = linear_parts()
    cond, index = jnp.ones(3), jnp.arange(3)
    model = gan.DenoisingGAN(generator, discriminator, dj.Cosine(), [1.0, 0.5, 0.0], (1,), latents=2)
    params = model.init(KEY, jnp.ones((3, 1)), cond)
    alone = {"generator": params["generator"]}
    found, wanted = (gan.generate_samples(model, p, KEY, index, cond) for p in (alone, params))
    np.testing.assert_array_equal(found, wanted)
    plain = gan.GAN(dj.Network(generator.init, lambda p, z, c, cond=None, *, key=None: p["w"] * z), discriminator, 2)
    assert gan.generate_samples(plain, alone, KEY, index).shape == (3, 2)


def flow_map(xt, t, s):
    return xt


def test_what_takes_no_latents_is_refused_by_name():
    """A denoiser or a flow map, by `sample`, `sample_n` and `denoising_pairs`."""
    process, ts, stepper = dj.VariancePreserving(), [1.0, 0.5, 0.0], gan.LatentAncestral(2)
    exact = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1), 1.0), process)
    for other in (lambda xt, t: xt, exact, flow_map):
        needed = "such as DenoisingGAN.conditioned(params), got " + type(other).__name__ + ", which takes no latents z"
        by_sampler = re.escape("denoiser: a generator G(xt, t, z) is needed by LatentAncestral, " + needed)
        with pytest.raises(ValueError, match=by_sampler):
            dj.sample(KEY, process, other, jnp.ones((2, 1)), ts, stepper)
        with pytest.raises(ValueError, match=by_sampler):
            dj.sample_n(KEY, process, other, (1,), 2, ts=ts, stepper=stepper)
        with pytest.raises(ValueError, match=re.escape("generator: a generator G(xt, t, z) is needed, " + needed)):
            gan.denoising_pairs(KEY, process, ts, other, jnp.ones((2, 1)), latents=2)


def test_a_generator_may_name_its_latents_as_it_likes():
    """And take more, with defaults."""
    process, ts, xt = dj.VariancePreserving(), [1.0, 0.0], jnp.ones((2, 1))
    for generator in (lambda *given: given[0], lambda xt, t, noise, scale=1.0: scale * xt):
        assert dj.sample(KEY, process, generator, xt, ts, gan.LatentAncestral(2)).shape == xt.shape


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (np.inf, "temperature: a finite number, not below 0, got inf"),
        (np.nan, "temperature: a finite number, not below 0, got nan"),
        (-1.0, r"temperature: a finite number, not below 0, got -1\.0"),
    ],
)
def test_temperatures_that_are_none_are_refused(temperature, message):
    with pytest.raises(ValueError, match=message):
        gan.LatentAncestral(2, temperature)
    model = gan.DenoisingGAN(*linear_parts(), dj.Cosine(), [1.0, 0.0], (1,), latents=2)
    with pytest.raises(ValueError, match=message):
        gan.generate_samples(model, {}, KEY, jnp.arange(2), temperature=temperature)


def test_a_diffrax_solver_of_the_stepper_refuses_a_denoiser():
    """Its own terms call a denoiser, so that a generator is refused by its missing z."""
    process, xT = dj.VariancePreserving(), jnp.ones((3, 1))
    solver, path = dj.samplers.as_diffrax_solver(gan.LatentAncestral(2)), dj.per_sample_path(KEY, 3, (1,))
    terms = dj.reverse_sde(process, lambda xt, t: xt, path)
    with pytest.raises(ValueError, match=r"denoiser: a generator .* is needed by LatentAncestral, .* got function"):
        dj.integrate(terms, xT, np.array([0.6, 0.2]), solver=solver)
