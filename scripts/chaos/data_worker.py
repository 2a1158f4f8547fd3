"""Data workers killed at random moments: the reader always hears of it, and nothing is left behind.

    python scripts/chaos/data_worker.py [--trials 20] [--workers 2]

In each trial `prefetch` reads batches of 3 MB through worker processes; after a random time one of them is killed by
SIGKILL. Wanted: every batch before that is right, `WorkerDied` is raised within 30 s, and afterwards there is no
process that was not there before. Nearly all of the time is workers starting.

Workers need the extra `data`: `pip install ".[data]"` in diffjax's folder.

Found with 8 trials, on two cores shared with other programs (load 15), in 12 min: 8 of 8 heard, after 4.2 s in the
median and 6.3 s at most, with 7 to 205 right batches before; no process was left. The killed worker's batches on their
way, two a trial, stay in shared memory until the program ends, when Python gives them back.
"""

import argparse
import multiprocessing
import os
import random
import signal
import statistics
import threading
import time

import numpy as np

from diffjax.data import WorkerDied, prefetch


def source(seed, step, size):
    return np.full((size, 64, 64, 3), step, np.float32)


def shared_memory():
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")} if os.path.isdir("/dev/shm") else set()


def trial(workers, delay):
    """Seconds from the kill to the error, and how many batches came first; raises where anything is wrong."""
    before, killed = shared_memory(), []

    def kill():
        victim = random.choice(multiprocessing.active_children())
        os.kill(victim.pid, signal.SIGKILL)
        killed.append(time.perf_counter())

    step = 0
    with prefetch(source, 0, 0, 64, workers=workers) as batches:
        assert np.all(next(batches) == 0)
        threading.Timer(delay, kill).start()
        try:
            for step, batch in enumerate(batches, 1):
                assert np.all(batch == step), f"batch {step} is wrong"
                del batch
        except WorkerDied:
            seconds = time.perf_counter() - killed[0]
    assert seconds < 30, f"heard after {seconds:.0f} s"
    assert not multiprocessing.active_children(), "a worker is left"
    return seconds, step, len(shared_memory() - before)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    random.seed(0)
    seconds, left = [], 0
    for number in range(options.trials):
        signal.alarm(300)  # a hang is a failure
        took, batches, leaked = trial(options.workers, random.uniform(0, 2))
        signal.alarm(0)
        seconds.append(took)
        left += leaked
        print(f"trial {number}: WorkerDied {took:.1f} s after the kill, {batches} batches before", flush=True)
    print(
        f"{len(seconds)} of {options.trials} heard, median {statistics.median(seconds):.1f} s, "
        f"most {max(seconds):.1f} s; {left} pieces of shared memory stay until this ends"
    )


if __name__ == "__main__":
    main()
