"""A sample does not depend on its neighbours: alone and among others, it is the same to rounding.

    alone    three copies of one sample, all of global index 7, so that what a batch has in common is its own: one
             program runs both batches (a batch of one sample is tried among the slow tests)
    crowd    the sample in the middle, between others far away from it, which have global indices of their own

What samples share by design is no part of this: the steps of an adaptive solver, where they agree to its tolerance, and
the particles of `twisted_smc`, which stand for one posterior together. `Projected` has no momentum to share.
"""

import functools
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from keyed import public, stepper_instances
from registry import ALL_STEPPERS, QUICK_STEPPERS

import diffjax as dj
from diffjax import guidance, inverse, likelihood, operators, process, samplers

TS = np.linspace(0.9, 0.1, 4)
KINDS = (
    *QUICK_STEPPERS,
    "churn",
    "dpm-2-ancestral",
    "dpmpp-sde",
    "seeds-3",
    "predictor-corrector",
    "unipc-3",
    "ipndm-4",
)
"""Steppers of the registry that share the least: the others are left to `-m slow`."""


class Batch(NamedTuple):
    """Three samples: global indices [3], states [3, 2], conditions [3, 2], and a number each, [3]."""

    index: Any
    x: Any
    y: Any
    scale: Any


def key():
    return jax.random.key(3)


def vp():
    return dj.VariancePreserving()


def bent(xt, t):
    """A denoiser that is not linear."""
    return jnp.tanh(xt) / (1 + jnp.asarray(t, xt.dtype).reshape(-1, *[1] * (xt.ndim - 1)))


def alone():
    copies = lambda values: jnp.broadcast_to(jnp.asarray(values), (3, *np.shape(values)))
    return Batch(jnp.full(3, 7), copies([0.4, -0.7]), copies([0.2, 1.1]), copies(1.7))


def crowd():
    among = lambda first, values, last: jnp.array([first, values, last])
    x, y = among([60.0, -35.0], [0.4, -0.7], [-8.0, 1e-3]), among([-40.0, 5.0], [0.2, 1.1], [0.0, 9.0])
    return Batch(jnp.array([40, 7, 3]), x, y, among(30.0, 1.7, 0.1))


def check(function, accuracy=1e-10, batches=None):
    """function(Batch) -> arrays [3, ...]: the sample is the same alone and in the crowd, relative to its size."""
    batches = (alone(), crowd()) if batches is None else batches
    ours, theirs = (jax.tree.map(np.asarray, function(batch)) for batch in batches)
    for one, many in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.isfinite(one).all()
        bound = accuracy * max(1.0, np.abs(one).max())
        np.testing.assert_allclose(one, np.broadcast_to(one[:1], one.shape), rtol=0, atol=bound)
        np.testing.assert_allclose(many[1], one[0], rtol=0, atol=bound)


class Given(eqx.Module):
    """A denoiser with a condition for each sample."""

    y: Any

    def __call__(self, xt, t):
        return bent(xt + self.y, t)

    def per_sample_fields(self):
        return ("y",)


def _step_names():
    slow = ["predictor-corrector-twice", *(name for name in ALL_STEPPERS if name not in KINDS)]
    return [pytest.param(n, marks=pytest.mark.slow if n in slow else [], id=n) for n in stepper_instances()]


@pytest.mark.parametrize("name", _step_names())
def test_a_sample_drawn_by_a_stepper_does_not_depend_on_its_neighbours(name):
    check(_drawn_by(name))


def _drawn_by(name):
    stepper = stepper_instances()[name]

    def draw(of):
        denoiser = guidance.extrapolate(Given(of.y), bent, of.scale) if name == "cfgpp" else Given(of.y)
        return dj.sample(key(), vp(), denoiser, of.x, TS, stepper, index=of.index)

    return draw


def _adaptive(tolerance):
    return diffrax.PIDController(tolerance, tolerance)


def _rough(of):
    path = dj.per_sample_path(key(), of.index, (2,))
    return dj.reverse_sde(vp(), Given(of.y), path)


def _each(of):
    terms = dj.probability_flow(vp(), Given(of.y))
    found = samplers.integrate_each(terms, of.x, TS, solver=diffrax.Heun(), controller=_adaptive(1e-3))
    return found.x0, found.nfe.astype(float)


def _chains(method, *args, **choices):
    chains = method(key(), *args, steps=3, step_size=0.05, average=lambda x: x**2, **choices)
    return chains.x, chains.average, chains.acceptance


def _log_density(x):
    return -jnp.sum(jnp.log(jnp.cosh(x)), axis=-1)


def _matrix():
    return operators.Matrix(jnp.array([[1.0, 0.3]]))


DATA = np.linspace(-1.0, 1.0, 10).reshape(5, 2)
_term = lambda x, y: -0.5 * jnp.sum((y - x) ** 2, axis=-1)
_minibatch = samplers.minibatch_score(_log_density, _term, 5)
_score = samplers.density_score(_log_density)


def _nats(divergence):
    def call(of):
        flow = dj.log_likelihood(
            key(), vp(), Given(of.y), of.x, t0=0.1, divergence=divergence, controller=_fixed(0.1, 1.0), index=of.index
        )
        return flow.nats, flow.standard_error

    return call


def _fixed(start, stop):
    return diffrax.StepTo(ts=jnp.linspace(start, stop, 4))


def _whole(of):
    return jnp.clip(jnp.round(jnp.abs(of.x)), 0, 7).astype(int)


def _bits(of):
    params = {"shift": jnp.ones(2)}
    apply = lambda params, x: (x + params["shift"], 0.1 * x)
    found = likelihood.bits_per_dim(
        key(),
        vp(),
        Given(of.y),
        _whole(of),
        quantisation=likelihood.Quantisation(8),
        dequantisation=likelihood.VariationalDequantisation(params, apply),
        draws=2,
        bound=likelihood.importance_weighted_bound,
        likelihood=functools.partial(likelihood.evaluate_continuous_elbo, draws=2),
        index=of.index,
    )
    return found.bits, found.standard_error


def _elbo(found):
    return found.nats, found.standard_error, found.prior, found.reconstruction, found.diffusion


FUNCTIONS = {
    "sample_with_restarts": lambda of: dj.samplers.sample_with_restarts(
        key(), vp(), Given(of.y), of.x, TS, dj.Heun(), restarts=[samplers.Restart(0.2, 0.5, 2, 2)], index=of.index
    ),
    "annealed_langevin": lambda of: samplers.annealed_langevin(
        key(), vp(), Given(of.y), of.x, TS, steps_per_level=2, step_size=0.1, index=of.index
    ),
    "langevin": lambda of: _chains(samplers.langevin, _score, of.x, index=of.index),
    "sgld": lambda of: _chains(samplers.sgld, _minibatch, of.x, jnp.asarray(DATA), batch_size=2, index=of.index),
    "mala": lambda of: _chains(samplers.mala, _log_density, of.x, index=of.index),
    "hmc": lambda of: _chains(samplers.hmc, _log_density, of.x, integration_steps=2, index=of.index),
    "simulate": lambda of: jnp.moveaxis(process.simulate(key(), vp(), of.x, TS[::-1], index=of.index), 1, 0),
    "per_sample_path": lambda of: dj.integrate(_rough(of), of.x, TS, solver=diffrax.Euler()).x0,
    "integrate": lambda of: dj.integrate(dj.probability_flow(vp(), Given(of.y)), of.x, TS, solver=diffrax.Heun()).x0,
    "integrate_each": _each,
    "inpaint": lambda of: inverse.inpaint(
        key(), vp(), Given(of.y), of.x, TS, jnp.array([True, False]), of.y, times=2, index=of.index
    ),
    "diffpir": lambda of: inverse.diffpir(
        key(), vp(), bent, of.x, TS, _matrix(), of.y[:, :1], 0.1 * of.scale, index=of.index
    ),
    "sdedit": lambda of: inverse.sdedit(key(), vp(), Given(of.y), of.x, TS, dj.DDIM(eta=1.0), index=of.index),
    "log_likelihood": _nats(likelihood.Exact()),
    "log_likelihood, Hutchinson": _nats(dj.Hutchinson(2)),
    "log_likelihood, Hutch++": _nats(likelihood.HutchPlusPlus(6)),
    "bits_per_dim": _bits,
    "evaluate_continuous_elbo": lambda of: _elbo(
        likelihood.evaluate_continuous_elbo(key(), vp(), Given(of.y), of.x, draws=2, index=of.index)
    ),
    "evaluate_discrete_elbo": lambda of: _elbo(
        likelihood.evaluate_discrete_elbo(key(), vp(), Given(of.y), of.x, TS, index=of.index)
    ),
    "dequantise": lambda of: likelihood.dequantise(
        key(), likelihood.UniformDequantisation(), likelihood.Quantisation(8), _whole(of), of.index
    ),
    "flow_encode": lambda of: (
        likelihood.flow_encode(vp(), Given(of.y), of.x, t0=0.1, controller=_fixed(0.1, 1.0)).latent
    ),
    "flow_decode": lambda of: likelihood.flow_decode(vp(), Given(of.y), of.x, t0=0.1, controller=_fixed(-1.0, -0.1)).x0,
    "invert": lambda of: likelihood.invert(vp(), Given(of.y), of.x, TS),
    "slerp": lambda of: likelihood.slerp(of.x, of.y, of.scale / 40),
}


# The one with probes that are orthonormalised, of those that share its solver.
_SLOW = ("log_likelihood", "log_likelihood, Hutchinson")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in _SLOW else []) for n in FUNCTIONS])
def test_a_sample_does_not_depend_on_its_neighbours(name):
    check(FUNCTIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FUNCTIONS, *stepper_instances()])
def test_a_batch_of_one_has_the_sample_that_a_batch_of_three_has(name):
    one = jax.tree.map(lambda leaf: leaf[:1], alone())
    check(FUNCTIONS.get(name) or _drawn_by(name), batches=(one, crowd()))


def test_a_sample_of_many_does_not_depend_on_its_neighbours_or_its_chunk():
    draw = lambda y, chunk: dj.sample_n(key(), vp(), Given(y), (2,), 3, ts=TS, stepper=dj.DDIM(eta=1.0), chunk=chunk)
    ours = draw(alone().y, 3)[1]
    for chunk in (3, 2):
        np.testing.assert_allclose(draw(crowd().y, chunk)[1], ours, rtol=0, atol=1e-10)


def test_samples_that_share_the_steps_of_an_adaptive_solver_agree_to_its_tolerance():
    """Steps are as small as the worst sample of the batch needs: to 100 times the tolerance, which they accumulate."""

    def solve(of):
        terms = dj.probability_flow(vp(), Given(of.y))
        return dj.integrate(terms, of.x, TS, solver=diffrax.Heun(), controller=_adaptive(1e-5)).x0

    check(solve, accuracy=1e-3)


RULES = {
    "linear": guidance.Linear,
    "rescaled": lambda: guidance.Rescaled(0.7),
    "projected": lambda: guidance.Projected(0.3, 0.7),
    "optimal scale": guidance.OptimalScale,
    "rescaled, projected": lambda: guidance.Rescaled(0.4, guidance.Projected()),
    "on velocity": lambda: guidance.OnPrediction(vp(), dj.VelocityPrediction(), guidance.OptimalScale()),
}
# One iteration, of a length that is the sample's own: solved to the end, two features would not tell.
_ONE = lx.CG(rtol=1e-5, atol=1e-5, max_steps=1)
GUIDES = {
    "interval": lambda of: guidance.within_interval(vp(), Given(of.y), bent, -of.scale, of.scale),
    "interval, scalar": lambda of: guidance.within_interval(vp(), Given(of.y), bent, -1.0, 1.0),
    "zero init": lambda of: guidance.zero_init(vp(), Given(of.y), -1.0),
    "classifier": lambda of: guidance.classifier_guidance(
        vp(), bent, lambda x, t: -jnp.sum((x - of.y) ** 2, axis=-1), of.scale
    ),
    "static threshold": lambda of: guidance.static_threshold(Given(of.y), -of.scale, of.scale),
    "dynamic threshold": lambda of: guidance.dynamic_threshold(_wide(of), 0.8, of.scale / 3),
    "product": lambda of: guidance.product(vp(), [bent, Given(of.y)], [of.scale, 0.5]),
    "negation": lambda of: guidance.negation(vp(), bent, Given(of.y), 0.1 * of.scale),
    "mixture": lambda of: guidance.density_mixture(
        [bent, Given(of.y)], [lambda x, t: -jnp.sum(x**2, axis=-1), lambda x, t: -jnp.sum((x - of.y) ** 2, axis=-1)]
    ),
    "dps": lambda of: guidance.dps(vp(), bent, _bilinear, of.y, of.scale, scale=of.scale),
    "dps, normalised": lambda of: guidance.dps_normalised(vp(), bent, _bilinear, of.y, scale=of.scale),
    "pigdm": lambda of: guidance.pigdm(vp(), bent, _bilinear, of.y, 0.1 * of.scale, solver=_ONE),
    "tmpd": lambda of: guidance.tmpd(
        vp(), bent, _bilinear, of.y, 0.1 * of.scale, solver=guidance.TruncatedCG(max_steps=1)
    ),
    "proximal": lambda of: guidance.proximal(vp(), bent, _bilinear, of.y, 0.1 * of.scale, solver=_ONE),
} | {
    f"extrapolate, {n}": lambda of, n=n: guidance.extrapolate(Given(of.y), bent, of.scale, rule=RULES[n]())
    for n in RULES
}


def _bilinear(x):
    """An operator that is not linear."""
    return jnp.stack([x[:, 0] + 0.3 * x[:, 1], 0.2 * jnp.tanh(x[:, 0]) * x[:, 1]], axis=1)


def _wide(of):
    """Answers of more than the threshold's bound."""
    return lambda xt, t: 3 * Given(of.y)(xt, t) + xt


def _classifier_free(of):
    def apply(params, x, c_noise, cond, *, key=None):
        return jnp.where(jnp.isnan(cond), jnp.tanh(x), jnp.tanh(x + params * cond))

    network = dj.Network(init=lambda *args: jnp.ones(()), apply=apply)
    denoiser = dj.make_denoiser(dj.Diffusion(network, vp(), dj.X0Prediction()), jnp.ones(()), of.y)
    return dj.classifier_free(denoiser, jnp.full(2, jnp.nan), of.scale)


GUIDES["classifier free"] = _classifier_free


@functools.cache
def _guided(batch):
    """name -> what each guide makes of a batch, at one time for all and at a time each; all in one program."""
    return _all_guides(batch())


@eqx.filter_jit
def _all_guides(of):
    made = {name: make(of) for name, make in GUIDES.items()}
    times = jnp.asarray(0.35), jnp.full(3, 0.35)
    return {name: tuple(guide(of.x, t) for t in times) for name, guide in made.items()}


@pytest.mark.parametrize("name", GUIDES)
def test_a_guided_answer_does_not_depend_on_a_samples_neighbours(name):
    check(lambda batch: _guided(batch)[name], batches=(alone, crowd))


def test_every_sampler_and_likelihood_with_global_indices_is_in_the_table():
    shared = {"twisted_smc"}
    pieces = {"sample", "prior", "linear_prior", "drop_condition", "draw_steps", "dequantisation_loss"}
    modules = ("samplers", "inverse", "likelihood")
    ours = {name for name, (of, kind) in public().items() if "index" in of and kind is None}
    found = {name for name in ours if any(hasattr(getattr(dj, module), name) for module in modules)}
    assert not found - FUNCTIONS.keys() - shared - pieces
