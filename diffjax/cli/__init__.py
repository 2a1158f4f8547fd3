"""The command line: `diffjax train | distill | sample | evaluate | encode-text | checkpoint`.

    argv --tyro--> Train | Distill | Sample | Evaluate | ... --> config builds --> training, samplers, metrics
                                                                           |
    RUN/config.json  RUN/checkpoints/  RUN/metrics.jsonl  RUN/loss.png  RUN/samples.png  RUN/results.json

Exit codes: 0 done; 2 bad input, one line on stderr that names the argument and its value, and nothing written; 1 the
run failed (a loss that is not finite, a full disk, a picture that cannot be decoded), one line, and what could be saved
is; 130 Ctrl-C, 143 SIGTERM and 129 a closed terminal, after saving, with the command that goes on; 75 another process
of the run is gone, so that starting all again may help (JAX itself aborts with 134 then). DIFFJAX_TRACEBACK=1 shows
where an error came from.
"""

import contextlib
import functools
import gc
import io
import operator
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import tyro

from diffjax import __version__
from diffjax.cli._checkpoint import Checkpoint as Checkpoint, run_checkpoint
from diffjax.cli._compiled import cache_folder as cache_folder, keep_compiled as keep_compiled
from diffjax.cli._devices import default_layout as default_layout
from diffjax.cli._distill import run_distill
from diffjax.cli._draw import Draw as Draw
from diffjax.cli._dry_run import measure_step as measure_step, state_bytes as state_bytes
from diffjax.cli._encode_text import read_captions as read_captions, run_encode_text
from diffjax.cli._evaluate import run_evaluate
from diffjax.cli._help import READER, description
from diffjax.cli._known import read_known as read_known, read_mask as read_mask
from diffjax.cli._memory import keep_memory as keep_memory
from diffjax.cli._options import (
    Distill as Distill,
    EncodeText as EncodeText,
    Evaluate as Evaluate,
    Execution as Execution,
    Hosts as Hosts,
    Sample as Sample,
    Train as Train,
)
from diffjax.cli._print import print_line
from diffjax.cli._sample import run_sample
from diffjax.cli._suggest import explain
from diffjax.cli._train import run_train
from diffjax.config import PRESETS
from diffjax.training import RESCUE, Failed, NotFinite, Refused, Stopped, Unreachable, abort, is_input_error
from diffjax.training.checkpoint import check_utf8, quiet_orbax_logs

_TEMPORARY = 75  # EX_TEMPFAIL
_NARROWEST = 40  # columns
_PATIENCE = 5.0  # seconds for the threads of a process that failed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default `sys.argv`) and returns its exit code."""
    if argv is None:
        _collect_seldom()
        code = _run(sys.argv[1:])
        if code:
            _leave_hanging_threads(code)
        return code
    return _run(list(argv))


def _run(argv: list[str]) -> int:
    quiet_orbax_logs()
    if argv in (["--version"], ["-V"]):
        print_line(f"diffjax {__version__}")
        return 0
    try:
        try:
            command = _parse(argv)
        except BrokenPipeError:  # --help | head
            print_line("")
            return 0
        commands: dict[type, Callable[[Any, list[str]], None]] = {
            Train: run_train,
            Distill: run_distill,
            Sample: run_sample,
            Evaluate: run_evaluate,
            EncodeText: run_encode_text,
            Checkpoint: run_checkpoint,
        }
        commands[type(command)](command, argv)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt as stop:
        code = _interrupted(stop, argv)
        if not isinstance(stop, Stopped):
            abort(code)
        return code
    except Exception as error:
        if os.environ.get("DIFFJAX_TRACEBACK"):
            traceback.print_exc()
        code = _failed(error)
        if not isinstance(error, Refused | Failed):
            abort(code)
        return code
    return 0


def _leave_hanging_threads(code: int) -> None:
    """Ends a process that failed where a thread would keep it: Orbax's, for a save that was begun and never went on."""
    deadline = time.monotonic() + _PATIENCE
    for thread in threading.enumerate():
        pooled = thread.name.startswith("ThreadPoolExecutor")  # Python ends these by itself
        if thread is not threading.main_thread() and not thread.daemon and not pooled:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                for stream in filter(None, (sys.stdout, sys.stderr)):
                    with contextlib.suppress(OSError, ValueError):
                        stream.flush()
                os._exit(code)


def _collect_seldom() -> None:
    """Has Python look for garbage less often: a second of a start, most of which is making objects that stay.

    Only for a process of our own: what is there by now, the imported modules, is never looked at again.
    """
    gc.freeze()
    gc.set_threshold(50_000)


def _parse(argv: list[str]) -> Train | Distill | Sample | Evaluate | EncodeText | Checkpoint:
    """The command, by tyro; what it says of a mistake, in a box of several lines, becomes one `ValueError`."""
    for word in argv:
        check_utf8(word)
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)  # the help of options would never fit
    every = {
        **{command.__name__.lower(): command for command in (Train, Distill, Sample, Evaluate)},
        "encode-text": EncodeText,
        "checkpoint": Checkpoint,
    }
    commands: Any = functools.reduce(
        operator.or_,
        (Annotated[c, tyro.conf.subcommand(name, description=description(c))] for name, c in every.items()),
    )
    complaint = io.StringIO()
    try:
        # tyro asks stdout for its encoding; it is None where it was closed.
        out = contextlib.redirect_stdout(sys.stdout or io.StringIO())
        with out, contextlib.redirect_stderr(complaint), READER:
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
        # A rule is of hyphens where stdout cannot say more than ASCII, and there is one below the title.
        sections.append([]) if line and not line.strip("─-") else sections[-1].append(line)
    said = [part for section in sections if (part := " ".join(" ".join(section).split()))]
    named = [said[0], *(part for part in said[1:] if part.startswith("Available"))]
    named[0] = explain(named[0], argv, every)
    raise ValueError(f"{'; '.join(named)} ({_help_of(argv, every)} lists what there is)")


def _help_of(argv: list[str], commands: Mapping[str, type]) -> str:
    """The command line whose help explains a mistyped one."""
    command, *rest = *argv, ""
    named = [command] if command in commands else []
    return shlex.join(["diffjax", *named, *(rest[:1] if command == "train" and rest[0] in PRESETS else []), "--help"])


def _interrupted(stop: KeyboardInterrupt, argv: list[str]) -> int:
    again = f"the same command continues: {shlex.join(['diffjax', *argv])}"
    if isinstance(stop, Stopped):
        print_line(f"\ndiffjax: {stop}; saved; {again}", error=True)
        return 128 + stop.signal
    print_line(f"\ndiffjax: interrupted; {again}", error=True)
    return 128 + signal.SIGINT


def _failed(error: Exception) -> int:
    """One line on stderr; 2 where the input was bad, 75 where another process is gone, 1 where the run went wrong."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    # An array in a message wraps over lines that belong together; a longer report is cut to its first line.
    text = " ".join(lines) if len(lines) <= 4 else f"{lines[0]} ..."
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()) if note.startswith(RESCUE))
    print_line(f"diffjax: {text or type(error).__name__}{notes}", error=True)
    if isinstance(error, Unreachable) or (jax.distributed.is_initialized() and _lost_a_peer(error)):
        return _TEMPORARY
    return 2 if is_input_error(error) and not isinstance(error, NotFinite) and not notes else 1


def _lost_a_peer(error: BaseException | None) -> bool:
    """True if the error, or its cause, is JAX's report that another process died."""
    if error is None:
        return False
    text = str(error)
    return (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(
            word in text for word in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "NCCL", "coordination")
        )
    ) or _lost_a_peer(error.__cause__ or error.__context__)
