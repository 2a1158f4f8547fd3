"""The weight on a network's answer at t = 0 and t = 1 themselves, where its two factors may be infinite and zero.

With X = (sigma/d)^2 and E = (alpha/d)^2, d = alpha b - sigma a, an error of y is X on x0 and E on eps, and each
weighting is a sum of multiples of X, E and their geometric mean.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PARAMETERISATIONS, ALL_PROCESSES, ALL_WEIGHTINGS

import diffjax as dj
from diffjax import losses

INF = np.inf
X_AND_E = {  # prediction: (X, E) of alpha = 1, sigma = 0 and of alpha = 0, sigma = 1; EDM's with data_std 1/2
    "eps": ((0, 1), (INF, 1)),
    "x0": ((1, INF), (1, 0)),
    "score": ((0, 0), (INF, 1)),
    "v": ((0, 1), (1, 0)),
    "velocity": ((0, 1), (1, 0)),
    "edm": ((0, 1), (0.25, 0)),
}


def expected(weighting, prediction, end):
    """The limit in closed form for rectified flow: alpha = 1 - t, sigma = t, -lambda' = 2/(t (1 - t))."""
    x, e = X_AND_E[prediction][end]
    snr = (INF, 0.0)[end]
    if weighting == "constant":
        return e
    if weighting == "native":
        return 1
    if weighting == "on-score":  # E/sigma^2, and for the score itself (sigma/sigma)^2
        return 1 if prediction == "score" else (e if end else INF)
    if weighting == "likelihood":  # 2 E/(t (1 - t))
        return {"score": 0}.get(prediction, INF) if end == 0 else (INF if e else 0)
    if weighting == "sigmoid-over-logsnr":  # at the data e^2 = e^2/(e^2 + snr) takes a power more from it
        return {"x0": INF}.get(prediction, 0) if end == 0 else (INF if e else 0)
    bounded = {"min-snr": 5.0, "soft-min-snr": 4.0, "sigmoid": np.exp(-1.0)}  # the x0-loss's weight near the data
    if weighting in bounded:
        return e if end else (bounded[weighting] if prediction == "x0" else 0)
    if weighting == "p2":  # 1/sqrt(1 + snr)
        return e if end else (INF if prediction == "x0" else 0)
    by_x = {"on-x0": 1, "on-v": 1, "flow-matching": 1, "edm": 4}[weighting]
    by_e = {"on-x0": 0}.get(weighting, 1)
    assert snr in (0, INF)
    return sum(factor * part for factor, part in ((by_x, x), (by_e, e)) if factor)


def weights(process, weighting, prediction, t):
    """W(t) of `denoising_loss`, [n]: its loss of each sample where the penalty of any error is 1."""
    one = lambda error: jnp.ones(error.shape[0], error.dtype)
    network = dj.Network(lambda *_: None, lambda params, x, *_, **__: x)
    times = lambda key, n, **_: (t, jnp.ones(n, t.dtype))
    given = (dj.Diffusion(network, process, prediction), None, jax.random.key(1), jnp.ones((len(t), 1), t.dtype))
    loss = dj.denoising_loss(*given, times=times, weighting=weighting, penalty=one)
    return loss[1]["per_sample"]


CHAIN = ("on-x0", "on-v", "min-snr")  # its rates are not rectified flow's, its alpha and sigma at the ends are


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "weightings", "predictions"),
    [("rectified", tuple(ALL_WEIGHTINGS), tuple(ALL_PARAMETERISATIONS)), ("ddpm-zero-snr", CHAIN, ("v", "x0"))],
    ids=["rectified", "chain"],
)
def test_the_weight_at_both_ends_is_its_limit(name, weightings, predictions, dtype):
    with jax.enable_x64(dtype == "float64"):
        process, t = ALL_PROCESSES[name](), jnp.asarray([0.0, 1.0], dtype)
        every = [(w, p) for w in weightings for p in predictions]
        made = [(ALL_WEIGHTINGS[w](), ALL_PARAMETERISATIONS[p]()) for w, p in every]
        found = jax.jit(lambda: [weights(process, *pair, t) for pair in made])()
    for (weighting, prediction), values in zip(every, found, strict=True):
        for end, value in enumerate(values):
            truth, where = expected(weighting, prediction, end), (weighting, prediction, end)
            if truth == INF:
                assert value > 1e6, where
            else:
                np.testing.assert_allclose(value, truth, rtol=2e-6, atol=2e-6, err_msg=str(where))


@pytest.mark.parametrize("name", ["vp", "rectified"])
def test_a_loss_at_the_data_is_its_limit_where_the_target_is_infinite(name):
    """The score and (of VP) the velocity are infinite at t = 0; weighted as the loss of eps it is that of t near 0."""
    network = dj.Network(lambda *_: None, lambda params, x, *_, **__: 0.5 * x)
    times = lambda t: lambda key, n, **_: (jnp.full(n, t), jnp.ones(n))
    for prediction in (dj.parameterisation.ScorePrediction(), dj.VelocityPrediction()):
        diffusion = dj.Diffusion(network, ALL_PROCESSES[name](), prediction)
        given = (diffusion, None, jax.random.key(1), jnp.ones((2, 2)))
        weighting = ALL_WEIGHTINGS["constant"]()
        at, near = (dj.denoising_loss(*given, times=times(t), weighting=weighting)[0] for t in (0.0, 1e-9))
        np.testing.assert_allclose(at, near, rtol=1e-3)


SHARP = ("constant", "likelihood", "on-x0", "on-score")
"""Weightings that grow without bound at one end or the other, for one prediction or another."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "weightings"),
    [
        pytest.param("rectified", SHARP, id="rectified"),
        *(
            pytest.param(name, tuple(ALL_WEIGHTINGS), id=f"{name}-all", marks=pytest.mark.slow)
            for name in ("vp", "cosine", "rectified", "edm", "ddpm-zero-snr")
        ),
    ],
)
def test_losses_and_gradients_are_finite_at_both_ends(name, weightings, dtype):
    """At t = 0 and 1, and so near 0 that 1/t^2 overflows: a batch with one such time still trains."""
    with jax.enable_x64(dtype == "float64"):
        process, t = ALL_PROCESSES[name](), jnp.asarray([0.0, jnp.finfo(dtype).tiny ** 0.6, 1.0], dtype)
        x0, eps = (jnp.asarray([[a, b]] * 3, dtype) for a, b in ((1.0, -0.5), (0.3, 2.0)))
        network = dj.Network(lambda *_: None, lambda params, x, *_, **__: params[:, None] * x)
        every = [(w, p) for w in weightings for p in ALL_PARAMETERISATIONS]

        def each(pair):
            diffusion = dj.Diffusion(network, process, ALL_PARAMETERISATIONS[pair[1]]())
            loss = lambda params: losses.per_sample_loss(
                diffusion, params, x0, eps, t, weighting=ALL_WEIGHTINGS[pair[0]]()
            )
            value, pull = jax.vjp(loss, jnp.full(3, 0.5, dtype))
            return jnp.stack([value, pull(jnp.ones_like(value))[0]])

        found = jax.jit(lambda: [each(pair) for pair in every])()
    for pair, (value, slope) in zip(every, found, strict=True):
        assert np.isfinite(value).all(), (*pair, value)
        assert np.isfinite(slope).all(), (*pair, slope)
