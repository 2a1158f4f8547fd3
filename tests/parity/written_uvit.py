"""U-ViT in torch. A text is cut to the tokens that are there, one sample after another, so there is no mask."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads, ratio, bias, skip):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, bias=bias), "proj": nn.Linear(width, width)})
        hidden = int(ratio * width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        if skip:
            self.skip_linear = nn.Linear(2 * width, width)

    def forward(self, h, skip=None):
        if skip is not None:
            h = self.skip_linear(torch.cat([h, skip], dim=-1))
        split = lambda part: part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = map(split, self.attn["qkv"](self.norm1(h)).chunk(3, dim=-1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        h = h + self.attn["proj"]((weights @ v).transpose(1, 2).flatten(2))
        return h + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(h))))


class TorchUViT(nn.Module):
    """Called as `network(x [b, c, h, w], c_noise [b], cond)`."""

    def __init__(self, config):
        super().__init__()
        self.config, width, self.patch = config, config["width"], config["patch"]
        rows, columns = (n // self.patch for n in config["size"])
        tokens = 1 + rows * columns
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, self.patch, self.patch)})
        if "num_classes" in config:
            self.label_emb = nn.Embedding(config["num_classes"] + 1, width)
            tokens += 1
        if "text_width" in config:
            self.text = nn.ParameterDict({"null": torch.zeros(config["text_width"])})
            self.context_embed = nn.Linear(config["text_width"], width)
            tokens += 5
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        more = width, config["heads"], config.get("mlp_ratio", 4.0), config.get("qkv_bias", False)
        half, out = config["depth"] // 2, config.get("out_channels", 3)
        self.in_blocks = nn.ModuleList([Block(*more, False) for _ in range(half)])
        self.mid_block = Block(*more, False)
        self.out_blocks = nn.ModuleList([Block(*more, True) for _ in range(half)])
        self.norm, self.decoder_pred = nn.LayerNorm(width), nn.Linear(width, self.patch**2 * out)
        self.final_layer = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x, c_noise, cond):
        pick = lambda i: None if cond is None else (cond[0][i], cond[1][i]) if isinstance(cond, tuple) else cond[i]
        return torch.cat([self.one(x[i : i + 1], c_noise[i], pick(i)) for i in range(len(x))])

    def one(self, x, c_noise, cond):
        width, p = self.config["width"], self.patch
        f = torch.tensor([math.exp(-math.log(10000) * 2 * i / width) for i in range(width // 2)])
        tokens = [torch.cat([(c_noise * f).cos(), (c_noise * f).sin()])[None]]
        there = [True]
        if "num_classes" in self.config:
            tokens, there = [self.label_emb(cond)[None], *tokens], [True, True]
        if "text_width" in self.config:
            embedding, mask = cond
            tokens += [self.context_embed(torch.cat([self.text["null"][None], embedding]))]
            there += [not mask.any(), *mask]
        h = self.patch_embed["proj"](x)
        rows, columns = h.shape[2:]
        h = torch.cat([*tokens, h[0].flatten(1).T])[None] + self.pos_embed
        h = h[:, torch.tensor(there + [True] * (rows * columns))]
        skips = []
        for block in self.in_blocks:
            h = block(h)
            skips.append(h)
        h = self.mid_block(h)
        for block in self.out_blocks:
            h = block(h, skips.pop())
        h = self.decoder_pred(self.norm(h))[0, -rows * columns :]
        h = h.reshape(rows, columns, p, p, -1).permute(4, 0, 2, 1, 3).reshape(1, -1, rows * p, columns * p)
        return self.final_layer(h)
