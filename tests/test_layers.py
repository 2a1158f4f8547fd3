"""Imports go one way, heavy libraries come in by one door each, and importing diffjax starts nothing."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "diffjax"
ROWS = [
    {"_typing"},
    {"_arrays"},
    {"_numbers"},
    {"data", "process", "networks", "operators"},
    {"analytic", "parameterisation"},
    {"guidance"},
    {"samplers"},
    {"losses", "inverse"},
    {"likelihood", "flow_maps", "vae", "gan"},
    {"interop", "training", "metrics", "viz"},
    {"config"},
    {"cli"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
DOORS = {
    "flax": ("networks/",),
    "orbax": ("training/checkpoint/",),
    "safetensors": ("training/checkpoint/_export.py", "interop/_files.py"),
    "huggingface_hub": ("interop/_hub.py",),
    "tokenizers": ("interop/_tokenizer.py",),
    "diffrax": (
        "samplers/_diffrax.py",
        "samplers/_progress.py",
        "samplers/_solver_checks.py",
        "samplers/_stepper_solver.py",
        "samplers/_score_sde.py",
        "likelihood/_flow.py",
        "likelihood/_latents.py",
        "process/_sde.py",
        "process/_linear.py",
        "analytic/_flow_map.py",
        "analytic/_fokker_planck.py",
    ),
    "lineax": ("process/", "guidance/", "inverse/", "samplers/_diffrax.py", "samplers/_score_sde.py"),
    "grain": ("data/",),
    "tensorboardX": ("training/_monitor.py",),
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


def test_a_name_is_exported_once():
    """From the top, a package, or a package within one; a package itself is no such name."""
    where = {}
    for face in sorted(ROOT.rglob("__init__.py")):
        if face.parent.name == "cli":
            continue
        for node in ast.parse(face.read_text()).body:
            for alias in node.names if isinstance(node, ast.ImportFrom) and node.module != "diffjax" else ():
                if alias.asname == alias.name and not alias.name.startswith("_"):
                    where.setdefault(alias.name, []).append(str(face.parent.relative_to(ROOT)))
    assert len(where) > 400
    assert {name: faces for name, faces in where.items() if len(faces) > 1} == {}
    assert sum("." in faces for faces in where.values()) <= 50, "the top level has what README and the quickstart need"


def test_importing_starts_no_backend():
    """So that `jax.distributed.initialize` may follow: of the package, the command line, and each module."""
    code = """
import importlib, pkgutil
import diffjax, diffjax.cli
from jax._src import xla_bridge
for module in pkgutil.walk_packages(diffjax.__path__, "diffjax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        assert not xla_bridge.backends_are_initialized(), module.name
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
