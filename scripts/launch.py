"""Starts a run as several processes on this machine, ends them together, and starts them again where that may help.

    python scripts/launch.py --processes 2 --restarts 3 train digits --devices 1
    python scripts/launch.py --processes 2 sample runs/digits --n 64 --out drawn.png

What follows its own options is a command of `diffjax`; each process gets it with --coordinator, --num-processes and
--process-id added, on a free port of 127.0.0.1 that nothing outside this machine can reach.

    a process fails     the others have --grace seconds to end by themselves, then SIGKILL
    a restart may help  code 75, or ended by a signal (abort, when a peer died; SIGKILL, out of memory): all are started
                        again, --restarts times at most; training goes on from its newest good checkpoint
    SIGTERM, Ctrl-C     SIGTERM to all: training saves and ends; after --grace seconds, or at a second signal, SIGKILL

Exit code: 0 done; 2 bad input; 1 failed; 143 stopped after saving; 75 failed as often as it was allowed to.
On clusters their scheduler does all this: `slurm.sh`, `gke.yaml`.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h: try again


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--restarts", type=int, default=0, help="how often all may be started again (default 0)")
    parser.add_argument("--grace", type=float, default=30, help="seconds to end in before SIGKILL (default 30)")
    parser.add_argument("--program", default=None, help="a Python file to run instead of diffjax")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="train ... | sample ... | evaluate ...")
    options = parser.parse_args(argv)
    if options.processes < 1 or options.restarts < 0 or not options.command:
        parser.error("at least one process, no fewer than 0 restarts and a command are needed")
    program = [sys.executable, *(["-m", "diffjax.cli"] if options.program is None else [options.program])]
    received = catch_signals()
    for attempt in range(options.restarts + 1):
        code = run([*program, *options.command], options.processes, options.grace, received)
        if code != TEMPORARY or received or attempt == options.restarts:
            break
        print(f"launch: starting again ({attempt + 1} of {options.restarts})", file=sys.stderr, flush=True)
    return code


def catch_signals():
    """A list to which SIGTERM and SIGINT are appended as they come."""
    received = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append(number))
    return received


def run(command, processes, grace, received):
    """Runs the processes of one attempt to their end; the code of the attempt."""
    peers = start(command, processes)
    verdict, deadline, forwarded = None, None, 0
    try:
        while None in (states := [peer.poll() for peer in peers]):
            codes = [code for code in states if code]
            if codes and verdict is None:  # what failed first is the reason; the others fail because of it
                verdict, deadline = judge(codes), time.monotonic() + grace
            if len(received) > forwarded:
                deadline = time.monotonic() + (grace if forwarded == 0 else 0)
                forwarded = len(received)
                signal_all(peers, signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                signal_all(peers, signal.SIGKILL)
            time.sleep(0.05)
    finally:
        signal_all(peers, signal.SIGKILL)
    return judge([peer.returncode for peer in peers if peer.returncode]) if verdict is None else verdict


def start(command, processes):
    """The processes of a run, in groups of their own so that a Ctrl-C reaches this one alone, which passes it on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    more = ["--coordinator", address, "--num-processes", str(processes), "--process-id"]
    environment = {"PYTHONUNBUFFERED": "1", **os.environ}  # or what a process said is lost when it is aborted
    return [
        subprocess.Popen([*command, *more, str(i)], env=environment, process_group=0, preexec_fn=die_with_parent)
        for i in range(processes)
    ]


def die_with_parent():
    """Linux: SIGKILL for a process whose launcher is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def judge(codes):
    """One code for several that are not 0: bad input before failure, before what a restart may mend."""
    named = (2, 1, 128 + signal.SIGTERM, 128 + signal.SIGINT)
    codes = [128 - code if code < 0 else code for code in codes]  # a signal's, as shells count
    known = {code if code in named else TEMPORARY for code in codes}
    return next((code for code in (2, 1, TEMPORARY, *named) if code in known), 0)


def signal_all(peers, number):
    for peer in peers:
        if peer.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(peer.pid, number)
    if number == signal.SIGKILL:
        for peer in peers:
            peer.wait()


if __name__ == "__main__":
    sys.exit(main())
