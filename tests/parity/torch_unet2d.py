"""diffusers' `UNet2DModel`, and NCSN++ with residual input and output made of its parts."""

import contextlib
import logging
import math
from unittest import mock

import numpy as np
import tools

torch = tools.optional("torch")

SMALL = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
PLAIN = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
RESNET = {
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
SKIP = {
    "block_out_channels": [32, 32, 32],
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"],
    "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
    "time_embedding_type": "fourier",
    "layers_per_block": 1,
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": math.sqrt(2),
}
CASES = {
    "unet2d_ddpm": {  # heads of full width, asymmetric padding, sines first, two blocks a level
        **SMALL,
        **PLAIN,
        "layers_per_block": 2,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "act_fn": "silu",
    },
    "unet2d_heads": {**SMALL, **PLAIN, "attention_head_dim": 4, "center_input_sample": True, "dropout": 0.1},
    "unet2d_adm": {  # residual resampling, scale and shift, labels, no norm before the middle's attention
        **SMALL,
        **RESNET,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "num_class_embeds": 5,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
    },
    "unet2d_adm_norm": {
        **SMALL,
        **RESNET,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 2,
        "class_embed_type": "timestep",
        "act_fn": "gelu",
    },
    "unet2d_ncsnpp": SKIP,
    "unet2d_ncsnpp_groups": {**SKIP, "block_out_channels": [32, 32, 64], "center_input_sample": True},
    "unet2d_odd": {  # one level: any size
        **SMALL,
        "block_out_channels": [9],
        "norm_num_groups": 3,
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"],
        "add_attention": False,
        "class_embed_type": "identity",
        "act_fn": "mish",
        "size": [7, 5],
    },
    "unet2d_no_middle": {
        **SMALL,
        "block_out_channels": [8, 12, 16],
        "down_block_types": ["UNetResDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"],
        "up_block_types": ["UpBlock2D", "UNetResAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "mid_block_type": None,
        "time_embedding_type": "learned",
        "num_train_timesteps": 60,
        "time_embedding_dim": 20,
        "act_fn": "relu",
    },
    "unet2d_residual": {**SKIP, "pyramid": "residual"},
}
COND = {"timestep": (2,), "identity": (2, 36)}


def inputs(name, config):
    """x [2, h, w, c], the clock [2] and a condition for a case, NumPy float64: both sides'."""
    h, w = config.get("size", [8, 4])
    x = tools.noise((2, h, w, config.get("in_channels", 3)), name + "x")
    clock = np.array([3.0, 41.0]) if config.get("time_embedding_type") != "fourier" else np.array([0.3, 4.1])
    if "num_class_embeds" in config:
        return x, clock, np.array([1, config["num_class_embeds"] - 1])
    shape = COND.get(config.get("class_embed_type"))
    return x, clock, None if shape is None else 10 * np.abs(tools.noise(shape, name + "cond"))


def build(name, config, dtype="float64"):
    """The torch network in evaluation mode, its weights made from their names."""
    from diffusers import UNet2DModel

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    dtype = getattr(torch, dtype)
    own = {key: value for key, value in config.items() if key not in ("size", "pyramid")}
    network = UNet2DModel(**own)
    if config.get("pyramid") == "residual":
        _residual(network)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.to(dtype).load_state_dict({key: torch.from_numpy(value) for key, value in tools.weights(shapes).items()})
    return network.eval(), shapes


def apply(network, name, config, dtype="float64"):
    """y [2, h, w, k] of a torch network on the inputs of a case."""
    dtype = getattr(torch, dtype)
    x, clock, cond = inputs(name, config)
    cond = None if cond is None else torch.from_numpy(cond)
    cond = cond if cond is None or not cond.is_floating_point() else cond.to(dtype)
    learned = config.get("time_embedding_type") == "learned"
    clock = torch.from_numpy(clock).to(torch.int64 if learned else dtype)
    with torch.no_grad(), exact_waves() if dtype == torch.float64 else contextlib.nullcontext():
        y = network(torch.from_numpy(x).permute(0, 3, 1, 2).to(dtype), clock, cond).sample
    return y.permute(0, 2, 3, 1).numpy()


def reference(name, config):
    network, shapes = build(name, config)
    return shapes, {"y": apply(network, name, config)}


def exact_waves():
    """diffusers computes positional features in float32 whatever the network's dtype; here in float64."""

    def waves(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
        half = embedding_dim // 2
        powers = torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
        angle = scale * timesteps[:, None].double() * max_period**-powers
        parts = [angle.cos(), angle.sin()] if flip_sin_to_cos else [angle.sin(), angle.cos()]
        return torch.cat([*parts, torch.zeros(len(timesteps), embedding_dim % 2, dtype=torch.float64)], dim=-1)

    from diffusers.models import embeddings

    return mock.patch.object(embeddings, "get_timestep_embedding", waves)


def _residual(network):
    """Progressive input and output become residual (Song et al. 2021, appendix H; the filtered convolutions are
    StyleGAN2's, Karras et al. 2020): each is what one level adds to, and is added to, by a convolution."""
    from diffusers.models.downsampling import FirDownsample2D

    for block in network.down_blocks[:-1]:
        channels = block.resnets[0].out_channels
        into = 3 if block is network.down_blocks[0] else channels
        block.skip_conv = FirDownsample2D(into, channels, use_conv=True).Conv2d_0
        block.forward = _down(block)
    for block in network.up_blocks:
        channels = block.resnets[0].out_channels
        if block is network.up_blocks[0]:
            block.skip_conv = torch.nn.Conv2d(channels, channels, 3, padding=1)
        else:
            block.skip_conv = torch.nn.Conv2d(channels, channels, 3)
            block.skip_norm = None
        block.forward = _up(block, first=block is network.up_blocks[0], last=block is network.up_blocks[-1])


def _down(block):
    from diffusers.models.downsampling import FirDownsample2D

    def forward(hidden_states, temb, skip_sample):
        h, outputs = hidden_states, ()
        for i, resnet in enumerate(block.resnets):
            h = resnet(h, temb)
            h = block.attentions[i](h) if hasattr(block, "attentions") else h
            outputs += (h,)
        h = block.resnet_down(h, temb)
        fir = FirDownsample2D(1, 1, use_conv=True)
        joined = fir._downsample_2d(skip_sample, weight=block.skip_conv.weight, kernel=fir.fir_kernel)
        h = (h + joined + block.skip_conv.bias[:, None, None]) / math.sqrt(2)
        return h, (*outputs, h), h

    return forward


def _up(block, first, last):
    from diffusers.models.upsampling import FirUpsample2D

    def forward(h, skips, temb, grown):
        for resnet in block.resnets:
            h, skips = resnet(torch.cat([h, skips[-1]], dim=1), temb), skips[:-1]
        h = block.attentions[0](h) if hasattr(block, "attentions") else h
        if first:
            grown = block.skip_conv(torch.nn.functional.silu(block.skip_norm(h)))
        else:
            fir = FirUpsample2D(1, 1, use_conv=True)
            grown = fir._upsample_2d(grown, block.skip_conv.weight, kernel=fir.fir_kernel)
            grown = grown + block.skip_conv.bias[:, None, None]
            h = grown = (h + grown) / math.sqrt(2)
        return (h, None) if last else (block.resnet_up(h, temb), grown)

    return forward
