"""How a run is spread over devices: the words of the command line become a layout.

--devices, --layout, --split, --accumulate --> devices, mesh, step --> Layout
"""

import jax
from jax.sharding import Mesh

from diffjax.cli._devices import default_layout, find_devices
from diffjax.cli._options import Train
from diffjax.config._averages import Averages
from diffjax.training import (
    Family,
    Layout,
    data_mesh,
    fsdp_layout,
    jit_layout,
    make_mesh,
    make_train_step,
    pmap_layout,
    tensor_layout,
)
from diffjax.training._mesh import Device

LAYOUTS = ("jit", "fsdp", "tensor", "pmap")
_LEVELS = 10
"""Parts of time that the log tells the loss of."""


def make_layout(options: Train, family: Family, ema: Averages, name: str | None = None) -> Layout:
    """The layout that the options name, or another of the same devices.

    Raises:
      ValueError: as `check_layout`, or the batch does not divide into the parts of an objective's updates,
        or these not into those that are accumulated.
    """
    name = layout_name(options) if name is None else name
    devices, mesh = check_layout(options, name)
    _check_updates(family, options, len(devices) if name == "pmap" else None)
    axis = "data" if name == "pmap" else None
    levels = 0 if family.denoiser is None else _LEVELS  # of noise
    step = make_train_step(family.objectives, ema=ema, axis_name=axis, accumulate=options.accumulate, levels=levels)
    if name == "pmap":
        return pmap_layout(step, devices)
    if name == "jit":
        return jit_layout(step, data_mesh(devices))
    return (fsdp_layout if name == "fsdp" else tensor_layout)(step, mesh)


def _check_updates(family: Family, options: Train, devices: int | None) -> None:
    """Of a batch, or of each device's part of it, which updates of one objective share, each accumulating its own."""
    size, accumulate = options.config.batch_size, options.accumulate
    size, where = (size, "") if devices is None else (size // devices, " a device")
    for objective in family.objectives:
        if size % objective.times:
            parts = f"{size} samples{where} cannot be taken in {objective.times} equal parts"
            raise ValueError(f"family.updates: {parts}; take a number that divides them, or another --batch-size")
        if (own := size // objective.times) % accumulate:
            raise ValueError(
                f"accumulate: {own} samples{where}, those of each of {objective.times} updates, cannot be taken in "
                f"{accumulate} equal parts; take a number that divides them, or another --family.updates"
            )


def layout_name(options: Train) -> str:
    """What `options.layout` says, or the default for the devices."""
    return options.layout or default_layout(find_devices(options.devices))


def check_layout(options: Train, name: str | None = None) -> tuple[list[Device], Mesh | None]:
    """The devices of the layout, and their mesh where it is not the plain one; before there is any data.

    Raises:
      ValueError: the batch does not divide over devices and parts, or `split` does not divide the devices.
    """
    name = layout_name(options) if name is None else name
    devices = find_devices(options.devices)
    mesh = None if name in ("jit", "pmap") else make_mesh(**{name: _split(options, devices, name)}, devices=devices)
    _check_batch(options, len(devices) if name != "tensor" or mesh is None else len(devices) // mesh.shape["tensor"])
    return devices, mesh


def _split(options: Train, devices: list[Device], name: str) -> int:
    """Over how many devices arrays are split; with several processes each splits them among its own by default."""
    split = len(devices) // (jax.process_count() if name == "tensor" else 1)
    split = split if options.split is None else options.split
    if split < 1 or len(devices) % split:
        raise ValueError(f"split: {split} does not divide the {len(devices)} devices")
    return split


def _check_batch(options: Train, devices: int) -> None:
    size, accumulate = options.config.batch_size, options.accumulate
    if accumulate < 1:
        raise ValueError(f"accumulate: at least 1, got {accumulate}")
    if size % devices:
        raise ValueError(f"batch_size: {size} cannot be split evenly over {devices} devices")
    if size % (devices * accumulate):
        parts = f"{size // devices} samples a device cannot be taken in {accumulate} equal parts"
        raise ValueError(f"accumulate: {parts}; take a number that divides them, or another --batch-size")
