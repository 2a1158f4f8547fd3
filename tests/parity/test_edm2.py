"""EDM2's network against one in torch that was written from the paper."""

import numpy as np
import own
import tools
import torch_edm2 as theirs

from diffjax.networks import EDM2UNet


def make(config, dtype):
    return EDM2UNet(**own.tuples(config), dtype=dtype)


def inputs(config):
    classes = config.get("num_classes")
    labels = None if classes is None else np.array([classes, 1], np.int32)  # the first is the null label
    return own.images(tools.noise((2, 3, 8, 8), "x")), tools.noise((2,), "c_noise"), labels


test_frozen, test_frozen_in_float32, test_live = own.tests(theirs, make, inputs, quick=["edm2_labels"])
