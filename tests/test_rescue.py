"""Whatever ends a run saves it first; what only shows a run may fail without ending it."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import training_toy as toy

from diffjax import cli
from diffjax.cli import main
from diffjax.config import from_json
from diffjax.training import Checkpoints, truncate_log

ROOT = Path(__file__).parents[1]


class Broken(Exception):
    pass


def breaks_at(step):
    """The toy's source, which raises where the batch of a step (from 0) is asked for."""

    def source(seed, n, size):
        if n == step:
            raise Broken(f"batch {n} cannot be decoded")
        return toy.source(seed, n, size)

    return source


def saved_steps(folder):
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def test_what_a_source_raises_ends_the_run_saved(tmp_path):
    """The error is the source's own; nothing of the 11 steps before it is lost, and the run goes on bit for bit."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(Broken, match="batch 11 cannot be decoded") as caught:
            toy.run(tmp_path, 20, source=breaks_at(11), checkpoints=checkpoints)
        assert caught.value.__notes__ == ["saved at step 11; the same call continues there"]
        state = checkpoints.restore(toy.fresh_state())
        ended = toy.run(tmp_path, 20, state=state, checkpoints=checkpoints)
    assert toy.digest(ended) == toy.digest(toy.run(tmp_path / "none", 20, log=None))


def test_a_watcher_that_raises_and_ctrl_c_out_of_turn_are_saved_too(tmp_path):
    def watch(step, metrics):
        raise KeyboardInterrupt

    with Checkpoints(tmp_path / "checkpoints") as checkpoints, pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path, 20, watch=[watch], checkpoints=checkpoints)
    assert saved_steps(tmp_path) == [7]


def test_an_error_before_the_first_step_says_that_there_was_none(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints, pytest.raises(Broken) as caught:
        toy.run(tmp_path, 20, source=breaks_at(0), checkpoints=checkpoints)
    assert caught.value.__notes__ == ["no step had been made"]
    assert saved_steps(tmp_path) == []


def test_a_state_that_is_bad_is_not_saved(tmp_path):
    state = toy.fresh_state()
    bad = state._replace(ema={**state.ema, "in": state.ema["in"] * float("nan")})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints, pytest.raises(Broken) as caught:
        toy.run(tmp_path, 20, state=bad, source=breaks_at(5), checkpoints=checkpoints)
    assert "could not be saved: step 5: ema/in is not finite" in caught.value.__notes__[0]
    assert saved_steps(tmp_path) == []


def test_a_log_that_cannot_be_written_is_dropped_with_one_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"log: .*gone/metrics\.jsonl cannot be written") as warned:
        state = toy.run(tmp_path, 21, log=tmp_path / "gone" / "metrics.jsonl")
    assert int(state.step) == 21
    assert len(warned) == 1


def test_a_bar_that_cannot_be_written_is_dropped(tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.warns(UserWarning, match="the progress bar cannot be written") as warned:
        toy.run(tmp_path, 21, progress=True)
    assert len(warned) == 1
    monkeypatch.setattr(sys, "stderr", None)
    toy.run(tmp_path, 28, progress=True)
    assert [line["step"] for line in toy.logged(tmp_path)][-1] == 28


def test_a_folder_that_goes_away_under_a_run_is_named(tmp_path):
    def source(seed, n, size):
        if n == 8:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        return toy.source(seed, n, size)

    (tmp_path / "run").mkdir()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    with pytest.raises(RuntimeError, match=r"run/checkpoints: .*the folder is gone"):
        toy.run(tmp_path / "run", 20, source=source, checkpoints=checkpoints, save_every=5, log=None)
    with contextlib.suppress(RuntimeError):  # said again, where the folder was not made anew
        checkpoints.close()


@pytest.mark.slow
def test_a_command_whose_terminal_is_closed_ends_well(tmp_path):
    """stderr closed from the start, stdout after its first line, and no home that could be written to."""
    size = "--steps 3 --batch-size 8 --network.width 8 --network.depth 1 --samples 8 --sampler.steps 2"
    command = f"{sys.executable} -m diffjax train toy2d {size} --out {tmp_path / 'run'}"
    environment = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    environment["HOME"] = "/proc/none"  # without one it would be that of the user's number, whose cache is not ours
    script = f"{{ {command} 2>&-; echo $? > {tmp_path / 'code'}; }} | head -n 1"
    environment |= {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "true", "MPLCONFIGDIR": str(tmp_path)}
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "code").read_text().strip() == "0"
    assert json.loads((tmp_path / "run" / "results.json").read_text())["samples"] == 8


@pytest.mark.parametrize("junk", ["\0" * 40, "\ufeff", "\n \n"])
def test_a_log_that_a_power_loss_broke_is_moved_aside_and_its_lines_kept(tmp_path, junk):
    toy.run(tmp_path, 14)
    log = tmp_path / "metrics.jsonl"
    before = log.read_text()
    log.write_text(junk + before, encoding="utf-8")
    with pytest.warns(UserWarning, match=r"log: .*metrics\.jsonl began with .*, it is now .*broken-"):
        truncate_log(log, 7)
    assert log.read_text() == before.splitlines(keepends=True)[0]
    assert [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.broken-*")] == [junk + before]
    log.write_text(junk, encoding="utf-8")
    with pytest.warns(UserWarning, match="it is now"):
        truncate_log(log, 7)
    assert log.read_text() == ""


def test_lines_after_one_that_was_cut_short_are_kept(tmp_path):
    """A full disk cut the second line, the next one went on behind it, and then there was room again."""
    log = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}, "loss": 1.0}}\n' for step in (10, 20, 30, 40, 50)]
    log.write_text(lines[0] + lines[1][:9] + "".join(lines[2:]))
    truncate_log(log, 40)
    assert log.read_text() == lines[0] + lines[3]


@pytest.mark.slow
def test_an_empty_configuration_is_restored_from_the_newest_checkpoint(tmp_path, capfd):
    size = [
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--network.width",
        "8",
        "--network.depth",
        "1",
        "--samples",
        "8",
        "--sampler.steps",
        "2",
    ]
    command = ["train", "toy2d", *size, "--out", str(tmp_path / "run")]
    assert main(command) == 0
    config = tmp_path / "run" / "config.json"
    before = config.read_text()
    config.write_text("")
    with pytest.warns(UserWarning, match="config.json is empty; the copy in the newest checkpoint is used"):
        assert main(["sample", str(tmp_path / "run"), "--n", "2", "--out", str(tmp_path / "x.npz")]) == 0
    with pytest.warns(UserWarning, match="is empty"):
        assert main([*command, "--seed", "3"]) == 2
    assert "holds a run with seed 0, not 3" in capfd.readouterr().err
    with pytest.warns(UserWarning, match="is empty"):
        assert main(command) == 0
    assert config.read_text() == before


HANGING = """
import sys, threading
from diffjax import cli
def fail(options, argv):
    threading.Thread(target=threading.Event().wait).start()
    raise RuntimeError("runs/x/checkpoints: step 20 could not be saved: can't start new thread")
cli.run_sample, cli._PATIENCE, sys.argv = fail, 0.2, ["diffjax", "sample", "runs/x"]
sys.exit(cli.main())
"""


def test_a_command_that_failed_ends_though_a_thread_waits_for_ever():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", HANGING], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr == "diffjax: runs/x/checkpoints: step 20 could not be saved: can't start new thread\n"


def test_a_pipe_that_breaks_in_a_command_is_a_failure(monkeypatch, capfd):
    def fail(options, argv):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "run_sample", fail)
    assert main(["sample", "runs/x"]) == 1
    assert "Broken pipe" in capfd.readouterr().err


def test_a_step_without_a_loss_is_named(tmp_path):
    layout = toy.make_layout("jit")
    step = layout.step

    def without(state, batch):
        state, metrics = step(state, batch)
        return state, {name: value for name, value in metrics.items() if name != "loss"}

    with pytest.raises(ValueError, match=r"layout: a step's metrics need .*; loss: missing, there are grad_"):
        toy.run(tmp_path, 3, layout=layout._replace(step=without))


def test_brackets_nested_too_deep_are_no_configuration():
    with pytest.raises(ValueError, match="config: not a configuration: its brackets are nested too deep"):
        from_json("[" * 100_000)


def test_a_pipe_or_a_terminal_as_a_log_gets_lines_without_a_warning_and_is_left_in_its_place(tmp_path):
    """Only files are put on the disk by fsync, and only they are cut off; a link to one stays a link."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy.run(tmp_path, 14, log=pipe)
        assert [json.loads(line)["step"] for line in os.read(reader, 10**6).splitlines()] == [7, 14]
        os.close(reader)
        terminal = os.openpty()
        toy.run(tmp_path, 7, log=os.ttyname(terminal[1]))
        assert os.read(terminal[0], 100).startswith(b'{"step": 7, ')
        toy.run(tmp_path, 14)
        link.symlink_to(tmp_path / "metrics.jsonl")
        truncate_log(link, 7)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert [line["step"] for line in toy.logged(tmp_path)] == [7]
