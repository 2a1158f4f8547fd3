"""SIGTERM and SIGINT at random moments: is a run saved within two steps, and does it end where an uncut one does?

    python scripts/chaos/signals.py [--trials 20] [--processes 1] [--seed 0]

One run is continued from trial to trial, each in new processes that get a signal at a random moment from their first
batch on: in a step, while the log is written, while a checkpoint is. Of several processes one gets it. Each trial
checks the code (128 + signal, of every process), that all stopped at the same step, at most two on from the batch that
was being read (three of several), and at the end that the state is bitwise that of an uncut run.

Found on two cores shared with other programs (load 13): one process, 20 of 20 saved, 2 steps later at most, gone 7.6 s
after the signal at most, the end of 946 steps bitwise, in 11 min. Two processes (--processes 2 --trials 6): 6 of 6
saved, both at the same step, 2 later at most, gone after 7.7 s at most, the end of 172 steps bitwise, in 9 min.
"""

import argparse
import hashlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

STEPS = 10**6


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        done, most, slowest = 0, 0, 0.0
        for trial in range(options.trials):
            number = rng.choice([signal.SIGTERM, signal.SIGINT])
            steps, late, seconds = interrupt(pathlib.Path(folder), options.processes, number, rng)
            if steps <= done and trial:
                raise SystemExit(f"trial {trial}: at step {steps}, after {done}")
            done, most, slowest = steps, max(most, late), max(slowest, seconds)
            print(f"trial {trial + 1}: {number.name} saved at step {steps}, {late} on, {seconds:.1f} s", flush=True)
        found = run_to(pathlib.Path(folder), done + 20, options.processes)
        with tempfile.TemporaryDirectory() as uncut:
            same = found == run_to(pathlib.Path(uncut), done + 20, options.processes)
    print(f"{options.trials} of {options.trials} saved, {most} steps later at most, gone after {slowest:.1f} s at most")
    print(f"the end is {'bitwise' if same else 'NOT'} that of an uncut run of {done + 20} steps")
    return same


def interrupt(folder, processes, number, rng):
    """The step that was saved, how many after the batch being read, and the seconds from the signal to the end."""
    peers = start(folder, STEPS, processes)
    read = folder / "read"
    read.unlink(missing_ok=True)
    wanted = rng.choice([1, 10, 10, 10])  # while it compiles, too
    while not read.exists() or len(read.read_text().splitlines()) < wanted:
        if any(peer.poll() is not None for peer in peers):
            raise SystemExit("".join(peer.communicate()[1] for peer in peers))
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.5))
    batch = int(read.read_text().splitlines()[-1])
    begun = time.monotonic()
    rng.choice(peers).send_signal(number)
    said = [peer.communicate(timeout=120) for peer in peers]
    seconds = time.monotonic() - begun
    codes, steps = [peer.returncode for peer in peers], {out.splitlines()[-1] for out, _ in said}
    if codes != [128 + number] * processes or len(steps) != 1:
        raise SystemExit(f"codes {codes}, stopped at {steps}: {said}")
    step = int(steps.pop().removeprefix("stopped "))
    late = step - batch
    if late > allowed(processes) or not (folder / "checkpoints" / str(step)).is_dir():
        raise SystemExit(f"saved {late} steps after the signal")
    return step, late, seconds


def allowed(processes):
    """Steps after the batch that was being read; one more may have been read before the signal came."""
    return 2 if processes == 1 else 3


def run_to(folder, steps, processes):
    """What an undisturbed run ends with."""
    peers = start(folder, steps, processes)
    said = [peer.communicate(timeout=600) for peer in peers]
    if any(peer.returncode for peer in peers):
        raise SystemExit(said)
    return said[0][0].splitlines()[-1]


def start(folder, steps, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, "--child", str(folder), str(steps), address, str(processes)]
    root = str(pathlib.Path(__file__).parents[2])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, str(i)], env=environment, **pipes) for i in range(processes)]


def child(folder, steps, address, processes, process):
    """Trains a linear model in a folder, continuing what is there; says where it stopped, or what it ended with."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from diffjax import data, training

    if processes > 1:
        training.initialize(address, processes, process, abort_on_error=True)

    def read(seed, step, size):
        if process == 0:
            with open(f"{folder}/read", "a") as file:
                file.write(f"{step}\n")
        return np.random.default_rng((seed, step)).normal(size=(size, 64)).astype(np.float32)

    def loss(params, batch, context):
        return jnp.mean((batch @ params["w"] @ params["w"].T - batch) ** 2), {}

    tx = optax.adam(1e-3)
    make_state = lambda: training.state_from_params(
        jax.random.key(0), {"w": jax.random.normal(jax.random.key(1), (64, 32)) / 8}, tx
    )
    layout = training.jit_layout(training.make_train_step(training.Objective(loss, tx), ema=training.make_ema(0.99)))
    with training.Checkpoints(f"{folder}/checkpoints") as checkpoints:
        like = layout.abstract(jax.eval_shape(make_state))
        state = (
            layout.init(make_state) if checkpoints.latest() is None else layout.move_state(checkpoints.restore(like))
        )
        options = {
            "log": f"{folder}/metrics.jsonl",
            "log_every": 5,
            "save_every": 25,
            "progress": False,
            "handle_signals": True,
        }
        try:
            state = training.train(
                state,
                layout,
                data.whole(read),
                steps=steps,
                batch_size=64,
                seed=3,
                placed=True,
                checkpoints=checkpoints,
                **options,
            )
        except training.Stopped as stop:
            print("stopped", stop.step)
            return 128 + stop.signal
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(training.gather_to_host(state._replace(key=jax.random.key_data(state.key)))):
        digest.update(np.asarray(leaf).tobytes())
    print(digest.hexdigest())
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        folder, steps, address, processes, process = sys.argv[2:]
        sys.exit(child(folder, int(steps), address, int(processes), int(process)))
    sys.exit(not main())
