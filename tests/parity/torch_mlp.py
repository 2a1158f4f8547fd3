"""The perceptrons in torch, from their diagrams: pre-norm residual blocks told by scale and shift; the plain one."""

import math

import numpy as np
import tools

torch, F = tools.optional("torch"), tools.optional("torch.nn.functional")

CASES = {
    "mlp_plane": {"kind": "MLP", "width": 8, "depth": 2, "shape": [2]},
    "mlp_labels": {"kind": "MLP", "width": 8, "depth": 1, "num_classes": 3, "shape": [3, 4]},
    "mlp_vector": {"kind": "MLP", "width": 12, "depth": 3, "shape": [5], "cond": 4},
    "mlp_shallow": {"kind": "MLP", "width": 6, "depth": 0, "shape": [1]},
    "mlp_axes": {"kind": "MLP", "width": 16, "depth": 2, "shape": [2, 1, 3, 2]},
    "mlp_number": {"kind": "MLP", "width": 10, "depth": 1, "shape": [3], "cond": 1},
    "mlp_plain": {"kind": "PlainMLP", "width": 8, "depth": 2, "shape": [2]},
    "mlp_plain_labels": {"kind": "PlainMLP", "width": 10, "depth": 1, "num_classes": 2, "shape": [2, 3]},
    "mlp_plain_vector": {"kind": "PlainMLP", "width": 8, "depth": 3, "shape": [4], "cond": 3},
    "mlp_plain_axes": {"kind": "PlainMLP", "width": 6, "depth": 2, "shape": [2, 2, 1, 3]},
    "mlp_plain_deep": {"kind": "PlainMLP", "width": 12, "depth": 5, "shape": [1]},
    "mlp_plain_one_class": {"kind": "PlainMLP", "width": 4, "depth": 2, "num_classes": 1, "shape": [3]},
}


def reference(name, config):
    net = Net(config)
    return net.shapes, {"y": run(net, config)}


def answer(config, tensors):
    return run(Net(config, tensors), config)


def run(net, config):
    x, c_noise = tools.noise((2, *config["shape"]), "x"), tools.noise((2,), "c_noise")
    cond = torch.tensor(tools.noise((2, config["cond"]), "cond")) if "cond" in config else None
    return net(torch.tensor(x), torch.tensor(c_noise), cond).numpy()


class Net:
    """Weights are made as they are asked for, and their shapes noted."""

    def __init__(self, config, tensors=None):
        self.config, self.tensors, self.shapes = config, tensors, {}

    def weight(self, key, *shape):
        self.shapes[key] = shape
        found = tools.weights({key: shape})[key] if self.tensors is None else self.tensors[key]
        return torch.tensor(found)

    def linear(self, key, x, out):
        return F.linear(x, self.weight(f"{key}.weight", out, x.shape[-1]), self.weight(f"{key}.bias", out))

    def __call__(self, x, c_noise, cond):
        width, flat = self.config["width"], x.flatten(1)
        told = self.told(c_noise, cond, width, self.config.get("num_classes"))
        chain = self.residual if self.config["kind"] == "MLP" else self.plain
        return self.linear("out", chain(flat, told, width), flat.shape[1]).reshape(x.shape)

    def told(self, c_noise, cond, width, classes, name="conditioning"):
        frequencies = torch.tensor((1 / 16) * 64 ** np.linspace(0, 1, width // 2))
        angle = 2 * math.pi * torch.outer(c_noise, frequencies)
        h = self.linear(f"{name}.noise_in", torch.cat([torch.cos(angle), torch.sin(angle)], 1), width)
        h = self.linear(f"{name}.noise_out", F.silu(h), width)
        if classes is not None:
            h = h + self.weight(f"{name}.classes", classes + 1, width)[[classes, 1]]
        elif cond is not None:
            h = h + self.linear(f"{name}.cond", cond, width)
        return F.silu(h)

    def residual(self, flat, told, width):
        h = self.linear("in", flat, width)
        for i in range(self.config["depth"]):
            scale, shift = self.linear(f"blocks.{i}.modulate", told, 2 * width).chunk(2, 1)
            branch = F.layer_norm(h, (width,), eps=1e-6) * (1 + scale) + shift
            h = h + self.linear(f"blocks.{i}.close", F.silu(self.linear(f"blocks.{i}.hidden", branch, width)), width)
        return F.silu(F.layer_norm(h, (width,), eps=1e-6))

    def plain(self, flat, told, width):
        h = torch.cat([flat, told], 1)
        for i in range(self.config["depth"]):
            name = f"layers.{i - 1}" if i else "first"
            h = F.silu(self.linear(f"{name}.hidden", h, width))
        return h
