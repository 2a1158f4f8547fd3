"""Efficient U-Net against one in torch that was written from the paper."""

import numpy as np
import own
import pytest
import tools
import torch_efficient as theirs

from diffjax.networks import Cascade, EfficientUNet, Text

NAMES = list(theirs.CASES)


def make(config, dtype):
    fields = {key: value for key, value in own.tuples(config).items() if key not in ("size", "small")}
    return EfficientUNet(**fields, dtype=dtype)


def inputs(config):
    text = small = level = cond = None
    if "text_width" in config:
        mask = np.array([[True, True, True, False, False], [False] * 5])  # the second has no text
        cond = text = Text(tools.noise((2, 5, config["text_width"]), "embedding"), mask)
    if "small" in config:
        small, level = own.images(tools.noise((2, 3, *config["small"]), "small")), tools.noise((2,), "level")
        cond = Cascade(text, small, level)
    return own.images(tools.noise((2, 3, *config["size"]), "x")), tools.noise((2,), "c_noise"), cond


@pytest.mark.parametrize("name", own.some_slow(NAMES, ["efficient_cascade"]))
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
