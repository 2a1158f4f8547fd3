"""The published notebooks: the outputs of the full run of their own cells; solvers that a user names are labelled."""

import os
import pathlib
import runpy
import subprocess
import sys

import matplotlib.colors
import nbformat
import pytest

TOP = pathlib.Path(__file__).parents[1]
NOTEBOOKS = TOP / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_published_outputs_are_of_the_full_run_of_the_cells_beside_them(path):
    published = nbformat.read(path, as_version=4)
    assert runpy.run_path(str(NOTEBOOKS / "run.py"))["refusal"](published, published) is None
    outputs = [out for cell in published.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not any(out.output_type == "error" for out in outputs)
    text = path.with_suffix(".py").read_text()
    for cell in published.cells:  # what jupytext would pair, without it
        assert cell.cell_type != "code" or cell.source in text


def test_every_notebook_is_published_and_named_in_the_readme():
    names = {path.stem for path in NOTEBOOKS.glob("*.py")} - {"run"}
    assert names == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert not [name for name in names if f"notebooks/{name}.ipynb" not in (TOP / "README.md").read_text()]


def test_check_refuses_other_cells_another_source_the_fast_form_and_cells_not_run():
    run = runpy.run_path(str(NOTEBOOKS / "run.py"))

    def notebook(source="x = 1", count=1):
        cell = nbformat.v4.new_code_cell(source, execution_count=count)
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell])

    def published(form="full", of="x = 1", **cell):
        made = notebook(**cell)
        made.metadata["diffjax"] = run["origin"](notebook(of), form)
        return made

    assert run["refusal"](published(), notebook()) is None
    assert "cells differ" in run["refusal"](published(), notebook("x = 2"))
    assert "another source" in run["refusal"](notebook(), notebook())
    assert "another source" in run["refusal"](published(of="x = 2"), notebook())
    assert "of the fast form" in run["refusal"](published("fast"), notebook())
    assert "not been executed" in run["refusal"](published(count=None), notebook())


def test_solvers_that_a_user_adds_or_names_get_a_colour_and_a_label():
    """Beside all solvers of the library, each of eight more and one that is named has a style of its own."""
    bench = runpy.run_path(str(TOP / "scripts" / "bench_solvers.py"))
    added, library = [f"mine {i}" for i in range(8)], list(bench["SOLVERS"])
    row = lambda solver, n: bench["Row"]("plane", solver, "snr", n, n, (0.5 if solver in added else 1) / n, 1 / n, 0)
    rows = [row(solver, n) for solver in [*library, "recommended", *added] for n in (5, 10)]
    (axes,) = bench["draw"](rows, named=["LMS, order 2"]).axes
    styles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes.lines}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    for name in (*added, "LMS, order 2", "DDIM"):
        assert name in labels
        red, green, blue = matplotlib.colors.to_rgb(styles[name][0])
        assert max(red, green, blue) - min(red, green, blue) > 0.1, f"{name} is grey"
    assert len({styles[name] for name in labels}) == len(labels)
    assert "LMS, order 3" not in labels
    # A table of what is published has no solver of the user's in it, though here theirs are the best.
    assert {line[3] for line in bench["summary"](rows)} <= set(bench["PEERS"])


@pytest.mark.slow
def test_the_benchmark_runs_as_a_script_from_the_top_folder():
    environment = {**os.environ, "DIFFJAX_FAST": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(TOP)}
    command = [sys.executable, "notebooks/solver_benchmark.py"]
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert "times better" in done.stdout
