"""Hierarchical VAEs against closed forms: mutual informations, exact posteriors, and DDPM's bound term by term."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import diffjax as dj
from diffjax import losses, networks, vae

KEY = jax.random.key(0)
NETWORK = networks.TopDown((8, 8, 1), channels=(8,), blocks=(1,), outputs=1)


def hierarchy():
    """The two-level model of 2, 3 and 5 numbers whose informations are 0.4512 and 2.5988 nats."""
    rng = np.random.default_rng(0)
    top_weight = rng.normal(size=(3, 2))
    return vae.LinearHierarchy(top_weight, 0.5 * np.eye(3), rng.normal(size=(5, 3)), 0.3)


def test_the_rates_at_the_exact_posterior_are_mutual_informations():
    """0.4512, 2.5988, and their sum 3.0500; the ELBO is log p(x), by a full Gaussian; slopes by q vanish."""
    model = hierarchy()
    posterior = model.posterior()
    elbo, rates = jax.jit(lambda q: model.elbo(q))(posterior)
    assert [f"{nats:.4f}" for nats in rates] == ["0.4512", "2.5988"]
    assert f"{rates.sum():.4f}" == "3.0500"
    np.testing.assert_allclose(rates, model.information(), rtol=1e-12)
    covariance = np.asarray(model.data_covariance())
    np.testing.assert_allclose(elbo, -0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1], rtol=1e-12)
    np.testing.assert_allclose(model.log_likelihood(), elbo, rtol=1e-12)
    slope = jax.jit(jax.grad(lambda q: model.elbo(q)[0]))(posterior)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 1e-12
    other = jnp.asarray(covariance + np.eye(5))
    exact = stats.multivariate_normal(np.zeros(5), covariance)
    by_points = np.mean([exact.logpdf(s * x) for x in np.linalg.cholesky(5 * other).T for s in (-1, 1)])
    np.testing.assert_allclose(model.elbo(posterior, other)[0], by_points, rtol=1e-12)
    np.testing.assert_allclose(model.log_likelihood(other), by_points, rtol=1e-12)


def test_the_bound_of_any_posterior_is_that_of_draws():
    """A wrong q, by drawing z2 and z1: each rate and the ELBO are the means of their densities' logarithms."""
    model, rng, n = hierarchy(), np.random.default_rng(1), 100_000
    exact = model.posterior()
    wrong = jax.tree.map(lambda leaf: 1.1 * leaf + 0.05 * rng.normal(size=leaf.shape), exact)
    elbo, rates = model.elbo(wrong)
    x = rng.multivariate_normal(np.zeros(5), np.asarray(model.data_covariance()), n)
    q = jax.tree.map(np.asarray, wrong)
    mean2 = x @ q.top_gain.T
    z2 = mean2 + rng.normal(size=(n, 2)) @ q.top_scale.T
    mean1 = x @ q.gain.T + z2 @ q.top_weight.T
    z1 = mean1 + rng.normal(size=(n, 3)) @ q.scale.T
    log = lambda x, covariance: stats.multivariate_normal(np.zeros(x.shape[1]), covariance).logpdf(x)
    top = log(z2 - mean2, q.top_scale @ q.top_scale.T) - log(z2, np.eye(2))
    low = log(z1 - mean1, q.scale @ q.scale.T) - log(z1 - z2 @ np.asarray(model.top_weight).T, 0.5 * np.eye(3))
    reconstruction = log(x - z1 @ np.asarray(model.weight).T, 0.3 * np.eye(5))
    for draws, closed in ((top, rates[0]), (low, rates[1]), (reconstruction - top - low, elbo)):
        assert abs(draws.mean() - closed) < 4.5 * draws.std() / np.sqrt(n)
    assert elbo < model.log_likelihood() - 0.1


def test_training_q_alone_reaches_the_informations():
    """From a q that knows nothing, with full covariances, to the rates of the exact posterior."""
    model = hierarchy()
    exact = model.posterior()
    leaves, tree = jax.tree.flatten(exact)
    ends = np.cumsum([leaf.size for leaf in leaves])

    def posterior(flat):
        parts = jnp.split(flat, ends[:-1])
        return jax.tree.unflatten(tree, [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)])

    square = [float(leaf.shape[0] == leaf.shape[1]) for leaf in leaves]  # scales start at 1, gains at 0
    start = np.concatenate([c * np.eye(*leaf.shape).ravel() for c, leaf in zip(square, leaves, strict=True)])
    loss = jax.jit(jax.value_and_grad(lambda flat: -model.elbo(posterior(flat))[0]))
    found = optimize.minimize(lambda x: tuple(map(np.asarray, loss(x))), start, jac=True, method="BFGS")
    np.testing.assert_allclose(-found.fun, model.log_likelihood(), atol=1e-9)
    np.testing.assert_allclose(model.elbo(posterior(jnp.asarray(found.x)))[1], model.information(), atol=1e-4)
    assert loss(start)[0] > found.fun + 1


def test_data_determine_the_sum_of_the_rates_alone():
    """The same p(x), split as (0.451, 2.599), (0, 3.050) and (1.226, 1.824): all with the same log p and ELBO."""
    model = hierarchy()
    latent = np.asarray(model.top_weight @ model.top_weight.T + model.covariance)  # of z1, whatever z2 is

    def split(covariance):
        """The model of the same p(z1) in which z1 has this covariance given z2."""
        axes = np.linalg.eigh(latent - covariance)
        top_weight = axes[1] * np.sqrt(np.maximum(axes[0], 0))
        return vae.LinearHierarchy(top_weight, covariance, model.weight, 0.3)

    share = optimize.brentq(lambda share: split(share * latent).information()[0] - 1.226, 0.2, 0.5)
    rates = []
    for other in (model, split(latent), split(share * latent)):
        np.testing.assert_allclose(other.data_covariance(), model.data_covariance(), rtol=1e-10)
        elbo, own = other.elbo(other.posterior(), model.data_covariance())
        np.testing.assert_allclose(elbo, model.log_likelihood(), rtol=1e-10)
        rates.append([f"{abs(nats):.3f}" for nats in own])
    assert rates == [["0.451", "2.599"], ["0.000", "3.050"], ["1.226", "1.824"]]
    # A decoder that needs no top level leaves it nothing, as the lower level's own noise grows.
    tops = [
        vae.LinearHierarchy(model.top_weight, s * np.eye(3), model.weight, 0.3).information()[0] for s in (1, 10, 1e4)
    ]
    assert tops[0] > tops[1] > tops[2]
    assert tops[2] < 1e-3


class Line(vae.AbstractVAE):
    """z2 -> z1 -> x, one number each, with the exact posteriors: both are diagonal, for there is nothing else."""

    likelihood: vae.AbstractLikelihood = eqx.field(default_factory=lambda: vae.GaussianLikelihood(0.5))
    a: ClassVar[float] = 0.8
    s: ClassVar[float] = 0.6
    w: ClassVar[float] = 1.3

    def init(self, key, x0, cond=None):
        return {"likelihood": {}}

    def top_down(self, params, draw, n, x0, cond=None, *, key=None):
        a, s, w, noise = self.a, self.s, self.w, 0.25
        full = lambda std: jnp.full((n, 1), np.log(std))
        given = w**2 * s**2 + noise  # the variance of x given z2
        top = None
        if x0 is not None:
            variance = 1 / (1 + (w * a) ** 2 / given)
            top = vae.DiagonalGaussian(variance * w * a / given * x0, full(np.sqrt(variance)))
        z2 = draw(vae.StandardNormal(), top, (n, 1))
        prior, low = vae.DiagonalGaussian(a * z2, full(s)), None
        if x0 is not None:
            variance = 1 / (1 / s**2 + w**2 / noise)
            low = vae.DiagonalGaussian(variance * (a / s**2 * z2 + w / noise * x0), full(np.sqrt(variance)))
        return w * draw(prior, low, (n, 1))


def test_a_hierarchy_with_exact_posteriors_weighs_every_draw_with_the_likelihood():
    """log p(x, z) - log q(z | x) = log p(x), wherever z falls, by `infer`, `iwae_bound`, and at given latents; its
    rates are mutual informations."""
    line, variance = Line(), 0.25 + 1.3**2 * (0.36 + 0.64)
    x0 = jnp.asarray(np.sqrt(variance) * np.random.default_rng(0).normal(size=(20_000, 1)))
    inference = jax.jit(lambda x: vae.infer(line, {"likelihood": {}}, KEY, x))(x0)
    exact = stats.norm.logpdf(np.asarray(x0)[:, 0], 0, np.sqrt(variance))
    np.testing.assert_allclose(inference.log_weight, exact, rtol=1e-9)
    np.testing.assert_allclose(vae.iwae_bound(line, {"likelihood": {}}, KEY, x0[:9], draws=2)[0], exact[:9], rtol=1e-9)
    z = (jnp.full((9, 1), 0.3), jnp.full((9, 1), -0.7))
    np.testing.assert_allclose(vae.infer_at(line, {"likelihood": {}}, z, x0[:9]).log_weight, exact[:9], rtol=1e-9)
    informations = vae.LinearHierarchy([[0.8]], [[0.36]], [[1.3]], 0.25).information()
    rates = np.asarray(inference.rates)
    assert np.all(np.abs(rates.mean(0) - informations) < 4.5 * rates.std(0) / np.sqrt(20_000))
    np.testing.assert_allclose(vae.rate_by_level(inference.levels), rates.mean(0), rtol=1e-12)
    loss, aux = vae.negative_elbo(line, {"likelihood": {}}, KEY, x0)
    assert abs(loss + exact.mean()) < 4.5 * aux["standard_error"]
    assert aux["rates"].shape == (20_000, 2)


def test_a_hierarchy_generates_its_own_distribution_level_by_level():
    line, index = Line(), jnp.arange(20_000)
    draw = jax.jit(lambda t2, t1: vae.generate(line, {"likelihood": {}}, KEY, index, temperature=(t2, t1), noise=False))
    for top, low in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.0)):
        exact = 1.3**2 * (top**2 * 0.64 + low**2 * 0.36)
        np.testing.assert_allclose(np.var(draw(top, low)), exact, rtol=0.05)
    noisy = vae.generate(line, {"likelihood": {}}, KEY, index)
    np.testing.assert_allclose(np.var(noisy), 1.69 + 0.25, rtol=0.05)
    z = (jnp.ones((3, 1)), jnp.full((3, 1), 2.0))
    np.testing.assert_allclose(vae.decode(line, {"likelihood": {}}, z), 2.6)


# --- diffusion as a hierarchy ---

TS = np.array([1.0, 2 / 3, 1 / 3])


def chain(apply, member, process, x0, decoder=losses.gaussian_decoder):
    """(diffusion, its chain of three levels, parameters)."""
    diffusion = dj.Diffusion(dj.Network(lambda key, x, c_noise, cond=None: jnp.asarray(0.3), apply), process, member)
    model = vae.DiffusionChain(diffusion, TS, x0.shape[1:], decoder)
    return diffusion, model, model.init(KEY, x0)


def points(*shape):
    return jnp.asarray(np.random.default_rng(4).normal(size=shape))


def test_the_levels_of_ddpms_chain_are_the_terms_of_the_discrete_bound():
    """A prediction x0_hat = c has the same error wherever xt is, so that the loss itself has each level's rate: the
    prior term, and K times a step's share of the diffusion term for the step that a sample drew."""
    process, x0 = dj.process.DiscreteChain(np.array([0.1, 0.3, 0.7])), points(10, 2, 3)
    constant = lambda params, x, c_noise, cond=None, *, key=None: params + 0 * x
    diffusion, model, params = chain(constant, dj.X0Prediction(), process, x0)
    rates, parts = jax.jit(
        lambda params: (
            vae.infer(model, params, KEY, x0).rates,
            losses.negative_discrete_elbo(diffusion, params["network"], KEY, x0, ts=TS)[1],
        )
    )(params)
    assert rates.shape == (10, 3)
    np.testing.assert_allclose(rates[:, 0], parts["prior"], rtol=1e-10)
    step = np.argmin(np.abs(TS[:-1, None] - np.asarray(parts["t"])), axis=0)
    assert set(step) == {0, 1}
    np.testing.assert_allclose(2 * rates[np.arange(10), 1 + step], parts["diffusion"], rtol=1e-10)


def test_the_levels_of_a_chain_are_those_of_the_bound_for_a_network_that_looks():
    """At the chain's own xt, whose eps is known: error, weight and decoder by the parts the bound is made of."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        return params * jnp.tanh(x) + 0.1 * c_noise[:, None]

    process, x0 = dj.VariancePreserving(), points(10, 3)
    diffusion, model, params = chain(apply, dj.VPrediction(), process, x0)

    @jax.jit
    def compared(params):
        inference, steps = vae.infer(model, params, KEY, x0), 2
        repeat = lambda values: jnp.repeat(jnp.asarray(values), 10)
        z, t = jnp.concatenate([level.z for level in inference.levels]), repeat(TS)
        eps = (z - process.alpha(t)[:, None] * jnp.tile(x0, (3, 1))) / process.sigma(t)[:, None]
        given = (diffusion, params["network"], jnp.tile(x0, (2, 1)), eps[:20], t[:20])
        error = losses.per_sample_loss(*given, weighting=losses.constant)
        weight = repeat(losses.snr_differences(process, jnp.asarray(TS)))
        noise, ends = jnp.tile(eps[20:], (2, 1)), (TS[-1], TS[0])
        parts = losses.bound_parts(process, given[2], error, noise, weight, ends, losses.gaussian_decoder)
        rates = jnp.stack([parts["prior"][:10], *parts["diffusion"].reshape(steps, 10)], axis=1)
        return inference.rates, rates, -inference.log_likelihood, parts["reconstruction"][:10]

    rates, by_loss, nats, reconstruction = compared(params)
    np.testing.assert_allclose(rates, by_loss, rtol=1e-9)
    np.testing.assert_allclose(nats, reconstruction, rtol=1e-9)


def test_the_bound_of_a_chain_is_the_discrete_bound_in_the_mean():
    """By both losses over many draws, for data of quantised levels and their decoder; and it generates."""
    process, decoder = dj.VariancePreserving(), losses.LevelDecoder(5)
    x0 = jnp.broadcast_to(jnp.asarray(np.linspace(-1, 1, 5)[[0, 3]]), (4000, 2))
    scaled = lambda params, x, c_noise, cond=None, *, key=None: 2 * params * x
    diffusion, model, params = chain(scaled, dj.EpsPrediction(), process, x0, decoder)
    other = jax.random.key(1)
    ours, theirs, drawn = jax.jit(
        lambda params: (
            vae.negative_elbo(model, params, KEY, x0),
            losses.negative_discrete_elbo(diffusion, params["network"], other, x0, ts=TS, reconstruction=decoder),
            vae.generate(model, params, KEY, jnp.arange(7)),
        )
    )(params)
    error = np.hypot(ours[1]["standard_error"], theirs[1]["standard_error"])
    assert abs(ours[0] - theirs[0]) < 4.5 * error
    assert error < 0.05 * ours[0]
    assert drawn.shape == (7, 2)


def test_bad_input_is_refused_by_name():
    model = hierarchy()
    given = {"top_weight": model.top_weight, "covariance": model.covariance, "weight": model.weight, "variance": 0.3}
    for name, wrong, words in (
        ("variance", 0.0, "variance: must be positive, got 0"),
        (
            "covariance",
            jnp.diag(jnp.array([1.0, 1.0, 0.0])),
            "covariance: must be positive definite, got an",
        ),
        ("top_weight", jnp.zeros((3, 0)), r"top_weight: at least one latent a level is needed, \[k1, k2\], got shape"),
        ("weight", jnp.zeros((5, 2)), r"covariance, weight: shapes \(3, 3\) and \(n, 3\) are needed"),
        ("weight", jnp.zeros(5), "weight: a matrix is needed, got shape"),
    ):
        with pytest.raises(ValueError, match=words):
            vae.LinearHierarchy(**(given | {name: wrong}))

    class Empty(Line):
        def top_down(self, params, draw, n, x0, cond=None, *, key=None):
            posterior = None if x0 is None else vae.DiagonalGaussian(x0, x0)
            draw(vae.StandardNormal(), posterior, (n, 1))
            return draw(vae.StandardNormal(), posterior, (n, 0))

    class Levelless(Line):
        def top_down(self, params, draw, n, x0, cond=None, *, key=None):
            return x0

    x0 = jnp.ones((2, 1))
    needed = r"latents: at least one latent is needed at level 1 \(0 is the top\)"
    with pytest.raises(ValueError, match=needed):
        vae.negative_elbo(Empty(), {"likelihood": {}}, KEY, x0)
    with pytest.raises(ValueError, match=needed):
        vae.generate(Empty(), {}, KEY, jnp.arange(1))
    with pytest.raises(ValueError, match="vae: at least one level of latents is needed, got none of Levelless"):
        vae.negative_elbo(Levelless(), {"likelihood": {}}, KEY, x0)
    with pytest.raises(ValueError, match="network: DiscretisedLogistic needs outputs=2, got 1"):
        vae.HierarchicalVAE(NETWORK, vae.DiscretisedLogistic())
    given = (lambda params, x, c_noise, cond=None, *, key=None: x, dj.EpsPrediction(), dj.VariancePreserving())
    diffusion, *_ = chain(*given, points(2, 3))
    with pytest.raises(ValueError, match="ts: must descend"):
        vae.DiffusionChain(diffusion, TS[::-1], (3,))
    with pytest.raises(ValueError, match=r"ts: logsnr must be finite on the grid, got inf at t = 0\.0"):
        vae.DiffusionChain(diffusion, np.array([1.0, 0.5, 0.0]), (3,))
