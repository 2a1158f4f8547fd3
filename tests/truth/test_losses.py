"""The denoising loss against the noise-prediction loss worked out by hand, its minimum, and its weights."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PARAMETERISATIONS, ALL_PROCESSES, ALL_TIMES, ALL_WEIGHTINGS

import diffjax as dj
from diffjax import losses

B, D = 6, 3


def make_network(seen):
    """y_hat = gain x + slope c_noise + cond; what the network is given is put in `seen`."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        seen.append((x, c_noise, key))
        return params["gain"] * x + params["slope"] * c_noise[:, None] + cond

    return dj.Network(lambda *_: None, apply)


@eqx.filter_jit
def _all_losses(process, key, x0, cond):
    """Per prediction type, with native weights: the loss, its parts, and the xt that the network was given.

    Then, per weighting too: the loss of each sample for the same times and noise, and the weight.
    """
    params = {"gain": jnp.asarray(0.3), "slope": jnp.asarray(-0.2)}
    times, drawn, weighed = dj.UniformTimes(process), {}, {}
    for which, make in ALL_PARAMETERISATIONS.items():
        seen, member = [], make()
        diffusion = dj.Diffusion(make_network(seen), process, member)
        loss, aux = dj.denoising_loss(diffusion, params, key, x0, cond, times=times, weighting=losses.native)
        (x, _, dropout_key), *more = seen
        assert not more
        assert dropout_key is not None
        t = aux["t"]
        xt = x / member.input_scale(process, t)[:, None]
        drawn[which] = loss, aux["per_sample"], xt, params["gain"] * x + params["slope"] * seen[0][1][:, None] + cond
        eps = (xt - process.alpha(t)[:, None] * x0) / process.sigma(t)[:, None]
        evaluate = functools.partial(losses.per_sample_loss, diffusion, params, x0, eps, t, cond)
        if which == "eps":
            said = {weight: make()(process, member, t) for weight, make in ALL_WEIGHTINGS.items()}
        rows = jnp.stack(list((said | {"native": losses.native(process, member, t)}).values()))
        every = jax.vmap(lambda row, evaluate=evaluate: evaluate(weighting=lambda *_: row))(rows)
        weighed |= {(which, weight): (every[i], rows[i]) for i, weight in enumerate(said)}
        assert seen.pop()[2] is None
    rates = dj.process.schedule_derivatives(process, t)
    schedule = {"alpha": process.alpha(t), "sigma": process.sigma(t), "alpha_dot": rates[0], "sigma_dot": rates[1]}
    return schedule, process.logsnr(t), dj.process.logsnr_rate(process, t), process.diffusion(x0, t), drawn, weighed


@pytest.mark.parametrize("name", ["vp", pytest.param("edm", marks=pytest.mark.slow), "rectified"])
def test_loss_is_the_weighted_noise_loss_by_hand(name):
    process = ALL_PROCESSES[name]()
    x0, cond = np.random.default_rng(0).normal(size=(2, B, D))
    answer = _all_losses(process, jax.random.key(0), jnp.asarray(x0), jnp.asarray(cond))
    schedule, logsnr, logsnr_rate, g, drawn, weighed = jax.tree.map(np.asarray, answer)
    alpha, sigma, alpha_dot, sigma_dot = (
        schedule[what][:, None] for what in ("alpha", "sigma", "alpha_dot", "sigma_dot")
    )
    total, q2 = alpha**2 + sigma**2, alpha**2 / 4 + sigma**2
    eps_from = {
        "eps": lambda xt, y: y,
        "x0": lambda xt, y: (xt - alpha * y) / sigma,
        "score": lambda xt, y: -sigma * y,
        "v": lambda xt, y: (sigma * xt + alpha * y) / total,
        "velocity": lambda xt, y: (alpha * y - alpha_dot * xt) / (alpha * sigma_dot - sigma * alpha_dot),
        "edm": lambda xt, y: (xt - alpha * (alpha / 4 / q2 * xt + sigma / 2 / np.sqrt(q2) * y)) / sigma,
    }
    noise = np.exp(-logsnr)
    native = {
        "eps": np.ones(B),
        "x0": noise,
        "score": 1 / sigma[:, 0] ** 2,
        "v": (total / alpha)[:, 0] ** 2,
        "velocity": (sigma[:, 0] * logsnr_rate / 2) ** 2,
        "edm": (noise + 0.25) / 0.25,
    }
    if name == "vp":  # the forms in the literature
        np.testing.assert_allclose(native["v"], 1 + noise, rtol=1e-10)
    if name == "rectified":
        np.testing.assert_allclose(native["velocity"], (1 + np.exp(-logsnr / 2)) ** 2, rtol=1e-10)
    weights = {
        "constant": np.ones(B),
        "edm": (noise + 0.25) / 0.25,
        "min-snr": np.minimum(1 / noise, 5) * noise,
        "likelihood": g**2 / sigma[:, 0] ** 2,
        "on-x0": noise,
        "on-score": 1 / sigma[:, 0] ** 2,
        "on-v": 1 + noise,
        "flow-matching": (1 + np.sqrt(noise)) ** 2,
        "soft-min-snr": noise / (noise + 1 / 4),  # sigma^2/(sigma^2 + 1/gamma) where alpha = 1
        "sigmoid": np.exp(-1) / (np.exp(-1) + 1 / noise),
        "p2": (1 + 1 / noise) ** -0.5,
        "sigmoid-over-logsnr": -logsnr_rate * np.exp(2) / (np.exp(2) + 1 / noise),
    }
    assert {*weights, "native"} == set(ALL_WEIGHTINGS)
    np.testing.assert_allclose(weights["likelihood"], -logsnr_rate, rtol=1e-10)
    for (which, weight), (per_sample, said) in weighed.items():
        loss, native_per_sample, xt, y_hat = drawn[which]
        eps = (xt - alpha * x0) / sigma
        expected = {**weights, "native": native[which]}[weight]
        np.testing.assert_allclose(said, expected, rtol=1e-8, err_msg=f"{which} {weight}")
        by_hand = expected * np.mean((eps - eps_from[which](xt, y_hat)) ** 2, axis=1)
        np.testing.assert_allclose(per_sample, by_hand, rtol=1e-6, err_msg=f"{which} {weight}")
        if weight == "native":
            np.testing.assert_allclose(native_per_sample, by_hand, rtol=1e-6, err_msg=which)
            np.testing.assert_allclose(loss, by_hand.mean(), rtol=1e-6)
            assert np.abs(eps).max() < 6
            assert np.std(eps) > 0.3
    every_xt = [entry[2] for entry in drawn.values()]
    assert all(np.allclose(xt, every_xt[0]) for xt in every_xt), "the noise must not depend on what is predicted"


# --- the minimum ---

VARIANCE, DRAWS = 0.3, 4000


def knowing_network(process):
    """E[eps | xt] for data N(0, 0.3 I), read off logsnr alone, then scaled by 1 + gain and shifted: exact at 0."""

    def apply(params, x, c_noise, cond=None, *, key=None):
        t = process.time_from_logsnr(-8 * c_noise)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        xt = x * jnp.sqrt(alpha**2 + sigma**2)
        return (1 + params[0]) * sigma / (alpha**2 * VARIANCE + sigma**2) * xt + params[1]

    return dj.Network(lambda *_: None, apply)


def test_minimum_is_at_the_exact_denoiser():
    """There the gradient vanishes, the loss is int w Var(eps | xt) dt, and any other parameter does worse."""
    process = dj.VariancePreserving()
    network, member, times = knowing_network(process), dj.EpsPrediction(), dj.StratifiedTimes(process)
    x0 = jnp.asarray(np.sqrt(VARIANCE) * np.random.default_rng(3).normal(size=(DRAWS, 2)))
    others = jnp.array([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])

    def per_sample(params, weighting):
        given = (dj.Diffusion(network, process, member), params, jax.random.key(1), x0)
        aux = dj.denoising_loss(*given, times=times, weighting=weighting)[1]
        return aux["per_sample"], aux

    def around_zero(weighting):
        slopes, aux = jax.jacfwd(per_sample, has_aux=True)(jnp.zeros(2), weighting)
        return aux["t"], aux["per_sample"], slopes, jax.vmap(lambda params: per_sample(params, weighting)[0])(others)

    @jax.jit
    def answers():
        return {weight: around_zero(ALL_WEIGHTINGS[weight]()) for weight in ("constant", "min-snr", "likelihood")}

    t = np.linspace(1e-9, 1, 400001)
    b, beta = 0.1 * t + 19.9 * t**2 / 2, 0.1 + 19.9 * t
    alpha2, sigma2 = np.exp(-b), -np.expm1(-b)
    weights = {"constant": 1.0, "min-snr": np.minimum(1, 5 * sigma2 / alpha2), "likelihood": beta / sigma2}
    for weight, (drawn, exact, slopes, perturbed) in jax.tree.map(np.asarray, answers()).items():
        assert np.all(np.abs(slopes.mean(0)) < 4.5 * slopes.std(0) / np.sqrt(DRAWS)), weight
        assert np.all(perturbed.mean(1) > exact.mean()), weight
        integrand = weights[weight] * alpha2 * VARIANCE / (alpha2 * VARIANCE + sigma2)
        # The likelihood's weight grows as 1/t towards the data: compared on the clock above 1e-4.
        low = 1e-4 if weight == "likelihood" else 0.0
        exact = np.where(drawn > low, exact, 0)
        minimum = np.trapezoid(integrand[t > low], t[t > low])
        assert abs(exact.mean() - minimum) < 4.5 * exact.std() / np.sqrt(DRAWS), weight


# --- noise by index ---


@pytest.mark.parametrize("name", ALL_TIMES)
def test_a_samples_loss_does_not_depend_on_its_batch(name):
    process = dj.VariancePreserving()
    times, network = ALL_TIMES[name](process), make_network([])
    x0, cond = jnp.asarray(np.random.default_rng(4).normal(size=(2, 8, D)))
    params = {"gain": jnp.asarray(0.3), "slope": jnp.asarray(0.1)}

    @jax.jit
    def parts(x0, cond, index):
        diffusion = dj.Diffusion(network, process, dj.VPrediction())
        keywords = {"times": times, "weighting": losses.constant, "index": index, "total": 8}
        return dj.denoising_loss(diffusion, params, jax.random.key(2), x0, cond, **keywords)[1]

    split = [parts(x0[index], cond[index], index) for index in np.arange(8).reshape(2, 4)]
    mixed = np.array([7, 2, 5, 0])
    again = parts(x0[mixed], cond[mixed], mixed)
    for what in ("t", "per_sample"):
        whole = np.concatenate([part[what] for part in split])
        np.testing.assert_allclose(again[what], whole[mixed], rtol=1e-9)
        assert len(np.unique(whole)) == 8


def test_drop_condition():
    n, key = 4000, jax.random.key(5)
    cond = {"label": jnp.arange(n) % 10, "text": jnp.ones((n, 3))}
    null = {"label": -1, "text": jnp.array([7.0, 8.0, 9.0])}
    dropped = jax.jit(lambda key, cond, p: dj.losses.drop_condition(key, cond, null, p))
    for probability in (0.0, 0.2, 1.0):
        out = jax.tree.map(np.asarray, dropped(key, cond, probability))
        gone = out["label"] == -1
        np.testing.assert_array_equal(out["label"][~gone], np.asarray(cond["label"])[~gone])
        np.testing.assert_array_equal(out["text"], np.where(gone[:, None], [7.0, 8.0, 9.0], 1.0))
        assert abs(gone.mean() - probability) <= 4.5 * np.sqrt(probability * (1 - probability) / n)
        assert out["label"].dtype == cond["label"].dtype
    whole = dj.losses.drop_condition(key, jnp.arange(12.0), 99.0, 0.5)
    index = jnp.array([3, 11, 0, 6])
    part = dj.losses.drop_condition(key, jnp.arange(12.0)[index], 99.0, 0.5, index=index)
    np.testing.assert_array_equal(part, whole[index])
    assert 0 < np.sum(whole == 99) < 12


def test_bad_weights_are_refused():
    refused = [(losses.EDMWeighting, "data_std"), (losses.MinSNR, "gamma"), (losses.SoftMinSNR, "gamma")]
    for make, argument in [*refused, (losses.P2, "k"), (losses.PseudoHuber, "c")]:
        for value in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=rf"{argument}: must be positive, got {value}"):
                make(value)
