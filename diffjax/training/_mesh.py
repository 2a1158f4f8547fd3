"""Devices in a grid with three names, and what each is for.

    data     the batch is split, the state is whole           \\  both split the batch [b, ...]
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

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
Devices: TypeAlias = Sequence[Any]


def make_mesh(*, data: int | None = None, fsdp: int = 1, tensor: int = 1, devices: Devices | None = None) -> Mesh:
    """A mesh of shape [data, fsdp, tensor] with the axes "data", "fsdp" and "tensor".

    Args:
      data: how many parts the batch is split into, beside fsdp; by default, what the other two leave of the devices.
      fsdp: how many parts the state and the batch are split into.
      tensor: how many parts single layers are split into.
      devices: which devices; the first of them are used, all by default.

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


def all_devices() -> list[Any]:
    """The devices of all processes, those of process 0 first: `jax.make_mesh` would mix them, and with them whose rows
    of a batch are whose."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh that split a batch."""
    return tuple(name for name in (DATA, FSDP) if name in mesh.shape)


def batch_parts(mesh: Mesh) -> int:
    """How many parts a batch is split into.

    Raises:
      ValueError: the processes of a run would not have equal parts of their own.
    """
    parts = int(np.prod([mesh.shape[name] for name in batch_axes(mesh)], dtype=int))
    processes = jax.process_count()
    if processes > 1:
        rows: dict[int, set[Any]] = {process: set() for process in range(processes)}
        places = NamedSharding(mesh, PartitionSpec(batch_axes(mesh))).devices_indices_map((parts,))
        for device, (row,) in places.items():
            rows[device.process_index].add(row.start or 0)
        each = parts // processes
        if parts % processes or any(mine != set(range(i * each, (i + 1) * each)) for i, mine in rows.items()):
            raise ValueError(
                f"mesh: {dict(mesh.shape)} splits a batch into {parts} parts, of which {processes} processes cannot "
                "have equally many each to themselves, in their order; let data x fsdp be a multiple of the processes"
            )
    return parts


def check_divides(batch_size: int, devices: int) -> None:
    """Raises `ValueError` naming both where a batch cannot be split evenly."""
    if batch_size < 1 or batch_size % devices:
        raise ValueError(f"batch_size: {batch_size} samples cannot be split evenly over {devices} devices")
