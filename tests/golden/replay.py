"""Golden records: commands and the numbers that they make, which a refactor may not change.

records/GROUP.json holds, under a name each,

    command    what makes the numbers: a command line (`diffjax train ...`), or an expression in the names of
               problem.py. The text is what is run, so that it cannot say one thing and do another.
    numbers    what came out, to eight digits; of more than eight numbers the first, the last, their mean, their root
               mean square, and their mean weighted by cos(place)
    read       of a command line: an expression for the numbers that it has written or printed
    after      the record of the same group whose command must have run before, in the same folder
    slow       true where a relative is recorded beside it: left to the slow tests
    tolerance  how far numbers may be off, in units of the record's largest; 1e-5 by default. `why` gives the reason.

    python -m pytest tests/golden                   runs every command and compares
    python tests/golden/record.py [PATTERN]         writes the numbers that differ, and prints old and new

When a name or a signature changes, the numbers do not. Edit the text of the command (and the record's name, where it is
that of a configuration), or the helper of problem.py that it calls, and run the tests: the numbers must hold as they
are. Record anew only what is meant to change, so that the change is seen in review.
"""

import contextlib
import fnmatch
import importlib
import io
import json
import math
import shlex
from pathlib import Path

FOLDER = Path(__file__).parent / "records"
TOLERANCE = 1e-5
FIELDS = {"command", "read", "after", "slow", "tolerance", "why", "numbers"}
TABLES = {
    "processes": ("PROCESSES", 'loss(process="{}")'),
    "levels": ("PROCESSES", 'levels("{}")'),
    "parameterisations": ("PARAMETERISATIONS", 'loss(parameterisation="{}")'),
    "weightings": ("WEIGHTINGS", 'loss(weighting="{}", parameterisation="velocity")'),
    "times": ("TIMES", 'loss(times="{}")'),
    "objectives": ("LOSSES", 'loss(loss="{}")'),
    "samplers": ("STEPPERS", 'draw("{}")'),
    "guidances": ("GUIDANCES", 'guide("{}")'),
    "thresholds": ("THRESHOLDS", 'threshold("{}")'),
    "grids": ("GRIDS", 'grid("{}")'),
    "grid_draws": ("GRIDS", 'draw("ddim", grid="{}")'),
}
"""Groups with a record for each name of a table of `diffjax.config`, and the command of a name that is new."""


def read_records():
    """All records, {group: {name: record}}."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def write_records(group, records):
    """A group, its fields a line each."""
    field = lambda name, value: f"    {json.dumps(name)}: {json.dumps(value)}"
    entry = lambda record: ",\n".join(field(name, value) for name, value in record.items())
    entries = [f"  {json.dumps(name)}: {{\n{entry(record)}\n  }}" for name, record in records.items()]
    (FOLDER / f"{group}.json").write_text("{\n" + ",\n".join(entries) + "\n}\n")


def missing_names(records):
    """[(group, name, command)] of names of configurations that have no record."""
    tables = importlib.import_module("diffjax.config")
    return [
        (group, name, command.format(name))
        for group, (table, command) in TABLES.items()
        for name in getattr(tables, table)
        if name not in records.get(group, {})
    ]


def select(records, pattern="*"):
    """[(group, name)] of the records whose GROUP/NAME matches."""
    every = [(group, name) for group, some in records.items() for name in some]
    return [(group, name) for group, name in every if fnmatch.fnmatch(f"{group}/{name}", pattern)]


def largest_difference(record, numbers):
    """The largest difference from the numbers of a record, in units of the largest of them."""
    known = record["numbers"]
    if len(known) != len(numbers):
        return math.inf
    differences = [abs(a - b) for a, b in zip(known, numbers, strict=True)]
    scale = max(map(abs, known))
    return math.inf if any(map(math.isnan, differences)) else max(differences) / scale


class Replay:
    """Runs commands, all in one folder, those that others come after once."""

    def __init__(self, folder):
        self.problem = importlib.import_module("problem")
        self.folder, self.done = Path(folder), set()
        self.problem.write_files(self.folder)

    def numbers(self, group, name, records):
        """What the command of a record makes now."""
        record = records[group][name]
        before = record.get("after")
        if before is not None and (group, before) not in self.done:
            self.numbers(group, before, records)
        self.done.add((group, name))
        with contextlib.chdir(self.folder):
            return self._numbers(record)

    def _numbers(self, record):
        command = record["command"]
        if not command.startswith("diffjax "):
            return few(eval(command, dict(vars(self.problem))))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = importlib.import_module("diffjax.cli").main(shlex.split(command)[1:])
        if code:
            raise RuntimeError(f"{command}: exit code {code}")
        return few(eval(record["read"], {**vars(self.problem), "printed": Printed(printed.getvalue())}))


class Printed:
    """The number at the end of each line that ends in a name and a number: `printed(name, ...)`."""

    def __init__(self, text):
        self.lines = [line.rsplit(maxsplit=1) for line in text.splitlines() if len(line.split()) > 1]

    def __call__(self, *names):
        return [float(value.replace(",", "")) for name in names for text, value in self.lines if text.endswith(name)]


def few(values):
    """A pytree of arrays as at most eight numbers, of eight digits."""
    import jax
    import numpy as np

    x = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(values)])
    if len(x) > 8:
        waves = np.mean(x * np.cos(np.arange(len(x))))
        x = [x[0], x[-1], x.mean(), np.sqrt(np.mean(x**2)), waves]
    return [float(f"{value:.8g}") for value in x]
