"""Every test runs on eight CPU devices, in the float32 that users have; `truth/` turns float64 on for itself.

Most of the time goes into compiling programs that run once, so they are compiled without optimisation, which halves it.
XLA_FLAGS=--xla_backend_optimization_level=3 has them compiled as users do: so does `.ci/run` for the slow tests and
those of float32. What a test compiles by `quick_jit` is never optimised.

Compiled programs are kept in ~/.cache/diffjax/tests-MACHINE from one run to the next: JAX finds one by a hash of the
program itself, the versions of jaxlib and XLA, the flags and the devices, so that a function that changed is compiled
anew (test_compiled.py). DIFFJAX_TEST_CACHE=off keeps nothing, nor does a home that cannot be written to. Processes
that tests start do not take part.

A process may map so many pieces of memory and no more (vm.max_map_count of Linux, 65,530), and each compiled program is
a few of them: beyond it XLA crashes. So compiled programs are dropped from memory when half of them are there.

Of the properties that are tested over every process, method, loss or record, a third of the cases are in the default
suite and the others are slow: `THINNED` names the files.
"""

import collections
import contextlib
import importlib.metadata
import itertools
import os
import pathlib
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # a newer one does not know it, and would abort
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # tests neither read nor fill the user's own cache

from jaxtyping import install_import_hook

# Shapes and dtypes of every public signature are checked while tests run. Flax modules check themselves.
_CHECKED = (
    "_arrays",
    "_numbers",
    "analytic",
    "flow_maps",
    "gan",
    "guidance",
    "inverse",
    "likelihood",
    "losses",
    "metrics",
    "operators",
    "parameterisation",
    "process",
    "samplers",
    "vae",
)
install_import_hook([f"diffjax.{name}" for name in _CHECKED], "beartype.beartype")

import jax

from diffjax.cli import cache_folder, keep_compiled

HERE = pathlib.Path(__file__).parent

if os.environ.get("DIFFJAX_TEST_CACHE", "on") != "off":
    jax.config.update("jax_enable_compilation_cache", True)
    with contextlib.suppress(ValueError, RuntimeError):  # no home, or no folder there that is the user's own
        keep_compiled(str(cache_folder("tests")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

import pytest

THINNED = ("truth/", "golden/", "parity/", "test_keys.py", "test_round_trips.py", "test_traced.py")
THINNED += ("test_config_losses.py", "test_flow_map_layouts.py", "test_networks_second_time.py", "test_objectives.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks two cases of three of a thinned test slow: always the same ones, by a hash of their names."""
    families = collections.defaultdict(list)
    for item in items:
        path = item.path.relative_to(HERE).as_posix()
        if path.startswith(THINNED) and item.get_closest_marker("slow") is None:
            families[path, item.originalname].append(item)
    for cases in families.values():
        cases.sort(key=lambda item: zlib.crc32(item.name.encode()))
        for item in cases[-(-len(cases) // 3) :]:
            item.add_marker(pytest.mark.slow)


_TESTS = itertools.count(1)


def pytest_runtest_teardown():
    """Drops compiled programs before they are too many for one process."""
    if next(_TESTS) % 10 == 0:
        with contextlib.suppress(OSError, ValueError):  # no Linux
            limit = int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
            with open("/proc/self/maps", "rb") as maps:
                pieces = sum(1 for _ in maps)
            if pieces > limit // 2:
                jax.clear_caches()


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """A finished run on the conditional mixture, by `command_line.TRAIN`; nobody may change it."""
    from command_line import TRAIN

    from diffjax.cli import main

    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return folder
