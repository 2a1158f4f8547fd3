"""A pipeline of diffusers with random weights: ten steps of DDIM."""

import numpy as np
from tools import noise, weights

STEPS = 10
UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
DDIM = {"_class_name": "DDIMScheduler", "beta_schedule": "linear"}
CASES = {
    "pretrained-clipped": {"unet": UNET, "scheduler": DDIM, "step": {"use_clipped_model_output": True}},
    "pretrained": {"unet": UNET, "scheduler": {**DDIM, "clip_sample": False}},
    "pretrained-trailing": {"unet": UNET, "scheduler": {**DDIM, "clip_sample": False, "timestep_spacing": "trailing"}},
}


def options(config):
    """A configuration without the class's name, for its constructor."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def build(config):
    """diffusers' (network, scheduler), the network with our weights in float64."""
    import diffusers
    import torch

    network = diffusers.UNet2DModel(**options(config["unet"])).double().eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes).items()})
    return network, diffusers.DDIMScheduler(**options(config["scheduler"]))


def ten_steps(network, scheduler, config):
    """(start, end), [1, 8, 8, 3] each, of ten steps."""
    import torch

    start = noise((1, 8, 8, 3), "start")
    x = torch.from_numpy(np.ascontiguousarray(start.transpose(0, 3, 1, 2)))
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(network(x, step).sample, step, x, **config.get("step", {})).prev_sample
    return start, x.numpy().transpose(0, 2, 3, 1)


def reference(name, config):
    """({key: shape}, {start, end}), for `freeze.py`."""
    network, scheduler = build(config)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    start, end = ten_steps(network, scheduler, config)
    return shapes, {"start": start, "end": end}
