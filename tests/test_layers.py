"""Imports go one way, heavy libraries come in by one door each, and importing diffjax starts nothing."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "diffjax"
ROWS = [
    {"_typing", "_arrays"},
    {"process", "networks", "operators"},
    {"analytic", "parameterisation"},
    {"guidance"},
    {"samplers"},
    {"losses", "inverse"},
    {"likelihood"},
    {"interop", "training", "data", "metrics", "viz"},
    {"config"},
    {"cli"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
DOORS = {
    "flax": ("networks/",),
    "orbax": ("training/_checkpoint.py", "training/_orbax.py", "training/_reading.py"),
    "safetensors": ("training/_export.py", "interop/_files.py"),
    "huggingface_hub": ("interop/_hub.py",),
    "tokenizers": ("interop/_tokenizer.py",),
    "diffrax": (
        "samplers/_diffrax.py",
        "samplers/_solver_checks.py",
        "samplers/_stepper_solver.py",
        "samplers/_score_sde.py",
        "likelihood/_flow.py",
        "likelihood/_latents.py",
        "process/_sde.py",
        "process/_linear.py",
        "analytic/_fokker_planck.py",
    ),
    "lineax": ("process/_noise.py", "guidance/", "inverse/"),
    "grain": ("data/",),
    "tensorboardX": ("training/_watch.py",),
    "array_record": ("data/",),
    "absl": ("data/",),
    "sklearn": ("data/",),
    "matplotlib": ("viz.py",),
    "PIL": ("viz.py", "data/", "cli/_known.py"),
    "tyro": ("cli/",),
    "ott": ("losses/_coupling.py", "metrics/"),
    "blackjax": ("samplers/_langevin.py",),
}
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if path.name != "__main__.py")


def imports(path):
    """Every module that a file imports, wherever in it, by its full name."""
    package = ("diffjax", *pathlib.PurePosixPath(path).parent.parts)
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield from ([f"diffjax.{alias.name}" for alias in node.names] if base == "diffjax" else [base])


@pytest.mark.parametrize("path", [path for path in FILES if path != "__init__.py"])
def test_a_module_imports_only_from_rows_above_its_own(path):
    room = path.split("/")[0].removesuffix(".py")
    assert room in RANK, f"{room} has no row: give it one here and in the design"
    for module in imports(path):
        if module.startswith("diffjax.") and (other := module.split(".")[1]) not in (room, "__version__"):
            assert other in RANK, f"{path} imports {module}, which has no row"
            assert RANK[other] < RANK[room], f"{path} imports {module}, which stands in its own row or below"
    if room == "networks":
        assert not any(module.startswith("diffjax.process") for module in imports(path))


@pytest.mark.parametrize("path", FILES)
def test_heavy_libraries_come_in_by_their_doors(path):
    for module in imports(path):
        doors = DOORS.get(module.split(".")[0])
        assert doors is None or path.startswith(doors), f"{path} imports {module}, whose doors are {doors}"


def test_importing_starts_no_backend():
    code = "import diffjax, jax; from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
