"""Orbax's messages on the terminal: left alone, unless the caller asks for them to be filtered.

orbax --> loggers absl, asyncio --[filters of `quiet_orbax_logs`]--> terminal

Orbax logs each error that it also raises, and asyncio reports later that the exceptions of Orbax's tasks were never
retrieved: one failure is several tracebacks. The command line installs the filters; a library must not do so by itself.
"""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_orbax_logs() -> None:
    """Filters Orbax's records from the loggers `absl` and `asyncio`, for the rest of this process.

    What fails is raised anyway. `diffjax` on the command line calls this; importing diffjax and `Checkpoints` do not.
    A second call changes nothing.

    Example:
      >>> import logging
      >>> from diffjax.training.checkpoint import quiet_orbax_logs
      >>> quiet_orbax_logs()
      >>> len(logging.getLogger("absl").filters) > 0
      True
    """
    logging.getLogger("absl").addFilter(_is_not_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_of_an_orbax_task)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _is_not_of_an_orbax_task(record: logging.LogRecord) -> bool:
    """False for the errors of Orbax's tasks, which asyncio reports some time after they were raised."""
    trace = record.exc_info[2] if record.exc_info else None
    names = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
    return not any("orbax" in name for name in names)


@contextmanager
def orbax_call() -> Iterator[None]:
    """Around each call of Orbax: within it asyncio is silent, in a process that called `quiet_orbax_logs`."""
    logger, silence = logging.getLogger("asyncio"), lambda record: False
    if _is_not_of_an_orbax_task not in logger.filters:
        yield
        return
    logger.addFilter(silence)
    try:
        yield
    finally:
        logger.removeFilter(silence)
