"""transformers' T5EncoderModel."""

import contextlib

import numpy as np
import tools
from doubles import doubles, fill

SMALL = {"vocab_size": 19, "d_model": 12, "d_kv": 5, "num_heads": 2, "d_ff": 10, "num_layers": 3, "length": 12}
CASES = {
    "t5-relu": SMALL,
    "t5-gated": {**SMALL, "feed_forward_proj": "gated-gelu", "num_heads": 3, "d_kv": 4},
    "t5-long": {**SMALL, "length": 140, "d_model": 8, "num_layers": 2},  # beyond the largest distance
    "t5-few-buckets": {**SMALL, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9},
    "t5-odd-buckets": {
        **SMALL,
        "relative_attention_num_buckets": 10,
        "relative_attention_max_distance": 40,
        "length": 45,
    },
    "t5-one-block": {**SMALL, "num_layers": 1, "feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-3},
    "t5-gelu": {**SMALL, "feed_forward_proj": "gelu", "num_heads": 1, "d_kv": 20},
}


def inputs(name, config):
    """ids [2, n] and mask [2, n], the second sample padded."""
    n = config["length"]
    ids = (1e3 * np.abs(tools.noise((2, n), name))).astype(np.int32) % config["vocab_size"]
    return ids, np.arange(n) < np.array([[n], [n // 2]])


def build(config, dtype="float64"):
    """The torch network, its weights made from their names, and {key: shape}; the tied table is there once."""
    with doubles() if dtype == "float64" else contextlib.nullcontext():
        from transformers import T5Config, T5EncoderModel

        network = T5EncoderModel(T5Config(**{key: value for key, value in config.items() if key != "length"}))
        network, shapes = fill(network)
        # tied: both names are one array, filled under whichever came last
        network.load_state_dict(load(network, tools.weights(shapes)))
        return network, {key: shape for key, shape in shapes.items() if key != "encoder.embed_tokens.weight"}


def load(network, tensors):
    """The network's state with these tensors, the tied name included."""
    import torch

    both = {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"]}
    return {key: torch.from_numpy(np.asarray(value)) for key, value in both.items()}


def apply(network, name, config, dtype="float64"):
    """[2, n, width] of a torch network on the inputs of a case."""
    import torch

    ids, mask = map(torch.from_numpy, inputs(name, config))
    with torch.no_grad(), doubles() if dtype == "float64" else contextlib.nullcontext():
        return network(input_ids=ids, attention_mask=mask.long()).last_hidden_state.numpy()


def reference(name, config):
    network, shapes = build(config)
    return shapes, {"y": apply(network, name, config)}
