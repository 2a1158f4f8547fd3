"""Likelihood in the float32 that users run."""

import jax
import jax.numpy as jnp
import pytest
from registry import mixture

import diffjax as dj


@pytest.mark.slow
def test_the_default_lower_end_bears_float32():
    """The closed form at the default t0 to 1e-3 nats. At the interval's own end, float32 would miss it by 1e-2."""
    process, data = dj.VariancePreserving(), mixture()
    x0 = data.sample(jax.random.key(0), 64)
    top = dj.interval(process)[1]
    got = dj.log_likelihood(
        jax.random.key(1),
        process,
        dj.exact_denoiser(data, process),
        x0,
        terminal=lambda x: data.log_prob(process, x, top),
    )
    t0 = dj.time_from_logsnr(process, 14.0)
    assert float(jnp.max(jnp.abs(got.nats - data.log_prob(process, x0, t0)))) < 1e-3
