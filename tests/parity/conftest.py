"""Parity with the torch originals: float64 (float32 where a test says so), and no silent change of dtype."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield
