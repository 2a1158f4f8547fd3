"""Lines for the user: where nobody reads them any more (`| head -1`, a closed terminal), a command goes on without."""

import contextlib
import os
import shlex
import sys
from pathlib import Path


def print_line(text: str, *, error: bool = False) -> None:
    """Prints a line to stdout, or to stderr; what cannot be written is dropped, and whatever would follow it."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # started with it closed
        return
    try:
        print(text, file=stream, flush=True)
    except ValueError:  # closed by this process
        return
    except OSError:
        # What is in its buffer would fail once more when Python ends, with exit code 120: it goes nowhere, too.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def quoted(path: str | Path) -> str:
    """A path as an argument of a printed command: for the shell, and never to be taken for an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
