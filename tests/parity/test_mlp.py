"""The perceptrons against their diagrams in torch."""

import numpy as np
import own
import tools
import torch_mlp as theirs

from diffjax import networks


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


test_frozen, test_frozen_in_float32, test_live = own.tests(theirs, make, inputs, quick=["mlp_labels", "mlp_plain"])
