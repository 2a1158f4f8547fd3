"""`scripts/critically_damped.py` from one end to the other, hardly trained."""

import pathlib
import runpy

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "critically_damped.py"


@pytest.mark.slow
def test_the_study_runs(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    rows = main(["--steps", "50", "--samples", "200", "--nfe", "20", "--folder", str(tmp_path)])
    assert [row[:3] for row in rows] == [(p, by, 20) for p in ("VP", "CLD") for by in ("SDE", "flow")]
    assert all(np.isfinite(row[3]) for row in rows)
    assert "floor" in capsys.readouterr().out
    assert (tmp_path / "samples.png").stat().st_size > 10_000
