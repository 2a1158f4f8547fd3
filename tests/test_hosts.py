"""Several processes: what one would have done, by two over loopback; refusals that reach all; and peers that die."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import hosts_worker as worker
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_toy as toy
from ports import free_port

from diffjax import data
from diffjax.cli import main
from diffjax.process import normal_like, sample_keys
from diffjax.training import Checkpoints, abort, data_mesh, initialize

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "scripts" / "chaos"))
import launch  # noqa: E402
import peer  # noqa: E402

OURS = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
OURS.pop("XLA_FLAGS", None)
PATIENCE = 900


def launched(*argv, code=0, **more):
    """What two processes of the launcher say; `more` are its own options."""
    own = [str(word) for name, value in more.items() for word in (f"--{name}", value)]
    command = [sys.executable, ROOT / "scripts" / "launch.py", *own, *map(str, argv)]
    done = subprocess.run(command, env=OURS, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, done.stderr


def is_free(port):
    """Whether nobody listens on a port of 127.0.0.1 now."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


def work(folder, part):
    """What both processes saw, and the arrays of process 0."""
    launched(folder, part, program=ROOT / "tests" / "helpers" / "hosts_worker.py")
    seen = [json.loads((folder / f"{part}_{i}.json").read_text()) for i in range(2)]
    return seen, np.load(folder / f"{part}.npz")


def steps_of_one(count):
    """Losses of the toy on one device of this process."""
    from diffjax.training import jit_layout, make_ema, make_train_step

    step = make_train_step(toy.make_objective(), ema=make_ema(0.99))
    layout = jit_layout(step, data_mesh(jax.devices()[:1]))
    state, losses = layout.put_state(toy.fresh_state()), []
    for n in range(count):
        state, metrics = layout.step(state, layout.put_batch(toy.source(worker.SEED, n, worker.BATCH)))
        losses.append(float(metrics["loss"]))
    return losses, state


# Two processes


@pytest.mark.slow
def test_two_processes_share_a_batch_and_a_step_and_are_refused_together(tmp_path):
    (first, second), params = work(tmp_path, "short")
    assert first["devices"] == second["devices"] == [4, 2]
    assert (first["main"], second["main"]) == (True, False)
    # Shares: disjoint, and together the batches of one process; five of eight are each of the forty items once.
    ours = data.from_arrays(np.arange(40, dtype=np.float32)[:, None] / 40)
    for step, (a, b) in enumerate(zip(first["shares"], second["shares"], strict=True)):
        assert len(a) == len(b) == 4
        np.testing.assert_array_equal(np.float32(a + b), ours(worker.SEED, step, 8)[0].ravel())
    items = np.sort(np.ravel([first["shares"], second["shares"]]))
    np.testing.assert_allclose(items, np.arange(40) / 40, rtol=1e-6)
    # The step: both see the loss of the whole batch, and each sample has its own noise, that of its global index.
    assert first["losses"] == second["losses"]
    w, n = np.zeros(8), np.zeros((worker.BATCH, 8))
    for step, loss in enumerate(first["losses"]):
        x = toy.source(worker.SEED, step, worker.BATCH)[0].astype(float)
        keys = sample_keys(jax.random.fold_in(worker.probe_state()[0].key, step), jnp.arange(worker.BATCH))
        eps = np.asarray(normal_like(keys, jnp.asarray(x)))
        assert loss == pytest.approx(np.mean(np.sum(0.5 * (w - x) ** 2 + n * eps, 1)), rel=1e-5)
        w, n = w - 0.5 * (w - x.mean(0)), n - 0.5 * eps / worker.BATCH
    np.testing.assert_allclose(params["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["n"], n, rtol=1e-5, atol=1e-7)
    assert len(np.unique(params["n"])) == params["n"].size
    # One of them differs, or fails: both raise the same error.
    assert first["errors"] == second["errors"]
    assert first["errors"] == {
        "seed": "Refused: seed: 3 in process 0, 4 in process 1 (and 1 more); start all with the same",
        "missing": "Refused: data.path: x.npz: no such file (process 1)",
        "broken": "Failed: a disk (process 1)",
        "main": None,
    }
    assert (first["synced"], second["synced"]) == (0, 1)


@pytest.mark.slow
def test_two_processes_train_save_and_resume_bitwise_in_every_layout(tmp_path):
    _, arrays = work(tmp_path, "long")
    losses, state = steps_of_one(worker.STEPS)
    truth = {path: np.asarray(leaf) for path, leaf in worker.leaves("", state).items()}
    for name in worker.LAYOUTS:
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]  # written once, by one of them
        np.testing.assert_allclose([line["loss"] for line in lines], losses, rtol=1e-5)
        for path, leaf in truth.items():
            np.testing.assert_allclose(arrays[name + path], leaf, rtol=1e-3, atol=1e-5)
    # One process on eight devices reads what two have written, to the bit.
    like = worker.make_layout("fsdp")
    with Checkpoints(tmp_path / "fsdp", read_only=True) as checkpoints:
        read = worker.leaves("fsdp", checkpoints.restore(like.abstract(like.init(toy.fresh_state))))
    for path, leaf in read.items():
        assert leaf.tobytes() == arrays[path].tobytes(), path
    # Samples are those of one device, and of no process's own.
    np.testing.assert_allclose(arrays["x0"], np.asarray(worker.draw(None)), rtol=1e-6)
    assert len(np.unique(arrays["x0"])) == arrays["x0"].size
    # New processes, from the middle.
    _, again = work(tmp_path, "again")
    assert len(again.files) == len(arrays.files) - 1 == len(worker.LAYOUTS) * len(truth)
    for path in again.files:
        assert again[path].tobytes() == arrays[path].tobytes(), path


@pytest.mark.slow
def test_two_processes_train_on_texts_as_one_does(tmp_path):
    """Embeddings of a frozen encoder, and ids of one that is trained; each run is resumed in its middle."""
    _, arrays = work(tmp_path, "texts")
    _, alone = worker.texts(tmp_path / "one")
    assert set(arrays.files) == alone.keys()
    assert any("text_encoder" in path for path in alone)
    for path, leaf in alone.items():
        np.testing.assert_allclose(arrays[path], leaf, rtol=1e-3, atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_training_that_ends_early_ends_in_both(tmp_path):
    """An uncaught error ends its process, and so the other: no launcher does, which would be too late."""
    program = ROOT / "tests" / "helpers" / "hosts_worker.py"
    _, output = launched(tmp_path, "ends", program=program, grace=2 * PATIENCE, code=1)
    first, second = (json.loads((tmp_path / f"ends_{i}.json").read_text()) for i in range(2))
    # Rows 3 and 12 of 16 in batches 2 and 3: each process has one of them, and both name all.
    assert first["not finite"] == second["not finite"]
    assert "not finite in the data: positions 35, 44, 51, 60;" in first["not finite"]
    # The signals came while batch 3 was read, to process 1, so while step 3 ran or just after: it sends it after step 3
    # or 4, and all receive it a step later.
    assert 4 <= first["stopped"] == second["stopped"] <= 5
    assert [(seen["signal"], seen["saved"]) for seen in (first, second)] == 2 * [(signal.SIGINT, [first["stopped"]])]
    assert (first["received"], second["received"]) == ([], [signal.SIGTERM])
    assert first["restored"]
    assert second["restored"]
    # The disk of process 1 is full at the first of its saves, and the second save raises it.
    assert "RuntimeError: " in output
    assert "a save did not reach the disk: No space left on device" in output
    with Checkpoints(tmp_path / "ends", read_only=True) as checkpoints:
        assert checkpoints.steps() == [first["stopped"]]


@pytest.mark.slow
def test_a_peer_dies_and_the_same_command_goes_on_and_draws_as_one(tmp_path, monkeypatch):
    """All are gone soon after the heartbeat; both begin again from the newest checkpoint; samples are one process's."""
    monkeypatch.setattr(os, "environ", OURS)
    run, steps, heartbeat = tmp_path / "run", 1000, 20  # seconds; a busy machine may keep a process waiting for ten
    seconds, code, saved = peer.trial(run, 1, heartbeat, signal.SIGSTOP, steps=steps)  # a machine without power
    assert seconds < 60  # not a timing: without JAX's heartbeat the other hangs for ever
    assert code in (-signal.SIGABRT, launch.TEMPORARY)
    out, _ = launched(*peer.command(run, heartbeat, steps, 500)[3:])
    assert f"from step {saved}, saved before" in out
    assert not (run / "checkpoints" / "lock").exists()
    out, _ = launched("sample", run, "--n", 11, "--chunk", 4, "--out", tmp_path / "two.npz")
    assert "2 cpu devices of 2 processes" in out
    assert main(["sample", str(run), "--n", "11", "--out", str(tmp_path / "one.npz")]) == 0
    x, y = (np.load(tmp_path / f"{name}.npz")["x"] for name in ("one", "two"))
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dry_run_and_evaluation_by_two_are_those_by_one(tmp_path, capfd):
    run = tmp_path / "run"
    out, _ = launched(*peer.command(run, 5, 2, 2)[3:], "--dry-run")
    assert "2 cpu devices of 2 processes" in out
    assert "FLOPs of a step" in out
    assert not run.exists()
    assert main(peer.command(run, 5, 2, 2)[3:]) == 0
    evaluate = ["evaluate", str(run), "--n", "50", "--likelihood", "3"]
    figure = re.compile(r"(.*(?:distance|nats).*?) +(\S*\d)$", re.MULTILINE)  # not the line that says what is measured
    numbers = lambda text: {name: float(value) for name, value in figure.findall(text)}
    there = numbers(launched(*evaluate)[0])
    capfd.readouterr()
    assert main(evaluate) == 0
    here = numbers(capfd.readouterr().out)
    assert here.keys() == there.keys()
    assert len(here) == 6
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-3)


@pytest.mark.slow
def test_slurm_is_found_and_configurations_that_differ_are_refused_by_all(tmp_path):
    """As SLURM starts them: the command line names no other process. They have different seeds."""
    port = next(filter(is_free, range(61440 + os.getpid() % 2048, 65536)))
    job, address = port - 61440, f"127.0.0.1:{port}"  # JAX makes a port of the job's number
    slurm = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": 2, "SLURM_STEP_NUM_NODES": 1}
    peers = []
    for i in range(2):
        own = {"SLURM_PROCID": i, "SLURM_LOCALID": i, "JAX_COORDINATOR_BIND_ADDRESS": address}
        environment = OURS | {name: str(value) for name, value in (slurm | own).items()}
        command = [sys.executable, "-m", "diffjax.cli", "train", "toy2d", "--seed", str(i), "--steps", str(5 + i)]
        command += ["--out", str(tmp_path / "run")]
        peers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT))
    try:
        outputs = [process.communicate(timeout=PATIENCE)[1] for process in peers]
    finally:
        for process in peers:
            process.kill()
    assert [process.returncode for process in peers] == [2, 2]
    for text in outputs:
        line = next(line for line in text.splitlines() if line.startswith("diffjax"))
        assert line == "diffjax: steps: 5 in process 0, 6 in process 1 (and 1 more); start all with the same"
    assert not (tmp_path / "run").exists()


# What can be refused without another process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1234",), "num-processes: coordinator, num-processes and process-id go together"),
        (("127.0.0.1:1234", 2, 2), "process-id: from 0 to num-processes - 1, got 2 of 2"),
        (("127.0.0.1", 2, 0), "coordinator: host:port is needed, got 127.0.0.1"),
        (("127.0.0.1:70000", 2, 0), "coordinator: host:port is needed, got 127.0.0.1:70000"),
        ((None, 0), "num-processes: at least 1, got 0"),
    ],
)
def test_hosts_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        initialize(*arguments)


def test_one_process_stays_alone():
    assert jax.device_count() > 0  # JAX has started, as in a notebook
    assert not initialize()
    assert not initialize(num_processes=1)
    abort(3)  # alone, it ends nothing
    assert not jax.distributed.is_initialized()


def test_an_uncaught_error_aborts_on_request_also_where_the_script_initialised_jax(monkeypatch):
    codes = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys, "excepthook", lambda *error: None)
    hook = sys.excepthook
    assert initialize()
    assert sys.excepthook is hook  # only on request
    assert initialize(abort_on_error=True)
    sys.excepthook(OSError, OSError("a disk"), None)
    assert codes == [1]


# The launcher, without JAX


def stub(folder, text):
    """A program that knows its number `i` and how often it was started, `times`."""
    path = folder / "program.py"
    path.write_text(
        "import os, pathlib, signal, sys, time\ni = int(sys.argv[-1])\n"
        f"count = pathlib.Path({str(folder)!r}, f'count{{i}}')\n"
        "times = len(count.read_text()) if count.exists() else 0\ncount.write_text('x' * (times + 1))\n" + text
    )
    return path


@pytest.mark.parametrize(
    ("text", "code", "starts"),
    [
        ("", 0, 1),
        ("sys.exit(2 if i else 0)", 2, 1),
        ("sys.exit(1)", 1, 1),
        ("sys.exit(75 if times < 2 else 0)", 0, 3),
        ("os.kill(os.getpid(), signal.SIGKILL) if i and times == 0 else time.sleep(0 if times else 60)", 0, 2),
        ("os.abort()", 75, 4),
    ],
)
def test_launcher_starts_again_where_it_may_help(tmp_path, text, code, starts):
    launched("go", program=stub(tmp_path, text), restarts=3, grace=0.3, code=code)
    assert [len((tmp_path / f"count{i}").read_text()) for i in range(2)] == [starts, starts]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); count.write_text('ready'); time.sleep(60)", 143),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); count.write_text('ready'); time.sleep(60)", 75),
    ],
)
def test_launcher_passes_sigterm_on_and_then_ends_what_does_not_end(tmp_path, text, code):
    command = [
        sys.executable,
        "launch.py",
        "--grace",
        "0.5",
        "--restarts",
        "3",
        "--program",
        stub(tmp_path, text),
        "go",
    ]
    launcher = subprocess.Popen(command, cwd=ROOT / "scripts")
    counts = [tmp_path / f"count{i}" for i in range(2)]
    peer.wait_for(lambda: all(path.exists() and path.read_text() == "ready" for path in counts), [launcher], 60)
    launcher.terminate()
    assert launcher.wait(timeout=60) == code


@pytest.mark.slow
def test_two_processes_with_different_data_are_refused_together(tmp_path):
    """The same relative path in two working folders."""
    port, ended = free_port(), []
    size = ["--steps", "2", "--batch-size", "8", "--network.width", "8", "--data.name", "file", "--data.path", "a.npz"]
    joined = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--out", str(tmp_path / "run")]
    for process in range(2):
        folder = tmp_path / str(process)
        folder.mkdir()
        np.savez(folder / "a.npz", x=np.random.default_rng(process).uniform(-1, 1, (40, 2)).astype(np.float32))
        command = [sys.executable, "-m", "diffjax", "train", "toy2d", *size, *joined, "--process-id", str(process)]
        ended.append(subprocess.Popen(command, cwd=folder, env=OURS, stderr=subprocess.PIPE, text=True))
    for process in ended:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2, err
        assert "data.path: its contents (SHA-256): " in err.splitlines()[-1]
        assert "start all with the same" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
