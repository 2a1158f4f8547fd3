"""What Orbax needs of us: the digests, written in the background, which steps to preserve, and a barrier.

    save --async_save--> host copies of each leaf --thread--> digests/process_0.json   in the step, before its rename
    step folder --read_leaves--> path, array, one after the other, on the host, with no device or network

Imported when a folder of checkpoints is opened, for importing Orbax takes seconds.
"""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from diffjax._arrays import path_of
from diffjax.training.checkpoint._digest import MODULUS, Parts, digest_parts, host_parts, start_copy
from diffjax.training.checkpoint._files import LARGEST_STEP
from diffjax.training.checkpoint._metadata import is_sealed, seal

_GROUP = 2**28  # bytes that are read at a time


class DigestHandler(ocp.AsyncCheckpointHandler):
    """Writes the digest of each leaf; every process that of its own parts."""

    async def async_save(self, directory: epath.Path, args: "DigestSave") -> list[future.Future]:  # pyright: ignore
        """Copies to the host now, since the next step may donate the arrays; digests and writes in a thread."""
        for leaf in args.leaves.values():
            start_copy(leaf)
        parts = {path: (host_parts(leaf), leaf.shape) for path, leaf in args.leaves.items()}
        return [future.CommitFutureAwaitingContractedSignals(_write(directory, parts, args.returned), name="digests")]

    def save(self, directory: epath.Path, args: "DigestSave") -> None:  # pyright: ignore
        """Abstract in Orbax; the manager saves asynchronously."""
        raise NotImplementedError

    def restore(self, directory: epath.Path, args: object = None) -> dict[str, int]:  # pyright: ignore
        """The digests of all leaves, as `read_digests`."""
        return read_digests(Path(directory))


@ocp.args.register_with_handler(DigestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class DigestSave(ocp.args.CheckpointArgs):
    """The leaves to digest, by path; and the event to wait for: what comes before it holds up the training."""

    leaves: Mapping[str, jax.Array | np.ndarray]
    returned: threading.Event


async def _write(
    directory: epath.Path, parts: Mapping[str, tuple[Parts, tuple[int, ...]]], returned: threading.Event
) -> None:
    returned.wait(1)
    digests = {path: digest_parts(own, shape) for path, (own, shape) in parts.items()}
    record = seal({"processes": jax.process_count(), "digests": digests})
    (directory / f"process_{jax.process_index()}.json").write_text(json.dumps(record))


class SaveBarrier:
    """Orbax's barrier between the processes of a save, which a process whose write failed never enters.

    A process whose write failed raises at once, since the others can never reach the barrier that it would wait at.

    each process     async_write_complete, async_commit_complete, set_value ...     in threads of Orbax's
    one that fails                                                set_value: raises
    """

    def __init__(self) -> None:
        self._sync = ocp.multihost.get_barrier_sync_fn()
        self.begin()

    def begin(self) -> None:
        """A save begins in this thread."""
        self._saver, self._written = threading.current_thread(), jax.process_count() == 1

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits for all; raises `RuntimeError` where this process's part of the save has failed."""
        if "set_value" in key and not self._written and threading.current_thread() is not self._saver:
            raise RuntimeError("a save failed, and is not waited for")
        self._sync(key=key, timeout_ms=timeout_ms)
        self._written = self._written or "async_commit_complete" in key


def read_digests(folder: Path) -> dict[str, int]:
    """Path -> digest of each leaf of a step: the sums over the files of all processes.

    Raises:
      ValueError: a file is missing or damaged.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("process_*.json"))]
    if not records or not all(map(is_sealed, records)) or len(records) != records[0]["processes"]:
        raise ValueError("the digests do not match their own checksum, or are not all there")
    return add_digests([record["digests"] for record in records])


def add_digests(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The digests of whole arrays, from those of the parts of several processes."""
    return {path: sum(part[path] for part in parts) % MODULUS for path in parts[0]}


class StepNames(ocp.path.step.NameFormat):
    """Which folders Orbax takes for steps: those named by a number of 63 bits, as Orbax writes them."""

    def __init__(self) -> None:
        self._standard: ocp.path.step.NameFormat = ocp.path.step.standard_name_format()

    def build_name(self, step: int) -> str:
        """The name of a step."""
        return self._standard.build_name(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[Any]:
        """Orbax's metadata of each step."""
        return (metadata for metadata in self._standard.find_all(base_path) if metadata.step <= LARGEST_STEP)

    def find_step(self, base_path: epath.PathLike, step: int) -> Any:
        """Orbax's metadata of one step."""
        return self._standard.find_step(base_path, step)


@dataclasses.dataclass
class PreservationPolicy:
    """Which steps Orbax does not delete: the newest, and the one with the lowest score."""

    newest: int
    score: Callable[[int], float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """True for each checkpoint to preserve, oldest first."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = best_of(steps, self.score)
        return [step in steps[-self.newest :] or step == best for step in steps]


def best_of(steps: Sequence[int], score: Callable[[int], float | None]) -> int | None:
    """The step of the lowest finite score; the newest of equals."""
    scored = [(value, -step) for step in steps if (value := score(step)) is not None and np.isfinite(value)]
    return -min(scored)[1] if scored else None


def read_leaves(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
    """Path and array [*d] of each wanted leaf of a saved state, keys as their data; 256 MiB at a time."""
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
    """An error and the chain of its causes, the original last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def first_line(error: BaseException) -> str:
    """The first line of the original cause of an error, without TensorStore's specification of the file."""
    *_, first = causes(error)
    line = (str(first).strip() or type(first).__name__).splitlines()[0]
    return line.split(" [tensorstore_spec")[0].split(" [source locations")[0]
