"""The step under `jax.pmap`: a copy of the state on each device, a part of the batch for each.

    state  [...]        --put_state-->  [devices, ...]                 --get_state-->  [...]
    batch  [b, ...]     --put_batch-->  [devices, b/devices, ...]

Copies are stacked and unstacked under `jax.shard_map`, where each device adds a first axis to its own array or drops
it: nothing is computed, and nothing is communicated. Each of several processes passes `jax.pmap` the copies and parts
of its own devices, and gets theirs back; `get_state` returns arrays of all processes again, for a checkpoint.
"""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from diffjax._arrays import is_key
from diffjax._numbers import checked_numbers
from diffjax.training._layouts import (
    Layout,
    abstract,
    check_steps,
    make_on_host,
    move,
    place,
    scan_steps,
    stack_batches,
)
from diffjax.training._mesh import DATA, Devices, batch_parts, check_divides, data_mesh
from diffjax.training._state import TrainState
from diffjax.training._step import Step, batch_size_of

T = TypeVar("T")


@checked_numbers
def pmap_layout(step: Step, devices: Devices | None = None, *, steps: int = 1) -> Layout:
    """The step under `jax.pmap`: for each device a copy of the state [*d] and a part [b/devices, ...] of the batch.

    Args:
      step: from `make_train_step(..., axis_name="data")`.
      devices: all by default, those of every process.
      steps: optimiser steps a call.
    """
    check_steps(steps)
    mesh = data_mesh(devices)
    local = data_mesh([device for device in mesh.devices.flat if device.process_index == jax.process_index()])
    parts, split = batch_parts(mesh), NamedSharding(local, PartitionSpec(DATA))
    compiled: Step = jax.pmap(
        scan_steps(step, steps), axis_name=DATA, devices=list(mesh.devices), out_axes=(0, None), donate_argnums=0
    )
    replicated = lambda tree: jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)

    def put_state(state: TrainState) -> TrainState:
        return _stack_copies(_on_mesh(place(state, replicated(state)), local), local)

    def put_batch(batch: PyTree) -> PyTree:
        return jax.device_put(_split(stack_batches(batch, steps, parts), local.size, axis=int(steps > 1)), split)

    def shapes_of_one(state: TrainState) -> TrainState:
        """The shapes [*d] of one copy, whether the state was placed or not."""
        placed = jnp.ndim(state.step) == 1
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state) if placed else state

    return Layout(
        devices=parts,
        step=compiled,
        put_state=put_state,
        move_state=lambda state: move(put_state, state),
        put_batch=put_batch,
        get_state=lambda state: _on_mesh(_unstack_copies(state, local), mesh),
        init=lambda make_state: put_state(make_on_host(make_state)),
        abstract=lambda state: abstract(shapes_of_one(state), replicated(state)),
        steps=steps,
        about={"layout": "pmap", DATA: parts},
    )


def _on_mesh(tree: T, mesh: Mesh) -> T:
    """Replicated arrays [*d], with the sharding of another mesh: of all processes, or of this one's devices.

    Nothing is communicated: each device of this process has its copy before and after.
    """
    if jax.process_count() == 1:
        return tree
    replicated = NamedSharding(mesh, PartitionSpec())

    def on_mesh(leaf: jax.Array) -> jax.Array:
        if is_key(leaf):
            return jax.random.wrap_key_data(on_mesh(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        copies = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, replicated, copies)

    return jax.tree.map(on_mesh, tree)


def replicate(tree: PyTree, devices: Devices | None = None) -> PyTree:
    """A copy of a tree on each device: leaves [*d] become [devices, *d], sharded as the results of `jax.pmap`."""
    mesh = data_mesh(devices)
    return _stack_copies(place(tree, NamedSharding(mesh, PartitionSpec())), mesh)


def unreplicate(tree: PyTree) -> PyTree:
    """The first copy of a replicated tree: leaves [devices, *d] become [*d] on the first device."""
    return jax.device_put(jax.tree.map(lambda leaf: leaf[0], tree), jax.local_devices()[0])


@checked_numbers
def split_batch(batch: PyTree, devices: int) -> PyTree:
    """Reshapes the leaves of a batch from [b, ...] to [devices, b/devices, ...].

    Raises:
      ValueError: b is not divisible by `devices`.
    """
    check_divides(batch_size_of(batch), devices)
    return _split(batch, devices, axis=0)


def _split(batch: PyTree, devices: int, axis: int) -> PyTree:
    """Splits an axis of each leaf over devices, whose axis becomes the first."""

    def split(leaf: jax.Array) -> jax.Array:
        shape = leaf.shape
        pieces = leaf.reshape(*shape[:axis], devices, shape[axis] // devices, *shape[axis + 1 :])
        return pieces.swapaxes(0, axis)

    return jax.tree.map(split, batch)


_REPLICATED, _SPLIT = PartitionSpec(), PartitionSpec(DATA)


@functools.partial(jax.jit, static_argnums=1)
def _stack_copies(tree: PyTree, mesh: Mesh) -> PyTree:
    """[*d], replicated, to [devices, *d]."""
    add = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)
    return jax.shard_map(add, mesh=mesh, in_specs=_REPLICATED, out_specs=_SPLIT, check_vma=False)(tree)


@functools.partial(jax.jit, static_argnums=1)
def _unstack_copies(tree: PyTree, mesh: Mesh) -> PyTree:
    """[devices, *d] to [*d], replicated: on each device its own copy."""
    drop = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    return jax.shard_map(drop, mesh=mesh, in_specs=_SPLIT, out_specs=_REPLICATED, check_vma=False)(tree)
