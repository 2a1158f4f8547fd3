"""transformers' T5EncoderModel, and the encoder of a whole T5 -> `networks.T5Encoder`.

The table of the tokens is in a file once or twice (`shared`, `encoder.embed_tokens`): tied, and one array here.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from jax import nn

from diffjax.interop._config import read_fields
from diffjax.networks import T5Encoder

DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
FUNCTIONS = {
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": nn.gelu,
    "silu": nn.silu,
}
# name -> (function, gated); T5's "gated-gelu" is the tangent's
FEED_FORWARD = {name: (function, False) for name, function in FUNCTIONS.items()}
FEED_FORWARD |= {f"gated-{name}": (function, True) for name, function in FUNCTIONS.items()} | {
    "gated-gelu": (nn.gelu, True)
}
ONLY = {"feed_forward_proj": tuple(FEED_FORWARD), "model_type": ("t5",), "is_decoder": (False,)}
NOT_NEEDED = (
    # the decoder, training, generation, and notes
    "architectures num_decoder_layers is_encoder_decoder decoder_start_token_id use_cache scale_decoder_outputs "
    "tie_word_embeddings tie_encoder_decoder dropout_rate classifier_dropout initializer_factor gradient_checkpointing "
    "pad_token_id eos_token_id bos_token_id n_positions output_past output_attentions output_hidden_states "
    "return_dict task_specific_params transformers_version torch_dtype dtype chunk_size_feed_forward id2label label2id "
    "problem_type dense_act_fn is_gated_act feed_forward_proj_type"
)


def t5_encoder(config: Mapping[str, Any], where: str) -> T5Encoder:
    """The encoder of a config.json.

    Raises:
      ValueError: a key or a value that diffjax does not have.
    """
    fields = read_fields(config, DEFAULTS, where=where, only=ONLY, ignored=NOT_NEEDED.split())
    activation, gated = FEED_FORWARD[fields["feed_forward_proj"]]
    return T5Encoder(
        vocabulary=fields["vocab_size"],
        width=fields["d_model"],
        depth=fields["num_layers"],
        heads=fields["num_heads"],
        head_channels=fields["d_kv"],
        hidden=fields["d_ff"],
        activation=activation,
        gated=gated,
        buckets=fields["relative_attention_num_buckets"],
        distance=fields["relative_attention_max_distance"],
        norm_epsilon=fields["layer_norm_epsilon"],
    )


def t5_config(module: T5Encoder) -> dict[str, Any]:
    """The content of config.json of an encoder, for `save_pretrained`; `t5_encoder` reads it back.

    >>> t5_config(T5Encoder(100, width=64))["d_model"]
    64

    Args:
      module: the encoder. Its dtype, dropout and remat are no part of a folder.

    Raises:
      ValueError: its activation is none of T5's, or it is whitened.
    """
    if module.whitened:
        raise ValueError(
            "module: a T5 of transformers has no whitening, got whitened True; use module.clone(whitened=False)"
        )
    found = [name for name, pair in FEED_FORWARD.items() if pair == (module.activation, module.gated)]
    if not found:
        raise ValueError(f"module: an activation of transformers is needed, got {module.activation}")
    return {
        "model_type": "t5",
        "vocab_size": module.vocabulary,
        "d_model": module.width,
        "d_kv": module.head_channels,
        "d_ff": module.hidden,
        "num_layers": module.depth,
        "num_heads": module.heads,
        "relative_attention_num_buckets": module.buckets,
        "relative_attention_max_distance": module.distance,
        "layer_norm_epsilon": module.norm_epsilon,
        "feed_forward_proj": found[0],
    }


def encoder_tensors(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The encoder's tensors alone, the table of tokens under the name `shared.weight`.

    Args:
      tensors: name -> array, of an encoder or of a whole T5, whose decoder is left out.
      where: the file, for messages.

    Raises:
      ValueError: two tables of tokens that differ.
    """
    tied = "encoder.embed_tokens.weight"
    encoder = {key: value for key, value in tensors.items() if not key.startswith(("decoder.", "lm_head."))}
    table = encoder.pop(tied, None)
    if table is not None and not np.array_equal(encoder.setdefault("shared.weight", table), table):
        raise ValueError(f"{where}: shared.weight and {tied} differ, but they are one table")
    return encoder
