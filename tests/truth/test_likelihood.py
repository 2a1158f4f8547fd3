"""Log-likelihood along the flow against closed forms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, gaussian, images, mixture

import diffjax as dj

KEY = jax.random.key
DATA = {"gaussian": gaussian, "mixture": mixture, "images": images}


def exact_terminal(data, process):
    return lambda x: data.log_prob(process, x, dj.interval(process)[1])


CASES = [("vp", "images"), *((name, data) for name in ALL_PROCESSES for data in ("gaussian", "mixture"))]
QUICK = {"vp", "karras", "rectified"}  # the others have a close relative among these


@pytest.mark.parametrize(
    ("name", "data_name"),
    [pytest.param(*c, marks=[] if c[0] in QUICK else [pytest.mark.slow, pytest.mark.relative]) for c in CASES],
)
def test_against_the_closed_form(name, data_name):
    """With the exact density at t = 1: 1e-3 nats at the interval's lower end, by the exact trace."""
    process, data = ALL_PROCESSES[name](), DATA[data_name]()
    x0 = data.sample(KEY(0), 32)
    denoiser = dj.exact_denoiser(data, process)
    got = dj.log_likelihood(KEY(1), process, denoiser, x0, terminal=exact_terminal(data, process))
    worst = float(jnp.max(jnp.abs(got.nats - data.log_prob(process, x0, dj.interval(process)[0]))))
    print(f"{name} {data_name}: worst error {worst:.1e} nats, nfe {int(got.nfe)}")
    assert worst < 1e-3
    np.testing.assert_array_equal(got.standard_error, 0.0)


@pytest.mark.parametrize("name", ["vp", "karras"])
def test_the_prior_differs_from_the_marginal_by_its_own_density(name):
    """The default terminal: the result moves by log prior(x1) - log p_1(x1), x1 from the closed-form flow map."""
    process, data = ALL_PROCESSES[name](), gaussian()
    x0 = data.sample(KEY(0), 32)
    low, high = dj.interval(process)
    x1 = dj.flow_map(data, process, x0, low, high)
    expected = dj.prior_log_prob(process, x1, high) - data.log_prob(process, x1, high)
    got = dj.log_likelihood(KEY(1), process, dj.exact_denoiser(data, process), x0)
    shift = got.nats - data.log_prob(process, x0, low)
    print(f"{name}: mean difference of the prior {float(jnp.mean(shift)):+.1e} nats")
    np.testing.assert_allclose(shift, expected, atol=1e-3)
    assert float(jnp.max(jnp.abs(expected))) > 2e-3  # a difference that the test could not miss


def test_hutchinson_is_unbiased_with_an_honest_error():
    """32 probes: the error over 200 points, in units of its standard error, behaves as a t distribution's."""
    process, data, n = dj.Cosine(), mixture(), 200
    x0 = data.sample(KEY(0), n)
    denoiser = dj.exact_denoiser(data, process)
    got = dj.log_likelihood(
        KEY(2), process, denoiser, x0, terminal=exact_terminal(data, process), divergence=dj.Hutchinson(32)
    )
    truth = data.log_prob(process, x0, dj.interval(process)[0])
    z = np.asarray((got.nats - truth) / got.standard_error)
    print("fraction within 3 standard errors", np.mean(np.abs(z) < 3), "mean", z.mean(), "std", z.std())
    assert np.mean(np.abs(z) < 3) >= 0.98
    assert abs(z.mean()) < 4 / n**0.5
    assert 0.8 < z.std() < 1.25


@pytest.mark.slow
def test_gaussian_probes_and_any_solver():
    process, data = dj.VariancePreserving(), gaussian()
    x0 = data.sample(KEY(0), 16)
    denoiser = dj.exact_denoiser(data, process)
    truth = data.log_prob(process, x0, dj.interval(process)[0])
    got = dj.log_likelihood(
        KEY(2),
        process,
        denoiser,
        x0,
        terminal=exact_terminal(data, process),
        divergence=dj.Hutchinson(64, jax.random.normal),
        solver=diffrax.Dopri8(),
        controller=diffrax.PIDController(1e-6, 1e-6),
    )
    assert np.all(np.abs((got.nats - truth) / got.standard_error) < 4.5)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch():
    """Probes go by global index: a batch in two halves gives the same answer, to the solver's tolerance."""
    process, data = dj.VariancePreserving(), mixture()
    x0 = data.sample(KEY(0), 8)
    denoiser = dj.exact_denoiser(data, process)

    def nats(x, index):
        return dj.log_likelihood(KEY(1), process, denoiser, x, divergence=dj.Hutchinson(2), index=index).nats

    halves = [nats(x0[:4], jnp.arange(4)), nats(x0[4:], jnp.arange(4, 8))]
    np.testing.assert_allclose(nats(x0, None), jnp.concatenate(halves), atol=1e-3)


def test_one_probe_has_no_standard_error_and_failures_are_nan():
    process, data = dj.VariancePreserving(), gaussian()
    x0 = data.sample(KEY(0), 4)
    denoiser = dj.exact_denoiser(data, process)
    assert np.all(np.isnan(dj.log_likelihood(KEY(1), process, denoiser, x0, divergence=dj.Hutchinson()).standard_error))
    assert np.all(np.isnan(dj.log_likelihood(KEY(1), process, denoiser, x0, max_steps=2).nats))


def test_bad_arguments():
    process = dj.Rectified()
    denoiser, x0 = dj.exact_denoiser(gaussian(), process), jnp.zeros((2, 2))
    with pytest.raises(ValueError, match="t0: must lie in the process's interval"):
        dj.log_likelihood(KEY(0), process, denoiser, x0, t0=0.0)
    with pytest.raises(ValueError, match="count: a positive number of probes is needed, got 0"):
        dj.Hutchinson(0)
