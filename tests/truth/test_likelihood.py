"""Log-likelihood along the flow against closed forms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, gaussian, images, mixture

import diffjax as dj
from diffjax import likelihood
from diffjax.likelihood import HutchPlusPlus

KEY = jax.random.key


def _rotated(rng, variances):
    """A full covariance [d, d] of these variances."""
    basis = np.linalg.qr(rng.normal(size=(len(variances), len(variances))))[0]
    return basis * variances @ basis.T


def gaussian64():
    """64 features of full covariance, variances from 0.02 to 2."""
    rng = np.random.default_rng(0)
    return dj.Gaussian(jnp.asarray(rng.normal(size=64)), jnp.asarray(_rotated(rng, np.geomspace(0.02, 2.0, 64))))


def mixture64():
    """Two components near enough to overlap, each of full covariance."""
    rng = np.random.default_rng(1)
    covariances = jnp.asarray([_rotated(rng, np.geomspace(0.1, top, 64)) for top in (1.0, 2.0)])
    return dj.GaussianMixture(jnp.asarray(0.2 * rng.normal(size=(2, 64))), covariances, jnp.array([0.6, 0.4]))


DATA = {"gaussian": gaussian, "mixture": mixture, "images": images, "gaussian64": gaussian64, "mixture64": mixture64}


def exact_terminal(data, process):
    return lambda x: data.log_prob(process, x, process.interval()[1])


NAMED = ("vp", "ve", "edm", "rectified")
CASES = [("vp", "images"), *((name, data) for name in ALL_PROCESSES for data in ("gaussian", "mixture"))]
CASES += [(name, data) for name in NAMED for data in ("gaussian64", "mixture64")]


def marks(name, data):
    """Each that is not quick has a close relative that is: a Gaussian is a mixture of one."""
    if not data.endswith("64"):
        if name == "edm":
            return [pytest.mark.slow]
        quick = (name == "vp" and data != "gaussian") or (name == "rectified" and data == "mixture")
        return [] if quick else [pytest.mark.slow, pytest.mark.relative]
    return [pytest.mark.slow] if (name, data) == ("vp", "mixture64") else [pytest.mark.slow, pytest.mark.relative]


# Tolerance, and evaluations that 1e-3 nats may take. A chain's rate jumps at each of its 47 knots, where an adaptive
# solver must be told to be careful, and then is slow.
SMOOTH = (1e-5, 200)
EFFORT = {"ddpm": (1e-7, 8000), "ddpm-zero-snr": (1e-7, 8000), "retimed": (1e-6, 400)}


@pytest.mark.parametrize(("name", "data_name"), [pytest.param(*c, marks=marks(*c)) for c in CASES])
def test_against_the_closed_form(name, data_name):
    """With the exact density at t = 1: 1e-3 nats at the interval's lower end, by the exact trace; where the schedule is
    smooth by the defaults, in under 200 evaluations."""
    process, data = ALL_PROCESSES[name](), DATA[data_name]()
    x0 = data.sample(KEY(0), 8 if data_name.endswith("64") else 32)
    denoiser = dj.exact_denoiser(data, process)
    tolerance, evaluations = EFFORT.get(name, SMOOTH)
    options = {} if name not in EFFORT else {"controller": likelihood.adaptive(tolerance)}
    got = dj.log_likelihood(KEY(1), process, denoiser, x0, terminal=exact_terminal(data, process), **options)
    worst = float(jnp.max(jnp.abs(got.nats - data.log_prob(process, x0, process.interval()[0]))))
    print(f"{name} {data_name}: worst error {worst:.1e} nats, nfe {int(got.nfe)}")
    assert worst < 1e-3
    assert int(got.nfe) < evaluations
    np.testing.assert_array_equal(got.standard_error, 0.0)


@pytest.mark.parametrize("name", ["vp", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMED[1:])])
def test_the_prior_differs_from_the_marginal_by_its_own_density(name):
    """The default terminal: the result moves by log prior(x1) - log p_1(x1), x1 from the closed-form flow map."""
    process, data = ALL_PROCESSES[name](), gaussian()
    x0 = data.sample(KEY(0), 32)
    low, high = process.interval()
    x1 = dj.exact_flow_map(data, process).move(x0, low, high)
    expected = dj.process.prior_log_prob(process, x1, high) - data.log_prob(process, x1, high)
    got = dj.log_likelihood(KEY(1), process, dj.exact_denoiser(data, process), x0)
    shift = got.nats - data.log_prob(process, x0, low)
    print(f"{name}: difference of the prior {float(jnp.mean(shift)):+.1e} nats in the mean")
    np.testing.assert_allclose(shift, expected, atol=1e-3)
    if name in ("vp", "edm"):
        assert float(jnp.max(jnp.abs(expected))) > 2e-3  # a difference that the test could not miss


@pytest.mark.slow
def test_hutchinson_is_unbiased_with_an_honest_error():
    """32 probes: the error over 200 points, in units of its standard error, behaves as a t distribution's."""
    process, data, n = dj.Cosine(), mixture(), 200
    x0 = data.sample(KEY(0), n)
    denoiser = dj.exact_denoiser(data, process)
    got = dj.log_likelihood(
        KEY(2), process, denoiser, x0, terminal=exact_terminal(data, process), divergence=dj.Hutchinson(32)
    )
    truth = data.log_prob(process, x0, process.interval()[0])
    z = np.asarray((got.nats - truth) / got.standard_error)
    print("fraction within 3 standard errors", np.mean(np.abs(z) < 3), "mean", z.mean(), "std", z.std())
    assert np.mean(np.abs(z) < 3) >= 0.99
    assert abs(z.mean()) < 4 / n**0.5
    assert 0.8 < z.std() < 1.25


# --- the divergence alone ---


def tanh_field(d, seed=0, scale=1.0):
    """u = tanh(A x) of a matrix that is not symmetric, at 4 points, with its divergence by hand."""
    rng = np.random.default_rng(seed)
    a, x = scale * rng.normal(size=(d, d)), rng.normal(size=(4, d))
    divergence = (np.diag(a) * (1 - np.tanh(x @ a.T) ** 2)).sum(1)
    return (lambda y: jnp.tanh(y @ jnp.asarray(a).T)), jnp.asarray(x), divergence


def test_the_exact_trace_in_blocks():
    """Whether or not they divide the seven features."""
    field, x, divergence = tanh_field(7)
    as_images = lambda y: field(y.reshape(4, 7)).reshape(y.shape)
    for block in (None, 1, 4, 7, 30):
        u, got = dj.likelihood.Exact(block)(as_images, x.reshape(4, 7, 1), None)
        np.testing.assert_allclose(got[0], divergence, rtol=1e-12)
        np.testing.assert_allclose(u[..., 0], field(x), rtol=1e-12)


def estimates(divergence, field, x, n):
    """n independent estimates at each point with their standard errors, [n, 4]; NumPy."""

    def one(key):
        rows = divergence(field, x, divergence.probes(key, x, jnp.arange(4)))[1]
        return jnp.mean(rows, axis=0), jnp.std(rows, axis=0, ddof=1) / rows.shape[0] ** 0.5

    return [np.asarray(part) for part in jax.jit(jax.vmap(one))(jax.random.split(KEY(1), n))]


@pytest.mark.slow
def test_hutch_plus_plus_is_unbiased_with_an_honest_error():
    field, x, divergence = tanh_field(8)
    found, error = estimates(HutchPlusPlus(6), field, x, 4000)
    deviation = found.std(0)
    assert np.all(np.abs(found.mean(0) - divergence) < 4.5 * deviation / len(found) ** 0.5)
    assert np.all(deviation / len(found) ** 0.5 < 0.1)
    # Given its sketch, the two probes' own spread: squared, in the mean, it is the whole variance.
    np.testing.assert_allclose(np.mean(error**2, 0), deviation**2, rtol=0.2)
    exact, error = estimates(HutchPlusPlus(24), field, x, 2)
    np.testing.assert_allclose(exact, np.stack([divergence] * 2), rtol=1e-10)
    np.testing.assert_allclose(error, 0, atol=1e-10)


@pytest.mark.slow
def test_hutch_plus_plus_wins_where_few_directions_carry_the_jacobian():
    """u = A x of rank two and a little: a tenth of the error of as many of Hutchinson's products, which is known."""
    rng, d = np.random.default_rng(3), 32
    a = rng.normal(size=(d, 2)) @ rng.normal(size=(2, d)) + 0.01 * rng.normal(size=(d, d))
    field, x = (lambda y: y @ jnp.asarray(a).T), jnp.zeros((4, d))
    ours, theirs = (estimates(by, field, x, 500)[0] for by in (HutchPlusPlus(12), dj.Hutchinson(12)))
    symmetric = (a + a.T) / 2
    expected = np.sqrt(2 * (np.sum(symmetric**2) - np.sum(np.diag(symmetric) ** 2)) / 12)  # Rademacher probes'
    np.testing.assert_allclose(theirs.std(), expected, rtol=0.1)
    assert np.sqrt(np.mean((ours - np.trace(a)) ** 2)) < 0.1 * expected


@pytest.mark.slow
def test_likelihood_by_hutch_plus_plus():
    process, data = dj.VariancePreserving(), mixture()
    x0, denoiser = data.sample(KEY(0), 16), dj.exact_denoiser(mixture(), process)
    terminal, truth = exact_terminal(data, process), data.log_prob(process, x0, process.interval()[0])
    run = lambda count: dj.log_likelihood(
        KEY(2), process, denoiser, x0, terminal=terminal, divergence=HutchPlusPlus(count)
    )
    np.testing.assert_allclose(run(6).nats, truth, atol=1e-3)  # a sketch of both features is exact
    single = run(3)  # a sketch of one, and one probe
    assert np.all(np.isnan(single.standard_error))
    assert np.all(np.isfinite(single.nats))
    assert 1e-3 < float(jnp.sqrt(jnp.mean((single.nats - truth) ** 2))) < 3


@pytest.mark.slow
def test_gaussian_probes_and_any_solver():
    process, data = dj.VariancePreserving(), gaussian()
    x0 = data.sample(KEY(0), 16)
    denoiser = dj.exact_denoiser(data, process)
    truth = data.log_prob(process, x0, process.interval()[0])
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


@pytest.mark.slow
def test_one_probe_has_no_standard_error_and_failures_are_nan():
    process, data = dj.VariancePreserving(), gaussian()
    x0 = data.sample(KEY(0), 4)
    denoiser = dj.exact_denoiser(data, process)
    assert np.all(np.isnan(dj.log_likelihood(KEY(1), process, denoiser, x0, divergence=dj.Hutchinson()).standard_error))
    nats, pull = jax.vjp(lambda x0: dj.log_likelihood(KEY(1), process, denoiser, x0, max_steps=2).nats, x0)
    assert np.all(np.isnan(nats))
    assert np.all(np.isnan(pull(jnp.ones(4))[0]))  # a gradient of 0 would pass for an answer


def test_derivatives_forward_are_those_of_the_closed_form():
    """By `jax.jvp`: log p's slope is the score."""
    process, data = dj.VariancePreserving(), gaussian()
    denoiser = lambda x, t: data.denoise(process, x, t)
    x, v = jnp.array([[0.3, -0.2], [1.0, 0.4]]), jnp.array([[1.0, -0.5], [0.2, 0.7]])
    options = {"t0": 0.3, "adjoint": diffrax.ForwardMode()}
    terminal = exact_terminal(data, process)
    log_prob = lambda x: dj.log_likelihood(KEY(0), process, denoiser, x, terminal=terminal, **options).nats
    value, slope = jax.jvp(log_prob, (x,), (v,))
    np.testing.assert_allclose(value, data.log_prob(process, x, 0.3), atol=1e-3)
    np.testing.assert_allclose(slope, jnp.sum(data.score(process, x, 0.3) * v, axis=1), rtol=1e-3)


@pytest.mark.slow
def test_second_derivatives_of_the_likelihood_are_those_of_the_closed_form():
    process, data = dj.VariancePreserving(), gaussian()
    denoiser = lambda x, t: data.denoise(process, x, t)
    options = {"t0": 0.3, "adjoint": diffrax.DirectAdjoint(), "max_steps": 64}
    terminal = exact_terminal(data, process)
    log_prob = lambda x: dj.log_likelihood(KEY(0), process, denoiser, x[None], terminal=terminal, **options).nats[0]
    x = jnp.array([0.3, -0.2])
    exact = jax.hessian(lambda x: data.log_prob(process, x[None], 0.3)[0])(x)
    np.testing.assert_allclose(jax.hessian(log_prob)(x), exact, rtol=1e-3, atol=1e-3)


def test_bad_arguments():
    process = dj.Rectified()
    denoiser, x0 = dj.exact_denoiser(gaussian(), process), jnp.zeros((2, 2))
    with pytest.raises(ValueError, match="t0: must lie in the process's interval"):
        dj.log_likelihood(KEY(0), process, denoiser, x0, t0=0.0)
    with pytest.raises(ValueError, match="count: a positive number of probes is needed, got 0"):
        dj.Hutchinson(0)
    with pytest.raises(ValueError, match="block: a positive number of products at once is needed, got 0"):
        dj.likelihood.Exact(0)
    with pytest.raises(ValueError, match="count: a positive multiple of three products is needed, got 4"):
        HutchPlusPlus(4)
