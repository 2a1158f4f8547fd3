"""diffusers' AutoencoderKL: config.json -> `networks.AutoencoderKL`."""

from collections.abc import Mapping
from typing import Any

from diffjax.interop._config import read_fields
from diffjax.networks import AutoencoderKL

DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_ONLY = {"act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,)}


def autoencoder(config: Mapping[str, Any], where: str) -> AutoencoderKL:
    """The module that a configuration describes.

    Raises:
      ValueError: a key or value that diffjax does not have; `where` (the file) and the key are named.
    """
    fields = read_fields(config, DEFAULTS, where=where, only=_ONLY, ignored=("sample_size",))
    channels = tuple(fields["block_out_channels"])
    for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if list(fields[key]) != [known] * len(channels):
            raise ValueError(f"{where}: {key} is {fields[key]!r}; diffjax has {known}, one a level")
    return AutoencoderKL(
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        latent_channels=fields["latent_channels"],
        channels=channels,
        blocks=fields["layers_per_block"],
        groups=fields["norm_num_groups"],
        middle_attention=fields["mid_block_add_attention"],
        moments_conv=fields["use_quant_conv"],
        latents_conv=fields["use_post_quant_conv"],
        scaling_factor=fields["scaling_factor"],
        shift_factor=fields["shift_factor"] or 0.0,
        upcast=fields["force_upcast"],
    )


def autoencoder_config(module: AutoencoderKL) -> dict[str, Any]:
    """The content of config.json of a module, for `save_pretrained`; `autoencoder` reads it back.

    >>> config = autoencoder_config(AutoencoderKL(1, 1, 16, channels=(32, 64)))
    >>> config["latent_channels"], config["block_out_channels"]
    (16, [32, 64])

    Args:
      module: the autoencoder. Its dtype, dropout and remat are no part of a folder.
    """
    levels = len(module.channels)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(module.channels),
        "layers_per_block": module.blocks,
        "latent_channels": module.latent_channels,
        "norm_num_groups": module.groups,
        "act_fn": "silu",
        "scaling_factor": module.scaling_factor,
        "shift_factor": module.shift_factor or None,
        "force_upcast": module.upcast,
        "use_quant_conv": module.moments_conv,
        "use_post_quant_conv": module.latents_conv,
        "mid_block_add_attention": module.middle_attention,
    }
