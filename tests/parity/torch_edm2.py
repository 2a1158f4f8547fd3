"""EDM2's network in torch, from the paper's figures and equations alone (Karras et al. 2024, section 2, appendix B)."""

import math

import tools

torch, F = tools.optional("torch"), tools.optional("torch.nn.functional")

SIZE = (2, 3, 8, 8)
SMALL = {"channels": [8, 16], "blocks": 1, "attention": [1], "head_channels": 8}
CASES = {
    "edm2_labels": SMALL | {"num_classes": 3},
    "edm2_plain": SMALL | {"attention": []},
    "edm2_heads": SMALL | {"head_channels": 4, "attention": [0, 1]},
    "edm2_three_levels": SMALL | {"channels": [8, 8, 16], "blocks": 2, "attention": [2]},
    "edm2_balances": SMALL | {"residual_balance": 0.4, "attention_balance": 0.2, "skip_balance": 0.6},
    "edm2_label_balance": SMALL | {"num_classes": 2, "label_balance": 0.3, "out_channels": 4},
}


def reference(name, config):
    net = Net(config)
    return net.shapes, {"y": run(net, config)}


def answer(config, tensors):
    """The output for tensors of our own, for the way back."""
    return run(Net(config, tensors), config)


def run(net, config):
    classes = config.get("num_classes")
    labels = None if classes is None else [classes, 1]  # the first is the null label
    x, c_noise = tools.noise(SIZE, "x"), tools.noise(SIZE[:1], "c_noise")
    return net(torch.tensor(x), torch.tensor(c_noise), labels).numpy()


def normalised(x, dims):
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    count = math.prod(x.shape[i] for i in dims)
    return x / (1e-4 + length / math.sqrt(count))


def blend(a, b, t):
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def swish(x):
    return x * torch.sigmoid(x) / 0.596


class Net:
    """Weights are made as they are asked for, and their shapes noted."""

    def __init__(self, config, tensors=None):
        self.config = {
            "residual_balance": 0.3,
            "attention_balance": 0.3,
            "skip_balance": 0.5,
            "label_balance": 0.5,
            "out_channels": SIZE[1],
        } | config
        self.tensors, self.shapes = tensors, {}

    def weight(self, key, *shape):
        self.shapes[key] = shape
        found = tools.weights({key: shape})[key] if self.tensors is None else self.tensors[key]
        return torch.tensor(found)

    def layer(self, key, x, out, size):
        shape = (out, x.shape[1]) + ((size, size) if size else ())
        w = self.weight(f"{key}.weight", *shape)
        w = normalised(w, tuple(range(1, w.ndim))) / math.sqrt(math.prod(shape[1:]))
        return F.conv2d(x, w, padding=size // 2) if size else F.linear(x, w)

    def __call__(self, x, c_noise, labels=None):
        c = self.config
        told = self.told(c_noise, labels)
        widths = c["channels"]
        last = len(widths) - 1
        h = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        h = self.layer("in", h, widths[0], 3)
        skips = [h]
        for level, width in enumerate(widths):
            if level:
                h = self.encoder(f"halve.{level}", F.avg_pool2d(h, 2), told, h.shape[1], False)
                skips.append(h)
            for i in range(c["blocks"]):
                h = self.encoder(f"encoder.{level}.{i}", h, told, width, level in c["attention"])
                skips.append(h)
        h = self.decoder("middle.0", h, told, widths[-1], True)
        h = self.decoder("middle.1", h, told, widths[-1], False)
        for level in range(last, -1, -1):
            for i in range(c["blocks"] + 1):
                h = self.side_by_side(h, skips.pop())
                h = self.decoder(f"decoder.{level}.{i}", h, told, widths[level], level in c["attention"])
            if level:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
                h = self.decoder(f"double.{level}", h, told, h.shape[1], False)
        return self.layer("out", h, c["out_channels"], 3) * self.weight("gain")

    def told(self, c_noise, labels):
        c = self.config
        width = max(c["channels"])
        frequencies = self.weight("told.fourier.frequencies", c["channels"][0])
        phases = self.weight("told.fourier.phases", c["channels"][0])
        h = math.sqrt(2) * torch.cos(2 * math.pi * (torch.outer(c_noise, frequencies) + phases))
        h = self.layer("told.noise", h, width, 0)
        if labels is not None:
            rows = c["num_classes"] + 1
            hot = F.one_hot(torch.tensor(labels), rows).double() * math.sqrt(rows)
            h = blend(h, self.layer("told.label", hot, width, 0), c["label_balance"])
        return swish(h)

    def side_by_side(self, a, b):
        t, n, m = self.config["skip_balance"], a.shape[1], b.shape[1]
        both = torch.cat([(1 - t) / math.sqrt(n) * a, t / math.sqrt(m) * b], 1)
        return math.sqrt((n + m) / ((1 - t) ** 2 + t**2)) * both

    def encoder(self, key, x, told, width, attend):
        if x.shape[1] != width:
            x = self.layer(f"{key}.skip", x, width, 1)
        x = normalised(x, (1,))
        return self.finish(key, x, self.branch(key, x, told, width), attend)

    def decoder(self, key, x, told, width, attend):
        h = self.branch(key, x, told, width)
        if x.shape[1] != width:
            x = self.layer(f"{key}.skip", x, width, 1)
        return self.finish(key, x, h, attend)

    def branch(self, key, x, told, width):
        h = self.layer(f"{key}.conv_1", swish(x), width, 3)
        scale = self.layer(f"{key}.told", told, width, 0) * self.weight(f"{key}.gain") + 1
        return self.layer(f"{key}.conv_2", swish(h * scale[:, :, None, None]), width, 3)

    def finish(self, key, x, h, attend):
        x = blend(x, h, self.config["residual_balance"])
        if not attend:
            return x
        b, width, height, breadth = x.shape
        d = self.config["head_channels"]
        q, k, v = self.layer(f"{key}.qkv", x, 3 * width, 1).reshape(b, 3, width // d, d, -1).unbind(1)
        q, k, v = (normalised(z, (2,)) for z in (q, k, v))
        weights = torch.softmax(torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(d), -1)
        h = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(b, width, height, breadth)
        return blend(x, self.layer(f"{key}.attention_out", h, width, 1), self.config["attention_balance"])
