"""One checkpoint, read and compared with what was written.

    120/about ----> format, tree: compared with `like` before anything is read --+
    120/state ----> arrays, onto the devices of `like` or the host --------------+--> arrays, or `Damaged`
    120/digests --> digests of what was written ---------------------------------+

Orbax casts dtypes silently, and does not notice a flipped bit in array data, so both are checked here. Imported when a
folder of checkpoints is opened, for importing Orbax takes seconds.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from diffjax._arrays import leaves_by_path
from diffjax.training._hosts import gather_texts
from diffjax.training.checkpoint._digest import digest_parts, host_parts, without_key_type
from diffjax.training.checkpoint._logs import orbax_call
from diffjax.training.checkpoint._metadata import (
    FORMAT,
    Damaged,
    Metadata,
    check_format,
    check_same_tree,
    describe,
    is_sealed,
)
from diffjax.training.checkpoint._orbax import add_digests, causes, first_line, read_digests, read_leaves

T = TypeVar("T")


def read_metadata(folder: Path) -> Metadata:
    """The metadata of a checkpoint.

    Raises:
      ValueError: it is of another format.
      Damaged: it was changed, or belongs to another step.
      FileNotFoundError: the checkpoint has been deleted.
    """
    try:
        record: object = ocp.JsonCheckpointHandler().restore(epath.Path(folder / "about"))
    except Exception as error:
        raise _damaged_or_deleted(folder, f"about could not be read: {first_line(error)}") from error
    sealed = is_sealed(record)
    if sealed or (isinstance(record, dict) and "crc32" not in record):  # another format may be sealed otherwise
        check_format(record, str(folder))
    if not sealed or not isinstance(record, dict):
        version = record.get("format") if isinstance(record, dict) else None
        other = "" if version == FORMAT else f" (or it is of another format: {version})"
        raise _damaged_or_deleted(folder, f"about does not match its checksum{other}")
    if str(record["step"]) != folder.name:
        reason = f"it holds step {record['step']}, and its name is {folder.name}: copied or renamed"
        raise _damaged_or_deleted(folder, reason)
    return dict(record)


def read_state(folder: Path, like: PyTree) -> PyTree:
    """The state, on the devices of `like`.

    Raises:
      ValueError, Damaged, FileNotFoundError: as `read_metadata`, or the trees differ; in every process alike, where
        any of them cannot read its part.
    """

    def read() -> tuple[dict[str, int], PyTree]:
        check_same_tree(read_metadata(folder)["leaves"], describe(like), str(folder))
        digests = _saved_digests(folder)
        try:
            with orbax_call():  # by its handler and not by the manager, which would wait for a process that failed
                wanted = ocp.args.StandardRestore(jax.tree.map(_abstract, like))  # pyright: ignore[reportCallIssue]
                return digests, ocp.StandardCheckpointHandler().restore(epath.Path(folder / "state"), args=wanted)
        except Exception as error:
            if any(isinstance(cause, MemoryError | jax.errors.JaxRuntimeError) for cause in causes(error)):
                raise  # this machine, not the disk
            raise _damaged_or_deleted(folder, f"step {folder.name} could not be read: {first_line(error)}") from error

    digests, state = sync_read_errors(read)
    arrays = {path: without_key_type(leaf) for path, leaf in leaves_by_path(state).items()}
    own = {path: digest_parts(host_parts(array), array.shape) for path, array in arrays.items()}
    _compare(folder, digests, add_digests([json.loads(text) for text in gather_texts(json.dumps(own))]))
    return state


def read_some(folder: Path, like: PyTree) -> PyTree:
    """Those leaves of the state that `like` holds under the same paths, on its devices; the others are not read."""

    def read() -> list[np.ndarray]:
        saved, wanted = read_metadata(folder)["leaves"], describe(like)
        check_same_tree({path: saved[path] for path in wanted if path in saved}, wanted, str(folder))
        arrays = dict(_checked_leaves(folder, set(wanted)))
        return [arrays[path] for path in wanted]

    arrays = jax.tree.unflatten(jax.tree.structure(like), sync_read_errors(read))
    # Not `device_put`: it would gather each array from all processes, to compare.
    put = lambda array, leaf: jax.make_array_from_callback(array.shape, _sharding(leaf), lambda part: array[part])
    return jax.tree.map(put, arrays, like)


def read_arrays(folder: Path, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Path and array [*d] of each leaf whose path begins with `prefix`, on the host, keys as their data."""
    leaves = read_metadata(folder)["leaves"]
    yield from _checked_leaves(folder, {path for path in leaves if path.startswith(prefix)})


def _checked_leaves(folder: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    digests = _saved_digests(folder)
    seen = set()
    arrays = read_leaves(folder / "state", lambda path: path in wanted)
    while True:
        try:
            with orbax_call():
                path, array = next(arrays)
        except StopIteration:
            break
        except Exception as error:
            raise _damaged_or_deleted(folder, f"step {folder.name} could not be read: {first_line(error)}") from error
        _compare(folder, digests, {path: digest_parts([((0,) * array.ndim, array)], array.shape)})
        seen.add(path)
        yield path, array
    if wanted - seen:
        raise _damaged_or_deleted(folder, f"{min(wanted - seen)} is missing")


_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (Damaged, ValueError, FileNotFoundError)}


def sync_read_errors(read: Callable[[], T]) -> T:
    """The result of `read` in this process; `ValueError`, `Damaged` or `FileNotFoundError` of one is raised in all."""
    if jax.process_count() == 1:
        return read()
    result, message = None, ""
    try:
        result = read()
    except (ValueError, FileNotFoundError) as error:
        message = f"{type(error).__name__}\n{error}"
    for text in filter(None, gather_texts(message)):
        kind, _, reason = text.partition("\n")
        raise _KINDS.get(kind, ValueError)(reason)
    return result  # pyright: ignore[reportReturnType]


def _damaged_or_deleted(folder: Path, what: str) -> Exception:
    """`Damaged`; or `FileNotFoundError` where the folder is gone, since a run that is training deletes old steps."""
    if folder.exists():
        return Damaged(f"{folder}: damaged on disk: {what}")
    return FileNotFoundError(f"{folder.parent}: no checkpoint of step {folder.name}: it was deleted while it was read")


def _saved_digests(folder: Path) -> dict[str, int]:
    try:
        return read_digests(folder / "digests")
    except Exception as error:
        raise _damaged_or_deleted(folder, f"digests could not be read: {first_line(error)}") from error


def _compare(folder: Path, saved: Mapping[str, int], computed: Mapping[str, int]) -> None:
    for path, digest in computed.items():
        if saved.get(path) != digest:
            raise _damaged_or_deleted(folder, f"{path} does not match its checksum")


def _abstract(leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def _sharding(leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
