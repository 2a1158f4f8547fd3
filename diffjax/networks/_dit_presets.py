"""The sizes of Peebles & Xie 2023, table 1; `dit_b(2)` is DiT-B/2.

             depth   width   heads
    DiT-S     12      384      6
    DiT-B     12      768     12
    DiT-L     24     1024     16
    DiT-XL    28     1152     16

Blocks under `lax.scan`, so that the largest compiles as fast as the smallest.
"""

from typing import Any

from diffjax.networks._dit import DiT


def dit_s(patch: int = 2, **fields: Any) -> DiT:
    """DiT-S, 33 million parameters; other fields of `DiT` by name."""
    return DiT(**{"width": 384, "depth": 12, "heads": 6, "patch": patch, "scan": True} | fields)


def dit_b(patch: int = 2, **fields: Any) -> DiT:
    """DiT-B, 130 million parameters; other fields of `DiT` by name."""
    return DiT(**{"width": 768, "depth": 12, "heads": 12, "patch": patch, "scan": True} | fields)


def dit_l(patch: int = 2, **fields: Any) -> DiT:
    """DiT-L, 458 million parameters; other fields of `DiT` by name."""
    return DiT(**{"width": 1024, "depth": 24, "heads": 16, "patch": patch, "scan": True} | fields)


def dit_xl(patch: int = 2, **fields: Any) -> DiT:
    """DiT-XL, 675 million parameters; other fields of `DiT` by name."""
    return DiT(**{"width": 1152, "depth": 28, "heads": 16, "patch": patch, "scan": True} | fields)
