"""Which devices a command runs on: accelerators as they are found, or each core of a CPU."""

import os
from typing import Any

import jax

_MOST_HOST_DEVICES = 8


def use_cores(batch_size: int, devices: int | None) -> None:
    """Makes each core a device of its own, where JAX runs on the CPU: one CPU device keeps two cores half busy.

    It has to be said before JAX starts; a choice in XLA_FLAGS stands, and accelerators do not care.
    """
    if devices is not None and devices < 1:
        raise ValueError(f"devices: at least 1, got {devices}")
    flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
    if flag in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(cores, _MOST_HOST_DEVICES, max(batch_size, 1))
    count = next(n for n in range(most, 0, -1) if batch_size % n == 0) if devices is None else devices
    os.environ["XLA_FLAGS"] = f"{flags} {flag}={count}".strip()


def find_devices(count: int | None) -> list[Any]:
    """The first `count` devices, or all of them."""
    found = jax.devices()
    if count is not None and count > len(found):
        raise ValueError(f"devices: there are {len(found)}, got {count}")
    return found[:count]


def name_devices(devices: int) -> str:
    """How many devices of what kind, in words."""
    return f"{devices} {jax.devices()[0].platform} device{'s' if devices > 1 else ''}"
