"""Lines for the user: where nobody reads them any more (`| head -1`, a closed terminal), a command goes on without."""

import contextlib
import os
import shlex
import sys
from collections.abc import Container, Sequence
from pathlib import Path


def print_line(text: str, *, error: bool = False) -> None:
    """Prints a line to stdout, or to stderr; what cannot be written is dropped, and whatever would follow it."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # started with it closed
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)  # a class folder's name may be any bytes
    try:
        print(text, file=stream, flush=True)
    except ValueError:  # closed by this process
        return
    except OSError:
        # What is in its buffer would fail once more when Python ends, with exit code 120: it goes nowhere, too.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_table(rows: Sequence[Sequence[str]], *, right: Container[int] = ()) -> None:
    """Prints rows of cells, each column as wide as its widest cell; those in `right` end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line("  ".join(cells).rstrip())


def is_watched() -> bool:
    """Whether somebody looks at bars: stderr is a terminal, and not a file that would keep every state of them."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def quoted(path: str | Path) -> str:
    """A path as an argument of a printed command: for the shell, and never to be taken for an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
