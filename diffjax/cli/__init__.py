"""The command line: `diffjax train | sample | evaluate`.

    argv --tyro--> Train | Sample | Evaluate --> config builds --> training, samplers, metrics, viz
                                                                           |
    RUN/config.json  RUN/checkpoints/  RUN/metrics.jsonl  RUN/samples.png  RUN/results.json

Exit codes: 0 done; 2 bad input, one line on stderr that names the argument and its value, and nothing written; 1 the
run failed (a loss that is not finite, a full disk), one line; 130 Ctrl-C and 143 SIGTERM, after saving, with the
command that goes on. DIFFJAX_TRACEBACK=1 shows where an error came from.
"""

import contextlib
import functools
import io
import operator
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from diffjax import __version__
from diffjax.cli._evaluate import run_evaluate
from diffjax.cli._options import Evaluate as Evaluate, Sample as Sample, Train as Train
from diffjax.cli._sample import run_sample
from diffjax.cli._train import run_train
from diffjax.training import NotFinite, Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default `sys.argv`) and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv in (["--version"], ["-V"]):
        print(f"diffjax {__version__}")
        return 0
    try:
        command = _parse(argv)
        commands: dict[type, Callable[[Any, list[str]], None]] = {
            Train: run_train,
            Sample: run_sample,
            Evaluate: run_evaluate,
        }
        commands[type(command)](command, argv)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt as stop:
        return _interrupted(stop, argv)
    except Exception as error:
        if os.environ.get("DIFFJAX_TRACEBACK"):
            raise
        return _failed(error)
    return 0


def _parse(argv: list[str]) -> Train | Sample | Evaluate:
    """The command, by tyro; what it says of a mistake, in a box of several lines, becomes one `ValueError`."""
    commands: Any = functools.reduce(
        operator.or_, (Annotated[c, tyro.conf.subcommand(c.__name__.lower())] for c in (Train, Sample, Evaluate))
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                commands,
                args=argv,
                prog="diffjax",
                description=f"Diffusion models in JAX, version {__version__}. Add --help to any command.",
                config=(tyro.conf.CascadeSubcommandArgs,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    text = re.sub(r"\x1b\[[0-9;]*m", "", complaint.getvalue())
    sections = [[]]
    for line in (line.strip("│ ╭╰╮╯") for line in text.splitlines()[1:]):
        sections.append([]) if line.startswith("──") else sections[-1].append(line)
    said = [" ".join(" ".join(section).split()) for section in sections]
    named = [said[0], *(part for part in said[1:] if part.startswith("Available"))]
    raise ValueError(f"{'; '.join(named).rstrip('.')} (diffjax --help lists what there is)")


def _interrupted(stop: KeyboardInterrupt, argv: list[str]) -> int:
    again = f"the same command continues: {shlex.join(['diffjax', *argv])}"
    if isinstance(stop, Stopped):
        print(f"\ndiffjax: {stop}; saved; {again}", file=sys.stderr)
        return 128 + stop.signal
    print(f"\ndiffjax: interrupted; {again}", file=sys.stderr)
    return 128 + signal.SIGINT


def _failed(error: Exception) -> int:
    """One line on stderr; 2 where the input was bad, 1 where the run went wrong."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    # An array in a message wraps over lines that belong together; a longer report is cut to its first line.
    text = " ".join(lines) if len(lines) <= 4 else f"{lines[0]} ..."
    print(f"diffjax: {text or type(error).__name__}", file=sys.stderr)
    bad_input = isinstance(error, ValueError | FileNotFoundError | NotADirectoryError) and not isinstance(
        error, NotFinite
    )
    return 2 if bad_input else 1
