"""What a network regresses: every prediction type, written out by hand, under every process."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PARAMETERISATIONS, ALL_PROCESSES, each_process, gaussian

import diffjax as dj
from diffjax.interop import OnSigma, OnSteps
from diffjax.parameterisation import eps_error_scale

processes = pytest.mark.parametrize("name", each_process(("vp", "rectified")))
N = 9


@eqx.filter_jit
def _everything(process, members, x0, eps, other, t):
    xt = dj.perturb(process, x0, eps, t)
    alpha_dot, sigma_dot = dj.process.schedule_derivatives(process, t)
    schedule = {
        "xt": xt,
        "alpha": process.alpha(t),
        "sigma": process.sigma(t),
        "alpha_dot": alpha_dot,
        "sigma_dot": sigma_dot,
        "logsnr": process.logsnr(t),
        "drift": process.drift(xt, t),
        "g": process.diffusion(xt, t),
    }
    answers = {}
    for which, member in members.items():
        y = dj.parameterisation.target(member, process, x0, eps, t)
        answers[which] = {
            "y": y,
            "recovered": dj.parameterisation.recover(member, process, y, xt, t),
            "otherwise": dj.parameterisation.recover(member, process, y + other, xt, t),
            "scale": eps_error_scale(member, process, t),
            "input_scale": member.input_scale(process, t),
            "noise_level": member.noise_level(process, t),
            "ends": [member.noise_level(process, jnp.asarray(end)) for end in (0.0, 1.0)],
        }
    return schedule, answers


def everything(name):
    """NumPy: data, noise, a wrong answer's error, the schedule as columns, and each member's answers."""
    process = ALL_PROCESSES[name]()
    x0, eps, other = np.random.default_rng(0).normal(size=(3, N, 3))
    t = np.linspace(0.05, 0.95, N)
    members = {which: make() for which, make in ALL_PARAMETERISATIONS.items()}
    schedule, answers = jax.tree.map(np.asarray, _everything(process, members, *map(jnp.asarray, (x0, eps, other, t))))
    schedule = {what: value[:, None] if value.ndim == 1 else value for what, value in schedule.items()}
    return x0, eps, other, schedule, answers


@processes
def test_every_prediction_type_is_its_definition(name):
    x0, eps, _, at, answers = everything(name)
    alpha, sigma, xt = at["alpha"], at["sigma"], at["xt"]
    score = (alpha * x0 - xt) / sigma**2  # of N(alpha x0, sigma^2) at xt
    data_std = 0.5
    q = np.sqrt(alpha**2 * data_std**2 + sigma**2)
    by_hand = {
        "eps": eps,
        "x0": x0,
        "score": score,
        "v": alpha * eps - sigma * x0,
        "velocity": at["drift"] - at["g"] ** 2 * score / 2,
        "edm": (x0 - alpha * data_std**2 / q**2 * xt) * q / (sigma * data_std),  # (x0 - c_skip xt)/c_out
    }
    assert set(answers) <= set(by_hand)
    for which, answer in answers.items():
        np.testing.assert_allclose(answer["y"], by_hand[which], rtol=1e-8, atol=1e-8, err_msg=which)
    np.testing.assert_allclose(answers["velocity"]["y"], at["alpha_dot"] * x0 + at["sigma_dot"] * eps, rtol=1e-12)
    if name == "rectified":
        np.testing.assert_allclose(answers["velocity"]["y"], eps - x0, rtol=1e-12)


@processes
def test_data_and_noise_come_back(name):
    x0, eps, _, _, answers = everything(name)
    for which, answer in answers.items():
        for mine, true in zip(answer["recovered"], (x0, eps), strict=True):
            np.testing.assert_allclose(mine, true, rtol=1e-7, atol=1e-7, err_msg=which)


@processes
def test_any_answer_recovers_a_pair_that_makes_xt_and_weighs_its_error(name):
    """alpha x0 + sigma eps = xt for a wrong answer too, and ||eps - eps_hat||^2 = (alpha/d)^2 ||y - y_hat||^2."""
    _, eps, other, at, answers = everything(name)
    for which, answer in answers.items():
        x0_hat, eps_hat = answer["otherwise"]
        np.testing.assert_allclose(at["alpha"] * x0_hat + at["sigma"] * eps_hat, at["xt"], rtol=1e-7, atol=1e-7)
        error = np.sum((eps - eps_hat) ** 2, axis=1)
        np.testing.assert_allclose(error, answer["scale"] * np.sum(other**2, axis=1), rtol=1e-6, err_msg=which)


@processes
def test_what_the_network_is_told(name):
    """Unit variance in; -logsnr/8, finite at the ends, where it is clipped at logsnr 30."""
    *_, at, answers = everything(name)
    for which, answer in answers.items():
        data_std = 0.5 if which == "edm" else 1.0
        variance = (at["alpha"] * data_std) ** 2 + at["sigma"] ** 2
        np.testing.assert_allclose(answer["input_scale"] ** -2, variance[:, 0], rtol=1e-12)
        np.testing.assert_allclose(answer["noise_level"], -at["logsnr"][:, 0] / 8, rtol=1e-12)
        low, high = answer["ends"]
        assert -30 / 8 <= low < answer["noise_level"].min()
        assert answer["noise_level"].max() < high <= 30 / 8
    if name == "rectified":
        np.testing.assert_array_equal([low, high], [-30 / 8, 30 / 8])


@processes
def test_the_clock_is_the_angle_where_asked_for(name):
    """atan2(sigma, data_std alpha) on all of [0, 1], and its derivative, of -logsnr/8 too, by central differences."""
    process, t, h = ALL_PROCESSES[name](), jnp.linspace(0.05, 0.95, N), 1e-5
    ends = jnp.array([0.0, 1.0])
    for clock in ("logsnr", "angle"):
        member = dj.VPrediction(0.7, clock=clock)
        level = eqx.filter_jit(lambda process, t, member=member: member.noise_level(process, t))
        slope = jax.jvp(lambda t, level=level: level(process, t), (t,), (jnp.ones_like(t),))[1]
        differences = (level(process, t + h) - level(process, t - h)) / (2 * h)
        np.testing.assert_allclose(slope, differences, rtol=1e-6, err_msg=clock)
    for times in (t, ends):
        angle = np.arctan2(process.sigma(times), 0.7 * process.alpha(times))
        np.testing.assert_allclose(level(process, times), angle, rtol=1e-12)


def test_a_network_is_told_the_clock_of_its_parameterisation():
    process, t, seen = dj.Rectified(), jnp.array([0.0, 0.4, 1.0]), []

    def apply(params, x, c_noise, cond=None, *, key=None):
        seen.append(c_noise)
        return x

    for clock in ({}, {"clock": "logsnr"}, {"clock": "angle"}):
        member = dj.VPrediction(0.5, **clock)
        network = dj.Network(lambda *_: None, apply)
        dj.make_denoiser(dj.Diffusion(network, process, member), None)(jnp.ones((3, 2)), t)
    by_logsnr = [-30 / 8, -np.log(0.6 / 0.4) / 4, 30 / 8]
    for told, expected in zip(seen, [by_logsnr, by_logsnr, np.arctan2(t, 0.5 * (1 - t))], strict=True):
        np.testing.assert_allclose(told, expected, rtol=1e-12, atol=1e-14)
    for make in ALL_PARAMETERISATIONS.values():
        with pytest.raises(ValueError, match="clock: one of logsnr, angle is needed, got 'sigma'"):
            make(clock="sigma")
    for make in (
        lambda **fields: OnSteps(inner=member, steps=9, **fields),
        lambda **fields: OnSigma(inner=member, **fields),
    ):
        assert make().inner is member
        with pytest.raises(ValueError, match=r"clock: OnS.* has a fixed clock, got 'angle'; leave it out"):
            make(clock="angle")


def test_edm_prediction_is_that_of_the_paper_where_alpha_is_one():
    """Karras et al. 2022, table 1: c_skip, c_out, c_in, c_noise, through a network that answers with its own input."""
    process, deviation = dj.EDM(), 0.7
    member = dj.parameterisation.EDMPrediction(deviation)
    seen = []

    def apply(params, x, c_noise, cond=None, *, key=None):
        seen.append((np.asarray(x), np.asarray(c_noise)))
        return params * x

    network = dj.Network(lambda *_: None, apply)
    denoiser = dj.make_denoiser(dj.Diffusion(network, process, member), jnp.asarray(1.3))
    xt, t = np.random.default_rng(1).normal(size=(4, 2)), np.array([0.1, 0.4, 0.6, 0.9])
    sigma = np.asarray(process.sigma(jnp.asarray(t)))[:, None]
    total = sigma**2 + deviation**2
    network_answer = 1.3 * xt / np.sqrt(total)
    expected = deviation**2 / total * xt + sigma * deviation / np.sqrt(total) * network_answer
    np.testing.assert_allclose(denoiser(jnp.asarray(xt), jnp.asarray(t)), expected, rtol=1e-10)
    np.testing.assert_allclose(seen[0][0], xt / np.sqrt(total), rtol=1e-12)
    np.testing.assert_allclose(seen[0][1], np.log(sigma[:, 0]) / 4, rtol=1e-10)


@pytest.mark.parametrize("which", ALL_PARAMETERISATIONS)
def test_a_network_that_knows_becomes_the_exact_denoiser(which):
    """A network that answers with E[y | xt], whatever y is, is E[x0 | xt]: at one time for all or one a sample."""
    process, data, member = dj.VariancePreserving(), gaussian(), ALL_PARAMETERISATIONS[which]()

    def apply(params, x, c_noise, cond=None, *, key=None):
        t = process.time_from_logsnr(-8 * c_noise)
        xt = x / member.input_scale(process, t)[:, None]
        x0_hat = data.denoise(process, xt, t)
        eps_hat = (xt - process.alpha(t)[:, None] * x0_hat) / process.sigma(t)[:, None]
        return dj.parameterisation.target(member, process, x0_hat, eps_hat, t) + cond

    network = dj.Network(lambda *_: None, apply)
    xt = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2)))

    @jax.jit
    def answers(t):
        denoiser = dj.make_denoiser(dj.Diffusion(network, process, member), None, jnp.zeros((3, 2)))
        single = denoiser(xt, t[0])
        score = dj.score(process, denoiser, xt, t)
        return denoiser(xt, t), single, score, data.denoise(process, xt, t), data.score(process, xt, t)

    each, single, score, exact, exact_score = answers(jnp.array([0.2, 0.5, 0.8]))
    np.testing.assert_allclose(each, exact, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(single[0], exact[0], rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(score, exact_score, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_gradient_of_a_sampled_mean():
    """By the network's parameters, the process's number and the condition: as central differences have it."""
    apply = lambda params, x, c_noise, cond=None, *, key=None: (
        jnp.tanh(params[0] * x + params[1] * c_noise[:, None]) + cond
    )
    network, member = dj.Network(lambda *_: None, apply), dj.VPrediction()
    xt = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2)))

    @jax.jit
    def mean(numbers):
        process = dj.VariancePreserving(0.1, numbers[0])
        cond = jnp.broadcast_to(numbers[1], (4, 1))
        denoiser = dj.make_denoiser(dj.Diffusion(network, process, member), numbers[2:], cond)
        return jnp.mean(
            dj.sample(jax.random.key(0), process, denoiser, xt, jnp.linspace(1, 1e-3, 9), dj.DPMpp2M()) ** 2
        )

    at, h = jnp.array([18.0, 0.2, 0.7, -0.3]), 1e-5
    slope = jax.jit(jax.grad(mean))(at)
    differences = [(mean(at.at[i].add(h)) - mean(at.at[i].add(-h))) / (2 * h) for i in range(4)]
    np.testing.assert_allclose(slope, differences, rtol=1e-6, atol=1e-9)
    assert np.all(np.abs(slope) > 1e-6)


def test_bad_data_std_is_refused():
    for make in ALL_PARAMETERISATIONS.values():
        for value in (0.0, -2.0, float("nan")):
            with pytest.raises(ValueError, match=rf"data_std: must be positive, got {value}"):
                make(data_std=value)


def test_no_prediction_multiplies_its_errors_without_bound():
    """An error of a hundredth of y is at most 1.5 in x0, on what `bounded` leaves of any process; of eps it was 220.

    sigma/|d| of y's error comes back in x0, beside an rms y of sqrt(a^2 + b^2) for data of unit variance.
    """

    @eqx.filter_jit
    def factor(process, member):
        t = jnp.linspace(*process.interval(), 2001)
        (a, b), alpha, sigma = member.coefficients(process, t), process.alpha(t), process.sigma(t)
        return jnp.max(jnp.sqrt(a**2 + b**2) * sigma / jnp.abs(alpha * b - sigma * a))

    found, whole = {}, {}
    for name in ("cosine", "rectified", "edm", "ve"):
        process = ALL_PROCESSES[name]()
        for which, make in ALL_PARAMETERISATIONS.items():
            part = dj.parameterisation.bounded(process, make())
            assert (part is process) == (which not in ("eps", "score") or name == "ve")
            found[name, which], whole[name, which] = (float(factor(of, make())) for of in (part, process))
    assert max(found.values()) < 150, found
    assert {at for at, value in whole.items() if value > 150} == {
        (name, which) for name in ("cosine", "rectified") for which in ("eps", "score")
    }, whole


def test_samples_of_an_exact_denoiser_are_right_on_a_bounded_process():
    """Of Gaussian data N(m, S) the whole flow makes m + sqrt(S) z of noise z. An end at logsnr -10, where alpha is
    0.0067, moves that by alpha sqrt(S) m, a thousandth or two; one at -2 moves it by tenths."""
    data, z = gaussian(), jax.random.normal(jax.random.key(0), (500, 2))
    wanted = data.mean + z @ (data.basis * jnp.sqrt(data.variances)) @ data.basis.T
    far = {}
    for last in (-10.0, -2.0):
        process = dj.parameterisation.bounded(dj.Cosine(), dj.EpsPrediction(), logsnr_min=last)
        ts, denoiser = dj.logsnr_grid(process, 60), dj.exact_denoiser(data, process)
        x0 = dj.sample(jax.random.key(1), process, denoiser, process.sigma(1.0) * z, ts, dj.DPMpp2M())
        far[last] = np.abs(x0 - wanted).max()
    assert far[-10.0] < 0.006, far
    assert far[-2.0] > 0.1, far


def test_bounds_of_a_process_may_be_traced():
    """The same process as outside of jit, whatever is traced."""
    look = lambda process: (process.alpha(0.3), process.sigma(0.3), process.logsnr(1.0))
    by = lambda shift: look(dj.parameterisation.bounded(dj.Cosine(shift), dj.EpsPrediction()))
    for mine, other in zip(jax.jit(by)(0.7), look(dj.process.Clipped(dj.Cosine(0.7), 10.0, -10.0)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)
    own = jax.jit(
        lambda low: look(dj.parameterisation.bounded(dj.Cosine(), dj.VPrediction(), logsnr_min=low, logsnr_max=5.0))
    )
    for mine, other in zip(own(-3.0), look(dj.process.Clipped(dj.Cosine(), 5.0, -3.0)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)
