"""A command on several processes: they connect and compare their options; process 0 prints and writes.

initialize_processes --> keep_compiled --> use_cores --> check_same_options --> the command
"""

import dataclasses
from collections import Counter
from importlib.metadata import version
from typing import Any

import jax

import diffjax
from diffjax.cli._compiled import keep_compiled
from diffjax.cli._devices import use_cores
from diffjax.cli._options import Hosts
from diffjax.cli._print import print_line
from diffjax.training import Refused, check_same, initialize, is_main

_OWN = ("hosts", "compile_cache")
"""Options that may differ between processes."""


def start_processes(options: Any, batch_size: int, devices: int | None = None) -> None:
    """What every command begins with: the functions in the picture above."""
    initialize_processes(options.hosts)
    keep_compiled(options.compile_cache)
    use_cores(batch_size, devices)
    check_same_options(options)


def initialize_processes(hosts: Hosts) -> None:
    """Connects to the other processes, where there are any, before JAX starts; an uncaught error ends this one."""
    initialize(
        hosts.coordinator,
        hosts.num_processes,
        hosts.process_id,
        heartbeat=hosts.heartbeat,
        timeout=hosts.join_timeout,
        abort_on_error=True,
        log=lambda text: print_line(f"diffjax: {text}", error=True),
    )


def check_same_options(options: object) -> None:
    """Raises `Refused` in every process where options, versions or devices differ between two of them."""
    if jax.process_count() == 1:
        return
    counts = Counter(device.process_index for device in jax.devices())
    for process, devices in counts.items():  # each process knows all; a collective would need equally many in each
        if devices != counts[0]:
            raise Refused(f"devices: {counts[0]} in process 0, {devices} in process {process}; give all as many")
    versions = {"diffjax's version": diffjax.__version__, "jax's version": version("jax")}
    check_same(versions | {"command": type(options).__name__} | _flat(options, ""))


def _flat(options: object, path: str) -> dict[str, object]:
    """path.of.a.field -> value, of a tree of dataclasses."""
    if not dataclasses.is_dataclass(options):
        return {path: options}
    names = [item.name for item in dataclasses.fields(options) if path or item.name not in _OWN]
    dot = f"{path}." if path and path != "config" else ""
    return {key: value for name in names for key, value in _flat(getattr(options, name), f"{dot}{name}").items()}


def log(text: str) -> None:
    """Prints a line, in process 0 alone."""
    if is_main():
        print_line(text)
