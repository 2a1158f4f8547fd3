"""Writes the numbers of golden records anew, and prints what changed; numbers that hold are left as they are.

    python tests/golden/record.py                   all of them; names of configurations without a record get one
    python tests/golden/record.py "samplers/d*"     those whose GROUP/NAME matches

A record that is new is written into records/GROUP.json by hand, with its command alone.
"""

import importlib
import sys
import tempfile
import time
from pathlib import Path

from replay import TOLERANCE, Replay, largest_difference, missing_names, read_records, select, write_records


def main(pattern="*"):
    """Runs the commands that match, and writes the groups in which something changed."""
    sys.path.append(str(Path(__file__).parents[1]))
    importlib.import_module("conftest")  # the devices and the compiler of the tests
    records = read_records()
    for group, name, command in missing_names(records):
        records.setdefault(group, {})[name] = {"command": command}
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(folder)
        for group, name in select(records, pattern):
            record, start = records[group][name], time.process_time()
            numbers = replay.numbers(group, name, records)
            seconds = time.process_time() - start
            known = record.get("numbers")
            off = largest_difference(record, numbers) if known else None
            if off is not None and off <= record.get("tolerance", TOLERANCE):
                print(f"{group}/{name}: holds ({off:.1e}, {seconds:.1f} s)")
                continue
            print(f"{group}/{name}: {record['command']} ({seconds:.1f} s)\n    old {known}\n    new {numbers}")
            record["numbers"] = numbers
            write_records(group, records[group])


if __name__ == "__main__":
    main(*sys.argv[1:])
