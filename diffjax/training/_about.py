"""What a checkpoint says of itself: our own JSON beside the arrays, sealed by a checksum.

state, step --make_about--> {format, step, time, jax, processes, mesh, metrics, leaves: path -> shape, dtype, ...}
                                                            |
like --describe--> path -> shape, dtype --check_same_tree---+--> or a line that names the first difference
"""

import datetime
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax

FORMAT = 2
READ = (1, 2)


class Damaged(ValueError):
    """Raised where a checkpoint cannot be read, or is not what was written."""


def describe(tree: Any) -> dict[str, dict[str, Any]]:
    """Path -> shape and dtype of each leaf, in the order of the tree."""
    return {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves_by_path(tree).items()}


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Path, such as params/Dense_0/kernel, -> leaf, in the order of the tree."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_of(path: Any) -> str:
    """The name of a leaf by its path in a tree: "params/Dense_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def make_about(step: int, state: Any, metrics: Mapping[str, Any] | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The sealed record of a state that is about to be saved; `extra` is the caller's own."""
    meshes = (getattr(getattr(leaf, "sharding", None), "mesh", None) for leaf in jax.tree.leaves(state))
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    return seal(
        {
            "format": FORMAT,
            "step": int(step),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "processes": jax.process_count(),
            "mesh": {} if mesh is None else dict(mesh.shape),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "about": dict(extra),
            "leaves": describe(state),
        }
    )


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record, as JSON will give it back, with a checksum of itself."""
    record = json.loads(json.dumps(record))
    return {**record, "crc32": _checksum(record)}


def is_sealed(record: Any) -> bool:
    """Whether a record is as it was sealed."""
    return isinstance(record, dict) and "crc32" in record and record["crc32"] == _checksum(record)


def _checksum(record: Mapping[str, Any]) -> int:
    rest = {name: value for name, value in record.items() if name != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def check_format(about: Any, where: str) -> None:
    """Raises `ValueError` where a record is of a format that is not read here."""
    version = about.get("format") if isinstance(about, dict) else None
    if version not in READ:
        raise ValueError(f"{where}: a checkpoint of format {version}; this version of diffjax reads formats {READ}")


def check_same_tree(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Raises `ValueError` naming the first leaf in which two trees differ."""
    shown = lambda leaf: f"{leaf['dtype']}{leaf['shape']}" if leaf else "absent"
    for path in (*wanted, *saved):
        there, here = saved.get(path), wanted.get(path)
        if there is None or here is None or any(there[part] != here[part] for part in ("shape", "dtype")):
            message = f"{path} is {shown(there)} in the checkpoint, {shown(here)} in this run"
            raise ValueError(f"{where}: a checkpoint of another architecture: {message}")
