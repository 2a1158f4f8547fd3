"""What each name of a configuration computes, against its formula: no two names of a table can change places.

Formulas are NumPy's, with the documented default of every number. Samplers without a short one are compared with their
class and all of its numbers, and every sampler with every other.
"""

import dataclasses
import inspect
import itertools
import pickle
import re
from typing import Literal, get_type_hints

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffjax as dj
from diffjax import config as c, guidance, process as processes, samplers
from diffjax.config import Names, changed, construct, numbers_of as numbers_of_row, optional, options, preset

T = np.array([0.1, 0.6])
BOUNDS = {"logsnr_min", "logsnr_max"}
"""What every process takes."""
KEY = jax.random.key(3)
SMALL = c.NetworkConfig("mlp", width=8, depth=1)


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
    assert set(odd) == numbers_of(cls) - BOUNDS - {"zero_terminal_snr"}
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


def _edm_process(t, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    a, b = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.ones_like(t), (a + t * (b - a)) ** rho


def _chain(betas):
    """alpha and sigma of a chain, whose log alpha is linear between its steps."""
    total = np.concatenate([[0.0], np.cumsum(-np.log1p(-betas))])
    return lambda t: _kept(np.exp(-np.interp(t, np.arange(len(total)) / len(betas), total) / 2))


def _linear_betas(steps, start, stop):
    return start + (stop - start) * np.arange(steps) / (steps - 1)


def _cosine_betas(steps, offset, largest):
    f = np.cos(np.pi / 2 * (np.arange(steps + 1) / steps + offset) / (1 + offset)) ** 2
    return np.minimum(1 - f[1:] / f[:-1], largest)


def _of_logsnr(logsnr):
    return 1 / np.sqrt(1 + np.exp(-logsnr)), 1 / np.sqrt(1 + np.exp(logsnr))


def _monotone(t, logsnr_max=13.3, logsnr_min=-5.0, width=1024):
    """Kingma et al. 2021, appendix H, with the weights that the class begins with."""
    made = processes.MonotoneLogsnr(jax.random.key(0), width=width)
    slope, inner, outer = (np.exp(np.asarray(w, np.float64)) for w in (made.slope, made.inner, made.outer))

    def rise(t):
        return slope * t + np.mean(outer / (1 + np.exp(-slope * inner * t - np.asarray(made.bias, np.float64))))

    part = np.array([(rise(at) - rise(0.0)) / (rise(1.0) - rise(0.0)) for at in t])
    return _of_logsnr((1 - part) * logsnr_max + part * logsnr_min)


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
    "edm": _edm_process,
    "rectified": lambda t: (1 - t, t),
    "polynomial": lambda t, power=2.0: ((1 - t) ** power, 1 - (1 - t) ** power),
    "linear_chain": lambda t, steps=1000, start=1e-4, stop=0.02: _chain(_linear_betas(steps, start, stop))(t),
    "scaled_linear_chain": lambda t, steps=1000, start=0.00085, stop=0.012: _chain(
        _linear_betas(steps, start**0.5, stop**0.5) ** 2
    )(t),
    "cosine_chain": lambda t, steps=1000, offset=0.008, largest=0.999: _chain(_cosine_betas(steps, offset, largest))(t),
    "learned_logsnr": lambda t, logsnr_max=13.3, logsnr_min=-5.0: _of_logsnr(
        logsnr_max + t * (logsnr_min - logsnr_max)
    ),
    "monotone_logsnr": _monotone,
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
    "steps": 7,
    "start": 0.01,
    "stop": 0.1,
    "largest": 0.0015,
    "width": 8,
}
ODD_BOUNDS = {"logsnr_max": 7.0, "logsnr_min": -2.0}
"""Of processes that take them as numbers; of the others they are bounds."""


def test_a_process_has_the_alpha_and_sigma_of_its_name():
    assert list(PROCESSES) == list(c.PROCESSES)
    for name, formula in PROCESSES.items():
        for numbers in settings(formula, ODD_PROCESS | ODD_BOUNDS):
            made = construct("process", c.PROCESSES, c.ProcessConfig(name=name, **numbers))
            alpha, sigma = formula(T, **numbers)
            np.testing.assert_allclose(made.alpha(jnp.asarray(T, jnp.float32)), alpha, rtol=2e-5, err_msg=name)
            np.testing.assert_allclose(made.sigma(jnp.asarray(T, jnp.float32)), sigma, rtol=2e-5, err_msg=name)
            if numbers:
                assert_distinct({"default": formula(T), "changed": (alpha, sigma)})
    assert_distinct({name: formula(np.array([0.01, 0.3, 0.9995])) for name, formula in PROCESSES.items()})
    assert_other_numbers_are_refused("process", c.ProcessConfig, c.PROCESSES, PROCESSES, ODD_PROCESS)


def test_a_chain_by_name_is_that_of_its_betas_whatever_is_predicted():
    toy = c.PRESETS["toy2d"]
    build = lambda **numbers: c.build(
        dataclasses.replace(
            toy, process=c.ProcessConfig(**numbers), parameterisation=c.ParameterisationConfig("eps"), network=SMALL
        ),
        None,
    )
    for name, betas in (
        ("linear_chain", processes.linear_betas(40)),
        ("scaled_linear_chain", processes.scaled_linear_betas(40)),
    ):
        for zero in (False, True):
            made = build(name=name, steps=40, zero_terminal_snr=zero).process
            wanted = processes.DiscreteChain(processes.zero_terminal_snr(betas) if zero else betas)
            assert eqx.tree_equal(made, wanted)
    for numbers, message in (
        ({"name": "cosine_chain", "zero_terminal_snr": True}, r"process\.zero_terminal_snr: cosine_chain has no betas"),
        ({"name": "cosine", "zero_terminal_snr": True}, r"process\.zero_terminal_snr: cosine has no betas to change"),
        (
            {"name": "linear_chain", "logsnr_min": -5.0},
            r"process\.logsnr_min: linear_chain begins and ends as its betas",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build(**numbers)


@pytest.mark.slow
def test_a_process_is_bounded_where_eps_or_score_is_predicted_unless_a_bound_is_given():
    """(prediction, process, bounds that are given, logsnr where it begins and ends)."""
    ends_of_vp, given = -10.05 - np.log(-np.expm1(-10.05)), {"logsnr_min": -17.0}
    cases = [
        ("eps", "cosine", {}, (10, -10)),
        ("score", "rectified", {}, (10, -10)),
        ("eps", "variance_preserving", {}, (10, -10)),
        ("eps", "variance_exploding", {}, (2 * np.log(100), -2 * np.log(50))),  # reaches neither bound
        ("eps", "edm", {}, (10, -2 * np.log(80))),
        ("eps", "cosine", given, (10, -17)),
        ("eps", "cosine", {"logsnr_max": 15.0}, (15, -10)),
        ("v", "cosine", given, (20, -17)),
        ("x0", "cosine", {"logsnr_max": 3.0, "logsnr_min": -4.0}, (3, -4)),
        *((name, "cosine", {}, (20, -20)) for name in ("x0", "v", "velocity", "edm")),
        ("v", "variance_preserving", {}, (20, ends_of_vp)),
    ]
    for prediction, name, numbers, wanted in cases:
        process, parts = c.ProcessConfig(name, **numbers), c.ParameterisationConfig(prediction)
        config = dataclasses.replace(c.PRESETS["toy2d"], process=process, parameterisation=parts)
        built = c.build(config, None)
        ends = [float(built.process.logsnr(t)) for t in built.process.interval()]
        np.testing.assert_allclose(ends, wanted, rtol=1e-3, err_msg=f"{prediction} {name} {numbers}")
        grid = [float(built.process.logsnr(t)) for t in (built.ts[-1], built.ts[0])]
        np.testing.assert_allclose(grid, ends, rtol=1e-5)
    for numbers, message in (
        ({"logsnr_min": -11.0}, r"process\.logsnr_min: the process ends at -8\.76\d*, got -11"),
        ({"logsnr_min": 5.0, "logsnr_max": 2.0}, r"process\.logsnr_min: must be less than logsnr_max = 2"),
    ):
        with pytest.raises(ValueError, match=message):
            c.build(dataclasses.replace(c.PRESETS["toy2d"], process=c.ProcessConfig("edm", **numbers)), None)


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
    "edm": _edm,
}


def test_a_prediction_has_the_coefficients_of_its_name():
    assert list(PREDICTIONS) == list(c.PARAMETERISATIONS)
    assert numbers_of(c.ParameterisationConfig) == {"data_std", "clock"}
    process, t = dj.VariancePreserving(0.1, 20.0), jnp.asarray(T, jnp.float32)
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
            clocks = {"logsnr": -np.log(alpha / sigma) / 4, "angle": np.arctan2(sigma, std * alpha)}
            np.testing.assert_allclose(made.noise_level(process, t), clocks["logsnr"], rtol=1e-4)
            for clock, level in clocks.items():
                config = c.ParameterisationConfig(name=name, clock=clock, **numbers)
                made = construct("parameterisation", c.PARAMETERISATIONS, config)
                np.testing.assert_allclose(made.noise_level(process, t), level, rtol=1e-4)
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
            found = made(process, dj.VPrediction(), t)
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
    process = dj.VariancePreserving(0.1, 20.0)
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


def _of_ratio(noise, signal, data_std):
    """t with t/(1 - t) = data_std noise/signal."""
    return data_std * noise / (signal + data_std * noise)


GRIDS = {
    "uniform": lambda n: np.linspace(_time(10.0), _time(-10.0), n + 1),
    "quadratic": lambda n: np.linspace(np.sqrt(_time(10.0)), np.sqrt(_time(-10.0)), n + 1) ** 2,
    "edm": lambda n, rho=7.0: _time(_steps(lambda v: np.exp(v / rho), lambda w: rho * np.log(w), n)),
    "logsnr": lambda n: _time(np.linspace(10.0, -10.0, n + 1)),
    "snr": lambda n, data_std=0.5, width=1.2: _time(
        _steps(lambda v: np.arcsinh((v - np.log(data_std)) / width), lambda w: np.log(data_std) + width * np.sinh(w), n)
    ),
    # Equal steps between the times that sigma/alpha times the shift takes to the ends, then sigma/alpha times it.
    "shifted": lambda n, shift=3.0: _time(
        np.log(shift) + _steps(lambda v: _time(v - np.log(shift)), lambda t: np.log(t / (1 - t)), n)
    ),
    # t/(1 - t) = data_std tan(phi) for phi from pi/2 to 0, and data_std tau/(1 - tau) for tau from 1 to 0.
    "angle": lambda n, data_std=1.0: _of_ratio(
        *(f(np.linspace(np.pi / 2, 0.0, n + 1)) for f in (np.sin, np.cos)), data_std
    ),
    "line": lambda n, data_std=1.0: _of_ratio(np.linspace(1.0, 0.0, n + 1), np.linspace(0.0, 1.0, n + 1), data_std),
}
ODD_GRID = {"rho": 4.0, "data_std": 0.8, "width": 2.0, "shift": 1.5}


def test_a_grid_has_the_times_of_its_name():
    assert list(GRIDS) == list(c.GRIDS)
    process = dj.Rectified()
    found = {}
    for name, formula in GRIDS.items():
        for numbers in settings(formula, ODD_GRID):
            ts = c.build_grid(c.SamplerConfig(grid=name, steps=6, **numbers), process)
            np.testing.assert_allclose(ts, formula(6, **numbers), rtol=1e-3, atol=1e-9, err_msg=name)
            found[name, *numbers] = np.asarray(ts)
        for number in set(ODD_GRID) - set(inspect.signature(formula).parameters):
            with pytest.raises(ValueError, match=rf"sampler\.{number}: {name} has no such number, got"):
                c.build_grid(c.SamplerConfig(grid=name, **{number: ODD_GRID[number]}), process)
    assert_distinct(found)
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
    return jnp.tanh(x / dj.EDM(**PROCESS).sigma(t) ** 2)


def flow_map(x, t, s):
    """The average of `_data` over a step of which it is the middle's: not DDIM's."""
    return denoiser(x, 0.5 * (t + s))


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
    "euler_ancestral": lambda: samplers.EulerAncestral(1.0),
    "unipc": lambda: dj.UniPC(3, samplers.bh2),
    "ddpm": lambda: dj.DDPM(0.0),
    "dpmpp3m_published": samplers.DPMpp3MPublished,
    "dpm2_ancestral": lambda: samplers.DPM2Ancestral(1.0),
    "dpmpp2s_ancestral": lambda: samplers.DPMpp2SAncestral(1.0),
    "sde_dpmpp2m": lambda: samplers.SDEDPMpp2M(1.0),
    "sde_dpmpp3m": lambda: samplers.SDEDPMpp3M(1.0),
    "dpmpp_sde": lambda: samplers.DPMppSDE(0.5, 1.0),
    "sa_solver": lambda: samplers.ExponentialAdams(dj.X0Prediction(), 3, True, eta=1.0),
    "seeds2": lambda: samplers.SEEDS2(0.5, 1.0),
    "seeds3": lambda: samplers.SEEDS3(1.0),
    "churn": lambda: samplers.Churn(10.0, 0.0, np.inf, 1.0),
    "predictor_corrector": lambda: samplers.PredictorCorrector(dj.DDIM(eta=1.0), 1, 0.16),
    "langevin_corrected": lambda: samplers.LangevinCorrected(dj.DDIM(), 4, 0.1),
    "cfgpp": samplers.CFGpp,
    "jump": dj.Jump,
}


PAIR = guidance.Guided(lambda x, t: (denoiser(x, t), 0.5 * denoiser(x, t)), jnp.asarray(0.7), guidance.Linear())


def draw(stepper, levels=LEVELS):
    """The states at the last of some noise levels, by two denoisers where the method needs a pair."""
    start, ts = jnp.asarray(START, jnp.float32), _clock(levels)
    by = PAIR if isinstance(stepper, samplers.CFGpp) else denoiser
    by = flow_map if isinstance(stepper, dj.Jump) else by
    return np.asarray(dj.sample(KEY, dj.EDM(**PROCESS), by, start, ts, stepper, final_denoise=False))


def test_a_sampler_takes_the_steps_of_its_name():
    assert sorted([*BY_FORMULA, *BY_CLASS]) == sorted(c.STEPPERS)
    drawn = {name: draw(c.build_stepper(c.SamplerConfig(name=name))) for name in c.STEPPERS}
    for name, step in BY_FORMULA.items():
        np.testing.assert_allclose(drawn[name], _walk(step), rtol=1e-4, atol=1e-5, err_msg=name)
    for name, make in BY_CLASS.items():
        np.testing.assert_array_equal(drawn[name], draw(make()), err_msg=name)
    np.testing.assert_allclose(drawn.pop("euler_ancestral"), draw(dj.DDIM(eta=1.0)), rtol=1e-6)  # DDIM's twin
    assert_distinct(drawn)
    fine = np.geomspace(3.0, 0.25, 41)  # s_churn/n is below its bound sqrt(2) - 1 from 25 steps on
    np.testing.assert_array_equal(
        draw(c.build_stepper(c.SamplerConfig(name="churn")), fine), draw(BY_CLASS["churn"](), fine)
    )


BY_NUMBERS = {
    "ddim": lambda eta=None: dj.DDIM(eta),
    "euler": samplers.Euler,
    "heun": dj.Heun,
    "dpm_solver2": lambda r1=None: samplers.DPMSolver(2, r1),
    "dpm_solver3": lambda r1=None: samplers.DPMSolver(3, r1),
    "dpmpp2s": lambda r1=0.5: samplers.DPMpp2S(r1),
    "dpmpp2m": dj.DPMpp2M,
    "dpmpp3m": samplers.DPMpp3M,
    "unipc": lambda p=3: dj.UniPC(p),
    "deis": lambda order=4: samplers.DEIS(order),
    "lms": lambda order=4: samplers.LMS(order),
    "ipndm": lambda points=4: samplers.IPNDM(points),
    "ddpm": lambda interpolation=0.0: dj.DDPM(interpolation),
    "dpmpp3m_published": samplers.DPMpp3MPublished,
    "dpm2_ancestral": lambda eta=1.0: samplers.DPM2Ancestral(eta),
    "dpmpp2s_ancestral": lambda eta=1.0: samplers.DPMpp2SAncestral(eta),
    "sde_dpmpp2m": lambda eta=1.0: samplers.SDEDPMpp2M(eta),
    "sde_dpmpp3m": lambda eta=1.0: samplers.SDEDPMpp3M(eta),
    "dpmpp_sde": lambda r=0.5, eta=1.0: samplers.DPMppSDE(r, eta),
    "sa_solver": lambda order=3, eta=1.0: samplers.ExponentialAdams(dj.X0Prediction(), order, True, eta=eta),
    "seeds2": lambda r=0.5, eta=1.0: samplers.SEEDS2(r, eta),
    "seeds3": lambda eta=1.0: samplers.SEEDS3(eta),
    "churn": lambda s_churn=10.0, s_min=0.0, s_max=np.inf, s_noise=1.0: samplers.Churn(s_churn, s_min, s_max, s_noise),
    "predictor_corrector": lambda corrections=1, snr=0.16: samplers.PredictorCorrector(
        dj.DDIM(eta=1.0), corrections, snr
    ),
    "langevin_corrected": lambda corrections=4, step_size=0.1: samplers.LangevinCorrected(
        dj.DDIM(), corrections, step_size
    ),
    "euler_ancestral": lambda eta=1.0: samplers.EulerAncestral(eta),
    "cfgpp": samplers.CFGpp,
    "jump": lambda gamma=None: dj.Jump(gamma),
}
ODD_SAMPLER = {
    "gamma": 0.35,
    "eta": 0.4,
    "r1": 0.3,
    "p": 2,
    "order": 2,
    "points": 3,
    "interpolation": 0.6,
    "r": 0.45,
    "s_churn": 3.0,
    "s_min": 0.2,
    "s_max": 2.0,
    "s_noise": 1.01,
    "corrections": 2,
    "snr": 0.25,
    "step_size": 0.3,
}


def test_each_number_of_a_sampler_is_that_of_its_class():
    assert set(BY_NUMBERS) == set(c.STEPPERS)
    for name, by_hand in BY_NUMBERS.items():
        for numbers in settings(by_hand, ODD_SAMPLER):
            made = c.build_stepper(c.SamplerConfig(name=name, **numbers))
            assert eqx.tree_equal(made, by_hand(**numbers)), (name, numbers)
            assert not numbers or not eqx.tree_equal(made, by_hand()), (name, numbers)
    for name in ("ddim", "seeds2"):  # 0 is a number, not a default
        assert float(c.build_stepper(c.SamplerConfig(name=name, eta=0.0)).eta or 0.0) == 0.0
    shared = {"steps", "grid", "clip", "threshold"}
    assert set(ODD_SAMPLER) == numbers_of(c.SamplerConfig) - shared - set(ODD_GRID) - {"quantile", "largest"}
    for row in c.STEPPERS.values():  # they would be passed on to it
        assert not shared & set(inspect.signature(row).parameters)
        assert not shared & set(getattr(row, "keywords", ()))
    for name, by_hand in BY_NUMBERS.items():
        for number in set(ODD_SAMPLER) - set(inspect.signature(by_hand).parameters):
            with pytest.raises(ValueError, match=rf"sampler\.{number}: {name} has no such number, got"):
                c.build_stepper(c.SamplerConfig(name=name, **{number: ODD_SAMPLER[number]}))


def test_a_preset_settles_what_is_given_by_position_and_lets_the_rest_be_changed():
    for name, number in (("dpm_solver3", "order"), ("predictor_corrector", "predictor")):
        assert number not in numbers_of_row(c.STEPPERS[name])
    assert numbers_of_row(c.STEPPERS["sa_solver"]) == {"order": (int, 3), "eta": (float, 1.0)}
    assert numbers_of_row(c.STEPPERS["churn"])["s_churn"] == (float, 10.0)


# --- guidance and thresholds: (x0_hat for the class, x0_hat for none) at xt = X, of a rectified flow ---

X, COND, UNCOND = np.random.default_rng(1).normal(size=(3, 3, 4))
TIME = 0.4


def _dot(a, b):
    return np.sum(a * b, axis=1, keepdims=True)


def _cfg(w, cond=None, uncond=None):
    cond, uncond = (COND, UNCOND) if cond is None else (cond, uncond)
    return cond + (w - 1) * (cond - uncond)


def _rescaled(w, phi=0.7):
    return _cfg(w) * (1 - phi + phi * COND.std(1, keepdims=True) / _cfg(w).std(1, keepdims=True))


def _projected(w, parallel=0.0, norm=np.inf):
    update = COND - UNCOND
    update = update * np.minimum(1, norm / np.sqrt(_dot(update, update)))
    along = _dot(update, COND) / _dot(COND, COND) * COND
    return COND + (w - 1) * (update - along + parallel * along)


def _cfg_zero(w):
    """Fan et al. 2025: velocities (xt - x0)/t, the unconditional one times s = <v_cond, v_uncond>/||v_uncond||^2."""
    cond, uncond = ((X - x0) / TIME for x0 in (COND, UNCOND))
    return X - TIME * _cfg(w, cond, _dot(cond, uncond) / _dot(uncond, uncond) * uncond)


GUIDANCES = {"cfg": _cfg, "rescaled": _rescaled, "projected": _projected, "cfg_zero": _cfg_zero}
ODD_GUIDANCE = {"phi": 0.4, "parallel": 0.3, "norm": 1.2}


def test_a_guidance_rule_is_the_formula_of_its_name():
    assert list(GUIDANCES) == list(c.GUIDANCES)
    assert set(ODD_GUIDANCE) == numbers_of(c.GuidanceConfig) - {"dropout", "scale", "interval", "logsnr_start"}
    arrays, found = [jnp.asarray(x, jnp.float32) for x in (COND, UNCOND)], {}
    for name, formula in GUIDANCES.items():
        for numbers in settings(formula, ODD_GUIDANCE):
            config = c.GuidanceConfig(name=name, **numbers)
            rule = construct("guidance", c.GUIDANCES, config, process=dj.Rectified())
            found[name, *numbers] = rule(*arrays, jnp.asarray(2.5), jnp.asarray(X, jnp.float32), jnp.asarray(TIME))
            np.testing.assert_allclose(found[name, *numbers], formula(2.5, **numbers), rtol=1e-4, err_msg=name)
        for number in set(ODD_GUIDANCE) - set(inspect.signature(formula).parameters):
            with pytest.raises(ValueError, match=rf"guidance\.{number}: {name} has no such number, got"):
                construct("guidance", c.GUIDANCES, c.GuidanceConfig(name=name, **{number: 0.5}), process=dj.Rectified())
    assert_distinct(found)


def _dynamic(x0, bound, quantile=0.995, largest=np.inf):
    s = np.maximum(bound, np.minimum(largest, np.quantile(np.abs(x0), quantile, axis=1, keepdims=True)))
    return np.clip(x0, -s, s) * bound / s


THRESHOLDS = {"static": lambda x0, bound: np.clip(x0, -bound, bound), "dynamic": _dynamic}
ODD_THRESHOLD = {"quantile": 0.6, "largest": 0.9}


def test_a_threshold_is_the_formula_of_its_name():
    assert list(THRESHOLDS) == list(c.THRESHOLDS)
    found, x0 = {}, jnp.asarray(COND, jnp.float32)
    for name, formula in THRESHOLDS.items():
        for numbers in settings(formula, ODD_THRESHOLD):
            config = c.SamplerConfig(threshold=name, **numbers)
            made = construct("sampler", c.THRESHOLDS, config, field="threshold")
            found[name, *numbers] = made(lambda xt, t: x0, bound=0.5)(x0, 0.3)
            np.testing.assert_allclose(found[name, *numbers], formula(COND, 0.5, **numbers), rtol=1e-4, err_msg=name)
    assert_distinct(found)
    for number in ODD_THRESHOLD:
        with pytest.raises(ValueError, match=rf"sampler\.{number}: static has no such number, got 0\.5"):
            construct("sampler", c.THRESHOLDS, c.SamplerConfig(**{number: 0.5}), field="threshold")


NOT_NAMED = {"AbstractStepper": "abstract", "AbstractMultistep": "abstract", "AbstractEmbeddedStepper": "abstract"}
"""Public steppers without a name, and why. RePaint, of `inverse`, is `diffjax sample --known --mask`."""


def test_every_public_stepper_and_rule_has_a_name():
    """Each is the class of a row, or there is a reason why not."""
    for package, base, table, reasons in (
        (samplers, samplers.AbstractStepper, c.STEPPERS, NOT_NAMED),
        # cfg_zero is OptimalScale on the velocity, by OnPrediction
        (guidance, guidance.AbstractRule, c.GUIDANCES, {"AbstractRule": "abstract", "OptimalScale": "in cfg_zero"}),
    ):
        public = {name for name, kind in vars(package).items() if isinstance(kind, type) and issubclass(kind, base)}
        named = {getattr(row, "func", row).__name__ for row in table.values()}
        assert public - named == set(reasons)


# --- what the help says of them ---


def docs(cls):
    """Field -> what the tables say of it."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        name: "\n".join(extra.documentation for extra in hint.__metadata__)
        for name, hint in hints.items()
        if hasattr(hint, "__metadata__")
    }


GROUPS = (
    c.ProcessConfig,
    c.ParameterisationConfig,
    c.WeightingConfig,
    c.TimesConfig,
    c.SamplerConfig,
    c.GuidanceConfig,
    c.OtherSampler,
    c.OtherGuidance,
    c.LossConfig,
    c.DistillConfig,
    c.FamilyConfig,
)


def test_what_the_help_says_of_names_and_numbers_comes_from_the_classes():
    assert docs(c.ProcessConfig)["sigma_min"].endswith(
        "(default: variance_exploding, variance_exploding_from_zero 0.01; edm 0.002)"
    )
    assert docs(c.ProcessConfig)["rho"] == ("edm: how much of the clock goes to small noise; positive. (default: 7)")
    assert "\nchurn: EDM's stochastic sampler: weak order 2" in docs(c.SamplerConfig)["name"]
    assert docs(c.NetworkConfig)["patch"] == "Used by dit, uvit."
    assert docs(c.NetworkConfig)["head_channels"] == "Used by unet, adm, edm2, efficient."
    assert "dropout" not in docs(c.NetworkConfig)  # used by all
    for cls in (*GROUPS, c.DataConfig, c.NetworkConfig):
        for field, text in docs(cls).items():
            for line in text.splitlines():  # no name or number without a word
                assert not line.rstrip(".").endswith((", ", ":")), (cls, field, line)
                assert line.startswith(("Used by", "(default: ")) or re.match(r"[\w, ]+: \S", line), (cls, field, line)


# --- a row that is added ---


@dataclasses.dataclass(frozen=True)
class Half:
    """Half of something.

    Attributes:
      part: how much of it; positive. The rest is
        left.
    """

    whole: str
    part: float | None = 0.5
    pieces: int = 2
    sure: bool = True


def test_a_row_of_a_table_is_all_that_a_name_needs():
    table = Names({"half": preset("By half.", Half, "all", part=0.25), "whole": Half, "itself": len})

    @options(name=table)
    @dataclasses.dataclass(frozen=True)
    class Chosen:
        """What is chosen."""

        name: str = "whole"
        sure: bool = True
        own: int = 0

    @optional
    @dataclasses.dataclass(frozen=True)
    class Other(Chosen):
        """Another choice."""

    assert get_type_hints(Chosen) == {
        "name": Literal["half", "whole", "itself"],
        "sure": bool,
        "own": int,
        "part": float | None,
        "pieces": int | None,
    }
    assert docs(Chosen) == {
        "name": "half: By half.\nwhole: Half of something.\nitself: Return the number of items in a container.",
        "sure": "Used by half, whole.",
        "part": "half, whole: how much of it; positive.\n(default: half 0.25; whole 0.5)",
        "pieces": "half, whole:  (default: 2)",
    }
    assert construct("chosen", table, Chosen("half", pieces=3, sure=False)) == Half("all", 0.25, 3, False)
    assert construct("chosen", table, Chosen(part=0.1), "it") == Half("it", 0.1)
    assert construct("chosen", table, Chosen("itself")) is len
    with pytest.raises(TypeError, match="positional"):
        Chosen("half", True, 0, 0.25)  # a number is given by its name, for rows come and go
    with pytest.raises(
        ValueError, match=r"chosen\.part: itself has no such number, got 0\.5; it belongs to half, whole$"
    ):
        construct("chosen", table, Chosen("itself", part=0.5))
    assert pickle.loads(pickle.dumps(c.SamplerConfig("ddim", eta=0.5))) == c.SamplerConfig("ddim", eta=0.5)
    assert Other() == Other(name=None, sure=None, own=None, part=None, pieces=None)
    assert changed(Chosen("half", pieces=3), Other(sure=False)) == Chosen("half", pieces=3, sure=False)
    assert changed(Chosen("half", pieces=3, part=0.1), Other("whole", part=0.2)) == Chosen("whole", part=0.2)
    assert docs(Other)["name"] == docs(Chosen)["name"] + "\n(default: the run's own)"
    with pytest.raises(TypeError, match=r"Chosen\.(part|pieces): a number of two tables, in one by half, whole"):

        @options(name=table, other=table)
        @dataclasses.dataclass(frozen=True)
        class Chosen:
            name: str = "whole"
            other: str = "whole"


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("data", c.DataConfig),
        ("process", c.ProcessConfig),
        ("parameterisation", c.ParameterisationConfig),
        ("weighting", c.WeightingConfig),
        ("times", c.TimesConfig),
        ("loss", c.LossConfig),
        ("network", c.NetworkConfig),
        ("guidance", c.GuidanceConfig),
        ("sampler", c.SamplerConfig),
        ("family", c.FamilyConfig),
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_every_row(kind, cls):
    """Infinity passes where it is the default, which means no limit."""
    first, seen = [dj.Cosine()] if kind == "times" else [], 0
    for field, table in cls.tables.items():
        for name, row in table.items():
            for number, (_, default) in c.numbers_of(row).items():
                if number in cls.declared or not hasattr(cls(), number) or table is c.THRESHOLDS:
                    continue  # a threshold is refused with the range of the data, by `samples_bound`
                for value in (np.nan,) if default == np.inf else (np.nan, np.inf, -np.inf):
                    seen += 1
                    with pytest.raises(ValueError, match=number):
                        construct(kind, table, cls(**{field: name, number: value}), *first, field=field)
    assert seen >= 3
