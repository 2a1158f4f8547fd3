"""A DiT in torch with what diffusers' lacks: text, rotary and learned positions, norms of queries and keys.

Blocks are made of diffusers' layers where it has them (two streams: JointTransformerBlock). A text is cut to the tokens
that are there, one sample after another, so there is no mask; positions are complex numbers and plain loops.
"""

import math

import torch
from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero
from torch import nn
from torch.nn import functional as F


def waves(c):
    f = torch.tensor([math.exp(math.log(1 / 16) + i / 127 * math.log(64)) for i in range(128)])
    angle = 2 * math.pi * c[:, None] * f
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def grid(rows, columns):
    return [(r, c) for r in range(rows) for c in range(columns)]


def added(rows, columns, width):
    table = torch.zeros(rows * columns, width)
    for n, (r, c) in enumerate(grid(rows, columns)):
        for i in range(width // 4):
            f = 10000 ** (-4 * i / width)
            for k, value in enumerate([math.sin(c * f), math.cos(c * f), math.sin(r * f), math.cos(r * f)]):
                table[n, k * (width // 4) + i] = value
    return table


def rotated(x, rows, columns, base):
    """x [b, heads, n, k], features as complex numbers that turn."""
    k = x.shape[-1]
    z = torch.complex(x[..., : k // 2], x[..., k // 2 :])
    turns = torch.zeros(rows * columns, k // 2)
    for n, at in enumerate(grid(rows, columns)):
        for i in range(k // 2):
            turns[n, i] = at[i // (k // 4)] * base ** (-(i % (k // 4)) / (k // 4))
    z = z * torch.polar(torch.ones_like(turns), turns)
    return torch.cat([z.real, z.imag], dim=-1)


def layers(k, width):
    return nn.ModuleDict({"linear_1": nn.Linear(k, width), "linear_2": nn.Linear(width, width)})


def through(pair, x):
    return pair["linear_2"](F.silu(pair["linear_1"](x)))


class Attend(nn.Module):
    """Attention by hand, under diffusers' names."""

    def __init__(self, width, heads, k, qk_norm):
        super().__init__()
        norm = {"qk_norm": "rms_norm", "eps": 1e-6} if qk_norm else {}
        layer = Attention(width, k, heads=heads, dim_head=width // heads, bias=True, **norm)
        self.to_q, self.to_k, self.to_v, self.to_out = layer.to_q, layer.to_k, layer.to_v, layer.to_out
        self.norm_q, self.norm_k, self.heads = layer.norm_q, layer.norm_k, heads

    def forward(self, x, context, turn):
        split = lambda h: h.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        if self.norm_q is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        q, k = turn(q), turn(k)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        return self.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads, text_width, qk_norm, affine):
        super().__init__()
        self.norm1 = AdaLayerNormZero(width)
        self.attn1 = Attend(width, heads, None, qk_norm)
        if text_width:
            self.norm2 = nn.LayerNorm(width, 1e-6, affine)
            self.attn2 = Attend(width, heads, text_width, qk_norm)
        self.norm3 = nn.LayerNorm(width, 1e-6, affine)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")

    def forward(self, x, told, text, turn):
        y, gate, shift, scale, out_gate = self.norm1(x, emb=told)
        x = x + gate[:, None] * self.attn1(y, y, turn)
        if text is not None:
            x = x + self.attn2(self.norm2(x), text, lambda h: h)
        return x + out_gate[:, None] * self.ff(self.norm3(x) * (1 + scale[:, None]) + shift[:, None])


class Nothing(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


class TorchDiT(nn.Module):
    """Called as `network(x [b, c, h, w], c_noise [b], cond)`."""

    def __init__(self, fields, size, cond):
        super().__init__()
        self.fields, self.cond, self.patch = fields, cond, fields["patch"]
        width, text_width, joint = fields["width"], fields.get("text_width"), fields.get("joint")
        self.rows, self.columns = (n // self.patch for n in size)
        self.pos_embed = nn.Module()
        self.pos_embed.proj = nn.Conv2d(3, width, self.patch, self.patch)
        if fields.get("learned_positions"):
            self.pos_embed.pos_embed = nn.Parameter(torch.zeros(1, self.rows * self.columns, width))
        self.emb = nn.ModuleDict({"timestep_embedder": layers(256, width)})
        if cond == "label":
            table = nn.Embedding(fields["num_classes"] + 1, width)
            self.emb["class_embedder"] = nn.ModuleDict({"embedding_table": table})
        if cond == "vector":
            self.emb["vector_embedder"] = layers(5, width)
        if text_width:
            self.text = nn.ParameterDict({"null": torch.zeros(text_width)})
        heads, depth, norm = fields["heads"], fields["depth"], fields.get("qk_norm", False)
        if joint:
            self.text_embedder, self.context_embedder = layers(text_width, width), nn.Linear(text_width, width)
            more = {"qk_norm": "rms_norm" if norm else None}
            blocks = [JointTransformerBlock(width, heads, width // heads, i == depth - 1, **more) for i in range(depth)]
        else:
            blocks = [Block(width, heads, text_width, norm, fields.get("norm_affine", False)) for _ in range(depth)]
        if joint:  # what the last text asks is not used, and we have no weights for it
            blocks[-1].attn.add_q_proj, blocks[-1].attn.norm_added_q = Nothing(), None
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, self.patch**2 * fields.get("out_channels", 3))
        if joint and fields.get("rope"):
            for block in blocks:
                for part in (block.attn.norm_q, block.attn.norm_k):
                    part.register_forward_hook(lambda module, args, output: self.turn(output))

    def turn(self, h):
        return rotated(h, self.rows, self.columns, self.fields["rope"]) if self.fields.get("rope") else h

    def forward(self, x, c_noise, cond):
        pick = lambda i: None if cond is None else cond[0][i, cond[1][i]] if self.cond == "text" else cond[i : i + 1]
        return torch.cat([self.one(x[i : i + 1], c_noise[i : i + 1], pick(i)) for i in range(len(x))])

    def one(self, x, c_noise, cond):
        h = self.pos_embed.proj(x).flatten(2).transpose(1, 2)
        if self.fields.get("learned_positions"):
            h = h + self.pos_embed.pos_embed
        elif not self.fields.get("rope"):
            h = h + added(self.rows, self.columns, h.shape[-1])
        told = through(self.emb["timestep_embedder"], waves(c_noise))
        text = None
        if self.cond == "label":
            told = told + self.emb["class_embedder"]["embedding_table"](cond)
        elif self.cond == "vector":
            told = told + through(self.emb["vector_embedder"], cond)
        elif self.cond == "text":
            text = (cond if len(cond) else self.text["null"][None])[None]
        if self.fields.get("joint"):
            told = told + through(self.text_embedder, text.mean(dim=1))
            tokens = self.context_embedder(text)
            for block in self.transformer_blocks:
                tokens, h = block(h, tokens, told)
        else:
            for block in self.transformer_blocks:
                h = block(h, told, text, self.turn)
        shift, scale = self.proj_out_1(F.silu(told)).chunk(2, dim=-1)
        h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
        h, p = self.proj_out_2(h), self.patch
        y = torch.zeros(1, h.shape[-1] // p**2, self.rows * p, self.columns * p)
        for n, (r, c) in enumerate(grid(self.rows, self.columns)):
            y[0, :, r * p : r * p + p, c * p : c * p + p] = h[0, n].reshape(p, p, -1).permute(2, 0, 1)
        return y
