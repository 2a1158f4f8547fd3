"""Executes the notebooks: `python notebooks/run.py` writes each .ipynb, with its outputs, from its paired .py.

With --check nothing is written: each is executed, and its .ipynb must hold the same cells as its .py. DIFFJAX_FAST=1
shrinks the work.
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def sources(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def main(check):
    for script in sorted(HERE.glob("*.py")):
        if script.name == "run.py":
            continue
        notebook = jupytext.read(script)
        paired = script.with_suffix(".ipynb")
        if check and sources(nbformat.read(paired, as_version=4)) != sources(notebook):
            sys.exit(f"{paired.name} differs from {script.name}: run python notebooks/run.py")
        NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": HERE}}).execute()
        printed = [
            out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == "stdout"
        ]
        print(f"{script.name}: executed\n{''.join(printed)}")
        if not check:
            nbformat.write(notebook, paired)


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
