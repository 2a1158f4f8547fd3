"""The perceptrons against their diagrams in torch."""

import numpy as np
import own
import pytest
import tools
import torch_mlp as theirs

from diffjax import networks

NAMES = list(theirs.CASES)


def make(config, dtype):
    fields = {key: value for key, value in config.items() if key not in ("kind", "shape", "cond")}
    return getattr(networks, config["kind"])(**fields, dtype=dtype)


def inputs(config):
    cond, classes = None, config.get("num_classes")
    if classes is not None:
        cond = np.array([classes, 1], np.int32)  # the first is the null label
    elif "cond" in config:
        cond = tools.noise((2, config["cond"]), "cond")
    return tools.noise((2, *config["shape"]), "x"), tools.noise((2,), "c_noise"), cond


@pytest.mark.parametrize("name", own.some_slow(NAMES, ["mlp_labels", "mlp_plain"]))
def test_is_the_frozen_reference(name):
    own.check_frozen(theirs, name, make, inputs, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_is_the_frozen_reference_in_float32(name):
    own.check_frozen(theirs, name, make, inputs, np.float32)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_is_the_live_reference_there_and_back(name):
    own.check_live(theirs, name, make, inputs)
