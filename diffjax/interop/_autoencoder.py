"""diffusers' AutoencoderKL: config.json -> `networks.AutoencoderKL`."""

from collections.abc import Mapping
from typing import Any

from diffjax.interop._config import read_fields
from diffjax.networks import AutoencoderKL

_DEFAULTS = {
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
      ValueError: a key or value that we do not have; `where` (the file) and the key are named.
    """
    found = read_fields(config, _DEFAULTS, where=where, only=_ONLY, ignored=("sample_size",))
    channels = tuple(found["block_out_channels"])
    for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if list(found[key]) != [known] * len(channels):
            raise ValueError(f"{where}: {key} is {found[key]!r}; diffjax has {known}, one a level")
    return AutoencoderKL(
        in_channels=found["in_channels"],
        out_channels=found["out_channels"],
        latent_channels=found["latent_channels"],
        channels=channels,
        blocks=found["layers_per_block"],
        groups=found["norm_num_groups"],
        attention=found["mid_block_add_attention"],
        moments_conv=found["use_quant_conv"],
        latents_conv=found["use_post_quant_conv"],
        scaling_factor=found["scaling_factor"],
        shift_factor=found["shift_factor"] or 0.0,
        upcast=found["force_upcast"],
    )
