"""`UNet` and `Classifier` against their diagrams in torch."""

import numpy as np
import own
import pytest
import torch_unet as theirs

from diffjax import networks

NAMES = list(theirs.CASES)


def make(config, dtype):
    fields = {
        key: value for key, value in own.tuples(config).items() if key not in ("kind", "size", "cond", "no_noise")
    }
    return getattr(networks, config["kind"])(**fields, dtype=dtype)


def inputs(config):
    x, c_noise, cond = theirs.inputs(config)
    if config["kind"] == "UNet" and "num_classes" in config:
        cond = np.array([config["num_classes"], 1], np.int32)  # the first is the null label
    return own.images(x), c_noise, cond


@pytest.mark.parametrize("name", own.some_slow(NAMES, ["unet_one_level", "classifier_odd"]))
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
