"""diffusers' DiTTransformer2DModel, and Transformer2DModel where it is a DiT -> `networks.DiT`.

diffusers' networks count time in steps, embed it (and the label) in every block, scale the positions of any
image to those of `sample_size`, and have labels 0 .. num_embeds_ada_norm, of which the last is the null label.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jax import nn

from diffjax.interop._config import read_fields
from diffjax.networks import DiT, timestep_features

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
    # of Transformer2DModel, which has other modes too
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
      ValueError: a key or a value that diffjax does not have.
    """
    fields = read_fields(config, DEFAULTS, where=where, only=ONLY, ignored=IGNORED, nullable={"out_channels": 1})
    activation, gated = ACTIVATIONS[fields["activation_fn"]]
    return DiT(
        width=fields["num_attention_heads"] * fields["attention_head_dim"],
        depth=fields["num_layers"],
        heads=fields["num_attention_heads"],
        patch=fields["patch_size"],
        out_channels=fields["in_channels"] if fields["out_channels"] is None else fields["out_channels"],
        num_classes=fields["num_embeds_ada_norm"],
        position_range=fields["sample_size"] // fields["patch_size"],
        noise_features=CLOCK,
        activation=activation,
        gated=gated,
        qkv_bias=fields["attention_bias"],
        norm_epsilon=fields["norm_eps"],
        norm_affine=fields["norm_elementwise_affine"],
        emb_per_block=True,
        dropout=fields["dropout"],
    )
