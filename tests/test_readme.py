"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(name, language):
    """The fenced block right after the line `<!-- run: name -->`."""
    found = re.search(rf"<!-- run: {name} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no {language} block after <!-- run: {name} -->"
    return found.group(1)


@pytest.mark.parametrize("name", ["main", "test"])
def test_the_commands_set_themselves_up(name):
    assert block(name, "bash").startswith("python3 -m venv .venv\n.venv/bin/pip install")


@pytest.mark.slow
def test_the_research_example():
    """About twenty statements; with a tenth of its steps it runs, and its samplers move noise to where the data is."""
    code = block("example", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 32
    space = {}
    exec(code.replace("range(1000)", "range(150)"), space)
    real = space["source"](1, 0, 4000)[0]
    for name in ("mine", "ours"):
        x = np.asarray(space[name])
        assert x.shape == (1000, 2)
        assert np.all(np.abs(x.mean(0) - real.mean(0)) < 0.3)
        assert np.all(np.abs(x.std(0) / real.std(0) - 1) < 0.3)
    assert np.all(np.isfinite(space["nats"]))
