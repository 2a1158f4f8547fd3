"""What each name of a configuration computes, against its formula: no two names of a table can change places.

Formulas are NumPy's, with the documented default of every number. Samplers without a short one are compared with their
class and all of its numbers, and every sampler with every other.
"""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffjax as dj
from diffjax import config as c, parameterisation, process as processes, samplers
from diffjax.config._names import construct

T = np.array([0.1, 0.6])
KEY = jax.random.key(3)


def numbers_of(config):
    """The names of a configuration's numbers."""
    return {field.name for field in dataclasses.fields(config)} - {"name"}


def settings(formula, odd):
    """{} for the defaults, then each number that a formula takes changed alone, from `odd`."""
    taken = [name for name in inspect.signature(formula).parameters if name in odd]
    return [{}, *({name: odd[name]} for name in taken)]


def assert_distinct(values, least=1e-3):
    """Every two of the values differ by `least` of their size somewhere."""
    for a, b in itertools.combinations(values, 2):
        assert np.max(np.abs(np.subtract(values[a], values[b])) / (1e-9 + np.abs(values[a]))) > least, (a, b)


def assert_other_numbers_are_refused(kind, cls, table, formulas, odd):
    """A number that a name has no use for is an error that says so."""
    assert set(odd) == numbers_of(cls)
    for name, formula in formulas.items():
        for number in set(odd) - set(inspect.signature(formula).parameters):
            with pytest.raises(ValueError, match=rf"{kind}\.{number}: {name} has no such number, got"):
                construct(kind, table, cls(name=name, **{number: odd[number]}))


# --- processes: (alpha, sigma) at t ---


def _kept(alpha):
    return alpha, np.sqrt(1 - alpha**2)


def _integral(t, beta_min, beta_max):
    return beta_min * t + (beta_max - beta_min) * t**2 / 2


def _cosine(t, shift=0.0):
    logsnr = -2 * np.log(np.tan(np.pi * t / 2)) + shift
    return 1 / np.sqrt(1 + np.exp(-logsnr)), 1 / np.sqrt(1 + np.exp(logsnr))


def _karras(t, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    a, b = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.ones_like(t), (a + t * (b - a)) ** rho


PROCESSES = {
    "variance_preserving": lambda t, beta_min=0.1, beta_max=20.0: _kept(np.exp(-_integral(t, beta_min, beta_max) / 2)),
    "sub_vp": lambda t, beta_min=0.1, beta_max=20.0: (
        np.exp(-_integral(t, beta_min, beta_max) / 2),
        1 - np.exp(-_integral(t, beta_min, beta_max)),
    ),
    "cosine": _cosine,
    "offset_cosine": lambda t, offset=0.008: _kept(
        np.cos(np.pi / 2 * (t + offset) / (1 + offset)) / np.cos(np.pi / 2 * offset / (1 + offset))
    ),
    "ornstein_uhlenbeck": lambda t, horizon=5.0: _kept(np.exp(-horizon * t)),
    "variance_exploding": lambda t, sigma_min=0.01, sigma_max=50.0: (
        np.ones_like(t),
        sigma_min * (sigma_max / sigma_min) ** t,
    ),
    "variance_exploding_from_zero": lambda t, sigma_min=0.01, sigma_max=50.0: (
        np.ones_like(t),
        sigma_min * np.sqrt((sigma_max / sigma_min) ** (2 * t) - 1),
    ),
    "karras": _karras,
    "rectified": lambda t: (1 - t, t),
    "polynomial": lambda t, power=2.0: ((1 - t) ** power, 1 - (1 - t) ** power),
}
ODD_PROCESS = {
    "beta_min": 0.5,
    "beta_max": 9.0,
    "shift": -1.5,
    "offset": 0.2,
    "horizon": 3.0,
    "power": 3.0,
    "sigma_min": 0.05,
    "sigma_max": 20.0,
    "rho": 4.0,
}


def test_a_process_has_the_alpha_and_sigma_of_its_name():
    assert list(PROCESSES) == list(c.PROCESSES)
    for name, formula in PROCESSES.items():
        for numbers in settings(formula, ODD_PROCESS):
            made = construct("process", c.PROCESSES, c.ProcessConfig(name=name, **numbers))
            alpha, sigma = formula(T, **numbers)
            np.testing.assert_allclose(made.alpha(jnp.asarray(T, jnp.float32)), alpha, rtol=2e-5, err_msg=name)
            np.testing.assert_allclose(made.sigma(jnp.asarray(T, jnp.float32)), sigma, rtol=2e-5, err_msg=name)
            if numbers:
                assert_distinct({"default": formula(T), "changed": (alpha, sigma)})
    assert_distinct({name: formula(np.array([0.01, 0.3])) for name, formula in PROCESSES.items()})
    assert_other_numbers_are_refused("process", c.ProcessConfig, c.PROCESSES, PROCESSES, ODD_PROCESS)


# --- predictions: y = a x0 + b eps under the variance-preserving process, B = 0.1 t + 19.9 t^2/2 ---


def _vp():
    """alpha, sigma and their derivatives at T."""
    b, beta = _integral(T, 0.1, 20.0), 0.1 + 19.9 * T
    alpha, sigma = np.exp(-b / 2), np.sqrt(1 - np.exp(-b))
    return alpha, sigma, -beta / 2 * alpha, beta * np.exp(-b) / (2 * sigma)


def _edm(data_std=0.5):
    alpha, sigma, _, _ = _vp()
    q = np.sqrt(alpha**2 * data_std**2 + sigma**2)
    return sigma / (data_std * q), -alpha * data_std / q


PREDICTIONS = {
    "eps": lambda data_std=1.0: (0 * T, 0 * T + 1),
    "x0": lambda data_std=1.0: (0 * T + 1, 0 * T),
    "score": lambda data_std=1.0: (0 * T, -1 / _vp()[1]),
    "v": lambda data_std=1.0: (-_vp()[1], _vp()[0]),
    "velocity": lambda data_std=1.0: _vp()[2:],
    "karras": _edm,
}


def test_a_prediction_has_the_coefficients_of_its_name():
    assert list(PREDICTIONS) == list(c.PARAMETERISATIONS)
    assert numbers_of(c.ParameterisationConfig) == {"data_std"}
    process, t = processes.VariancePreserving(0.1, 20.0), jnp.asarray(T, jnp.float32)
    alpha, sigma, _, _ = _vp()
    for name, formula in PREDICTIONS.items():
        for numbers in ({}, {"data_std": 1.5}):
            made = construct("parameterisation", c.PARAMETERISATIONS, c.ParameterisationConfig(name=name, **numbers))
            a, b = formula(**numbers)
            np.testing.assert_allclose(np.broadcast_to(made.coefficients(process, t)[0], 2), a, rtol=1e-4, err_msg=name)
            np.testing.assert_allclose(np.broadcast_to(made.coefficients(process, t)[1], 2), b, rtol=1e-4, err_msg=name)
            std = numbers.get("data_std", inspect.signature(formula).parameters["data_std"].default)
            scale = 1 / np.sqrt((alpha * std) ** 2 + sigma**2)
            np.testing.assert_allclose(made.input_scale(process, t), scale, rtol=1e-4)
    assert_distinct({name: formula() for name, formula in PREDICTIONS.items()})


# --- weightings, on the loss of eps, under sub-VP, where alpha^2 + sigma^2 is not 1 ---

B, BETA = _integral(T, 0.1, 20.0), 0.1 + 19.9 * T
ALPHA, SIGMA = np.exp(-B / 2), 1 - np.exp(-B)
SNR = (ALPHA / SIGMA) ** 2

WEIGHTINGS = {
    "constant": lambda: np.ones(2),
    "native": lambda: ((ALPHA**2 + SIGMA**2) / ALPHA) ** 2,  # of v, whose (a, b) is (-sigma, alpha)
    "on_x0": lambda: 1 / SNR,
    "on_score": lambda: 1 / SIGMA**2,
    "on_v": lambda: 1 + 1 / SNR,
    "flow_matching": lambda: (1 + SNR**-0.5) ** 2,
    "likelihood": lambda: BETA * (1 + 2 * np.exp(-B) / SIGMA),  # logsnr is -B - 2 log(1 - e^-B)
    "edm": lambda data_std=0.5: (1 / SNR + data_std**2) / data_std**2,
    "min_snr": lambda gamma=5.0: np.minimum(SNR, gamma) / SNR,
    "soft_min_snr": lambda gamma=4.0: gamma / (SNR + gamma),
    "sigmoid": lambda bias=0.0: 1 / (1 + SNR * np.exp(-bias)),
    "p2": lambda gamma=1.0, k=1.0: (k + SNR) ** -gamma,
}
ODD_WEIGHTING = {"data_std": 1.5, "gamma": 0.5, "bias": -2.0, "k": 2.0}


def test_a_weighting_is_the_function_of_its_name():
    assert list(WEIGHTINGS) == list(c.WEIGHTINGS)
    process, t = processes.SubVP(0.1, 20.0), jnp.asarray(T, jnp.float32)
    for name, formula in WEIGHTINGS.items():
        for numbers in settings(formula, ODD_WEIGHTING):
            made = construct("weighting", c.WEIGHTINGS, c.WeightingConfig(name=name, **numbers))
            found = made(process, parameterisation.VPrediction(), t)
            np.testing.assert_allclose(found, formula(**numbers), rtol=1e-4, err_msg=name)
            if numbers:
                assert_distinct({"default": formula(), "changed": found})
    # P2 at k = gamma = 1 is the sigmoid at 0: the two differ in what numbers they take, and in these.
    assert_distinct({name: formula() for name, formula in WEIGHTINGS.items() if name != "p2"})
    assert_other_numbers_are_refused("weighting", c.WeightingConfig, c.WEIGHTINGS, WEIGHTINGS, ODD_WEIGHTING)


# --- times: F(t) for the cumulative distribution F on the interval of variance-preserving, |logsnr| <= 20 ---


def _logsnr(t):
    b = _integral(t, 0.1, 20.0)
    return -b - np.log(-np.expm1(-b))


LOW, HIGH = np.log1p(np.exp(-20.0)) / 0.1, np.float64(1.0)


def _normal(value, mean, std):
    """The cumulative distribution of a normal cut to the interval, of `value(t)`."""
    with np.errstate(divide="ignore"):
        ends = [stats.norm.cdf((value(end) - mean) / std) for end in (LOW, HIGH)]
    return lambda t: (stats.norm.cdf((value(t) - mean) / std) - ends[0]) / (ends[1] - ends[0])


def _uniform():
    return lambda t: (t - LOW) / (HIGH - LOW)


def _mode(scale=1.29):
    """Esser et al. 2024, eq. 20, inverted by a table."""
    u = np.linspace(0, 1, 100_001)
    return lambda t: np.interp(t, u - scale * (np.sin(np.pi / 2 * u) ** 2 - u), u)


TIMES = {
    "uniform": _uniform,
    "stratified": _uniform,
    "low_discrepancy": _uniform,
    "lognormal": lambda mean=-1.2, std=1.2: _normal(lambda t: -_logsnr(t) / 2, mean, std),
    "logit_normal": lambda mean=0.0, std=1.0: _normal(lambda t: np.log(t / (1 - t)), mean, std),
    "mode": _mode,
    "logsnr": lambda: lambda t: (_logsnr(LOW) - _logsnr(t)) / (_logsnr(LOW) - _logsnr(HIGH)),
}
ODD_TIMES = {"mean": 0.7, "std": 0.4, "scale": -0.6}
N = 64


def _spread(name, u):
    """What u [N] of a batch must be: even, along the golden ratio, or each from its own key."""
    if name == "stratified":
        return (u[0] + np.arange(N) / N) % 1
    if name == "low_discrepancy":
        return (u[0] + np.arange(N) * (np.sqrt(5) - 1) / 2) % 1
    return np.asarray(jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(KEY, i)))(jnp.arange(N)))


def test_times_have_the_distribution_of_their_name():
    assert list(TIMES) == list(c.TIMES)
    process = processes.VariancePreserving(0.1, 20.0)
    drawn = {}
    for name, cumulative in TIMES.items():
        for numbers in settings(cumulative, ODD_TIMES):
            made = construct("times", c.TIMES, c.TimesConfig(name=name, **numbers), process)
            t, correction = made(KEY, N)
            drawn[name, *numbers] = np.asarray(t)
            np.testing.assert_array_equal(correction, 1)
            u = cumulative(**numbers)(np.asarray(t, np.float64))
            apart = (u - _spread(name, u) + 0.5) % 1 - 0.5  # around the circle
            np.testing.assert_allclose(apart, 0, atol=2e-5, err_msg=name)
    assert_distinct(drawn)
    flat = construct("times", c.TIMES, c.TimesConfig(name="mode", scale=0.0), process)  # 0 is a number, not a default
    np.testing.assert_allclose(flat(KEY, N)[0], drawn["uniform",], rtol=1e-5)
    assert_other_numbers_are_refused("times", c.TimesConfig, c.TIMES, TIMES, ODD_TIMES)


# --- grids, of a rectified flow between |logsnr| = 20: sigma/alpha is t/(1 - t), from e^10 to e^-10 ---


def _steps(forward, back, n):
    """n equal steps in a function of log(sigma/alpha), back as log(sigma/alpha)."""
    return back(np.linspace(forward(10.0), forward(-10.0), n + 1))


def _time(noise):
    return 1 / (1 + np.exp(-noise))


GRIDS = {
    "uniform": lambda n: np.linspace(_time(10.0), _time(-10.0), n + 1),
    "quadratic": lambda n: np.linspace(np.sqrt(_time(10.0)), np.sqrt(_time(-10.0)), n + 1) ** 2,
    "karras": lambda n: _time(_steps(lambda v: np.exp(v / 7), lambda w: 7 * np.log(w), n)),
    "logsnr": lambda n: _time(np.linspace(10.0, -10.0, n + 1)),
    "snr": lambda n: _time(
        _steps(lambda v: np.arcsinh((v - np.log(0.5)) / 1.2), lambda w: np.log(0.5) + 1.2 * np.sinh(w), n)
    ),
    # Equal steps between the times that sigma/alpha times 3 takes to the ends, then sigma/alpha times 3.
    "shifted": lambda n: _time(
        np.log(3.0) + _steps(lambda v: _time(v - np.log(3.0)), lambda t: np.log(t / (1 - t)), n)
    ),
}


def test_a_grid_has_the_times_of_its_name():
    assert list(GRIDS) == list(c.GRIDS)
    process = dj.Rectified()
    for name, formula in GRIDS.items():
        ts = c.build_grid(c.SamplerConfig(grid=name, steps=6), process)
        np.testing.assert_allclose(ts, formula(6), rtol=1e-3, err_msg=name)
    assert_distinct({name: formula(6) for name, formula in GRIDS.items()})
    np.testing.assert_allclose(
        c.build_grid(c.SamplerConfig(grid="snr", steps=6), process, 3), GRIDS["snr"](3), rtol=1e-3
    )


def test_a_grid_of_too_many_steps_is_refused():
    with pytest.raises(ValueError, match="n: 40000 steps are too many here, for float32 times coincide"):
        c.build_grid(c.SamplerConfig(grid="logsnr", steps=40_000), dj.Rectified())


# --- samplers, from t = 1 of EDM's process (alpha = 1) with the exact denoiser of the two points -1 and 1 ---

PROCESS = {"sigma_min": 0.1, "sigma_max": 5.0, "rho": 7.0}
LEVELS = np.array([3.0, 1.8, 1.2, 0.9, 0.6, 0.25])
START = np.array([[2.5], [-1.0], [0.7]])


def _clock(sigma):
    """The time at which the process has a noise level."""
    a, b = 0.1 ** (1 / 7), 5.0 ** (1 / 7)
    return (sigma ** (1 / 7) - a) / (b - a)


def _data(x, sigma):
    """E[x0 | x] for x0 = -1 or 1."""
    return np.tanh(x / sigma**2)


def _noise(x, sigma):
    return (x - _data(x, sigma)) / sigma


def denoiser(x, t):
    """`_data` as a denoiser."""
    return jnp.tanh(x / processes.Karras(**PROCESS).sigma(t) ** 2)


def _step(x, t, s, answer):
    """DDIM's step, exact for an x0 that is `answer` all the way."""
    return answer + s / t * (x - answer)


def _ddim(x, t, s, past):
    return _step(x, t, s, _data(x, t))


def _euler(x, t, s, past):
    a, b = 0.1 ** (1 / 7), 5.0 ** (1 / 7)
    return x + (_clock(s) - _clock(t)) * 7 * (b - a) * t ** (6 / 7) * _noise(x, t)


def _heun(x, t, s, past):
    return x + (s - t) / 2 * (_noise(x, t) + _noise(x + (s - t) * _noise(x, t), s))


def _dpm_solver2(x, t, s, past):
    middle = np.sqrt(t * s)
    return x + (s - t) * _noise(x + (middle - t) * _noise(x, t), middle)


def _dpm_solver3(x, t, s, past):
    """Lu et al. 2022, algorithm 5, with r1 = 1/3 and r2 = 2/3."""
    h, eps = np.log(t / s), _noise(x, t)
    one, two = t * np.exp(-h / 3), t * np.exp(-2 * h / 3)
    change = _noise(x - one * np.expm1(h / 3) * eps, one) - eps
    x2 = x - two * np.expm1(2 * h / 3) * eps - 2 * two * (np.expm1(2 * h / 3) / (2 * h / 3) - 1) * change
    return x - s * np.expm1(h) * eps - 1.5 * s * (np.expm1(h) / h - 1) * (_noise(x2, two) - eps)


def _dpmpp2s(x, t, s, past):
    middle = np.sqrt(t * s)
    return _step(x, t, s, _data(_step(x, t, middle, _data(x, t)), middle))


def _dpmpp2m(x, t, s, past):
    if len(past) == 1:
        return _ddim(x, t, s, past)
    (before, earlier, _), (_, now, _) = past[-2:]
    ratio = np.log(before / t) / np.log(t / s)
    return _step(x, t, s, now + (now - earlier) / (2 * ratio))


def _ipndm(x, t, s, past):
    weights = {1: [1], 2: [3, -1], 3: [23, -16, 5], 4: [55, -59, 37, -9]}[min(len(past), 4)]
    return x + (s - t) * sum(w * eps for w, (_, _, eps) in zip(weights, past[::-1], strict=False)) / sum(weights)


def _adams(order, clock, of_noise):
    """The integral of the polynomial through the latest answers, by a fine trapezoid rule in log(sigma)."""

    def step(x, t, s, past):
        points = past[-order:]
        sigma = np.exp(np.linspace(np.log(t), np.log(s), 20_001))
        total = np.zeros_like(x)
        for i, point in enumerate(points):
            rest = [clock(other[0]) for j, other in enumerate(points) if j != i]
            lagrange = np.prod([(clock(sigma) - r) / (clock(point[0]) - r) for r in rest], axis=0) * np.ones_like(sigma)
            weight = lagrange if of_noise else -lagrange * s / sigma**2
            total = total + np.trapezoid(weight, sigma) * (point[2] if of_noise else point[1])
        return total + (x if of_noise else s / t * x)

    return step


def _walk(step):
    """The states after the last of LEVELS; `past` holds (sigma, x0, eps) of the levels so far."""
    x, past = START, []
    for t, s in itertools.pairwise(LEVELS):
        past.append((t, _data(x, t), _noise(x, t)))
        x = step(x, t, s, past)
    return x


BY_FORMULA = {
    "ddim": _ddim,
    "euler": _euler,
    "heun": _heun,
    "dpm_solver2": _dpm_solver2,
    "dpm_solver3": _dpm_solver3,
    "dpmpp2s": _dpmpp2s,
    "dpmpp2m": _dpmpp2m,
    "dpmpp3m": _adams(3, np.log, of_noise=False),
    "deis": _adams(4, _clock, of_noise=True),
    "lms": _adams(4, lambda sigma: sigma, of_noise=True),
    "ipndm": _ipndm,
}
BY_CLASS = {
    "unipc": lambda: samplers.UniPC(3, samplers.bh2),
    "ddpm": lambda: samplers.DDPM(0.0),
    "dpm2_ancestral": lambda: samplers.DPM2Ancestral(1.0),
    "dpmpp2s_ancestral": lambda: samplers.DPMpp2SAncestral(1.0),
    "sde_dpmpp2m": lambda: samplers.SDEDPMpp2M(1.0),
    "sde_dpmpp3m": lambda: samplers.SDEDPMpp3M(1.0),
    "dpmpp_sde": lambda: samplers.DPMppSDE(0.5, 1.0),
    "sa_solver": lambda: samplers.ExponentialAdams(parameterisation.X0Prediction(), 3, True, eta=1.0),
    "seeds2": lambda: samplers.SEEDS2(0.5, 1.0),
    "seeds3": lambda: samplers.SEEDS3(1.0),
    "churn": lambda: samplers.Churn(10.0, 0.0, np.inf, 1.0),
    "predictor_corrector": lambda: samplers.PredictorCorrector(samplers.DDIM(eta=1.0), 1, 0.16),
}
WITH_ETA = (
    "ddim",
    "dpm2_ancestral",
    "dpmpp2s_ancestral",
    "sde_dpmpp2m",
    "sde_dpmpp3m",
    "dpmpp_sde",
    "seeds2",
    "seeds3",
)


def draw(stepper, levels=LEVELS):
    """The states at the last of some noise levels."""
    start, ts = jnp.asarray(START, jnp.float32), _clock(levels)
    return np.asarray(dj.sample(KEY, processes.Karras(**PROCESS), denoiser, start, ts, stepper, denoise=False))


def test_a_sampler_takes_the_steps_of_its_name():
    assert sorted([*BY_FORMULA, *BY_CLASS]) == sorted(c.STEPPERS)
    drawn = {name: draw(c.build_stepper(c.SamplerConfig(name=name))) for name in c.STEPPERS}
    for name, step in BY_FORMULA.items():
        np.testing.assert_allclose(drawn[name], _walk(step), rtol=1e-4, atol=1e-5, err_msg=name)
    for name, make in BY_CLASS.items():
        np.testing.assert_array_equal(drawn[name], draw(make()), err_msg=name)
    assert_distinct(drawn)
    fine = np.geomspace(3.0, 0.25, 41)  # s_churn/n is below its bound sqrt(2) - 1 from 25 steps on
    np.testing.assert_array_equal(
        draw(c.build_stepper(c.SamplerConfig(name="churn")), fine), draw(BY_CLASS["churn"](), fine)
    )


def test_eta_sets_the_samplers_that_have_one_and_is_refused_for_others():
    for name in c.STEPPERS:
        config = c.SamplerConfig(name=name, eta=0.4)
        if name not in WITH_ETA:
            with pytest.raises(ValueError, match=rf"sampler\.eta: {name} has no such number, got 0\.4"):
                c.build_stepper(config)
            continue
        made = c.build_stepper(config)
        assert type(made) is type(c.build_stepper(c.SamplerConfig(name=name)))
        assert float(made.eta) == pytest.approx(0.4)
        assert made.stochastic
        assert float(c.build_stepper(c.SamplerConfig(name=name, eta=0.0)).eta or 0.0) == 0.0
