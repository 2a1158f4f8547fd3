"""FID's Inception v3 in torch by plain functional calls, from the paper's figures 4-7 and table 1 and the known
differences of the 2015-12-05 weights: means without the padding, and in the last block a maximum."""

import tools

torch, F = tools.optional("torch"), tools.optional("torch.nn.functional")

CASES = {
    "inception_smallest": {"size": [75, 75], "resize": False},
    "inception_odd": {"size": [83, 96], "resize": False},
    "inception_of_8": {"size": [8, 8], "resize": True},
    "inception_of_32": {"size": [32, 32], "resize": True},
    "inception_of_a_pixel_row": {"size": [1, 40], "resize": True},
    "inception_from_above": {"size": [310, 331], "resize": True},
}
SAMPLES = 16


def reference(name, config):
    net = Net()
    seen = net(image(config), config["resize"])
    return net.shapes, {layer: tools.pick(value.numpy(), layer, SAMPLES) for layer, value in seen.items()}


def image(config):
    return torch.tensor(tools.noise((1, 3, *config["size"]), "image")).clamp(-1, 1)


class Net:
    """Weights are made as they are asked for, and their shapes noted."""

    def __init__(self, tensors=None):
        self.tensors, self.shapes = tensors, {}

    def weight(self, key, *shape):
        self.shapes[key] = shape
        found = tools.weights({key: shape})[key] if self.tensors is None else self.tensors[key]
        return torch.tensor(found)

    def layer(self, key, x, out, kernel, stride=1, padding=0):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        x = F.conv2d(x, self.weight(f"{key}.conv.weight", out, x.shape[1], *kernel), None, stride, padding)
        mean, var, weight, bias = (
            self.weight(f"{key}.bn.{name}", out) for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias, training=False, eps=0.001))

    def __call__(self, x, resize):
        """Every layer's output by its name, [b, c, h, w]."""
        seen = {}
        if resize:
            x = F.interpolate((x + 1) / 2, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
        seen["Conv2d_1a_3x3"] = x = self.layer("Conv2d_1a_3x3", x, 32, 3, 2)
        seen["Conv2d_2a_3x3"] = x = self.layer("Conv2d_2a_3x3", x, 32, 3)
        seen["Conv2d_2b_3x3"] = x = self.layer("Conv2d_2b_3x3", x, 64, 3, padding=1)
        seen["pool_1"] = x = F.max_pool2d(x, 3, 2)
        seen["Conv2d_3b_1x1"] = x = self.layer("Conv2d_3b_1x1", x, 80, 1)
        seen["Conv2d_4a_3x3"] = x = self.layer("Conv2d_4a_3x3", x, 192, 3)
        seen["pool_2"] = x = F.max_pool2d(x, 3, 2)
        for name, features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            seen[name] = x = self.a(name, x, features)
        seen["Mixed_6a"] = x = self.b("Mixed_6a", x)
        for name, features in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            seen[name] = x = self.c(name, x, features)
        seen["Mixed_7a"] = x = self.d("Mixed_7a", x)
        seen["Mixed_7b"] = x = self.e("Mixed_7b", x, self.mean(x))
        seen["Mixed_7c"] = x = self.e("Mixed_7c", x, F.max_pool2d(x, 3, 1, 1))
        return seen | {"pool_3": F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]}

    def mean(self, x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def a(self, n, x, pool):
        five = self.layer(f"{n}.branch5x5_2", self.layer(f"{n}.branch5x5_1", x, 48, 1), 64, 5, padding=2)
        three = self.layer(f"{n}.branch3x3dbl_2", self.layer(f"{n}.branch3x3dbl_1", x, 64, 1), 96, 3, padding=1)
        three = self.layer(f"{n}.branch3x3dbl_3", three, 96, 3, padding=1)
        one = self.layer(f"{n}.branch1x1", x, 64, 1)
        return torch.cat([one, five, three, self.layer(f"{n}.branch_pool", self.mean(x), pool, 1)], 1)

    def b(self, n, x):
        three = self.layer(f"{n}.branch3x3", x, 384, 3, 2)
        double = self.layer(f"{n}.branch3x3dbl_2", self.layer(f"{n}.branch3x3dbl_1", x, 64, 1), 96, 3, padding=1)
        double = self.layer(f"{n}.branch3x3dbl_3", double, 96, 3, 2)
        return torch.cat([three, double, F.max_pool2d(x, 3, 2)], 1)

    def across(self, key, x, out):
        return self.layer(key, x, out, (1, 7), padding=(0, 3))

    def along(self, key, x, out):
        return self.layer(key, x, out, (7, 1), padding=(3, 0))

    def c(self, n, x, k):
        seven = self.across(f"{n}.branch7x7_2", self.layer(f"{n}.branch7x7_1", x, k, 1), k)
        seven = self.along(f"{n}.branch7x7_3", seven, 192)
        double = self.along(f"{n}.branch7x7dbl_2", self.layer(f"{n}.branch7x7dbl_1", x, k, 1), k)
        double = self.along(f"{n}.branch7x7dbl_4", self.across(f"{n}.branch7x7dbl_3", double, k), k)
        double = self.across(f"{n}.branch7x7dbl_5", double, 192)
        one = self.layer(f"{n}.branch1x1", x, 192, 1)
        return torch.cat([one, seven, double, self.layer(f"{n}.branch_pool", self.mean(x), 192, 1)], 1)

    def d(self, n, x):
        three = self.layer(f"{n}.branch3x3_2", self.layer(f"{n}.branch3x3_1", x, 192, 1), 320, 3, 2)
        seven = self.across(f"{n}.branch7x7x3_2", self.layer(f"{n}.branch7x7x3_1", x, 192, 1), 192)
        seven = self.layer(f"{n}.branch7x7x3_4", self.along(f"{n}.branch7x7x3_3", seven, 192), 192, 3, 2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def pair(self, key, x):
        across = self.layer(f"{key}a", x, 384, (1, 3), padding=(0, 1))
        return [across, self.layer(f"{key}b", x, 384, (3, 1), padding=(1, 0))]

    def e(self, n, x, pooled):
        one = self.layer(f"{n}.branch1x1", x, 320, 1)
        three = self.pair(f"{n}.branch3x3_2", self.layer(f"{n}.branch3x3_1", x, 384, 1))
        double = self.layer(f"{n}.branch3x3dbl_2", self.layer(f"{n}.branch3x3dbl_1", x, 448, 1), 384, 3, padding=1)
        double = self.pair(f"{n}.branch3x3dbl_3", double)
        return torch.cat([one, *three, *double, self.layer(f"{n}.branch_pool", pooled, 192, 1)], 1)
