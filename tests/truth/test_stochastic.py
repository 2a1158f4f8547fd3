"""Stochastic samplers: published algorithms transcribed, the SDE by quadrature, weak orders without Monte Carlo."""

import itertools
from typing import Any, NamedTuple
from unittest import mock

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, ALL_STEPPERS, each_process, gaussian
from scipy.integrate import quad
from walk import walk
from weak import fitted, marginal_variance, output_variance, output_variance_by_diffrax

import diffjax as dj
from diffjax import process as dp, samplers
from diffjax.samplers import MultistepWeights, Step, step_weights

KEY = jax.random.key
SLOW = pytest.mark.slow
V = 0.25

FAMILY = {
    "sde-dpmpp-2m": samplers.SDEDPMpp2M,
    "sde-dpmpp-3m": samplers.SDEDPMpp3M,
    "dpmpp-sde": samplers.DPMppSDE,
    "seeds-2": samplers.SEEDS2,
    "seeds-3": samplers.SEEDS3,
}
ANCESTRAL = {"dpm-2-ancestral": samplers.DPM2Ancestral, "dpmpp-2s-ancestral": samplers.DPMpp2SAncestral}
CARRIES_THE_MARGINAL = {**FAMILY, **ANCESTRAL, "ddpm": dj.DDPM}


# Published algorithms, in sigma alone. x is a vector: what multiplies x_T and each normal that has been drawn, which is
# all there is where the denoiser is linear.


def split(t, s, eta=1.0):
    up = min(s, eta * np.sqrt(s**2 * (t**2 - s**2) / t**2))
    return np.sqrt(s**2 - up**2), up


def euler_ancestral(x, sigmas, D, draw):
    for t, s in itertools.pairwise(sigmas):
        down, up = split(t, s)
        x = x + (x - D(x, t)) / t * (down - t) + up * draw()
    return x


def ddpm_large(x, sigmas, D, draw):
    for t, s in itertools.pairwise(sigmas):
        x = (s / t) ** 2 * x + (1 - (s / t) ** 2) * D(x, t) + np.sqrt(t**2 - s**2) * draw()
    return x


def dpm_2_ancestral(x, sigmas, D, draw):
    for t, s in itertools.pairwise(sigmas):
        down, up = split(t, s)
        m = np.exp((np.log(t) + np.log(down)) / 2)
        x_2 = x + (x - D(x, t)) / t * (m - t)
        x = x + (x_2 - D(x_2, m)) / m * (down - t) + up * draw()
    return x


def dpmpp_2s_ancestral(x, sigmas, D, draw):
    for t, s in itertools.pairwise(sigmas):
        down, up = split(t, s)
        h = np.log(t / down)
        m = t * np.exp(-h / 2)
        x_2 = m / t * x - np.expm1(-h / 2) * D(x, t)
        x = down / t * x - np.expm1(-h) * D(x_2, m) + up * draw()
    return x


def dpmpp_sde(x, sigmas, D, draw):
    for t, s in itertools.pairwise(sigmas):
        m = np.sqrt(t * s)
        first, second = draw(), draw()
        down, up = split(t, m)
        x_2 = down / t * x + (1 - down / t) * D(x, t) + up * first
        down, up = split(t, s)
        both = (np.sqrt(t - m) * first + np.sqrt(m - s) * second) / np.sqrt(t - s)
        x = down / t * x + (1 - down / t) * D(x_2, m) + up * both
    return x


def dpmpp_2m_sde(x, sigmas, D, draw):
    old, h_last = None, None
    for t, s in itertools.pairwise(sigmas):
        h, new = np.log(t / s), D(x, t)
        x = s / t * np.exp(-h) * x - np.expm1(-2 * h) * new + s * np.sqrt(-np.expm1(-2 * h)) * draw()
        if old is not None:
            x = x - 0.5 * np.expm1(-2 * h) * h / h_last * (new - old)
        old, h_last = new, h
    return x


def dpmpp_3m_sde(x, sigmas, D, draw):
    answers, hs = [], []
    for t, s in itertools.pairwise(sigmas):
        h = np.log(t / s)
        answers.append(D(x, t))
        x = np.exp(-2 * h) * x - np.expm1(-2 * h) * answers[-1] + s * np.sqrt(-np.expm1(-2 * h)) * draw()
        phi_2 = np.expm1(-2 * h) / (2 * h) + 1
        if len(hs) > 1:
            r0, r1 = hs[-1] / h, hs[-2] / h
            d10, d11 = (answers[-1] - answers[-2]) / r0, (answers[-2] - answers[-3]) / r1
            d1, d2 = d10 + (d10 - d11) * r0 / (r0 + r1), (d10 - d11) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / (2 * h) - 0.5) * d2
        elif hs:
            x = x + phi_2 * (answers[-1] - answers[-2]) * h / hs[-1]
        hs.append(h)
    return x


def seeds_2(x, sigmas, D, draw):
    """SEEDS-2 with its stage in the middle; the paper weighs D_1 - D by 1 - e^-2h, equal at the leading order."""
    for t, s in itertools.pairwise(sigmas):
        h = np.log(t / s)
        m = t * np.exp(-h / 2)
        noise = m * np.sqrt(-np.expm1(-h)) * draw()
        D_0 = D(x, t)
        D_1 = D(np.exp(-h) * x - np.expm1(-h) * D_0 + noise, m)
        x = np.exp(-2 * h) * x - np.expm1(-2 * h) * D_0 + 2 * (1 + np.expm1(-2 * h) / (2 * h)) * (D_1 - D_0)
        x = x + np.exp(-h) * noise + s * np.sqrt(-np.expm1(-h)) * draw()
    return x


def seeds_3(x, sigmas, D, draw):
    for t, s in itertools.pairwise(sigmas):
        h, r_1, r_2 = np.log(t / s), 1 / 3, 2 / 3
        s_1, s_2 = t * np.exp(-r_1 * h), t * np.exp(-r_2 * h)
        fresh, carried = np.sqrt(-np.expm1(-2 * h / 3)), np.exp(-2 * h / 3)
        noise_1 = s_1 * fresh * draw()
        noise_2 = carried * noise_1 + s_2 * fresh * draw()
        noise = carried * noise_2 + s * fresh * draw()
        D_0 = D(x, t)
        D_1 = D(np.exp(-2 * r_1 * h) * x - np.expm1(-2 * r_1 * h) * D_0 + noise_1, s_1)
        x_2 = np.exp(-2 * r_2 * h) * x - np.expm1(-2 * r_2 * h) * D_0 + noise_2
        D_2 = D(x_2 + r_2 / r_1 * (1 + np.expm1(-2 * r_2 * h) / (2 * r_2 * h)) * (D_1 - D_0), s_2)
        x = np.exp(-2 * h) * x - np.expm1(-2 * h) * D_0 + noise
        x = x + (1 + np.expm1(-2 * h) / (2 * h)) / r_2 * (D_2 - D_0)
    return x


PUBLISHED = {
    "ddim-ancestral": euler_ancestral,
    "ddpm": ddpm_large,
    "dpm-2-ancestral": dpm_2_ancestral,
    "dpmpp-2s-ancestral": dpmpp_2s_ancestral,
    "dpmpp-sde": dpmpp_sde,
    "sde-dpmpp-2m": dpmpp_2m_sde,
    "sde-dpmpp-3m": dpmpp_3m_sde,
    "seeds-2": seeds_2,
    "seeds-3": seeds_3,
}

FIGURES = {  # the relative error of the variance in percent at 16 and 128 steps, of sigma from 80 to 0.002
    "ddim-ancestral": (-47.60, -8.90),
    "ddpm": (103.09, 8.69),
    "dpm-2-ancestral": (36.17, 0.465),
    "dpmpp-2s-ancestral": (-17.99, -0.437),
    "dpmpp-sde": (-10.93, -0.149),
    "sde-dpmpp-2m": (30.31, 0.476),
    "sde-dpmpp-3m": (25.34, 0.224),
    "seeds-2": (-7.76, -0.153),
    "seeds-3": (0.203, 0.0405),
}


QUICK = ("dpm-2-ancestral", "dpmpp-sde", "sde-dpmpp-2m", "sde-dpmpp-3m", "seeds-2", "seeds-3")
EACH = [pytest.param(name, marks=[] if name in QUICK else SLOW, id=name) for name in FIGURES]


def published_variance(algorithm, sigmas):
    draws = iter(range(1, 3 * len(sigmas)))

    def draw():
        unit = np.zeros(3 * len(sigmas))
        unit[next(draws)] = 1
        return unit

    x = np.zeros(3 * len(sigmas))
    x[0] = np.sqrt(V + sigmas[0] ** 2)
    return float(np.sum(algorithm(x, sigmas, lambda x, t: V / (V + t**2) * x, draw) ** 2))


@pytest.mark.parametrize("name", EACH)
def test_variance_error_of_the_output(name):
    """The figures of `scripts/weak_order.py`, and equal to the published algorithm's to rounding."""
    process = dj.EDM()
    for n, figure in zip((16, 128), FIGURES[name], strict=True):
        ts = dj.uniform_grid(process, n)
        found = output_variance(ALL_STEPPERS[name](), process, V, ts)
        sigmas = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), n + 1) ** 7
        np.testing.assert_allclose(found, published_variance(PUBLISHED[name], sigmas), rtol=1e-9)
        assert 100 * (found / marginal_variance(process, V, ts[-1]) - 1) == pytest.approx(figure, rel=2e-3)


def weak_order(variance, process=None, end=0.0, steps=(64, 128, 256)):
    """Fitted on a grid uniform in t, by default of sigma from 3 to 0.1: it ends amid the noise (see weak.py)."""
    process = dj.EDM(0.1, 3.0) if process is None else process
    errors = []
    for n in steps:
        ts = np.linspace(1, end, n + 1)
        errors.append(variance(process, V, ts) / marginal_variance(process, V, ts[-1]) - 1)
    return fitted(steps, errors)


@pytest.mark.parametrize("name", EACH)
def test_declared_weak_order_is_the_fitted_one(name):
    """Within 0.15, at eta = 1 and at another eta."""
    with_eta = {**FAMILY, **ANCESTRAL}
    for stepper in (ALL_STEPPERS[name](), with_eta[name](eta=0.6) if name in with_eta else ALL_STEPPERS[name]()):
        order = weak_order(lambda *given, stepper=stepper: output_variance(stepper, *given))
        print(name, "fitted weak order", order)
        assert abs(order - stepper.order) < 0.15


def test_without_noise_the_stages_have_their_deterministic_order():
    """eta = 0 is a leaf like any other: SEEDS-2 is then of order 2 and SEEDS-3 of order 3."""
    for stepper, order in ((samplers.SEEDS2(eta=0.0), 2), (samplers.SEEDS3(eta=0.0), 3)):
        assert abs(weak_order(lambda *given, stepper=stepper: output_variance(stepper, *given)) - order) < 0.15


def test_without_noise_2m_and_2s_are_their_namesakes():
    process, ts = dj.Cosine(), np.linspace(1, 0, 7)
    found, wanted = (step_weights(stepper, process, ts) for stepper in (samplers.SDEDPMpp2M(eta=0.0), dj.DPMpp2M()))
    for field in ("c_x", "c_x0", "c_change"):
        np.testing.assert_allclose(getattr(found, field), getattr(wanted, field), rtol=1e-9, atol=1e-12)
    assert not np.any(found.c_z)
    found = step_weights(samplers.DPMpp2SAncestral(eta=0.0), process, ts)
    wanted = step_weights(samplers.DPMpp2S(), process, ts)
    for field in ("middle_t", "middle_c_x", "middle_c_x0", "c_x"):
        np.testing.assert_allclose(getattr(found, field), getattr(wanted, field), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.c_x0_middle, wanted.c_x0, rtol=1e-9, atol=1e-12)
    assert not np.any(found.c_z)
    assert not np.any(found.c_x0)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (diffrax.Euler, 1),
        *(
            pytest.param(solver, order, marks=SLOW)
            for solver, order in ((diffrax.Heun, 2), (diffrax.ShARK, 2), (diffrax.SEA, 1), (diffrax.SRA1, 2))
        ),
    ],
)
def test_weak_order_by_diffrax(solver, order):
    """The whole family through diffrax: Euler and SEA are of weak order 1; Heun (noise is additive), ShARK, SRA1 of 2.

    Sigma from 80 to 0.5."""
    end = float(dj.EDM().time_from_logsnr(-2 * np.log(0.5)))
    for eta in (1.0, 0.6):
        variance = lambda *given, eta=eta: output_variance_by_diffrax(solver(), *given, eta)
        found = weak_order(variance, dj.EDM(), end, (128, 256, 512))
        print(solver.__name__, eta, "fitted weak order", found)
        assert abs(found - order) < 0.2


def test_euler_maruyama_is_superconvergent_at_the_data():
    """Its leading error of a Gaussian's variance is a difference between the ends, v'/v^2, and v' = g^2 = 0 there."""
    order = weak_order(lambda *given: output_variance_by_diffrax(diffrax.Euler(), *given), dj.EDM())
    assert abs(order - 2) < 0.15


@SLOW
@pytest.mark.parametrize(("name", "order"), [("ddim-ancestral", 1), ("sde-dpmpp-2m", 2), ("dpm-2-ancestral", 2)])
def test_weak_order_where_the_denoiser_is_not_linear(name, order):
    """A mixture of two, 400,000 samples: the error of E[x^2] falls 2^order times, within 2^0.5, from 6 to 12 steps."""
    process, n = dj.EDM(0.1, 3.0), 400_000
    means, variances, shares = np.array([-1.0, 0.8]), np.array([0.04, 0.09]), np.array([0.35, 0.65])
    data = dj.GaussianMixture(jnp.asarray(means)[:, None], jnp.asarray(variances), jnp.asarray(shares))
    denoiser = dj.exact_denoiser(data, process)
    xt = dj.perturb(process, data.sample(KEY(0), n), jax.random.normal(KEY(1), (n, 1)), 1.0)
    errors = []
    for steps in (6, 12):
        x = walk(KEY(2), process, denoiser, xt, np.linspace(1, 0, steps + 1), ALL_STEPPERS[name]())
        errors.append(float(jnp.mean(x**2)) - shares @ (means**2 + variances + 0.01))
    print(name, errors)
    assert abs(fitted([6, 12], errors) - order) < 0.5


class Stage(NamedTuple):
    """A stage's time and its weights of x, of the answers and of the draws, each [n]."""

    t: Any
    c_x: Any
    c_x0: tuple
    c_z: tuple


def totals(process, ts, weights):
    """(alpha, sigma^2) that a step from alpha_t x0 + sigma_t eps reaches where the denoiser knows x0, and ought to."""
    ts = jnp.asarray(ts)
    alpha, sigma = np.asarray(process.alpha(ts[:-1])), np.asarray(process.sigma(ts[:-1]))
    stages = [] if hasattr(weights, "stages") else [Stage(ts[1:], weights.c_x, (weights.c_x0,), (weights.c_z,))]
    if hasattr(weights, "stages"):
        stages = weights.stages
    elif isinstance(weights, MultistepWeights):
        stages = [stages[0]._replace(c_x0=(weights.c_now, *np.moveaxis(weights.c_past, 1, 0)))]
    elif hasattr(weights, "middle_t"):
        w = weights
        stages = [Stage(w.middle_t, w.middle_c_x, (w.middle_c_x0,), ())]
        stages += [Stage(ts[1:], w.c_x, (w.c_x0, w.c_x0_middle), (w.c_z,))]
    for stage in stages:
        mean = stage.c_x * alpha + sum(stage.c_x0)
        variance = (stage.c_x * sigma) ** 2 + sum((w**2 for w in stage.c_z), start=0.0)
        time = jnp.asarray(stage.t)
        yield mean, process.alpha(time)
        yield variance, np.asarray(process.sigma(time)) ** 2


@pytest.mark.parametrize("name", each_process(("rectified",)))
def test_every_step_and_stage_carries_the_marginal(name):
    """Where the denoiser knows x0, q(xt | x0) becomes q(xs | x0): weights finite, their sums alpha_s and sigma_s^2."""
    process = ALL_PROCESSES[name]()
    grid = np.linspace(1, 0, 8)
    for make in CARRIES_THE_MARGINAL.values():
        for found, wanted in totals(process, grid, step_weights(make(), process, grid)):
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.7, pytest.param(1.6, marks=SLOW)])
def test_the_family_is_the_sde(eta):
    """A step at constant x0_hat, and the noises of stages and step together, against math's integrals by quadrature:
    with n(l) = sigma_l sqrt(2) eta int e^(-eta^2 (l - u)) dW_u, E[n(l) n(l')] by the Ito isometry."""
    process, ts = dj.VariancePreserving(), np.array([0.7, 0.45])
    t, s = (jnp.asarray(time) for time in ts)
    l_t, l_s = (float(process.logsnr(time)) / 2 for time in (t, s))
    sigma_t, sigma_s = float(process.sigma(t)), float(process.sigma(s))
    keep = sigma_s / sigma_t * np.exp(-(eta**2) * (l_s - l_t))
    data = (1 + eta**2) * sigma_s * quad(lambda l: np.exp(-(eta**2) * (l_s - l) + l), l_t, l_s)[0]

    def covariance(a, b):
        kernel = lambda u: 2 * eta**2 * np.exp(-(eta**2) * (a[0] + b[0] - 2 * u))
        return a[1] * b[1] * quad(kernel, l_t, min(a[0], b[0]))[0]

    end = l_s, sigma_s
    one = step_weights(samplers.SDEDPMpp2M(eta=eta), process, ts)
    np.testing.assert_allclose([one.c_x[0], one.c_x0[0]], [keep, data], rtol=1e-10)
    np.testing.assert_allclose(one.c_z[0] ** 2, covariance(end, end), rtol=1e-9, atol=1e-12)
    for stepper in (samplers.SEEDS2(r=0.3, eta=eta), samplers.SEEDS3(eta=eta)):
        stages = step_weights(stepper, process, ts).stages
        places = [(float(process.logsnr(jnp.asarray(x.t[0]))) / 2, float(process.sigma(x.t[0]))) for x in stages]
        for (a, p), (b, q) in itertools.product(zip(stages, places, strict=True), repeat=2):
            found = sum(v[0] * w[0] for v, w in zip(a.c_z, b.c_z, strict=False))
            np.testing.assert_allclose(found, covariance(p, q), rtol=1e-6, atol=1e-12)


def test_ddpm_has_the_variances_of_its_chain():
    """beta_k and beta tilde_k of a chain, written from its betas, and the log-linear mean of the two."""
    betas = np.linspace(0.002, 0.4, 20)
    bars = np.cumprod(1 - betas)
    process, ts = dp.DiscreteChain(dp.linear_betas(20, 0.002, 0.4)), np.arange(20, -1, -1) / 20
    before = np.concatenate([[1.0], bars[:-1]])
    small, large = (betas * (1 - before) / (1 - bars))[::-1], betas[::-1].copy()
    large[-1] = 0.0  # the last step adds none
    for v in (0.0, 0.4, 1.0):
        keep, data, noise = step_weights(dj.DDPM(v), process, ts)
        np.testing.assert_allclose(noise**2, small ** (1 - v) * large**v, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(keep, (np.sqrt(1 - betas) * (1 - before) / (1 - bars))[::-1], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(data, (np.sqrt(before) * betas / (1 - bars))[::-1], rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "seeds-3",
        *(
            pytest.param(name, marks=SLOW)
            for name in (
                "sde-dpmpp-3m",
                "dpm-2-ancestral",
                "ddpm",
                "dpmpp-2s-ancestral",
                "dpmpp-sde",
                "predictor-corrector",
            )
        ),
    ],
)
def test_a_step_to_zero_noise_is_the_denoiser(name):
    """From any noise, and from t = 1 where there is no data, one step to sigma = 0 gives x0_hat itself."""
    process, stepper = dj.Rectified(), ALL_STEPPERS[name]()
    denoiser = dj.exact_denoiser(gaussian(), process)
    xt = jax.random.normal(KEY(1), (3, 2))
    for ts in (np.array([0.4, 0.0]), np.array([1.0, 0.0])):
        t, s = jnp.asarray(ts)
        row = jax.tree.map(lambda w: jnp.asarray(w[0]), step_weights(stepper, process, ts))
        xs, _ = stepper.step(denoiser, xt, Step(t, s, row, jax.random.split(KEY(0), 3)), stepper.init(xt))
        np.testing.assert_allclose(xs, denoiser(xt, t), rtol=1e-10)


def test_a_correction_by_hand():
    """Two corrections written out, of samples with usual, and with hardly any, pull: the second meets the bound."""
    process, r = dj.VariancePreserving(), 0.2
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(6), 0.3), process)
    stepper = samplers.PredictorCorrector(dj.DDIM(), 2, r)
    x = np.random.default_rng(0).normal(size=(2, 6)) * np.array([[1.0], [1e-3]])
    ts = np.array([0.5, 0.4])
    drawn = [np.random.default_rng(k).normal(size=(2, 6)) for k in (1, 2)]
    t, s = jnp.asarray(ts)
    row = jax.tree.map(lambda w: jnp.asarray(w[0]), step_weights(stepper, process, ts))
    numbers = mock.patch(
        "diffjax.samplers._predictor_corrector.normal_like", side_effect=[jnp.asarray(z) for z in drawn]
    )
    with numbers, jax.disable_jit():
        found, _ = stepper.step(denoiser, jnp.asarray(x), Step(t, s, row, jax.random.split(KEY(0), 2)), None)
    (a, b), (sd, sd_s) = process.alpha(jnp.asarray(ts)), process.sigma(jnp.asarray(ts))
    x0 = np.asarray(denoiser(jnp.asarray(x), t))
    x = b * x0 + sd_s / sd * (x - a * x0)
    for z in drawn:
        pull = -x / (b**2 * 0.3 + sd_s**2)
        ratio = 6 / (pull**2).sum(1, keepdims=True)
        e = 2 * r**2 * np.minimum(ratio, b**2 + sd_s**2)
        x = x + e * pull + np.sqrt(2 * e) * z
    np.testing.assert_allclose(found, x, rtol=1e-9)
    usual = samplers.PredictorCorrector(dj.DDIM())
    assert (usual.corrections, float(usual.snr)) == (1, 0.16)  # the paper's, for VE and CIFAR-10
    multistep = samplers.PredictorCorrector(dj.DPMpp2M(), 2)
    assert (multistep.evaluations_per_step, multistep.history, multistep.order) == (3, 1, 2)


@SLOW
def test_the_bias_of_corrections():
    """Isotropic Gaussian data in 1024 dimensions: from the exact variance v, corrections go towards (1 + snr^2) v."""
    process, r, ts = dj.VariancePreserving(), 0.6, np.array([0.31, 0.3])
    denoiser = dj.exact_denoiser(dj.Gaussian(jnp.zeros(1024), V), process)
    xt = np.sqrt(marginal_variance(process, V, 0.31)) * jax.random.normal(KEY(0), (64, 1024))
    stepper = samplers.PredictorCorrector(dj.DDIM(), 3, r)
    x = dj.sample(KEY(1), process, denoiser, xt, ts, stepper, final_denoise=False)
    ratio = 1.0
    for _ in range(3):
        ratio = ratio * (1 - 2 * r**2 / ratio) ** 2 + 4 * r**2 / ratio
    assert abs(ratio - (1 + r**2)) < 0.02
    found = float(jnp.mean(x**2)) / marginal_variance(process, V, 0.3)
    assert abs(found / ratio - 1) < 4.5 * np.sqrt(2 / x.size) + 0.005


@SLOW
def test_traced_weights_are_those_of_the_host():
    """Process, grid and eta traced: the same weights; and a finite slope in eta, at 0 too."""
    ts = np.linspace(0.9, 0.1, 6)
    steppers = [make() for make in (*CARRIES_THE_MARGINAL.values(), ALL_STEPPERS["predictor-corrector"])]
    process = dj.VariancePreserving()
    traced = jax.jit(lambda steppers, process, ts: [step_weights(stepper, process, ts) for stepper in steppers])
    for found, stepper in zip(traced(steppers, process, ts), steppers, strict=True):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(step_weights(stepper, process, ts)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    @jax.jit
    def slope(eta):
        total = lambda eta, make: sum(jnp.sum(w**3) for w in jax.tree.leaves(step_weights(make(eta=eta), process, ts)))
        return [jax.value_and_grad(lambda eta, make=make: total(eta, make))(eta) for make in FAMILY.values()]

    for (_, found), (above, _), (below, _) in zip(
        *(slope(jnp.asarray(e)) for e in (0.6, 0.60001, 0.59999)), strict=True
    ):
        np.testing.assert_allclose(found, (above - below) / 2e-5, rtol=1e-6)
    assert np.all(np.isfinite(slope(jnp.asarray(0.0))))


GRADIENTS = ("ddim-ancestral", "dpm-2-ancestral", "dpmpp-sde", "predictor-corrector")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in GRADIENTS else SLOW)
        for name in (*FIGURES, "predictor-corrector", "dpm-solver-2", "dpmpp-2s")
    ],
)
@pytest.mark.slow
def test_gradients_from_alpha_0_to_sigma_0(name):
    """By the grid, xt and the stepper's numbers: finite, of a denoiser that has no answer at sigma = 0; and by the
    times inside the grid, and by xt, equal to differences (by t = 1 too, where the step's weights are smooth)."""
    process, ts = dj.Rectified(), np.array([1.0, 0.6, 0.3, 0.0])
    xt, how = jnp.array([[0.3, -1.2]]), jnp.array([0.7, -0.4])

    def denoiser(x, t):
        return jnp.where(t > 0, (1 - t) * V / jnp.where(t > 0, (1 - t) ** 2 * V + t**2, 0.0) * x, jnp.nan)

    @jax.jit
    @jax.value_and_grad
    def loss(at):
        stepper, ts, xt = at
        return jnp.sum(how * dj.sample(KEY(0), process, denoiser, xt, ts, stepper, final_denoise=False))

    value = lambda ts, xt=xt: loss((stepper, jnp.asarray(ts), xt))[0]
    stepper, e = ALL_STEPPERS[name](), 1e-5
    start, slopes = loss((stepper, jnp.asarray(ts), xt))
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))
    for k, step in ((1, [0, e, 0, 0]), (2, [0, 0, e, 0])):
        np.testing.assert_allclose(slopes[1][k], (value(ts + step) - value(ts - step)) / (2 * e), rtol=1e-5, atol=1e-8)
    step = jnp.array([[0.0, e]])
    np.testing.assert_allclose(slopes[2][0, 1], (value(ts, xt + step) - value(ts, xt - step)) / (2 * e), rtol=1e-6)
    if name == "ddim-ancestral":
        np.testing.assert_allclose(slopes[1][0], (start - value(ts - [e, 0, 0, 0])) / e, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dj.DDPM(1.5), r"interpolation: must lie in \[0, 1\], got 1.5"),
        (lambda: samplers.EulerAncestral(1.5), r"eta: must lie in \[0, 1\], got 1.5"),
        (lambda: samplers.DPM2Ancestral(-0.5), "eta: must not be negative, got -0.5"),
        (lambda: samplers.SDEDPMpp2M(np.nan), "eta: must not be negative, got nan"),
        (lambda: samplers.DPMppSDE(r=1.0), r"r: must lie in \(0, 1\), got 1.0"),
        (lambda: samplers.SEEDS2(r=0.0), r"r: must lie in \(0, 1\), got 0.0"),
        (lambda: samplers.PredictorCorrector(dj.DDIM(), 0), "corrections: must be a positive integer, got 0"),
        (lambda: samplers.PredictorCorrector(dj.DDIM(), snr=0.0), "snr: must be positive, got 0.0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
