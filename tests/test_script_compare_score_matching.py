"""`scripts/compare_score_matching.py` from one end to the other, hardly trained."""

import csv
import importlib.util
import pathlib
import sys

import pytest

import diffjax as dj
from diffjax import networks

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "compare_score_matching.py"


@pytest.mark.slow
def test_table_and_picture(tmp_path, monkeypatch):
    """A hundred steps: every loss has already learned something of the score (its error from zero is 1)."""
    spec = importlib.util.spec_from_file_location("compare_score_matching", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "NETWORK", dj.from_linen(networks.MLP(width=32, depth=1)))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--steps", "100", "--output", str(tmp_path)])
    script.main()
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["implicit", "sliced (vr)", "denoising", "NCSN"]
    assert all(0 < float(row["error at logsnr 0"]) < 0.9 for row in rows)
    assert all(float(row["ms a step"]) > 0 for row in rows)
    assert (tmp_path / "fields.png").stat().st_size > 10_000
