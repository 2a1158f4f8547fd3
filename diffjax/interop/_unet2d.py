"""diffusers' `UNet2DModel`: its configuration as a `UNet2D`.

    DownBlock2D, UpBlock2D                         Stage()                          resampled by a convolution
    AttnDownBlock2D, AttnUpBlock2D                 attention after every block
    ResnetDownsampleBlock2D, ResnetUpsampleBlock2D residual=True
    SkipDownBlock2D, SkipUpBlock2D                 shortcut, binomial filter, input_skip, output_skip, sums by sqrt 2
    AttnSkipDownBlock2D, AttnSkipUpBlock2D         the same with attention, after the last block only on the way up

`UNetRes...` in front is an older spelling. c_noise is the file's own clock: the timestep, or sigma for `fourier`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import nn

from diffjax.interop._config import read_fields
from diffjax.networks import (
    BINOMIAL,
    Fourier,
    Learned,
    Positional,
    Stage,
    UNet2D,
    input_skip,
    output_skip,
)

DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0.0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1.0,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
NULLABLE: dict[str, Any] = {
    "attention_head_dim": 1,
    "time_embedding_dim": 1,
    "norm_num_groups": 1,
    "attn_norm_num_groups": 1,
    "num_class_embeds": 1,
    "num_train_timesteps": 1,
}
ACTIVATIONS = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
}
ONLY = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
    "act_fn": tuple(ACTIVATIONS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}


def unet2d(config: Mapping[str, Any], where: str = "config.json") -> UNet2D:
    """The network that a configuration of `UNet2DModel` describes; its parameters have that model's names and shapes.

    Args:
      config: the content of config.json.
      where: the file, for messages.

    Returns:
      A module `(x [b, h, w, in_channels], c_noise [b], cond) -> y [b, h, w, out_channels]`. `num_class_embeds` n makes
      cond a label 0 .. n - 1; `class_embed_type` makes it a number [b] ("timestep") or a vector ("identity").

    Raises:
      ValueError: a key or a value that diffjax does not have.
    """
    c = read_fields(config, DEFAULTS, where=where, only=ONLY, ignored=("sample_size",), nullable=NULLABLE)
    channels = tuple(c["block_out_channels"])
    for key in ("down_block_types", "up_block_types"):
        if len(c[key]) != len(channels):
            raise ValueError(f"{where}: {key} has {len(c[key])} entries, block_out_channels {len(channels)}")
    labels = c["num_class_embeds"] if c["class_embed_type"] is None else None
    down = tuple(_stage(name, "Down", c, where) for name in c["down_block_types"])
    up = tuple(_stage(name, "Up", c, where) for name in c["up_block_types"])
    clock = _clock(c, where)
    try:
        return UNet2D(
            channels=channels,
            down=down,
            up=up,
            middle=None if c["mid_block_type"] is None else _middle(c),
            blocks=c["layers_per_block"],
            head_channels=c["attention_head_dim"],
            noise_features=clock,
            emb_width=c["time_embedding_dim"],
            num_classes=None if labels is None else labels - 1,
            scale_shift=c["resnet_time_scale_shift"] == "scale_shift",
            groups=c["norm_num_groups"],
            norm_epsilon=c["norm_eps"],
            padding=(0, 1) if c["downsample_padding"] == 0 else (1, 1),
            dropout=c["dropout"],
            activation=ACTIVATIONS[c["act_fn"]],
            center=c["center_input_sample"],
            divide=c["time_embedding_type"] == "fourier",
            out_channels=c["out_channels"],
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def unet2d_inputs(config: Mapping[str, Any], network: UNet2D) -> tuple[jax.ShapeDtypeStruct | None, ...]:
    """Arguments (x [1, h, w, c], c_noise [1], cond) of the least size that the network takes, as shapes and dtypes."""
    size = 2 ** (len(network.channels) - 1)
    width = network.emb_width or 4 * network.channels[0]
    shapes = {"timestep": (1,), "identity": (1, width)}
    cond = None if network.num_classes is None else jax.ShapeDtypeStruct((1,), jnp.int32)
    if (kind := config.get("class_embed_type")) is not None:
        cond = jax.ShapeDtypeStruct(shapes[kind], jnp.float32)
    x = (1, size, size, config.get("in_channels", DEFAULTS["in_channels"]))
    return jax.ShapeDtypeStruct(x, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32), cond


def _stage(name, way, c, where):
    kind = name.removeprefix("UNetRes")
    every = c["layers_per_block"] + (way == "Up")
    groups = c["norm_num_groups"]
    resampled = c["downsample_type"] if way == "Down" else c["upsample_type"]
    progressive = Stage(residual=True, shortcut=True, taps=BINOMIAL, rescale=math.sqrt(2), attention_groups=32)
    stages = {
        f"{way}Block2D": Stage(groups=groups),
        f"Attn{way}Block2D": Stage(every, residual=resampled == "resnet", groups=groups, attention_groups=groups),
        f"Resnet{way}sampleBlock2D": Stage(residual=True, groups=groups),
        "SkipDownBlock2D": progressive._replace(pyramid=input_skip),
        "AttnSkipDownBlock2D": progressive._replace(pyramid=input_skip, attentions=every),
        "SkipUpBlock2D": progressive._replace(pyramid=output_skip),
        "AttnSkipUpBlock2D": progressive._replace(pyramid=output_skip, attentions=1, joined_groups=_joined_groups),
    }
    if kind not in stages or way not in kind:
        known = [key for key in stages if way in key]
        raise ValueError(f"{where}: {way.lower()}_block_types has {name!r}; diffjax has {', '.join(known)}")
    return stages[kind]


def _middle(c):
    """With scale and shift, the middle's attention has a norm only if its groups are given."""
    plain = c["resnet_time_scale_shift"] == "default"
    groups = c["attn_norm_num_groups"] or (c["norm_num_groups"] if plain else 0)
    return Stage(
        int(c["add_attention"]),
        rescale=c["mid_block_scale_factor"],
        groups=c["norm_num_groups"],
        attention_groups=groups,
    )


def _clock(c, where):
    if c["time_embedding_type"] == "fourier":
        return Fourier(std=16.0, log=True)
    if c["time_embedding_type"] == "positional":
        return Positional(cosine_first=c["flip_sin_to_cos"], shift=c["freq_shift"])
    if c["num_train_timesteps"] is None:
        raise ValueError(f"{where}: time_embedding_type 'learned' needs num_train_timesteps")
    return Learned(c["num_train_timesteps"])


def _joined_groups(below, skipped):
    """diffusers' formula; (below + skipped) // 4 was probably meant."""
    return min(below + skipped // 4, 32)
