"""Data parallelism: one step function, laid out over devices in one of two ways.

              put_state            put_batch                      get_state
    jit     replicated           split over the mesh            one copy          the compiler adds the means
    pmap    a copy a device      [devices, b/devices, ...]      the first copy    the step adds them (axis_name)

A `Layout` is four functions, so the loop knows nothing of devices. Steps are compiled once, and the state given to one
is donated: use what it returns.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffjax.training._state import TrainState
from diffjax.training._step import Step, batch_size_of

AXIS = "data"
Devices: TypeAlias = Sequence[Any]


class Layout(NamedTuple):
    """A step function placed on devices.

    Attributes:
      devices: how many devices a batch is split over.
      step: `(state, batch) -> (state, metrics)` on placed arguments; compiled; the state is donated.
      put_state: places a state on the devices, a copy.
      put_batch: splits a batch of leaves [b, ...] over the devices; ValueError where b does not divide.
      get_state: one ordinary state from a placed one.
    """

    devices: int
    step: Step
    put_state: Callable[[TrainState], TrainState]
    put_batch: Callable[[Any], Any]
    get_state: Callable[[TrainState], TrainState]


def data_mesh(devices: Devices | None = None) -> Mesh:
    """A mesh of shape [devices] with the one axis 'data', over the devices given, all by default."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_divides(batch_size: int, devices: int) -> None:
    """Raises `ValueError` naming both where a batch cannot be split evenly."""
    if batch_size < 1 or batch_size % devices:
        raise ValueError(f"batch_size: {batch_size} samples cannot be split evenly over {devices} devices")


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Places a batch of leaves [b, ...] on the mesh, split along b.

    Raises:
      ValueError: b is not divisible by the number of devices.
    """
    check_divides(batch_size_of(batch), mesh.size)
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def jit_layout(step: Step, mesh: Mesh | None = None) -> Layout:
    """The step under `jax.jit`: state replicated, batch [b, ...] split, gradients averaged by the compiler.

    Args:
      step: from `make_train_step` without an axis name.
      mesh: from `data_mesh`; all devices by default.
    """
    mesh = data_mesh() if mesh is None else mesh
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    compiled = jax.jit(step, in_shardings=(everywhere, split), out_shardings=(everywhere, everywhere), donate_argnums=0)
    return Layout(
        devices=mesh.size,
        step=compiled,
        put_state=lambda state: jax.device_put(_copy(state), everywhere),
        put_batch=lambda batch: shard_batch(mesh, batch),
        get_state=lambda state: state,
    )


def pmap_layout(step: Step, devices: Devices | None = None) -> Layout:
    """The step under `jax.pmap`: a copy of the state on each device, a piece of the batch [b, ...] for each.

    Args:
      step: from `make_train_step(..., axis_name="data")`.
      devices: all by default.
    """
    devices = jax.devices() if devices is None else list(devices)
    compiled: Any = jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)
    return Layout(
        devices=len(devices),
        step=compiled,
        put_state=lambda state: replicate(state, devices),
        put_batch=lambda batch: split_batch(batch, len(devices)),
        get_state=unreplicate,
    )


def replicate(tree: Any, devices: Devices | None = None) -> Any:
    """A copy of a tree on each device, leaves [devices, ...], laid out as `jax.pmap` keeps its own results."""
    devices = jax.devices() if devices is None else list(devices)
    spread = jax.pmap(lambda value, _: value, axis_name=AXIS, in_axes=(None, 0), devices=devices)
    return spread(_copy(tree), np.arange(len(devices)))


def _copy(tree: Any) -> Any:
    """A copy of each leaf. Placed arrays share the memory of the one they came from, which a donation would free;
    `device_put(may_alias=False)` prevents that on one device only."""
    return jax.tree.map(jnp.copy, tree)


def unreplicate(tree: Any) -> Any:
    """The first copy of a replicated tree: leaves [devices, ...] become [...] on the first device."""
    return jax.device_put(jax.tree.map(lambda leaf: leaf[0], tree), jax.devices()[0])


def split_batch(batch: Any, devices: int) -> Any:
    """Reshapes the leaves of a batch from [b, ...] to [devices, b/devices, ...].

    Raises:
      ValueError: b is not divisible by `devices`.
    """
    size = batch_size_of(batch)
    check_divides(size, devices)
    return jax.tree.map(lambda leaf: leaf.reshape(devices, size // devices, *leaf.shape[1:]), batch)
