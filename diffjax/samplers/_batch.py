"""Which arrays of a denoiser, or of diffrax's terms, have the batch axis: what is sliced for one sample or one device.

    terms --split_batch--> (leaves [b, ...], the rest) --vmap | shard_map | a chunk's rows--> terms of fewer samples

Parameters, processes and times are shared by all samples; conditions and the keys of paths belong to each. A class
names the fields whose leaves have the batch axis, [b, ...], by a method; without one all of its fields are shared:

    class MyDenoiser(eqx.Module):
        cond: jax.Array

        def per_sample_fields(self) -> tuple[str, ...]:
            return ("cond",)
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree


def split_batch(tree: PyTree) -> tuple[PyTree, PyTree]:
    """(the leaves with the batch axis, [b, ...]; all others): two pytrees that `equinox.combine` puts together."""

    def mark(path, leaf):
        node = tree
        for entry in path:
            name = getattr(entry, "name", None)
            if name is None:
                node = _item(node, entry)
            elif name in _per_sample_fields(node):
                return True
            else:
                node = getattr(node, name, None)
        return False

    return eqx.partition(tree, jax.tree_util.tree_map_with_path(mark, tree))


def _per_sample_fields(node):
    method = getattr(node, "per_sample_fields", None)
    return () if method is None else method()


def _item(node, entry):
    """A child of a list, tuple or dictionary; None below a node that does not name its children."""
    place: Any = getattr(entry, "idx", getattr(entry, "key", None))
    return node[place] if isinstance(node, list | tuple | dict) else None


def check_batch(rows: PyTree, b: int) -> None:
    """Checks that each leaf of `rows`, what `split_batch` found, has the batch axis [b, ...].

    Raises:
      ValueError: one has another length.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
        if jnp.shape(leaf)[:1] != (b,):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{name}: one row for each of {b} samples is needed, got shape {jnp.shape(leaf)}")


def over_devices(
    function: Callable[[PyTree, PyTree], PyTree], mesh: Mesh | None, rows: PyTree, shared: PyTree, out: PyTree
) -> PyTree:
    """function(rows, shared) with the leaves of rows, [b, ...], split over all devices of a mesh by `jax.shard_map`.

    Each device runs the function on its own rows, a pytree of [b / devices, ...], and no device waits for another.

    Args:
      function: of two pytrees.
      mesh: or None, for a plain call.
      rows: leaves [b, ...].
      shared: any pytree; all devices see it.
      out: of each output (a prefix of its tree) the axis along which devices are put together, or -1: all agree.

    Raises:
      ValueError: b cannot be split evenly, or `jax.set_mesh` has set another mesh.
    """
    if mesh is None:
        return function(rows, shared)
    for leaf in jax.tree.leaves(rows):
        if leaf.shape[0] % mesh.size:
            raise ValueError(f"mesh: {leaf.shape[0]} samples cannot be split evenly over {mesh.size} devices")
    mesh = Mesh(mesh.devices, mesh.axis_names)  # of automatic axes, whatever its own: shardings are said here
    context = jax.sharding.get_abstract_mesh()
    if not context.empty and (context.shape_tuple, context.axis_types) != (mesh.shape_tuple, mesh.axis_types):
        raise ValueError(
            f"mesh: `jax.set_mesh` has set another one around this call, of {context.axis_types} over "
            f"{dict(context.shape)}; call outside of it, or set one of automatic axes: "
            f"jax.make_mesh({mesh.axis_sizes}, {mesh.axis_names}, axis_types=(AxisType.Auto,) * {len(mesh.axis_names)})"
        )
    split = lambda axis: PartitionSpec(*[None] * axis, mesh.axis_names) if axis >= 0 else PartitionSpec()
    arrays, static = eqx.partition(shared, eqx.is_array)
    run = jax.shard_map(
        lambda rows, arrays: function(rows, eqx.combine(arrays, static)),
        mesh=mesh,
        in_specs=(split(0), split(-1)),
        out_specs=jax.tree.map(split, out),
        check_vma=False,  # loops whose carry begins with constants; nothing here is summed over devices
    )
    return run(rows, arrays)
