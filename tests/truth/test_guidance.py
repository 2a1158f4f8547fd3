"""Classifier-free guidance against the Gaussian case, where the guided density is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

KEY = jax.random.key
PROCESS = dj.VariancePreserving


def denoiser(cond, calls=None):
    """A "network" that answers exactly for Gaussian data: mean `cond`, unit variance; variance 2 where cond is nan."""

    def apply(params, x, c_noise, cond, *, key=None):
        if calls is not None:
            calls.append(x.shape[0])
        # With data_std 1 and a VP process the network sees xt itself, and logsnr = -8 c_noise gives alpha and sigma.
        alpha2 = jax.nn.sigmoid(-8 * c_noise)[:, None]
        null = jnp.isnan(cond)
        mean, variance = jnp.where(null, 0.0, cond), jnp.where(null, 2.0, 1.0)
        gain = jnp.sqrt(alpha2) * variance / (alpha2 * variance + 1 - alpha2)
        return params * (mean + gain * (x - jnp.sqrt(alpha2) * mean))

    network = dj.Network(init=lambda *args: jnp.ones(()), apply=apply)
    return dj.make_denoiser(jnp.ones(()), cond, network=network, process=PROCESS(), parameterisation=dj.X0Prediction())


def test_scale_one_is_the_conditional_denoiser_bit_for_bit():
    cond = jnp.array([[0.5], [-1.0], [2.0]])
    plain = denoiser(cond)
    for scale in (1, 1.0, jnp.asarray(1.0), jnp.ones(3)):
        guided = dj.classifier_free(plain, jnp.nan, scale)
        xt = jax.random.normal(KEY(0), (3, 1))
        np.testing.assert_array_equal(guided(xt, jnp.asarray(0.4)), plain(xt, jnp.asarray(0.4)))


@pytest.mark.parametrize("t", [0.3, "each"])
def test_the_guided_score_is_the_combination(t):
    """score = w score(x|c) + (1 - w) score(x), in closed form for Gaussians; one pass on a batch of 2b."""
    calls = []
    cond = jnp.array([[0.5], [-1.0], [2.0]])
    process = PROCESS()
    guided = dj.classifier_free(denoiser(cond, calls), jnp.nan, 3.0)
    xt = jax.random.normal(KEY(0), (3, 1))
    t = jnp.array([0.2, 0.5, 0.8]) if t == "each" else jnp.asarray(t)
    got = dj.score(process, guided, xt, t)
    alpha, sigma = (jnp.reshape(c, (-1, 1)) for c in (process.alpha(t), process.sigma(t)))
    with_condition = -(xt - alpha * cond) / (alpha**2 + sigma**2)
    without = -xt / (2 * alpha**2 + sigma**2)
    np.testing.assert_allclose(got, 3.0 * with_condition - 2.0 * without, rtol=1e-9)
    assert calls == [6]


def test_scales_may_differ_by_sample_and_be_traced():
    cond = jnp.array([[0.5], [-1.0], [2.0]])
    plain, xt, t = denoiser(cond), jax.random.normal(KEY(0), (3, 1)), jnp.asarray(0.4)
    scales = jnp.array([1.0, 2.0, 0.0])
    together = jax.jit(lambda w: dj.classifier_free(plain, jnp.nan, w)(xt, t))(scales)
    alone = [dj.classifier_free(plain, jnp.nan, float(w))(xt, t)[i] for i, w in enumerate(scales)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-12)
    np.testing.assert_allclose(together[0], plain(xt, t)[0], rtol=1e-14)


def test_pytrees_of_conditions_and_any_sampler():
    """Guidance is a denoiser: it samples, and N(2, 1) against N(0, 2) at scale 1.5 has the known mean."""
    process, n = PROCESS(), 4000
    guided = dj.classifier_free(denoiser(jnp.full((n, 1), 2.0)), jnp.nan, 1.5)
    xt = dj.prior(KEY(1), process, (n, 1))
    x0 = dj.sample(KEY(2), process, guided, xt, dj.logsnr_grid(process, 40), dj.DPMpp2M())
    # Along the flow the guided drift is affine in x, so the mean follows its own ODE; solve it by fine Euler steps.
    ts = np.linspace(1.0, 1e-4, 20_001)
    mean = 0.0
    for t, s in itertools.pairwise(ts):
        alpha2 = float(np.exp(-(0.1 * t + 9.95 * t**2)))
        beta = 0.1 + 19.9 * t
        score = 1.5 * -(mean - alpha2**0.5 * 2.0) + 0.5 * mean / (1 + alpha2)
        mean += (s - t) * (-0.5 * beta * mean - 0.5 * beta * score)
    assert abs(float(x0.mean()) - mean) < 4 * float(x0.std()) / n**0.5 + 0.01


def test_bad_arguments():
    with pytest.raises(ValueError, match="denoiser: a NetworkDenoiser with a condition is needed"):
        dj.classifier_free(denoiser(None), jnp.nan, 2.0)
    with pytest.raises(ValueError, match="null: the condition's tree"):
        dj.classifier_free(denoiser(jnp.zeros((2, 1))), {"label": 0}, 2.0)
