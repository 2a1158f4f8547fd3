"""EDM2's network against one in torch that was written from the paper."""

import numpy as np
import own
import pytest
import tools
import torch_edm2 as theirs

from diffjax.networks import EDM2UNet

NAMES = list(theirs.CASES)


def make(config, dtype):
    return EDM2UNet(**own.tuples(config), dtype=dtype)


def inputs(config):
    classes = config.get("num_classes")
    labels = None if classes is None else np.array([classes, 1], np.int32)  # the first is the null label
    return own.images(tools.noise((2, 3, 8, 8), "x")), tools.noise((2,), "c_noise"), labels


@pytest.mark.parametrize("name", own.some_slow(NAMES, ["edm2_labels"]))
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
