"""U-ViT, written out in torch from the paper (Bao et al. 2023, section 3.1 and figure 1)."""

import contextlib

import numpy as np
import tools
from doubles import doubles, fill

SMALL = {"width": 16, "depth": 5, "heads": 2, "patch": 2, "size": [4, 6]}
CASES = {
    "uvit-plain": SMALL,
    "uvit-labels": {**SMALL, "num_classes": 4, "heads": 4},
    "uvit-text": {**SMALL, "text_width": 6, "depth": 3},
    "uvit-pixels": {**SMALL, "patch": 1, "size": [3, 5], "qkv_bias": True, "heads": 1},
    "uvit-channels": {**SMALL, "out_channels": 5, "mlp_ratio": 2.0, "num_classes": 2, "depth": 3},
    "uvit-large-patch": {**SMALL, "patch": 4, "size": [8, 4], "text_width": 3, "qkv_bias": True, "depth": 3},
}


def inputs(name, config):
    """x [3, h, w, 3], c_noise [3] and the condition, NumPy float64."""
    x, c_noise = tools.noise((3, *config["size"], 3), name + "x"), np.array([0.0, 7.0, 420.0])
    if "num_classes" in config:
        return x, c_noise, np.array([0, 1, config["num_classes"]])
    if "text_width" in config:
        mask = np.array([[True, True, True, False], [True, False, True, True], [False] * 4])
        return x, c_noise, (tools.noise((3, 4, config["text_width"]), name + "cond"), mask)
    return x, c_noise, None


def build(config, dtype="float64"):
    """The torch network, its weights made from their names, and {key: shape}."""
    with doubles() if dtype == "float64" else contextlib.nullcontext():
        from written_uvit import TorchUViT

        return fill(TorchUViT(config))


def apply(network, name, config, dtype="float64"):
    """y [3, h, w, k] of a torch network on the inputs of a case."""
    import torch

    x, c_noise, cond = inputs(name, config)
    as_torch = lambda a: torch.from_numpy(a).to(getattr(torch, dtype) if a.dtype == np.float64 else None)
    x, c_noise = as_torch(x).permute(0, 3, 1, 2), as_torch(c_noise)
    cond = None if cond is None else tuple(map(as_torch, cond)) if isinstance(cond, tuple) else as_torch(cond)
    with torch.no_grad(), doubles() if dtype == "float64" else contextlib.nullcontext():
        return network(x, c_noise, cond).permute(0, 2, 3, 1).numpy()


def reference(name, config):
    network, shapes = build(config)
    return shapes, {"y": apply(network, name, config)}
