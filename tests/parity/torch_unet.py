"""`UNet` and `Classifier` in torch, from their diagrams: blocks told by scale and shift, self-attention, odd sizes."""

import math

import tools
from torch_mlp import Net as Perceptron

torch, F = tools.optional("torch"), tools.optional("torch.nn.functional")

SMALL = {"kind": "UNet", "channels": [8, 16], "blocks": 1, "attention": [1], "head_channels": 8}
IMAGES = {"kind": "Classifier", "num_classes": 3, "channels": [8, 16]}
CASES = {
    "unet_labels": SMALL | {"num_classes": 3, "size": [7, 6]},
    "unet_vector": SMALL | {"cond": 5, "attention": [], "size": [4, 4]},
    "unet_odd": SMALL | {"channels": [8, 8, 16], "attention": [0, 2], "size": [7, 5]},
    "unet_heads": SMALL | {"head_channels": 4, "attention": [0, 1], "blocks": 2, "size": [4, 6]},
    "unet_one_level": SMALL | {"channels": [8], "attention": [], "out_channels": 5, "size": [3, 4]},
    "classifier_odd": IMAGES | {"size": [7, 6]},
    "classifier_no_noise": IMAGES | {"no_noise": True, "size": [4, 4]},
    "classifier_three": IMAGES | {"channels": [8, 8, 16], "blocks": 2, "size": [5, 9]},
    "classifier_one_level": IMAGES | {"channels": [8], "num_classes": 1, "size": [3, 3]},
}


def inputs(config):
    """Images [2, 3, h, w], c_noise [2] and a vector [2, k], None where there is none."""
    c_noise = None if "no_noise" in config else tools.noise((2,), "c_noise")
    cond = tools.noise((2, config["cond"]), "cond") if "cond" in config else None
    return tools.noise((2, 3, *config["size"]), "x"), c_noise, cond


def reference(name, config):
    net = Net(config)
    return net.shapes, {"y": run(net, config)}


def answer(config, tensors):
    return run(Net(config, tensors), config)


def run(net, config):
    x, c_noise, cond = (None if array is None else torch.tensor(array) for array in inputs(config))
    return (net.unet(x, c_noise, cond) if config["kind"] == "UNet" else net.classifier(x, c_noise)).numpy()


class Net(Perceptron):
    """Linear layers and what is told are the perceptron's; weights are made as they are asked for."""

    def unet(self, x, c_noise, cond):
        c = self.config
        widths = c["channels"]
        told = self.told(c_noise, cond, 4 * widths[0], c.get("num_classes"))
        h = self.conv("in", x, widths[0])
        skips = [h]
        for level, width in enumerate(widths):
            if level:
                h = self.conv(f"halve_{level}", h, h.shape[1], stride=2)
                skips.append(h)
            for i in range(c["blocks"]):
                h = self.stage(f"down_{level}_{i}", h, told, width, level)
                skips.append(h)
        h = self.block("middle_1", h, told, widths[-1])
        h = self.attend("middle_attention", h)
        h = self.block("middle_2", h, told, widths[-1])
        for level in reversed(range(len(widths))):
            for i in range(c["blocks"] + 1):
                h = self.stage(f"up_{level}_{i}", torch.cat([h, skips.pop()], 1), told, widths[level], level)
            if level:
                rows, columns = skips[-1].shape[2:]
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :rows, :columns]
                h = self.conv(f"double_{level}", h, h.shape[1])
        return self.conv("out", F.silu(self.norm("norm", h)), c.get("out_channels", 3))

    def classifier(self, x, c_noise):
        c = self.config
        c_noise = torch.zeros(len(x), dtype=x.dtype) if c_noise is None else c_noise
        told = self.told(c_noise, None, c["channels"][0], None, "body.conditioning")
        h = self.conv("body.in", x, c["channels"][0])
        for level, width in enumerate(c["channels"]):
            if level:
                h = self.conv(f"body.halve.{level}", h, width, stride=2)
            for i in range(c.get("blocks", 1)):
                h = self.block(f"body.blocks.{level}.{i}", h, told, width)
        features = F.silu(self.norm("body.norm", h)).mean((2, 3))
        return self.linear("logits", features, c["num_classes"])

    def conv(self, key, x, out, size=3, stride=1):
        pad = []  # last axis first; what does not divide evenly goes after
        for n in reversed(x.shape[2:]):
            missing = max((math.ceil(n / stride) - 1) * stride + size - n, 0)
            pad += [missing // 2, missing - missing // 2]
        weight, bias = self.weight(f"{key}.weight", out, x.shape[1], size, size), self.weight(f"{key}.bias", out)
        return F.conv2d(F.pad(x, pad), weight, bias, stride)

    def norm(self, key, x):
        channels = x.shape[1]
        groups = math.gcd(channels, max(1, min(32, channels // 4)))
        return F.group_norm(x, groups, self.weight(f"{key}.weight", channels), self.weight(f"{key}.bias", channels))

    def block(self, key, x, told, out):
        h = self.conv(f"{key}.conv_1", F.silu(self.norm(f"{key}.norm_1", x)), out)
        scale, shift = self.linear(f"{key}.modulate", told, 2 * out)[:, :, None, None].chunk(2, 1)
        h = F.silu(self.norm(f"{key}.norm_2", h) * (1 + scale) + shift)
        h = self.conv(f"{key}.conv_2", h, out)
        return h + (self.conv(f"{key}.skip", x, out, size=1) if x.shape[1] != out else x)

    def stage(self, key, h, told, width, level):
        h = self.block(key, h, told, width)
        return self.attend(f"{key}_attention", h) if level in self.config["attention"] else h

    def attend(self, key, x):
        channels = x.shape[1]
        heads = math.gcd(channels, max(1, channels // self.config["head_channels"]))
        h = self.norm(f"{key}.norm", x).flatten(2).transpose(1, 2)
        q, k, v = (part.unflatten(2, (heads, -1)) for part in self.linear(f"{key}.qkv", h, 3 * channels).chunk(3, 2))
        logits = torch.einsum("bnhk,bmhk->bhnm", q, k) / math.sqrt(channels // heads)
        h = torch.einsum("bhnm,bmhk->bnhk", torch.softmax(logits, -1), v).flatten(2)
        return x + self.linear(f"{key}.out", h, channels).transpose(1, 2).reshape(x.shape)
