"""Numbers are numbers: each public argument that is a count refuses 10.0 and True by name, and takes NumPy's; each that
is a real number refuses words, None, complex ones and, where one is needed, several."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import types
import typing
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import diffjax as dj
from diffjax import config, networks, operators, samplers
from diffjax._typing import PerSample, Scalar, WholeNumber

PACKAGES = ["diffjax", *(f"diffjax.{m.name}" for m in pkgutil.iter_modules(dj.__path__) if not m.name.startswith("_"))]
APART = ("diffjax._arrays", "diffjax._numbers", "diffjax._typing", "diffjax.cli")
# Records that are made by us, and what is read from JSON or the command line: `check_config` looks at these.
RECORDS = {"FeatureStatistics", "Parts", "Pretrained", "Sampling", "Stage", "Layout", "Data", "Stopped", "Prefetch"}
RECORDS |= {"Samples", "Context", "Loaded", "TrainedRun", "Inpainting", "Setting", "Vocabulary"}
CONFIGS = {
    "Config",
    "DataConfig",
    "GuidanceConfig",
    "NetworkConfig",
    "OptimiserConfig",
    "ProcessConfig",
    "SamplerConfig",
}
OTHERS = {
    "Restart",  # `sample_with_restarts` checks it, beside what it belongs to
    "Objective",  # `make_train_step` checks it
    "check_levels",
    "check_seed",
    "abort",  # an exit code
    "describe",  # of an item, for a message
}


def whole(annotation):
    """Whether an argument is one or several whole numbers, by its annotation: `int`, `tuple[int, ...]`, or None."""
    text = annotation.__name__ if annotation is int else str(annotation)
    text = text.replace("collections.abc.", "")
    return re.fullmatch(r"(int|(tuple|Sequence)\[int(, (int|\.\.\.))*\]|None|\s|\|)+", text) and "int" in text


def kinds_of(annotation):
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return set(typing.get_args(annotation)) if union else {annotation}


def real(annotation):
    """Whether an argument is a real number, one a sample, a whole one that may be traced, or None: by annotation."""
    kinds, numbers = kinds_of(annotation), {float, Scalar, PerSample, WholeNumber}
    return bool(kinds & numbers) and not kinds - {*numbers, int, type(None)}


def arguments():
    """(name, parameter, callable) of what is public, methods too."""
    for package in PACKAGES:
        for public, thing in vars(importlib.import_module(package)).items():
            ours = getattr(thing, "__module__", None) or ""
            if public.startswith("_") or not callable(thing):
                continue
            if not ours.startswith("diffjax.") or ours.startswith(APART):
                continue
            methods = vars(thing).items() if isinstance(thing, type) else ()
            parts = [(thing.__name__, thing)] + [
                (f"{thing.__name__}.{name}", f)
                for name, f in methods
                if inspect.isroutine(f)
                and (not name.startswith("_") or name == "__call__")
                and getattr(f, "__qualname__", "").startswith(thing.__name__ + ".")
                and not getattr(f, "__isabstractmethod__", False)
            ]
            for name, part in parts:
                if {*name.split(".")} & (RECORDS | CONFIGS | OTHERS) or getattr(thing, "_is_protocol", False):
                    continue
                try:
                    parameters = inspect.signature(part).parameters.values()
                except ValueError:  # an exception without one
                    continue
                yield from ((f"{ours}.{name}", p, part) for p in parameters)


COUNTED = {(name, p.name): part for name, p, part in arguments() if whole(p.annotation)}
REAL = {(name, p.name): (p.annotation, part) for name, p, part in arguments() if real(p.annotation)}
TIMES = ("t", "s", "r")  # `check_time` looks at them
NAMED = {"Alignment", "DensityCoverage", "PrecisionRecall", "Line", "Circle", "HybridScore", "Snapshots"}  # by us


def test_every_count_refuses_what_is_no_whole_number():
    assert len(COUNTED) > 200
    for (_, argument), thing in COUNTED.items():  # a TypeError of other arguments: there is no check
        for wrong in (10.0, True, "10", np.float32(3), np.bool_(True)):
            expected = rf"^{argument}: (a |a tuple of )?whole numbers? (is|are) needed.*, got {re.escape(repr(wrong))}"
            with pytest.raises(ValueError, match=expected):
                thing(**{argument: wrong})


def test_every_number_refuses_what_is_none():
    tried = 0
    for (name, argument), (annotation, thing) in REAL.items():
        if {*name.split(".")} & (NAMED | CONFIGS) or (argument in TIMES and annotation is Scalar):
            continue
        tried += 1
        kinds = kinds_of(annotation)
        wrongs = ["0.5", 1j, True, jnp.ones(2, bool), jnp.ones(2, complex)]
        wrongs += [] if type(None) in kinds else [None]
        wrongs += [1.5, jnp.array(2.0), np.float32(2)] if WholeNumber in kinds else []
        wrongs += [] if PerSample in kinds else [jnp.ones(2), np.ones((1, 1)), [0.5]]
        for wrong in wrongs:  # a TypeError of other arguments: there is no check
            with pytest.raises(ValueError, match=f"^{argument}: "):
                thing(**{argument: wrong})
    assert tried > 150


def fields():
    """(class, field) of all modules whose fields are converted."""
    kinds = [eqx.Module]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("diffjax.") and dataclasses.is_dataclass(kind):
            yield from ((kind, field) for field in dataclasses.fields(kind) if "converter" in field.metadata)


def test_every_field_that_is_converted_refuses_words_by_its_name():
    """Also where a class has other fields without a default, or makes its own `__init__`."""
    found = list(fields())
    assert len(found) > 80
    for _, field in found:
        convert = field.metadata["converter"]  # without the checks of types that tests run under
        named = (inspect.unwrap(convert.func), *convert.args) if isinstance(convert, partial) else None
        convert = partial(*named, **convert.keywords) if named else inspect.unwrap(convert)
        for wrong in ("word", 1j, object()):
            with pytest.raises(ValueError, match=f"^{field.name}: "):
                convert(wrong)


def test_several_whole_numbers_are_checked_one_by_one():
    for wrong in ((2.0, 2), (2, True), [1.5], "22", 2):
        with pytest.raises(ValueError, match=r"factors: (a tuple of )?whole numbers (is|are) needed.*, got "):
            operators.Downsample(wrong)
    assert operators.Downsample([2, np.int64(2)]).factors == (2, 2)
    with pytest.raises(ValueError, match=r"shape: whole numbers are needed, got \(2.0, 3\)"):
        dj.prior(jax.random.key(0), dj.Cosine(), (2.0, 3))


def test_a_configuration_names_its_field():
    network = config.NetworkConfig(channels=(1, 2.0))
    for wrong, text in (
        (config.Config(steps=10.0), "steps: a whole number is needed, got 10.0"),
        (config.Config(batch_size=True), "batch_size: a whole number is needed, got True"),
        (config.Config(sampler=config.SamplerConfig(steps=2.5)), "sampler.steps: a whole number is needed, got 2.5"),
        (config.Config(network=network), r"network.channels: whole numbers are needed, got \(1, 2.0\)"),
    ):
        with pytest.raises(ValueError, match=f"^{text}$"):
            config.check_config(wrong)


def test_numpy_integers_are_whole_numbers():
    process = dj.Cosine()
    assert np.array_equal(dj.uniform_grid(process, np.int64(4)), dj.uniform_grid(process, 4))
    assert samplers.DPMSolver(np.int32(3)) == samplers.DPMSolver(3)
    assert dj.UniPC(np.uint8(2)).order == 3
    assert networks.MLP(width=np.int64(8), depth=np.int8(1)) == networks.MLP(width=8, depth=1)
    assert samplers.DPMSolver(np.array(3)) == samplers.DPMSolver(jnp.asarray(3)) == samplers.DPMSolver(3)
    with pytest.raises(ValueError, match=r"n: a whole number is needed, got .*; it must be known before tracing"):
        jax.jit(lambda n: dj.uniform_grid(process, n))(3)


def test_whole_numbers_never_widen_a_sample():
    x = jnp.ones((2, 3), jnp.bfloat16)
    moved = lambda beta: dj.perturb(dj.VariancePreserving(beta_max=beta), x, x, 0.5)
    for whole in (20, np.array(20), np.int64(20), jnp.array(20), jnp.array(20, jnp.uint8), np.float64(20)):
        assert moved(whole).dtype == x.dtype, whole
        assert np.array_equal(moved(whole), moved(20.0))
    assert jax.jit(moved)(20).dtype == x.dtype


def test_numbers_that_jax_or_numpy_takes_for_arrays_are_numbers():
    half = np.asarray(jnp.bfloat16(0.5))[()]  # a scalar that is none of NumPy's own
    assert dj.DDIM(half).eta.dtype == jnp.bfloat16
    assert networks.fourier_features(jnp.ones(2), 8, low=half).shape == (2, 8)
    held = nnx.Param(jnp.array(20.0))  # which can be called, too
    assert dj.VariancePreserving(beta_max=held).beta_max == 20


def test_a_schedule_in_place_of_a_number_is_told_to_be_called():
    for schedule in (optax.constant_schedule(1.0), jax.jit(jnp.sqrt), partial(pow, 2)):
        with pytest.raises(ValueError, match=r"^beta_max: a number is needed, got a function; .*beta_max=schedule"):
            dj.VariancePreserving(beta_max=schedule)


CASES = """
import jax, jax.numpy as jnp, numpy as np, diffjax as dj
from diffjax import data, inverse, likelihood, metrics, samplers, training, vae
key, p, ts = jax.random.key(0), dj.Cosine(), dj.uniform_grid(dj.Cosine(), np.int64(2))
x = dj.sample_n(key, p, lambda x, t: x, (2,), np.int64(3), ts=ts, stepper=dj.DDIM(), chunk=np.int32(2))
assert x.shape == (3, 2)
f = np.arange(12.).reshape(6, 2)
assert metrics.frechet_distance(metrics.feature_statistics(f), metrics.feature_statistics(f.tolist())) < 1e-9
assert metrics.sliced_wasserstein(key, f, f) == 0
m = metrics.feature_statistics(f)
network = dj.Network(None, lambda params, x, c_noise, cond, *, key=None: x)
vae_model = vae.VAE(network, network, vae.Bernoulli(), 2)
for call in (
    lambda: dj.sample_n(key, p, lambda x, t: x, (2,), 3.0, ts=ts, stepper=dj.DDIM()),
    lambda: dj.prior(key, p, 3),
    lambda: dj.uniform_grid(p, 3, ends=0.5),
    lambda: inverse.RePaint(np.ones(2), np.ones((1, 2)), times=3.0),
    lambda: data.two_moons()(0, 0, 8.0),
    lambda: metrics.frechet_distance(f, f),
    lambda: metrics.frechet_distance(m, f.tolist()),
    lambda: metrics.merge(f, f),
    lambda: metrics.feature_statistics(f[0]),
    lambda: metrics.feature_statistics(m),
    lambda: metrics.kernel_distance(m, m),
    lambda: metrics.precision_recall(f, None),
    lambda: metrics.density_coverage(f * 1j, f),
    lambda: metrics.nearest_distances("abc", f),
    lambda: metrics.nearest_distances(f, [[1, 2], [1]]),
    lambda: metrics.sliced_wasserstein(key, m, m),
    lambda: metrics.sliced_wasserstein(key, 3.0, f),
    lambda: metrics.sliced_wasserstein(key, f.astype(int), f),
    lambda: dj.DDIM(False),
    lambda: dj.uniform_grid(p, 3, ends=(True, 0.1)),
    lambda: dj.uniform_grid(p, 3, ends=(jnp.full(2, 0.9), 0.1)),
    lambda: dj.edm_grid(p, 3, ends=("0.9", 0.1)),
    lambda: samplers.langevin(key, lambda x: -x, jnp.ones((2, 1)), steps=3, step_size="0.1"),
    lambda: samplers.langevin(key, lambda x: -x, jnp.ones((2, 1)), steps=3, step_size=True),
    lambda: samplers.hmc(
        key, lambda x: -x[:, 0] ** 2, x[:, :1], steps=3, step_size=0.1, integration_steps=2, inverse_mass=1j
    ),
    lambda: vae.generate(vae_model, {}, key, jnp.arange(2), temperature="1"),
    lambda: vae.generate(vae_model, {}, key, jnp.arange(2), temperature=(1.0, None)),
    lambda: dj.process.diagonal_noise(True, f),
    lambda: likelihood.slerp(f, f, np.True_),
    lambda: training.Snapshots("nowhere", ["0.1"]),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""
STATISTICS = "are needed, got {}; take metrics.feature_statistics(features [n, d]) of them first"
FEATURES = "an array of real numbers [n, ...], a row an item, is needed, got "
SAID = [
    "n: a whole number is needed, got 3.0",
    "shape: a tuple of whole numbers is needed, such as (2, 2), got 3",
    "ends: a pair (t_max, t_min) of times is needed, got 0.5",
    "times: a whole number is needed, got 3.0",
    "size: a whole number is needed, got 8.0",
    "a: feature statistics " + STATISTICS.format("features of shape (6, 2)"),
    "b: feature statistics " + STATISTICS.format("list"),
    "parts: feature statistics " + STATISTICS.format("features of shape (6, 2)"),
    "features: a matrix [n, d] with a row is needed, got shape (2,); flatten them",
    f"features: {FEATURES}FeatureStatistics; `frechet_distance` and `merge` take feature statistics",
    f"x: {FEATURES}FeatureStatistics; `frechet_distance` and `merge` take feature statistics",
    f"reference: {FEATURES}object of shape ()",
    f"x: {FEATURES}complex128 of shape (6, 2)",
    f"x: {FEATURES}<U3 of shape ()",
    f"reference: {FEATURES}list",
    "x: an array of samples [b, *d] is needed, got FeatureStatistics",
    "x: an array of samples [b, *d] is needed, got a number of type float",
    "x: floating-point numbers are needed, got dtype int64; convert by x.astype(jnp.float32)",
    "eta: a number is needed, got False",
    "ends: a number is needed, got True",
    "ends: one number is needed, got an array of shape (2,)",
    "ends: a number is needed, got str: '0.9'",
    "step_size: a number is needed, got str: '0.1'",
    "step_size: a number is needed, got True",
    "inverse_mass: a number is needed, got 1j",
    "temperature: a number is needed, got str: '1'",
    "temperature: a number is needed, got NoneType: None",
    "g: a number is needed, got True",
    "weight: a number is needed, got dtype bool",
    "widths: a number is needed, got str: '0.1'",
]


def test_without_the_checks_of_types_that_tests_have():
    """Whole numbers, and what a metric takes."""
    done = subprocess.run([sys.executable, "-c", CASES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == SAID
