"""Every record's command makes its numbers; `replay` says what a record is, and how to change one."""

import math

import pytest
from replay import FIELDS, TOLERANCE, Replay, largest_difference, missing_names, read_records, select

from diffjax import config

RECORDS = read_records()


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    """Where commands are run."""
    return Replay(tmp_path_factory.mktemp("golden"))


def _each_record():
    marks = lambda group, name: pytest.mark.slow if RECORDS[group][name].get("slow") else ()
    return [pytest.param(*at, marks=marks(*at), id="/".join(at)) for at in select(RECORDS)]


@pytest.mark.parametrize(("group", "name"), _each_record())
def test_a_command_makes_the_numbers_that_are_recorded(replay, group, name):
    record = RECORDS[group][name]
    numbers = replay.numbers(group, name, RECORDS)
    off = largest_difference(record, numbers)
    assert off <= record.get("tolerance", TOLERANCE), f"{record['command']}: {record['numbers']}, now {numbers}"


def test_every_record_has_one_command_and_its_numbers():
    every = [(f"{group}/{name}", record) for group, records in RECORDS.items() for name, record in records.items()]
    for name, record in every:
        assert set(record) <= FIELDS, name
        assert isinstance(record.get("command"), str), name
        assert record["command"].startswith("diffjax ") == ("read" in record), name
        assert record.get("after") is None or record["after"] in RECORDS[name.split("/")[0]], name
        assert ("tolerance" in record) == ("why" in record), name
        numbers = record.get("numbers", [])
        assert 1 <= len(numbers) <= 8, name
        assert all(map(math.isfinite, numbers)), name
        assert any(numbers), name
    commands = [record["command"] for _, record in every]
    assert len(set(commands)) == len(commands)


def test_every_name_of_a_configuration_has_a_record():
    missing = missing_names(RECORDS)
    assert not missing, f"python tests/golden/record.py records {missing}"
    commands = " ".join(record["command"] for record in RECORDS["presets"].values())
    assert not [name for name in config.PRESETS if f'"{name}"' not in commands]
