"""PartitionSpecs: which axis of which array is split over which axis of the mesh.

    fsdp      the longest divisible axis of every array that is large enough: parameters, averages, optimiser alike
    tensor    by the names of our networks' layers, in pairs, so that the activations between two layers stay split:

      x -> [ W1 | W1' ] -> f -> [ W2  ] -> + -> y         columns first, then rows; one sum over devices at the end
                                [ W2' ]

A rule is a regular expression for the end of an array's path ("params/down_0_0/conv_1/kernel") and a PartitionSpec. An
optimiser whose state has arrays like the parameters has them under the same names, so the rules apply to those too.

Source: Rajbhandari et al. 2020, section 5; Shoeybi et al. 2019, section 3.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from diffjax._arrays import path_of
from diffjax.training._mesh import FSDP, TENSOR

Rules: TypeAlias = Sequence[tuple[str, PartitionSpec]]
Specs: TypeAlias = Callable[[PyTree], PyTree]
"""A tree of arrays to the tree of their PartitionSpecs."""
Leaf: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct
Axis: TypeAlias = str | tuple[str, ...] | None
"""An entry of a PartitionSpec."""

TENSOR_RULES: Rules = (
    # attention: queries, keys, values by columns, the output projection by rows
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
STACK = "__/"  # after the name of stacked blocks, one array [depth, ...] each: a rule is for one block


def replicated_specs(tree: PyTree) -> PyTree:
    """No array is split."""
    return jax.tree.map(lambda _: PartitionSpec(), tree)


def fsdp_specs(mesh: Mesh, min_size: int) -> Specs:
    """Each array of at least `min_size` numbers is split along its longest axis that `fsdp` divides.

    Raises:
      ValueError: when called, no array of the tree can be split.
    """
    parts = mesh.shape[FSDP]

    def specs_of(tree: PyTree) -> PyTree:
        specs = jax.tree.map(lambda leaf: _along_longest(leaf, parts, min_size, ()), tree)
        if parts > 1 and not any(jax.tree.leaves(specs, is_leaf=_is_spec)):
            raise ValueError(
                f"fsdp: {parts} parts, but no array has {min_size} numbers or more and an axis that {parts} divides; "
                "take fewer parts, or the replicated layout"
            )
        return specs

    return specs_of


def tensor_specs(mesh: Mesh, rules: Rules, min_size: int) -> Specs:
    """Each array is split by the first rule that fits its path; and over `fsdp`, where the mesh has that axis.

    Raises:
      ValueError: when called, no rule fits an array, or one fits a parameter that it does not divide.
    """
    parts, shards = mesh.shape[TENSOR], mesh.shape.get(FSDP, 1)
    compiled = [(re.compile(f"(?:{pattern})$"), spec) for pattern, spec in rules]

    def spec_of(path: jax.tree_util.KeyPath, leaf: Leaf) -> PartitionSpec:
        name = path_of(path)
        spec = next((spec for pattern, spec in compiled if pattern.search(name)), PartitionSpec())
        spec = PartitionSpec(None, *spec) if STACK in name and len(spec) else spec
        mismatch = _mismatch(leaf.shape, spec, mesh)
        if mismatch and name.startswith("params/"):
            raise ValueError(f"rules: {name} of shape {leaf.shape} cannot be split by {spec}: {mismatch}")
        return _along_longest(leaf, shards, min_size, () if mismatch else tuple(spec))

    def specs_of(tree: PyTree) -> PyTree:
        specs = jax.tree_util.tree_map_with_path(spec_of, tree)
        named = [
            spec for spec in jax.tree.leaves(specs, is_leaf=_is_spec) if any(TENSOR in _names(axis) for axis in spec)
        ]
        if parts > 1 and not named:
            raise ValueError(f"rules: none of {[pattern for pattern, _ in rules]} fits an array; give rules that do")
        return specs

    return specs_of


def without_fsdp(specs: PyTree) -> PyTree:
    """The same PartitionSpecs without the axis fsdp."""

    def drop(spec: PartitionSpec) -> PartitionSpec:
        rest = [tuple(name for name in _names(axis) if name != FSDP) for axis in spec]
        return _trimmed([names[0] if len(names) == 1 else names or None for names in rest])

    return jax.tree.map(drop, specs, is_leaf=_is_spec)


def _along_longest(leaf: Leaf, parts: int, min_size: int, taken: tuple[Axis, ...]) -> PartitionSpec:
    """`taken`, with fsdp for the longest free axis that `parts` divides, of equal ones the last; once in all."""
    if any(FSDP in _names(axis) for axis in taken):
        return _trimmed([*taken])
    spec = [*taken, *[None] * (len(leaf.shape) - len(taken))]
    free = [(n, i) for i, n in enumerate(leaf.shape) if spec[i] is None and n and n % parts == 0]
    if parts > 1 and free and leaf.size >= min_size:
        spec[max(free)[1]] = FSDP
    return _trimmed(spec)


def _trimmed(spec: list[Axis]) -> PartitionSpec:
    """Without None at the end, as JAX writes it: otherwise the sharding would differ, and the step compile again."""
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def _mismatch(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> str:
    """Why a spec does not fit a shape; "" where it does."""
    if len(spec) > len(shape):
        return f"it has {len(shape)} axes"
    for i, name in enumerate(spec):
        for each in _names(name):
            if each not in mesh.shape:
                return f"the mesh has no axis {each!r}"
            if shape[i] % mesh.shape[each]:
                return f"{shape[i]} is not divisible by {each}={mesh.shape[each]}"
    return ""


def _names(axis: Axis) -> tuple[str, ...]:
    """The axes of the mesh that one entry of a PartitionSpec names: none, one, or several."""
    return () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)


def _is_spec(node: object) -> bool:
    return isinstance(node, PartitionSpec)
