"""One checkpoint, read and compared with what was written.

    120/about ----> format, tree: in our words, before anything is read --+
    120/state ----> arrays, onto the devices of `like` or the host -------+--> arrays, or `Damaged`
    120/digests --> digests of what was written --------------------------+

Imported when a folder of checkpoints is opened, for Orbax takes seconds.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from diffjax.training._about import READ, Damaged, check_format, check_same_tree, describe, is_sealed, leaves_by_path
from diffjax.training._digest import Parts, crc32, digest_parts, host_parts, raw
from diffjax.training._distributed import gather_texts
from diffjax.training._orbax import add_digests, causes, first_line, quiet, read_digests, read_leaves

T = TypeVar("T")


def read_about(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
      ValueError: it is of another format.
      Damaged: it was changed.
      FileNotFoundError: it is no longer there.
    """
    try:
        about: Any = ocp.JsonCheckpointHandler().restore(epath.Path(folder / "about"))
    except Exception as error:
        raise _wrong(folder, f"about could not be read: {first_line(error)}") from error
    version = about.get("format") if isinstance(about, dict) else None
    whole = is_sealed(about) or version == 1
    if whole or (isinstance(about, dict) and "crc32" not in about):  # another format may be sealed otherwise
        check_format(about, str(folder))
    if not whole:
        later = "" if version in READ else f" (or it is of another format: {version})"
        raise _wrong(folder, f"about does not match its checksum{later}")
    return dict(about)


def read_state(folder: Path, like: Any) -> Any:
    """The state, on the devices that `like` is on.

    What is wrong, as in `read_about`, is raised in every process alike, where any of them cannot read its part.
    """

    def read() -> tuple[dict[str, Any], dict[str, Any], Any]:
        about = read_about(folder)
        check_same_tree(about["leaves"], describe(like), str(folder))
        digests = _read_digests(folder, about)
        try:
            with quiet():  # by its handler and not by the manager, which would wait for a process that failed
                wanted = ocp.args.StandardRestore(jax.tree.map(_abstract, like))  # pyright: ignore[reportCallIssue]
                return (
                    about,
                    digests,
                    ocp.StandardCheckpointHandler().restore(epath.Path(folder / "state"), args=wanted),
                )
        except Exception as error:
            if any(isinstance(cause, MemoryError | jax.errors.JaxRuntimeError) for cause in causes(error)):
                raise  # this machine, not the disk
            raise _wrong(folder, f"step {folder.name} could not be read: {first_line(error)}") from error

    about, digests, state = together(read)
    found: Mapping[str, Any] = {
        path: _digest(about, host_parts(raw(leaf)), raw(leaf).shape) for path, leaf in leaves_by_path(state).items()
    }
    if about["format"] > 1:
        found = add_digests([json.loads(text) for text in gather_texts(json.dumps(found))])
    _compare(folder, digests, found)
    return state


def read_some(folder: Path, like: Any) -> Any:
    """Those leaves of the state that `like` holds under the same paths, on its devices; the others are not read."""

    def read() -> list[np.ndarray]:
        about, wanted = read_about(folder), describe(like)
        check_same_tree(
            {path: about["leaves"][path] for path in wanted if path in about["leaves"]}, wanted, str(folder)
        )
        arrays = dict(_read_leaves(folder, about, set(wanted)))
        return [arrays[path] for path in wanted]

    arrays = jax.tree.unflatten(jax.tree.structure(like), together(read))
    # Not `device_put`: it would gather each array from all processes, to compare.
    put = lambda array, leaf: jax.make_array_from_callback(array.shape, _sharding(leaf), lambda part: array[part])
    return jax.tree.map(put, arrays, like)


def read_arrays(folder: Path, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Path and array of each leaf whose path begins with `prefix`, on the host, keys as their data."""
    about = read_about(folder)
    yield from _read_leaves(folder, about, {path for path in about["leaves"] if path.startswith(prefix)})


def _read_leaves(folder: Path, about: Mapping[str, Any], wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    digests = _read_digests(folder, about)
    seen = set()
    arrays = read_leaves(folder / "state", lambda path: path in wanted)
    while True:
        try:
            with quiet():
                path, array = next(arrays)
        except StopIteration:
            break
        except Exception as error:
            raise _wrong(folder, f"step {folder.name} could not be read: {first_line(error)}") from error
        whole = [((0,) * array.ndim, array)]
        _compare(folder, digests, {path: _digest(about, whole, array.shape)})
        seen.add(path)
        yield path, array
    if wanted - seen:
        raise _wrong(folder, f"{min(wanted - seen)} is missing")


_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (Damaged, ValueError, FileNotFoundError)}


def together(read: Callable[[], T]) -> T:
    """What `read` gives; what it raises of `_KINDS` in one process, all raise."""
    if jax.process_count() == 1:
        return read()
    result, said = None, ""
    try:
        result = read()
    except (ValueError, FileNotFoundError) as error:
        said = f"{type(error).__name__}\n{error}"
    for text in filter(None, gather_texts(said)):
        kind, _, reason = text.partition("\n")
        raise _KINDS.get(kind, ValueError)(reason)
    return result  # pyright: ignore[reportReturnType]


def _wrong(folder: Path, what: str) -> Exception:
    """The error of a checkpoint that is not as it was written, or is no longer there: a run that goes on deletes."""
    if folder.exists():
        return Damaged(f"{folder}: damaged on disk: {what}")
    return FileNotFoundError(f"{folder.parent}: no checkpoint of step {folder.name}: it was deleted while it was read")


def _read_digests(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    if about["format"] == 1:
        return {path: leaf["crc32"] for path, leaf in about["leaves"].items()}
    try:
        return read_digests(folder / "digests")
    except Exception as error:
        raise _wrong(folder, f"digests could not be read: {first_line(error)}") from error


def _digest(about: Mapping[str, Any], parts: Parts, shape: tuple[int, ...]) -> int | None:
    return crc32(parts) if about["format"] == 1 else digest_parts(parts, shape)


def _compare(folder: Path, saved: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for path, digest in found.items():
        if saved.get(path) != digest and not (digest is None and path in saved):
            raise _wrong(folder, f"{path} does not match its checksum")


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
