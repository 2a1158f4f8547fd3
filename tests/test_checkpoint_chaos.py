"""The chaos scripts of checkpoints, a few trials each; the figures in their headers are of a hundred."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(name, *arguments):
    """What a script prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "chaos" / f"{name}.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kills():
    out = run("kill", "--trials", "5")
    assert "restored bit for bit: 5 of 5" in out
    assert "listed and broken: 0" in out


@pytest.mark.slow
def test_flipped_bits():
    out = run("bitflip", "--trials", "4")
    assert "\narray files: found 4 of 4" in f"\n{out}"
    assert "missed" not in out


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a tmpfs is mounted by root")
def test_full_disk():
    assert "with room again, saving goes on" in run("disk_full")
