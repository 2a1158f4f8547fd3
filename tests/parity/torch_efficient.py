"""Imagen's Efficient U-Net in torch, from the paper's figures A.27-A.30 and the diagram of our own file."""

import math

import numpy as np
import tools

torch, F = tools.optional("torch"), tools.optional("torch.nn.functional")

TOKENS, WIDTH = 5, 6
SMALL = {
    "channels": [8, 16],
    "blocks": [1, 2],
    "strides": [2, 2],
    "attention": [1],
    "text_attention": [1],
    "head_channels": 8,
}
CASES = {
    "efficient_cascade": SMALL | {"text_width": WIDTH, "low_resolution": True, "size": [8, 8], "small": [4, 4]},
    "efficient_plain": SMALL | {"size": [8, 8]},
    "efficient_odd": SMALL | {"low_resolution": True, "size": [7, 10], "small": [3, 4]},
    "efficient_heads": SMALL | {"head_channels": 4, "attention": [0, 1], "size": [8, 8]},
    "efficient_text_alone": SMALL | {"text_width": WIDTH, "attention": [], "text_attention": [0], "size": [8, 8]},
    "efficient_strides": SMALL | {"strides": [1, 2], "blocks": [2, 1], "text_width": WIDTH, "size": [6, 8]},
    "efficient_labels": SMALL | {"num_classes": 3, "size": [6, 6]},
    "efficient_labels_and_text": SMALL | {"num_classes": 2, "text_width": WIDTH, "size": [8, 8]},
    "efficient_three": SMALL
    | {"channels": [8, 8, 16], "blocks": [1, 1, 3], "strides": [2, 1, 2], "out_channels": 4, "size": [8, 8]},
}


def conditions(config):
    """(embedding, mask, low-resolution images, their noise level), None where there is none."""
    embedding = mask = small = level = None
    if "text_width" in config:
        embedding = tools.noise((2, TOKENS, WIDTH), "embedding")
        mask = np.array([[True, True, True, False, False], [False] * 5])
    if "small" in config:
        small, level = tools.noise((2, 3, *config["small"]), "small"), tools.noise((2,), "level")
    return embedding, mask, small, level


def labels(config):
    return [config["num_classes"], 1]  # the first is the null label


def reference(name, config):
    net = Net(config)
    return net.shapes, {"y": run(net, config)}


def answer(config, tensors):
    return run(Net(config, tensors), config)


def run(net, config):
    x, c_noise = tools.noise((2, 3, *config["size"]), "x"), tools.noise((2,), "c_noise")
    told = [None if part is None else torch.tensor(part) for part in conditions(config)]
    return net(torch.tensor(x), torch.tensor(c_noise), *told).numpy()


def waves(c, features):
    frequencies = torch.tensor((1 / 16) * 64 ** np.linspace(0, 1, features // 2))
    angle = 2 * math.pi * torch.outer(c, frequencies)
    return torch.cat([torch.cos(angle), torch.sin(angle)], 1)


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

    def conv(self, key, x, out, size, stride=1):
        total = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:]]
        top, left = total[0] // 2, total[1] // 2
        x = F.pad(x, (left, total[1] - left, top, total[0] - top))
        w, bias = self.weight(f"{key}.weight", out, x.shape[1], size, size), self.weight(f"{key}.bias", out)
        return F.conv2d(x, w, bias, stride)

    def group_norm(self, key, x):
        c = x.shape[1]
        groups = math.gcd(c, max(1, min(32, c // 4)))
        return F.group_norm(x, groups, self.weight(f"{key}.weight", c), self.weight(f"{key}.bias", c), 1e-5)

    def layer_norm(self, key, x):
        c = x.shape[-1]
        return F.layer_norm(x, (c,), self.weight(f"{key}.weight", c), self.weight(f"{key}.bias", c), 1e-5)

    def __call__(self, x, c_noise, embedding, mask, small, level):
        c = self.config
        widths = c["channels"]
        tokens = None
        if embedding is not None:
            null = self.weight("text.null", embedding.shape[-1]).expand(2, 1, -1)
            tokens = torch.cat([null, embedding], 1), torch.cat([~mask.any(1, keepdim=True), mask], 1)
        told = self.told(c_noise, level, tokens)
        h = x
        if small is not None:
            h = torch.cat([x, F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False)], 1)
        h = self.conv("in", h, widths[0], 3)
        sizes, skips = [], []
        for i, width in enumerate(widths):
            sizes.append(h.shape[2:])
            h = self.conv(f"down.{i}.conv", h, width, 3, c["strides"][i])
            for j in range(c["blocks"][i]):
                h = self.residual(f"down.{i}.resnets.{j}", h, told, width)
            h = self.attend(f"down.{i}.attention", h, tokens, i)
            skips.append(h * 0.5**0.5)
        for i in reversed(range(len(widths))):
            h = self.residual(f"up.{i}.enter", torch.cat([h, skips.pop()], 1), told, widths[i])
            for j in range(c["blocks"][i] - 1):
                h = self.residual(f"up.{i}.resnets.{j}", h, told, widths[i])
            h = self.attend(f"up.{i}.attention", h, tokens, i)
            if c["strides"][i] == 2:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : sizes[i][0], : sizes[i][1]]
            h = self.conv(f"up.{i}.conv", h, widths[max(i - 1, 0)], 3)
        return self.linear("out", h.permute(0, 2, 3, 1), c.get("out_channels", x.shape[1])).permute(0, 3, 1, 2)

    def told(self, c_noise, level, tokens):
        width = 4 * self.config["channels"][0]
        h = self.pair("told.noise", waves(c_noise, width), width)
        if level is not None:
            h = h + self.pair("told.low", waves(level, width), width)
        if tokens is not None:
            embedding = self.layer_norm("told.pool_norm", tokens[0])
            keys = self.linear("told.pool_key", embedding, embedding.shape[-1])
            logits = (keys * self.weight("told.pool_query", 1, keys.shape[-1])).sum(-1) / math.sqrt(keys.shape[-1])
            weights = torch.softmax(logits.masked_fill(~tokens[1], -torch.inf), -1)
            h = h + self.pair("told.text", torch.einsum("bn,bnk->bk", weights, embedding), width)
        if (classes := self.config.get("num_classes")) is not None:
            h = h + self.weight("told.classes", classes + 1, width)[labels(self.config)]
        return F.silu(h)

    def pair(self, key, h, width):
        return self.linear(f"{key}_out", F.silu(self.linear(f"{key}_in", h, width)), width)

    def residual(self, key, x, told, width):
        h = self.conv(f"{key}.conv_1", F.silu(self.group_norm(f"{key}.norm_1", x)), width, 3)
        scale, shift = self.linear(f"{key}.modulate", told, 2 * width)[:, :, None, None].chunk(2, 1)
        h = F.silu(self.group_norm(f"{key}.norm_2", h) * (1 + scale) + shift)
        h = self.conv(f"{key}.conv_2", h, width, 3)
        return h + (x if x.shape[1] == width else self.conv(f"{key}.skip", x, width, 1))

    def attend(self, key, x, tokens, i):
        own, text = i in self.config["attention"], i in self.config["text_attention"] and tokens is not None
        if not (own or text):
            return x
        b, c, height, width = x.shape
        d = self.config["head_channels"]
        h = self.group_norm(f"{key}.norm", x).flatten(2).transpose(1, 2)
        q, pairs, there = self.linear(f"{key}.q", h, c), [], []
        if own:
            pairs.append(self.linear(f"{key}.kv", h, 2 * c))
            there.append(torch.ones(b, height * width, dtype=torch.bool))
        if text:
            pairs.append(self.linear(f"{key}.text_kv", self.layer_norm(f"{key}.text_norm", tokens[0]), 2 * c))
            there.append(tokens[1])
        k, v = torch.cat(pairs, 1).chunk(2, -1)
        q, k, v = (z.reshape(b, -1, c // d, d) for z in (q, k, v))
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(d)
        weights = torch.softmax(logits.masked_fill(~torch.cat(there, 1)[:, None, None], -torch.inf), -1)
        h = self.linear(f"{key}.out", torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(b, -1, c), c)
        return x + h.transpose(1, 2).reshape(x.shape)
