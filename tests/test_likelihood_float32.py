"""Likelihood in the float32 that users run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.likelihood import worst_sample
from diffjax.likelihood._flow import flow_ends

PROCESS = dj.process.OffsetCosine()


@pytest.fixture(scope="module", name="flow")
def _flow():
    """Data of four features, and its log-likelihood along the exact flow, compiled once for batches [16, 4]."""
    data = dj.Gaussian(jnp.array([0.5] * 4), jnp.array([0.3, 0.1, 0.01, 0.001]))
    top = PROCESS.interval()[1]
    denoiser, terminal = dj.exact_denoiser(data, PROCESS), lambda x: data.log_prob(PROCESS, x, top)
    nats = lambda x0, **how: dj.log_likelihood(jax.random.key(1), PROCESS, denoiser, x0, terminal=terminal, **how)
    return data, nats


@pytest.mark.slow
def test_the_default_lower_end_bears_float32(flow):
    """The closed form at the default t0 to 5e-4 nats. At the interval's own end, float32 misses it by 1e-2."""
    data, nats = flow
    x0 = data.sample(jax.random.key(0), 16)
    low, t0 = PROCESS.interval()[0], PROCESS.time_from_logsnr(14.0)
    error = lambda found, t: float(jnp.max(jnp.abs(found.nats - data.log_prob(PROCESS, x0, t))))
    found = [error(nats(x0), t0), error(nats(x0, t0=low), low)]
    assert found[0] < 5e-4
    assert found[1] > 2e-3
    with jax.enable_x64(True):
        assert flow_ends(PROCESS, None, jnp.float64)[0] == PROCESS.interval()[0]


def test_a_hard_sample_has_its_own_error_among_easy_ones(flow):
    """Twenty deviations out, with as many steps beside copies of itself as beside samples at the mean: steps that
    follow an error averaged over the batch are too long for it."""
    data, nats = flow
    far = data.mean + 20 * jnp.sqrt(jnp.array([0.3, 0.1, 0.01, 0.001]))
    alone = nats(jnp.broadcast_to(far, (16, 4)))
    among = nats(jnp.broadcast_to(data.mean, (16, 4)).at[0].set(far))
    assert int(alone.nfe) == int(among.nfe)
    np.testing.assert_allclose(among.nats[0], alone.nats[0], rtol=1e-6)


def test_the_worst_sample_is_the_one_with_the_largest_root_mean_square():
    """Of its features, or of the log density that they must not drown, over its probes."""
    x, total = jnp.array([[3.0, 4.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), jnp.array([[1.0, 2.0], [1.0, 0.0]])
    np.testing.assert_allclose(worst_sample((x, total)), 2.5, rtol=1e-6)  # sqrt(25/4)
    np.testing.assert_allclose(worst_sample((x, 10 * total)), np.sqrt(200), rtol=1e-6)  # sqrt((400 + 0)/2)
