"""Averages, sums and second moments of numbers in low precision are kept in float32 at least."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax import guidance, inverse, likelihood, metrics, samplers, training
from diffjax._arrays import mean_features, sum_features
from diffjax.losses._coupling import _costs
from diffjax.networks import Text, pooled

LOW = [jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(
    ("update", "truth"),
    [
        (training.make_ema(0.9999, warmup=False), 2 - 0.9999**10_000),  # from 1 towards 2: 1.632
        (training.make_power_ema(0.1), 2.0),  # forgets where it began
    ],
)
def test_an_average_of_parameters_moves(update, truth, dtype):
    params = jnp.full(3, 2.0, dtype)
    start = training.state_from_params(jax.random.key(0), jnp.ones(3, dtype), optax.sgd(0.1)).ema
    body = lambda n, ema: update(n, params, ema)
    np.testing.assert_allclose(jax.jit(lambda ema: jax.lax.fori_loop(0, 10_000, body, ema))(start), truth, rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_of_bfloat16_parameters_keeps_float32_moments_and_sums(accumulate):
    """A thousand steps with a gradient of 1: Adam's moments, and sums of parts that bfloat16 could not add up."""
    tx = optax.scale_by_adam(b1=0.9, b2=0.999)
    parts = jnp.asarray([1.0, 1e-3, 1e-3, 1e-3])  # 1 + .001 = 1 in bfloat16

    def loss(params, batch, context):
        return jnp.mean(batch.astype(params.dtype)) * params.sum(), {}

    step = jax.jit(
        training.make_train_step(
            training.Objective(loss, tx), ema=training.make_ema(0.999, warmup=False), accumulate=accumulate
        )
    )
    state = training.state_from_params(jax.random.key(0), jnp.ones(1, jnp.bfloat16), tx)
    state, metrics = step(state, parts)
    assert float(metrics["grad_norm"]) == pytest.approx(float(jnp.mean(parts)), rel=5e-4 if accumulate > 1 else 5e-3)
    for _ in range(300):
        state, _ = step(state, jnp.ones(4))
    adam = state.opt_state
    assert {leaf.dtype for leaf in jax.tree.leaves((adam.mu, adam.nu, state.ema))} == {jnp.dtype("float32")}
    assert float(adam.nu[0]) == pytest.approx(1 - 0.999**301, rel=0.01)
    assert state.params.dtype == jnp.bfloat16


def test_sums_and_means_over_features():
    """4096 ones and as many small numbers beside them: bfloat16 stops counting at 256, and rounds 0.4 %."""
    x = jnp.full((1, 4096), 1.0, jnp.bfloat16).at[0, ::2].set(jnp.bfloat16(2**-8))
    assert sum_features(x).dtype == mean_features(x).dtype == jnp.float32
    assert float(sum_features(x)[0]) == 2048 * (1 + 2**-8)
    assert float(mean_features(x)[0]) == (1 + 2**-8) / 2


def test_the_running_mean_of_a_chain():
    """Langevin steps of size 0 stay where they are: the mean of 2000 equal states is that state."""
    x = jnp.ones((1, 2), jnp.bfloat16)
    found = samplers.langevin(jax.random.key(0), lambda x: -x, x, steps=2000, step_size=1e-12, average=lambda x: x)
    np.testing.assert_allclose(found.average, 1.0, rtol=1e-4)


def test_resampling_of_a_thousand_particles():
    """Equal weights: every particle is drawn once. Summed in bfloat16 their cumulative weights stand still."""
    chosen = inverse.systematic(jax.random.key(0), jnp.zeros(1000, jnp.bfloat16))
    np.testing.assert_array_equal(np.sort(chosen), np.arange(1000))


def test_pooled_text_in_bfloat16():
    """700 tokens: their number is not one of bfloat16's."""
    text = Text(jnp.ones((1, 900, 2)).at[:, :700:2].set(3.0), jnp.arange(900)[None] < 700)
    np.testing.assert_array_equal(np.asarray(pooled(text, jnp.bfloat16), np.float32), 2.0)


def test_guidance_in_bfloat16_is_rounded_once():
    """Rescaled and projected guidance of bfloat16 answers against float64: the norms are of 3000 features."""
    rng = np.random.default_rng(0)
    cond, uncond = (jnp.asarray(rng.normal(size=(2, 3000)), jnp.bfloat16) for _ in range(2))
    t = jnp.asarray(0.5)
    for rule in (guidance.Rescaled(1.0), guidance.Projected(0.0, norm=10.0)):
        found = rule(cond, uncond, jnp.asarray(3.0, jnp.bfloat16), cond, t)
        with jax.enable_x64(True):
            wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (cond, uncond)]
            truth = rule(*wide, jnp.asarray(3.0, jnp.float64), wide[0], jnp.asarray(0.5, jnp.float64))
        ratio = np.linalg.norm(np.asarray(found, np.float64)) / np.linalg.norm(truth)
        assert ratio == pytest.approx(1, rel=1e-3)


def test_a_loss_of_bfloat16_images_is_averaged_in_float32():
    x0 = jnp.ones((4, 8), jnp.bfloat16)
    network = dj.Network(lambda *_: None, lambda params, x, *_, **__: 0 * x)
    diffusion = dj.Diffusion(network, dj.Cosine(), dj.VPrediction())
    keywords = {"times": dj.UniformTimes(diffusion.process), "weighting": dj.losses.native}
    loss, aux = dj.denoising_loss(diffusion, None, jax.random.key(0), x0, **keywords)
    assert loss.dtype == aux["per_sample"].dtype == jnp.float32


@pytest.mark.slow
def test_a_likelihood_of_bfloat16_data():
    """Of N(0, 1) at 0 in three dimensions, by its own score; the divergence is summed in float32."""
    process = dj.Cosine()
    denoiser = lambda x, t: process.alpha(t) * x
    found = dj.log_likelihood(jax.random.key(0), process, denoiser, jnp.zeros((2, 3), jnp.bfloat16))
    np.testing.assert_allclose(found.nats, -1.5 * np.log(2 * np.pi), rtol=1e-4)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(
    "divergence",
    [
        pytest.param(likelihood.Exact(), marks=pytest.mark.slow),
        dj.Hutchinson(2),
        pytest.param(likelihood.HutchPlusPlus(6), marks=pytest.mark.slow),
    ],
)
def test_divergences_of_low_precision(divergence, dtype):
    """tr of 1.5 I in 600 features is 900, which bfloat16 does not add up; and one whole solve, as in float32."""
    key, index = jax.random.key(0), jnp.arange(2)
    x = jnp.ones((2, 600), dtype)
    u, trace = divergence(lambda x: 1.5 * x, x, divergence.probes(key, x, index))
    assert u.dtype == dtype
    assert trace.dtype == jnp.float32
    np.testing.assert_allclose(trace, 900.0, rtol=2e-2 if isinstance(divergence, likelihood.HutchPlusPlus) else 1e-6)
    x, half = jnp.array([[0.5, -1.0], [2.0, 0.25]]), lambda x, t: (0.5 * x).astype(x.dtype)
    choices = {"divergence": divergence, "controller": likelihood.adaptive(1e-3)}
    low, full = (dj.log_likelihood(key, dj.Cosine(), half, y, **choices) for y in (x.astype(dtype), x))
    np.testing.assert_allclose(low.nats, full.nats, rtol=1e-2)


def test_distances_and_costs_between_samples():
    """A projection, and the cost of a pair, are sums of 64 terms."""
    x = jax.random.normal(jax.random.key(0), (200, 64)).astype(jnp.bfloat16)
    low = x, x + jnp.bfloat16(0.05)
    wide = tuple(z.astype(jnp.float32) for z in low)
    first, second = (metrics.sliced_wasserstein(jax.random.key(1), *pair, projections=8) for pair in (low, wide))
    assert first.dtype == jnp.float32
    np.testing.assert_array_equal(first, second)
    first, second = (_costs(*pair, None)[0] for pair in (low, wide))
    np.testing.assert_array_equal(first, second)
