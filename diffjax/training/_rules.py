"""Which axis of which array is split over which axis of the mesh.

    fsdp      the longest axis that divides, of every array that is worth it: parameters, averages, optimiser alike
    tensor    by the names of our networks' layers, in pairs, so that what lies between two layers stays split:

      x -> [ W1 | W1' ] -> f -> [ W2  ] -> + -> y         columns first, then rows; one sum over devices at the end
                                [ W2' ]

A rule is a regular expression for the end of an array's path ("params/down_0_0/conv_1/kernel") and a PartitionSpec. An
optimiser that keeps arrays like the parameters keeps them under the same names, so the rules find those too.

Source: Rajbhandari et al. 2020, section 5; Shoeybi et al. 2019, section 3.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh, PartitionSpec

from diffjax.training._about import path_of
from diffjax.training._mesh import FSDP, TENSOR

Rules: TypeAlias = Sequence[tuple[str, PartitionSpec]]
Places: TypeAlias = Callable[[Any], Any]
"""A tree of arrays to the tree of their PartitionSpecs."""

TENSOR_RULES: Rules = (
    # attention: queries, keys, values by columns, the way out by rows
    (r"attention/qkv/kernel", PartitionSpec(None, TENSOR)),
    (r"attention/qkv/bias", PartitionSpec(TENSOR)),
    (r"attention/out/kernel", PartitionSpec(TENSOR, None)),
    # the residual block of the U-Net
    (r"conv_1/kernel", PartitionSpec(None, None, None, TENSOR)),
    (r"conv_1/bias", PartitionSpec(TENSOR)),
    (r"norm_2/(scale|bias)", PartitionSpec(TENSOR)),
    (r"conv_2/kernel", PartitionSpec(None, None, TENSOR, None)),
    # the residual block of the perceptron
    (r"/hidden/kernel", PartitionSpec(None, TENSOR)),
    (r"/hidden/bias", PartitionSpec(TENSOR)),
    (r"/close/kernel", PartitionSpec(TENSOR, None)),
    # transformers: attention
    (r"(to_[qkv]|add_[qkv]_proj|attn/qkv)/kernel", PartitionSpec(None, TENSOR)),
    (r"(to_[qkv]|add_[qkv]_proj|attn/qkv)/bias", PartitionSpec(TENSOR)),
    (r"(to_out__0|to_add_out|attn/proj)/kernel", PartitionSpec(TENSOR, None)),
    # transformers: the feed-forward layer
    (r"(net__0/proj|mlp/fc1)/kernel", PartitionSpec(None, TENSOR)),
    (r"(net__0/proj|mlp/fc1)/bias", PartitionSpec(TENSOR)),
    (r"(net__2|mlp/fc2)/kernel", PartitionSpec(TENSOR, None)),
)
STACK = "__/"  # after the name of blocks that are one array each, [depth, ...]: a rule speaks of one block


def everywhere(tree: Any) -> Any:
    """No array is split."""
    return jax.tree.map(lambda _: PartitionSpec(), tree)


def fsdp_places(mesh: Mesh, min_size: int) -> Places:
    """Each array of at least `min_size` numbers is split along its longest axis that `fsdp` divides.

    Raises:
      ValueError: at the tree, where no array of it can be split.
    """
    parts = mesh.shape[FSDP]

    def places(tree: Any) -> Any:
        specs = jax.tree.map(lambda leaf: _along_longest(leaf, parts, min_size, ()), tree)
        if parts > 1 and not any(jax.tree.leaves(specs, is_leaf=_is_spec)):
            raise ValueError(
                f"fsdp: {parts} parts, but no array has {min_size} numbers or more and an axis that {parts} divides; "
                "take fewer parts, or the replicated layout"
            )
        return specs

    return places


def tensor_places(mesh: Mesh, rules: Rules, min_size: int) -> Places:
    """Arrays that a rule names are split by it; all of them over `fsdp` besides, where the mesh has it.

    Raises:
      ValueError: at the tree, where no rule fits a parameter, or one fits a parameter that it does not divide.
    """
    parts, shards = mesh.shape[TENSOR], mesh.shape.get(FSDP, 1)
    found = [(re.compile(f"(?:{pattern})$"), spec) for pattern, spec in rules]

    def place(path: Any, leaf: Any) -> PartitionSpec:
        name = path_of(path)
        spec = next((spec for pattern, spec in found if pattern.search(name)), PartitionSpec())
        spec = PartitionSpec(None, *spec) if STACK in name and len(spec) else spec
        unfit = _unfit(leaf.shape, spec, mesh)
        if unfit and name.startswith("params/"):
            raise ValueError(f"rules: {name} of shape {leaf.shape} cannot be split by {spec}: {unfit}")
        return _along_longest(leaf, shards, min_size, () if unfit else tuple(spec))

    def places(tree: Any) -> Any:
        specs = jax.tree_util.tree_map_with_path(place, tree)
        named = [
            spec for spec in jax.tree.leaves(specs, is_leaf=_is_spec) if any(TENSOR in _names(axis) for axis in spec)
        ]
        if parts > 1 and not named:
            raise ValueError(f"rules: none of {[pattern for pattern, _ in rules]} fits an array; give rules that do")
        return specs

    return places


def without_fsdp(specs: Any) -> Any:
    """The same places with nothing split over fsdp."""

    def drop(spec: PartitionSpec) -> PartitionSpec:
        kept = [tuple(name for name in _names(axis) if name != FSDP) for axis in spec]
        return _trimmed([names[0] if len(names) == 1 else names or None for names in kept])

    return jax.tree.map(drop, specs, is_leaf=_is_spec)


def _along_longest(leaf: Any, parts: int, min_size: int, taken: tuple[Any, ...]) -> PartitionSpec:
    """`taken`, with the longest free axis that `parts` divides given to fsdp, where none is; of equal ones the last."""
    if any(FSDP in _names(axis) for axis in taken):
        return _trimmed([*taken])
    spec = [*taken, *[None] * (leaf.ndim - len(taken))]
    free = [(n, i) for i, n in enumerate(leaf.shape) if spec[i] is None and n and n % parts == 0]
    if parts > 1 and free and leaf.size >= min_size:
        spec[max(free)[1]] = FSDP
    return _trimmed(spec)


def _trimmed(spec: list[Any]) -> PartitionSpec:
    """Without None at the end, as JAX writes it: a sharding that is spelt otherwise would compile the step again."""
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def _unfit(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> str:
    """Why a spec does not fit a shape; nothing where it does."""
    if len(spec) > len(shape):
        return f"it has {len(shape)} axes"
    for i, name in enumerate(spec):
        for each in _names(name):
            if each not in mesh.shape:
                return f"the mesh has no axis {each!r}"
            if shape[i] % mesh.shape[each]:
                return f"{shape[i]} is not divisible by {each}={mesh.shape[each]}"
    return ""


def _names(axis: Any) -> tuple[str, ...]:
    """The axes of the mesh that one entry of a PartitionSpec names: none, one, or several."""
    return () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)
