"""The examples in docstrings run, and say what they say."""

import doctest
import importlib
import inspect
import pathlib

import pytest

import diffjax

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "diffjax").rglob("*.py")
    if ">>>" in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


def test_every_name_at_the_top_has_an_example():
    """All but `load`, whose example needs a trained run."""
    public = {name: value for name, value in vars(diffjax).items() if not name.startswith("_")}
    ours = {name: value for name, value in public.items() if inspect.isclass(value) or inspect.isfunction(value)}
    ours = {name: value for name, value in ours.items() if value.__module__.startswith("diffjax")}
    assert len(ours) > 40
    assert [name for name, value in ours.items() if ">>>" not in (inspect.getdoc(value) or "")] == []
