"""One checkpoint, read and compared with what was written.

    120/about ----> format, tree: in our words, before anything is read --+
    120/state ----> arrays, onto the devices of `like` or the host -------+--> arrays, or `Damaged`
    120/digests --> digests of what was written --------------------------+

Imported when a folder of checkpoints is opened, for Orbax takes seconds.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from diffjax.training._about import Damaged, check_format, check_same_tree, describe, is_sealed, leaves_by_path
from diffjax.training._digest import Parts, crc32, digest_parts, host_parts, raw
from diffjax.training._distributed import gather_texts
from diffjax.training._orbax import add_digests, causes, first_line, quiet, read_digests, read_leaves


def read_about(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; `ValueError` where it is of another format, `Damaged` where it was changed."""
    try:
        about = ocp.JsonCheckpointHandler().restore(epath.Path(folder / "about"))
    except Exception as error:
        raise _damaged(folder, f"about could not be read: {first_line(error)}") from error
    if not isinstance(about, dict) or not (is_sealed(about) or about.get("format") == 1):
        raise _damaged(folder, "about does not match its checksum")
    check_format(about, str(folder))
    return dict(about)


def read_state(folder: Path, like: Any) -> Any:
    """The state, on the devices that `like` is on.

    `Damaged` is raised in every process alike, where any of them cannot read its part.
    """
    about = read_about(folder)
    check_same_tree(about["leaves"], describe(like), str(folder))
    digests = _read_digests(folder, about)
    state, said = None, ""
    try:
        with quiet():  # by its handler and not by the manager, which would wait for a process that failed
            wanted = ocp.args.StandardRestore(jax.tree.map(_abstract, like))  # pyright: ignore[reportCallIssue]
            state = ocp.StandardCheckpointHandler().restore(epath.Path(folder / "state"), args=wanted)
    except Exception as error:
        if any(isinstance(cause, MemoryError | jax.errors.JaxRuntimeError) for cause in causes(error)):
            raise  # this machine, not the disk
        said = str(_damaged(folder, f"step {folder.name} could not be read: {first_line(error)}"))
    if reasons := [text for text in gather_texts(said) if text]:
        raise Damaged(reasons[0])
    found: Mapping[str, Any] = {
        path: _digest(about, host_parts(raw(leaf)), raw(leaf).shape) for path, leaf in leaves_by_path(state).items()
    }
    if about["format"] > 1:
        found = add_digests([json.loads(text) for text in gather_texts(json.dumps(found))])
    _compare(folder, digests, found)
    return state


def read_arrays(folder: Path, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Path and array of each leaf whose path begins with `prefix`, on the host, keys as their data."""
    about = read_about(folder)
    digests = _read_digests(folder, about)
    wanted = {path for path in about["leaves"] if path.startswith(prefix)}
    seen = set()
    arrays = read_leaves(folder / "state", lambda path: path in wanted)
    while True:
        try:
            with quiet():
                path, array = next(arrays)
        except StopIteration:
            break
        except Exception as error:
            raise _damaged(folder, f"step {folder.name} could not be read: {first_line(error)}") from error
        whole = [((0,) * array.ndim, array)]
        _compare(folder, digests, {path: _digest(about, whole, array.shape)})
        seen.add(path)
        yield path, array
    if wanted - seen:
        raise _damaged(folder, f"{min(wanted - seen)} is missing")


def _damaged(folder: Path, what: str) -> Damaged:
    return Damaged(f"{folder}: damaged on disk: {what}")


def _read_digests(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    if about["format"] == 1:
        return {path: leaf["crc32"] for path, leaf in about["leaves"].items()}
    try:
        return read_digests(folder / "digests")
    except Exception as error:
        raise _damaged(folder, f"digests could not be read: {first_line(error)}") from error


def _digest(about: Mapping[str, Any], parts: Parts, shape: tuple[int, ...]) -> int | None:
    return crc32(parts) if about["format"] == 1 else digest_parts(parts, shape)


def _compare(folder: Path, saved: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for path, digest in found.items():
        if saved.get(path) != digest and not (digest is None and path in saved):
            raise _damaged(folder, f"{path} does not match its checksum")


def _abstract(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
