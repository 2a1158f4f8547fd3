"""Memory that XLA gives back after each step is kept for the next one, where JAX runs on the CPU under glibc.

XLA's CPU devices take their temporary buffers from malloc, step by step; glibc returns what is large to the system each
time, and has to clear every page of it again: a tenth of the time of a U-Net's step (150,000 page faults, 38,000 with
this). A run on an accelerator has its own allocator and is left alone.
"""

import ctypes
import sys

import jax

# Names and numbers of malloc.h: no mapping of its own for a large request, nothing returned from the end of the heap,
# one heap for all threads (the others are cut into parts of 64 MiB, larger requests in them are mappings again).
_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8


def keep_memory() -> None:
    """Has glibc keep freed memory, where devices are cores."""
    if sys.platform != "linux" or jax.default_backend() != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries of Linux have none
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
            mallopt(option, value)
