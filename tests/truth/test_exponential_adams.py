"""Multistep methods against published update formulas, written out in NumPy, and what each must be exact on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import ALL_PROCESSES, mixture
from scipy.integrate import quad
from walk import walk
from weak import fitted, marginal_variance, output_variance

import diffjax as dj
from diffjax import samplers

KEY = jax.random.key
ADAMS = samplers.ExponentialAdams


def variance_exploding(n=11):
    """An EDM process, uneven times on it, the noise levels there, a denoiser and where to start."""
    process = dj.EDM()
    ts = np.asarray(dj.edm_grid(process, n, rho=4.0))
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigmas = (low + ts * (high - low)) ** 7
    return process, ts, sigmas, dj.exact_denoiser(mixture(), process), dj.prior(KEY(0), process, (5, 2))


def denoisers(process, denoiser, ts):
    call = jax.jit(lambda x, t: denoiser(x, t))
    return [lambda x, t=t: np.asarray(call(jnp.asarray(x), jnp.asarray(t))) for t in ts]


def by_hand_2m(D, sigmas, x):
    old, l = None, -np.log(sigmas)
    for n in range(len(sigmas) - 1):
        now, h = D[n](x), l[n + 1] - l[n]
        mixed = now if old is None else now + h / (2 * (l[n] - l[n - 1])) * (now - old)
        x, old = sigmas[n + 1] / sigmas[n] * x - np.expm1(-h) * mixed, now
    return x


def by_hand_3m(D, sigmas, x, *, factor):
    """The published code's step, phi3 d2 multiplied by `factor`; `second` is the two-point step's weight."""
    past, l = [], -np.log(sigmas)
    for n in range(len(sigmas) - 1):
        past, h = [D[n](x), *past[:2]], l[n + 1] - l[n]
        e = np.expm1(-h)
        phi2 = e / h + 1
        phi3 = phi2 / h - 0.5
        x = sigmas[n + 1] / sigmas[n] * x - e * past[0]
        if len(past) == 2:
            x = x - 0.5 * e * (past[0] - past[1]) * h / (l[n] - l[n - 1])
        if len(past) == 3:
            r0, r1 = (l[n] - l[n - 1]) / h, (l[n - 1] - l[n - 2]) / h
            f0, f1 = (past[0] - past[1]) / r0, (past[1] - past[2]) / r1
            x = x + phi2 * (f0 + (f0 - f1) * r0 / (r0 + r1)) - factor * phi3 * (f0 - f1) / (r0 + r1)
    return x


def by_hand_unipc(D, sigmas, x, p, scale, *, halves=True):
    """UniPC's own linear systems, in the data prediction; without its halves they are its varying coefficients."""
    l, past, before = -np.log(sigmas), [], None

    def update(x, past, start, stop, ratio, order, end=None):
        h = stop - start
        B, phi = -scale(h), np.expm1(-h)
        r = [(past[i][0] - start) / h for i in range(1, order)]
        D1 = [(past[i][1] - past[0][1]) / r[i - 1] for i in range(1, order)]
        r, rows, b, phi_k, factorial = [*r, 1.0], [], [], phi / -h - 1, 1
        for k in range(1, order + 1):
            rows.append(np.power(r, k - 1))
            b.append(phi_k * factorial / B)
            factorial *= k + 1
            phi_k = phi_k / -h - 1 / factorial
        x = ratio * x - phi * past[0][1]
        if end is None:
            rho = {1: [], 2: [0.5]}.get(order) if halves or order == 1 else None
            rho = np.linalg.solve(np.array(rows)[:-1, :-1], b[:-1]) if rho is None else rho
            return x - B * sum(w * d for w, d in zip(rho, D1, strict=True))
        rho = [0.5] if order == 1 and halves else np.linalg.solve(np.array(rows), b)
        return x - B * (sum(w * d for w, d in zip(rho[:-1], D1, strict=True)) + rho[-1] * (end - past[0][1]))

    order = 0
    for n in range(len(sigmas) - 1):
        now = D[n](x)
        if n:
            x = update(before, past, l[n - 1], l[n], sigmas[n] / sigmas[n - 1], order, now)
        past, order, before = [(l[n], now), *past[:2]], min(p, n + 1), x
        x = update(x, past, l[n], l[n + 1], sigmas[n + 1] / sigmas[n], order)
    return x


def by_hand_adams(D, sigmas, x, order, clock, *, equal=False):
    """eps by the polynomial in clock(sigma) through the latest `order` points, integrated over sigma by scipy."""
    equal_steps = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    past = []
    for n, (start, stop) in enumerate(itertools.pairwise(sigmas)):
        past = [(clock(start), (x - D[n](x)) / start), *past[: order - 1]]
        for i, (ci, eps) in enumerate(past):

            def lagrange(s, others=tuple(c for c, _ in past[:i] + past[i + 1 :]), ci=ci):
                return np.prod([(clock(s) - c) / (ci - c) for c in others])

            weight = (stop - start) * equal_steps[len(past) - 1][i] if equal else quad(lagrange, start, stop)[0]
            x = x + weight * eps
    return x


@pytest.mark.slow
def test_multistep_methods_take_the_published_steps():
    """DPM++ 2M and 3M (both ways), UniPC 1 to 3 with both scales, LMS, DEIS, iPNDM: equal to their formulas."""
    process, ts, sigmas, denoiser, x = variance_exploding()
    D, start = denoisers(process, denoiser, ts), np.asarray(x)
    time = lambda s: s ** (1 / 7)  # linear in EDM's clock
    cases = [(dj.DPMpp2M(), by_hand_2m(D, sigmas, start))]
    cases += [(samplers.DPMpp3MPublished(), by_hand_3m(D, sigmas, start, factor=1))]
    for p, (scale, ours) in itertools.product((1, 2, 3), ((lambda h: h, samplers.bh1), (bh2_by_hand, samplers.bh2))):
        cases.append((dj.UniPC(p, ours), by_hand_unipc(D, sigmas, start, p, scale)))
    varying = by_hand_unipc(D, sigmas, start, 3, bh2_by_hand, halves=False)
    cases.append((dj.UniPC(3, None), varying))
    for order in (2, 4):
        cases.append((samplers.LMS(order), by_hand_adams(D, sigmas, start, order, lambda s: s)))
        cases.append((samplers.DEIS(order), by_hand_adams(D, sigmas, start, order, time)))
        cases.append((samplers.IPNDM(order), by_hand_adams(D, sigmas, start, order, time, equal=True)))
    for stepper, expected in cases:
        np.testing.assert_allclose(walk(KEY(0), process, denoiser, x, ts, stepper), expected, rtol=1e-8, atol=1e-9)


def bh2_by_hand(h):
    return 1 - np.exp(-h)


@pytest.mark.slow
def test_named_methods_are_settings_of_one():
    """Where DDIM, the heun 2M, corrected 3M and UniPC coincide with an exponential Adams method, they are equal."""
    process, ts, sigmas, denoiser, x = variance_exploding()
    run = lambda stepper, ts=ts: np.asarray(walk(KEY(0), process, denoiser, x, ts, stepper))
    data, eps = dj.X0Prediction(), dj.EpsPrediction()
    for prediction in (data, eps):
        np.testing.assert_allclose(run(ADAMS(prediction, 1)), run(dj.DDIM()), rtol=1e-10)
    varying = ADAMS(data, 4, corrector=True)
    np.testing.assert_allclose(run(dj.UniPC(3, None)), run(varying), rtol=1e-12)
    assert np.abs(run(dj.UniPC(3)) - run(varying)).max() > 1e-7  # their halves in the first two steps
    # 3M as corrected: the third step is the published one with 2 phi3, from the same states.
    D = denoisers(process, denoiser, ts)
    by_hand = by_hand_3m(D, sigmas, np.asarray(x), factor=2)
    np.testing.assert_allclose(run(samplers.DPMpp3M()), by_hand, atol=2e-3)
    assert np.abs(by_hand - by_hand_3m(D, sigmas, np.asarray(x), factor=1)).max() > 1e-2


@pytest.mark.parametrize("name", ["rectified", *(pytest.param(p, marks=pytest.mark.slow) for p in ("vp", "edm"))])
def test_what_each_prediction_is_exact_on(name):
    """One long step is exact where N is constant: data and eps on a point, F of its data_std on Gaussian data."""
    process, ts = ALL_PROCESSES[name](), np.array([0.8, 0.1])
    xt = dj.prior(KEY(0), process, (6, 2))
    point = jnp.array([0.7, -0.2])
    t, s = jnp.asarray(ts)
    eps = (xt - process.alpha(t) * point) / process.sigma(t)
    truth = process.alpha(s) * point + process.sigma(s) * eps
    known = lambda x, t: jnp.broadcast_to(point, x.shape)
    predictions = (dj.X0Prediction(), dj.EpsPrediction(), dj.VelocityPrediction())
    for prediction in predictions[: 3 if name == "rectified" else 2]:
        np.testing.assert_allclose(walk(KEY(0), process, known, xt, ts, ADAMS(prediction, 1)), truth, rtol=1e-10)
    std = 0.4
    data = dj.Gaussian(jnp.zeros(2), jnp.asarray(std**2))
    got = walk(
        KEY(0), process, dj.exact_denoiser(data, process), xt, ts, ADAMS(dj.parameterisation.EDMPrediction(std), 1)
    )
    np.testing.assert_allclose(got, dj.exact_flow_map(data, process).move(xt, t, s), rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_eta_family_in_one_step(eta):
    """Mean and variance of one step with constant data are math's closed form, whatever eta and however long."""
    process, ts, n = dj.VariancePreserving(), np.array([0.7, 0.2]), 20_000
    x0, xt = 0.4, 0.9
    known = lambda x, t: jnp.full_like(x, x0)
    start = jnp.full((n, 1), xt)
    xs = walk(KEY(3), process, known, start, ts, ADAMS(dj.X0Prediction(), 1, eta=eta))
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (np.asarray(f(jnp.asarray(ts))) for f in (process.alpha, process.sigma))
    h = np.log(alpha_s / sigma_s) - np.log(alpha_t / sigma_t)
    keep = sigma_s / sigma_t * np.exp(-(eta**2) * h)
    mean = keep * xt + alpha_s * -np.expm1(-(1 + eta**2) * h) * x0
    std = sigma_s * np.sqrt(-np.expm1(-2 * eta**2 * h))
    np.testing.assert_allclose(xs.mean(), mean, atol=4.5 * std / n**0.5 + 1e-12)
    np.testing.assert_allclose(xs.std(), std, atol=4.5 * std / (2 * n) ** 0.5 + 1e-12)


PREDICTIONS = {
    "data": dj.X0Prediction,
    "eps": dj.EpsPrediction,
    "v": dj.VPrediction,
    "F": lambda: dj.parameterisation.EDMPrediction(0.8),
    "velocity": dj.VelocityPrediction,
}
ORDERS = {
    "2M": dj.DPMpp2M,
    "3M": samplers.DPMpp3M,
    "3M published": samplers.DPMpp3MPublished,
}
for _name, _of in PREDICTIONS.items():
    for _order in (1, 2, 3, 4):
        ORDERS[f"{_name} {_order}"] = lambda of=_of, order=_order: ADAMS(of(), order)
    for _order in (2, 3, 4):
        ORDERS[f"{_name} {_order} corrected"] = lambda of=_of, order=_order: ADAMS(of(), order, corrector=True)
for _p, _scale in itertools.product((1, 2, 3), (samplers.bh1, samplers.bh2)):
    ORDERS[f"UniPC-{_p} {_scale.__name__}"] = lambda p=_p, scale=_scale: dj.UniPC(p, scale)
for _method, _order in itertools.product((samplers.DEIS, samplers.LMS, samplers.IPNDM), (2, 3, 4)):
    ORDERS[f"{_method.__name__} {_order}"] = lambda method=_method, order=_order: method(order)
QUICK = ("v 3 corrected", "DEIS 3")


def sa_solver(eta):
    return ADAMS(dj.X0Prediction(), 2, corrector=True, eta=eta)


@pytest.mark.parametrize("make", [pytest.param(sa_solver, marks=pytest.mark.slow), dj.DDIM])
def test_gradient_by_eta(make):
    """With the grid known and eta traced, a sample's derivative by eta is its central difference."""
    process, denoiser = dj.Cosine(), lambda x, t: 0.5 * jnp.tanh(x)
    xt, ts = dj.prior(KEY(0), process, (3, 2)), np.asarray(dj.logsnr_grid(process, 5))
    total = lambda eta: jnp.sum(dj.sample(KEY(1), process, denoiser, xt, ts, make(eta)) ** 2)
    eta, h = jnp.asarray(0.6), 1e-5
    np.testing.assert_allclose(jax.grad(total)(eta), (total(eta + h) - total(eta - h)) / (2 * h), rtol=1e-5)


def eased_grid(process, n):
    """Equal steps in logsnr, the first divided by 4, five times over: the low order of a start weighs nothing then."""
    values = np.asarray(process.logsnr(dj.logsnr_grid(process, n)))
    first = values[0] + (values[1] - values[0]) / 4.0 ** np.arange(5, 0, -1)
    between = np.asarray(process.time_from_logsnr(jnp.asarray(first)))
    ts = np.asarray(dj.logsnr_grid(process, n))
    return np.concatenate([ts[:1], between, ts[1:]])


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ORDERS]
)
def test_declared_order_is_the_fitted_one(name):
    """The error to the flow of a mixture, its geometric mean over samples, falls as n^-order within 0.15."""
    process, stepper = dj.VariancePreserving(), ORDERS[name]()
    steps = [256, 512, 1024] if stepper.order < 4 else [512, 1024, 2048]
    denoiser = dj.exact_denoiser(mixture(), process)
    xt = dj.prior(KEY(1), process, (64, 2))
    run = lambda n, stepper: walk(KEY(0), process, denoiser, xt, eased_grid(process, n), stepper)
    truth = run(4000, ADAMS(dj.parameterisation.EDMPrediction(0.8), 5, corrector=True))
    errors = [float(jnp.exp(jnp.mean(jnp.log(jnp.linalg.norm(run(n, stepper) - truth, axis=1))))) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    print(name, stepper.order, f"{slope:.2f}", errors)
    assert abs(slope - stepper.order) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("order", "corrector"), [(1, False), (2, False), (3, False), (3, True)])
def test_declared_weak_order_is_the_fitted_one(order, corrector):
    """With noise, the error of the output's variance amid the noise (see `weak`) falls as n^-order, at most 2."""
    process, stepper = dj.EDM(0.1, 3.0), ADAMS(dj.X0Prediction(), order, corrector, eta=1.0)
    steps = [128, 256, 512]
    truth = marginal_variance(process, 0.25, 0.0)
    errors = [
        abs(output_variance(stepper, process, 0.25, np.asarray(dj.uniform_grid(process, n))) - truth) for n in steps
    ]
    print(order, corrector, fitted(steps, errors))
    assert abs(fitted(steps, errors) - stepper.order) < 0.3
