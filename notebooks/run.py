"""Executes the notebooks: `python notebooks/run.py [NAME ...]` writes each .ipynb with its outputs from its paired .py.

With --check nothing is written: each is executed, and its .ipynb must hold the same cells as its .py and the outputs of
these cells, of the full run. DIFFJAX_FAST=1 shrinks the work, for a check; what it writes is not for publication.
Needs the extra `dev`: `pip install ".[dev]"` in diffjax's folder.
A notebook's metadata say what its outputs are of: `diffjax.source`, a digest of the cells, and `diffjax.form`.
"""

import hashlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
FORM = "fast" if os.environ.get("DIFFJAX_FAST") == "1" else "full"


def sources(notebook):
    """[(cell type, source)] of a notebook: what must agree between the .py and the .ipynb."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def origin(notebook, form):
    """What outputs are of: a digest of the cells that made them, and the form they ran in."""
    return {"source": hashlib.sha256(repr(sources(notebook)).encode()).hexdigest()[:16], "form": form}


def refusal(published, notebook):
    """Why a published notebook is not that of the paired source in its full form; None where it is."""
    if sources(published) != sources(notebook):
        return "its cells differ from those of its .py"
    found = published.metadata.get("diffjax", {})
    if found.get("source") != origin(notebook, "full")["source"]:
        return "its outputs are of another source than its cells"
    if found.get("form") != "full":
        return f"its outputs are of the {found.get('form')} form, not of the full one"
    if any(cell.cell_type == "code" and cell.execution_count is None for cell in published.cells):
        return "a cell has not been executed"
    return None


def main(arguments):
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    check, names = "--check" in arguments, [Path(name).stem for name in arguments if name != "--check"]
    scripts = [script for script in sorted(HERE.glob("*.py")) if script.name != "run.py"]
    if unknown := set(names) - {script.stem for script in scripts}:
        sys.exit(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(script.stem for script in scripts)}")
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar is no output to publish
    for script in scripts:
        if names and script.stem not in names:
            continue
        notebook = jupytext.read(script)
        paired = script.with_suffix(".ipynb")
        if check and (why := refusal(nbformat.read(paired, as_version=4), notebook)):
            sys.exit(f"{paired.name}: {why}; run python notebooks/run.py {script.stem} without DIFFJAX_FAST")
        NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": HERE}}).execute()
        for cell in notebook.cells:
            if "outputs" in cell:  # some bars are drawn all the same
                cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr" or "\r" not in out.text]
        printed = [
            out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == "stdout"
        ]
        print(f"{script.name}: executed\n{''.join(printed)}")
        if not check:
            notebook.metadata["diffjax"] = origin(notebook, FORM)
            nbformat.write(notebook, paired)


if __name__ == "__main__":
    main(sys.argv[1:])
