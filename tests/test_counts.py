"""Whole numbers are whole: each public argument that is a count refuses 10.0 and True by name, and takes NumPy's."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import config, networks, operators, samplers

PACKAGES = ["diffjax", *(f"diffjax.{m.name}" for m in pkgutil.iter_modules(dj.__path__) if not m.name.startswith("_"))]
APART = ("diffjax._arrays", "diffjax._typing", "diffjax.cli")
# Records that are made by us, and what is read from JSON or the command line: `check_config` looks at these.
RECORDS = {"FeatureStatistics", "Parts", "Pretrained", "Sampling", "Stage", "Layout", "Data", "Stopped", "Prefetch"}
RECORDS |= {"Samples", "Context", "Loaded", "TrainedRun", "Inpainting", "Setting", "Vocabulary"}
CONFIGS = {"Config", "DataConfig", "NetworkConfig", "OptimiserConfig", "SamplerConfig"}
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


def counted():
    """(name, callable, argument) for each, methods too, once."""
    found = {}
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
                found |= {(f"{ours}.{name}", p.name): part for p in parameters if whole(p.annotation)}
    return found


COUNTED = counted()


def test_every_count_refuses_what_is_no_whole_number():
    assert len(COUNTED) > 200
    for (_, argument), thing in COUNTED.items():  # a TypeError of other arguments: there is no check
        for wrong in (10.0, True, "10", np.float32(3), np.bool_(True)):
            expected = rf"^{argument}: (a |a tuple of )?whole numbers? (is|are) needed.*, got {re.escape(repr(wrong))}"
            with pytest.raises(ValueError, match=expected):
                thing(**{argument: wrong})


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


CASES = """
import jax, numpy as np, diffjax as dj
from diffjax import data, inverse, metrics, samplers
key, p, ts = jax.random.key(0), dj.Cosine(), dj.uniform_grid(dj.Cosine(), np.int64(2))
x = dj.sample_n(key, p, lambda x, t: x, (2,), np.int64(3), ts=ts, stepper=dj.DDIM(), chunk=np.int32(2))
assert x.shape == (3, 2)
f = np.arange(12.).reshape(6, 2)
assert metrics.frechet_distance(metrics.feature_statistics(f), metrics.feature_statistics(f.tolist())) < 1e-9
assert metrics.sliced_wasserstein(key, f, f) == 0
m = metrics.feature_statistics(f)
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
]


def test_without_the_checks_of_types_that_tests_have():
    """Whole numbers, and what a metric takes."""
    done = subprocess.run([sys.executable, "-c", CASES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == SAID
