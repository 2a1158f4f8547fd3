"""diffusers' DiTTransformer2DModel; and DiTs with text, made of its layers or written out, which it does not have."""

import contextlib

import numpy as np
import tools
from doubles import doubles, fill

# Configurations as diffusers has them, with "size" (height, width).
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 3, "sample_size": 8}
SMALL |= {"num_embeds_ada_norm": 4, "size": [8, 8]}
DIFFUSERS = {
    "dit-sigma": {**SMALL, "out_channels": 6},
    "dit-gated": {**SMALL, "activation_fn": "geglu", "norm_elementwise_affine": True, "norm_eps": 1e-3},
    "dit-larger": {**SMALL, "size": [12, 12], "activation_fn": "gelu", "num_attention_heads": 3},
    "dit-no-bias": {**SMALL, "attention_bias": False, "activation_fn": "swiglu", "patch_size": 4, "num_layers": 1},
    "dit-pixels": {**SMALL, "patch_size": 1, "size": [5, 5], "sample_size": 5, "activation_fn": "linear-silu"},
    "dit-heads": {**SMALL, "num_attention_heads": 4, "attention_head_dim": 4, "activation_fn": "geglu-approximate"},
}
# Fields of our DiT; "cond" is what it is told.
OWN = {"width": 16, "depth": 2, "heads": 2, "patch": 2, "size": [4, 6]}
TEXT = {**OWN, "text_width": 6, "cond": "text"}
WRITTEN = {
    "dit-labels": {**OWN, "num_classes": 4, "cond": "label", "qk_norm": True},
    "dit-vector": {**OWN, "cond": "vector", "rope": 100.0, "depth": 3},
    "dit-learned": {**OWN, "learned_positions": True, "out_channels": 4, "norm_affine": True, "heads": 4},
    "dit-cross": {**TEXT, "qk_norm": True},
    "dit-cross-rope": {**TEXT, "rope": 20.0, "qk_norm": True, "heads": 1, "patch": 1, "size": [5, 3]},
    "dit-joint": {**TEXT, "joint": True, "heads": 4},
    "dit-joint-norm": {**TEXT, "joint": True, "qk_norm": True, "depth": 3, "learned_positions": True},
    "dit-joint-rope": {**TEXT, "joint": True, "qk_norm": True, "rope": 100.0, "depth": 1},
}
CASES = DIFFUSERS | WRITTEN


def inputs(name, config):
    """x [3, h, w, c], c_noise [3] and the condition, NumPy float64."""
    x = tools.noise((3, *config["size"], config.get("in_channels", 3)), name + "x")
    if "sample_size" in config:
        return x, np.array([0.0, 7.0, 999.0]), np.array([0, 2, config["num_embeds_ada_norm"]])
    kind, c_noise = config.get("cond"), np.array([-2.0, 0.1, 1.5])
    if kind == "label":
        return x, c_noise, np.array([0, 2, config["num_classes"]])
    if kind == "vector":
        return x, c_noise, tools.noise((3, 5), name + "cond")
    if kind == "text":
        mask = np.array([[True, True, True, False], [True, False, True, True], [False] * 4])
        return x, c_noise, (tools.noise((3, 4, config["text_width"]), name + "cond"), mask)
    return x, c_noise, None


def build(config, dtype="float64"):
    """The torch network, its weights made from their names, and {key: shape}."""
    with doubles() if dtype == "float64" else contextlib.nullcontext():
        if "sample_size" in config:
            from diffusers import DiTTransformer2DModel

            network = DiTTransformer2DModel(**{key: value for key, value in config.items() if key != "size"})
        else:
            from written_dit import TorchDiT

            network = TorchDiT(config, config["size"], config.get("cond"))
        return fill(network)


def apply(network, name, config, dtype="float64"):
    """y [3, h, w, k] of a torch network on the inputs of a case."""
    import torch

    x, c_noise, cond = inputs(name, config)
    as_torch = lambda a: torch.from_numpy(a).to(getattr(torch, dtype) if a.dtype == np.float64 else None)
    x, c_noise = as_torch(x).permute(0, 3, 1, 2), as_torch(c_noise)
    cond = None if cond is None else tuple(map(as_torch, cond)) if isinstance(cond, tuple) else as_torch(cond)
    with torch.no_grad(), doubles() if dtype == "float64" else contextlib.nullcontext():
        y = network(x, c_noise, cond)
    return (y.sample if hasattr(y, "sample") else y).permute(0, 2, 3, 1).numpy()


def reference(name, config):
    network, shapes = build(config)
    return shapes, {"y": apply(network, name, config)}
