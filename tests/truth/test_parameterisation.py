"""What a network regresses: every prediction type, written out by hand, under every process."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PARAMETERISATIONS, ALL_PROCESSES, each_process, gaussian

import diffjax as dj
from diffjax.parameterisation import eps_error_scale

processes = pytest.mark.parametrize("name", each_process(("vp", "rectified")))
N = 9


@eqx.filter_jit
def _everything(process, members, x0, eps, other, t):
    xt = dj.perturb(process, x0, eps, t)
    alpha_dot, sigma_dot = dj.rates(process, t)
    schedule = {
        "xt": xt,
        "alpha": process.alpha(t),
        "sigma": process.sigma(t),
        "alpha_dot": alpha_dot,
        "sigma_dot": sigma_dot,
        "logsnr": dj.logsnr(process, t),
        "drift": process.drift(xt, t),
        "g": process.diffusion(xt, t),
    }
    answers = {}
    for which, member in members.items():
        y = dj.target(member, process, x0, eps, t)
        answers[which] = {
            "y": y,
            "recovered": dj.recover(member, process, y, xt, t),
            "otherwise": dj.recover(member, process, y + other, xt, t),
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
        "karras": (x0 - alpha * data_std**2 / q**2 * xt) * q / (sigma * data_std),  # (x0 - c_skip xt)/c_out
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
        data_std = 0.5 if which == "karras" else 1.0
        variance = (at["alpha"] * data_std) ** 2 + at["sigma"] ** 2
        np.testing.assert_allclose(answer["input_scale"] ** -2, variance[:, 0], rtol=1e-12)
        np.testing.assert_allclose(answer["noise_level"], -at["logsnr"][:, 0] / 8, rtol=1e-12)
        low, high = answer["ends"]
        assert -30 / 8 <= low < answer["noise_level"].min()
        assert answer["noise_level"].max() < high <= 30 / 8
    if name == "rectified":
        np.testing.assert_array_equal([low, high], [-30 / 8, 30 / 8])


def test_karras_is_edm_where_alpha_is_one():
    """Karras et al. 2022, table 1: c_skip, c_out, c_in, c_noise, through a network that answers with its own input."""
    process, deviation = dj.Karras(), 0.7
    member = dj.KarrasPrediction(deviation)
    seen = []

    def apply(params, x, c_noise, cond=None, *, key=None):
        seen.append((np.asarray(x), np.asarray(c_noise)))
        return params * x

    network = dj.Network(lambda *_: None, apply)
    denoiser = dj.make_denoiser(jnp.asarray(1.3), network=network, process=process, parameterisation=member)
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
        t = dj.time_from_logsnr(process, -8 * c_noise)
        xt = x / member.input_scale(process, t)[:, None]
        x0_hat = data.denoise(process, xt, t)
        eps_hat = (xt - process.alpha(t)[:, None] * x0_hat) / process.sigma(t)[:, None]
        return dj.target(member, process, x0_hat, eps_hat, t) + cond

    network = dj.Network(lambda *_: None, apply)
    xt = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2)))

    @jax.jit
    def answers(t):
        denoiser = dj.make_denoiser(None, jnp.zeros((3, 2)), network=network, process=process, parameterisation=member)
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
        denoiser = dj.make_denoiser(numbers[2:], cond, network=network, process=process, parameterisation=member)
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
