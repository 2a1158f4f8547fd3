"""Which devices a command runs on: accelerators as they are found, or each core of a CPU."""

import os

import jax

from diffjax.training._mesh import Device

_MOST_HOST_DEVICES = 8


def use_cores(batch_size: int, devices: int | None) -> None:
    """Makes each core a device of its own, where JAX runs on the CPU: one CPU device keeps two cores half busy.

    It has to be said before JAX starts; a choice in XLA_FLAGS stands, and accelerators do not care. Of several
    processes each has one CPU device unless set otherwise: they may share a machine.
    """
    if devices is not None and devices < 1:
        raise ValueError(f"devices: at least 1, got {devices}")
    flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
    if flag in flags or (devices is None and jax.distributed.is_initialized()):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(cores, _MOST_HOST_DEVICES, max(batch_size, 1))
    count = next(n for n in range(most, 0, -1) if batch_size % n == 0) if devices is None else devices
    os.environ["XLA_FLAGS"] = f"{flags} {flag}={count}".strip()


def find_devices(count: int | None) -> list[Device]:
    """The first `count` devices of each process, or all of them."""
    found = jax.devices()
    each = [[device for device in found if device.process_index == i] for i in range(jax.process_count())]
    least = min(map(len, each))
    if count is not None and count > least:
        raise ValueError(f"devices: there are {least}{' of each process' if len(each) > 1 else ''}, got {count}")
    return [device for some in each for device in some[:count]]


def default_layout(devices: list[Device]) -> str:
    """The fastest layout: pmap for several cores, where kernels' gradients are taken core by core."""
    return "pmap" if len(devices) > 1 and jax.process_count() == 1 and devices[0].platform == "cpu" else "jit"


def name_devices(devices: int) -> str:
    """How many devices of what kind, in words."""
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{devices} {jax.devices()[0].platform} device{'s' if devices > 1 else ''}{processes}"
