"""Freed memory is kept where devices are cores, and glibc is left alone elsewhere."""

import ctypes
import sys

import jax
import pytest

from diffjax.cli._memory import keep_memory


@pytest.fixture
def asked(monkeypatch):
    """What mallopt was asked, (option, value) of malloc.h."""
    found = []
    library = type("Library", (), {"mallopt": staticmethod(lambda option, value: found.append((option, value)))})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    return found


def test_on_a_cpu_of_linux(asked, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    keep_memory()
    # malloc.h: M_MMAP_MAX -4, none; M_TRIM_THRESHOLD -1, as high as an int goes; M_ARENA_MAX -8, one
    assert dict(asked) == {-4: 0, -1: 2**31 - 1, -8: 1}


@pytest.mark.parametrize(("platform", "backend"), [("darwin", "cpu"), ("linux", "gpu")])
def test_elsewhere_nothing(asked, monkeypatch, platform, backend):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    keep_memory()
    assert not asked
