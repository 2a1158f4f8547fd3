"""Kills one of two processes of a run, and looks how long the other hangs, how it ends, and where a new start goes on.

    python scripts/chaos/peer.py --trials 3         about ten minutes on two idle cores; writes runs/chaos_peer/

Each trial trains a toy by two processes on this machine, waits for a checkpoint, and ends process 0 (it holds JAX's
coordination service) or 1 by SIGKILL. The other is left alone, no launcher ends it: only JAX does, which misses a dead
process `heartbeat` seconds after its last sign of life. Then both are started again with the same command.

FIGURES
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
    parser.add_argument("--trials", type=int, default=1, help="for each process and heartbeat")
    parser.add_argument("--heartbeats", type=int, nargs="+", default=[30, 10])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/chaos_peer"))
    options = parser.parse_args(argv)
    rows = []
    for heartbeat in options.heartbeats:
        for victim in (1, 0):
            for number in range(options.trials):
                folder = options.out / f"{heartbeat}_{victim}_{number}"
                shutil.rmtree(folder, ignore_errors=True)
                rows.append((heartbeat, victim, *trial(folder, victim, heartbeat)))
                print("heartbeat {}, process {} killed: all gone after {:.1f} s, codes {}, saved {}".format(*rows[-1]))
    return rows


def trial(folder, victim, heartbeat, steps=10**6, save_every=100):
    """Seconds from the kill to the end of the last process, the exit codes, and the newest step on the disk."""
    peers = launch.start(command(folder, heartbeat, steps, save_every), 2)
    try:
        wait_for(lambda: saved(folder) >= save_every, peers)
        os.kill(peers[victim].pid, signal.SIGKILL)
        killed = time.monotonic()
        for peer in peers:
            peer.wait(timeout=4 * LIMIT)
        return time.monotonic() - killed, [peer.returncode for peer in peers], saved(folder)
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
