"""How long `diffjax train` takes to begin: seconds from the start of its process to the first line of its log.

    python benchmarks/start.py [--config digits] [--reps 5] [--timeout 600]

The first run finds an empty folder of compiled programs and fills it; the others find them there, as every later start
of a user does. Each run is a new process and a new run, ended by SIGKILL at its first line (of one step). Aim: 8 s.

Python's own compiled files are used as they are found: run it twice after a change of the code, and not under
PYTHONDONTWRITEBYTECODE. Results: benchmarks/RESULTS.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds_to_first_line(options, compiled, out):
    """Starts a run, and ends it."""
    command = [sys.executable, "-m", "diffjax", "train", options.config, "--log-every", "1"]
    command += ["--compile-cache", str(compiled), "--out", str(out)]
    start, log = time.perf_counter(), out / "metrics.jsonl"
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            while not (log.is_file() and log.stat().st_size):
                taken = time.perf_counter() - start
                if process.poll() is not None or taken > options.timeout:
                    said.seek(0)
                    raise SystemExit(f"no step after {taken:.1f} s:\n{said.read().decode()}")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="digits")
    parser.add_argument("--reps", type=int, default=5, help="runs after the first")
    parser.add_argument("--timeout", type=float, default=600.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "compiled"
        warm = []
        for i in range(options.reps + 1):
            taken = seconds_to_first_line(options, compiled, Path(folder) / str(i))
            load = f"load {os.getloadavg()[0]:.1f}"
            print(f"{'warm' if i else 'cold'} {taken:6.2f} s   {load}", flush=True)
            warm += [taken] if i else []
    print(f"median of the warm {statistics.median(warm):.2f} s (least {min(warm):.2f})")


if __name__ == "__main__":
    main()
