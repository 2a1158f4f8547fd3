"""Old names (before diffusers 0.17, 2023) of an attention's four linear layers -> the present ones."""

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
_OLD = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def new_attention_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors by name, those of attention by their present names; present names are unchanged."""
    return {_OLD.sub(lambda match: f"{match[1]}{_NEW[match[2]]}.", key): value for key, value in tensors.items()}
