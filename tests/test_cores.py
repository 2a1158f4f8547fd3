"""Where devices are cores: freed memory is kept (glibc is left alone elsewhere), and the layout is the fastest."""

import ctypes
import sys
from types import SimpleNamespace

import jax
import pytest

from diffjax.cli import default_layout, keep_memory


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


@pytest.mark.parametrize(
    ("platform", "devices", "processes", "layout"),
    [("cpu", 2, 1, "pmap"), ("cpu", 1, 1, "jit"), ("cpu", 2, 2, "jit"), ("gpu", 8, 1, "jit")],
)
def test_the_layout_where_none_was_said(monkeypatch, platform, devices, processes, layout):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert default_layout([SimpleNamespace(platform=platform)] * devices) == layout
