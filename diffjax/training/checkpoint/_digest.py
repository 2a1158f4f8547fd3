"""A digest of an array that does not depend on how it is split over devices or hosts.

    digest = sum_p w_p (2 p + 1)   mod 2^64      w_p  the bits of element p as an unsigned number
                                                 p    its row-major position

A flipped bit k of element p adds +-2^k (2 p + 1): an odd multiple of 2^k, k < 64, which is never 0 mod 2^64, so one
flipped bit is always detected, and other damage with probability 1 - 2^-64. It is a sum: shards are digested where they
are, and added. Within a run of elements that lie one after the other from position a on,

    sum_i w_i (2 (a + i) + 1) = sum_i w_i (2 i + 1) + 2 a sum_i w_i

so a block of short runs needs the sums of its rows and of its columns, and no product for an element.
"""

import math
from typing import Any, TypeAlias

import jax
import numpy as np

MODULUS = 2**64
_WIDE = 256

Parts: TypeAlias = list[tuple[tuple[int, ...], np.ndarray]]


def digest_part(part: np.ndarray, offset: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The contribution of a part [*p], which begins at `offset` in an array [*shape], to the digest of the array."""
    if part.ndim == 0:
        part, offset, shape = part.reshape(1), (0,), (1,)
    if part.dtype.itemsize > 8:  # complex128: as pairs
        part, offset, shape = np.ascontiguousarray(part)[..., None].view(np.uint64), (*offset, 0), (*shape, 2)
    if part.size == 0:
        return 0
    # Runs: from the last axis that is not whole in this part, elements lie one after the other in the array too.
    axis = max((k for k in range(part.ndim) if part.shape[k] != shape[k]), default=0)
    stride = [math.prod(shape[k + 1 :]) for k in range(part.ndim)]
    starts = np.array([stride[axis] * offset[axis]], np.uint64)
    for k in range(axis):
        along = np.uint64(stride[k]) * np.arange(offset[k], offset[k] + part.shape[k], dtype=np.uint64)
        starts = (starts[:, None] + along).ravel()
    words = np.ascontiguousarray(part).view(f"u{part.dtype.itemsize}").reshape(len(starts), -1)
    cut = words.shape[1] // _WIDE * _WIDE if words.shape[1] > _WIDE else 0
    total = 0
    if cut:  # long runs become many short ones
        more = starts[:, None] + np.arange(0, cut, _WIDE, dtype=np.uint64)
        total = _sum(words[:, :cut].reshape(-1, _WIDE), more.ravel())
    if cut < words.shape[1]:
        total += _sum(words[:, cut:], starts + np.uint64(cut))
    return total % MODULUS


def _sum(rows: np.ndarray, starts: np.ndarray) -> int:
    """sum_ij rows_ij (2 (starts_i + j) + 1), by the sums of rows and of columns: no weight is made for an element."""
    tall = max(1, _WIDE * _WIDE // rows.shape[1])
    wider = np.uint32 if rows.itemsize < 4 else np.uint64  # a row or column of a block does not overflow
    order = "C" if rows.shape[1] >= 64 else "F"  # NumPy is slow along short axes
    columns, total = np.zeros(rows.shape[1], np.uint64), 0
    for i in range(0, len(rows), tall):
        block = rows[i : i + tall].astype(wider, order=order)
        columns += block.sum(0, dtype=wider)
        total += 2 * int(starts[i : i + tall] @ block.sum(1, dtype=wider).astype(np.uint64))
    return total + int((2 * np.arange(len(columns), dtype=np.uint64) + np.uint64(1)) @ columns)


def digest_parts(parts: Parts, shape: tuple[int, ...]) -> int:
    """The digest of the (offset, part [*p]) of an array [*shape] that one process holds."""
    return sum(digest_part(part, offset, shape) for offset, part in parts) % MODULUS


def without_key_type(leaf: Any) -> Any:
    """An array [*d] as it is; of typed keys [*d] their data, uint32 [*d, k]."""
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def start_copy(leaf: jax.Array | np.ndarray) -> None:
    """Starts the copies to the host that `host_parts` waits for."""
    for shard in _own_shards(leaf):
        if shard.data is not None:
            shard.data.copy_to_host_async()


def host_parts(leaf: jax.Array | np.ndarray) -> Parts:
    """(offset, part [*p]) of the shards that this process digests, on the host; no element is in two parts."""
    if isinstance(leaf, jax.Array):
        own = _own_shards(leaf)
        return [(tuple(along.start or 0 for along in shard.index), np.asarray(shard.data)) for shard in own]
    return [((0,) * np.ndim(leaf), np.array(leaf))] if jax.process_index() == 0 else []


def _own_shards(leaf: jax.Array | np.ndarray) -> list[jax.Shard]:
    if not isinstance(leaf, jax.Array) or (leaf.is_fully_addressable and jax.process_index() > 0):
        return []
    return [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
