"""Cases of diffusers' AutoencoderKL, and what it answers (extra `parity`)."""

import numpy as np
from tools import noise, weights

# Configurations as diffusers has them; "image": (height, width) of what is encoded.
SMALL = {"block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1, "image": [8, 8]}
TWO = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
CASES = {
    "autoencoder-sd1": {
        **SMALL,
        "block_out_channels": [8, 8, 16, 16],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "image": [16, 16],
    },
    "autoencoder-flux": {
        **SMALL,
        **TWO,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
    "autoencoder-odd": {**SMALL, **TWO, "image": [7, 10], "layers_per_block": 2},
    "autoencoder-plain-middle": {**SMALL, **TWO, "mid_block_add_attention": False},
    "autoencoder-grey-to-colour": {**SMALL, **TWO, "in_channels": 1, "out_channels": 3, "latent_channels": 2},
    "autoencoder-one-level": {**SMALL, "block_out_channels": [8], "norm_num_groups": 8, "use_quant_conv": False},
    "autoencoder-one-group": {**SMALL, **TWO, "norm_num_groups": 1, "use_post_quant_conv": False},
}


def images(config):
    """The images to encode, [2, h, w, c], float64."""
    return noise((2, *config["image"], config.get("in_channels", 3)), "images")


def build(config):
    """diffusers' network in float64, with our weights."""
    import torch
    from diffusers import AutoencoderKL

    network = AutoencoderKL(**{key: value for key, value in config.items() if key != "image"}).double().eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes).items()})
    return network, shapes


def answers(network, config):
    """Mean, logvar and what decodes from the mean, in our layout."""
    import torch

    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(images(config).transpose(0, 3, 1, 2)))
        latents = network.encode(x).latent_dist
        found = {"mean": latents.mean, "logvar": latents.logvar, "decoded": network.decode(latents.mean).sample}
    return {key: value.numpy().transpose(0, 2, 3, 1) for key, value in found.items()}


def reference(name, config):
    """({key: shape}, outputs), for `freeze.py`."""
    network, shapes = build(config)
    return shapes, answers(network, config)
