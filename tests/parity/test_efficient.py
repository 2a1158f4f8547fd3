"""Efficient U-Net against one in torch that was written from the paper."""

import numpy as np
import own
import tools
import torch_efficient as theirs

from diffjax.networks import Cascade, EfficientUNet, Text


def make(config, dtype):
    fields = {key: value for key, value in own.tuples(config).items() if key not in ("size", "small")}
    return EfficientUNet(**fields, dtype=dtype)


def inputs(config):
    text = small = level = label = cond = None
    if "num_classes" in config:
        cond = label = np.array(theirs.labels(config), np.int32)
    if "text_width" in config:
        mask = np.array([[True, True, True, False, False], [False] * 5])  # the second has no text
        cond = text = Text(tools.noise((2, 5, config["text_width"]), "embedding"), mask)
    if "small" in config:
        small, level = own.images(tools.noise((2, 3, *config["small"]), "small")), tools.noise((2,), "level")
        cond = Cascade(text, small, level, label)
    elif text is not None and label is not None:
        cond = Cascade(text, label=label)
    return own.images(tools.noise((2, 3, *config["size"]), "x")), tools.noise((2,), "c_noise"), cond


test_frozen, test_frozen_in_float32, test_live = own.tests(theirs, make, inputs, quick=["efficient_cascade"])
