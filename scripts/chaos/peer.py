"""Takes one of two processes of a run away, and looks how long the other hangs and how it ends.

    python scripts/chaos/peer.py --trials 3         ten minutes on two idle cores; writes runs/chaos_peer/

Each trial trains a toy by two processes on this machine, waits for a checkpoint, and takes process 0 (it holds JAX's
coordination service) or 1 away: by SIGKILL, when its connections break and the other sees it at once, or by SIGSTOP,
which is what a machine without power or network looks like: its connections stay, and it says nothing. The other is
left alone; no launcher ends it. Everyone must be gone within 60 s.

Measured, heartbeat 30 s, two busy cores, seconds until the other was gone and its code:

    SIGKILL    process 1    2.7 (75), 17.9 (abort)    where a save waits for the dead, JAX ends it
               process 0    0.4 (75)
    SIGSTOP    process 1    27.2 (abort)
               process 0    26.9 (abort)
"""

import argparse
import os
import pathlib
import shutil
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import launch

TRAIN = "train toy2d --network.width 16 --network.depth 1 --batch-size 16 --sampler.steps 4 --devices 1 --log-every 20"
LIMIT = 60  # seconds in which everyone must be gone, with a heartbeat of 30


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1, help="for each process and signal")
    parser.add_argument("--heartbeat", type=int, default=30)
    parser.add_argument("--signals", nargs="+", default=["SIGKILL", "SIGSTOP"])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/chaos_peer"))
    options = parser.parse_args(argv)
    rows = []
    for name in options.signals:
        for victim in (1, 0):
            for number in range(options.trials):
                folder = options.out / f"{name}_{victim}_{number}"
                shutil.rmtree(folder, ignore_errors=True)
                rows.append((name, victim, *trial(folder, victim, options.heartbeat, signal.Signals[name])))
                print(
                    "{} to process {}: the other gone after {:.1f} s, code {}, saved {}".format(*rows[-1]), flush=True
                )
    assert all(row[2] < LIMIT for row in rows)
    return rows


def trial(folder, victim, heartbeat, number=signal.SIGKILL, steps=10**6, save_every=100):
    """Seconds from the signal to the end of the other process, its exit code, and the newest step on the disk."""
    peers = launch.start(command(folder, heartbeat, steps, save_every), 2)
    try:
        wait_for(lambda: saved(folder) >= save_every, peers)
        os.kill(peers[victim].pid, number)
        taken = time.monotonic()
        code = peers[1 - victim].wait(timeout=4 * LIMIT)
        return time.monotonic() - taken, code, saved(folder)
    finally:
        launch.signal_all(peers, signal.SIGKILL)


def command(folder, heartbeat, steps, save_every):
    options = f"--heartbeat {heartbeat} --steps {steps} --save-every {save_every} --out {folder}"
    return [sys.executable, "-m", "diffjax.cli", *TRAIN.split(), *options.split()]


def saved(folder):
    """The newest whole step in a run's folder; 0 for none."""
    return max((int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def wait_for(condition, peers, seconds=300):
    """Waits until a condition holds, while all processes live."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or any(peer.poll() is not None for peer in peers):
            raise RuntimeError(f"the run did not get as far: codes {[peer.poll() for peer in peers]}")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
