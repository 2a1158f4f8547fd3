"""Names of folders and files, and terminals: what cannot be is refused at once, in words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffjax.cli import main
from diffjax.cli._print import print_line, quoted
from diffjax.training import Checkpoints

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "gs://bucket/x"], "out: a place on this machine is needed, or one mounted on it, got gs://bucket/x"),
        (["--out", "a" * 300], "out: a name has at most 255 bytes, got one of 300"),
        (["--out", "ü" * 150], "out: a name has at most 255 bytes, got one of 300"),
        (["--out", "a/" * 2000], "out: a path has at most 3840 bytes here, got one of"),
        (["--out", ""], "out: the name of a folder is needed"),
        (["--out", "/"], "out: the name of a folder is needed"),
        (["--name", "../../esc"], "name: the folder runs/NAME is made of it"),
        (["--name", ""], "name: the folder runs/NAME is made of it"),
        (["--name", ".."], "name: the folder runs/NAME is made of it"),
        (["--out", "caf\udce9"], "'caf\\udce9': it is not UTF-8; rename the file or folder"),
    ],
    ids=lambda value: None,
)
def test_a_folder_that_cannot_be_is_refused_before_training(options, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "toy2d", *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"diffjax: {message}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_within_one_that_is_not_utf8_is_refused_before_training(tmp_path, monkeypatch, capfd):
    """JAX's libraries could not write there; the name as the system has it cannot be printed either."""
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["train", "toy2d", "--out", "run"]) == 2
    assert "caf\\udce9/run': it is not UTF-8; rename the file or folder" in capfd.readouterr().err
    assert not list(folder.iterdir())
    for read_only in (True, False):
        with pytest.raises(ValueError, match=r"caf\\udce9/run': it is not UTF-8"):
            Checkpoints("run", read_only=read_only)
    print_line("0 = caf\udce9: 3")
    assert capfd.readouterr().out == "0 = caf\\udce9: 3\n"


def test_a_name_beyond_ascii_is_refused_where_the_locale_is_not_utf8(monkeypatch, capfd):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    assert main(["sample", "ünï"]) == 2
    assert "names beyond ASCII need a UTF-8 locale (LC_ALL=C.UTF-8), got iso8859-1" in capfd.readouterr().err


def test_a_path_of_a_printed_command_can_be_pasted():
    assert [quoted(path) for path in ("runs/a", "my runs/a", "-x", "it's")] == [
        "runs/a",
        "'my runs/a'",
        "./-x",
        "'it'\"'\"'s'",
    ]


@pytest.mark.slow
def test_help_in_a_narrow_terminal_and_without_docstrings():
    """Each example stands on a line of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "4"}
    run = lambda *argv, flags=(): subprocess.run(
        [sys.executable, *flags, "-m", "diffjax", *argv], env=environment, capture_output=True, text=True, timeout=120
    )
    narrow = run("--help", flags=["-OO"])
    assert narrow.returncode == 0
    assert "Draw samples from a run" in " ".join(narrow.stdout.replace("│", "").split())
    environment["COLUMNS"] = "120"
    wide = run("sample", "--help").stdout.splitlines()
    assert [line.strip() for line in wide if line.strip().startswith("$")] == [
        "$ diffjax sample runs/digits --label 3 --n 25 --guidance 2 --out threes.png",
        "$ diffjax sample runs/digits --sampler.name ddim --sampler.eta 1 --steps 100",
        "$ diffjax sample runs/digits --guidance.name projected --guidance 4 --interval -2 6",
        "$ diffjax sample runs/digits --known half.png --mask left.png --n 16",
        '$ diffjax sample runs/shapes --text "a red circle above a small blue square" --guidance 3 --n 16',
    ]


def test_the_working_folder_may_be_a_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("diffjax.cli._train._train", lambda *args: None)
    for given in (".", "./"):
        monkeypatch.chdir(tmp_path)
        assert main(["train", "toy2d", "--network.width", "8", "--network.depth", "1", "--out", given]) == 0
        assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "config.json", "data.json"}
