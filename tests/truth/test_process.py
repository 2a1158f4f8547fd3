"""Forward processes against closed forms written anew in NumPy, and against what every process must satisfy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, CORE_PROCESSES, KINDS, each_process
from scipy import stats

import diffjax as dj

processes = pytest.mark.parametrize("name", each_process(KINDS))


# --- closed forms: (alpha, sigma, f, g^2) at t ---


def vp(t, low, high):
    b, beta = low * t + (high - low) * t**2 / 2, low + (high - low) * t
    return np.exp(-b / 2), np.sqrt(1 - np.exp(-b)), -beta / 2, beta


def cosine(t):
    tangent = np.tan(np.pi * t / 2)
    return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2), -np.pi / 2 * tangent, np.pi * tangent


def shifted_cosine(t, shift):
    snr = np.tan(np.pi * t / 2) ** -2 * np.exp(shift)
    g2 = 2 * np.pi / np.sin(np.pi * t) / (1 + snr)  # variance is kept, so that f = -g^2/2
    return np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr)), -g2 / 2, g2


def ve(t, low, high):
    sigma = low ** (1 - t) * high**t
    return np.ones_like(t), sigma, np.zeros_like(t), 2 * sigma**2 * np.log(high / low)


def edm(t, low, high, rho):
    root = (1 - t) * low ** (1 / rho) + t * high ** (1 / rho)
    rate = rho * root ** (rho - 1) * (high ** (1 / rho) - low ** (1 / rho))
    return np.ones_like(t), root**rho, np.zeros_like(t), 2 * root**rho * rate


def rectified(t):
    return 1 - t, t, -1 / (1 - t), 2 * t / (1 - t)


def sub_vp(t):
    alpha, _, f, beta = vp(t, 0.1, 20.0)
    return alpha, 1 - alpha**2, f, beta * (1 - alpha**4)


def ve_from_zero(t, low, high):
    sigma, rate = ve(t, low, high)[1], 2 * np.log(high / low)
    return np.ones_like(t), np.sqrt(sigma**2 - low**2), np.zeros_like(t), rate * sigma**2


def polynomial(t, n):
    alpha, rate = (1 - t) ** n, -n / (1 - t)
    return alpha, 1 - alpha, rate, -2 * rate * (1 - alpha)  # g^2 = 2 sigma (sigma' - f sigma), sigma' = -alpha'


def offset_cosine(t, offset):
    u, rate = np.pi / 2 * (t + offset) / (1 + offset), np.pi / 2 / (1 + offset)
    alpha = np.cos(u) / np.cos(np.pi / 2 * offset / (1 + offset))
    return alpha, np.sqrt(1 - alpha**2), -rate * np.tan(u), 2 * rate * np.tan(u)


def own(t, bend):
    f = -1 / (1 - t) + bend / (1 + bend * t)
    return (1 - t) * (1 + bend * t), t, f, 2 * t - 2 * f * t**2


def preserving(logsnr, rate):
    """Variance preserving: alpha^2 = 1/(1 + exp(-lambda)), f = -g^2/2."""
    sigma2 = 1 / (1 + np.exp(logsnr))
    return np.sqrt(1 - sigma2), np.sqrt(sigma2), rate * sigma2 / 2, -rate * sigma2


def monotone(t, process):
    """Kingma et al. 2021, appendix H, with the process's own weights."""
    high, low, slope, inner, bias, outer = (np.asarray(leaf) for leaf in jax.tree.leaves(process))
    slope, inner, outer = (np.exp(w) for w in (slope, inner, outer))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    network = lambda t: slope * t + np.mean(outer * sigmoid(inner * (slope * t) + bias))
    n0, n1, n = network(0.0), network(1.0), np.array([network(u) for u in t])
    hidden = sigmoid(inner * slope * t[:, None] + bias)
    rate = slope + np.mean(outer * inner * slope * hidden * (1 - hidden), axis=1)
    return preserving(high + (low - high) * (n - n0) / (n1 - n0), (low - high) * rate / (n1 - n0))


def chain(t, betas):
    """alpha^2 is the product of (1 - beta), geometric between the chain's times; alpha is linear where it ends in 0."""
    size = len(betas)
    knots = np.concatenate([[1.0], np.sqrt(np.cumprod(1 - betas))])
    cell = np.floor(t * size).astype(int)
    part = t * size - cell
    start, stop = knots[cell], knots[cell + 1]
    with np.errstate(divide="ignore"):
        alpha = np.where(stop == 0, start * (1 - part), start ** (1 - part) * stop**part)
        f = np.where(stop == 0, -1 / (1 - t), size * np.log(stop / start))
    return alpha, np.sqrt(1 - alpha**2), f, -2 * f


BETAS = np.linspace(0.002, 0.4, 47)


def zero_snr(betas):
    """Lin et al. 2023, algorithm 1."""
    root = np.sqrt(np.cumprod(1 - betas))
    first, last = root[0], root[-1]
    squared = ((root - last) * first / (first - last)) ** 2
    return 1 - squared / np.concatenate([[1.0], squared[:-1]])


def shifted_line(t, s):
    """Esser et al. 2024, eq. 23: the line at t' = s t/(1 + (s - 1) t)."""
    alpha, sigma, f, g2 = rectified(s * t / (1 + (s - 1) * t))
    rate = s / (1 + (s - 1) * t) ** 2
    return alpha, sigma, f * rate, g2 * rate


def clipped_cosine(t, high, low):
    first, last = (2 / np.pi * np.arctan(np.exp(-value / 2)) for value in (high, low))
    alpha, sigma, f, g2 = cosine(first + (last - first) * t)
    return alpha, sigma, f * (last - first), g2 * (last - first)


def line_on_vp_clock(t):
    alpha, sigma, _, beta = vp(t, 0.1, 20.0)
    rate = -beta / sigma**2  # lambda' of VP
    mine, noise = alpha / (alpha + sigma), sigma / (alpha + sigma)
    return mine, noise, noise * rate / 2, -(noise**2) * rate


CLOSED_FORMS = {
    "vp": (dj.VariancePreserving, lambda t: vp(t, 0.1, 20.0)),
    "vp-constant": (lambda: dj.VariancePreserving(2.0, 2.0), lambda t: vp(t, 2.0, 2.0)),
    "vp-other": (lambda: dj.VariancePreserving(beta_min=0.5, beta_max=7.0), lambda t: vp(t, 0.5, 7.0)),
    "cosine": (dj.Cosine, cosine),
    "cosine-shifted": (lambda: dj.Cosine(shift=-1.5), lambda t: shifted_cosine(t, -1.5)),
    "cosine-other": (lambda: dj.Cosine(shift=0.7), lambda t: shifted_cosine(t, 0.7)),
    "ve": (dj.VarianceExploding, lambda t: ve(t, 0.01, 50.0)),
    "ve-other": (lambda: dj.VarianceExploding(sigma_min=0.2, sigma_max=9.0), lambda t: ve(t, 0.2, 9.0)),
    "edm": (dj.EDM, lambda t: edm(t, 0.002, 80.0, 7.0)),
    "edm-other": (lambda: dj.EDM(sigma_min=0.1, sigma_max=5.0, rho=3.0), lambda t: edm(t, 0.1, 5.0, 3.0)),
    "rectified": (dj.Rectified, rectified),
    "sub-vp": (ALL_PROCESSES["sub-vp"], sub_vp),
    "ve-from-zero": (ALL_PROCESSES["ve-from-zero"], lambda t: ve_from_zero(t, 0.01, 50.0)),
    "ou": (ALL_PROCESSES["ou"], lambda t: vp(t, 10.0, 10.0)),
    "polynomial": (ALL_PROCESSES["polynomial"], lambda t: polynomial(t, 2.0)),
    "polynomial-other": (lambda: dj.process.Polynomial(0.7), lambda t: polynomial(t, 0.7)),
    "offset-cosine": (ALL_PROCESSES["offset-cosine"], lambda t: offset_cosine(t, 0.008)),
    "own": (ALL_PROCESSES["own"], lambda t: own(t, 1.0)),
    "learned-linear": (ALL_PROCESSES["learned-linear"], lambda t: preserving(13.3 - 18.3 * t, -18.3)),
    "learned-monotone": (
        ALL_PROCESSES["learned-monotone"],
        lambda t: monotone(t, ALL_PROCESSES["learned-monotone"]()),
    ),
    "ddpm": (ALL_PROCESSES["ddpm"], lambda t: chain(t, BETAS)),
    "ddpm-zero-snr": (ALL_PROCESSES["ddpm-zero-snr"], lambda t: chain(t, zero_snr(BETAS))),
    "shifted": (ALL_PROCESSES["shifted"], lambda t: shifted_line(t, 3.0)),
    "clipped": (ALL_PROCESSES["clipped"], lambda t: clipped_cosine(t, 8.0, -6.0)),
    "retimed": (ALL_PROCESSES["retimed"], line_on_vp_clock),
}
BISECTED = ("own", "learned-monotone")
"""Processes without a closed form of `time_from_logsnr`."""


@eqx.filter_jit
def everything(process, t):
    """All that a Gaussian process says about the times t, as a dict of arrays of the shape of t."""
    alpha_dot, sigma_dot = dj.process.schedule_derivatives(process, t)
    value = process.logsnr(t)
    return {
        "alpha": process.alpha(t),
        "sigma": process.sigma(t),
        "alpha_dot": alpha_dot,
        "sigma_dot": sigma_dot,
        "logsnr": value,
        "logsnr_rate": dj.process.logsnr_rate(process, t),
        "f": process.drift(jnp.ones_like(t)[:, None], t)[:, 0],
        "g": process.diffusion(jnp.ones_like(t)[:, None], t),
        "inverse": process.time_from_logsnr(value),
    }


def evaluate(process, t, size=1024):
    """`everything` as NumPy; the times are padded to one size, so that each kind of process compiles once."""
    got = everything(process, jnp.asarray(np.pad(t, (0, size - len(t)), mode="edge")))
    return {what: np.asarray(value)[: len(t)] for what, value in got.items()}


def times(process, n=41):
    """Times over the whole interval, both ends included, dense near the ends."""
    low, high = (float(end) for end in process.interval())
    near = np.array([1e-6, 1e-4, 1e-3])
    return low + (high - low) * np.unique(np.concatenate([np.linspace(0, 1, n), near, 1 - near]))


def test_closed_forms_cover_the_registry():
    assert set(ALL_PROCESSES) <= set(CLOSED_FORMS)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_schedule_is_the_closed_form(name):
    make, closed_form = CLOSED_FORMS[name]
    process = make()
    t = np.linspace(0.02, 0.98, 33)
    got = evaluate(process, t)
    for mine, (what, scale) in zip(closed_form(t), [("alpha", 1), ("sigma", 1), ("f", 1), ("g", 2)], strict=True):
        np.testing.assert_allclose(got[what] ** scale, mine, rtol=1e-11, atol=1e-14, err_msg=what)


# --- identities ---


@processes
def test_sde_moves_the_moments_as_the_schedule_says(name):
    """f = alpha'/alpha and g^2 = (sigma^2)' - 2 f sigma^2 = -sigma^2 lambda', by differences of alpha and sigma."""
    process = ALL_PROCESSES[name]()
    low, high = (float(end) for end in process.interval())
    t = np.linspace(low, high, 23)[1:-1]
    h = 1e-5
    here, before, after = evaluate(process, t), evaluate(process, t - h), evaluate(process, t + h)
    f = (np.log(after["alpha"]) - np.log(before["alpha"])) / (2 * h)
    variance_rate = (after["sigma"] ** 2 - before["sigma"] ** 2) / (2 * h)
    np.testing.assert_allclose(here["f"], f, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(here["g"] ** 2, variance_rate - 2 * f * here["sigma"] ** 2, rtol=1e-6)
    np.testing.assert_allclose(here["g"] ** 2, -(here["sigma"] ** 2) * here["logsnr_rate"], rtol=1e-12)
    np.testing.assert_allclose(here["alpha_dot"], (after["alpha"] - before["alpha"]) / (2 * h), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(here["sigma_dot"], (after["sigma"] - before["sigma"]) / (2 * h), rtol=1e-6)


@processes
def test_logsnr_is_its_definition_falls_and_inverts(name):
    process = ALL_PROCESSES[name]()
    t = times(process, 1001)
    got = evaluate(process, t)
    np.testing.assert_allclose(got["logsnr"], np.log(got["alpha"] ** 2 / got["sigma"] ** 2), rtol=1e-9, atol=1e-9)
    assert np.all(np.diff(got["logsnr"]) < 0)
    assert np.all(got["logsnr_rate"] < 0)
    back = evaluate(process, np.clip(got["inverse"], 0, 1))
    np.testing.assert_allclose(got["inverse"], t, atol=1e-9)
    np.testing.assert_allclose(back["logsnr"], got["logsnr"], atol=1e-9)


@pytest.mark.parametrize("name", [p for p in each_process(("vp", "edm")) if p.id not in BISECTED])
def test_bisection_agrees_with_the_closed_form_and_so_does_its_gradient(name):
    process = ALL_PROCESSES[name]()
    generic, own = dj.process.AbstractGaussianProcess.time_from_logsnr, type(process).time_from_logsnr
    assert own is not generic
    ends = [float(process.logsnr(end)) for end in process.interval()]
    values = jnp.linspace(0.95 * ends[0] + 0.05 * ends[1], 0.05 * ends[0] + 0.95 * ends[1], 9)

    @eqx.filter_jit
    def both(process, values):
        def total(arguments, invert):
            return jnp.sum(jnp.cos(jnp.arange(9.0)) * invert(*arguments))

        return [(invert(process, values), jax.grad(total)((process, values), invert)) for invert in (generic, own)]

    (mine, mine_by), (closed, closed_by) = both(process, values.at[0].set(1e4).at[-1].set(-1e4))
    np.testing.assert_allclose(np.asarray(mine)[[0, -1]], [0, 1], atol=1e-9)
    np.testing.assert_allclose(mine[1:-1], closed[1:-1], rtol=1e-9)
    (mine, mine_by), (closed, closed_by) = both(process, values)
    np.testing.assert_allclose(mine, closed, rtol=1e-9)
    for a, b in zip(jax.tree.leaves(mine_by), jax.tree.leaves(closed_by), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


class Bare(dj.process.AbstractGaussianProcess):
    """Another process's alpha and sigma, and none of its closed forms."""

    process: dj.process.AbstractGaussianProcess

    def alpha(self, t):
        return self.process.alpha(t)

    def sigma(self, t):
        return self.process.sigma(t)


@pytest.mark.parametrize("name", ["vp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("edm", "cosine-shifted"))])
def test_interval_without_a_closed_form_and_its_gradient(name):
    """An end that is 0 or 1 because logsnr stops short of 20 does not move with the process's numbers."""
    process = ALL_PROCESSES[name]()
    ends = eqx.filter_jit(lambda p: (p.interval(), jax.jacfwd(lambda p: p.interval())(p)))
    mine, closed = ends(Bare(process)), ends(process)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(closed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-12)


@eqx.filter_jit
def _kernels(process, t, s):
    return process.conditional(t, s), dj.process.AbstractGaussianProcess.conditional(process, t, s)


def kernels(process, t, s, size=40):
    """((alpha_{t|s}, sigma_{t|s}) by the closed form, the same by the generic one), NumPy."""
    got = _kernels(process, *(jnp.asarray(np.pad(u, (0, size - len(u)), mode="edge")) for u in (t, s)))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(t)], got)


@processes
def test_conditional_is_its_definition_and_composes(name):
    process = ALL_PROCESSES[name]()
    low, high = (float(end) for end in process.interval())
    cuts = np.sort(low + (high - low) * np.random.default_rng(0).uniform(0.01, 0.99, (40, 3)), axis=1)
    r, s, t = cuts.T
    (a_sr, v_sr), _ = kernels(process, s, r)
    (a_ts, v_ts), by_differences = kernels(process, t, s)
    (a_tr, v_tr), _ = kernels(process, t, r)
    at_s, at_t = evaluate(process, s), evaluate(process, t)
    np.testing.assert_allclose(a_ts, at_t["alpha"] / at_s["alpha"], rtol=1e-11)
    np.testing.assert_allclose(v_ts**2 + (a_ts * at_s["sigma"]) ** 2, at_t["sigma"] ** 2, rtol=1e-11)
    np.testing.assert_allclose(a_tr, a_ts * a_sr, rtol=1e-11)
    np.testing.assert_allclose(v_tr**2, (a_ts * v_sr) ** 2 + v_ts**2, rtol=1e-11)
    np.testing.assert_allclose(by_differences[0], a_ts, rtol=1e-11)
    np.testing.assert_allclose(by_differences[1], v_ts, rtol=1e-9)


@processes
def test_conditional_keeps_its_digits_over_a_small_gap(name):
    """sigma_{t|s}^2 = g^2 (t - s) at the midpoint, up to the square of the gap: differences of sigma would show."""
    process = ALL_PROCESSES[name]()
    low, high = (float(end) for end in process.interval())
    s = np.linspace(low + 0.05, high - 0.05, 9)
    t = s + 1e-6
    spread = kernels(process, t, s)[0][1]
    f, g = (evaluate(process, (t + s) / 2)[what] for what in ("f", "g"))
    np.testing.assert_allclose(spread**2, g**2 * (t - s) * (1 + f * (t - s)), rtol=2e-8)


@processes
def test_conditional_from_the_data_to_the_prior(name):
    process = ALL_PROCESSES[name]()
    ((a, spread), _), at = kernels(process, np.ones(1), np.zeros(1)), evaluate(process, np.array([0.0, 1.0]))
    np.testing.assert_allclose(a, at["alpha"][1:] / at["alpha"][:1], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(spread**2, at["sigma"][1:] ** 2 - (a * at["sigma"][:1]) ** 2, rtol=1e-12)


@processes
def test_posterior_is_gaussian_conditioning(name):
    """q(xs | xt, x0) from the joint covariance of (xs, xt) given x0, conditioned by NumPy."""
    process = ALL_PROCESSES[name]()
    rng = np.random.default_rng(1)
    x0, xt = rng.normal(size=(2, 5, 2, 3, 1))
    s, t = np.sort(rng.uniform(0.05, 0.95, (5, 2)), axis=1).T
    posterior = eqx.filter_jit(dj.posterior_mean_std)
    mean, std = posterior(process, *map(jnp.asarray, (x0, xt, s, t)))
    at_s, at_t = evaluate(process, s), evaluate(process, t)
    for i in range(5):
        a = at_t["alpha"][i] / at_s["alpha"][i]
        joint = np.array([[1, a], [a, a**2]]) * at_s["sigma"][i] ** 2
        joint[1, 1] = at_t["sigma"][i] ** 2
        gain = joint[0, 1] / joint[1, 1]
        expected = at_s["alpha"][i] * x0[i] + gain * (xt[i] - at_t["alpha"][i] * x0[i])
        np.testing.assert_allclose(mean[i], expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(std[i] ** 2, joint[0, 0] - gain * joint[1, 0], rtol=1e-9)
    alone, its_std = posterior(process, jnp.asarray(x0), jnp.asarray(xt), jnp.asarray(s[0]), jnp.asarray(t[0]))
    np.testing.assert_allclose(alone[0], mean[0], rtol=1e-12)
    assert jnp.shape(its_std) == ()


# --- where everything is finite ---


@processes
def test_interval_is_where_logsnr_is_within_twenty(name):
    process = ALL_PROCESSES[name]()
    low, high = (float(end) for end in process.interval())
    ends = evaluate(process, np.array([low, high]))["logsnr"]
    assert 0 <= low < high <= 1
    assert np.all(np.abs(ends) <= 20 + 1e-9)
    assert low == 0 or np.isclose(ends[0], 20, atol=1e-9), "the interval could begin earlier"
    assert high == 1 or np.isclose(ends[1], -20, atol=1e-9), "the interval could end later"


@pytest.mark.parametrize("name", each_process(("vp", "rectified")))
def test_values_and_gradients_are_finite_on_the_interval(name):
    process = ALL_PROCESSES[name]()

    def values(process, t, s):
        x = jnp.ones((1, 2))
        return jnp.stack(
            [
                process.alpha(t),
                process.sigma(t),
                process.logsnr(t),
                dj.process.logsnr_rate(process, t),
                *dj.process.schedule_derivatives(process, t),
                process.drift(x, t)[0, 0],
                process.diffusion(x, t),
                *process.conditional(t, s),
                *process.interval(),
            ]
        )

    @eqx.filter_jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def jet(process, t, s):
        """Values, and their derivative along all arguments at once: one that is not finite shows in the sum."""
        arguments = (process, t, s)
        return jax.jvp(values, arguments, jax.tree.map(jnp.ones_like, arguments))

    t = times(process, 9)
    low, high = t[0], t[-1]
    pairs = [(u, low) for u in t[1:]] + [(high, u) for u in t[:-1]]
    late, early = jnp.asarray(np.array(pairs).T)
    for leaf in jax.tree.leaves(jet(process, late, early)):
        assert np.all(np.isfinite(leaf))


@processes
def test_ends_are_exact_and_finite(name):
    at = evaluate(ALL_PROCESSES[name](), np.array([0.0, 1.0]))
    alpha, sigma = at["alpha"], at["sigma"]
    circle = lambda logsnr: (np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr))))
    learned = np.transpose([circle(13.3), circle(-5.0)])
    vp_end = np.exp(-10.05 / 2), np.sqrt(1 - np.exp(-10.05))
    expected = {
        "ve": ((1, 1), (0.01, 50.0)),
        "edm": ((1, 1), (0.002, 80.0)),
        "ve-from-zero": ((1, 1), (0, np.sqrt(2500 - 1e-4))),
        "sub-vp": ((1, vp_end[0]), (0, vp_end[1] ** 2)),
        "learned-linear": learned,
        "learned-monotone": learned,
        "clipped": np.transpose([circle(8.0), circle(-6.0)]),
        "retimed": ((1, vp_end[0] / sum(vp_end)), (0, vp_end[1] / sum(vp_end))),
    }.get(name)
    if expected is not None:
        np.testing.assert_allclose([alpha, sigma], expected, rtol=1e-12)
    else:
        assert abs(alpha[0] - 1) <= np.finfo(float).eps
        assert sigma[0] == 0
        np.testing.assert_allclose(alpha[1] ** 2 + sigma[1] ** 2, 1, rtol=1e-15)
    if name.startswith(("cosine", "rectified", "polynomial", "offset", "own", "ddpm-zero", "shifted")):
        assert alpha[1] == 0
        assert abs(sigma[1] - 1) <= np.finfo(float).eps


@processes
def test_a_time_for_the_batch_and_a_time_a_sample_agree(name):
    process = ALL_PROCESSES[name]()
    x = jnp.arange(6.0).reshape(2, 3) - 2

    def answers(process, t):
        each = (process.logsnr(t), dj.process.logsnr_rate(process, t), process.diffusion(x, t), process.sigma(t))
        return each, (process.drift(x, t), dj.perturb(process, x, x**2, t), dj.process.prior_log_prob(process, x, t))

    @eqx.filter_jit
    def all_three(process):
        return answers(process, 0.4), answers(process, jnp.asarray(0.4)), answers(process, jnp.full(2, 0.4))

    *single, many = all_three(process)
    for answer in single:
        assert all(np.shape(leaf) == () for leaf in answer[0])
        for one, several in zip(jax.tree.leaves(answer), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(np.broadcast_to(one, several.shape), several, rtol=1e-13)
    at = evaluate(process, np.array([0.4]))
    moved = at["alpha"] * np.asarray(x) + at["sigma"] * np.asarray(x) ** 2
    np.testing.assert_allclose(many[1][1], moved, rtol=1e-13)


# --- the prior ---


@processes
def test_prior_is_normal_noise_of_the_last_sigma(name):
    process = ALL_PROCESSES[name]()
    x = dj.prior(jax.random.key(0), process, (1000, 2, 2, 1))
    assert x.dtype == jnp.float64
    assert stats.kstest(np.ravel(x), stats.norm(scale=float(process.sigma(1.0))).cdf).pvalue > 1e-3
    correlation = np.corrcoef(np.asarray(x).reshape(1000, 4).T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(1000)
    expected = stats.norm(scale=float(process.sigma(1.0))).logpdf(np.asarray(x)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(dj.process.prior_log_prob(process, x), expected, rtol=1e-12)


def test_prior_noise_depends_on_the_global_index_alone():
    process, key = dj.EDM(), jax.random.key(3)
    whole = dj.prior(key, process, (12, 3))
    assert len(np.unique(whole)) == whole.size
    for index in ([7, 8, 9], [11, 0, 5]):
        part = dj.prior(key, process, (3, 3), index=jnp.array(index))
        np.testing.assert_array_equal(part, np.asarray(whole)[index])
    shuffled = np.random.default_rng(0).permutation(12)
    again = dj.prior(key, process, (12, 3), index=jnp.array(shuffled))
    np.testing.assert_array_equal(again, np.asarray(whole)[shuffled])
    with pytest.raises(ValueError, match=r"index: .*\(12,\).*\(3,\)"):
        dj.prior(key, process, (12, 3), index=jnp.arange(3))


# --- forward simulation ---

PATHS, STEPS = 2048, 200
OTHERS = [name for name in ALL_PROCESSES if name not in CORE_PROCESSES]


def assert_moments(x, mean, variance, bias=0.0):
    """Mean and variance of the draws x [n], within 4.5 standard errors and the relative bias given."""
    x, n = np.asarray(x), len(x)
    fourth = np.mean((x - x.mean()) ** 4)
    assert abs(x.mean() - mean) < 4.5 * np.sqrt(variance / n) + bias * abs(mean)
    assert abs(x.var(ddof=1) - variance) < 4.5 * np.sqrt((fourth - variance**2) / n) + bias * variance


class Geometric(dj.process.AbstractProcess):
    """dx = rate x dt + volatility x dw: log-normal, with noise that depends on the state."""

    rate: float = 0.5
    volatility: float = 0.4

    def drift(self, x, t):
        return self.rate * x

    def diffusion(self, x, t):
        return self.volatility * x


class SideBySide(dj.process.AbstractProcess):
    """Each feature under a process of its own, so that one solve simulates all of them."""

    processes: tuple

    def drift(self, x, t):
        return jnp.concatenate([p.drift(x[:, i : i + 1], t) for i, p in enumerate(self.processes)], axis=1)

    def diffusion(self, x, t):
        noise = [jnp.atleast_1d(p.diffusion(x[:, i : i + 1], t)) for i, p in enumerate(self.processes)]
        return jnp.stack([jnp.broadcast_to(jnp.ravel(g), x.shape[:1]) for g in noise], axis=1)


@pytest.mark.parametrize(
    "names", [list(CORE_PROCESSES), pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["core", "others"]
)
def test_simulated_marginals_are_the_schedule(names):
    """Every Gaussian process, from data at +-1 with odds 3 to 1 (mean 1/2, variance 3/4): mean alpha/2, variance
    3 alpha^2/4 + sigma^2; and geometric Brownian motion, whose noise depends on the state, from 1."""
    members = [ALL_PROCESSES[name]() for name in names]
    ts = np.linspace(0.01, 0.9, STEPS + 1)
    at = [evaluate(process, ts) for process in members]
    x0, eps = np.where(np.arange(PATHS) % 4 == 0, -1.0, 1.0), np.random.default_rng(2).normal(size=PATHS)
    start = [a["alpha"][0] * x0 + a["sigma"][0] * eps for a in at]
    start = np.stack([*start, np.ones(PATHS)], axis=1)
    together, key = SideBySide((*members, Geometric())), jax.random.key(1)
    paths = np.asarray(dj.process.simulate(key, together, jnp.asarray(start), ts))
    assert paths.shape == (STEPS + 1, PATHS, len(members) + 1)
    np.testing.assert_array_equal(paths[0], start)
    for i, a in enumerate(at):
        for k in (STEPS // 2, STEPS):
            mean, variance = a["alpha"][k] * 0.5, a["alpha"][k] ** 2 * 0.75 + a["sigma"][k] ** 2
            assert_moments(paths[k, :, i], mean, variance, bias=_euler_bias(a, ts, k))
    gap, geometric = ts[-1] - ts[0], paths[-1, :, -1]
    assert_moments(geometric, np.exp(0.5 * gap), np.exp(gap) * np.expm1(0.16 * gap), bias=2e-3)
    assert stats.kstest((np.log(geometric) - (0.5 - 0.08) * gap) / (0.4 * np.sqrt(gap)), "norm").pvalue > 1e-3
    shuffled = np.random.default_rng(3).permutation(PATHS)
    again = dj.process.simulate(key, together, jnp.asarray(start[shuffled]), ts, index=jnp.asarray(shuffled))
    np.testing.assert_allclose(again, paths[:, shuffled], rtol=1e-9, atol=1e-12)


def _euler_bias(at, ts, k):
    """How far the moments of Euler's method itself lie from the schedule's, relative; by its recursion."""
    mean, variance = at["alpha"][0] * 0.5, at["alpha"][0] ** 2 * 0.75 + at["sigma"][0] ** 2
    for f, g, step in zip(at["f"][:k], at["g"][:k], np.diff(ts)[:k], strict=True):
        mean, variance = mean * (1 + f * step), variance * (1 + f * step) ** 2 + g**2 * step
    exact = at["alpha"][k] * 0.5, at["alpha"][k] ** 2 * 0.75 + at["sigma"][k] ** 2
    bias = max(abs(mean / exact[0] - 1), abs(variance / exact[1] - 1))
    assert bias < 0.15, "the first-order method should be this close"
    return bias


def test_simulated_noise_depends_on_the_global_index_alone():
    """Here g is one number for the batch; sample i of a batch is sample index_i of another."""
    process, ts, key = dj.VariancePreserving(), np.linspace(0, 1, 11), jax.random.key(6)
    x0, index = jnp.linspace(-1.0, 1.0, 4)[:, None], np.array([2, 9, 0, 5])
    whole = np.asarray(dj.process.simulate(key, process, x0, ts))
    part = np.asarray(dj.process.simulate(key, process, x0[np.array([2, 0, 0, 1])], ts, index=jnp.asarray(index)))
    np.testing.assert_allclose(part[:, [0, 2]], whole[:, [2, 0]], rtol=1e-12)
    assert len(np.unique(part[-1])) == 4


def test_simulate_refuses_times_that_do_not_ascend():
    x0 = jnp.zeros((1, 1))
    for ts in ([0.0, 0.5, 0.5], [1.0, 0.0], [0.3]):
        with pytest.raises(ValueError, match="ts: "):
            dj.process.simulate(jax.random.key(0), dj.VariancePreserving(), x0, np.array(ts))


# --- one's own process, and bad numbers ---


class Quadratic(dj.process.AbstractGaussianProcess):
    """alpha = (1 - t^2)^power, variance preserving: two methods are all there is to a process."""

    power: jax.Array

    def alpha(self, t):
        return (1 - t**2) ** self.power

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(2 * self.power * jnp.log1p(-(t**2))))


@pytest.mark.slow
def test_a_process_of_ones_own_needs_alpha_and_sigma_alone():
    process = Quadratic(jnp.asarray(1.5))
    t = np.linspace(0.05, 0.9, 12)
    got = evaluate(process, t)
    snr = (1 - t**2) ** 3 / (1 - (1 - t**2) ** 3)
    beta = 6 * t / (1 - t**2)  # variance preserving: f = -beta/2, g^2 = beta
    np.testing.assert_allclose(got["logsnr"], np.log(snr), rtol=1e-10)
    np.testing.assert_allclose(got["f"], -beta / 2, rtol=1e-10)
    np.testing.assert_allclose(got["g"] ** 2, beta, rtol=1e-10)
    np.testing.assert_allclose(got["inverse"], t, atol=1e-12)
    low, high = process.interval()
    np.testing.assert_allclose([process.logsnr(low), process.logsnr(high)], [20, -20], rtol=1e-6)
    (a, spread), _ = kernels(process, t[1:], t[:-1])
    gap = (1 - t[1:] ** 2) / (1 - t[:-1] ** 2)
    np.testing.assert_allclose(a, gap**1.5, rtol=1e-10)
    np.testing.assert_allclose(spread, np.sqrt(1 - gap**3), rtol=1e-10)


BAD = {
    "beta_min zero": (lambda: dj.VariancePreserving(0.0, 1.0), "beta_min", "0.0"),
    "beta_min negative": (lambda: dj.VariancePreserving(-0.5, 1.0), "beta_min", "-0.5"),
    "beta_max below beta_min": (lambda: dj.VariancePreserving(2.0, 1.0), "beta_max", "1.0"),
    "beta nan": (lambda: dj.VariancePreserving(0.1, float("nan")), "beta_max", "nan"),
    "beta infinite": (lambda: dj.VariancePreserving(0.1, float("inf")), "beta_max", "inf"),
    "shift nan": (lambda: dj.Cosine(float("nan")), "shift", "nan"),
    "ve sigma_min zero": (lambda: dj.VarianceExploding(0.0, 1.0), "sigma_min", "0.0"),
    "ve sigmas equal": (lambda: dj.VarianceExploding(1.5, 1.5), "sigma_max", "1.5"),
    "ve sigma_max infinite": (lambda: dj.VarianceExploding(1.5, float("inf")), "sigma_max", "inf"),
    "edm sigma_min": (lambda: dj.EDM(-1.0, 1.0), "sigma_min", "-1.0"),
    "edm sigma_max": (lambda: dj.EDM(3.0, 2.5), "sigma_max", "2.5"),
    "edm sigma_max infinite": (lambda: dj.EDM(3.0, float("inf")), "sigma_max", "inf"),
    "edm rho": (lambda: dj.EDM(rho=0.0), "rho", "0.0"),
    "edm rho infinite": (lambda: dj.EDM(rho=float("inf")), "rho", "inf"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_numbers_are_refused_by_name_and_value(case):
    make, argument, value = BAD[case]
    with pytest.raises(ValueError, match=rf"{argument}: .*got {value}"):
        make()


def test_whole_numbers_are_numbers():
    """`VariancePreserving(1, 20)` has float leaves, so that gradients reach them."""
    for process in (dj.VariancePreserving(1, 20), dj.VarianceExploding(1, 50), dj.EDM(1, 80, 7), dj.Cosine(1)):
        assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(process))
