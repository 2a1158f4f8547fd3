"""Compiled programs are kept in a folder of the user's own, and in no other."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from diffjax.cli import keep_compiled


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """What JAX was told, by name; the cache of the user is a temporary folder."""
    told, update = {}, jax.config.update
    # As if JAX had been told nothing: other tests of this process may have named a folder, and conftest says none.
    fresh = {"jax_enable_compilation_cache": True, "jax_compilation_cache_dir": None}
    before = {name: getattr(jax.config, name) for name in fresh}
    for name, value in fresh.items():
        update(name, value)
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield told
    for name, value in before.items():
        update(name, value)


def test_by_default_a_private_folder_of_the_users(kept, tmp_path):
    keep_compiled(None)
    folder = kept["jax_compilation_cache_dir"]
    assert folder.startswith(str(tmp_path / "cache" / "diffjax" / "compiled-"))
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_none_keeps_nothing(kept, tmp_path):
    keep_compiled("none")
    assert not kept
    assert not (tmp_path / "cache").exists()


def test_several_processes_keep_nothing_unless_told_a_folder(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    keep_compiled(None)
    assert not kept
    keep_compiled(str(tmp_path / "own"))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "own")


def test_a_folder_that_others_may_write_in_is_refused(kept, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ValueError, match=r"compile-cache: .*shared can be written by others"):
        keep_compiled(str(shared))
    shared.chmod(0o755)
    keep_compiled(str(shared))
    assert kept["jax_compilation_cache_dir"] == str(shared)


def test_a_cache_of_the_users_that_others_may_write_in_is_not_used(kept):
    keep_compiled(None)
    os.chmod(kept.pop("jax_compilation_cache_dir"), 0o770)
    kept.clear()
    keep_compiled(None)
    assert not kept


def test_programs_that_are_a_month_old_are_deleted(kept, tmp_path):
    (tmp_path / "own").mkdir(mode=0o700)
    old, new, other = (
        tmp_path / "own" / name for name in (f"jit_f-{'0' * 64}-cache", f"pmap_f-{'a' * 64}-cache", "thesis.tex")
    )
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, time.time() - 31 * 86400))
    keep_compiled(str(tmp_path / "own"))
    assert new.exists()
    assert not old.exists()
    assert other.exists()


@pytest.mark.slow
def test_a_command_leaves_its_programs_there(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    size = ["--steps", "2", "--batch-size", "8", "--network.width", "8", "--network.depth", "1"]
    command = [sys.executable, "-m", "diffjax.cli", "train", "toy2d", *size, "--out", str(tmp_path / "run")]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    assert len(list(tmp_path.glob("diffjax/compiled-*/*"))) > 1


CHANGED = """
import sys, jax
from jax import monitoring
found = []
monitoring.register_event_listener(lambda name, **_: found.append(name.rpartition("/")[2]))
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
f = jax.jit(lambda x: {body})
print(f(3.0), "cache_hits" in found, "cache_misses" in found)
"""


def test_a_function_that_changed_is_compiled_anew(tmp_path):
    """Each in a new process, as two runs of the tests are: the cache of conftest's settings answers by the program."""

    def answer(body):
        command = [sys.executable, "-c", CHANGED.format(body=body), str(tmp_path)]
        environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "true"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
        return done.stdout.split()

    assert answer("x * 2 + 1") == ["7.0", "False", "True"]
    assert answer("x * 2 + 1") == ["7.0", "True", "False"]
    assert answer("x * 2 + 2") == ["8.0", "False", "True"]


CONFTEST = """
import importlib, os, sys
for choice, home in (("off", "kept"), ("on", "/proc/none"), ("on", "kept")):
    os.environ |= {"DIFFJAX_TEST_CACHE": choice, "XDG_CACHE_HOME": os.path.abspath(home)}
    importlib.reload(sys.modules["conftest"]) if "conftest" in sys.modules else importlib.import_module("conftest")
    config = sys.modules["jax"].config
    print(config.jax_enable_compilation_cache, config.jax_compilation_cache_dir)
"""


@pytest.mark.slow
def test_the_tests_keep_their_programs_in_a_folder_of_their_own_or_none(tmp_path):
    """None where the variable says off, or the folder cannot be made."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "DIFFJAX_"))}
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    run = {"cwd": tmp_path, "env": environment, "check": True, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", CONFTEST], **run)
    off, unwritable, kept = done.stdout.split("\n")[:3]
    assert (off, unwritable) == ("False None", "True None")
    assert kept.startswith(f"True {tmp_path / 'kept' / 'diffjax' / 'tests-'}")
