"""A library leaves the process as it was: hooks, signal handlers and loggers change on request alone."""

import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parent / "helpers"
PROCESS_STATE = """
import logging, signal, sys, threading

def process_state():
    names = [None, "absl", "asyncio", "jax", "orbax"]
    filters = {name: list(logging.getLogger(name).filters) for name in names}
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {"excepthook": sys.excepthook, "threads": threading.excepthook, "filters": filters, "signals": handlers}

def check(when):
    for name, value in process_state().items():
        assert value == before[name], (when, name, before[name], value)

before = process_state()
"""
LIBRARY = """
import diffjax, diffjax.cli
from diffjax import config, data, interop, metrics, training, viz
check("imported")
import pathlib, training_toy as toy

folder = pathlib.Path(sys.argv[1])
training.initialize(num_processes=1)
with training.Checkpoints(folder / "checkpoints") as checkpoints:
    check("opened")
    toy.run(folder, 4, checkpoints=checkpoints, save_every=2, log_every=2, watch=[lambda *_: check("training")])
    checkpoints.wait()
    check("trained")
    (folder / "checkpoints" / "4" / "state" / "manifest.ocdbt").unlink()
    assert int(checkpoints.restore(toy.fresh_state()).step) == 2
check("restored")
"""
COMMAND_LINE = """
import diffjax.cli
assert diffjax.cli.main(["checkpoint", "list", sys.argv[1]]) == 2
check("called")
"""


def run_python(code, folder):
    environment = {"PYTHONPATH": f"{HELPERS}:{HELPERS.parents[1]}", "JAX_PLATFORMS": "cpu", "HOME": str(folder)}
    command = [sys.executable, "-c", PROCESS_STATE + code, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_importing_training_and_checkpoints_leave_hooks_handlers_and_loggers(tmp_path):
    done = run_python(LIBRARY, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_line_filters_the_messages_of_orbax(tmp_path):
    """So `check` can fail."""
    done = run_python(COMMAND_LINE, tmp_path)
    assert done.returncode == 1
    assert "AssertionError: ('called', 'filters'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("handle", [False, True])
def test_train_handles_signals_on_request_and_restores_the_handlers(tmp_path, handle):
    code = f"""
import pathlib, training_toy as toy
during = []
toy.run(pathlib.Path(sys.argv[1]), 2, log_every=1, handle_signals={handle},
        watch=[lambda *_: during.append(signal.getsignal(signal.SIGTERM))])
assert [handler == signal.SIG_DFL for handler in during] == [{not handle}] * 2
check("trained")
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
