"""diffusers' DiTTransformer2DModel, and Transformer2DModel where it is a DiT -> `networks.DiT`.

diffusers' networks count time in steps, embed it (and the label) anew in every block, spread the positions of any
image over those of `sample_size`, and have labels 0 .. num_embeds_ada_norm, of which the last is the null label.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jax import nn

from diffjax.interop._config import read_fields
from diffjax.networks import DiT
from diffjax.networks._embedding import timestep_features

DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
# name -> (function, gated)
ACTIVATIONS = {
    "gelu-approximate": (nn.gelu, False),
    "gelu": (partial(nn.gelu, approximate=False), False),
    "geglu-approximate": (lambda x: x * nn.sigmoid(1.702 * x), False),
    "linear-silu": (nn.silu, False),
    "geglu": (partial(nn.gelu, approximate=False), True),
    "swiglu": (nn.silu, True),
}
CLOCK = partial(timestep_features, shift=1.0)
ONLY = {
    "activation_fn": tuple(ACTIVATIONS),
    "norm_type": ("ada_norm_zero",),
    # of Transformer2DModel, which does other things besides
    "cross_attention_dim": (None,),
    "num_vector_embeds": (None,),
    "caption_channels": (None,),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
    "attention_type": ("default",),
}
IGNORED = (
    "norm_num_groups",
    "upcast_attention",
    "use_linear_projection",
    "interpolation_scale",
    "use_additional_conditions",
)


def dit(config: Mapping[str, Any], where: str) -> DiT:
    """The network of a config.json; its `c_noise` is the step, 0 .. 999.

    Raises:
      ValueError: a key or a value that we do not have.
    """
    found = read_fields(config, DEFAULTS, where=where, only=ONLY, ignored=IGNORED, nullable={"out_channels": 1})
    activation, gated = ACTIVATIONS[found["activation_fn"]]
    return DiT(
        width=found["num_attention_heads"] * found["attention_head_dim"],
        depth=found["num_layers"],
        heads=found["num_attention_heads"],
        patch=found["patch_size"],
        out_channels=found["in_channels"] if found["out_channels"] is None else found["out_channels"],
        num_classes=found["num_embeds_ada_norm"],
        spread=found["sample_size"] // found["patch_size"],
        noise_features=CLOCK,
        activation=activation,
        gated=gated,
        attention_bias=found["attention_bias"],
        norm_epsilon=found["norm_eps"],
        norm_affine=found["norm_elementwise_affine"],
        told_per_block=True,
        dropout=found["dropout"],
    )
