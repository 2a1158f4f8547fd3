"""A command on several processes: they meet, check that they were told the same, and process 0 speaks and writes.

meet --> keep_compiled --> use_cores --> check_together --> the command        one process alone meets nobody
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
from diffjax.training import Refused, check_same, is_main, join

_OWN = ("hosts", "compile_cache")
"""What each process may have for itself."""


def start_together(options: Any, batch_size: int, devices: int | None = None) -> None:
    """What every command begins with: `meet`, `keep_compiled`, `use_cores`, `check_together`."""
    meet(options.hosts)
    keep_compiled(options.compile_cache)
    use_cores(batch_size, devices)
    check_together(options)


def meet(hosts: Hosts) -> None:
    """Joins the other processes, where there are any; before JAX starts."""
    join(
        hosts.coordinator,
        hosts.num_processes,
        hosts.process_id,
        heartbeat=hosts.heartbeat,
        timeout=hosts.join_timeout,
        tell=lambda text: print_line(f"diffjax: {text}", error=True),
    )


def check_together(options: Any) -> None:
    """Raises `Refused` in every process where options, versions or devices differ between two of them."""
    if jax.process_count() == 1:
        return
    found = Counter(device.process_index for device in jax.devices())
    for process, devices in found.items():  # known to each without asking, and asking needs as many in each
        if devices != found[0]:
            raise Refused(f"devices: {found[0]} in process 0, {devices} in process {process}; give all as many")
    versions = {"diffjax's version": diffjax.__version__, "jax's version": version("jax")}
    check_same(versions | {"command": type(options).__name__} | _flat(options, ""))


def _flat(options: Any, path: str) -> dict[str, Any]:
    """path.of.a.field -> value, of a tree of dataclasses."""
    if not dataclasses.is_dataclass(options):
        return {path: options}
    names = [item.name for item in dataclasses.fields(options) if path or item.name not in _OWN]
    dot = f"{path}." if path and path != "config" else ""
    return {key: value for name in names for key, value in _flat(getattr(options, name), f"{dot}{name}").items()}


def say(text: str) -> None:
    """Prints a line, in process 0 alone."""
    if is_main():
        print_line(text)
