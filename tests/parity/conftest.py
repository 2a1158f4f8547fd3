"""Parity with the torch originals: float64, and float32 where a test says so."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield
