"""The step under `jax.pmap`: a copy of the state on each device, a piece of the batch for each.

    state  [...]        --put_state-->  [devices, ...]                 --get_state-->  [...]
    batch  [b, ...]     --put_batch-->  [devices, b/devices, ...]

Copies are made and taken under `jax.shard_map`, where each device gives its own array a first axis or drops it:
nothing is computed, and nothing is sent. Of several processes each gives `jax.pmap` the copies and pieces of its own
devices, and gets theirs back; what comes out of `get_state`, for a checkpoint, is one array of all processes again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax._arrays import is_key
from diffjax.training._mesh import DATA, Devices, batch_parts, check_divides, data_mesh
from diffjax.training._sharding import Layout, abstract, check_steps, made_on_host, move, place, several, stack
from diffjax.training._step import Step, batch_size_of


def pmap_layout(step: Step, devices: Devices | None = None, *, steps: int = 1) -> Layout:
    """The step under `jax.pmap`: a copy of the state on each device, a piece of the batch [b, ...] for each.

    Args:
      step: from `make_train_step(..., axis_name="data")`.
      devices: all by default, those of every process.
      steps: optimiser steps a call.
    """
    check_steps(steps)
    mesh = data_mesh(devices)
    here = data_mesh([device for device in mesh.devices.flat if device.process_index == jax.process_index()])
    parts, split = batch_parts(mesh), NamedSharding(here, PartitionSpec(DATA))
    compiled: Any = jax.pmap(
        several(step, steps), axis_name=DATA, devices=list(mesh.devices), out_axes=(0, None), donate_argnums=0
    )
    whole = lambda tree: jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)

    def put_state(state: Any) -> Any:
        return _spread(_on_mesh(place(state, whole(state)), here), here)

    def put_batch(batch: Any) -> Any:
        return jax.device_put(_cut(stack(batch, steps, parts), here.size, axis=int(steps > 1)), split)

    def one(state: Any) -> Any:
        """The shapes of one copy, whether the state was placed or not."""
        placed = jnp.ndim(state.step) == 1
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state) if placed else state

    return Layout(
        devices=parts,
        step=compiled,
        put_state=put_state,
        move_state=lambda state: move(put_state, state),
        put_batch=put_batch,
        get_state=lambda state: _on_mesh(_gather(state, here), mesh),
        init=lambda make_state: put_state(made_on_host(make_state)),
        abstract=lambda state: abstract(one(state), whole(state)),
        steps=steps,
        about={"layout": "pmap", DATA: parts},
    )


def _on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Arrays that are whole on each device, said to be so on another mesh: of all processes, or of this one's devices.

    No number moves: each device of this process has its copy before and after.
    """
    if jax.process_count() == 1:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())

    def one(leaf: Any) -> Any:
        if is_key(leaf):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        copies = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, whole, copies)

    return jax.tree.map(one, tree)


def replicate(tree: Any, devices: Devices | None = None) -> Any:
    """A copy of a tree on each device, leaves [devices, ...], laid out as `jax.pmap` keeps its own results."""
    mesh = data_mesh(devices)
    return _spread(place(tree, NamedSharding(mesh, PartitionSpec())), mesh)


def unreplicate(tree: Any) -> Any:
    """The first copy of a replicated tree: leaves [devices, ...] become [...] on the first device."""
    return jax.device_put(jax.tree.map(lambda leaf: leaf[0], tree), jax.local_devices()[0])


def split_batch(batch: Any, devices: int) -> Any:
    """Reshapes the leaves of a batch from [b, ...] to [devices, b/devices, ...].

    Raises:
      ValueError: b is not divisible by `devices`.
    """
    check_divides(batch_size_of(batch), devices)
    return _cut(batch, devices, axis=0)


def _cut(batch: Any, devices: int, axis: int) -> Any:
    """Splits an axis of each leaf over devices, whose axis comes first."""

    def cut(leaf: Any) -> Any:
        shape = leaf.shape
        pieces = leaf.reshape(*shape[:axis], devices, shape[axis] // devices, *shape[axis + 1 :])
        return pieces.swapaxes(0, axis)

    return jax.tree.map(cut, batch)


_WHOLE, _SPLIT = PartitionSpec(), PartitionSpec(DATA)


@functools.partial(jax.jit, static_argnums=1)
def _spread(tree: Any, mesh: Mesh) -> Any:
    """[...], whole on each device, to [devices, ...]."""
    add = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)
    return jax.shard_map(add, mesh=mesh, in_specs=_WHOLE, out_specs=_SPLIT, check_vma=False)(tree)


@functools.partial(jax.jit, static_argnums=1)
def _gather(tree: Any, mesh: Mesh) -> Any:
    """[devices, ...] to [...], whole on each device: its own copy."""
    drop = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    return jax.shard_map(drop, mesh=mesh, in_specs=_SPLIT, out_specs=_WHOLE, check_vma=False)(tree)
