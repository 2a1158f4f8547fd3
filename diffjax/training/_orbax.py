"""What Orbax is given beside the state: digests, written in the background, and which steps to keep.

    save --async_save--> host copies of each leaf --thread--> digests/process_0.json   in the step, before its rename
    step folder --read_leaves--> path, array, one after the other, on the host, with no device or network

Imported when a folder of checkpoints is opened, for Orbax takes seconds.
"""

import dataclasses
import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from diffjax.training._about import is_sealed, path_of, seal
from diffjax.training._digest import MODULUS, Parts, digest_parts, host_parts, start_copy

_GROUP = 2**28


class DigestHandler(ocp.AsyncCheckpointHandler):
    """Writes the digest of each leaf; every process that of its own parts."""

    async def async_save(self, directory: Any, args: Any) -> list[Any]:  # pyright: ignore
        """Copies to the host now, for the next step may donate the arrays; sums and writes in a thread."""
        for leaf in args.leaves.values():
            start_copy(leaf)
        parts = {path: (host_parts(leaf), leaf.shape) for path, leaf in args.leaves.items()}
        return [future.CommitFutureAwaitingContractedSignals(_write(directory, parts, args.returned), name="digests")]

    def save(self, directory: Any, args: Any) -> None:  # pyright: ignore
        """Orbax asks for it; the manager saves asynchronously."""
        raise NotImplementedError

    def restore(self, directory: Any, args: Any = None) -> dict[str, int]:  # pyright: ignore
        """The digests of all leaves, as `read_digests`."""
        return read_digests(Path(directory))


@ocp.args.register_with_handler(DigestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class DigestSave(ocp.args.CheckpointArgs):
    """The leaves to digest, by path; and when to begin: the training waits for what comes before."""

    leaves: Mapping[str, Any]
    returned: threading.Event


async def _write(directory: Any, parts: Mapping[str, tuple[Parts, tuple[int, ...]]], returned: threading.Event) -> None:
    returned.wait(1)
    digests = {path: digest_parts(own, shape) for path, (own, shape) in parts.items()}
    record = seal({"processes": jax.process_count(), "digests": digests})
    (directory / f"process_{jax.process_index()}.json").write_text(json.dumps(record))


class Barrier:
    """Where processes meet in a save, as Orbax's own; but one that could not write does not wait: nobody will come.

    each process     async_write_complete, async_commit_complete, set_value ...     in threads of Orbax's
    one that fails                                                set_value: raises
    """

    def __init__(self) -> None:
        self._meet = ocp.multihost.get_barrier_sync_fn()
        self.begin()

    def begin(self) -> None:
        """A save begins in this thread."""
        self._saver, self._whole = threading.current_thread(), jax.process_count() == 1

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits for all; raises `RuntimeError` where this process's part of the save has failed."""
        if "set_value" in key and not self._whole and threading.current_thread() is not self._saver:
            raise RuntimeError("a save failed, and is not waited for")
        self._meet(key=key, timeout_ms=timeout_ms)
        self._whole = self._whole or "async_commit_complete" in key


def read_digests(folder: Path) -> dict[str, int]:
    """The digests of a step: the sums over what each process wrote.

    Raises:
      ValueError: a file is missing or damaged.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("process_*.json"))]
    if not records or not all(map(is_sealed, records)) or len(records) != records[0]["processes"]:
        raise ValueError("the digests do not match their own checksum, or are not all there")
    return add_digests([record["digests"] for record in records])


def add_digests(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Adds what several processes found."""
    return {path: sum(part[path] for part in parts) % MODULUS for path in parts[0]}


@dataclasses.dataclass
class Keep:
    """Orbax's question which steps to keep: the newest, and the one with the lowest score."""

    newest: int
    score: Callable[[int], float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One answer for each checkpoint, oldest first."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = best_of(steps, self.score)
        return [step in steps[-self.newest :] or step == best for step in steps]


def best_of(steps: Sequence[int], score: Callable[[int], float | None]) -> int | None:
    """The step of the lowest finite score; the newest of equals."""
    scored = [(value, -step) for step in steps if (value := score(step)) is not None and np.isfinite(value)]
    return -min(scored)[1] if scored else None


def read_leaves(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
    """Path and array of each wanted leaf of a saved state, keys as their data; 256 MiB at a time."""
    handler = ocp.PyTreeCheckpointHandler()
    described, structure = jax.tree_util.tree_flatten_with_path(handler.metadata(epath.Path(folder)).tree)
    names = [path_of(path) for path, _ in described]
    sizes = [int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for _, leaf in described]
    groups: list[list[int]] = [[]]
    for i in (i for i, name in enumerate(names) if wanted(name)):
        if groups[-1] and sum(sizes[j] for j in groups[-1]) + sizes[i] > _GROUP:
            groups.append([])
        groups[-1].append(i)
    for group in filter(None, groups):
        chosen = [leaf if i in group else ocp.PLACEHOLDER for i, (_, leaf) in enumerate(described)]
        item = jax.tree.unflatten(structure, chosen)
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        restored = handler.restore(epath.Path(folder), args=ocp.args.PyTreeRestore(item=item, restore_args=on_host))
        arrays = jax.tree.leaves(restored)
        for i in group:
            yield names[i], np.asarray(arrays[i])


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the last first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def first_line(error: BaseException) -> str:
    """The first line of what an error came from, without TensorStore's specification of the file."""
    *_, first = causes(error)
    line = (str(first).strip() or type(first).__name__).splitlines()[0]
    return line.split(" [tensorstore_spec")[0].split(" [source locations")[0]


def _drop_chatter(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _drop_echo(record: logging.LogRecord) -> bool:
    """asyncio says at some later time what Orbax's other tasks had failed of."""
    trace = record.exc_info[2] if record.exc_info else None
    names = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
    return not any("orbax" in name for name in names)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax's log off the terminal, and what asyncio says of its tasks: what fails is raised, and said once."""
    logging.getLogger("absl").addFilter(_drop_chatter)  # a second time adds nothing
    logging.getLogger("asyncio").addFilter(_drop_echo)
    asyncio, silence = logging.getLogger("asyncio"), lambda record: False
    asyncio.addFilter(silence)
    try:
        yield
    finally:
        asyncio.removeFilter(silence)
