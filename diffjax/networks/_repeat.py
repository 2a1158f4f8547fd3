"""The same block many times: written out, or one block under `lax.scan` over stacked parameters.

    written out    params[name__0], params[name__1], ...          compiles each block, may fuse across them
    scan           params[name__], every leaf [depth, ...]        compiles one block, whatever the depth

Either way `remat` recomputes each block in the backward pass instead of storing its activations.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PyTree

from diffjax.networks._init import stacked

T = TypeVar("T")  # a pytree of arrays


def repeat(
    module: nn.Module,
    block: type[nn.Module],
    fields: Mapping[str, Any],
    name: str,
    depth: int,
    h: PyTree,
    *args: PyTree,
    each: Sequence[Array] | Array | None = None,
    collect: bool = False,
    scan: bool = False,
    remat: bool = False,
) -> Any:
    """h after `depth` blocks `block(**fields)(h, *args) -> h`; to be called inside a compact method.

    Args:
      module: has the blocks' parameters; `self`.
      block: a Linen class; what is static (deterministic, dtype) is among its fields.
      fields: of every block.
      name: of the list of blocks.
      depth: how many.
      h: the input of the first block, a pytree of arrays whose shapes no block changes.
      args: further arguments of every block, pytrees of arrays.
      each: one more argument, `each[i]` to block i: a list of arrays, or an array [depth, ...], as it must be for scan.
      collect: return (h, h after every block), the latter a list, or with scan an array [depth, ...].
      scan: one block under `lax.scan`.
      remat: compute blocks again in the backward pass.
    """
    if depth == 0:
        return (h, []) if collect else h
    if not scan:
        block = rematerialised(module, block, remat)
        after = []
        for i in range(depth):
            own = () if each is None else (each[i],)
            h = block(**fields, name=f"{name}__{i}")(h, *args, *own)  # pyright: ignore[reportCallIssue]
            h = materialise(h, module)
            after.append(h)
        return (h, after) if collect else h

    one = block(**fields, parent=None)  # pyright: ignore[reportCallIssue]
    first = () if each is None else (each[0],)
    params = module.param(f"{name}__", stacked(lambda key: one.init(key, h, *args, *first)["params"], depth))
    keys = jax.random.split(module.make_rng("dropout"), depth) if module.has_rng("dropout") else None

    def body(h, inputs):
        params, key, own = inputs
        rngs = {} if key is None else {"dropout": key}
        h = one.apply({"params": params}, h, *args, *(() if each is None else (own,)), rngs=rngs)
        return h, h if collect else None

    h, after = jax.lax.scan(jax.checkpoint(body) if remat else body, h, (params, keys, each))
    return (h, after) if collect else h


def rematerialised(module: nn.Module, block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """The block class under `nn.remat`; not at initialisation, where that would hide its parameters from the one draw.

    Args:
      module: that the block is part of, in its compact method.
      block: a Linen class.
      remat: whether to compute it again in the backward pass.
    """
    return nn.remat(block) if remat and not module.is_initializing() else block


def materialise(x: T, module: nn.Module) -> T:
    """x itself, but computed once: stops XLA:CPU from recomputing x in every consumer.

    XLA's CPU code fuses what is cheap into all that uses it. Along a residual stream it so computes, in every block and
    again in its gradients, the sum of all blocks before: the gradient of a DiT of six blocks takes 1.2 times as long,
    and the deeper the worse. It drops `jax.lax.optimization_barrier`, and a branch whose two sides are equal or whose
    condition it knows: so this is a branch on a parameter's bits, always taken. Other devices get x as it is.
    """
    if module.is_initializing():
        return x
    some = jax.tree.leaves(module.variables["params"])[0]
    bits = jax.lax.bitcast_convert_type(some[(0,) * some.ndim].astype(jnp.float32), jnp.int32)
    return _materialise(bits | 1 != 0, x)


def _same(taken, x):
    return x


def _zeros(x):
    return jax.tree.map(jnp.zeros_like, x)


def _branch(taken, x):
    return jax.lax.cond(taken, lambda x: x, _zeros, x)


@jax.jit  # compiled once a shape where a network is called outside jit
def _materialise(taken, x):
    return jax.lax.platform_dependent(taken, x, cpu=_branch, default=_same)
