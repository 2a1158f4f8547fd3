"""The metadata of a checkpoint: JSON stored with the arrays, sealed by a checksum.

state, step --make_metadata--> {format, step, time, jax, processes, mesh, metrics, leaves: path -> shape, dtype, ...}
                                                            |
like --describe--> path -> shape, dtype --check_same_tree---+--> None, or ValueError naming the first difference

On disk the record is the item `about` of a step; its entry `about` is what the caller wrote of the run.
"""

import datetime
import json
import zlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from jaxtyping import PyTree

from diffjax._arrays import leaves_by_path

FORMAT = 2
"""The only format that is written and read."""

Metadata: TypeAlias = dict[str, Any]
"""A JSON object."""


class Damaged(ValueError):
    """Raised where a checkpoint cannot be read, or differs from what was written."""


def describe(tree: PyTree) -> dict[str, Metadata]:
    """Path -> {"shape", "dtype"} of each leaf, in the order of the tree."""
    return {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves_by_path(tree).items()}


def make_metadata(
    step: int, state: PyTree, metrics: Mapping[str, float] | None, about: Mapping[str, object]
) -> Metadata:
    """The sealed metadata of a state that is about to be saved; `about` is what the caller writes of the run."""
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
            "about": dict(about),
            "leaves": describe(state),
        }
    )


def seal(record: Mapping[str, object]) -> Metadata:
    """A record as JSON reads it back, with a checksum of itself."""
    record = json.loads(json.dumps(record))
    return {**record, "crc32": _checksum(record)}


def is_sealed(record: object) -> bool:
    """True if a record matches its own checksum."""
    return isinstance(record, dict) and "crc32" in record and record["crc32"] == _checksum(record)


def _checksum(record: Mapping[str, object]) -> int:
    rest = {name: value for name, value in record.items() if name != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def check_format(record: object, where: str) -> None:
    """Raises `ValueError` where metadata are of another format than `FORMAT`."""
    version = record.get("format") if isinstance(record, dict) else None
    if version != FORMAT:
        raise ValueError(f"{where}: a checkpoint of format {version}; this version of diffjax reads format {FORMAT}")


def check_same_tree(saved: Mapping[str, Metadata], wanted: Mapping[str, Metadata], where: str) -> None:
    """Raises `ValueError` naming the first leaf in which two described trees differ."""
    shown = lambda leaf: f"{leaf['dtype']}{leaf['shape']}" if leaf else "absent"
    for path in (*wanted, *saved):
        old, new = saved.get(path), wanted.get(path)
        if old is None or new is None or any(old[part] != new[part] for part in ("shape", "dtype")):
            message = f"{path} is {shown(old)} in the checkpoint, {shown(new)} in this run"
            raise ValueError(f"{where}: a checkpoint of another architecture: {message}")
