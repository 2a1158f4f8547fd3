"""`UNet` and `Classifier` against their diagrams in torch."""

import numpy as np
import own
import torch_unet as theirs

from diffjax import networks


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


test_frozen, test_frozen_in_float32, test_live = own.tests(
    theirs, make, inputs, quick=["unet_one_level", "classifier_odd"]
)
