"""The public surface: documented, of one shape, and compiled once however its values change."""

import importlib
import inspect
import pkgutil
import pydoc
import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from registry import ALL_STEPPERS, each_stepper

import diffjax as dj
from diffjax import losses

PACKAGES = ["diffjax", *(m.name for m in pkgutil.walk_packages(dj.__path__, "diffjax.") if "._" not in m.name)]
PRIVATE = ("diffjax._arrays", "diffjax._numbers", "diffjax._typing")


def public():
    """(name, object) for each public function and class, wherever it can be imported from, once."""
    seen = {}
    for package in PACKAGES:
        for name, thing in vars(importlib.import_module(package)).items():
            ours = getattr(thing, "__module__", None) or ""
            if callable(thing) and ours.startswith("diffjax.") and not name.startswith("_") and ours not in PRIVATE:
                seen[f"{ours}.{name}"] = thing
    return seen


PUBLIC = public()
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isroutine(thing)}

SHAPED = "Key|Scalar|Time|PerSample|Sample|Saved|Index|Grid|GridLike"
"""Types of `_typing` that have a shape."""


def test_training_and_its_checkpoints_share_no_name():
    outer, inner = (vars(importlib.import_module(f"diffjax.training{part}")) for part in ("", ".checkpoint"))
    shared = {name for name in outer.keys() & inner.keys() if not name.startswith("_")}
    assert not shared


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    thing = PUBLIC[name]
    doc = thing.__doc__ or ""
    assert doc.strip(), f"{name} has no docstring"
    annotations = str(getattr(thing, "__annotations__", ""))
    if name in FUNCTIONS and re.search(rf"Float|Int\[|Shaped|(?<![.\w])({SHAPED})\b", annotations):
        assert re.search(r"\[[^\]]*\]|shape|scalar|pytree", doc), f"the docstring of {name} gives no shape"


@pytest.mark.parametrize("name", [name for name, f in FUNCTIONS.items() if "key" in inspect.signature(f).parameters])
def test_a_key_comes_first(name):
    """After the network or model and the parameters; where it is optional it is given by name."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    if parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY:
        return
    before = list(parameters)[: list(parameters).index("key")]
    models = ("diffusion", "network", "vae", "gan", "autoencoder")
    assert before in ([], ["params"], *([model, "params"] for model in models))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_switches_are_given_by_name(name):
    """No boolean can be passed by position: `f(x, True)` says nothing to its reader."""
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        boolean = isinstance(parameter.default, bool) or parameter.annotation in (bool, "bool")
        assert not boolean or parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter


def test_help_shows_the_names_of_types():
    """`Key` and `Time`, not the unions of arrays that they stand for, which differ by the version of JAX."""
    shown = {
        dj.sample: {"Key", "Denoiser", "Sample", "GridLike", "Index", "Saved"},
        dj.perturb: {"Sample", "Time"},
        dj.guidance.extrapolate: {"Denoiser", "PerSample"},
        dj.samplers.langevin: {"Key", "Score", "Sample", "StepSize", "Index", "Statistic"},
    }
    for function, names in shown.items():
        signature = pydoc.plain(pydoc.render_doc(function)).splitlines()[2]
        assert signature.startswith(f"{function.__name__}(")
        assert names <= set(re.findall(r"\w+", signature)), signature
        assert not re.search(r"jaxlib|jaxtyping|ndarray|\bAny\b|Callable", signature), signature


# --- new values compile nothing ---


class Counter(eqx.Module):
    """A denoiser with a parameter that counts how often it is traced."""

    gain: jax.Array
    calls: list = eqx.field(static=True)

    def __call__(self, xt, t):
        self.calls.append(1)
        return self.gain * xt


class SharedList(list):
    """A list that is equal to itself alone, so that it can be static."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def processes():
    return [dj.VariancePreserving(0.1, 20.0), dj.VariancePreserving(0.2, 15.0)]


def traces(run, calls):
    """How often a function of (which in 0, 1) traces its denoiser the first time, and the second."""
    run(0)
    first = len(calls)
    run(1)
    return first, len(calls) - first


@pytest.mark.parametrize("name", each_stepper())
def test_sampling_compiles_once(name):
    calls, stepper = SharedList(), ALL_STEPPERS[name]()

    def run(which):
        process, denoiser = processes()[which], Counter(jnp.asarray(0.3 + which), calls)
        xt = dj.prior(jax.random.key(which), process, (2, 3))
        ts = [dj.uniform_grid, dj.logsnr_grid][which](process, 4)
        return dj.sample(jax.random.key(which), process, denoiser, xt, ts, stepper)

    first, second = traces(run, calls)
    assert first > 0
    assert second == 0


def test_eta_compiles_once():
    calls, process = SharedList(), dj.VariancePreserving()
    denoiser, xt = Counter(jnp.asarray(0.3), calls), jnp.ones((2, 3))
    run = lambda which: dj.sample(
        jax.random.key(0), process, denoiser, xt, dj.uniform_grid(process, 4), dj.DDIM(eta=[0.5, 0.8][which])
    )
    assert traces(run, calls)[1] == 0


@pytest.mark.parametrize("eta", [None, (0.5, 1.0)])
def test_integrating_compiles_once(eta):
    calls = SharedList()

    def run(which):
        process, denoiser = processes()[which], Counter(jnp.asarray(0.3 + which), calls)
        if eta is None:
            terms, solver = dj.probability_flow(process, denoiser), diffrax.Heun()
        else:
            path = dj.per_sample_path(jax.random.key(which), 2, (3,))
            terms, solver = dj.reverse_sde(process, denoiser, path, eta[which]), diffrax.Euler()
        ts = [dj.uniform_grid, dj.logsnr_grid][which](process, 4)
        return dj.integrate(terms, jnp.full((2, 3), 1.0 + which), ts, solver=solver)

    assert traces(run, calls)[1] == 0


def test_likelihood_compiles_once():
    calls = SharedList()

    def run(which):
        process, denoiser = processes()[which], Counter(jnp.asarray(0.3 + which), calls)
        return dj.log_likelihood(jax.random.key(which), process, denoiser, jnp.full((2, 3), 0.1 * which))

    assert traces(run, calls)[1] == 0


def linear_network(calls):
    def apply(params, x, c_noise, cond=None, *, key=None):
        calls.append(1)
        return params["w"] * x + params["b"] * c_noise[:, None] + cond

    return dj.Network(lambda key, x, c_noise, cond=None: {"w": jnp.asarray(0.1), "b": jnp.asarray(0.2)}, apply)


def test_weights_conditions_and_guidance_compile_once():
    calls = SharedList()
    network = linear_network(calls)

    def run(which):
        process = processes()[which]
        params = {"w": jnp.asarray(0.1 + which), "b": jnp.asarray(0.2)}
        diffusion = dj.Diffusion(network, process, dj.VPrediction())
        denoiser = dj.make_denoiser(diffusion, params, jnp.full((2, 1), 1.0 + which))
        guided = dj.classifier_free(denoiser, jnp.zeros(1), [1.5, 3.0][which])
        return dj.sample(
            jax.random.key(0), process, guided, jnp.ones((2, 3)), dj.uniform_grid(process, 4), dj.DPMpp2M()
        )

    assert traces(run, calls)[1] == 0


class Counted(nn.Module):
    """Of fields that are equal where those of another are, and of Flax's own initialisers, which are compiled."""

    widths: tuple[int, ...]
    calls = SharedList()

    @nn.compact
    def __call__(self, x, c_noise, cond=None):
        self.calls.append(1)
        for width in self.widths:
            x = jnp.tanh(nn.Dense(width)(x))
        return nn.Dense(3)(x) * c_noise[:, None]


def test_a_cell_run_again_compiles_nothing():
    """Module, network and Diffusion are built anew, and the step takes the Diffusion: init, training, sampling."""

    @jax.jit
    def step(diffusion, params, x0):
        times = dj.UniformTimes(diffusion.process)
        loss = lambda p: dj.denoising_loss(diffusion, p, jax.random.key(0), x0, times=times, weighting=losses.native)[0]
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    def cell(which):
        process, x = processes()[which], jnp.full((2, 3), 1.0 + which)
        diffusion = dj.Diffusion(dj.from_linen(Counted((4, 4))), process, dj.VPrediction())
        params = step(diffusion, diffusion.network.init(jax.random.key(which), x, jnp.zeros(2)), x)
        ts = dj.uniform_grid(process, 4)
        return dj.sample(None, process, dj.make_denoiser(diffusion, params), x, ts, dj.DDIM())

    first, second = traces(cell, Counted.calls)
    assert first >= 3
    assert second == 0


def test_a_loss_compiles_once_and_has_a_gradient_in_everything():
    """New numbers of the process, of the times and of the weighting, and new data, under one jit; also under vmap."""
    calls = SharedList()
    network = linear_network(calls)

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(everything, key, x0, cond):
        params, process, parameterisation, times, weighting = everything
        diffusion = dj.Diffusion(network, process, parameterisation)
        return dj.denoising_loss(diffusion, params, key, x0, cond, times=times, weighting=weighting)[0]

    def run(which):
        process = processes()[which]
        params = network.init(None, None, None)
        times, weighting = dj.process.LognormalTimes(process, -1.0 - which), losses.MinSNR(4.0 + which)
        everything = (params, process, dj.parameterisation.EDMPrediction(0.5 + which), times, weighting)
        return slope(everything, jax.random.key(which), jnp.full((4, 3), 0.5 + which), jnp.full((4, 1), 1.0 * which))

    assert traces(run, calls)[1] == 0
    for leaf in jax.tree.leaves(run(1)):
        assert np.all(np.isfinite(leaf))
        assert np.any(np.asarray(leaf) != 0)
    keys = jax.random.split(jax.random.key(0), 3)
    process = processes()[0]
    diffusion = dj.Diffusion(network, process, dj.VPrediction())
    keywords = {"times": dj.UniformTimes(process), "weighting": losses.native}

    @jax.jit
    def together_and_alone(keys):
        params, x0, cond = network.init(None, None, None), jnp.ones((4, 3)), jnp.ones((4, 1))
        one = lambda key: dj.denoising_loss(diffusion, params, key, x0, cond, **keywords)[0]
        return jax.vmap(one)(keys), one(keys[1])

    many, alone = together_and_alone(keys)
    np.testing.assert_allclose(many[1], alone, rtol=1e-5)
    assert len(np.unique(many)) == 3


def test_sampling_works_inside_vmap():
    """Over processes, of which each keeps its own schedule: the same as one by one."""
    process = dj.VariancePreserving()
    ts, xt = dj.uniform_grid(process, 4), jnp.ones((2, 3))
    one = lambda beta: dj.sample(
        jax.random.key(0), dj.VariancePreserving(0.1, beta), lambda x, t: 0.3 * x, xt, ts, dj.DDIM()
    )
    many = jax.vmap(one)(jnp.array([15.0, 20.0]))
    np.testing.assert_allclose(many[1], one(20.0), rtol=1e-4)
    assert not np.allclose(many[0], many[1])
