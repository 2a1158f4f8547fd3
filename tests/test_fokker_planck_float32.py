"""The Fokker-Planck solver in the float32 that users run."""

import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.analytic import Box, cell_averages, fokker_planck


@pytest.mark.slow
def test_float32_keeps_mass_and_sign_and_the_distance():
    """VP from one bump: a Gaussian of mean 0.5 alpha at all times."""
    process, data, box = dj.VariancePreserving(), dj.Gaussian(jnp.array([0.5]), 0.2), Box(-6.0, 6.0, 120)
    start, end = (cell_averages(box, lambda x, t=t: data.log_prob(process, x, t)) for t in (0.0, 0.3))
    found = np.asarray(fokker_planck(process, box, start, jnp.array([0.0, 0.3])))
    assert found.dtype == np.float32
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(1), found[0].sum(), rtol=1e-5)
    assert 0.1 * np.abs(found[1] - end).sum() < 2e-3
