"""The network that a configuration names, and what its optimiser has to keep.

mlp                        width, depth, scan                                        vectors
unet                       channels, multipliers, blocks, attention, head_channels   images
ddpm ddpmpp ncsnpp adm     the same (heads: adm alone)
edm2                       the same; its weights are normalised after each update
dit uvit                   width, depth, heads, patch, scan
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffjax._typing import Network
from diffjax.config._options import NetworkConfig
from diffjax.networks import (
    MLP,
    DiT,
    EDM2UNet,
    UNet,
    UViT,
    adm,
    ddpm,
    ddpmpp,
    from_linen,
    ncsnpp,
    normalise_weights,
)

_LEVELLED = {"unet": UNet, "edm2": EDM2UNet}
_OF_PAPERS = {"ddpm": ddpm, "ddpmpp": ddpmpp, "ncsnpp": ncsnpp, "adm": adm}
_TRANSFORMERS = {"dit": DiT, "uvit": UViT}


def build_network(config: NetworkConfig, classes: int | None) -> Network:
    """The network of a configuration, told of `classes` classes, or of nothing where None.

    Raises:
      ValueError: a number does not fit the network.
    """
    told = {"num_classes": classes, "dropout": config.dropout}
    computed = {"dtype": jnp.dtype(config.dtype), "remat": config.remat}
    levels = {"multipliers": config.multipliers, "blocks": config.blocks, "attention": config.attention}
    if config.name in _LEVELLED:
        own = {"channels": config.channels, "head_channels": config.head_channels, **levels}
        return from_linen(_LEVELLED[config.name](**own, **told, **computed))
    if config.name in _OF_PAPERS:
        heads = {"head_channels": config.head_channels} if config.name == "adm" else {}
        channels = [config.channels * multiplier for multiplier in config.multipliers]
        own = {"attention": config.attention, "layers": config.blocks, **heads}
        return from_linen(_OF_PAPERS[config.name](channels, **own, **told).clone(**computed))
    if config.name in _TRANSFORMERS:
        own = {name: getattr(config, name) for name in ("width", "depth", "heads", "patch", "scan")}
        return from_linen(_TRANSFORMERS[config.name](**own, **told, **computed))
    return from_linen(MLP(width=config.width, depth=config.depth, scan=config.scan, **told, **computed))


def projection(config: NetworkConfig) -> Callable[[Any], Any] | None:
    """What the parameters go through after each update; None: nothing."""
    return normalise_weights if config.name == "edm2" else None
