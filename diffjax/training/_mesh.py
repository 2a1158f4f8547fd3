"""Meshes: devices in a grid with up to three named axes.

    data     the batch is split, the state is replicated      \\  both split the batch [b, ...]
    fsdp     the batch is split, and so is the state          /
    tensor   the same samples; single layers are split

Source: fully sharded data parallelism, Rajbhandari et al. 2020 (ZeRO, stage 3); splitting layers, Shoeybi et al. 2019
(Megatron-LM), section 3.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffjax._numbers import checked_numbers

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
Device: TypeAlias = Any
"""A `jax.Device`, which is a variable and no type to type checkers."""
Devices: TypeAlias = Sequence[Device]


@checked_numbers
def make_mesh(*, data: int | None = None, fsdp: int = 1, tensor: int = 1, devices: Devices | None = None) -> Mesh:
    """A mesh of shape [data, fsdp, tensor] with the axes "data", "fsdp" and "tensor".

    Args:
      data: the batch is split into data x fsdp parts; by default the number of devices over the other two.
      fsdp: number of parts that the state and the batch are split into.
      tensor: number of parts that single layers are split into.
      devices: the devices, of which the first are used; all by default.

    Returns:
      A mesh of data x fsdp x tensor devices.

    Raises:
      ValueError: a number is below 1, or the mesh is larger than the devices or, without `data`, does not divide them.
    """
    devices = all_devices() if devices is None else list(devices)
    for name, value in {"data": 1 if data is None else data, "fsdp": fsdp, "tensor": tensor}.items():
        if value < 1:
            raise ValueError(f"{name}: at least 1, got {value}")
    if data is None and len(devices) % (fsdp * tensor):
        raise ValueError(f"fsdp, tensor: {fsdp} x {tensor} does not divide the {len(devices)} devices that there are")
    shape = (len(devices) // (fsdp * tensor) if data is None else data, fsdp, tensor)
    size = shape[0] * fsdp * tensor
    if size > len(devices):
        raise ValueError(f"data, fsdp, tensor: a mesh of {shape} needs {size} devices, there are {len(devices)}")
    grid = np.asarray(devices[:size], object).reshape(shape)
    return Mesh(grid, (DATA, FSDP, TENSOR), axis_types=(AxisType.Auto,) * 3)


def data_mesh(devices: Devices | None = None) -> Mesh:
    """A mesh of shape [devices] with the one axis "data", over the devices given, all by default."""
    devices = all_devices() if devices is None else list(devices)
    return Mesh(np.asarray(devices, object), (DATA,), axis_types=(AxisType.Auto,))


def all_devices() -> list[Device]:
    """The devices of all processes, in the order of the processes, so that each has consecutive rows of a batch.

    `jax.make_mesh` would order them by their interconnect.
    """
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh that split a batch."""
    return tuple(name for name in (DATA, FSDP) if name in mesh.shape)


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a batch [b, ...] is split into.

    Raises:
      ValueError: the processes of a run would not have equally many parts each.
    """
    parts = int(np.prod([mesh.shape[name] for name in batch_axes(mesh)], dtype=int))
    processes = jax.process_count()
    if processes > 1:
        rows: dict[int, set[int]] = {process: set() for process in range(processes)}
        indices = NamedSharding(mesh, PartitionSpec(batch_axes(mesh))).devices_indices_map((parts,))
        for device, (row,) in indices.items():
            rows[device.process_index].add(row.start or 0)
        each = parts // processes
        if parts % processes or any(own != set(range(i * each, (i + 1) * each)) for i, own in rows.items()):
            raise ValueError(
                f"mesh: {dict(mesh.shape)} splits a batch into {parts} parts, of which {processes} processes cannot "
                "have equally many each to themselves, in their order; let data x fsdp be a multiple of the processes"
            )
    return parts


def check_divides(batch_size: int, devices: int) -> None:
    """Raises `ValueError` naming both where a batch cannot be split evenly."""
    if batch_size < 1 or batch_size % devices:
        raise ValueError(f"batch_size: {batch_size} samples cannot be split evenly over {devices} devices")
