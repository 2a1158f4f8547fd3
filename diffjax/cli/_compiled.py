"""Compiled programs are kept from one command to the next, so that a start takes seconds rather than a minute.

$XDG_CACHE_HOME/diffjax/compiled-MACHINE   (~/.cache where that is not set), or the folder of --compile-cache

A compiled program is code that is run, so the folder must be the user's own: it is made for nobody else to read or
write, and one that others may write in is not used. Programs that were written a month ago are deleted.

Several processes compile together, and one that found its program there would leave the others waiting for it; so a
run of several keeps nothing unless a folder is named.
"""

import contextlib
import os
import platform
import time
import zlib
from pathlib import Path

import jax

_DAYS = 30


def keep_compiled(choice: str | None) -> None:
    """Has JAX keep what it compiles; where JAX was given a folder, or to keep nothing, by its own options, that stands.

    Args:
      choice: a folder, "none" for no cache, or None for the user's own, and none where several processes have met.

    Raises:
      ValueError: the folder that was named is not the user's own.
    """
    set_already = not jax.config.jax_enable_compilation_cache or jax.config.jax_compilation_cache_dir  # pyright: ignore
    if choice == "none" or (choice is None and (set_already or jax.distributed.is_initialized())):
        return
    try:
        folder = cache_folder("compiled") if choice is None else Path(choice).absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            raise PermissionError(f"{folder} can be written by others than you")
        _clear(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: `Path.home` finds none
        if choice is None:
            return  # no home, or one that cannot be written to: nothing is kept
        raise ValueError(f"compile-cache: {error}") from None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def cache_folder(name: str) -> Path:
    """A cache of the user's, one for each kind of processor: a home may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        kind = platform.processor()
    machine = f"{platform.machine()}-{zlib.crc32(kind.encode()):08x}"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "diffjax" / f"{name}-{machine}"


def _is_private(folder: Path) -> bool:
    about = folder.stat()
    return not hasattr(os, "getuid") or (about.st_uid == os.getuid() and not about.st_mode & 0o022)


def _clear(folder: Path) -> None:
    for path in folder.glob(f"*-{'[0-9a-f]' * 64}-cache"):  # what JAX writes; a named folder may hold something else
        with contextlib.suppress(FileNotFoundError):  # another process clears it, too
            if path.is_file() and time.time() - path.stat().st_mtime > _DAYS * 86400:
                path.unlink()
